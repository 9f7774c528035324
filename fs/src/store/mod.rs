//! A brick's disk: the [`BrickStore`] trait, [`DirStore`] (a directory of a Linux file system) and
//! [`SimStore`] (the same in memory, for the simulator), with one [`conformance`] suite for both.
//!
//! A store executes; it does not decide. Who may do what in which order is `fs::replica`'s; a store
//! has no clock (times come in with the change) and no random source. `DirStore` waits for `syncfs` in a thread, since
//! io_uring does not have it; everything else happens on the caller's.
//!
//! The byte formats stand in FORMAT.md, chapter "brick".

pub(crate) mod acl;
mod bucket_set;
mod check;
pub mod conformance;
mod dir;
mod sim;

pub use bucket_set::{BUCKET_COUNT, BucketSet};
pub(crate) use dir::lru::Lru;
pub use dir::DirStore;
pub use sim::SimStore;

use crate::fop::{Attr, Bucket, Errno, Fop, FopResult, Gfid, TimeSpec};
use crate::heal::HealStore;
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
    /// The incarnation that it last offered to its group: new with every process that does, and never seen before: a count in
    /// the upper half, chance in the lower.
    pub incarnation: u64,
    /// The last epoch of its replica group that it acted in.
    pub epoch: u64,
    /// The mark of the last bitmap checkpoint (see `fs::replica`); 0: there was none.
    pub synced_epoch: u64,
    /// The incarnation under which it was last in sync; 0: never. Tells a brick that went on from an old copy put back.
    pub held: u64,
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

/// A brick's disk. What a heal needs besides is its supertrait's.
///
/// Names are checked here, whoever calls: not empty, `.` or `..`, no `/` or NUL, at most 255 bytes
/// (`EINVAL`, `ENAMETOOLONG`), and not `.brickraft` in the root (`EPERM`).
pub trait BrickStore: HealStore {
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
}
