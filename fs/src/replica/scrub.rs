//! Scrub: everything is compared with each other in-sync brick while the volume is in use; what looks damaged is
//! looked at again, some objects at a time, while changes stand still, and what then is decided is healed.

use super::heal_calls::{HealCalls, HealRoute, overdue};
use super::join::FREEZE_MAX;
use super::types::{BrickId, HealInfo, HealTag};
use super::{Disk, ReplicaCore, Role};
use crate::fop::Gfid;
use crate::heal::scrub::{Doubt, ScrubReport, Scrubber, Verdict};
use crate::heal::{Direction, HealCall, HealPlan, HealResult, Healer, Step, heal_objects};
use brickraft_engine::types::Time;
use std::collections::VecDeque;

/// So often a scrub that goes before a heal may be given up.
const FAILED_MAX: u32 = 3;
/// Suspects that are looked at in one freeze.
const PORTION: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Look,
    Draining,
    Again,
    Healing,
}

/// A scrub at the primary.
pub(super) struct Scrub {
    peer: BrickId,
    left: Vec<BrickId>,
    stage: Stage,
    scrubber: Option<Scrubber>,
    healers: VecDeque<Healer>,
    suspects: VecDeque<Gfid>,
    pub heal: u64,
    calls: HealCalls,
    began: Time,
    frozen_at: Time,
    healed: u64,
    /// There were more findings than a report lists.
    left_out: bool,
    /// This brick lost what it was about to take away from that one, which is healed afterwards.
    pub goes_first: Option<BrickId>,
}

impl Scrub {
    pub const fn is_frozen(&self) -> bool {
        !matches!(self.stage, Stage::Look)
    }

    pub fn info(&self, now: Time) -> HealInfo {
        let (done, left) = self.scrubber.as_ref().map_or((0, 0), Scrubber::units);
        HealInfo {
            brick: self.peer,
            state: "scrub".to_owned(),
            buckets_done: done,
            buckets_left: left,
            objects: self.healed,
            bytes: 0,
            elapsed_us: u64::try_from(now.since(self.began).as_micros()).unwrap_or(u64::MAX),
        }
    }
}

impl<S: Disk> ReplicaCore<S> {
    /// Begins a scrub, unless one runs, a brick is being healed, or there is nobody to compare with.
    /// `goes_first`: see there.
    pub(super) fn begin_scrub(&mut self, goes_first: Option<BrickId>) {
        if self.role != Role::Primary || !self.p.serving || self.p.join.is_some() || self.p.scrub.is_some() {
            return;
        }
        let mut left = self.others();
        let Some(peer) = left.pop() else { return };
        self.p.heals += 1;
        self.p.scrub = Some(Scrub {
            peer,
            left,
            stage: Stage::Look,
            scrubber: Some(Scrubber::new(HealPlan::full(), true)),
            healers: VecDeque::new(),
            suspects: VecDeque::new(),
            heal: self.p.heals,
            calls: HealCalls::new(),
            began: self.now,
            frozen_at: self.now,
            healed: 0,
            goes_first,
            left_out: false,
        });
    }

    pub(super) fn advance_scrub(&mut self) -> bool {
        let Some(mut s) = self.p.scrub.take() else { return false };
        let step = self.step_scrub(&mut s);
        self.heal_busy |= step == Some(Step::More);
        let Some(step) = step else {
            // What cannot be compared must not keep a brick away for ever.
            self.p.scrubs_failed += 1;
            if self.p.scrubs_failed >= FAILED_MAX {
                (self.p.compared, self.p.lost_some) = (s.goes_first, false);
            }
            return true;
        };
        let moved = step == Step::Finished && self.next_scrub_stage(&mut s);
        if moved || step != Step::Finished {
            self.p.scrub = Some(s);
        } else {
            (self.p.scrubs_failed, self.p.lost_some) = (0, false);
            self.p.compared = s.goes_first.filter(|_| !s.left_out || s.healed == 0);
        }
        moved
    }

    /// `None`: the scrub is given up.
    fn step_scrub(&mut self, s: &mut Scrub) -> Option<Step> {
        if s.stage == Stage::Draining {
            if self.now.since(s.frozen_at) > FREEZE_MAX {
                return None;
            }
            return Some(if self.is_drained() { Step::Finished } else { Step::Waiting });
        }
        let store = &mut self.store;
        let mut local = |call: &HealCall| crate::heal::execute(store, call);
        let mut calls = Vec::new();
        let (step, outcome) = if let Some(scrubber) = &mut s.scrubber {
            let step = scrubber.step(&mut local);
            calls.extend(std::iter::from_fn(|| scrubber.poll_call()));
            (step, scrubber.finished())
        } else if let Some(healer) = s.healers.front_mut() {
            let step = healer.step(self.now, &mut local);
            calls.extend(std::iter::from_fn(|| healer.poll_call()));
            (step, healer.finished())
        } else {
            return Some(Step::Finished);
        };
        for (id, call) in calls {
            self.send_call(&mut s.calls, HealRoute { to: s.peer, attempt: 0, heal: s.heal }, id, &call);
        }
        if let Some(Err(e)) = outcome {
            self.note_damage(format!("scrub with brick {} failed: {e}", s.peer));
            return None;
        }
        Some(step)
    }

    /// The stage is over. False: so is the scrub.
    fn next_scrub_stage(&mut self, s: &mut Scrub) -> bool {
        s.calls.clear();
        self.p.heals += 1;
        s.heal = self.p.heals;
        match s.stage {
            Stage::Look => {
                let report = s.scrubber.take().map(|x| x.report()).unwrap_or_default();
                s.left_out |= report.findings_left_out > 0;
                s.suspects = report.findings.iter().map(|f| f.gfid).collect();
                self.next_portion(s)
            }
            Stage::Draining => {
                s.stage = Stage::Again;
                let count = s.suspects.len().min(PORTION);
                let portion: Vec<_> = s.suspects.drain(..count).collect();
                s.scrubber = Some(Scrubber::new(HealPlan::objects(portion), true));
                true
            }
            Stage::Again => {
                s.stage = Stage::Healing;
                let report = s.scrubber.take().map(|x| x.report()).unwrap_or_default();
                self.plan_repairs(s, &report);
                true
            }
            Stage::Healing => {
                s.healers.pop_front();
                !s.healers.is_empty() || self.next_portion(s)
            }
        }
    }

    fn next_portion(&mut self, s: &mut Scrub) -> bool {
        if !s.suspects.is_empty() {
            s.stage = Stage::Draining;
            s.frozen_at = self.now;
            return true;
        }
        let Some(peer) = s.left.pop() else { return false };
        s.peer = peer;
        s.stage = Stage::Look;
        s.scrubber = Some(Scrubber::new(HealPlan::full(), true));
        true
    }

    fn plan_repairs(&mut self, s: &mut Scrub, report: &ScrubReport) {
        for f in report.undecided() {
            if f.verdict == Verdict::Undecidable(Doubt::NoWitness) {
                self.judge_by_time(f.gfid, s.peer);
            }
            self.note_damage(format!("{} differs from brick {} ({:?}), and no signature says who is right", f.gfid, s.peer, f.difference));
        }
        // A bitmap must not be cleared of what is healed meanwhile.
        self.p.checkpoint = None;
        for (direction, items) in report.repairs() {
            if items.is_empty() {
                continue;
            }
            let whose = if direction == Direction::Push { "this brick's" } else { "the other brick's" };
            self.note_damage(format!("scrub: {} objects differ from brick {}; {whose} version is taken", items.len(), s.peer));
            s.healed += items.len() as u64;
            s.healers.push_back(heal_objects(direction, items));
        }
    }

    pub(super) fn tick_scrub(&mut self) {
        if self.p.lost_some && self.p.scrub.is_none() {
            // Others in sync may have what was lost, or lack what came back.
            self.begin_scrub(None);
        }
        let Some(s) = &mut self.p.scrub else { return };
        let route = HealRoute { to: s.peer, attempt: 0, heal: s.heal };
        for (id, call) in overdue(&mut s.calls, self.now, self.timing.retransmit) {
            self.send_heal(route, id, call);
        }
    }

    /// True when the answer belonged to the scrub.
    pub(super) fn scrub_return(&mut self, from: BrickId, tag: HealTag, result: &HealResult) -> bool {
        let Some(s) = &mut self.p.scrub else { return false };
        if s.peer != from || s.heal != tag.heal {
            return false;
        }
        if s.calls.remove(&tag.id).is_some() {
            if let Some(scrubber) = &mut s.scrubber {
                scrubber.on_return(tag.id, result.clone());
            } else if let Some(healer) = s.healers.front_mut() {
                healer.on_return(tag.id, result.clone());
            }
        }
        true
    }
}
