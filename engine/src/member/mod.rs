//! One member of the coordination store: Raft, log and key-value store as one state machine.
//!
//! The core is sans-io: it takes events and the time, and yields outputs; [`driver`] runs it on a tokio
//! current-thread runtime, [`handle`] is what the rest of the node talks to.

pub mod driver;
pub mod envelope;
pub mod handle;
pub mod identity;
pub mod job;
pub mod types;

pub use handle::{Clock, Inbox, MemberHandle, WatchStream};
pub use types::*;
