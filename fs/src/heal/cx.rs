//! What the parts of a heal share: the way to both bricks, the plan, the counts, and what is still to be looked at.

use super::calls::{HealCall, HealReturn, NameEntry, ObjectInfo, Place, STRANGER};
use super::healer::{Direction, HealPlan, Progress};
use super::loss::Loss;
use super::wire::{self, Side, Wire};
use crate::fop::{Errno, Gfid};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most directories that are remembered as being in their place.
const VERIFIED_MAX: usize = 1 << 18;

#[derive(Default)]
pub(super) struct State {
    /// Directories of the target whose parent and name are the source's. Such a one is only ever moved to limbo, so a
    /// chain of them is a chain of the source and has no cycle.
    pub verified: BTreeSet<Gfid>,
    /// Directories whose times must be restored at the end.
    pub touched: BTreeSet<Gfid>,
    /// Objects outside the plan to look at; true: wholly (the target did not have it).
    pub extra: BTreeMap<Gfid, bool>,
    /// Objects that only the target has.
    pub gone: BTreeSet<Gfid>,
    /// Names that the source lost: the object, the directory that they were in, the name.
    pub lost: BTreeSet<(Gfid, Gfid, NameEntry)>,
    /// Objects that the source had lost and has again.
    pub restored: BTreeSet<Gfid>,
}

#[derive(Clone)]
pub(super) struct Cx {
    pub wire: Wire,
    pub source: Side,
    pub target: Side,
    pub plan: Arc<HealPlan>,
    pub loss: Loss,
    state: Arc<Mutex<State>>,
    counts: Arc<Mutex<Progress>>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cx {
    pub fn new(wire: Wire, direction: Direction, plan: HealPlan, counts: Arc<Mutex<Progress>>) -> Self {
        let (source, target) = match direction {
            Direction::Push => (Side::Local, Side::Remote),
            Direction::Pull => (Side::Remote, Side::Local),
        };
        Self { wire, source, target, plan: Arc::new(plan), loss: Loss::Ignore, state: Arc::default(), counts }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub fn counts(&self) -> MutexGuard<'_, Progress> {
        lock(&self.counts)
    }

    pub async fn ask(&self, call: HealCall) -> Result<HealReturn, Errno> {
        self.wire.call(self.source, call).await
    }

    pub async fn tell(&self, call: HealCall) -> Result<HealReturn, Errno> {
        self.wire.call(self.target, call).await
    }

    pub async fn stats(&self, side: Side, gfids: Vec<Gfid>) -> Result<Vec<Option<ObjectInfo>>, Errno> {
        let count = gfids.len();
        let stats = wire::stats(self.wire.call(side, HealCall::Stat { gfids }).await?)?;
        if stats.len() == count { Ok(stats) } else { Err(wire::PROTOCOL) }
    }

    pub async fn stat(&self, side: Side, gfid: Gfid) -> Result<Option<ObjectInfo>, Errno> {
        Ok(self.stats(side, vec![gfid]).await?.pop().flatten())
    }

    /// Whether the plan reaches the whole object anyway.
    pub fn planned(&self, gfid: Gfid) -> bool {
        self.plan.buckets.binary_search(&gfid.bucket()).is_ok()
    }

    pub fn look_at(&self, gfid: Gfid, whole: bool) {
        if gfid != STRANGER && gfid != Gfid::ROOT {
            *self.state().extra.entry(gfid).or_default() |= whole;
        }
    }

    pub fn touch(&self, dir: Gfid) {
        self.state().touched.insert(dir);
    }

    pub fn touch_place(&self, place: Option<&Place>) {
        if let Some(Place::At { parent, .. }) = place {
            self.touch(*parent);
        }
    }

    pub fn verified(&self, dir: Gfid) {
        let mut state = self.state();
        if state.verified.len() >= VERIFIED_MAX {
            state.verified.clear();
        }
        state.verified.insert(dir);
    }

    pub fn healed(&self) {
        self.counts().objects_healed += 1;
    }

    /// An object that changed while it was looked at is not a failure of the heal: the change set brings it up again.
    /// What the disk refuses is.
    pub fn tolerate(&self, result: Result<(), Errno>) -> Result<(), Errno> {
        const RACES: [Errno; 7] =
            [Errno::ENOENT, Errno::EEXIST, Errno::ENOTDIR, Errno::EISDIR, Errno::EINVAL, Errno::ENOTEMPTY, Errno::ESTALE];
        match result {
            Err(e) if RACES.contains(&e) => {
                self.counts().unresolved += 1;
                Ok(())
            }
            other => other,
        }
    }
}
