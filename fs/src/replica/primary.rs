//! The primary's side: admission of requests, and what keeps it going.

use super::checkpoint::Checkpoint;
use super::confirm::{Ask, Repair, RepairJob};
use super::flight::{Flight, Held};
use super::join::Join;
use super::scrub::Scrub;
use super::order::Mode::{self, Exclusive, Shared};
use super::sessions::Known;
use super::takeover::TakeOver;
use super::types::{BrickId, ClientRequest, PeerMsg, RepOp, ReplicaError};
use super::{Disk, ReplicaCore, Role, Task, query::Query};
use crate::fop::{Fop, Gfid, Reply, TimeSpec};
use brickraft_engine::types::Time;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Most requests that stand in the order or wait for bricks; beyond, clients are told `Busy`.
pub(super) const REQUESTS_MAX: usize = 4096;
/// Most bytes of writes that wait for bricks.
pub(super) const FLIGHT_BYTES_MAX: usize = 256 << 20;
/// Most requests that wait while changes stand still.
pub(super) const ROOM_MAX: usize = 4096;

/// What only a primary has; made anew whenever the role changes.
#[derive(Default)]
pub(super) struct Primary {
    /// Taken over; until then clients wait.
    pub serving: bool,
    pub take_over: Option<TakeOver>,
    /// The last op's number. The epoch in which this brick became primary is the upper half.
    pub seq: u64,
    pub flights: BTreeMap<u64, Flight>,
    /// Which flights touch an object.
    pub touch: BTreeMap<Gfid, BTreeSet<u64>>,
    /// Changes under way by session and op; the flight once there is one.
    pub by_op: BTreeMap<(u64, u64), Option<u64>>,
    pub held: BTreeMap<u64, Held>,
    pub ids: u64,
    pub asks: BTreeMap<u64, Ask>,
    /// Changes that wait until the group is not frozen, and all requests until it serves.
    pub room: VecDeque<ClientRequest>,
    /// Our own changes that wait to be made.
    pub internal: VecDeque<RepOp>,
    /// Bricks to be removed; true: whatever they say from now on.
    pub suspects: BTreeMap<BrickId, bool>,
    /// The own disk failed: the bricks that are to go on.
    pub failed: Option<Vec<BrickId>>,
    /// Bytes of writes in flight.
    pub bytes: usize,
    pub repairs: VecDeque<RepairJob>,
    pub repair: Option<Repair>,
    pub join: Option<Join>,
    pub scrub: Option<Scrub>,
    /// The brick for whose sake this one was made whole from the others in sync.
    pub compared: Option<BrickId>,
    /// This brick has objects without a name, or got names back: a scrub follows the heal in hand, and no checkpoint comes before it.
    pub lost_some: bool,
    /// Scrubs that were given up, one after the other.
    pub scrubs_failed: u32,
    pub checkpoint: Option<Checkpoint>,
    pub checkpoint_at: Time,
    pub checkpoints: u64,
    pub heals: u64,
    /// Until then unlinked files are kept, since somebody may have them open.
    pub grace_until: Time,
    pub grace_over: bool,
    /// The mtimes that this primary last set, to tell an altered directory from a right one. Bounded.
    pub set_times: BTreeMap<Gfid, TimeSpec>,
    pub pinged: Time,
    pub told: u64,
}

impl Primary {
    /// Heals below this number are over, but for one that the caller has taken out.
    pub fn heal_floor(&self) -> u64 {
        let join = self.join.as_ref().map(|j| j.heal);
        let scrub = self.scrub.as_ref().map(|s| s.heal);
        let repair = self.repair.as_ref().map(|r| r.heal);
        let take_over = self.take_over.as_ref().and_then(TakeOver::heal);
        [join, scrub, repair, take_over].into_iter().flatten().min().unwrap_or(self.heals + 1)
    }

    pub fn is_idle(&self) -> bool {
        self.flights.is_empty() && self.asks.is_empty() && self.take_over.is_none() && self.join.is_none() && self.repair.is_none()
            && self.checkpoint.is_none()
            && self.scrub.is_none()
    }

    pub fn next_id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    /// All ops up to this one are complete.
    pub fn complete(&self) -> u64 {
        self.flights.first_key_value().map_or(self.seq, |(&first, _)| first - 1)
    }
}

/// True for what changes something and is replicated.
pub(super) const fn is_change(fop: &Fop) -> bool {
    !matches!(
        fop,
        Fop::Lookup { .. }
            | Fop::GetAttr { .. }
            | Fop::ReadLink { .. }
            | Fop::Read { .. }
            | Fop::ReadDir { .. }
            | Fop::StatFs
            | Fop::GetXattr { .. }
            | Fop::ListXattr { .. }
            | Fop::Lseek { .. }
            | Fop::Open { .. }
            | Fop::Release { .. }
    )
}

/// The objects that an operation names, and whether others may work on them meanwhile.
pub(super) fn keys(fop: &Fop) -> Vec<(Gfid, Mode)> {
    match fop {
        Fop::StatFs | Fop::Release { .. } => Vec::new(),
        Fop::Lookup { parent, .. } => vec![(*parent, Shared)],
        Fop::GetAttr { gfid }
        | Fop::ReadLink { gfid }
        | Fop::Read { gfid, .. }
        | Fop::ReadDir { gfid, .. }
        | Fop::GetXattr { gfid, .. }
        | Fop::ListXattr { gfid }
        | Fop::Lseek { gfid, .. }
        | Fop::Open { gfid, .. } => vec![(*gfid, Shared)],
        Fop::Create { parent, gfid, .. }
        | Fop::MkNod { parent, gfid, .. }
        | Fop::MkDir { parent, gfid, .. }
        | Fop::Symlink { parent, gfid, .. }
        | Fop::Link { gfid, parent, .. } => vec![(*parent, Exclusive), (*gfid, Exclusive)],
        Fop::Unlink { parent, .. } | Fop::RmDir { parent, .. } => vec![(*parent, Exclusive)],
        Fop::Rename { parent, new_parent, .. } => vec![(*parent, Exclusive), (*new_parent, Exclusive)],
        Fop::SetAttr { gfid, .. }
        | Fop::Write { gfid, .. }
        | Fop::Fallocate { gfid, .. }
        | Fop::SetXattr { gfid, .. }
        | Fop::RemoveXattr { gfid, .. }
        | Fop::Fsync { gfid, .. } => vec![(*gfid, Exclusive)],
    }
}

impl<S: Disk> ReplicaCore<S> {
    pub(super) fn refuse(&mut self, r: &ClientRequest, error: ReplicaError) {
        self.reply(r.conn, r.request, Err(error), Bytes::new());
    }

    /// The client is to try again; what is done then is a new attempt.
    pub(super) fn busy(&mut self, r: &ClientRequest) {
        self.p.by_op.remove(&(r.session, r.op));
        self.refuse(r, ReplicaError::Busy);
    }

    pub(super) fn on_client(&mut self, r: ClientRequest) {
        let config = || self.group.clone();
        if self.group.epoch == 0 || r.epoch > self.group.epoch || self.wiped || self.p.failed.is_some() {
            return self.refuse(&r, ReplicaError::Busy);
        }
        if self.role != Role::Primary {
            let config = config();
            return self.refuse(&r, ReplicaError::NotPrimary { config });
        }
        if r.epoch != self.group.epoch {
            let config = config();
            return self.refuse(&r, ReplicaError::WrongEpoch { config });
        }
        if self.now >= self.lease {
            return self.refuse(&r, ReplicaError::NoLease);
        }
        self.sessions.ack(r.session, r.acked);
        if self.p.serving && self.is_repeated(&r) {
            return;
        }
        if !self.p.serving || (self.is_frozen() && is_change(&r.fop)) {
            if self.p.room.len() >= ROOM_MAX {
                return self.refuse(&r, ReplicaError::Busy);
            }
            self.p.room.push_back(r);
            return;
        }
        self.admit(r, false);
    }

    /// Answers (or joins to its flight) a request that was seen before.
    fn is_repeated(&mut self, r: &ClientRequest) -> bool {
        if r.session == 0 || !(is_change(&r.fop) || matches!(r.fop, Fop::Open { .. } | Fop::Release { .. })) {
            return false;
        }
        match self.p.by_op.get(&(r.session, r.op)) {
            Some(Some(seq)) => {
                if let Some(f) = self.p.flights.get_mut(seq) {
                    f.attach(r.conn, r.request);
                }
                return true;
            }
            Some(None) => {
                self.refuse(r, ReplicaError::Busy);
                return true;
            }
            None => {}
        }
        match self.sessions.known(r.session, r.op) {
            Known::Done(result) => {
                if let Fop::Open { gfid, .. } = r.fop
                    && result.is_ok()
                    && !self.sessions.has_open(r.session, gfid)
                {
                    return false;
                }
                self.reply(r.conn, r.request, result.map_err(ReplicaError::Errno), Bytes::new());
                true
            }
            Known::Forgotten => {
                self.refuse(r, ReplicaError::Forgotten);
                true
            }
            Known::New => false,
        }
    }

    /// Puts a request into the order. `confirmed`: other bricks were asked already.
    pub(super) fn admit(&mut self, r: ClientRequest, confirmed: bool) {
        let full = self.order.len() + self.p.flights.len() >= REQUESTS_MAX || self.p.held.len() + self.p.asks.len() >= REQUESTS_MAX;
        if full || (self.p.bytes >= FLIGHT_BYTES_MAX && !r.payload.is_empty()) {
            return self.busy(&r);
        }
        if let Fop::Release { gfid } = r.fop {
            return self.release(&r, gfid);
        }
        let ticket = self.order.admit(&keys(&r.fop));
        let task = if is_change(&r.fop) {
            if r.session != 0 {
                self.p.by_op.insert((r.session, r.op), None);
            }
            Task::Change(r, confirmed)
        } else {
            Task::Query(Query { request: r, confirmed })
        };
        self.tasks.insert(ticket, task);
    }

    fn release(&mut self, r: &ClientRequest, gfid: Gfid) {
        if self.sessions.release(r.session, gfid) {
            self.drop_orphan(gfid);
        }
        self.sessions.remember(r.session, r.op, Ok(Reply::Done));
        self.reply(r.conn, r.request, Ok(Reply::Done), Bytes::new());
    }

    pub(super) fn on_session_gone(&mut self, session: u64) {
        for gfid in self.sessions.gone(session) {
            self.drop_orphan(gfid);
        }
        if self.role == Role::Primary {
            self.p.internal.push_back(RepOp::SessionGone(session));
        }
    }

    fn drop_orphan(&mut self, gfid: Gfid) {
        if self.role == Role::Primary {
            self.p.internal.push_back(RepOp::DropOrphan(gfid));
        }
    }

    /// Moves along whatever waits for a state rather than for an event. True: something moved.
    pub(super) fn advance_primary(&mut self) -> bool {
        if self.role != Role::Primary {
            return false;
        }
        let mut moved = self.advance_take_over();
        moved |= self.advance_repair();
        moved |= self.advance_join();
        moved |= self.advance_scrub();
        if !self.p.serving || self.is_frozen() {
            // Queries need not wait for the thaw.
            return moved;
        }
        while let Some(r) = self.p.room.pop_front() {
            moved = true;
            if r.epoch != self.group.epoch && r.epoch + 1 != self.group.epoch {
                let config = self.group.clone();
                self.refuse(&r, ReplicaError::WrongEpoch { config });
            } else if !self.is_repeated(&r) {
                self.admit(r, false);
            }
        }
        while let Some(op) = self.p.internal.pop_front() {
            moved = true;
            let keys: Vec<_> = if let RepOp::DropOrphan(g) = op { vec![(g, Exclusive)] } else { Vec::new() };
            let ticket = self.order.admit(&keys);
            self.tasks.insert(ticket, Task::Internal(op));
        }
        moved
    }

    /// Since when `brick` owes an answer.
    fn owes_since(&self, brick: BrickId) -> Option<Time> {
        let flights = self.p.flights.values().filter(|f| f.waiting.contains(&brick)).map(|f| f.began).next();
        let asks = self.p.asks.values().filter(|a| a.of == brick).map(|a| a.began).min();
        let others = [
            self.p.take_over.as_ref().and_then(|t| t.waits_for(brick)),
            self.p.repair.as_ref().and_then(|r| r.waits_for(brick)),
        ];
        flights.into_iter().chain(asks).chain(others.into_iter().flatten()).min()
    }

    /// Sends again what was not answered, and gives up bricks that say nothing.
    pub(super) fn tick_primary(&mut self) {
        let ping_due = self.now.since(self.p.pinged) >= self.timing.retransmit;
        let complete = self.p.complete();
        for brick in self.others() {
            let Some(since) = self.owes_since(brick) else {
                if ping_due && self.p.told < complete {
                    self.send(brick, PeerMsg::Complete { epoch: self.group.epoch, complete, ping: false });
                }
                continue;
            };
            if ping_due {
                self.send(brick, PeerMsg::Complete { epoch: self.group.epoch, complete, ping: true });
            }
            let heard = self.peers.get(&brick).map_or(Time(0), |p| p.heard).max(since);
            let silent = self.now.since(heard) >= self.timing.peer_timeout;
            if silent || self.now.since(since) >= self.timing.stuck_timeout {
                self.p.suspects.entry(brick).or_insert(false);
            }
        }
        if ping_due {
            self.p.pinged = self.now;
            self.p.told = complete;
        }
        self.resend_flights();
        self.resend_asks();
        self.tick_take_over();
        self.tick_join();
        self.tick_scrub();
        self.tick_checkpoint();
        self.tick_grace();
    }

    /// After the grace time: drops files without a name that nobody has said to have open.
    fn tick_grace(&mut self) {
        if self.p.grace_over || !self.p.serving || self.now < self.p.grace_until {
            return;
        }
        self.p.grace_over = true;
        for gfid in self.store.orphans().unwrap_or_default() {
            if !self.sessions.is_open(gfid) {
                self.p.internal.push_back(RepOp::DropOrphan(gfid));
            }
        }
    }

    /// A fresh primary state for the epoch that has just begun.
    pub(super) fn new_primary(&self) -> Primary {
        let grace: Duration = self.timing.grace;
        Primary {
            seq: self.group.epoch << 32,
            grace_until: self.now.after(grace),
            checkpoint_at: self.now,
            told: self.group.epoch << 32,
            ..Primary::default()
        }
    }

    /// Not primary any more: tells every client that waits.
    pub(super) fn abandon_primary(&mut self) {
        let config = self.group.clone();
        let p = std::mem::take(&mut self.p);
        let mut waiting: Vec<(u64, u64)> = Vec::new();
        let begun: Vec<_> = p.flights.values().flat_map(|f| f.clients.iter().copied()).collect();
        waiting.extend(p.held.values().map(|h| (h.conn, h.request)));
        waiting.extend(p.asks.values().filter_map(|a| a.client()));
        waiting.extend(p.room.iter().map(|r| (r.conn, r.request)));
        waiting.extend(p.repairs.iter().map(RepairJob::client));
        waiting.extend(p.repair.iter().map(|r| r.job.client()));
        for (ticket, task) in std::mem::take(&mut self.tasks) {
            match task {
                Task::Change(r, _) | Task::Query(Query { request: r, .. }) => waiting.push((r.conn, r.request)),
                Task::Internal(_) | Task::Replicated(_) | Task::Repair => {}
            }
            self.order.done(ticket);
        }
        for (conn, request) in waiting {
            self.reply(conn, request, Err(ReplicaError::WrongEpoch { config: config.clone() }), Bytes::new());
        }
        for (conn, request) in begun {
            self.reply(conn, request, Err(ReplicaError::Abandoned { config: config.clone() }), Bytes::new());
        }
        // What was in flight may be on some bricks only: the new primary will ask.
        for (seq, f) in p.flights {
            self.s.recent.insert(seq, f.touches);
        }
        self.sessions.forget_opens();
    }
}
