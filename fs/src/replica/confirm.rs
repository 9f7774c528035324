//! Damage behind our back: what one brick alone says is not believed where another can be asked cheaply.
//!
//! A negative answer, a listing's directory mtime, and an opened file's size and mtime are compared with a
//! second in-sync brick. When they differ, the objects are held still ([`Repair`]), compared again, and made
//! equal by heal. Which side is right: both bricks set every mtime exactly, so whoever alters a
//! directory or file behind our back moves its mtime. The side that has the mtime which the group last set is
//! right; where this primary does not remember it, the older mtime is the unaltered one; where the mtimes are
//! equal, what is there is kept rather than lost.

use super::heal_calls::{HealCalls, HealRoute, overdue};
use super::order::{Mode::Exclusive, Ticket};
use super::types::{BrickId, ClientRequest, PeerMsg};
use super::{Disk, ReplicaCore, Task};
use crate::fop::{Attr, Errno, FileKind, Fop, FopResult, Gfid, Reply};
use crate::heal::{Direction, HealPlan, Healer, Step};
use brickraft_engine::types::Time;

/// Most repairs that wait.
const REPAIRS_MAX: usize = 256;

/// A question to another brick.
pub(super) struct Ask {
    pub of: BrickId,
    pub began: Time,
    sent: Time,
    after: u64,
    probe: Fop,
    why: Why,
}

#[allow(clippy::large_enum_variant, reason = "nearly all are of the large kind")]
enum Why {
    /// Compare with our own answer, then answer the client.
    Confirm { request: ClientRequest, mine: FopResult },
    /// The repair in hand compares again; `true`: the directory around the object.
    Repair { around: bool },
}

impl Ask {
    pub fn client(&self) -> Option<(u64, u64)> {
        match &self.why {
            Why::Confirm { request, .. } => Some((request.conn, request.request)),
            Why::Repair { .. } => None,
        }
    }
}

/// Something differs; the client's request runs again when it is repaired.
pub(super) struct RepairJob {
    request: Option<ClientRequest>,
    probe: Fop,
    peer: BrickId,
    /// The mtimes say who is right; otherwise this brick is.
    judge: bool,
}

impl RepairJob {
    pub fn client(&self) -> (u64, u64) {
        self.request.as_ref().map_or((0, 0), |r| (r.conn, r.request))
    }
}

/// The repair in hand.
pub(super) struct Repair {
    pub job: RepairJob,
    ticket: Ticket,
    /// It has its turn: nothing else works on the objects here.
    started: bool,
    asked: bool,
    theirs: Option<FopResult>,
    theirs_around: Option<FopResult>,
    healer: Option<Healer>,
    pub heal: u64,
    calls: HealCalls,
    began: Time,
}

impl Repair {
    pub fn waits_for(&self, brick: BrickId) -> Option<Time> {
        (self.job.peer == brick && !self.calls.is_empty()).then_some(self.began)
    }
}

/// The query whose answer two bricks must agree on; `None`: this fop needs none.
fn probe_of(fop: &Fop) -> Option<Fop> {
    Some(match fop {
        Fop::Lookup { .. } | Fop::GetAttr { .. } => fop.clone(),
        Fop::Unlink { parent, name } | Fop::RmDir { parent, name } | Fop::Rename { parent, name, .. } => {
            Fop::Lookup { parent: *parent, name: name.clone() }
        }
        Fop::Create { parent, .. } | Fop::MkNod { parent, .. } | Fop::MkDir { parent, .. } | Fop::Symlink { parent, .. } => {
            Fop::GetAttr { gfid: *parent }
        }
        Fop::ReadLink { gfid }
        | Fop::Read { gfid, .. }
        | Fop::ReadDir { gfid, .. }
        | Fop::GetXattr { gfid, .. }
        | Fop::ListXattr { gfid }
        | Fop::Lseek { gfid, .. }
        | Fop::Open { gfid, .. }
        | Fop::Link { gfid, .. }
        | Fop::SetAttr { gfid, .. }
        | Fop::Write { gfid, .. }
        | Fop::Fallocate { gfid, .. }
        | Fop::SetXattr { gfid, .. }
        | Fop::RemoveXattr { gfid, .. }
        | Fop::Fsync { gfid, .. } => Fop::GetAttr { gfid: *gfid },
        Fop::StatFs | Fop::Release { .. } => return None,
    })
}

/// Whether two bricks' answers to a probe tell of the same object.
fn agree(mine: &FopResult, theirs: &FopResult) -> bool {
    match (mine, theirs) {
        (Ok(Reply::Attr(a)), Ok(Reply::Attr(b))) => {
            let same = a.gfid == b.gfid && a.kind == b.kind && a.mtime == b.mtime;
            same && (a.kind != FileKind::File || a.size == b.size)
        }
        (Err(Errno::ENOENT), Ok(_)) | (Ok(_), Err(Errno::ENOENT)) => false,
        _ => true,
    }
}

impl<S: Disk> ReplicaCore<S> {
    /// Asks a second brick where the answer to a query needs it. True: it does, and the client waits.
    pub(super) fn confirm_query(&mut self, r: &ClientRequest, result: &FopResult) -> bool {
        let needed = matches!(
            (&r.fop, result),
            (_, Err(Errno::ENOENT)) | (Fop::ReadDir { cookie: 0, .. } | Fop::Open { .. }, Ok(_))
        );
        needed && self.confirm(r)
    }

    /// The same for a change that was refused because something is not there.
    pub(super) fn confirm_refusal(&mut self, r: &ClientRequest) -> bool {
        self.confirm(r)
    }

    fn confirm(&mut self, r: &ClientRequest) -> bool {
        if !self.check_intact() {
            self.busy(r);
            return true;
        }
        let (Some(of), Some(probe)) = (self.others().first().copied(), probe_of(&r.fop)) else { return false };
        let mine = self.store.query(&probe);
        self.ask(of, probe, Why::Confirm { request: r.clone(), mine });
        true
    }

    fn ask(&mut self, of: BrickId, probe: Fop, why: Why) {
        let id = self.p.next_id();
        let ask = Ask { of, began: self.now, sent: self.now, after: self.p.seq, probe: probe.clone(), why };
        let msg = PeerMsg::Query { epoch: self.group.epoch, id, after: ask.after, fop: probe };
        self.p.asks.insert(id, ask);
        self.send(of, msg);
    }

    pub(super) fn resend_asks(&mut self) {
        let (now, epoch) = (self.now, self.group.epoch);
        let mut again = Vec::new();
        for (&id, ask) in &mut self.p.asks {
            if now.since(ask.sent) >= self.timing.retransmit {
                ask.sent = now;
                again.push((ask.of, PeerMsg::Query { epoch, id, after: ask.after, fop: ask.probe.clone() }));
            }
        }
        if let Some(repair) = &mut self.p.repair {
            let route = HealRoute { to: repair.job.peer, attempt: 0, heal: repair.heal };
            for (id, call) in overdue(&mut repair.calls, now, self.timing.retransmit) {
                self.send_heal(route, id, call);
            }
        }
        for (to, msg) in again {
            self.send(to, msg);
        }
    }

    pub(super) fn on_query_reply(&mut self, from: BrickId, id: u64, theirs: FopResult) {
        if self.p.asks.get(&id).is_none_or(|a| a.of != from) {
            return;
        }
        let Some(ask) = self.p.asks.remove(&id) else { return };
        match ask.why {
            Why::Repair { around } => {
                if let Some(r) = &mut self.p.repair {
                    *(if around { &mut r.theirs_around } else { &mut r.theirs }) = Some(theirs);
                }
            }
            Why::Confirm { request, mine } => {
                let now_mine = self.store.query(&ask.probe);
                // What changes just now differs for a moment; it is not damage.
                let changing = mine != now_mine || super::primary::keys(&request.fop).iter().any(|k| self.p.touch.contains_key(&k.0));
                if agree(&mine, &theirs) || changing {
                    return self.again(request);
                }
                let job = RepairJob { request: Some(request), probe: ask.probe, peer: from, judge: true };
                self.queue_repair(job);
            }
        }
    }

    /// Runs a request for the second time, now without asking.
    fn again(&mut self, r: ClientRequest) {
        if self.is_frozen() && super::primary::is_change(&r.fop) {
            return self.busy(&r);
        }
        self.admit(r, true);
    }

    fn queue_repair(&mut self, job: RepairJob) {
        if self.p.repairs.len() < REPAIRS_MAX {
            self.p.repairs.push_back(job);
        } else if let Some(r) = job.request {
            self.busy(&r);
        }
    }

    /// A change failed everywhere, but may have left different traces: the primary's are taken.
    pub(super) fn queue_self_repair(&mut self, seq: u64) {
        let Some(gfid) = self.p.flights.get(&seq).and_then(|f| f.touches.first().copied()) else { return };
        for peer in self.others() {
            self.queue_repair(RepairJob { request: None, probe: Fop::GetAttr { gfid }, peer, judge: false });
        }
    }

    /// Two bricks differ in an object, and no signature speaks for either: as if somebody had opened it.
    pub(super) fn judge_by_time(&mut self, gfid: Gfid, peer: BrickId) {
        self.queue_repair(RepairJob { request: None, probe: Fop::GetAttr { gfid }, peer, judge: true });
    }

    /// The repair has its turn in the order.
    pub(super) fn start_repair(&mut self, ticket: Ticket) {
        match &mut self.p.repair {
            Some(r) if r.ticket == ticket => r.started = true,
            _ => self.order.done(ticket),
        }
    }

    pub(super) fn advance_repair(&mut self) -> bool {
        if self.p.repair.is_none() {
            let Some(job) = self.p.repairs.pop_front() else { return false };
            let keys: Vec<_> = objects_of(&job.probe).into_iter().map(|g| (g, Exclusive)).collect();
            if self.is_frozen() {
                self.p.repairs.push_front(job);
                return false;
            }
            // A bitmap must not be cleared of what is healed meanwhile.
            self.p.checkpoint = None;
            let ticket = self.order.admit(&keys);
            self.tasks.insert(ticket, Task::Repair);
            self.p.repair = Some(Repair {
                job,
                ticket,
                started: false,
                asked: false,
                theirs: None,
                theirs_around: None,
                healer: None,
                heal: 0,
                calls: HealCalls::new(),
                began: self.now,
            });
            return true;
        }
        let Some(mut r) = self.p.repair.take() else { return false };
        let moved = self.move_repair(&mut r);
        if matches!(moved, Moved::Done) {
            self.order.done(r.ticket);
            if let Some(request) = r.job.request {
                self.again(request);
            }
            return true;
        }
        self.p.repair = Some(r);
        matches!(moved, Moved::Yes)
    }

    fn move_repair(&mut self, r: &mut Repair) -> Moved {
        if !self.others().contains(&r.job.peer) {
            return Moved::Done;
        }
        let objects = objects_of(&r.job.probe);
        if !r.started || objects.iter().any(|g| self.p.touch.contains_key(g)) {
            return Moved::No;
        }
        if !r.asked {
            r.asked = true;
            r.began = self.now;
            self.ask(r.job.peer, r.job.probe.clone(), Why::Repair { around: false });
            if let Fop::Lookup { parent, .. } = r.job.probe {
                self.ask(r.job.peer, Fop::GetAttr { gfid: parent }, Why::Repair { around: true });
            } else {
                r.theirs_around = Some(Err(Errno::ENOENT));
            }
            return Moved::Yes;
        }
        if r.healer.is_some() {
            return self.step_repair(r);
        }
        let (Some(theirs), Some(around)) = (&r.theirs, &r.theirs_around) else { return Moved::No };
        let mine = self.store.query(&r.job.probe);
        if agree(&mine, theirs) && r.job.judge {
            return Moved::Done;
        }
        let direction = if r.job.judge { self.who_is_right(&r.job.probe, &mine, theirs, around) } else { Direction::Push };
        let mut objects = objects;
        for side in [&mine, theirs] {
            if let Ok(Reply::Attr(a)) = side {
                objects.push(a.gfid);
            }
        }
        let right = if direction == Direction::Push { "this brick's" } else { "the other brick's" };
        self.note_damage(format!("{:?} differs from brick {}: {right} version is taken", r.job.probe, r.job.peer));
        if let (Direction::Pull, Some(j)) = (direction, &mut self.p.join) {
            j.changed_objects(&objects);
        }
        self.p.heals += 1;
        r.heal = self.p.heals;
        r.healer = Some(Healer::new(direction, HealPlan::objects(objects)));
        Moved::Yes
    }

    fn who_is_right(&mut self, probe: &Fop, mine: &FopResult, theirs: &FopResult, around: &FopResult) -> Direction {
        let attr = |r: &FopResult| if let Ok(Reply::Attr(a)) = r { Some(a.clone()) } else { None };
        let (my, their): (Option<Attr>, Option<Attr>) = match probe {
            Fop::Lookup { parent, .. } => (attr(&self.store.query(&Fop::GetAttr { gfid: *parent })), attr(around)),
            _ => (attr(mine), attr(theirs)),
        };
        match (my, their) {
            (Some(a), Some(b)) if a.mtime != b.mtime => {
                let known = self.p.set_times.get(&a.gfid).copied();
                if known == Some(a.mtime) {
                    Direction::Push
                } else if known == Some(b.mtime) || a.mtime > b.mtime {
                    Direction::Pull
                } else {
                    Direction::Push
                }
            }
            (Some(a), Some(b)) if a.kind == FileKind::File && a.size < b.size => Direction::Pull,
            (None, Some(_)) => Direction::Pull,
            (Some(_), Some(_)) if mine.is_err() && theirs.is_ok() => Direction::Pull,
            _ => Direction::Push,
        }
    }

    fn step_repair(&mut self, r: &mut Repair) -> Moved {
        let Some(healer) = &mut r.healer else { return Moved::Done };
        let store = &mut self.store;
        let step = healer.step(self.now, &mut |call| crate::heal::execute(store, call));
        while let Some((id, call)) = healer.poll_call() {
            self.send_call(&mut r.calls, HealRoute { to: r.job.peer, attempt: 0, heal: r.heal }, id, &call);
        }
        match step {
            Step::More => Moved::Yes,
            Step::Waiting => Moved::No,
            Step::Finished => {
                if let Some(Err(e)) = healer.finished() {
                    self.note_damage(format!("repair with brick {} failed: {e}", r.job.peer));
                }
                Moved::Done
            }
        }
    }

    /// True when the answer belonged to the repair in hand.
    pub(super) fn repair_return(&mut self, from: BrickId, tag: super::HealTag, result: &crate::heal::HealResult) -> bool {
        let Some(r) = &mut self.p.repair else { return false };
        if r.heal != tag.heal || r.job.peer != from {
            return false;
        }
        if r.calls.remove(&tag.id).is_some()
            && let Some(h) = &mut r.healer
        {
            h.on_return(tag.id, result.clone());
        }
        true
    }

    /// A new epoch: asks of bricks that left are answered by those that stayed, or by us alone.
    pub(super) fn asks_in_new_epoch(&mut self) {
        for ask in std::mem::take(&mut self.p.asks).into_values() {
            match ask.why {
                Why::Confirm { request, .. } => {
                    self.p.by_op.remove(&(request.session, request.op));
                    self.p.room.push_back(request);
                }
                Why::Repair { .. } => {
                    if let Some(r) = &mut self.p.repair {
                        r.asked = false;
                    }
                }
            }
        }
        if let Some(r) = &mut self.p.repair {
            // Calls of the old epoch will be refused: start the heal over.
            r.asked = false;
            r.healer = None;
            r.calls.clear();
            (r.theirs, r.theirs_around) = (None, None);
        }
    }
}

enum Moved {
    Yes,
    No,
    Done,
}

fn objects_of(probe: &Fop) -> Vec<Gfid> {
    super::primary::keys(probe).into_iter().map(|k| k.0).collect()
}

