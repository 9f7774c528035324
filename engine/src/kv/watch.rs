//! Watchers.

use super::error::StoreError;
use super::store::Store;
use super::types::{Event, Keyspace};
use crate::types::Revision;
use bytes::Bytes;

/// A watcher's number in its hub; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatchId(pub u64);

/// What to watch: etcd `WatchCreateRequest`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchRequest {
    /// The key, or the start of a range.
    pub key: Bytes,
    /// As in [`super::types::RangeRequest`].
    pub range_end: Bytes,
    /// The first revision wanted; 0 for what comes next.
    pub start_revision: Revision,
    /// Leave out puts.
    pub no_put: bool,
    /// Leave out deletions.
    pub no_delete: bool,
    /// Give the previous pair with each event.
    pub prev_kv: bool,
    /// Tell the revision now and then when there is no event.
    pub progress_notify: bool,
}

/// What a watcher gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchOutput {
    /// Changes in order: whole revisions, never part of one.
    Events {
        /// The revision of the last of them.
        revision: Revision,
        /// The changes.
        events: Vec<Event>,
    },
    /// Everything up to this revision has been delivered.
    Progress {
        /// The store's revision.
        revision: Revision,
    },
    /// The history it needs is gone; the watcher does not exist any more.
    Compacted {
        /// Where history starts.
        compact_revision: Revision,
    },
}

/// Bounds of the hub.
#[derive(Clone, Copy, Debug)]
pub struct WatchConfig {
    /// Events waiting in one watcher's queue; beyond it the watcher falls back to reading the store.
    pub queue_events_max: usize,
    /// Bytes of keys and values waiting in one watcher's queue.
    pub queue_bytes_max: usize,
    /// Events read from the store in one step of catching up.
    pub catch_up_events_max: usize,
}

impl Default for WatchConfig {
    fn default() -> Self {
        Self { queue_events_max: 1024, queue_bytes_max: 4 << 20, catch_up_events_max: 1024 }
    }
}

/// All watchers of a member.
#[derive(Debug)]
pub struct WatchHub {}

impl WatchHub {
    /// A hub over a store that is at these revisions.
    #[must_use]
    pub fn new(_config: WatchConfig, _store: &Store) -> Self {
        Self {}
    }

    /// Adds a watcher. An impossible `start_revision` shows as its first output.
    pub fn create(&mut self, _keyspace: Keyspace, _request: WatchRequest) -> WatchId {
        WatchId(0)
    }

    /// Removes a watcher; false when there is none of that number.
    pub fn cancel(&mut self, _id: WatchId) -> bool {
        false
    }

    /// Tells of one applied command: call it for every outcome of [`Store::apply`] that was not skipped, in
    /// order, whether it has events or not.
    pub fn on_events(&mut self, _keyspace: Keyspace, _revision: Revision, _events: &[Event]) {}

    /// The store was replaced by a snapshot: every watcher goes on from where it is, out of the new history.
    pub fn on_restore(&mut self, _store: &Store) {}

    /// Reads one bounded portion of history for those that lag. True when another call would do more.
    pub fn catch_up(&mut self, _store: &Store) -> Result<bool, StoreError> {
        Ok(false)
    }

    /// A watcher that has output, each told once until it is polled empty and gets output again.
    pub fn next_ready(&mut self) -> Option<WatchId> {
        None
    }

    /// Takes a watcher's next output: at most about `events_max` events, whole revisions. Its consumer must
    /// keep polling until `None`, or poll again when it has room: nothing is lost meanwhile.
    pub fn poll(&mut self, _id: WatchId, _events_max: usize) -> Option<WatchOutput> {
        None
    }

    /// Gives [`WatchOutput::Progress`] to every watcher that asked for it, is in step, and had no event since
    /// the last call. The caller calls it every ten minutes or so.
    pub fn notify_progress(&mut self) {}

    /// Gives [`WatchOutput::Progress`] to one watcher, as soon as it is in step (etcd WatchProgressRequest).
    pub fn request_progress(&mut self, _id: WatchId) {}

    /// How many watchers there are, and how many of them lag.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        (0, 0)
    }
}
