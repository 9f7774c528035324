//! Raft without a clock, thread, socket, file or random source of its own.
//!
//! After Ongaro's paper (USENIX ATC 2014) and thesis. [`RaftCore`] takes inputs and gives an [`Output`].
//!
//! # The driver's duties
//! 1. After every input, call [`RaftCore::take_output`]. Inputs may be batched: many
//!    [`propose`](RaftCore::propose) before one output make one write and one append to each follower.
//! 2. Write [`Output::persist`], in order; when it is durable, call [`RaftCore::on_persisted`].
//! 3. Send [`Output::messages`] at once, without waiting for the write. They may be lost.
//! 4. Apply [`Output::committed`] in order, then call [`RaftCore::on_applied`]. On a restart, give the
//!    index that the state machine really holds.
//! 5. Call [`RaftCore::handle_timeout`] at or after [`RaftCore::next_timeout`], which may change with
//!    every input.
//! 6. For each of [`Output::send_snapshot`], stream a snapshot, then call
//!    [`RaftCore::report_snapshot`]. The receiver asks
//!    [`begin_snapshot_install`](RaftCore::begin_snapshot_install) first, restores its state machine durably,
//!    then calls [`finish_snapshot_install`](RaftCore::finish_snapshot_install) and records the compaction
//!    point in its log ahead of any later [`Output::persist`].
//! 7. Compact now and then, after the state machine's state is durable ([`RaftCore::compact`]).
//!
//! Nothing that a peer sends makes a core panic: what makes no sense is ignored, with a reason in the log.

mod core;
mod election;
mod error;
mod log;
mod membership;
mod message;
mod output;
mod progress;
mod quorum;
mod read;
mod reconfigure;
mod replication;
mod snapshot;
mod step;

pub use self::core::RaftCore;
pub use error::{ConfError, InitialError, ProposeError};
pub use membership::{ConfChange, MemberInfo, Membership};
pub use message::{Body, Message};
pub use output::{Initial, Output, Persist, RaftConfig, Role, RoleChange, SnapshotMeta};
pub use progress::{Progress, ProgressState};
pub use read::CLOCK_DRIFT_PERCENT;
