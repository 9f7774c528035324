//! What goes into the log and what comes out of it.

use crate::types::{Entry, GroupId, HardState, Index, Term};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

/// How a log is laid out and driven.
#[derive(Clone, Debug)]
pub struct WalConfig {
    /// Size of a segment file; a multiple of 4096, at least 64 KiB. Segments of another size than configured are
    /// read all the same.
    pub segment_bytes: u64,
    /// A batch is closed when it would grow beyond this (a single larger record gets a batch to itself).
    pub batch_bytes_max: usize,
    /// Batches in flight at most, 1 to 16.
    pub batches_in_flight_max: usize,
    /// While a batch is in flight, another starts only when it has this many bytes: with few waiters, small
    /// batches side by side cost more than they give.
    pub pipeline_bytes_min: usize,
    /// Appends that wait for the disk hold at most this much memory; beyond it, [`WalError::QueueFull`].
    pub queue_bytes_max: usize,
    /// Identity of a log that is created; 0: drawn from the operating system. It salts checksums, so that
    /// nothing a client stores can look like a batch.
    pub log_id: u64,
}

impl Default for WalConfig {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            batch_bytes_max: 1 << 20,
            batches_in_flight_max: 4,
            pipeline_bytes_min: 128 << 10,
            queue_bytes_max: 256 << 20,
            log_id: 0,
        }
    }
}

/// The place of an append in the order of acknowledgement. The first of a process is 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

/// Everything up to `index` is in the state machine's own durable store: the log may drop it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotMark {
    /// The last entry that is covered; 0: none.
    pub index: Index,
    /// That entry's term.
    pub term: Term,
}

/// One group's addition. Applied in the order hard state, snapshot, entries.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogBatch<'a> {
    /// Replaces the group's hard state.
    pub hard_state: Option<HardState>,
    /// Contiguous entries; the first one's index is at most one past the last. It replaces whatever has its
    /// index or a higher one.
    pub entries: &'a [Entry],
    /// Drops all entries up to its index; and all entries, when the one at its index has another term or
    /// is not there.
    pub snapshot: Option<SnapshotMark>,
}

/// What recovery found.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// Every group that ever appended.
    pub groups: BTreeMap<GroupId, RecoveredGroup>,
    /// What was cut off; nothing in it had been acknowledged.
    pub torn_tail: Option<TornTail>,
}

/// One group's state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveredGroup {
    /// The last one appended.
    pub hard_state: HardState,
    /// The last one appended.
    pub snapshot: SnapshotMark,
    /// Contiguous, the first is `snapshot.index + 1`.
    pub entries: Vec<Entry>,
}

/// A write that a crash interrupted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// The segment file.
    pub file: String,
    /// Where the log now ends, in bytes.
    pub offset: u64,
    /// The number of the first batch that is lost.
    pub batch: u64,
}

/// Why the log cannot go on.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WalError {
    /// An operation on the storage failed. Latches.
    #[error("log {action}: {source}")]
    Io {
        /// What was being done.
        action: String,
        /// How it failed; shared, since every later call reports it again.
        source: Arc<io::Error>,
    },
    /// Acknowledged bytes are damaged or gone.
    #[error(
        "log is damaged in {file} at byte {offset}: expected {expected}, found {found}. Acknowledged entries are lost here; \
         do not repair the file: remove this member's data and rebuild this node from its peers"
    )]
    Damaged {
        /// The segment file.
        file: String,
        /// In bytes from its start.
        offset: u64,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A newer (or foreign) program wrote this log.
    #[error("log segment {file} has format version {found}; this program reads version {expected}")]
    Version {
        /// The segment file.
        file: String,
        /// This program's.
        expected: u32,
        /// The file's.
        found: u32,
    },
    /// The arguments of an append do not fit the group's log. Does not latch.
    #[error("append to group {group}: {what}")]
    Rejected {
        /// The group.
        group: GroupId,
        /// What does not fit.
        what: String,
    },
    /// `queue_bytes_max` is reached: poll first. Does not latch.
    #[error("the log's queue is full: {bytes} bytes wait for the disk")]
    QueueFull {
        /// Bytes waiting.
        bytes: usize,
    },
    /// The configuration is out of range.
    #[error("log configuration: {0}")]
    Config(String),
}

impl WalError {
    pub(super) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |e| Self::Io { action: action.into(), source: Arc::new(e) }
    }
}
