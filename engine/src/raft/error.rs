//! Why a call was refused.

use crate::types::{Index, NodeId, Term};
use thiserror::Error;

/// A proposal, membership change or read was not taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProposeError {
    /// Only the leader takes proposals.
    #[error("not the leader (leader: {leader:?})")]
    NotLeader {
        /// Who leads, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// Too much is waiting to be committed or confirmed. Try again later.
    #[error("too many proposals or reads are waiting")]
    Busy,
    /// Leadership is being handed over.
    #[error("leadership is being transferred")]
    Transferring,
    /// The membership change may not be made now, or at all.
    #[error(transparent)]
    Conf(#[from] ConfError),
}

/// Why a membership change was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ConfError {
    /// The one before is not committed, or the leader has committed nothing in its term yet.
    #[error("another membership change is under way")]
    Pending,
    /// Add of a member that is there.
    #[error("member {0} exists")]
    Exists(NodeId),
    /// No such member.
    #[error("member {0} is not known")]
    Unknown(NodeId),
    /// Promotion of a voter.
    #[error("member {0} is not a learner")]
    NotLearner(NodeId),
    /// Promotion of a learner whose log is too far behind, or that is silent.
    #[error("learner {0} has not caught up with the leader")]
    NotCaughtUp(NodeId),
    /// The cluster would have no voter.
    #[error("the last voter cannot be removed")]
    LastVoter,
    /// Add of a voter while another one was not heard of lately: that one's death would count for more then.
    #[error("voter {0} does not answer")]
    Silent(NodeId),
    /// Of the voters after the change, too few were heard of lately to form a majority.
    #[error("the change would leave {alive} live voters where {needed} are needed")]
    NoQuorum {
        /// Voters heard of lately, after the change.
        alive: usize,
        /// The majority, after the change.
        needed: usize,
    },
}

/// What [`RaftCore::new`](super::RaftCore::new) was given does not fit together: the log, the state
/// machine's store, or both were damaged or mixed up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InitialError {
    /// The entries do not follow each other or the snapshot.
    #[error("log entry {found} stands where {expected} belongs")]
    Gap {
        /// The index that should come next.
        expected: Index,
        /// The index that came.
        found: Index,
    },
    /// Terms go down, or above the hard state's.
    #[error("log entry {index} has term {found}, after term {before}, in a node of term {term}")]
    Term {
        /// The entry.
        index: Index,
        /// Its term.
        found: Term,
        /// The term of the entry before it.
        before: Term,
        /// The hard state's term.
        term: Term,
    },
    /// A conf entry that cannot be read.
    #[error("log entry {0} is a membership change that cannot be decoded")]
    Conf(Index),
    /// The state machine is ahead of the log.
    #[error("the state machine has applied {applied}, but the log ends at {last}")]
    AppliedAhead {
        /// The state machine's index.
        applied: Index,
        /// The log's last index.
        last: Index,
    },
}
