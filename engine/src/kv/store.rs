//! The store's public face.

use super::error::{ReadError, StoreError};
use super::snapshot::{RestoreWriter, SnapshotReader};
use super::types::{Applied, Command, Event, Keyspace, KvError, RangeRequest, RangeResponse};
use crate::types::{Index, NodeId, Revision, Term};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::Path;

/// A committed entry of the Raft log, decoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApplyEntry {
    /// Its index: one more than the entry before it.
    pub index: Index,
    /// Its term.
    pub term: Term,
    /// The command; `None` for the empty entry of a new leader and for membership changes.
    pub command: Option<Command>,
    /// For a membership change: the membership after it, opaque to the store.
    pub membership: Option<Bytes>,
}

/// What applying one entry did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApplyOutcome {
    /// The entry's index.
    pub index: Index,
    /// The answer to the client.
    pub applied: Applied,
    /// The key space that `applied.revision` and `events` belong to.
    pub keyspace: Keyspace,
    /// The changes, all of revision `applied.revision`, in order; `prev_kv` is always filled.
    pub events: Vec<Event>,
    /// The entry had been applied before: nothing was done, and the answer is lost.
    pub skipped: bool,
}

/// A lease as granted. Its time left is known to the leader's [`super::Lessor`] alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseInfo {
    /// Never 0.
    pub id: i64,
    /// Granted time in seconds, at least 1.
    pub ttl_s: i64,
}

/// What a member told about itself ([`Command::MemberAttributes`]).
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MemberAttributes {
    /// The member's name.
    pub name: String,
    /// Where clients reach it.
    pub client_urls: Vec<String>,
}

/// Figures for etcd's Maintenance Status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreSizes {
    /// Length of the file (`db_size`).
    pub file_bytes: u64,
    /// Bytes of records in it, history included (`db_size_in_use`).
    pub in_use_bytes: u64,
}

/// A portion of history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventPage {
    /// Whole revisions, in order, `prev_kv` filled where the previous version is not compacted away.
    pub events: Vec<Event>,
    /// Where the next portion starts; one past the last wanted revision when all was read.
    pub next: Revision,
}

/// The multi-version store. Share it in an `Arc`: reads work from any thread, writers take turns.
#[derive(Debug)]
pub struct Store {}

/// Checks what etcd checks of a request before it is proposed: keys given, options that go together, no key
/// put twice, at most `ops_max` operations in a transaction. Applying checks it again without the last.
pub fn check_command(_command: &Command, _ops_max: usize) -> Result<(), KvError> {
    Ok(())
}

fn unfinished<T>() -> Result<T, StoreError> {
    Err(StoreError::Damaged { table: "none", what: "the store is being built".into() })
}

impl Store {
    /// Opens or makes the store in a file. `cache_bytes` bounds the memory that it uses.
    pub fn open(_path: &Path, _cache_bytes: usize) -> Result<Self, StoreError> {
        unfinished()
    }

    /// The same on other storage, such as a simulated disk.
    pub fn with_backend(_backend: impl redb::StorageBackend, _cache_bytes: usize) -> Result<Self, StoreError> {
        unfinished()
    }

    /// The last applied entry. Survives a crash only as of the last [`Self::checkpoint`].
    pub fn applied(&self) -> (Index, Term) {
        Default::default()
    }

    /// The membership that the last membership change left, if there was one.
    pub fn membership(&self) -> Option<Bytes> {
        None
    }

    /// What members told about themselves. Removed members' entries may linger: look up by membership.
    pub fn member_attributes(&self) -> Result<BTreeMap<NodeId, MemberAttributes>, StoreError> {
        unfinished()
    }

    /// Applies a batch atomically, visible to readers at once, durable at the next [`Self::checkpoint`].
    /// Entries at or below the applied index are skipped; one outcome for each entry.
    pub fn apply(&self, _batch: &[ApplyEntry]) -> Result<Vec<ApplyOutcome>, StoreError> {
        unfinished()
    }

    /// Makes everything applied so far durable. The Raft log may drop entries up to the returned index.
    pub fn checkpoint(&self) -> Result<Index, StoreError> {
        unfinished()
    }

    /// The key space's revision: 1 when empty.
    pub fn revision(&self, _keyspace: Keyspace) -> Revision {
        Revision(1)
    }

    /// Reads below this revision are refused; 0 before the first compaction.
    pub fn compact_revision(&self, _keyspace: Keyspace) -> Revision {
        Revision(0)
    }

    /// Answers a range, with the revision the store was at (for the response header).
    pub fn range(&self, _keyspace: Keyspace, _request: &RangeRequest) -> Result<(RangeResponse, Revision), ReadError> {
        Ok(unfinished()?)
    }

    /// History in `[from, upto]`: whole revisions, about `events_max` events or 1 MiB, at least one revision.
    pub fn events_since(
        &self,
        _keyspace: Keyspace,
        _from: Revision,
        _upto: Revision,
        _events_max: usize,
    ) -> Result<EventPage, ReadError> {
        Ok(unfinished()?)
    }

    /// Removes some of what compaction made unreachable, at most about `entries_max` entries; true when more
    /// is left. Applying does it in passing as well; call this when idle, or for a physical compaction.
    pub fn collect_garbage(&self, _entries_max: usize) -> Result<bool, StoreError> {
        unfinished()
    }

    /// All leases, by id.
    pub fn leases(&self) -> Result<Vec<LeaseInfo>, StoreError> {
        unfinished()
    }

    /// One lease.
    pub fn lease(&self, _id: i64) -> Result<Option<LeaseInfo>, StoreError> {
        unfinished()
    }

    /// The keys attached to a lease, in order.
    pub fn lease_keys(&self, _id: i64) -> Result<Vec<Bytes>, StoreError> {
        unfinished()
    }

    /// File and record sizes.
    pub fn sizes(&self) -> StoreSizes {
        StoreSizes::default()
    }

    /// A hash over history up to `revision` (0: now), equal on members with equal history and compaction;
    /// with the compaction revision and the revision it covers (etcd HashKV).
    pub fn hash_kv(&self, _keyspace: Keyspace, _revision: Revision) -> Result<(u32, Revision, Revision), ReadError> {
        Ok(unfinished()?)
    }

    /// A point-in-time reader of everything. Writes go on meanwhile.
    pub fn snapshot(&self) -> Result<SnapshotReader, StoreError> {
        unfinished()
    }

    /// Starts to replace everything by a snapshot that arrives in portions. Until the writer finishes or is
    /// dropped, readers see the old state and [`Self::apply`] fails with [`StoreError::Restoring`].
    pub fn begin_restore(&self) -> Result<RestoreWriter<'_>, StoreError> {
        unfinished()
    }

    /// Replaces everything by a snapshot: durable, all or nothing.
    pub fn restore(&self, _chunks: impl Iterator<Item = Bytes>) -> Result<(Index, Term), StoreError> {
        unfinished()
    }
}
