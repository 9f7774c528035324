//! The durable log that all Raft groups of a process share.
//!
//! What is asked of the caller:
//! 1. Only [`Wal::recover`] makes a [`Wal`]; it answers with everything that was acknowledged.
//! 2. [`Wal::append`] queues and answers an [`Lsn`]; nothing is durable yet.
//! 3. [`Wal::poll`] after every round of appends and whenever the I/O is ready; an append is durable once
//!    its LSN is at or below the answer. Acknowledgements are strictly in order.
//! 4. After an error that is not about the arguments of one append the log is latched: every later call
//!    gives the same error, nothing is tried again. Step down, exit, recover.
//!
//! Appends that arrive while a write is in flight form the next batch; one batch is one aligned write.
//! The format, and why recovery can tell a torn tail from damage, stands in FORMAT.md, "The log".

pub mod cases;
pub mod format;
mod groups;
mod log;
mod recovery;
mod segments;
mod task;
#[cfg(test)]
mod tests;
mod types;

pub use log::Wal;
pub use task::AsyncWal;
pub use types::{LogBatch, Lsn, Recovered, RecoveredGroup, SnapshotMark, TornTail, WalConfig, WalError};
