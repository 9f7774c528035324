//! Ops in flight: applied here, or on their way to the disk, and not yet known to be applied everywhere.

use super::types::{BrickId, PeerMsg, RepOp, ReplicaError};
use super::{DataTask, Disk, ReplicaCore, Ticket};
use crate::fop::{Errno, Fop, FopResult, Gfid, Reply, TimeSpec};
use crate::store::DataDone;
use brickraft_engine::types::Time;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// Most ops that are sent again to one brick at a time.
const RESEND_MAX: usize = 64;
/// Most requests that wait for one op: the first and its retries.
const CLIENTS_MAX: usize = 8;
/// Most directories whose mtime the primary remembers.
const SET_TIMES_MAX: usize = 65_536;

/// One op in flight.
#[derive(Debug)]
pub(super) struct Flight {
    pub session: u64,
    pub op: u64,
    pub acked: u64,
    pub time: TimeSpec,
    pub touches: Vec<Gfid>,
    pub rep: RepOp,
    pub payload: Bytes,
    /// The outcome on this brick; `None`: still running.
    pub local: Option<FopResult>,
    /// Bricks that have not applied it.
    pub waiting: BTreeSet<BrickId>,
    /// Those of them that could not.
    pub refused: BTreeMap<BrickId, Errno>,
    /// Bricks that have applied it.
    pub applied: BTreeSet<BrickId>,
    /// Who waits for the answer.
    pub clients: Vec<(u64, u64)>,
    /// Answers that show this op's effect.
    pub held: Vec<u64>,
    pub began: Time,
    /// When it was last sent, and how often.
    pub sent: (Time, u32),
}

impl Flight {
    pub fn attach(&mut self, conn: u64, request: u64) {
        if !self.clients.contains(&(conn, request)) && self.clients.len() < CLIENTS_MAX {
            self.clients.push((conn, request));
        }
    }

    /// A sync changes nothing: nobody has to wait for it, and it needs no heal.
    pub const fn is_sync(&self) -> bool {
        matches!(self.rep, RepOp::Fop { fop: Fop::Fsync { .. }, .. })
    }
}

/// An answer that waits until what it shows is on all bricks.
#[derive(Debug)]
pub(super) struct Held {
    pub conn: u64,
    pub request: u64,
    pub result: Result<Reply, ReplicaError>,
    pub payload: Bytes,
    pub flights: usize,
}

/// What a new flight needs.
pub(super) struct Launch {
    pub session: u64,
    pub op: u64,
    pub acked: u64,
    pub time: TimeSpec,
    pub touches: Vec<Gfid>,
    pub rep: RepOp,
    pub payload: Bytes,
    pub client: Option<(u64, u64)>,
    pub local: Option<FopResult>,
}

impl<S: Disk> ReplicaCore<S> {
    /// Gives an op its number and sends it to the other bricks.
    pub(super) fn launch(&mut self, l: Launch) -> u64 {
        self.p.seq += 1;
        let seq = self.p.seq;
        let waiting: BTreeSet<_> = self.others().into_iter().collect();
        let flight = Flight {
            session: l.session,
            op: l.op,
            acked: l.acked,
            time: l.time,
            touches: l.touches,
            rep: l.rep,
            payload: l.payload,
            local: l.local,
            waiting,
            refused: BTreeMap::new(),
            applied: BTreeSet::new(),
            clients: l.client.into_iter().collect(),
            held: Vec::new(),
            began: self.now,
            sent: (self.now, 0),
        };
        if !flight.is_sync() {
            for &g in &flight.touches {
                self.p.touch.entry(g).or_default().insert(seq);
            }
            self.note_change(&flight);
        }
        if l.session != 0 {
            self.p.by_op.insert((l.session, l.op), Some(seq));
        }
        self.p.bytes += flight.payload.len();
        self.p.flights.insert(seq, flight);
        for brick in self.others() {
            self.send_flight(brick, seq);
        }
        self.settle(seq);
        seq
    }

    /// What a heal, a checkpoint and the check of listings must know of a change.
    fn note_change(&mut self, f: &Flight) {
        if let Some(c) = &mut self.p.checkpoint {
            c.keep.extend(f.touches.iter().map(|g| g.bucket()));
        }
        if let Some(j) = &mut self.p.join {
            j.changed(f);
        }
        let RepOp::Fop { fop, .. } = &f.rep else { return };
        let set: &[Gfid] = match fop {
            Fop::Create { parent, gfid, .. } | Fop::MkNod { parent, gfid, .. } | Fop::MkDir { parent, gfid, .. } => &[*parent, *gfid],
            Fop::Symlink { parent, gfid, .. } => &[*parent, *gfid],
            Fop::Link { parent, .. } | Fop::Unlink { parent, .. } | Fop::RmDir { parent, .. } => &[*parent],
            Fop::Rename { parent, new_parent, .. } => &[*parent, *new_parent],
            Fop::Write { gfid, .. } => &[*gfid],
            _ => &[],
        };
        for &g in &f.touches {
            if !set.contains(&g) {
                self.p.set_times.remove(&g);
                continue;
            }
            if self.p.set_times.len() >= SET_TIMES_MAX {
                self.p.set_times.pop_first();
            }
            self.p.set_times.insert(g, f.time);
        }
    }

    fn send_flight(&mut self, to: BrickId, seq: u64) {
        let (epoch, complete) = (self.group.epoch, self.p.complete());
        let Some(f) = self.p.flights.get(&seq) else { return };
        let msg = PeerMsg::Op {
            epoch,
            seq,
            complete,
            heal_floor: self.p.heal_floor(),
            session: f.session,
            op: f.op,
            acked: f.acked,
            time: f.time,
            touches: f.touches.clone(),
            rep: f.rep.clone(),
        };
        let payload = f.payload.clone();
        self.send_with(to, msg, payload);
    }

    /// Sends again what is overdue, oldest first.
    pub(super) fn resend_flights(&mut self) {
        let (now, pause) = (self.now, self.timing.retransmit);
        let due = |f: &&mut Flight| !f.waiting.is_empty() && now.since(f.sent.0) >= pause * (1 << f.sent.1.min(4));
        let mut again = Vec::new();
        for (&seq, _) in self.p.flights.iter_mut().filter(|(_, f)| due(f)).take(RESEND_MAX) {
            again.push(seq);
        }
        for seq in again {
            if let Some(f) = self.p.flights.get_mut(&seq) {
                f.sent = (now, f.sent.1 + 1);
            }
            self.send_waiting(seq, None);
        }
    }

    fn send_waiting(&mut self, seq: u64, only: Option<BrickId>) {
        let waiting = self.p.flights.get(&seq).map(|f| f.waiting.clone()).unwrap_or_default();
        for brick in waiting.into_iter().filter(|&b| only.is_none_or(|o| o == b)) {
            self.send_flight(brick, seq);
        }
    }

    /// Sends everything again that waits for `only` (or for anybody): a new epoch, or a new connection.
    pub(super) fn resend_all(&mut self, only: Option<BrickId>) {
        for seq in self.p.flights.keys().copied().collect::<Vec<_>>() {
            self.send_waiting(seq, only);
        }
    }

    pub(super) fn on_ack(&mut self, from: BrickId, seq: u64, result: Result<(), Errno>) {
        let Some(f) = self.p.flights.get_mut(&seq) else { return };
        if !f.waiting.contains(&from) {
            return;
        }
        match result {
            Ok(()) => {
                f.waiting.remove(&from);
                f.refused.remove(&from);
                f.applied.insert(from);
            }
            Err(e) => {
                f.refused.insert(from, e);
            }
        }
        self.settle(seq);
    }

    pub(super) fn flight_data_done(&mut self, seq: u64, ticket: Ticket, done: DataDone) {
        self.order.done(ticket);
        let Some(f) = self.p.flights.get_mut(&seq) else { return };
        let len = u32::try_from(f.payload.len()).unwrap_or(u32::MAX);
        f.local = Some(match done {
            DataDone::Write(r) => r.map(|attr| Reply::Written { len, attr }),
            DataDone::Synced(r) => r.map(|()| Reply::Done),
            DataDone::Read(_) => Err(Errno::EIO),
        });
        // Until now a heal may have read the old bytes.
        if let (Some(j), Some(f)) = (&mut self.p.join, self.p.flights.get(&seq)) {
            j.changed(f);
        }
        self.settle(seq);
    }

    /// A file without a name may be missing on a brick that joined when such files were not healed yet.
    fn forgive_missing_orphan(&mut self, seq: u64) {
        let Some(f) = self.p.flights.get(&seq) else { return };
        let lacks: Vec<_> = f.refused.iter().filter(|(_, e)| **e == Errno::ENOENT).map(|(&b, _)| b).collect();
        let ([gfid], false) = (&f.touches[..], lacks.is_empty()) else { return };
        if matches!(self.store.query(&Fop::GetAttr { gfid: *gfid }), Ok(Reply::Attr(a)) if a.nlink > 0)
            && !matches!(f.rep, RepOp::DropOrphan(_))
        {
            return;
        }
        if let Some(f) = self.p.flights.get_mut(&seq) {
            f.refused.retain(|b, _| !lacks.contains(b));
            f.waiting.retain(|b| !lacks.contains(b));
        }
    }

    /// Ends a flight when its outcome is certain.
    pub(super) fn settle(&mut self, seq: u64) {
        if self.p.flights.get(&seq).is_some_and(|f| !f.refused.is_empty() && matches!(f.local, Some(Ok(_)))) {
            self.forgive_missing_orphan(seq);
        }
        let Some(f) = self.p.flights.get_mut(&seq) else { return };
        match &f.local {
            None => return,
            Some(Ok(_)) => {
                let damaged: Vec<_> = f.refused.iter().map(|(&b, &e)| (b, e)).collect();
                for (brick, e) in damaged {
                    if self.p.suspects.insert(brick, true) != Some(true) {
                        self.note_damage(format!("brick {brick} could not apply operation {seq}: {e}"));
                    }
                }
            }
            Some(Err(e)) => {
                let e = *e;
                if f.waiting.iter().any(|b| !f.refused.contains_key(b)) {
                    return;
                }
                if f.applied.is_empty() {
                    // Nobody could: the file system's answer. What was begun on each may differ.
                    f.waiting.clear();
                    if !self.group.in_sync.iter().all(|&b| b == self.brick) {
                        self.queue_self_repair(seq);
                    }
                } else {
                    let good: Vec<_> = f.applied.iter().copied().collect();
                    self.note_damage(format!("operation {seq} failed here ({e}), but not on bricks {good:?}"));
                    self.p.failed = Some(good);
                    return;
                }
            }
        }
        if self.p.flights.get(&seq).is_some_and(|f| f.waiting.is_empty()) {
            self.complete(seq);
        }
    }

    fn complete(&mut self, seq: u64) {
        let Some(f) = self.p.flights.remove(&seq) else { return };
        self.p.bytes -= f.payload.len();
        for g in &f.touches {
            if let Some(set) = self.p.touch.get_mut(g) {
                set.remove(&seq);
                if set.is_empty() {
                    self.p.touch.remove(g);
                }
            }
        }
        self.p.by_op.remove(&(f.session, f.op));
        let result = f.local.clone().unwrap_or(Err(Errno::EIO));
        if !f.is_sync() {
            self.sessions.remember(f.session, f.op, result.clone());
        }
        for (conn, request) in &f.clients {
            self.reply(*conn, *request, result.clone().map_err(ReplicaError::Errno), Bytes::new());
        }
        for id in &f.held {
            if let Some(h) = self.p.held.get_mut(id) {
                h.flights -= 1;
                if h.flights == 0
                    && let Some(h) = self.p.held.remove(id)
                {
                    self.reply(h.conn, h.request, h.result, h.payload);
                }
            }
        }
    }

    /// Answers a client, once everything in flight that touches `keys` is complete.
    pub(super) fn reply_after(&mut self, client: (u64, u64), keys: &[Gfid], result: Result<Reply, ReplicaError>, payload: Bytes) {
        let flights: BTreeSet<u64> = keys.iter().filter_map(|k| self.p.touch.get(k)).flatten().copied().collect();
        if flights.is_empty() {
            return self.reply(client.0, client.1, result, payload);
        }
        let id = self.p.next_id();
        for seq in &flights {
            if let Some(f) = self.p.flights.get_mut(seq) {
                f.held.push(id);
            }
        }
        self.p.held.insert(id, Held { conn: client.0, request: client.1, result, payload, flights: flights.len() });
    }

    /// The epoch has moved, and this brick still is primary: wait only for who is left.
    pub(super) fn flights_in_new_epoch(&mut self) {
        let others: BTreeSet<_> = self.others().into_iter().collect();
        for f in self.p.flights.values_mut() {
            f.waiting.retain(|b| others.contains(b));
            f.refused.retain(|b, _| others.contains(b));
            f.applied.retain(|b| others.contains(b));
            f.sent = (self.now, 0);
        }
        for seq in self.p.flights.keys().copied().collect::<Vec<_>>() {
            self.send_waiting(seq, None);
            self.settle(seq);
        }
    }

    pub(super) fn flight_data(seq: u64, ticket: Ticket) -> DataTask {
        DataTask::Flight(seq, ticket)
    }
}
