//! What goes into and comes out of a [`super::ReplicaCore`], and what two bricks say to each other.
//!
//! [`GroupConfig`] is stored as JSON, the messages travel as postcard (FORMAT.md, "brick protocol
//! messages"): new variants and fields go to the end.

use crate::fop::{Errno, Fop, Gfid, Reply, TimeSpec};
use brickraft_engine::types::Time;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A brick's id, unique in the cluster, never 0, never reused.
pub type BrickId = u64;

/// Who holds a replica group's data, and who orders its operations. Lives in the coordination store;
/// every change is one compare-and-swap on `epoch` ([`ConfigProposal`]).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupConfig {
    /// The version of this value; grows by one with each change. 0: not yet made.
    pub epoch: u64,
    /// The brick that orders the group's operations; one of `in_sync`.
    pub primary: BrickId,
    /// The bricks that have every acknowledged change; never empty.
    pub in_sync: Vec<BrickId>,
    /// All bricks of the group.
    pub members: Vec<BrickId>,
    /// The incarnation under which each brick was last taken into `in_sync`. A brick that runs under
    /// another incarnation is not in sync, whatever `in_sync` says.
    pub incarnations: BTreeMap<BrickId, u64>,
}

impl GroupConfig {
    /// The first configuration of a new group: all bricks are empty, hence in sync, and known by the
    /// incarnations that the store gave them when they were made (0 where unknown: such a brick
    /// announces itself and is joined).
    #[must_use]
    pub fn initial(members: &[BrickId], incarnations: BTreeMap<BrickId, u64>) -> Self {
        Self {
            epoch: 1,
            primary: members.first().copied().unwrap_or(0),
            in_sync: members.to_vec(),
            members: members.to_vec(),
            incarnations,
        }
    }

    /// True when `brick` is in sync and runs under the incarnation that the group knows.
    #[must_use]
    pub fn holds(&self, brick: BrickId, incarnation: u64) -> bool {
        self.in_sync.contains(&brick) && self.incarnations.get(&brick) == Some(&incarnation)
    }

    /// The next configuration without `gone`, the primary moved if it is among them; `None` when nobody
    /// would be left or nothing changes.
    #[must_use]
    pub fn without(&self, gone: &[BrickId]) -> Option<Self> {
        let in_sync: Vec<_> = self.in_sync.iter().copied().filter(|b| !gone.contains(b)).collect();
        if in_sync.is_empty() || in_sync.len() == self.in_sync.len() {
            return None;
        }
        let primary = if in_sync.contains(&self.primary) { self.primary } else { in_sync[0] };
        Some(Self { epoch: self.epoch + 1, primary, in_sync, ..self.clone() })
    }
}

/// A change of a [`GroupConfig`], to be committed only if the stored epoch is `expect_epoch`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigProposal {
    /// The epoch that the store must still have.
    pub expect_epoch: u64,
    /// The new value; its epoch is `expect_epoch + 1`.
    pub new: GroupConfig,
}

/// Why a request was not carried out. Everything but [`ReplicaError::Errno`] is for the client's
/// translator, which retries or re-routes with the same session and op number and `retry` set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ReplicaError {
    /// The file system's answer, final.
    #[error("{0}")]
    Errno(Errno),
    /// The request's epoch is not the group's. Retry by this configuration.
    #[error("the group is at epoch {}", config.epoch)]
    WrongEpoch {
        /// The configuration that the brick acts in.
        config: GroupConfig,
    },
    /// Another brick is primary. Retry there.
    #[error("brick {} is the primary", config.primary)]
    NotPrimary {
        /// The configuration that the brick acts in.
        config: GroupConfig,
    },
    /// The node's lease with the coordination store has run out, so it cannot know whether it is still
    /// primary. Retry in a moment.
    #[error("no lease with the coordination store")]
    NoLease,
    /// A queue is full, or the brick is just taking over. Retry in a moment.
    #[error("busy")]
    Busy,
    /// The session is known, but the op is older than its reply window: the client broke its bound.
    #[error("the operation's outcome is no longer known")]
    Forgotten,
    /// The brick was primary and had begun the operation, but is primary no more: others may carry it out or may have. Retry by
    /// this configuration, with `retry` set.
    #[error("the group went on to epoch {} before the operation's end", config.epoch)]
    Abandoned {
        /// The configuration that the brick acts in.
        config: GroupConfig,
    },
}

/// One operation of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientRequest {
    /// The connection that the answer goes to.
    pub conn: u64,
    /// The client's number for the request on that connection, echoed in the answer.
    pub request: u64,
    /// The client's session, random, the same over reconnects.
    pub session: u64,
    /// The operation's number in the session, from 1; a retry has the same number.
    pub op: u64,
    /// All ops of the session up to this one have been answered: their outcomes may be forgotten.
    pub acked: u64,
    /// True when this op may have been sent before.
    pub retry: bool,
    /// The group epoch that the client knows.
    pub epoch: u64,
    /// The fencing token of the handle that the operation goes through; 0: none.
    pub fence: u64,
    /// The operation.
    pub fop: Fop,
    /// The data of a write, else empty.
    pub payload: Bytes,
}

/// What an operator asks of a group's primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdminRequest {
    /// Heal every brick that is out of sync, now.
    Heal,
    /// As `Heal`, but compare everything, also on bricks that are in sync.
    HealFull,
    /// Verify the content signatures of all objects on all in-sync bricks, and heal what does not match.
    Scrub,
    /// How things stand.
    Info,
}

/// The answer to an [`AdminRequest`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupInfo {
    /// The brick that answers.
    pub brick: BrickId,
    /// What it is just now: `primary`, `secondary`, `outsider`, `taking over`, `wiped`.
    pub role: String,
    /// The configuration that it acts in.
    pub config: GroupConfig,
    /// Operations that wait for a brick.
    pub in_flight: u64,
    /// Buckets with changes since the last checkpoint.
    pub dirty_buckets: u64,
    /// Heals that run, one for each brick that joins or is repaired.
    pub heals: Vec<HealInfo>,
    /// What was found damaged behind our back, newest last, bounded.
    pub damage: Vec<String>,
}

/// The progress of one heal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealInfo {
    /// The brick that is healed.
    pub brick: BrickId,
    /// `waiting`, `bulk`, `catching up`, `frozen`, `joining`, `repair`, `full`, `scrub`.
    pub state: String,
    /// Buckets done and left to do.
    pub buckets_done: u64,
    /// See `buckets_done`.
    pub buckets_left: u64,
    /// Objects that differed and were healed.
    pub objects: u64,
    /// Bytes of file content sent.
    pub bytes: u64,
    /// Microseconds since the heal began.
    pub elapsed_us: u64,
}

impl HealInfo {
    /// Seconds left at the present rate, once there is one.
    #[must_use]
    pub fn seconds_left(&self) -> Option<u64> {
        (self.buckets_done > 0).then(|| self.elapsed_us.saturating_mul(self.buckets_left) / self.buckets_done / 1_000_000)
    }
}

/// What happens to a brick.
#[derive(Clone, Debug)]
pub enum ReplicaEvent {
    /// A client's operation.
    Client(ClientRequest),
    /// A client's session is over (it said so, or it was away for too long): what it held is released.
    SessionGone(u64),
    /// A message of another brick of the group.
    Peer {
        /// Who sent it.
        from: BrickId,
        /// What it says.
        msg: PeerMsg,
        /// The data that travels with it.
        payload: Bytes,
    },
    /// The way to another brick is open (again); what was sent before may be lost.
    PeerUp(BrickId),
    /// The way to another brick is lost. It may live.
    PeerDown(BrickId),
    /// The process of another brick is dead beyond doubt: its host answers, and refuses the connection.
    PeerDead(BrickId),
    /// A committed configuration of the group, from the coordination store. Old ones are ignored.
    Config(GroupConfig),
    /// The node's lease with the coordination store: it may serve until then.
    Lease(Time),
    /// The store has completions.
    StoreReady,
    /// [`super::ReplicaCore::next_timeout`] has passed.
    Timer,
    /// The outcome of a [`ReplicaOutput::Propose`]: `Ok(true)` committed, `Ok(false)` the epoch had moved
    /// on (the new configuration follows as `Config`), `Err` unknown.
    ProposalDone {
        /// The proposal's `expect_epoch`.
        expect_epoch: u64,
        /// What became of it; `None` when that is not known.
        committed: Option<bool>,
    },
    /// A question of the operator.
    Admin {
        /// Echoed in the answer.
        id: u64,
        /// What is asked.
        request: AdminRequest,
    },
    /// The brick is to stop: leave the in-sync set first, unless it is the last in it. `Left` follows.
    Leave,
}

/// What a brick wants done. To be done in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum ReplicaOutput {
    /// An answer for a client.
    Reply {
        /// The request's connection.
        conn: u64,
        /// The request's number.
        request: u64,
        /// The outcome.
        result: Result<Reply, ReplicaError>,
        /// The data of a read, else empty.
        payload: Bytes,
    },
    /// A message for another brick of the group. May be lost; must not be altered.
    ToPeer {
        /// Whom to.
        to: BrickId,
        /// What it says.
        msg: PeerMsg,
        /// The data that travels with it.
        payload: Bytes,
    },
    /// Commit this configuration if the epoch still is as expected; `ProposalDone` and `Config` follow.
    Propose(ConfigProposal),
    /// The answer to an `Admin`.
    Admin {
        /// The request's id.
        id: u64,
        /// The answer.
        info: GroupInfo,
    },
    /// After `Leave`: the brick may stop; `last` when it still is the last in-sync one.
    Left {
        /// It is still in the in-sync set, alone.
        last: bool,
    },
    /// Somebody emptied the brick's directory, and the brick is out of sync by now: make it anew, empty,
    /// with the same volume and brick id, and start a new core on it.
    Recreate,
    /// The brick's disk failed or lies: it must be stopped, with this text in the log.
    Fatal(String),
}

/// A replicated operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RepOp {
    /// A change that a client asked for. `keep` names an open file that loses its last name by it.
    Fop {
        /// The change.
        fop: Fop,
        /// Files whose content must outlive this op's unlinking, because somebody may have them open.
        keep: Vec<Gfid>,
    },
    /// Nobody has this nameless file open any more.
    DropOrphan(Gfid),
    /// A session is over.
    SessionGone(u64),
}

/// What a brick says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The incarnation that it runs under.
    pub incarnation: u64,
    /// The epoch that it acts in.
    pub epoch: u64,
    /// The mark of its last bitmap checkpoint; 0: none.
    pub synced_epoch: u64,
    /// It is in sync as far as it knows.
    pub in_sync: bool,
    /// The incarnation under which it was last in sync; 0: never.
    pub held: u64,
    /// How many buckets it changed since that checkpoint.
    pub dirty: u32,
}

/// Which call of which heal. A brick executes a call once, and none of a heal that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HealTag {
    /// The primary's epoch.
    pub epoch: u64,
    /// The join attempt's number, chosen by the brick that joins; 0 for repairs among in-sync bricks.
    pub attempt: u64,
    /// The primary's count of heals: a later heal has a greater one.
    pub heal: u64,
    /// Heals below this one are over: a call of theirs that comes now was given up, and must not be executed.
    pub floor: u64,
    /// The call's number within the heal, from 1.
    pub id: u64,
}

/// What a brick remembers of all sessions, on its way to another brick.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyTable {
    /// An earlier table was lost: a session that is not in this one may retry what was carried out before.
    pub lost: bool,
    /// The sessions.
    pub sessions: Vec<SessionReplies>,
}

/// What a brick remembers of one session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionReplies {
    /// The session.
    pub session: u64,
    /// The client has the answers of everything up to this op.
    pub acked: u64,
    /// Retries up to this op may have been carried out without the table knowing; 0: none.
    pub doubtful: u64,
    /// The outcomes of later ops.
    pub replies: Vec<(u64, Reply)>,
}

/// What the bricks of a group say to each other. "P:" is said by the primary, "S:" by another brick.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerMsg {
    /// Anybody, when the way opens and once a second while something is unsettled.
    Hello(Identity),
    /// Anybody: a committed configuration that the other seems not to know.
    Config(GroupConfig),
    /// Anybody: the other's epoch is ahead; send me its configuration.
    NeedConfig {
        /// The epoch that the sender acts in.
        epoch: u64,
    },
    /// P: apply this. Its payload is the data of a write.
    Op {
        /// The primary's epoch.
        epoch: u64,
        /// The op's number, in one row for as long as the same brick is primary.
        seq: u64,
        /// All ops up to this seq are applied on all in-sync bricks.
        complete: u64,
        /// As [`HealTag::floor`]: the change may undo what a heal that was given up had still to do.
        heal_floor: u64,
        /// The client's session (0: none).
        session: u64,
        /// The client's op number.
        op: u64,
        /// What the client has acknowledged; see [`ClientRequest::acked`].
        acked: u64,
        /// The time of the change by the primary's clock.
        time: TimeSpec,
        /// All objects and directories that the change touches.
        touches: Vec<Gfid>,
        /// The change.
        rep: RepOp,
    },
    /// S: applied (or not: the primary then takes the brick out of sync).
    Ack {
        /// The secondary's epoch.
        epoch: u64,
        /// The op.
        seq: u64,
        /// What the store said.
        result: Result<(), Errno>,
    },
    /// P: nothing new, but this is complete by now. Answered by `Pong` when `ping`.
    Complete {
        /// The primary's epoch.
        epoch: u64,
        /// See [`PeerMsg::Op`].
        complete: u64,
        /// Ask for a sign of life.
        ping: bool,
    },
    /// S: alive.
    Pong {
        /// The secondary's epoch.
        epoch: u64,
    },
    /// P: answer this query from your own disk, once you have applied everything up to `after`.
    Query {
        /// The primary's epoch.
        epoch: u64,
        /// Echoed.
        id: u64,
        /// A seq that must have been applied.
        after: u64,
        /// The query; never a `Read`.
        fop: Fop,
    },
    /// S: the answer to a `Query`.
    QueryReply {
        /// The secondary's epoch.
        epoch: u64,
        /// The query's id.
        id: u64,
        /// The answer.
        result: Result<Reply, Errno>,
    },
    /// S: out of sync; take me in. The payload is the brick's dirty bitmap, 8,192 bytes.
    Join {
        /// Who it is.
        identity: Identity,
        /// This attempt; all that belongs to it carries the number.
        attempt: u64,
    },
    /// P: one call of a heal. The payload is the postcard form of a `heal::HealCall`.
    Heal(HealTag),
    /// S: the outcome. The payload is the postcard form of a `heal::HealResult`.
    HealReturn(HealTag),
    /// P: you are healed; this is what you must know to be in sync. The brick syncs its disk first.
    JoinReady {
        /// The primary's epoch.
        epoch: u64,
        /// The attempt.
        attempt: u64,
        /// The last seq before the brick takes part.
        seq: u64,
        /// The files without a name that the primary keeps; the brick drops all others.
        orphans: Vec<Gfid>,
        /// The session reply table.
        replies: ReplyTable,
    },
    /// S: all is durable here; propose me.
    JoinReadyDone {
        /// The primary's epoch.
        epoch: u64,
        /// The attempt.
        attempt: u64,
        /// The `JoinReady`'s seq.
        seq: u64,
    },
    /// P, taking over: which objects may differ between us?
    TakeOver {
        /// The new epoch.
        epoch: u64,
    },
    /// S: objects touched by ops that are not known to be complete everywhere.
    Recent {
        /// The new epoch.
        epoch: u64,
        /// The objects.
        objects: Vec<Gfid>,
    },
    /// P, taking over: we are equal again; forget your reply table for this one, and count from `seq`.
    TookOver {
        /// The new epoch.
        epoch: u64,
        /// The last seq; the next op has the one after it.
        seq: u64,
        /// The files without a name that the primary keeps; the brick drops all others.
        orphans: Vec<Gfid>,
        /// The session reply table.
        replies: ReplyTable,
    },
    /// S: done.
    TookOverDone {
        /// The new epoch.
        epoch: u64,
    },
    /// P: sync your disk, and remember what is changed from now on.
    Checkpoint {
        /// The epoch.
        epoch: u64,
        /// The mark of this checkpoint.
        mark: u64,
    },
    /// S: synced.
    CheckpointSynced {
        /// The epoch.
        epoch: u64,
        /// The mark.
        mark: u64,
    },
    /// P: all have synced: note the mark, then clear the bitmap but for what was touched since.
    CheckpointCommit {
        /// The epoch.
        epoch: u64,
        /// The mark.
        mark: u64,
    },
}
