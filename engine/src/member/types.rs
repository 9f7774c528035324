//! What goes into and comes out of a member, and what members say to each other.

use crate::kv::types::{Applied, Command, KvError};
use crate::kv::{ReadError, StoreError};
use crate::raft::{ConfChange, Membership, Message, Role, RoleChange, SnapshotMeta};
use crate::types::{Index, NodeId, Revision, Term, Time};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;
use thiserror::Error;

/// How a member behaves. Bounds end in `_max`.
#[derive(Clone, Debug)]
pub struct MemberConfig {
    /// This member.
    pub id: NodeId,
    /// The cluster; only told on, never compared here (the transport and `identity` compare it).
    pub cluster_id: u64,
    /// The leader's heartbeat interval; also what retries are paced by.
    pub heartbeat: Duration,
    /// After so long without a leader a follower stands for election.
    pub election_timeout: Duration,
    /// See [`RaftConfig::lease_reads`](crate::raft::RaftConfig::lease_reads); the same on all members.
    pub lease_reads: bool,
    /// A request without an outcome fails after so long.
    pub request_timeout: Duration,
    /// Requests that may wait for an outcome at this member; more are refused.
    pub pending_max: usize,
    /// A larger proposal is refused, in bytes of the encoded command.
    pub request_bytes_max: usize,
    /// Bytes of log applied since the last checkpoint of the store that cause the next one.
    pub checkpoint_bytes: u64,
    /// Time after which a checkpoint is taken when anything was applied since the last.
    pub checkpoint_interval: Duration,
    /// Entries behind the checkpoint that are kept for slow followers.
    pub tail_entries: u64,
    /// The same bound in bytes.
    pub tail_bytes: u64,
    /// Bytes of one snapshot chunk at most.
    pub snapshot_chunk_bytes: usize,
    /// Snapshot chunks on their way to one follower at most.
    pub snapshot_window_max: usize,
    /// The log.
    pub wal: crate::wal::WalConfig,
    /// Where a snapshot that arrives is kept until it is complete; `None`: in memory.
    pub spool_dir: Option<std::path::PathBuf>,
    /// Become the only member of the cluster, with all that log and store hold (etcd `--force-new-cluster`).
    pub force_new_cluster: bool,
    /// A snapshot transfer without progress for so long is given up.
    pub snapshot_stall: Duration,
    /// Where figures go.
    pub stats: super::stats::SharedStats,
}

impl Default for MemberConfig {
    fn default() -> Self {
        Self {
            id: NodeId(0),
            cluster_id: 0,
            heartbeat: Duration::from_millis(100),
            election_timeout: Duration::from_millis(1000),
            lease_reads: false,
            request_timeout: Duration::from_secs(7),
            pending_max: 16 * 1024,
            request_bytes_max: 1_572_864,
            checkpoint_bytes: 64 << 20,
            checkpoint_interval: Duration::from_secs(30),
            tail_entries: 10_000,
            tail_bytes: 64 << 20,
            snapshot_chunk_bytes: 1 << 20,
            snapshot_window_max: 4,
            wal: crate::wal::WalConfig::default(),
            spool_dir: None,
            force_new_cluster: false,
            snapshot_stall: Duration::from_secs(10),
            stats: super::stats::SharedStats::default(),
        }
    }
}

/// What a client of this member asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum MemberRequest {
    /// Put a command through the log; answered once it is applied here.
    Propose(Command),
    /// Answered once a read of the local store is linearizable.
    ReadIndex,
    /// Give a lease its full time again.
    LeaseKeepAlive(i64),
    /// How long a lease has left.
    LeaseTimeToLive {
        /// The lease.
        id: i64,
        /// Also list the keys that are attached.
        keys: bool,
    },
    /// A node says that it is alive (the node lease).
    NodeAlive {
        /// The node.
        node: NodeId,
    },
    /// Change the membership; answered with the new one.
    ConfChange(ConfChange),
    /// The members.
    MemberList {
        /// After a ReadIndex round; otherwise as this member knows it.
        linearizable: bool,
    },
    /// Hand leadership to another voter. Only the leader takes it.
    MoveLeader(NodeId),
    /// What this member knows of itself.
    Status,
    /// When which node was last heard of. Only the leader knows.
    NodeLeases,
}

/// The answer to a [`MemberRequest`].
#[derive(Clone, Debug, PartialEq)]
pub enum MemberReply {
    /// To `Propose`.
    Applied(Applied),
    /// To `ReadIndex`: the local store has applied at least this.
    ReadIndex(Index),
    /// To `LeaseKeepAlive`: the lease's time to live, in seconds.
    LeaseKeepAlive {
        /// Seconds.
        ttl_s: i64,
    },
    /// To `LeaseTimeToLive`.
    LeaseTtl(LeaseTtl),
    /// To `NodeAlive`: the lease counts from the moment at which the request was made.
    NodeAlive,
    /// To `MemberList` and `ConfChange`.
    Members(Membership),
    /// To `MoveLeader`: the other member leads.
    LeaderMoved,
    /// To `Status`.
    Status(Box<MemberStatus>),
    /// To `NodeLeases`.
    NodeLeases(NodeLeases),
}

/// What is left of a lease.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseTtl {
    /// What it was granted for, in seconds.
    pub granted_s: i64,
    /// What is left, in seconds, rounded down; -1 when there is no such lease.
    pub remaining_s: i64,
    /// The attached keys, where they were asked for.
    pub keys: Vec<Bytes>,
}

/// When the leader last heard of nodes, on its own clock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeLeases {
    /// The leader's clock at the answer.
    pub now: Time,
    /// Since when this member leads: nothing was heard here before it.
    pub leader_since: Time,
    /// The nodes.
    pub last_heard: BTreeMap<NodeId, Time>,
}

/// What a member knows of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct MemberStatus {
    /// This member.
    pub id: NodeId,
    /// The cluster.
    pub cluster_id: u64,
    /// Its Raft role.
    pub role: Role,
    /// Whether it is a learner (or not a member yet).
    pub is_learner: bool,
    /// The Raft term.
    pub term: Term,
    /// The leader as this member knows it.
    pub leader: Option<NodeId>,
    /// The revision of the user key space.
    pub revision: Revision,
    /// The last applied index.
    pub applied: Index,
    /// The last committed index.
    pub committed: Index,
    /// The last index in the log.
    pub last_index: Index,
    /// The members as of `applied`.
    pub membership: Membership,
    /// Set once the member has stopped, with the cause.
    pub stopped: Option<String>,
}

impl MemberStatus {
    /// Whether this member leads.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.leader == Some(self.id) && self.stopped.is_none()
    }
}

/// Why a member refuses or gives up. The texts are etcd's, because clients match on them.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum MemberError {
    /// No leader is known, and none came up within an election time-out.
    #[error("etcdserver: no leader")]
    NoLeader,
    /// This member is not the leader, and only the leader takes the request.
    #[error("etcdserver: not leader")]
    NotLeader,
    /// The leader changed before the outcome was known.
    #[error("etcdserver: leader changed")]
    LeaderChanged,
    /// No outcome within the request time-out; the request may still take effect.
    #[error("etcdserver: request timed out")]
    Timeout,
    /// The same, with a change of leader meanwhile.
    #[error("etcdserver: request timed out, possibly due to previous leader failure")]
    TimeoutLeaderFail,
    /// Leadership did not move in time.
    #[error("etcdserver: request timed out, leader transfer took too long")]
    TimeoutLeaderTransfer,
    /// The transferee is no voter.
    #[error("etcdserver: bad leader transferee")]
    BadLeaderTransferee,
    /// A bounded queue is full.
    #[error("etcdserver: too many requests")]
    TooManyRequests,
    /// The proposal is larger than `request_bytes_max`.
    #[error("etcdserver: request is too large")]
    RequestTooLarge,
    /// The member is stopping or has stopped.
    #[error("etcdserver: server stopped")]
    Stopped,
    /// No member with that id.
    #[error("etcdserver: member not found")]
    MemberNotFound,
    /// A member with that id exists.
    #[error("etcdserver: member ID already exist")]
    MemberExists,
    /// Another member has that peer URL.
    #[error("etcdserver: Peer URLs already exists")]
    PeerUrlExists,
    /// The change would leave too few started members for a majority.
    #[error("etcdserver: re-configuration failed due to not enough started members")]
    NotEnoughStarted,
    /// Members are unreachable.
    #[error("etcdserver: unhealthy cluster")]
    UnhealthyCluster,
    /// The learner has not caught up.
    #[error("etcdserver: can only promote a learner member which is in sync with leader")]
    LearnerNotReady,
    /// The member is a voter already.
    #[error("etcdserver: can only promote a learner member")]
    NotLearner,
    /// One learner at a time.
    #[error("etcdserver: too many learner members in cluster")]
    TooManyLearners,
    /// The store refuses a read.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// The store failed.
    #[error("etcdserver: storage: {0}")]
    Storage(String),
}

impl From<ReadError> for MemberError {
    fn from(e: ReadError) -> Self {
        match e {
            ReadError::Kv(e) => Self::Kv(e),
            ReadError::CompactedAt(_) => Self::Kv(KvError::Compacted),
            ReadError::Store(e) => e.into(),
        }
    }
}

impl From<StoreError> for MemberError {
    fn from(e: StoreError) -> Self {
        Self::Storage(e.to_string())
    }
}

/// What happens to a member.
#[derive(Debug)]
pub enum MemberEvent {
    /// `next_timeout` has come.
    Timer,
    /// The log's I/O may have completed something.
    IoReady,
    /// A message came.
    Peer {
        /// From whom; the transport vouches for it.
        from: NodeId,
        /// What it says.
        msg: PeerMessage,
    },
    /// A client of this member asks.
    Request {
        /// Chosen by the caller; comes back in the reply.
        id: u64,
        /// What for.
        req: MemberRequest,
    },
    /// Messages to this peer are lost at present.
    PeerUnreachable(NodeId),
    /// A job that [`MemberOutput::Job`] handed out is done.
    JobDone(super::job::StoreDone),
    /// Hand leadership over, then stop.
    Stop,
}

/// What a member wants done.
#[derive(Debug)]
pub enum MemberOutput {
    /// Send a message; it may be lost.
    Send {
        /// To whom.
        to: NodeId,
        /// What.
        msg: PeerMessage,
    },
    /// The outcome of a request.
    Reply {
        /// The request.
        id: u64,
        /// Its outcome.
        result: Result<MemberReply, MemberError>,
    },
    /// Role, term or leader changed.
    RoleChanged(RoleChange),
    /// The applied membership changed.
    MembershipChanged(Membership),
    /// Work on the store that blocks: run it on another thread, then tell [`MemberEvent::JobDone`]. One at a time.
    Job(super::job::StoreJob),
    /// The member has handed over what it could and takes no more events.
    Stopped,
    /// The member cannot go on: stop the process with this cause.
    Fatal(String),
}

/// What one member says to another. Encode with [`PeerMessage::encode`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum PeerMessage {
    /// Consensus.
    Raft(Message),
    /// Proposals from a follower to the leader of exactly this term.
    Forward(Forward),
    /// A question that only the leader can answer.
    Ask {
        /// Chosen by the asker; comes back in the answer.
        id: u64,
        /// The question.
        ask: Ask,
    },
    /// The answer to an [`Ask`].
    Answer {
        /// The asker's number.
        id: u64,
        /// What the leader says.
        result: Result<Answer, AskError>,
    },
    /// A piece of the sender's state.
    Snapshot(SnapshotChunk),
    /// How far the receiver has got.
    SnapshotAck {
        /// The transfer.
        transfer: u64,
        /// Chunks received in order, or the end of it.
        ack: SnapshotProgress,
    },
}

/// Proposals on their way to the leader.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Forward {
    /// The leader refuses them in any other term. So a proposal can stand in the log in this term only,
    /// and its sender knows its fate as soon as an entry of a later term is committed.
    pub term: Term,
    /// Tells a restarted sender from its former self.
    pub session: u32,
    /// Every request of the session below this has its outcome.
    pub done_below: u64,
    /// In the order of their numbers.
    pub proposals: Vec<Proposal>,
}

/// A proposal that travels.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Proposal {
    /// The request's number.
    pub number: u64,
    /// The encoded envelope.
    #[serde(deserialize_with = "crate::shared::bytes")]
    pub data: Bytes,
}

/// A question to the leader.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "as in MemberRequest")]
pub enum Ask {
    ReadIndex,
    LeaseKeepAlive(i64),
    LeaseTtl { id: i64, keys: bool },
    NodeAlive(NodeId),
    ConfChange(ConfChange),
}

/// The leader's answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "as in MemberReply")]
pub enum Answer {
    ReadIndex(Index),
    LeaseKeepAlive { ttl_s: i64 },
    LeaseTtl(LeaseTtl),
    NodeAlive,
    Members(Membership),
}

/// Why a question has no answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum AskError {
    /// Nothing was done; ask again, perhaps somebody else.
    Retry,
    /// The leader's last word.
    Refused(MemberError),
}

/// One chunk of a snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SnapshotChunk {
    /// Which transfer; a new attempt has a new number.
    pub transfer: u64,
    /// The sender's term.
    pub term: Term,
    /// What the whole snapshot holds.
    pub meta: SnapshotMeta,
    /// The chunk's place, from 0.
    pub seq: u64,
    /// Its bytes.
    pub data: Bytes,
    /// Whether it is the last.
    pub last: bool,
}

/// The receiver's side of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotProgress {
    /// Chunks below this number have arrived.
    Received(u64),
    /// The state is restored, durably.
    Installed,
    /// Not wanted or failed.
    Refused,
}

/// Why bytes from a peer are no message.
#[derive(Debug, Error)]
#[error("peer message: {0}")]
pub struct PeerDecodeError(postcard::Error);

impl PeerMessage {
    /// Encodes with postcard.
    ///
    /// # Errors
    /// When a message cannot be encoded, which only running out of memory would cause.
    pub fn encode(&self) -> Result<Bytes, PeerDecodeError> {
        self.encode_behind(0).map(Bytes::from)
    }

    /// The same, with `room` zeros in front for whoever frames it, so that it need not be copied once more.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_behind(&self, room: usize) -> Result<Vec<u8>, PeerDecodeError> {
        super::envelope::encode_sized(self, room).map_err(PeerDecodeError)
    }

    /// Decodes what [`Self::encode`] made; entries' data lies in `bytes`.
    ///
    /// # Errors
    /// When the bytes are no such message.
    pub fn decode(bytes: &Bytes) -> Result<Self, PeerDecodeError> {
        crate::shared::decode(bytes).map_err(PeerDecodeError)
    }
}
