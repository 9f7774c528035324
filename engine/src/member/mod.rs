//! One member of the coordination store: Raft, log and key-value store as one state machine.
//!
//! [`MemberCore`] is sans-io: it takes events and the time, and yields outputs; [`driver`] runs it on a tokio
//! current-thread runtime, [`handle`] is what the rest of the node talks to.
//!
//! - `watches`: the updates of many watches in one queue;
//! - `origin`: requests of this member's clients until they have their outcome;
//! - `leader`: what it does for all while it leads;
//! - `apply`: committed entries into the store, checkpoints, compaction of the log;
//! - `snapshot`: state to and from other members;
//! - `recovery`: the state out of log and store, a table of cases;
//! - `alone`: a cluster of one out of a survivor, and a new cluster out of a backup.

mod alone;
mod apply;
mod core;
pub mod driver;
pub mod envelope;
pub mod handle;
pub mod identity;
pub mod job;
mod leader;
mod origin;
mod recovery;
mod snapshot;
pub mod stats;
pub mod types;
pub mod watches;

pub use self::core::{GROUP, MemberCore};
pub use alone::refound;
pub use handle::{Clock, Inbox, MemberHandle};
pub use recovery::{OpenError, Start};
pub use types::*;
pub use watches::{WatchStream, Watches};

#[cfg(test)]
mod tests;
