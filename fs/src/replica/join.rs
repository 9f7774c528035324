//! How a brick comes (back) into the in-sync set, on both sides.
//!
//! The brick asks with its dirty bitmap. The primary heals it while changes go on, remembers what they touch,
//! and heals that, in rounds. When a round is small it *freezes*: changes wait, those in flight end, the last
//! round runs, the reply table goes over, the brick syncs its disk, and the primary proposes it. Changes go on
//! when the outcome is certain: once the proposal has left, only a new epoch can end the freeze, since else
//! the brick could be declared in sync while it lacks a change.

use super::heal_calls::{HealCalls, HealRoute, overdue};
use super::flight::Flight;
use super::types::{BrickId, GroupConfig, HealTag, Identity, PeerMsg, RepOp, ReplyTable};
use super::{DataTask, Disk, ReplicaCore, Task};
use crate::fop::{Bucket, Fop, Gfid};
use crate::heal::{Direction, HealItem, HealPlan, HealResult, Healer, Loss, Step};
use crate::store::{BucketSet, DataDone, DataOp};
use brickraft_engine::types::Time;
use bytes::Bytes;
use rand::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A round that has at most this many objects left is done under freeze.
const FREEZE_OBJECTS_MAX: usize = 64;
/// After this many rounds it freezes anyway.
const ROUNDS_MAX: u32 = 12;
/// A freeze that lasts longer is lifted, and another round begins.
pub(super) const FREEZE_MAX: Duration = Duration::from_secs(10);
/// More changed objects than this are remembered by bucket.
const CHANGES_MAX: usize = 65_536;

/// How far a join is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    Bulk,
    CatchUp,
    /// Frozen; ops in flight end.
    Draining,
    /// Frozen; the last round.
    Last,
    /// Frozen; the brick syncs.
    Syncing,
    /// Frozen; proposed.
    Proposing,
    /// Frozen; proposed, and given up: only a new epoch can tell.
    Lost,
}

/// A join at the primary.
pub(super) struct Join {
    pub brick: BrickId,
    attempt: u64,
    incarnation: u64,
    pub stage: Stage,
    healer: Option<Healer>,
    pub heal: u64,
    calls: HealCalls,
    changes: BTreeMap<Gfid, HealItem>,
    changed_buckets: BTreeSet<Bucket>,
    rounds: u32,
    pub began: Time,
    frozen_at: Time,
    heard: Time,
    ready_sent: Time,
    /// Of the rounds that are over.
    pub done: (u64, u64),
    loss: Loss,
}

impl Join {
    /// Remembers what a change touched.
    pub fn changed(&mut self, f: &Flight) {
        let RepOp::Fop { fop, .. } = &f.rep else { return self.changed_objects(&f.touches) };
        match fop {
            Fop::Write { gfid, offset } => {
                let end = offset.saturating_add(f.payload.len() as u64);
                add_range(&mut self.changes.entry(*gfid).or_default().data, (*offset, end));
            }
            Fop::SetAttr { gfid, .. } | Fop::Fallocate { gfid, .. } => self.changed_objects(&[*gfid]),
            _ => {
                for &g in &f.touches {
                    self.changes.entry(g).or_default().names = true;
                }
            }
        }
        self.bound();
    }

    pub fn changed_objects(&mut self, objects: &[Gfid]) {
        for &g in objects {
            self.changes.insert(g, HealItem::whole());
        }
        self.bound();
    }

    fn bound(&mut self) {
        if self.changes.len() > CHANGES_MAX {
            self.changed_buckets.extend(std::mem::take(&mut self.changes).into_keys().map(Gfid::bucket));
        }
    }

    fn take_plan(&mut self) -> HealPlan {
        HealPlan {
            buckets: std::mem::take(&mut self.changed_buckets).into_iter().collect(),
            items: std::mem::take(&mut self.changes),
            nameless: Vec::new(),
        }
    }

    pub fn progress(&self, now: Time) -> crate::heal::Progress {
        self.healer.as_ref().map(|h| h.progress(now)).unwrap_or_default()
    }

    const fn is_frozen(&self) -> bool {
        !matches!(self.stage, Stage::Bulk | Stage::CatchUp)
    }
}

/// Adds a range to sorted ranges that do not touch.
fn add_range(ranges: &mut Vec<(u64, u64)>, mut new: (u64, u64)) {
    ranges.retain(|&(start, end)| {
        let apart = end < new.0 || start > new.1;
        if !apart {
            new = (new.0.min(start), new.1.max(end));
        }
        apart
    });
    let at = ranges.partition_point(|r| r.0 < new.0);
    ranges.insert(at, new);
}

/// What a brick has while it is not in sync.
pub(super) struct Outsider {
    pub attempt: u64,
    sent: Time,
    ready: Option<Ready>,
}

struct Ready {
    primary: (BrickId, Option<u64>),
    seq: u64,
    replies: ReplyTable,
    synced: bool,
}

impl Outsider {
    pub const fn new(attempt: u64) -> Self {
        Self { attempt, sent: Time(0), ready: None }
    }

    /// What the primary handed over, when the brick is in sync by now without having noticed.
    pub fn ready_replies(&mut self) -> Option<ReplyTable> {
        self.ready.take().map(|r| r.replies)
    }
}

// The primary's side.
impl<S: Disk> ReplicaCore<S> {
    pub(super) fn is_frozen(&self) -> bool {
        self.p.join.as_ref().is_some_and(Join::is_frozen) || self.p.scrub.as_ref().is_some_and(super::scrub::Scrub::is_frozen)
    }

    /// Under freeze: nothing changes any more, here or elsewhere.
    pub(super) fn is_drained(&self) -> bool {
        let changing = self.tasks.values().any(|t| !matches!(t, Task::Query(_)));
        !changing && !self.is_writing() && self.p.flights.is_empty() && self.p.repair.is_none()
    }

    pub(super) fn on_join(&mut self, from: BrickId, identity: Identity, attempt: u64, payload: &Bytes) {
        if self.role != super::Role::Primary || !self.p.serving {
            return;
        }
        if identity.epoch != self.group.epoch {
            return self.send(from, PeerMsg::Config(self.group.clone()));
        }
        if self.group.in_sync.contains(&from) {
            // It says itself that it is not.
            self.p.suspects.insert(from, true);
            return;
        }
        if let Some(j) = &mut self.p.join {
            let same = j.brick == from && j.attempt == attempt;
            if same {
                j.heard = self.now;
            }
            if same || j.brick != from || j.stage >= Stage::Proposing {
                return;
            }
        }
        if self.p.scrub.as_ref().is_some_and(|s| s.goes_first.is_some()) {
            return;
        }
        let Some(mut dirty) = BucketSet::from_bytes(payload) else { return };
        let recorded = self.group.incarnations.get(&from).copied().unwrap_or(0);
        let partial = !self.heal_full && identity.synced_epoch == self.meta.synced_epoch && identity.held == recorded;
        let mut plan = if partial {
            dirty.union_with(self.store.dirty());
            HealPlan::buckets(dirty.iter())
        } else {
            HealPlan::full()
        };
        plan.nameless = self.store.orphans().unwrap_or_default();
        // What this brick lost behind its back is not to be lost at the other one too. A third one in sync is asked first, since it
        // has the newer version; what is lost after that, it lacks too.
        let compared = self.p.compared.take_if(|b| *b == from).is_some();
        let loss = if self.others().is_empty() || compared { Loss::Restore } else { Loss::Refuse };
        if let Err(e) = self.store.heal_swept(true) {
            // What is not known to be lost would be taken away.
            return self.note_damage(format!("cannot put back what has no name, so brick {from} is not healed: {e}"));
        }
        tracing::info!(brick = from, partial, mark = self.meta.synced_epoch, buckets = ?plan.buckets, "heal begins");
        // A brick that comes back goes before a scrub.
        self.p.scrub = None;
        self.p.checkpoint = None;
        self.p.heals += 1;
        self.p.join = Some(Join {
            brick: from,
            attempt,
            incarnation: identity.incarnation,
            stage: Stage::Bulk,
            healer: Some(Healer::guarded(Direction::Push, plan, loss)),
            loss,
            heal: self.p.heals,
            calls: HealCalls::new(),
            changes: BTreeMap::new(),
            changed_buckets: BTreeSet::new(),
            rounds: 0,
            began: self.now,
            frozen_at: self.now,
            heard: self.now,
            ready_sent: Time(0),
            done: (0, 0),
        });
        // Flights that are under way have changed this disk, or will; they never go to the brick.
        let flights: Vec<_> = self.p.flights.values().flat_map(|f| f.touches.iter().copied()).collect();
        if let Some(j) = &mut self.p.join {
            j.changed_objects(&flights);
        }
    }

    pub(super) fn advance_join(&mut self) -> bool {
        let Some(mut j) = self.p.join.take() else {
            self.heal_busy = false;
            return false;
        };
        let moved = self.move_join(&mut j);
        self.heal_busy = moved == Some(true) && j.healer.is_some();
        if moved.is_some() {
            self.p.join = Some(j);
        }
        // A heal gives way to requests: its next slice comes with the next event or timer.
        moved == Some(true) && !self.heal_busy
    }

    /// `None`: given up. `Some(true)`: something moved.
    fn move_join(&mut self, j: &mut Join) -> Option<bool> {
        if j.healer.is_some() {
            return self.step_join(j);
        }
        match j.stage {
            Stage::Bulk | Stage::CatchUp => {
                j.rounds += 1;
                if (j.changes.len() > FREEZE_OBJECTS_MAX || !j.changed_buckets.is_empty()) && j.rounds < ROUNDS_MAX {
                    j.stage = Stage::CatchUp;
                    self.begin_round(j);
                } else {
                    j.stage = Stage::Draining;
                    j.frozen_at = self.now;
                }
                Some(true)
            }
            Stage::Draining => {
                if !self.is_drained() {
                    return Some(false);
                }
                j.stage = Stage::Last;
                self.begin_round(j);
                Some(true)
            }
            Stage::Last => {
                j.stage = Stage::Syncing;
                self.send_join_ready(j);
                Some(true)
            }
            Stage::Syncing | Stage::Proposing | Stage::Lost => Some(false),
        }
    }

    fn begin_round(&mut self, j: &mut Join) {
        let mut plan = j.take_plan();
        if !plan.buckets.is_empty() {
            plan.nameless = self.store.orphans().unwrap_or_default();
        }
        j.healer = (!plan.is_empty()).then(|| Healer::guarded(Direction::Push, plan, j.loss));
        j.calls.clear();
        self.p.heals += 1;
        j.heal = self.p.heals;
    }

    fn step_join(&mut self, j: &mut Join) -> Option<bool> {
        let Some(healer) = &mut j.healer else { return Some(false) };
        let store = &mut self.store;
        let step = healer.step(self.now, &mut |call| crate::heal::execute(store, call));
        while let Some((id, call)) = healer.poll_call() {
            self.send_call(&mut j.calls, HealRoute { to: j.brick, attempt: j.attempt, heal: j.heal }, id, &call);
        }
        if step != Step::Finished {
            return Some(step == Step::More);
        }
        let progress = healer.progress(self.now);
        j.done = (j.done.0 + progress.objects_healed, j.done.1 + progress.bytes_sent);
        let outcome = healer.finished();
        j.healer = None;
        self.p.lost_some |= (progress.lost_some || progress.objects_restored > 0) && !self.others().is_empty();
        if progress.objects_restored > 0 {
            let (n, brick) = (progress.objects_restored, j.brick);
            self.note_damage(format!("{n} names were gone from this brick's directory, and came back from brick {brick}"));
        }
        match outcome {
            Some(Err(_)) if progress.refused => {
                self.note_damage(format!("names are gone from this brick's directory; it is compared before brick {} is healed", j.brick));
                self.begin_scrub(Some(j.brick));
                return None;
            }
            Some(Err(e)) => {
                self.note_damage(format!("heal of brick {} failed: {e}", j.brick));
                return None;
            }
            _ => {}
        }
        if progress.unresolved > 0 && j.stage == Stage::Last {
            // Names outside the plan hold what should go: only a comparison of everything settles that.
            j.stage = Stage::CatchUp;
            j.changed_buckets = (0..=u16::MAX).map(Bucket).collect();
            tracing::info!(brick = j.brick, unresolved = progress.unresolved, "heal goes over everything");
        }
        Some(true)
    }

    fn send_join_ready(&mut self, j: &mut Join) {
        j.ready_sent = self.now;
        let replies = self.sessions.table();
        let orphans = self.store.orphans().unwrap_or_default();
        let msg = PeerMsg::JoinReady { epoch: self.group.epoch, attempt: j.attempt, seq: self.p.seq, orphans, replies };
        self.send(j.brick, msg);
    }

    pub(super) fn on_join_ready_done(&mut self, from: BrickId, attempt: u64, seq: u64) {
        let current = self.p.seq;
        let Some(j) = &mut self.p.join else { return };
        if j.brick == from && j.attempt == attempt && j.stage == Stage::Syncing && seq == current {
            j.stage = Stage::Proposing;
            self.proposal = None;
        }
    }

    pub(super) fn join_return(&mut self, from: BrickId, tag: HealTag, result: &HealResult) -> bool {
        let Some(j) = &mut self.p.join else { return false };
        if j.brick != from || j.attempt != tag.attempt || j.heal != tag.heal {
            return false;
        }
        j.heard = self.now;
        if j.calls.remove(&tag.id).is_some()
            && let Some(h) = &mut j.healer
        {
            h.on_return(tag.id, result.clone());
        }
        true
    }

    pub(super) fn tick_join(&mut self) {
        let Some(mut j) = self.p.join.take() else { return };
        let (now, pause) = (self.now, self.timing.retransmit);
        for (id, call) in overdue(&mut j.calls, now, pause) {
            self.send_heal(HealRoute { to: j.brick, attempt: j.attempt, heal: j.heal }, id, call);
        }
        if j.stage == Stage::Syncing && now.since(j.ready_sent) >= pause {
            self.send_join_ready(&mut j);
        }
        if j.is_frozen() && j.stage < Stage::Proposing && now.since(j.frozen_at) > FREEZE_MAX {
            j.stage = Stage::CatchUp;
        }
        let lost = now.since(j.heard) > self.timing.peer_timeout * 4 && !(j.stage == Stage::Syncing && now.since(j.heard) < FREEZE_MAX);
        self.p.join = Some(j);
        if lost {
            let brick = self.p.join.as_ref().map_or(0, |j| j.brick);
            self.join_lost(brick);
        }
    }

    /// The brick that is healed is gone.
    pub(super) fn join_lost(&mut self, brick: BrickId) {
        if let Some(j) = &mut self.p.join
            && j.brick == brick
        {
            if j.stage >= Stage::Proposing {
                j.stage = Stage::Lost;
            } else {
                self.p.join = None;
            }
        }
    }

    /// What the primary wants with the join taken in: `base` is what it wants without it.
    pub(super) fn wanted_by_join(&self, base: Option<GroupConfig>) -> Option<GroupConfig> {
        let Some(j) = &self.p.join else { return base };
        let plain = || GroupConfig { epoch: self.group.epoch + 1, ..self.group.clone() };
        match j.stage {
            Stage::Proposing => {
                let mut new = base.unwrap_or_else(plain);
                new.in_sync.push(j.brick);
                new.incarnations.insert(j.brick, j.incarnation);
                Some(new)
            }
            Stage::Lost => Some(base.unwrap_or_else(plain)),
            _ => base,
        }
    }

    pub(super) fn join_in_new_epoch(&mut self) {
        if let Some(j) = self.p.join.take() {
            let taken = self.group.holds(j.brick, j.incarnation);
            tracing::info!(brick = j.brick, taken, "heal ends with the epoch");
            if taken {
                self.heal_full = false;
                // So that the full heal that a missing mark means is soon behind us.
                self.p.checkpoint_at = Time(0);
            }
        }
    }
}

// The joining brick's side.
impl<S: Disk> ReplicaCore<S> {
    pub(super) fn new_attempt(&mut self) {
        self.o = Outsider::new(self.rng.random::<u64>() | 1);
    }

    pub(super) fn tick_outsider(&mut self) {
        if self.now.since(self.o.sent) < self.timing.hello {
            return;
        }
        if self.group.epoch == 0 || self.group.in_sync.contains(&self.brick) {
            if self.say_hello(self.o.sent) {
                self.o.sent = self.now;
            }
            return;
        }
        // Without a lease it would soon be taken out again. And a write of before that still runs would go over what is healed.
        if self.leaving || self.wiped || self.now >= self.lease || self.is_writing() {
            return;
        }
        self.o.sent = self.now;
        let msg = PeerMsg::Join { identity: self.identity(), attempt: self.o.attempt };
        let dirty = Bytes::from(self.store.dirty().to_bytes());
        self.send_with(self.group.primary, msg, dirty);
    }

    /// Keeps the nameless files that the primary keeps, and drops others.
    pub(super) fn drop_other_orphans(&mut self, keep: &[Gfid]) {
        for &gfid in keep {
            if let Err(e) = self.store.heal_orphan(gfid) {
                self.note_damage(format!("cannot keep the nameless file {gfid}: {e}"));
            }
        }
        for gfid in self.store.orphans().unwrap_or_default() {
            if !keep.contains(&gfid)
                && let Err(e) = self.store.keep_orphan(gfid, false)
            {
                self.note_damage(format!("cannot drop the nameless file {gfid}: {e}"));
            }
        }
    }

    pub(super) fn on_join_ready(&mut self, attempt: u64, seq: u64, orphans: &[Gfid], replies: ReplyTable) {
        if self.role != super::Role::Outsider || attempt != self.o.attempt {
            return;
        }
        if self.o.ready.as_ref().is_some_and(|r| r.seq == seq) {
            if self.o.ready.as_ref().is_some_and(|r| r.synced) {
                self.send(self.group.primary, PeerMsg::JoinReadyDone { epoch: self.group.epoch, attempt, seq });
            }
            return;
        }
        if !self.offer() {
            return;
        }
        self.drop_other_orphans(orphans);
        let primary = (self.group.primary, self.group.incarnations.get(&self.group.primary).copied());
        self.o.ready = Some(Ready { primary, seq, replies, synced: false });
        self.submit(DataTask::JoinSync(seq), DataOp::SyncAll);
    }

    pub(super) fn join_synced(&mut self, seq: u64, done: DataDone) {
        if !matches!(done, DataDone::Synced(Ok(()))) {
            return self.note_damage(format!("cannot sync the brick: {done:?}"));
        }
        let (epoch, attempt) = (self.group.epoch, self.o.attempt);
        let Some(r) = &mut self.o.ready else { return };
        if r.seq == seq {
            r.synced = true;
            self.send(self.group.primary, PeerMsg::JoinReadyDone { epoch, attempt, seq });
        }
    }

    /// The configuration says that this brick is in sync, and it follows.
    pub(super) fn joined(&mut self) {
        self.s = super::secondary::Secondary::default();
        let Some(ready) = self.o.ready.take() else { return };
        self.sessions.replace_table(ready.replies);
        let primary = (self.group.primary, self.group.incarnations.get(&self.group.primary).copied());
        if ready.primary == primary {
            self.s.next = Some(ready.seq + 1);
        }
        self.new_attempt();
    }
}
