//! The multi-version key-value store.
//!
//! [`Store`] is the replicated state machine: it applies [`types::Command`]s from the Raft log and answers
//! reads at any revision since the last compaction. [`WatchHub`] hands changes to watchers, [`Lessor`] keeps
//! the leader's clock on leases. None of them reads a clock, owns a thread or knows a socket.

mod alarm;
mod apply;
pub mod auth;
mod backend;
mod backup;
mod base;
mod block;
mod check;
mod codec;
mod current;
mod error;
mod fold;
mod history;
mod keys;
mod known;
mod lessor;
mod lookup;
mod order;
mod overlay;
mod pieces;
mod read;
mod runs;
mod segments;
mod snapshot;
mod store;
mod table;
mod tally;
pub mod types;
mod watch;

pub use alarm::{Alarm, AlarmType, adds};
pub use backup::{Backup, BackupError, BackupReader, BackupSummary, Refound};
pub use check::check_command;
pub use error::{ReadError, StoreError};
pub use lessor::Lessor;
pub use snapshot::{RestoreWriter, SNAPSHOT_CHUNK_BYTES_MAX, SnapshotHeader, SnapshotReader};
pub use store::{ApplyEntry, ApplyOutcome, EventPage, LeaseInfo, MemberAttributes, Store, StoreSizes, Wanted};
pub use tally::Tally;
pub use watch::{WatchConfig, WatchCounts, WatchHub, WatchId, WatchOutput, WatchRequest};

#[cfg(test)]
mod tests;
