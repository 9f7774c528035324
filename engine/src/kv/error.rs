//! What can go wrong with the store itself, as opposed to what a request may be refused for.

use super::types::KvError;
use crate::types::{Index, Revision};
use std::path::PathBuf;
use thiserror::Error;

/// A failure of the store. After one that comes out of [`super::Store::apply`] or
/// [`super::Store::checkpoint`], the member must stop: its state machine cannot go on.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The file is held by another process.
    #[error("store {path}: another process has it open; stop that process first")]
    InUse {
        /// The store's file.
        path: PathBuf,
    },
    /// The file cannot be opened.
    #[error("open store {path}: {cause}; {advice}")]
    Open {
        /// The store's file.
        path: PathBuf,
        /// What the storage engine or the system said.
        cause: String,
        /// What the operator can do.
        advice: &'static str,
    },
    /// A record does not decode, or records contradict each other.
    #[error("store is damaged: table {table}: {what}; remove this member's data and let it join again")]
    Damaged {
        /// The table.
        table: &'static str,
        /// Expected and found.
        what: String,
    },
    /// The storage engine failed: I/O, or its own check.
    #[error("store: {doing}: {cause}")]
    Engine {
        /// What was being done.
        doing: &'static str,
        /// The engine's error.
        cause: redb::Error,
    },
    /// A history file failed.
    #[error("store: {doing} history at address {at}: {cause}; check the disk (space, permissions, kernel messages), then start again")]
    History {
        /// What was being done.
        doing: &'static str,
        /// The address: each file has 1 GiB of them.
        at: u64,
        /// The system's error.
        cause: std::io::Error,
    },
    /// Entries must be applied without gaps.
    #[error("store: entry {got} follows applied index {applied}: the log has a gap")]
    Gap {
        /// The last applied index.
        applied: Index,
        /// The index of the offered entry.
        got: Index,
    },
    /// An earlier change or checkpoint failed in the midst. What was durable before it is found by opening the
    /// store again.
    #[error("store: an earlier change failed; start the member again to recover from its log")]
    Broken,
    /// A snapshot is being restored; the store takes no other change meanwhile.
    #[error("store: a snapshot is being restored")]
    Restoring,
    /// A snapshot stream is refused. The store is unchanged.
    #[error("snapshot refused at byte {offset}: {what}; the store is unchanged, send the snapshot again")]
    SnapshotRefused {
        /// Where in the stream.
        offset: u64,
        /// What is wrong with it.
        what: String,
    },
}

/// Why a read has no answer.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The request is refused.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// The history starts later than asked for.
    #[error("required revision has been compacted; history starts at {0}")]
    CompactedAt(Revision),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

macro_rules! engine_error {
    ($($name:ident => $doing:literal),*) => {$(
        impl From<redb::$name> for StoreError {
            fn from(cause: redb::$name) -> Self {
                Self::Engine { doing: $doing, cause: cause.into() }
            }
        }
        impl From<redb::$name> for ReadError {
            fn from(cause: redb::$name) -> Self {
                Self::Store(cause.into())
            }
        }
    )*};
}

engine_error! {
    StorageError => "access pages",
    TableError => "open table",
    TransactionError => "begin transaction",
    CommitError => "commit",
    SetDurabilityError => "set durability"
}
