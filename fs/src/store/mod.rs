//! A brick's disk: the [`BrickStore`] trait, `DirStore` (a directory of a Linux file system) and
//! `SimStore` (the same in memory, for the simulator), with one `conformance` suite for both.
//!
//! A store executes; it does not decide. Who may do what in which order is `fs::replica`'s; a store
//! has no clock (times come in with the change), no thread and no random source.
//!
//! The byte formats stand in FORMAT.md, chapter "brick".

mod bucket_set;

pub use bucket_set::{BUCKET_COUNT, BucketSet};

use crate::fop::{Attr, Bucket, Errno, FileKind, Fop, FopResult, Gfid, TimeSpec};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::os::fd::RawFd;
use std::path::PathBuf;

/// The one name in a brick's root that is ours.
pub const PRIVATE_DIR: &[u8] = b".brickraft";
/// Extended attributes that start with this are ours: invisible and refused (`EPERM`) through a mount.
pub const PRIVATE_XATTR_PREFIX: &[u8] = b"trusted.brickraft.";
/// Every object carries its gfid here, 16 raw bytes.
pub const XATTR_GFID: &str = "trusted.brickraft.gfid";
/// The content signature (see `fs::heal::scrub`).
pub const XATTR_SUM: &str = "trusted.brickraft.sum";

/// Who a brick is and how far it got. Durable and checksummed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrickMeta {
    /// The volume's id.
    pub volume: u128,
    /// The brick's id, unique within the cluster.
    pub brick: u64,
    /// Grows with every start of the brick's process.
    pub incarnation: u64,
    /// The last epoch of its replica group that it acted in.
    pub epoch: u64,
    /// The epoch of the last bitmap checkpoint; 0: it was never in sync.
    pub synced_epoch: u64,
}

/// What every change carries beside its [`Fop`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpCtx {
    /// The change's time by the primary's clock: every brick sets the mtimes (of the object, of the
    /// directories whose entries change) to exactly this, so that replicas agree.
    pub time: TimeSpec,
}

/// A data operation: submitted, done later.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum DataOp {
    Read { gfid: Gfid, offset: u64, len: u32 },
    Write { gfid: Gfid, offset: u64, data: Bytes, time: TimeSpec },
    /// Of a file: its data and, unless `data_only`, its attributes and names. Of a directory: its names.
    Fsync { gfid: Gfid, data_only: bool },
    /// Everything that was applied before it.
    SyncAll,
}

/// How a [`DataOp`] ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataDone {
    /// The data; shorter than asked only at the end of the file.
    Read(Result<Bytes, Errno>),
    /// The attributes after the write.
    Write(Result<Attr, Errno>),
    /// Fsync, SyncAll.
    Synced(Result<(), Errno>),
}

/// Why a brick could not be made or opened, or why its own files could not be written.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum StoreError {
    #[error("{path}: {doing}: {source}")]
    Io { path: PathBuf, doing: &'static str, #[source] source: std::io::Error },
    #[error("{path} is already brick {brick} of volume {volume:032x}")]
    AlreadyBrick { path: PathBuf, volume: u128, brick: u64 },
    #[error("{path} lies inside the brick {other}")]
    InsideBrick { path: PathBuf, other: PathBuf },
    #[error("{path} contains the brick {other}")]
    ContainsBrick { path: PathBuf, other: PathBuf },
    #[error("{path} is not empty")]
    NotEmpty { path: PathBuf },
    #[error("{path} is not a brick: it has no .brickraft/brick")]
    NotABrick { path: PathBuf },
    #[error("{path}: the file system cannot hold a brick: {reason}")]
    Unsuitable { path: PathBuf, reason: String },
    #[error("{path} is in use by another process")]
    Locked { path: PathBuf },
    #[error("{path}: damaged at offset {offset}: expected {expected}, found {found}")]
    Damaged { path: PathBuf, offset: u64, expected: String, found: String },
    #[error("an earlier write of the brick's own files failed; reopen the brick")]
    Latched,
}

/// An object as heal sees it: everything but its extended attributes, entries and data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectInfo {
    /// Its attributes. `nlink` counts names only: 0 is an object that lost its last name (or has none yet).
    pub attr: Attr,
    /// Of a directory: its parent and name. `None` for the root and for a directory in limbo.
    pub place: Option<(Gfid, Bytes)>,
    /// Of a symlink: its text.
    pub target: Option<Bytes>,
}

/// A name as heal sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct NameEntry {
    pub name: Bytes,
    pub gfid: Gfid,
    pub kind: FileKind,
}

/// What heal gives a new object; times, sizes and extended attributes follow by calls of their own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct NewObject {
    pub gfid: Gfid,
    pub kind: FileKind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u64,
    /// Of a symlink: its text.
    pub target: Bytes,
}

/// A brick's disk.
///
/// Names are checked here, whoever calls: not empty, `.` or `..`, no `/` or NUL, at most 255 bytes
/// (`EINVAL`, `ENAMETOOLONG`), and not `.brickraft` in the root (`EPERM`).
pub trait BrickStore {
    // ---- identity and the dirty bitmap ----

    /// Who the brick is.
    fn meta(&self) -> BrickMeta;
    /// Durable on return.
    ///
    /// # Errors
    /// A failed write latches: every later call fails too.
    fn set_meta(&mut self, meta: BrickMeta) -> Result<(), StoreError>;
    /// Whether the identity file is still there and ours, and the index's root too: false after somebody
    /// emptied or replaced the directory. Cheap enough to ask once a second.
    fn intact(&mut self) -> bool;
    /// The buckets that were changed since the last [`BrickStore::reset_dirty`].
    fn dirty(&self) -> &BucketSet;
    /// Durable before it returns, unless the bit was set already. `apply` and `submit` call it themselves.
    ///
    /// # Errors
    /// The bitmap could not be written: nothing may be changed in that bucket.
    fn mark_dirty(&mut self, bucket: Bucket) -> Result<(), Errno>;
    /// Makes `keep` the set. Call it only after a `SyncAll` on every brick of the group.
    ///
    /// # Errors
    /// The bitmap could not be written.
    fn reset_dirty(&mut self, keep: &BucketSet) -> Result<(), Errno>;

    // ---- file operations ----

    /// Executes a query (all but `Read`; `Open` and `Release` are answered too, with no effect on the
    /// store: see [`BrickStore::keep_orphan`]).
    ///
    /// # Errors
    /// As the system call; `EINVAL` for what is not a query.
    fn query(&mut self, fop: &Fop) -> FopResult;
    /// Executes a change (all but `Write` and `Fsync`): either wholly done, or an error with nothing
    /// changed. Marks what it touches dirty first. Creating (or linking) again what is there under that
    /// name with that gfid succeeds.
    ///
    /// # Errors
    /// As the system call; `EINVAL` for what is not a change of metadata.
    fn apply(&mut self, fop: &Fop, ctx: &OpCtx) -> FopResult;
    /// Starts a data operation; it ends in [`BrickStore::reap`]. Conflicting operations (same file, at
    /// least one write) may end in any order: keeping them apart is the caller's duty.
    fn submit(&mut self, token: u64, op: DataOp);
    /// Takes what has ended since the last call. Never blocks.
    fn reap(&mut self, out: &mut Vec<(u64, DataDone)>);
    /// Data operations under way.
    fn pending(&self) -> usize;
    /// A descriptor that becomes readable when [`BrickStore::reap`] has something; `None`: call it at will.
    fn ready_fd(&self) -> Option<RawFd> {
        None
    }
    /// Says whether the object is open somewhere. While it is, an `Unlink` (or a replacing `Rename`) of
    /// its last name keeps it reachable by gfid with `nlink` 0. Setting it to false drops what was kept.
    ///
    /// # Errors
    /// The kept object could not be removed.
    fn keep_orphan(&mut self, gfid: Gfid, keep: bool) -> Result<(), Errno>;
    /// The objects without a name that are kept; survives a restart, so that the caller can keep or drop them.
    fn orphans(&mut self) -> Result<Vec<Gfid>, Errno>;

    // ---- heal: queries ----

    /// The objects of a bucket with gfids above `after`, ascending, at most `max`. An empty answer ends
    /// the listing. The root is part of bucket 0. Directories whose place is lost are left out.
    ///
    /// # Errors
    /// `EIO` when the index cannot be read.
    fn bucket_objects(&mut self, bucket: Bucket, after: Option<Gfid>, max: usize) -> Result<Vec<ObjectInfo>, Errno>;
    /// One object.
    ///
    /// # Errors
    /// `ENOENT`.
    fn object(&mut self, gfid: Gfid) -> Result<ObjectInfo, Errno>;
    /// A directory's names above `after` (empty: from the start), ascending by bytes, at most `max`. An
    /// empty answer ends the listing.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`.
    fn names(&mut self, dir: Gfid, after: &[u8], max: usize) -> Result<Vec<NameEntry>, Errno>;
    /// All extended attributes but ours, ascending by name.
    ///
    /// # Errors
    /// `ENOENT`.
    fn xattrs(&mut self, gfid: Gfid) -> Result<Vec<(Bytes, Bytes)>, Errno>;
    /// Reads at once (no ring): up to `len` bytes, shorter only at the end of the file.
    ///
    /// # Errors
    /// `ENOENT`, `EIO`, `EINVAL` when it is not a regular file.
    fn read_range(&mut self, gfid: Gfid, offset: u64, len: u32) -> Result<Bytes, Errno>;
    /// The content signature ([`XATTR_SUM`]) if there is one.
    ///
    /// # Errors
    /// `ENOENT`.
    fn signature(&mut self, gfid: Gfid) -> Result<Option<Bytes>, Errno>;
    /// Directories in limbo: made or taken from their place, not yet given one.
    fn limbo(&mut self) -> Result<Vec<Gfid>, Errno>;

    // ---- heal: changes. Each marks the bucket it touches dirty; all are idempotent. None sets a time
    // on its own: finish an object, and a directory whose names changed, with `set_attr_exact`. ----

    /// Makes an object: a file, symlink or device without a name, a directory in limbo. An object of that
    /// gfid and kind that is there already is left as it is (a symlink with another text is `EEXIST`).
    ///
    /// # Errors
    /// `EEXIST` when the gfid is of another kind.
    fn make_object(&mut self, new: &NewObject) -> Result<(), Errno>;
    /// Gives a non-directory another name.
    ///
    /// # Errors
    /// `EEXIST` when the name belongs to another object; `ENOENT` when parent or object is missing.
    fn link_name(&mut self, parent: Gfid, name: &[u8], gfid: Gfid) -> Result<(), Errno>;
    /// Moves a directory from wherever it is to this place.
    ///
    /// # Errors
    /// `EEXIST` when the name belongs to another object; `ENOENT` when parent or directory is missing;
    /// `EINVAL` when the place is inside the directory itself (move the other to limbo first).
    fn place_dir(&mut self, parent: Gfid, name: &[u8], gfid: Gfid) -> Result<(), Errno>;
    /// Takes a name away. The object of a non-directory stays (see [`BrickStore::remove_object`]); a
    /// directory goes to limbo with all it contains. A missing name is no error. What stands under the
    /// name and is not ours (no gfid) is moved out of the way.
    ///
    /// # Errors
    /// `ENOENT` when the parent is missing.
    fn unlink_name(&mut self, parent: Gfid, name: &[u8]) -> Result<(), Errno>;
    /// Removes a non-directory that has no name (unless it is kept as an orphan), or an empty directory
    /// wherever it is. A missing object is no error.
    ///
    /// # Errors
    /// `ENOTEMPTY` for a directory with entries, `EEXIST` for an object that still has a name.
    fn remove_object(&mut self, gfid: Gfid) -> Result<(), Errno>;
    /// Sets owner, mode, size (regular files), atime and mtime to exactly `attr`'s.
    ///
    /// # Errors
    /// `ENOENT`, `ENOSPC`.
    fn set_attr_exact(&mut self, attr: &Attr) -> Result<(), Errno>;
    /// Sets (`Some`) or removes (`None`) an extended attribute that is not ours.
    ///
    /// # Errors
    /// `ENOENT`, `ENOSPC`; removing a missing one is no error.
    fn set_xattr_raw(&mut self, gfid: Gfid, name: &[u8], value: Option<&[u8]>) -> Result<(), Errno>;
    /// Writes at once (no ring).
    ///
    /// # Errors
    /// `ENOENT`, `ENOSPC`.
    fn write_range(&mut self, gfid: Gfid, offset: u64, data: &[u8]) -> Result<(), Errno>;
    /// Makes a range read as zeros and frees its space; the size stays.
    ///
    /// # Errors
    /// `ENOENT`, `EIO`.
    fn punch_hole(&mut self, gfid: Gfid, offset: u64, len: u64) -> Result<(), Errno>;
    /// Sets or clears the content signature. Does not mark dirty: it is the brick's own knowledge.
    ///
    /// # Errors
    /// `ENOENT`, `ENOSPC`.
    fn set_signature(&mut self, gfid: Gfid, sum: Option<&[u8]>) -> Result<(), Errno>;
}
