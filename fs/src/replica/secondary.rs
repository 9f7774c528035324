//! The secondary's side: takes the primary's ops in their order, each once, and says so.

use super::order::{Mode::Exclusive, Ticket};
use super::types::{BrickId, PeerMsg, RepOp};
use super::{DataTask, Disk, ReplicaCore, Role, Task};
use crate::fop::{Errno, Fop, Gfid, Reply, TimeSpec};
use crate::store::{BucketSet, DataDone, DataOp, OpCtx};
use bytes::Bytes;
use std::collections::BTreeMap;

/// Most ops that wait for one that was lost on the way; the primary sends the others again.
const BUFFER_MAX: usize = 8192;
/// Most queries that wait for an op.
const QUERIES_MAX: usize = 4096;

/// An op as it came.
#[derive(Clone, Debug)]
pub(super) struct Received {
    pub seq: u64,
    pub session: u64,
    pub op: u64,
    pub acked: u64,
    pub time: TimeSpec,
    pub touches: Vec<Gfid>,
    pub rep: RepOp,
    pub payload: Bytes,
}

/// What only a secondary has, and what a new primary asks of it.
#[derive(Default)]
pub(super) struct Secondary {
    /// The next op to take; `None` until the primary has said where it begins.
    pub next: Option<u64>,
    pub buffer: BTreeMap<u64, Received>,
    /// Outcomes of ops that are not known to be complete.
    pub outcomes: BTreeMap<u64, Result<(), Errno>>,
    /// Data ops that run: what is to be remembered when they end.
    pub running: BTreeMap<u64, Received>,
    /// Ops of this and of earlier primaries that are not known to be on all bricks, and what they touch.
    pub recent: BTreeMap<u64, Vec<Gfid>>,
    /// Queries that wait for an op.
    pub queries: Vec<(BrickId, u64, u64, Fop)>,
    /// A checkpoint under way: its mark, and what is touched meanwhile.
    pub keep: Option<(u64, BucketSet)>,
    /// The primary that takes over waits for our list.
    pub asked: bool,
}

impl<S: Disk> ReplicaCore<S> {
    pub(super) fn on_op(&mut self, received: Received, complete: u64) {
        self.on_complete(complete);
        let Some(next) = self.s.next else { return };
        let seq = received.seq;
        if seq < next {
            if let Some(&result) = self.s.outcomes.get(&seq) {
                self.send(self.group.primary, PeerMsg::Ack { epoch: self.group.epoch, seq, result });
            }
            return;
        }
        if self.s.buffer.len() < BUFFER_MAX || seq == next {
            self.s.buffer.insert(seq, received);
        }
        let mut next = next;
        while let Some(received) = self.s.buffer.remove(&next) {
            next += 1;
            let keys: Vec<_> = received.touches.iter().map(|&g| (g, Exclusive)).collect();
            let ticket = self.order.admit(&keys);
            if !is_sync(&received.rep) {
                if let Some((_, keep)) = &mut self.s.keep {
                    keep.extend(received.touches.iter().map(|g| g.bucket()));
                }
                self.s.recent.insert(received.seq, received.touches.clone());
            }
            self.tasks.insert(ticket, Task::Replicated(received));
        }
        self.s.next = Some(next);
        // Names are changed in the same breath, so a query that waited may be answered once the order has run.
        while let Some(ticket) = self.order.next_ready() {
            self.start(ticket);
        }
        self.answer_queries();
    }

    pub(super) fn on_complete(&mut self, complete: u64) {
        self.s.recent = self.s.recent.split_off(&(complete + 1));
        // One epoch's worth of patience: a lost acknowledgement is asked for while the op is not complete.
        self.s.outcomes = self.s.outcomes.split_off(&(complete + 1));
    }

    pub(super) fn start_replicated(&mut self, ticket: Ticket, r: Received) {
        let seq = r.seq;
        match &r.rep {
            RepOp::Fop { fop: Fop::Write { gfid, offset }, .. } => {
                let op = DataOp::Write { gfid: *gfid, offset: *offset, data: r.payload.clone(), time: r.time };
                self.s.running.insert(seq, r);
                self.submit(DataTask::Replicated(seq, ticket), op);
            }
            RepOp::Fop { fop: Fop::Fsync { gfid, data_only }, .. } => {
                let op = DataOp::Fsync { gfid: *gfid, data_only: *data_only };
                self.s.running.insert(seq, r);
                self.order.done(ticket);
                self.submit(DataTask::Replicated(seq, 0), op);
            }
            _ => {
                let result = self.apply_received(&r);
                self.order.done(ticket);
                self.replicated(&r, result);
            }
        }
    }

    fn apply_received(&mut self, r: &Received) -> Result<Reply, Errno> {
        match &r.rep {
            RepOp::Fop { fop, keep } => {
                for &gfid in keep {
                    self.store.keep_orphan(gfid, true)?;
                }
                self.store.apply(fop, &OpCtx { time: r.time })
            }
            RepOp::DropOrphan(gfid) => self.store.keep_orphan(*gfid, false).map(|()| Reply::Done),
            RepOp::SessionGone(session) => {
                self.sessions.gone(*session);
                Ok(Reply::Done)
            }
        }
    }

    pub(super) fn replicated_done(&mut self, seq: u64, ticket: Ticket, done: DataDone) {
        self.order.done(ticket);
        let Some(r) = self.s.running.remove(&seq) else { return };
        let len = u32::try_from(r.payload.len()).unwrap_or(u32::MAX);
        let result = match done {
            DataDone::Write(w) => w.map(|attr| Reply::Written { len, attr }),
            DataDone::Synced(s) => s.map(|()| Reply::Done),
            DataDone::Read(_) => Err(Errno::EIO),
        };
        self.replicated(&r, result);
        self.send_recent();
        self.answer_queries();
    }

    fn replicated(&mut self, r: &Received, result: Result<Reply, Errno>) {
        if self.role == Role::Outsider {
            return;
        }
        // Also when this brick has become primary meanwhile: the op is done, and its retry must not be done again.
        self.sessions.ack(r.session, r.acked);
        if let Ok(reply) = &result
            && !is_sync(&r.rep)
        {
            self.sessions.remember(r.session, r.op, Ok(reply.clone()));
        }
        if self.role != Role::Secondary {
            return;
        }
        let result = result.map(|_| ());
        self.s.outcomes.insert(r.seq, result);
        self.send(self.group.primary, PeerMsg::Ack { epoch: self.group.epoch, seq: r.seq, result });
    }

    pub(super) fn on_query(&mut self, from: BrickId, id: u64, after: u64, fop: Fop) {
        if self.s.queries.len() < QUERIES_MAX && !self.s.queries.iter().any(|q| q.1 == id) {
            self.s.queries.push((from, id, after, fop));
        }
        self.answer_queries();
    }

    /// Answers the queries whose op has been applied.
    fn answer_queries(&mut self) {
        if self.s.queries.is_empty() {
            return;
        }
        let Some(next) = self.s.next else { return };
        let waiting = self.tasks.values().filter_map(|t| if let Task::Replicated(r) = t { Some(r.seq) } else { None });
        let first_open = waiting.chain(self.s.running.keys().copied()).min().unwrap_or(next);
        let (ready, wait): (Vec<_>, Vec<_>) = std::mem::take(&mut self.s.queries).into_iter().partition(|q| q.2 < first_open);
        self.s.queries = wait;
        for (from, id, _, fop) in ready {
            let result = self.store.query(&fop);
            if matches!(result, Err(Errno::ENOENT)) && !self.check_intact() {
                return;
            }
            self.send(from, PeerMsg::QueryReply { epoch: self.group.epoch, id, result });
        }
    }

    /// A new primary (or none of ours any more): forgets what has not begun. It stays in `recent`.
    pub(super) fn stop_following(&mut self) {
        for (seq, r) in std::mem::take(&mut self.s.buffer) {
            self.s.recent.insert(seq, r.touches);
        }
        let waiting: Vec<_> = self.tasks.iter().filter(|(_, t)| matches!(t, Task::Replicated(_))).map(|(&k, _)| k).collect();
        for ticket in waiting {
            self.tasks.remove(&ticket);
            self.order.done(ticket);
        }
        self.s.next = None;
        self.s.outcomes.clear();
        self.s.queries.clear();
        self.s.keep = None;
        self.s.asked = false;
    }

    /// Data operations that still change the disk.
    pub(super) fn is_writing(&self) -> bool {
        self.data.values().any(|t| matches!(t, DataTask::Flight(..) | DataTask::Replicated(..)))
    }

    /// Tells a primary that takes over what may differ, once nothing runs here any more.
    pub(super) fn send_recent(&mut self) {
        if !self.s.asked || self.is_writing() || self.role != Role::Secondary {
            return;
        }
        self.s.asked = false;
        let mut objects: Vec<_> = self.s.recent.values().flatten().copied().collect();
        objects.sort_unstable();
        objects.dedup();
        self.send(self.group.primary, PeerMsg::Recent { epoch: self.group.epoch, objects });
    }
}

pub(super) const fn is_sync(rep: &RepOp) -> bool {
    matches!(rep, RepOp::Fop { fop: Fop::Fsync { .. }, .. })
}
