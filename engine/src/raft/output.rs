//! What goes into a core at its start, and what comes out of it.

use super::membership::Membership;
use super::message::Message;
use crate::types::{Entry, HardState, Index, NodeId, Term};
use std::time::Duration;

/// Settings of one node. All nodes of a cluster should agree on the times.
#[derive(Clone, Debug)]
pub struct RaftConfig {
    /// This node; never 0.
    pub id: NodeId,
    /// Between heartbeats; a small fraction of `election_timeout`.
    pub heartbeat: Duration,
    /// Without a word from the leader for one to two of these, a follower campaigns; a leader that does not
    /// hear from a majority for one steps down.
    pub election_timeout: Duration,
    /// Bytes of entries in one append, unless one entry is larger.
    pub append_bytes_max: usize,
    /// Appends to one follower that are not acknowledged.
    pub inflight_max: usize,
    /// How long a follower that waits for nothing ([`RaftCore::expect_commit`](super::RaftCore::expect_commit)) is not
    /// told of a new commit index, because the next entries are likely to carry it.
    pub commit_delay: Duration,
    /// The longest that entries wait for a follower whom nobody waits for, and without whom a majority holds them
    /// ([`Progress::spare`](super::Progress::spare)): the next ones may go with them. After half of it they take the first
    /// occasion. Zero: everybody is sent everything at once.
    pub spare_delay: Duration,
    /// Bytes of proposals that are not committed; more are refused with [`Busy`](super::ProposeError::Busy).
    pub uncommitted_bytes_max: usize,
    /// Reads that are not confirmed; more are refused with [`Busy`](super::ProposeError::Busy).
    pub reads_max: usize,
    /// Bytes of entries in one [`Output::committed`], unless one entry is larger.
    pub apply_bytes_max: usize,
    /// A learner is caught up when it lacks at most so many entries.
    pub promote_lag_max: u64,
    /// Ask before campaigning, so that a node that was cut off does not disturb the others.
    pub pre_vote: bool,
    /// The leader steps down without a majority, and no vote is given while the leader is heard.
    pub check_quorum: bool,
    /// While a majority has just confirmed the leader, reads are answered without asking it again (thesis, 6.4.1). Must be
    /// the same on all nodes, with `check_quorum`; right only while no node's clock runs more than
    /// [`CLOCK_DRIFT_PERCENT`](super::CLOCK_DRIFT_PERCENT) faster or slower than another's.
    pub lease_reads: bool,
}

impl RaftConfig {
    /// The defaults: 100 ms heartbeats, 1 s election time-out, everything switched on.
    #[must_use]
    pub fn new(id: NodeId) -> Self {
        Self {
            id,
            heartbeat: Duration::from_millis(100),
            election_timeout: Duration::from_secs(1),
            append_bytes_max: 1 << 20,
            inflight_max: 64,
            commit_delay: Duration::from_millis(1),
            spare_delay: Duration::from_millis(2),
            uncommitted_bytes_max: 64 << 20,
            reads_max: 65_536,
            apply_bytes_max: 4 << 20,
            promote_lag_max: 1_000,
            pre_vote: true,
            check_quorum: true,
            lease_reads: false,
        }
    }
}

/// The state machine's state at an index: what a snapshot or a compacted log stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SnapshotMeta {
    /// The last index that it contains.
    pub index: Index,
    /// The term of that entry.
    pub term: Term,
    /// The members as of that index.
    pub membership: Membership,
}

/// What a node finds on its disk.
///
/// A first start of a founding member has everything empty but `snapshot.membership`: the founders, the
/// same on all of them. A member that joins starts with everything empty.
#[derive(Clone, Debug, Default)]
pub struct Initial {
    /// From the log.
    pub hard_state: HardState,
    /// Where the log begins. When the state machine's durable state is ahead of the log's compaction
    /// point, either may be given, as long as entries from there on are.
    pub snapshot: SnapshotMeta,
    /// From the log. Those at or below `snapshot.index` are dropped.
    pub entries: Vec<Entry>,
    /// What the state machine holds; committed entries after it come out of [`Output::committed`] again.
    pub applied: Index,
}

/// A node's part in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Votes, and follows.
    Follower,
    /// Asks whether it would be elected.
    PreCandidate,
    /// Asks for votes.
    Candidate,
    /// Orders the log.
    Leader,
    /// Follows, but is no voter by the log that it has: a learner, a removed member, or one that has not
    /// joined yet.
    Learner,
}

/// The role, term or known leader is another than at the last output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoleChange {
    /// The role now.
    pub role: Role,
    /// The term now.
    pub term: Term,
    /// The leader now, if known.
    pub leader: Option<NodeId>,
}

/// What must go to the log, as one write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Persist {
    /// Give this to [`on_persisted`](super::RaftCore::on_persisted). Ascends by one each time.
    pub seq: u64,
    /// Replaces the one before.
    pub hard_state: Option<HardState>,
    /// Contiguous. If the first is not above the log's last, it replaces the log from there on.
    pub entries: Vec<Entry>,
}

/// What the driver has to do after an input, in any order and in parallel.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Output {
    /// To write. Several may be outstanding; they must become durable in order.
    pub persist: Option<Persist>,
    /// To send at once: what must wait for the disk is not in here yet. Loss and reordering do no harm.
    pub messages: Vec<(NodeId, Message)>,
    /// To apply in order. Each comes once, and only after it is committed and durable on this node, so the
    /// state machine is never ahead of the log.
    pub committed: Vec<Entry>,
    /// Reads that are linearizable once the state machine has applied this index.
    pub reads: Vec<(u64, Index)>,
    /// Reads that leadership was lost for.
    pub reads_failed: Vec<u64>,
    /// Followers that need the state machine's state: stream it, then
    /// [`report_snapshot`](super::RaftCore::report_snapshot), without fail.
    pub send_snapshot: Vec<NodeId>,
    /// How long heartbeats and their answers took, by follower; for figures only.
    pub round_trips: Vec<(NodeId, Duration)>,
    /// If there was one.
    pub role_changed: Option<RoleChange>,
    /// More committed entries are ready than `apply_bytes_max`: take another output after these.
    pub more: bool,
}

impl Output {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.persist.is_none()
            && self.messages.is_empty()
            && self.committed.is_empty()
            && self.reads.is_empty()
            && self.reads_failed.is_empty()
            && self.send_snapshot.is_empty()
            && self.round_trips.is_empty()
            && self.role_changed.is_none()
            && !self.more
    }
}
