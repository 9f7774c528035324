//! The one vocabulary that all translators speak: a [`Fop`] (file operation) goes down the stack, a
//! [`Reply`] or an [`Errno`] comes back. Payloads of reads and writes travel beside them as [`Bytes`].
//!
//! The words are GlusterFS's. Both types are encoded with postcard (FORMAT.md, "brick protocol"): new
//! variants go to the end.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The 128-bit id of a file or directory, the same on every brick. Never reused.
///
/// Its first 16 bits are its [`Bucket`]: the unit of placement, of heal and of rebalance.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Gfid(pub [u8; 16]);

/// One of a volume's 65,536 shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Bucket(pub u16);

impl Gfid {
    /// The volume's root directory.
    pub const ROOT: Self = Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

    /// The first 16 bits.
    #[must_use]
    pub const fn bucket(self) -> Bucket {
        Bucket(u16::from_be_bytes([self.0[0], self.0[1]]))
    }

    /// A gfid in `bucket`, the other 112 bits from `random`.
    #[must_use]
    pub fn in_bucket(bucket: Bucket, random: [u8; 14]) -> Self {
        let mut id = [0; 16];
        id[..2].copy_from_slice(&bucket.0.to_be_bytes());
        id[2..].copy_from_slice(&random);
        Self(id)
    }

    /// The bucket of a directory that is made as `name` in `parent` (a file goes into its parent's own).
    #[must_use]
    pub fn directory_bucket(parent: Self, name: &[u8]) -> Bucket {
        let hash = xxhash_rust::xxh3::xxh3_64_with_seed(name, u64::from_be_bytes(parent.0[8..].try_into().expect("8 of 16 bytes")));
        Bucket((hash >> 48) as u16)
    }

    /// Parses the text form that [`fmt::Display`] writes: 32 lower-case hexadecimal digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return None;
        }
        u128::from_str_radix(text, 16).ok().map(|n| Self(n.to_be_bytes()))
    }
}

impl fmt::Display for Gfid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Gfid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A Linux error number, positive. The one errno type of the project.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[error("{}", std::io::Error::from_raw_os_error(*.0))]
pub struct Errno(pub i32);

#[allow(missing_docs, reason = "the names are errno(3)'s")]
impl Errno {
    pub const EPERM: Self = Self(1);
    pub const ENOENT: Self = Self(2);
    pub const EIO: Self = Self(5);
    pub const ENXIO: Self = Self(6);
    pub const E2BIG: Self = Self(7);
    pub const EBADF: Self = Self(9);
    pub const EAGAIN: Self = Self(11);
    pub const EACCES: Self = Self(13);
    pub const EBUSY: Self = Self(16);
    pub const EEXIST: Self = Self(17);
    pub const EXDEV: Self = Self(18);
    pub const ENOTDIR: Self = Self(20);
    pub const EISDIR: Self = Self(21);
    pub const EINVAL: Self = Self(22);
    pub const ENFILE: Self = Self(23);
    pub const EMFILE: Self = Self(24);
    pub const EFBIG: Self = Self(27);
    pub const ENOSPC: Self = Self(28);
    pub const EROFS: Self = Self(30);
    pub const EMLINK: Self = Self(31);
    pub const ERANGE: Self = Self(34);
    pub const ENAMETOOLONG: Self = Self(36);
    pub const ENOSYS: Self = Self(38);
    pub const ENOTEMPTY: Self = Self(39);
    pub const ENODATA: Self = Self(61);
    pub const EOPNOTSUPP: Self = Self(95);
    pub const ENOTCONN: Self = Self(107);
    pub const ETIMEDOUT: Self = Self(110);
    pub const ESTALE: Self = Self(116);
    pub const EDQUOT: Self = Self(122);
}

impl From<std::io::Error> for Errno {
    fn from(e: std::io::Error) -> Self {
        Self(e.raw_os_error().unwrap_or(Self::EIO.0))
    }
}

impl From<rustix::io::Errno> for Errno {
    fn from(e: rustix::io::Errno) -> Self {
        Self(e.raw_os_error())
    }
}

/// A time stamp as stat(2) gives it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TimeSpec {
    /// Seconds since 1970-01-01, UTC.
    pub sec: i64,
    /// Nanoseconds, 0 to 999,999,999.
    pub nsec: u32,
}

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it")]
pub enum FileKind {
    File,
    Dir,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

impl From<rustix::fs::FileType> for FileKind {
    /// What the kernel does not name is taken for a file.
    fn from(file_type: rustix::fs::FileType) -> Self {
        use rustix::fs::FileType;
        match file_type {
            FileType::Directory => Self::Dir,
            FileType::Symlink => Self::Symlink,
            FileType::Fifo => Self::Fifo,
            FileType::Socket => Self::Socket,
            FileType::CharacterDevice => Self::CharDevice,
            FileType::BlockDevice => Self::BlockDevice,
            _ => Self::File,
        }
    }
}

/// An object's attributes, as stat(2) gives them, free of what is ours (the index's hard link is not counted).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are stat(2)'s")]
pub struct Attr {
    pub gfid: Gfid,
    pub kind: FileKind,
    /// Permission bits with set-id and sticky bits: `mode & 0o7777`.
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    /// Linux's `dev_t` for device nodes, else 0.
    pub rdev: u64,
    pub size: u64,
    /// Units of 512 bytes.
    pub blocks: u64,
    pub atime: TimeSpec,
    pub mtime: TimeSpec,
    pub ctime: TimeSpec,
}

/// What a `SetAttr` changes; `None` leaves a field alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are stat(2)'s")]
pub struct SetAttr {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<TimeSpec>,
    pub mtime: Option<TimeSpec>,
}

/// One name of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirEntry {
    /// Where to go on after this entry; opaque, not 0, stable while the directory changes.
    pub cookie: u64,
    /// The name; never `.` or `..`, never `.brickraft` in the root.
    pub name: Bytes,
    /// The object.
    pub gfid: Gfid,
    /// Its kind.
    pub kind: FileKind,
    /// Its attributes when the listing asked for them (`plus`).
    pub attr: Option<Attr>,
}

/// statfs(2) of a brick. Units of `frsize` bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are statvfs(3)'s")]
pub struct StatFs {
    pub blocks: u64,
    pub bfree: u64,
    pub bavail: u64,
    pub files: u64,
    pub ffree: u64,
    pub bsize: u32,
    pub frsize: u32,
    pub namelen: u32,
}

/// `Rename`: fail with `EEXIST` rather than replace (Linux's `RENAME_NOREPLACE`).
pub const RENAME_NOREPLACE: u32 = 1;
/// `Rename`: swap both names (Linux's `RENAME_EXCHANGE`).
pub const RENAME_EXCHANGE: u32 = 2;
/// `Fallocate`: leave the size as it is (Linux's `FALLOC_FL_KEEP_SIZE`).
pub const FALLOC_KEEP_SIZE: u32 = 1;
/// `Fallocate`: leave a hole, with [`FALLOC_KEEP_SIZE`] (Linux's `FALLOC_FL_PUNCH_HOLE`).
pub const FALLOC_PUNCH_HOLE: u32 = 2;
/// `Fallocate`: zeros (Linux's `FALLOC_FL_ZERO_RANGE`).
pub const FALLOC_ZERO_RANGE: u32 = 16;
/// The extended attribute that holds a file's fence: a decimal number that only rises. See SEMANTICS.md, "Fencing".
pub const XATTR_FENCE: &[u8] = b"user.brickraft.fence";

/// The longest name, in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// The largest read or write, in bytes: what one FUSE request carries.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;

/// A file operation. Objects are named by gfid, entries by parent and name.
///
/// The gfid of a new object is chosen by the client, so that a retry finds its own work: creating again
/// what is there under that name with that gfid succeeds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the system calls'")]
pub enum Fop {
    // Queries.
    Lookup {
        parent: Gfid,
        name: Bytes,
    },
    GetAttr {
        gfid: Gfid,
    },
    ReadLink {
        gfid: Gfid,
    },
    Read {
        gfid: Gfid,
        offset: u64,
        len: u32,
    },
    /// Entries after `cookie` (0: from the start), until about `bytes` of names and attributes.
    ReadDir {
        gfid: Gfid,
        cookie: u64,
        bytes: u32,
        plus: bool,
    },
    StatFs,
    GetXattr {
        gfid: Gfid,
        name: Bytes,
    },
    ListXattr {
        gfid: Gfid,
    },
    /// `whence` is `SEEK_DATA` (3) or `SEEK_HOLE` (4).
    Lseek {
        gfid: Gfid,
        offset: u64,
        whence: u32,
    },
    // The session's open files: what is open survives its unlink.
    Open {
        gfid: Gfid,
        flags: u32,
    },
    Release {
        gfid: Gfid,
    },
    // Changes of names.
    Create {
        parent: Gfid,
        name: Bytes,
        gfid: Gfid,
        mode: u32,
        uid: u32,
        gid: u32,
        open: bool,
    },
    MkNod {
        parent: Gfid,
        name: Bytes,
        gfid: Gfid,
        kind: FileKind,
        mode: u32,
        rdev: u64,
        uid: u32,
        gid: u32,
    },
    MkDir {
        parent: Gfid,
        name: Bytes,
        gfid: Gfid,
        mode: u32,
        uid: u32,
        gid: u32,
    },
    Symlink {
        parent: Gfid,
        name: Bytes,
        gfid: Gfid,
        target: Bytes,
        uid: u32,
        gid: u32,
    },
    Link {
        gfid: Gfid,
        parent: Gfid,
        name: Bytes,
    },
    Unlink {
        parent: Gfid,
        name: Bytes,
    },
    RmDir {
        parent: Gfid,
        name: Bytes,
    },
    Rename {
        parent: Gfid,
        name: Bytes,
        new_parent: Gfid,
        new_name: Bytes,
        flags: u32,
    },
    // Changes of an object.
    SetAttr {
        gfid: Gfid,
        set: SetAttr,
    },
    /// The data is the payload.
    Write {
        gfid: Gfid,
        offset: u64,
    },
    /// `mode` as fallocate(2)'s.
    Fallocate {
        gfid: Gfid,
        offset: u64,
        len: u64,
        mode: u32,
    },
    SetXattr {
        gfid: Gfid,
        name: Bytes,
        value: Bytes,
        flags: u32,
    },
    RemoveXattr {
        gfid: Gfid,
        name: Bytes,
    },
    /// Durable on every in-sync brick when it returns; of a directory: its names.
    Fsync {
        gfid: Gfid,
        data_only: bool,
    },
}

/// The answer to a [`Fop`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Reply {
    Done,
    /// Lookup, GetAttr, SetAttr, Create, MkNod, MkDir, Symlink, Link.
    Attr(Attr),
    /// ReadLink, GetXattr, ListXattr (names, each ended by NUL).
    Data(Bytes),
    /// Read: the payload is the data; shorter than asked only at the end of the file.
    Payload,
    Entries {
        entries: Vec<DirEntry>,
        end: bool,
    },
    StatFs(StatFs),
    /// Lseek.
    Offset(u64),
    /// Write: bytes written (all of them), and the attributes after it.
    Written {
        len: u32,
        attr: Attr,
    },
}

/// What every translator returns.
pub type FopResult = Result<Reply, Errno>;
