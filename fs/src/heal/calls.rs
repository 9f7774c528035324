//! The words of a heal: what the healing side asks of a brick, and what the brick answers.
//!
//! Both are encoded with postcard (FORMAT.md, "heal messages"): new variants go to the end. Every call is small
//! work on one or a few objects, so that the brick's thread is never held for long, and every change is idempotent:
//! a heal that starts again from nothing is always right.

use crate::fop::{Attr, Bucket, Errno, FileKind, Gfid, TimeSpec};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Data is compared in chunks of this many bytes.
pub const CHUNK_BYTES: u64 = 128 * 1024;
/// Most bytes of file data in one call or answer.
pub const CALL_BYTES_MAX: usize = 1 << 20;
/// Most objects in one answer.
pub const OBJECTS_MAX: usize = 1024;
/// Most entries in one answer.
pub const ENTRIES_MAX: usize = 2048;
/// Most bytes that one [`HealCall::Sums`] reads.
pub const SUM_BYTES_MAX: u64 = 4 << 20;

/// The gfid of an entry that the index does not know: what lies there is not ours, or not the object that the
/// index has under its gfid.
pub const STRANGER: Gfid = Gfid([0; 16]);

/// Where a directory stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Place {
    /// Under its name (the root: parent `Gfid::ROOT`, empty name).
    At {
        /// The directory that it lies in.
        parent: Gfid,
        /// Its name there.
        name: Bytes,
    },
    /// In `.brickraft/limbo`, on its way from one parent to another.
    Limbo,
}

/// What a comparison needs to know of an object, its data and entries aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectInfo {
    /// Its attributes; `nlink` without the index link.
    pub attr: Attr,
    /// Of a directory: where it stands.
    pub place: Option<Place>,
    /// Of a symbolic link: its text.
    pub target: Option<Bytes>,
    /// xxh3-128 of its extended attributes, `trusted.brickraft.*` aside (FORMAT.md, "heal messages").
    pub xattr_sum: u128,
}

/// One name of a directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NameEntry {
    /// The name.
    pub name: Bytes,
    /// The object, or [`STRANGER`].
    pub gfid: Gfid,
    /// Whether it is a directory.
    pub is_dir: bool,
}

/// The attributes that a heal sets, exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are stat(2)'s")]
pub struct ExactAttr {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub atime: TimeSpec,
    pub mtime: TimeSpec,
}

impl From<&Attr> for ExactAttr {
    fn from(a: &Attr) -> Self {
        Self { mode: a.mode, uid: a.uid, gid: a.gid, atime: a.atime, mtime: a.mtime }
    }
}

/// A content signature: valid only while size and mtime are these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// xxh3-128 of the content.
    pub sum: u128,
    /// The size that it was made at.
    pub size: u64,
    /// The mtime that it was made at.
    pub mtime: TimeSpec,
}

/// A request of a heal to one brick.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the variants say it")]
pub enum HealCall {
    /// The bucket's objects in the order of their gfids, after `after`. -> `Objects`
    Objects { bucket: Bucket, after: Option<Gfid>, max: u32 },
    /// Each object, `None` where there is none. At most [`OBJECTS_MAX`]. -> `Stats`
    Stat { gfids: Vec<Gfid> },
    /// A directory's names after `cookie` (0: from the start), in any order. -> `Entries`
    Entries { dir: Gfid, cookie: u64, max: u32 },
    /// What stands under a name, which may be nothing. -> `Entry`
    Lookup { parent: Gfid, name: Bytes },
    /// -> `Xattrs`
    Xattrs { gfid: Gfid },
    /// Sums of the chunks that hold data, from `offset` (a multiple of the chunk size) on and before `end`, until
    /// [`SUM_BYTES_MAX`] were read. -> `Sums`
    Sums { gfid: Gfid, offset: u64, end: u64 },
    /// The data in a range, holes left out. At most [`CALL_BYTES_MAX`]. -> `Data`
    Read { gfid: Gfid, offset: u64, len: u32 },
    /// The directories in limbo. -> `Gfids`
    Limbo,
    /// The signature that the object carries. -> `Signature`
    Signature { gfid: Gfid },

    /// Makes an object without a name, not a directory, unless it is there. `EEXIST`: one of another kind or text is.
    Make { gfid: Gfid, kind: FileKind, rdev: u64, target: Option<Bytes> },
    /// Makes a directory there, or moves it there from wherever it is. `ENOENT`: no such parent; `EEXIST`: the name is
    /// taken; `EINVAL`: the parent lies inside the directory. -> `Moved`
    PlaceDir { gfid: Gfid, parent: Gfid, name: Bytes },
    /// Moves a directory to limbo with all below it. -> `Moved`
    ToLimbo { gfid: Gfid },
    /// `ENOENT`: no such parent or object; `EEXIST`: the name is taken by another.
    Link { parent: Gfid, name: Bytes, gfid: Gfid },
    /// Takes the name of a non-directory away, or a stranger with all below it, if it is there. The object stays.
    Unlink { parent: Gfid, name: Bytes },
    /// Owner, mode and times, exactly; not the size.
    SetAttr { gfid: Gfid, attr: ExactAttr },
    /// `None` removes (an absent one: nothing to do).
    SetXattr { gfid: Gfid, name: Bytes, value: Option<Bytes> },
    /// Makes the range (offset, length) a hole, then writes the extents. Takes the signature away.
    Write { gfid: Gfid, hole: Option<(u64, u64)>, extents: Vec<(u64, Bytes)> },
    /// Sets the size. Takes the signature away.
    Truncate { gfid: Gfid, size: u64 },
    /// Removes an object that should not be there. `ENOTEMPTY`: it has entries or names.
    Remove { gfid: Gfid },
    /// Gives the object a signature if size and mtime are the signature's; `ESTALE` otherwise.
    Sign { gfid: Gfid, signature: Signature },
    /// Several, in order, until one fails. -> `Batch`
    Batch(Vec<HealCall>),
    /// Those of the objects that the brick lost behind its back ([`HealStore::heal_lost`](super::HealStore::heal_lost)). At most
    /// [`OBJECTS_MAX`]. -> `Gfids`
    Lost { gfids: Vec<Gfid>, named: bool },
    /// Gives an object its name back, a directory with attributes and extended attributes; the times of `parent` stay. As one
    /// change. `EEXIST`: the name is taken; `ENOENT`: no such parent or object.
    Restore { parent: Gfid, name: Bytes, gfid: Gfid, dir: Option<(ExactAttr, Vec<(Bytes, Bytes)>)> },
}

/// The answer to a [`HealCall`]; calls without `->` answer `Done`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "HealCall says it")]
pub enum HealReturn {
    Done,
    /// `None`: the index names it, but it is not there. `after`: where to go on; `None` at the bucket's end.
    Objects {
        objects: Vec<(Gfid, Option<ObjectInfo>)>,
        after: Option<Gfid>,
    },
    Stats(Vec<Option<ObjectInfo>>),
    /// `next`: the cookie to go on with; 0 at the end.
    Entries {
        entries: Vec<NameEntry>,
        next: u64,
    },
    Entry(Option<NameEntry>),
    Xattrs(Vec<(Bytes, Bytes)>),
    /// Pairs of chunk number and xxh3-128; a chunk left out is a hole. `next`: where to go on; `None` at the end.
    Sums {
        chunks: Vec<(u64, u128)>,
        next: Option<u64>,
    },
    Data {
        extents: Vec<(u64, Bytes)>,
    },
    Gfids(Vec<Gfid>),
    /// Where a directory stood before; `None`: it was not there.
    Moved(Option<Place>),
    Signature(Option<Signature>),
    /// One for each that succeeded, and the error where one failed.
    Batch {
        returns: Vec<HealReturn>,
        failed: Option<Errno>,
    },
}

/// What a brick answers to a call.
pub type HealResult = Result<HealReturn, Errno>;
