//! A new primary: makes the other in-sync bricks equal to itself in all that was in flight, then serves.

use super::heal_calls::{HealCalls, HealRoute, overdue};
use super::types::{BrickId, HealTag, PeerMsg, ReplyTable};
use super::{Disk, ReplicaCore};
use crate::fop::Gfid;
use crate::heal::{Direction, HealPlan, HealResult, Healer, Step};
use brickraft_engine::types::Time;
use bytes::Bytes;
use std::collections::BTreeSet;

/// How far a take-over is.
pub(super) struct TakeOver {
    /// Bricks whose list is still missing.
    asked: BTreeSet<BrickId>,
    /// What may differ between any two bricks.
    objects: BTreeSet<Gfid>,
    /// Bricks to be made equal, one after the other.
    heal: Vec<BrickId>,
    healer: Option<(BrickId, u64, Healer)>,
    calls: HealCalls,
    /// Bricks that have not said that they follow.
    telling: BTreeSet<BrickId>,
    began: Time,
    sent: Time,
    asking: bool,
}

impl TakeOver {
    /// The number of the heal in hand.
    pub fn heal(&self) -> Option<u64> {
        self.healer.as_ref().map(|h| h.1)
    }

    pub fn waits_for(&self, brick: BrickId) -> Option<Time> {
        let healing = self.healer.as_ref().is_some_and(|h| h.0 == brick);
        ((self.asking && self.asked.contains(&brick)) || self.telling.contains(&brick) || healing).then_some(self.began)
    }
}

impl<S: Disk> ReplicaCore<S> {
    pub(super) fn begin_take_over(&mut self) {
        let others: BTreeSet<_> = self.others().into_iter().collect();
        let objects = std::mem::take(&mut self.s.recent).into_values().flatten().collect();
        self.p.take_over = Some(TakeOver {
            asked: others.clone(),
            objects,
            heal: others.into_iter().collect(),
            healer: None,
            calls: HealCalls::new(),
            telling: BTreeSet::new(),
            began: self.now,
            sent: Time(0),
            asking: false,
        });
    }

    /// A brick left while this one takes over.
    pub(super) fn take_over_in_new_epoch(&mut self) {
        let others = self.others();
        let Some(t) = &mut self.p.take_over else { return };
        // Everything is asked and told again: the others refuse what was said in the old epoch.
        t.asked = others.iter().copied().collect();
        t.heal = others;
        t.healer = None;
        t.calls.clear();
        t.telling.clear();
        t.asking = false;
        t.began = self.now;
    }

    pub(super) fn on_recent(&mut self, from: BrickId, objects: Vec<Gfid>) {
        let Some(t) = &mut self.p.take_over else { return };
        if t.asked.remove(&from) {
            t.objects.extend(objects);
            t.began = self.now;
        }
    }

    pub(super) fn on_took_over_done(&mut self, from: BrickId) {
        if let Some(t) = &mut self.p.take_over {
            t.telling.remove(&from);
        }
    }

    pub(super) fn advance_take_over(&mut self) -> bool {
        if self.p.take_over.is_none() || self.is_writing() {
            return false;
        }
        let Some(mut t) = self.p.take_over.take() else { return false };
        let (moved, finished) = self.move_take_over(&mut t);
        if finished {
            self.p.serving = true;
            tracing::info!(brick = self.brick, epoch = self.group.epoch, objects = t.objects.len(), "serves as primary");
        } else {
            self.p.take_over = Some(t);
        }
        moved || finished
    }

    fn move_take_over(&mut self, t: &mut TakeOver) -> (bool, bool) {
        if !t.asking {
            t.asking = true;
            t.sent = self.now;
            for &brick in &t.asked {
                self.send(brick, PeerMsg::TakeOver { epoch: self.group.epoch });
            }
        }
        if !t.asked.is_empty() {
            return (false, false);
        }
        if let Some((brick, heal, healer)) = &mut t.healer {
            let (brick, heal, store) = (*brick, *heal, &mut self.store);
            let step = healer.step(self.now, &mut |call| crate::heal::execute(store, call));
            while let Some((id, call)) = healer.poll_call() {
                self.send_call(&mut t.calls, HealRoute { to: brick, attempt: 0, heal }, id, &call);
            }
            if step != Step::Finished {
                return (step == Step::More, false);
            }
            let failed = !matches!(healer.finished(), Some(Ok(()))) || healer.progress(self.now).unresolved > 0;
            t.healer = None;
            t.calls.clear();
            if failed {
                // What cannot be made equal is not in sync.
                self.p.suspects.insert(brick, true);
                return (false, false);
            }
            self.tell(t, brick);
            return (true, false);
        }
        if let Some(brick) = t.heal.pop() {
            if t.objects.is_empty() {
                self.tell(t, brick);
            } else {
                self.p.heals += 1;
                let healer = Healer::new(Direction::Push, HealPlan::objects(t.objects.iter().copied()));
                t.healer = Some((brick, self.p.heals, healer));
                t.began = self.now;
            }
            return (true, false);
        }
        (false, t.telling.is_empty())
    }

    fn tell(&mut self, t: &mut TakeOver, brick: BrickId) {
        t.telling.insert(brick);
        t.began = self.now;
        let msg = self.took_over();
        self.send(brick, msg);
    }

    fn took_over(&mut self) -> PeerMsg {
        let orphans = self.store.orphans().unwrap_or_default();
        PeerMsg::TookOver { epoch: self.group.epoch, seq: self.p.seq, orphans, replies: self.sessions.table() }
    }

    pub(super) fn tick_take_over(&mut self) {
        let (now, epoch, pause) = (self.now, self.group.epoch, self.timing.retransmit);
        let again = self.p.take_over.as_ref().is_some_and(|t| t.asking && now.since(t.sent) >= pause && !t.telling.is_empty());
        let told = again.then(|| self.took_over());
        let Some(t) = &mut self.p.take_over else { return };
        if !t.asking || now.since(t.sent) < pause {
            return;
        }
        t.sent = now;
        let mut again: Vec<(BrickId, PeerMsg, Bytes)> = Vec::new();
        again.extend(t.asked.iter().map(|&b| (b, PeerMsg::TakeOver { epoch }, Bytes::new())));
        again.extend(told.iter().flat_map(|m| t.telling.iter().map(|&b| (b, m.clone(), Bytes::new()))));
        let calls = t.healer.as_ref().map(|(brick, heal, _)| {
            let route = HealRoute { to: *brick, attempt: 0, heal: *heal };
            (route, overdue(&mut t.calls, now, pause))
        });
        for (to, msg, payload) in again {
            self.send_with(to, msg, payload);
        }
        if let Some((route, calls)) = calls {
            calls.into_iter().for_each(|(id, call)| self.send_heal(route, id, call));
        }
    }

    /// True when the answer belonged to the take-over.
    pub(super) fn take_over_return(&mut self, from: BrickId, tag: HealTag, result: &HealResult) -> bool {
        let Some(t) = &mut self.p.take_over else { return false };
        let Some((brick, heal, healer)) = &mut t.healer else { return false };
        if *brick != from || *heal != tag.heal {
            return false;
        }
        if t.calls.remove(&tag.id).is_some() {
            t.began = self.now;
            healer.on_return(tag.id, result.clone());
        }
        true
    }

    /// The secondary's side: the new primary has made us equal.
    pub(super) fn on_took_over(&mut self, seq: u64, orphans: &[Gfid], replies: ReplyTable) {
        if self.s.next.is_none() {
            self.drop_other_orphans(orphans);
            self.s.next = Some(seq + 1);
            self.s.asked = false;
            self.s.recent.clear();
            self.sessions.replace_table(replies);
        }
        self.send(self.group.primary, PeerMsg::TookOverDone { epoch: self.group.epoch });
    }
}
