//! What Raft nodes say to each other.

use crate::types::{Entry, Index, Term};
use serde::{Deserialize, Serialize};

/// One message. Sender and receiver stand outside: the transport knows them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// The sender's current term, whatever the message.
    pub term: Term,
    /// What it says.
    pub body: Body,
}

/// The content of a [`Message`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// "Would you vote for me in `next`?" Changes nobody's term (thesis, section 9.6).
    PreVote {
        /// The term that the sender would campaign in.
        next: Term,
        /// The sender's last log index.
        last: Index,
        /// Its term.
        last_term: Term,
    },
    /// The answer; `next` is the question's.
    PreVoteReply {
        /// The term that was asked for.
        next: Term,
        /// Whether the vote would be given.
        granted: bool,
    },
    /// RequestVote of the paper.
    Vote {
        /// The sender's last log index.
        last: Index,
        /// Its term.
        last_term: Term,
        /// The leader asked for this election: followers that hear the leader may vote all the same.
        transfer: bool,
    },
    /// The answer. A grant leaves only after the vote is durable.
    VoteReply {
        /// Whether the vote is given.
        granted: bool,
    },
    /// AppendEntries of the paper.
    Append {
        /// The index before the first entry.
        prev: Index,
        /// Its term.
        prev_term: Term,
        /// The leader's commit index.
        commit: Index,
        /// Contiguous from `prev + 1`; empty as a probe.
        entries: Vec<Entry>,
    },
    /// The sender's log equals the leader's up to `matched`, durably.
    AppendOk {
        /// The highest index known to be equal.
        matched: Index,
    },
    /// The entry at `prev` is missing or of another term.
    AppendRefused {
        /// `prev` of the refused message.
        prev: Index,
        /// The highest index at which the logs may still agree.
        hint: Index,
        /// The sender's term at `hint`.
        hint_term: Term,
    },
    /// The leader is alive.
    Heartbeat {
        /// The commit index, capped at what the receiver is known to hold.
        commit: Index,
        /// The latest ReadIndex round.
        round: u64,
    },
    /// The answer.
    HeartbeatReply {
        /// The round of the heartbeat.
        round: u64,
    },
    /// The commit index moved and no entries are at hand to carry it. Not answered.
    Commit {
        /// The commit index, capped at what the receiver is known to hold.
        commit: Index,
    },
    /// To a leader of an older term: its term is over.
    Stale,
    /// The leader asks the receiver to campaign at once (thesis, section 3.10).
    TimeoutNow,
}

impl Message {
    /// The body's name, for logs.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self.body {
            Body::PreVote { .. } => "PreVote",
            Body::PreVoteReply { .. } => "PreVoteReply",
            Body::Vote { .. } => "Vote",
            Body::VoteReply { .. } => "VoteReply",
            Body::Append { .. } => "Append",
            Body::AppendOk { .. } => "AppendOk",
            Body::AppendRefused { .. } => "AppendRefused",
            Body::Heartbeat { .. } => "Heartbeat",
            Body::HeartbeatReply { .. } => "HeartbeatReply",
            Body::Commit { .. } => "Commit",
            Body::Stale => "Stale",
            Body::TimeoutNow => "TimeoutNow",
        }
    }
}
