//! Every name and extended attribute that a union reads or writes on disk. FORMAT.md, "union", describes them.

/// What AUFS's own names begin with; users can neither make nor see such names.
pub const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// In a directory: lower branches' directories of the same place are hidden.
pub const OPAQUE: &[u8] = b".wh..wh..opq";
/// In a writable branch's root: the file that whiteouts are hard links of.
pub const WHITEOUT_BASE: &[u8] = b".wh..wh.aufs";
/// In a writable branch's root: hard-linked files of lower branches that were copied up, by number.
pub const PLINKS: &[u8] = b".wh..wh.plnk";
/// In a writable branch's root: work directories, one for each live union.
pub const WORK: &[u8] = b".wh..wh.orph";

/// In a writable branch's root: which blocks of files that are copied up lazily are there already, by the mark's ID.
pub const LAZY: &[u8] = b".wh..wh.lazy";

/// In a writable branch's root: a union writes to it with `volatile`, or did and did not end in order.
pub const VOLATILE: &[u8] = b".wh..wh.volatile";

/// The inode number that an object goes by: `NUMBER.OWN`, both 16 hexadecimal digits; counts only where OWN is the number of the
/// object that carries it, so that a copy made by hand is not taken for the original.
pub const XATTR_NUMBER: &[u8] = b"trusted.brickraft.ino";
/// On a directory: objects in it may carry [`XATTR_NUMBER`].
pub const XATTR_IMPURE: &[u8] = b"trusted.brickraft.impure";
/// On a renamed directory: the path, in the union of the branches below, that it merges with; AUFS's layout.
pub const XATTR_REDIRECT: &[u8] = b"trusted.brickraft.redirect";
/// On a character device 0/0: it is a device that somebody made, and no whiteout of overlayfs's. AUFS's layout only.
pub const XATTR_DEVICE: &[u8] = b"trusted.brickraft.device";
/// On a file of which not all was copied up, and on its bitmap: where the rest is.
pub const XATTR_LAZY: &[u8] = b"trusted.brickraft.lazy";
/// On a directory: hides the lower ones. Written in overlayfs's layout, and before a rename replaces a directory that only whiteouts fill.
pub const XATTR_OVERLAY_OPAQUE: &[u8] = b"trusted.overlay.opaque";
/// As [`XATTR_REDIRECT`]; overlayfs's layout.
pub const XATTR_OVERLAY_REDIRECT: &[u8] = b"trusted.overlay.redirect";

/// The longest name for which a `.wh.` name fits.
pub const WHITEOUT_NAME_BYTES_MAX: usize = crate::fop::NAME_BYTES_MAX - WHITEOUT_PREFIX.len();

/// The whiteout of `name`.
pub fn whiteout(name: &[u8]) -> Vec<u8> {
    [WHITEOUT_PREFIX, name].concat()
}

/// Whether `name` is one that users cannot see.
pub fn is_private(name: &[u8]) -> bool {
    name.starts_with(WHITEOUT_PREFIX)
}

/// The word behind overlayfs's prefixes.
pub fn overlay_word(xattr: &[u8]) -> Option<&[u8]> {
    xattr.strip_prefix(b"trusted.overlay.").or_else(|| xattr.strip_prefix(b"user.overlay."))
}

/// Whether an extended attribute is bookkeeping: invisible, and refused with `EPERM`.
pub fn is_private_xattr(name: &[u8]) -> bool {
    name.starts_with(b"trusted.brickraft.") || overlay_word(name).is_some()
}
