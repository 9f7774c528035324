//! What both stores check before they touch anything: names, attribute names, rename flags.

use super::{PRIVATE_DIR, PRIVATE_XATTR_PREFIX};
use crate::fop::{Errno, FileKind, Gfid, SetAttr, NAME_BYTES_MAX, RENAME_EXCHANGE, RENAME_NOREPLACE};

/// The longest value of an extended attribute (`XATTR_SIZE_MAX`).
const XATTR_VALUE_BYTES_MAX: usize = 65_536;

/// Refuses what cannot be one component of a path, and our own directory.
pub(super) fn name(parent: Gfid, name: &[u8]) -> Result<(), Errno> {
    if name.len() > NAME_BYTES_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    if matches!(name, b"" | b"." | b"..") || name.iter().any(|b| matches!(b, 0 | b'/')) {
        return Err(Errno::EINVAL);
    }
    if is_private(parent, name) {
        return Err(Errno::EPERM);
    }
    Ok(())
}

/// As [`name`], for a query: our own directory does not exist.
pub(super) fn name_of_query(parent: Gfid, name: &[u8]) -> Result<(), Errno> {
    self::name(parent, name).map_err(|e| if e == Errno::EPERM { Errno::ENOENT } else { e })
}

/// Whether this is `.brickraft` in the root.
pub(super) fn is_private(parent: Gfid, name: &[u8]) -> bool {
    parent == Gfid::ROOT && name == PRIVATE_DIR
}

/// Whether an extended attribute is ours.
pub(super) fn is_private_xattr(name: &[u8]) -> bool {
    name.starts_with(PRIVATE_XATTR_PREFIX)
}

/// Refuses names (and values) of extended attributes that cannot be set, and ours.
pub(super) fn xattr(name: &[u8], value: &[u8]) -> Result<(), Errno> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(Errno::ERANGE);
    }
    if name.contains(&0) {
        return Err(Errno::EINVAL);
    }
    if is_private_xattr(name) {
        return Err(Errno::EPERM);
    }
    if value.len() > XATTR_VALUE_BYTES_MAX {
        return Err(Errno::E2BIG);
    }
    Ok(())
}

/// Refuses unknown or contradictory flags of a rename.
pub(super) fn rename_flags(flags: u32) -> Result<(), Errno> {
    match flags {
        0 | RENAME_NOREPLACE | RENAME_EXCHANGE => Ok(()),
        _ => Err(Errno::EINVAL),
    }
}

/// The longest text of a symbolic link: a path.
const TARGET_BYTES_MAX: usize = 4095;

/// Refuses what cannot be made: the reserved gfids, and links without a text.
pub(super) fn new_node(gfid: Gfid, kind: FileKind, target: &[u8]) -> Result<(), Errno> {
    if gfid == Gfid::ROOT || gfid == Gfid([0; 16]) {
        return Err(Errno::EEXIST);
    }
    if kind == FileKind::Symlink {
        if target.is_empty() || target.contains(&0) {
            return Err(Errno::ENOENT);
        }
        if target.len() > TARGET_BYTES_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
    }
    Ok(())
}

/// Refuses attributes that no file system takes, so that a change is refused before it has begun.
pub(super) fn set_attr(kind: FileKind, set: &SetAttr) -> Result<(), Errno> {
    let id_bad = set.uid == Some(u32::MAX) || set.gid == Some(u32::MAX);
    let time_bad = [set.atime, set.mtime].into_iter().flatten().any(|t| t.nsec >= 1_000_000_000);
    if id_bad || time_bad {
        return Err(Errno::EINVAL);
    }
    if set.mode.is_some() && kind == FileKind::Symlink {
        return Err(Errno::EOPNOTSUPP);
    }
    if set.size.is_some_and(|s| i64::try_from(s).is_err()) {
        return Err(Errno::EFBIG);
    }
    Ok(())
}
