//! The newtypes that must not be mixed up, and the Raft log's entry.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The value after this one.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A Raft term. 0 is before the first election.
    Term
}
number! {
    /// A position in a Raft log. The first entry has index 1; 0 is before it.
    Index
}
number! {
    /// A member of the cluster, as etcd's member id: random, never 0, never reused.
    NodeId
}
number! {
    /// A Raft group. Several share one log file; the coordination store is group 1.
    GroupId
}
number! {
    /// A key-value store revision; an empty store is at revision 1, as etcd's.
    Revision
}

/// A point on a monotonic clock, in microseconds since an arbitrary origin.
///
/// The cores take it as an argument; they never read a clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Time {
    /// This point moved later by `d`.
    #[must_use]
    pub fn after(self, d: std::time::Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(d.as_micros()).unwrap_or(u64::MAX)))
    }

    /// How long `earlier` lies before this point; zero when it does not.
    #[must_use]
    pub fn since(self, earlier: Self) -> std::time::Duration {
        std::time::Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

/// What an entry holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum EntryKind {
    /// The empty entry that a new leader appends.
    Noop = 0,
    /// A command for the state machine.
    Normal = 1,
    /// A membership change ([`crate::raft::ConfChange`]).
    Conf = 2,
}

/// One entry of a Raft log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The term in which a leader made it.
    pub term: Term,
    /// Its place in the log.
    pub index: Index,
    /// What `data` is.
    pub kind: EntryKind,
    /// The payload, opaque to log and consensus.
    #[serde(deserialize_with = "crate::shared::bytes")]
    pub data: Bytes,
}

/// What a Raft node must not forget besides its entries (Raft, figure 2, "persistent state").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HardState {
    /// The latest term that the node has seen.
    pub term: Term,
    /// Whom it voted for in that term.
    pub vote: Option<NodeId>,
    /// The highest index known to be committed; a hint that speeds up recovery.
    pub commit: Index,
}
