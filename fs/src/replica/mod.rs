//! The replication core of one brick, and the [`controller`] that runs beside the Raft leader. Sans-io.
//!
//! # The protocol
//!
//! A replica group's [`GroupConfig`] lives in the coordination store: epoch, primary, in-sync set, and the
//! incarnation under which each brick was taken in. Every change of it is one compare-and-swap on the epoch.
//! A brick makes a new epoch durable before it acts in it, and refuses requests and messages of any other.
//! **Invariant 1**: an operation is acknowledged only when every brick of the in-sync set of the epoch in
//! which it completes has applied it. So any brick of any later in-sync set has it, whoever is primary:
//! a set only shrinks, or grows by a brick that was healed while changes stood still.
//!
//! - *Primary*. Names and attributes are changed on its own disk first (a refusal ends there), then the op
//!   goes to the others in parallel with the next `seq`; data goes to the own disk and to the others at once.
//!   Conflicting ops run in one order on each disk ([`order`]); secondaries take ops in strict seq order, each
//!   once, and acknowledge each. Unacknowledged ops are sent again; a `seq` is known to a secondary for as long
//!   as the same brick (under the same incarnation) is primary, over epochs too.
//! - *Nothing is shown that could be undone*. A query is answered from the primary's disk at once, but its
//!   answer (a refusal is one too) is held back until all ops in flight on what it touches are complete.
//! - *A brick that does not answer* is proposed to be removed. Its acknowledgement is no longer waited for
//!   when, and only when, the new epoch is committed. One that answers otherwise than the primary is damaged,
//!   and is removed likewise. A primary whose own disk fails, while others applied, gives itself up.
//! - *Primary lost*. The controller waits out the node lease (or has proof that the process died), then
//!   moves the primary to another in-sync brick. That one stops what it does, collects from the others the
//!   objects of all ops that are not known to be complete everywhere (the `recent` list, trimmed by the
//!   watermark that travels with each op), makes these objects equal to its own by heal, hands over its reply
//!   table, and then serves. An op that only some bricks had was never acknowledged nor shown, so either
//!   outcome is right, and now all have the same one.
//! - *Retries*. Outcomes are remembered for each session until the client has acknowledged them, on
//!   every in-sync brick, because each one applied the op itself. A new primary recognises a retry. A brick
//!   that joins gets the table.
//! - *Restart*. A process runs under a new incarnation, and is in sync only when the configuration says so
//!   under that very incarnation. The last in-sync brick takes the group under its new incarnation. If all
//!   in-sync bricks restarted, they compare notes and the most recent one takes it; see [`membership`].
//!   Where another in-sync brick lives, the restarted one takes itself out, for its old process is dead.
//! - *Return*. Out of sync, a brick asks the primary to be healed; see [`join`]. What differs lies in the
//!   buckets that either has marked dirty since the checkpoint that both remember, or else anywhere.
//! - *Checkpoint*. While all members are in sync, all sync their disks, note a mark, and clear their
//!   bitmaps but for what was touched meanwhile; see [`checkpoint`]. Bricks with different marks cannot
//!   be compared by bitmap: full heal.
//!
//! **Invariant 2**: two bricks with the same mark differ at most in the union of their dirty buckets: at the
//! mark they were equal, and who changes a bucket (by an op or by a heal) has marked it before.
//!
//! **Why there is no split brain**: to acknowledge anything, a brick needs every brick of its epoch's in-sync
//! set. A second set can only be made by a commit in the store, which makes at least one brick of the old
//! set refuse the old epoch (the new primary, which is in both sets), unless the old set was one brick: that
//! one is never removed but by its own hand. Reads need no other brick, hence the lease.
//!
//! *Open files* are known to the primary alone. An op that takes away an open file's last name tells all
//! bricks to keep the content. A new primary knows nobody's open files until the clients have said them again,
//! so for a grace time it keeps whatever is unlinked, and then drops what nobody holds.
//!
//! # Duties of the caller
//! Hand in every committed configuration, in any order; carry out the outputs in their order; call
//! [`ReplicaCore::handle`] with `Timer` when [`ReplicaCore::next_timeout`] has passed; one process for a
//! brick directory (the store's lock), stopped before another starts.

pub mod controller;

mod admin;
mod change;
mod checkpoint;
mod confirm;
mod fence;
mod flight;
mod heal_calls;
mod heal_server;
mod join;
mod membership;
mod order;
mod primary;
mod query;
mod scrub;
mod secondary;
mod sessions;
mod takeover;
mod types;

#[cfg(test)]
mod format_page;
#[cfg(test)]
mod sim;

pub use sessions::{REPLIES_MAX, SESSIONS_MAX};
pub use types::*;

use crate::fop::TimeSpec;
use crate::heal::HealStore;
use crate::store::{BrickMeta, BrickStore, DataDone};
use brickraft_engine::types::Time;
use bytes::Bytes;
use order::{Order, Ticket};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// A replica's time-outs.
#[derive(Clone, Copy, Debug)]
pub struct ReplicaTiming {
    /// An unanswered message is sent again after this time, then after twice it, and so on.
    pub retransmit: Duration,
    /// A brick that owes an answer and says nothing for this long is proposed to be removed.
    pub peer_timeout: Duration,
    /// A brick that lives but does not finish an operation for this long is proposed to be removed.
    pub stuck_timeout: Duration,
    /// Between two hellos, joins and the like.
    pub hello: Duration,
    /// A proposal is made again after this time.
    pub propose_retry: Duration,
    /// Between two bitmap checkpoints.
    pub checkpoint: Duration,
    /// After a change of primary, how long clients have to say which files they have open.
    pub grace: Duration,
    /// Between two looks whether the brick directory is still there.
    pub intact: Duration,
}

impl Default for ReplicaTiming {
    fn default() -> Self {
        Self {
            retransmit: Duration::from_millis(250),
            peer_timeout: Duration::from_millis(1000),
            stuck_timeout: Duration::from_secs(30),
            hello: Duration::from_millis(500),
            propose_retry: Duration::from_millis(500),
            checkpoint: Duration::from_secs(60),
            grace: Duration::from_secs(30),
            intact: Duration::from_secs(1),
        }
    }
}

/// A disk that replicates: a brick's store that can be healed.
pub trait Disk: BrickStore + HealStore {}
impl<T: BrickStore + HealStore> Disk for T {}

/// What the brick is in its group just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Not in sync.
    Outsider,
    /// In sync, follows the primary.
    Secondary,
    /// In sync, orders the operations.
    Primary,
}

/// What stands in the order of this disk.
enum Task {
    Query(query::Query),
    Change(ClientRequest, bool),
    Internal(RepOp),
    Replicated(secondary::Received),
    Repair,
}

/// Whose data operation it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DataTask {
    Query(Ticket),
    /// Of the primary; the ticket is 0 when it was given back already.
    Flight(u64, Ticket),
    Replicated(u64, Ticket),
    Checkpoint(u64),
    JoinSync(u64),
    LeaveSync,
}

#[derive(Clone, Copy, Debug, Default)]
struct PeerState {
    heard: Time,
    hello: Option<(Identity, Time)>,
    down: bool,
    dead: bool,
}

/// One brick of one replica group.
pub struct ReplicaCore<S> {
    timing: ReplicaTiming,
    brick: BrickId,
    store: S,
    meta: BrickMeta,
    /// What this process runs under. `meta.incarnation` is the last one that was offered to the group, durable before it was.
    incarnation: u64,
    rng: SmallRng,
    now: Time,
    wall: TimeSpec,
    last_time: TimeSpec,
    group: GroupConfig,
    role: Role,
    lease: Time,
    out: VecDeque<ReplicaOutput>,
    order: Order,
    tasks: BTreeMap<Ticket, Task>,
    data: BTreeMap<u64, DataTask>,
    tokens: u64,
    sessions: sessions::Sessions,
    peers: BTreeMap<BrickId, PeerState>,
    proposal: Option<(u64, Time)>,
    p: primary::Primary,
    s: secondary::Secondary,
    o: join::Outsider,
    heals: heal_server::HealServer,
    heal_busy: bool,
    heal_full: bool,
    leaving: bool,
    wiped: bool,
    dead: bool,
    ticked: Time,
    intact_at: Time,
    damage: VecDeque<String>,
}

impl<S: Disk> ReplicaCore<S> {
    /// A brick that starts: under a new incarnation, and out of sync until a configuration
    /// says otherwise. `seed` must not be the same for two starts of a brick.
    ///
    /// # Errors
    /// None at present.
    pub fn new(brick: BrickId, store: S, now: Time, seed: u64) -> Result<Self, crate::store::StoreError> {
        Self::with_timing(brick, store, now, seed, ReplicaTiming::default())
    }

    /// As [`ReplicaCore::new`], with time-outs of the caller's choice.
    ///
    /// # Errors
    /// None at present.
    pub fn with_timing(brick: BrickId, store: S, now: Time, seed: u64, timing: ReplicaTiming) -> Result<Self, crate::store::StoreError> {
        let mut rng = SmallRng::seed_from_u64(seed);
        let meta = store.meta();
        let incarnation = next_incarnation(meta.incarnation, &mut rng);
        let attempt = rng.random();
        Ok(Self {
            timing,
            brick,
            store,
            meta,
            incarnation,
            rng,
            now,
            wall: TimeSpec::default(),
            last_time: TimeSpec::default(),
            group: GroupConfig::default(),
            role: Role::Outsider,
            lease: Time(0),
            out: VecDeque::new(),
            order: Order::default(),
            tasks: BTreeMap::new(),
            data: BTreeMap::new(),
            tokens: 0,
            sessions: sessions::Sessions::default(),
            peers: BTreeMap::new(),
            proposal: None,
            p: primary::Primary::default(),
            s: secondary::Secondary::default(),
            o: join::Outsider::new(attempt),
            heals: heal_server::HealServer::default(),
            heal_busy: false,
            heal_full: false,
            leaving: false,
            wiped: false,
            dead: false,
            ticked: Time(0),
            intact_at: now,
            damage: VecDeque::new(),
        })
    }

    /// The brick's disk: for the driver (readiness) and for tests.
    pub fn store(&mut self) -> &mut S {
        &mut self.store
    }

    /// Gives the disk back.
    pub fn into_store(self) -> S {
        self.store
    }

    /// What the brick is in its group.
    #[must_use]
    pub const fn role(&self) -> Role {
        self.role
    }

    /// The configuration that it acts in; epoch 0 before the first.
    #[must_use]
    pub const fn group(&self) -> &GroupConfig {
        &self.group
    }

    /// The incarnation that it runs under.
    #[must_use]
    pub const fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// The incarnation that another brick was last heard under: what a death report to the controller names.
    #[must_use]
    pub fn peer_incarnation(&self, brick: BrickId) -> Option<u64> {
        let heard = self.peers.get(&brick).and_then(|p| p.hello).map(|(i, _)| i.incarnation);
        heard.or_else(|| self.group.incarnations.get(&brick).copied())
    }

    /// Something happened. `wall` is the time of day, which changes are stamped with.
    pub fn handle(&mut self, now: Time, wall: TimeSpec, event: ReplicaEvent) {
        if self.dead {
            return;
        }
        self.now = self.now.max(now);
        self.wall = wall;
        match event {
            ReplicaEvent::Client(request) => self.on_client(request),
            ReplicaEvent::SessionGone(session) => self.on_session_gone(session),
            ReplicaEvent::Peer { from, msg, payload } => self.on_peer(from, msg, payload),
            ReplicaEvent::PeerUp(brick) => self.on_peer_up(brick),
            ReplicaEvent::PeerDown(brick) => self.on_peer_down(brick, false),
            ReplicaEvent::PeerDead(brick) => self.on_peer_down(brick, true),
            ReplicaEvent::Config(config) => self.on_config(config),
            ReplicaEvent::Lease(until) => self.lease = until,
            ReplicaEvent::StoreReady => {}
            ReplicaEvent::Timer => self.tick(),
            ReplicaEvent::ProposalDone { expect_epoch, committed } => self.on_proposal_done(expect_epoch, committed),
            ReplicaEvent::Admin { id, request } => self.on_admin(id, request),
            ReplicaEvent::Leave => self.leaving = true,
        }
        self.run();
    }

    /// The next thing to be done, in order.
    #[must_use]
    pub fn poll_output(&mut self) -> Option<ReplicaOutput> {
        self.out.pop_front()
    }

    /// When to call with `Timer`.
    #[must_use]
    pub fn next_timeout(&self) -> Time {
        let busy = self.heal_busy;
        let waiting = !self.p.is_idle() || self.role == Role::Outsider || self.proposal.is_some();
        let tick = if busy { 1 } else if waiting { 20 } else { 100 };
        self.ticked.after(Duration::from_millis(tick))
    }

    /// Runs everything that can go on until nothing moves.
    fn run(&mut self) {
        loop {
            self.reap();
            let mut moved = false;
            while let Some(ticket) = self.order.next_ready() {
                moved = true;
                self.start(ticket);
            }
            moved |= self.advance_primary();
            if !moved || self.dead {
                break;
            }
        }
        if !self.dead {
            self.finish_leaving();
            self.propose_if_due();
        }
    }

    fn start(&mut self, ticket: Ticket) {
        let Some(task) = self.tasks.remove(&ticket) else {
            self.order.done(ticket);
            return;
        };
        match task {
            Task::Query(query) => self.start_query(ticket, query),
            Task::Change(request, confirmed) => self.start_change(ticket, request, confirmed),
            Task::Internal(op) => self.start_internal(ticket, op),
            Task::Replicated(received) => self.start_replicated(ticket, received),
            Task::Repair => self.start_repair(ticket),
        }
    }

    fn reap(&mut self) {
        let mut done = Vec::new();
        loop {
            self.store.reap(&mut done);
            if done.is_empty() {
                return;
            }
            for (token, outcome) in done.drain(..) {
                if let Some(task) = self.data.remove(&token) {
                    self.on_data(task, outcome);
                }
            }
        }
    }

    fn on_data(&mut self, task: DataTask, outcome: DataDone) {
        match task {
            DataTask::Query(ticket) => self.read_done(ticket, outcome),
            DataTask::Flight(seq, ticket) => self.flight_data_done(seq, ticket, outcome),
            DataTask::Replicated(seq, ticket) => self.replicated_done(seq, ticket, outcome),
            DataTask::Checkpoint(mark) => self.checkpoint_synced_here(mark, outcome),
            DataTask::JoinSync(attempt) => self.join_synced(attempt, outcome),
            DataTask::LeaveSync => self.out.push_back(ReplicaOutput::Left { last: true }),
        }
    }

    fn submit(&mut self, task: DataTask, op: crate::store::DataOp) {
        self.tokens += 1;
        self.data.insert(self.tokens, task);
        self.store.submit(self.tokens, op);
    }

    fn send(&mut self, to: BrickId, msg: PeerMsg) {
        self.send_with(to, msg, Bytes::new());
    }

    fn send_with(&mut self, to: BrickId, msg: PeerMsg, payload: Bytes) {
        self.out.push_back(ReplicaOutput::ToPeer { to, msg, payload });
    }

    fn reply(&mut self, conn: u64, request: u64, result: Result<crate::fop::Reply, ReplicaError>, payload: Bytes) {
        self.out.push_back(ReplicaOutput::Reply { conn, request, result, payload });
    }

    /// The other in-sync bricks.
    fn others(&self) -> Vec<BrickId> {
        self.group.in_sync.iter().copied().filter(|&b| b != self.brick).collect()
    }

    /// The time of a change: the wall clock's, but growing where that stands still or goes back a little.
    fn op_time(&mut self) -> TimeSpec {
        let (wall, last) = (self.wall, self.last_time);
        let close = wall <= last && last.sec - wall.sec < 2;
        self.last_time = match (close, last.nsec) {
            (false, _) => wall,
            (true, 999_999_999) => TimeSpec { sec: last.sec + 1, nsec: 0 },
            (true, n) => TimeSpec { sec: last.sec, nsec: n + 1 },
        };
        self.last_time
    }

    fn fatal(&mut self, why: String) {
        self.dead = true;
        self.out.push_back(ReplicaOutput::Fatal(why));
    }

    fn note_damage(&mut self, what: String) {
        const DAMAGE_MAX: usize = 64;
        tracing::warn!(brick = self.brick, "{what}");
        if self.damage.len() >= DAMAGE_MAX {
            self.damage.pop_front();
        }
        self.damage.push_back(what);
    }
}

/// A count in the upper half, so that a log reads well; chance in the lower, so that a brick that went
/// back to an old copy never gets an incarnation a second time.
fn next_incarnation(last: u64, rng: &mut SmallRng) -> u64 {
    (((last >> 32) + 1) << 32) | u64::from(rng.random::<u32>())
}
