//! The healer as its caller sees it: a plan in, calls out, answers in.

use super::calls::{HealCall, HealResult};
use super::cx::Cx;
use super::loss::Loss;
use super::task::Task;
use super::wire::Wire;
use crate::fop::{Bucket, Errno, Gfid};
use brickraft_engine::types::Time;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Which brick is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The local brick is; the remote one is changed.
    Push,
    /// The remote brick is; the local one is changed.
    Pull,
}

/// What of one object is to be made equal. Its existence, kind, attributes and extended attributes always are; of a
/// directory its place too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealItem {
    /// Of a directory: its names, and the objects behind them where the target lacks them.
    pub names: bool,
    /// Of a directory: only add names that the target lacks, take none away, and leave its attributes. For damage where
    /// nothing says which side is right: push and pull one after the other make the union.
    pub merge: bool,
    /// Of a file: ranges of data, as (start, end), sorted and apart. Size and holes are made equal with them.
    pub data: Vec<(u64, u64)>,
}

impl HealItem {
    /// A directory's missing names, both ways (see `merge`).
    #[must_use]
    pub const fn union() -> Self {
        Self { names: true, merge: true, data: Vec::new() }
    }

    /// Everything of an object.
    #[must_use]
    pub fn whole() -> Self {
        Self { names: true, merge: false, data: vec![(0, u64::MAX)] }
    }
}

/// What a heal covers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealPlan {
    /// Buckets, ascending: everything in them, what only the target has included.
    pub buckets: Vec<Bucket>,
    /// Single objects, of other buckets.
    pub items: BTreeMap<Gfid, HealItem>,
    /// Objects without a name that the source keeps since they are open: no bucket lists them. The target has them
    /// without a name then, until it is told to keep them ([`HealStore::heal_orphan`](super::HealStore::heal_orphan)).
    pub nameless: Vec<Gfid>,
}

impl HealPlan {
    /// Every bucket.
    #[must_use]
    pub fn full() -> Self {
        Self { buckets: (0..=u16::MAX).map(Bucket).collect(), ..Self::default() }
    }

    /// Some buckets.
    pub fn buckets(buckets: impl IntoIterator<Item = Bucket>) -> Self {
        let mut buckets: Vec<_> = buckets.into_iter().collect();
        buckets.sort_unstable();
        buckets.dedup();
        Self { buckets, ..Self::default() }
    }

    /// Single objects, wholly.
    pub fn objects(gfids: impl IntoIterator<Item = Gfid>) -> Self {
        Self { items: gfids.into_iter().map(|g| (g, HealItem::whole())).collect(), ..Self::default() }
    }

    /// Nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty() && self.items.is_empty()
    }
}

/// How far a heal is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Buckets (and groups of single objects) done.
    pub units_done: u64,
    /// Left to do.
    pub units_left: u64,
    /// Objects compared.
    pub objects_checked: u64,
    /// Objects that were made or changed.
    pub objects_healed: u64,
    /// Objects removed.
    pub objects_removed: u64,
    /// Names that the source had lost and has again.
    pub objects_restored: u64,
    /// The source has objects without a name.
    pub lost_some: bool,
    /// It failed because the source lost what it was about to take away ([`Loss::Refuse`]).
    pub refused: bool,
    /// Bytes of file data written to the target.
    pub bytes_sent: u64,
    /// Bytes sent in a second, on average.
    pub rate: u64,
    /// Time left, from the share of units done; `None` before the first is.
    pub left: Option<Duration>,
    /// Objects that could not be made equal: they changed while they were compared (the change set brings them again), or
    /// names outside the plan hold them. Must be 0 after the last round under freeze; otherwise heal more buckets.
    pub unresolved: u64,
}

/// What [`Healer::step`] leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// More local work waits: step again soon (it stopped so that the thread can serve others).
    More,
    /// Waits for answers of the other brick.
    Waiting,
    /// Done, or failed: see [`Healer::finished`].
    Finished,
}

/// One heal of one brick from another. Drop it to cancel; what it did so far is never wrong.
pub struct Healer {
    task: Task,
    counts: Arc<Mutex<Progress>>,
    started: Option<Time>,
}

impl Healer {
    /// A heal that has not begun.
    #[must_use]
    pub fn new(direction: Direction, plan: HealPlan) -> Self {
        Self::guarded(direction, plan, Loss::Ignore)
    }

    /// The same, when the source itself may have lost what it should have.
    #[must_use]
    pub fn guarded(direction: Direction, plan: HealPlan, loss: Loss) -> Self {
        let (wire, counts) = (Wire::default(), Arc::new(Mutex::new(Progress::default())));
        let mut cx = Cx::new(wire.clone(), direction, plan, counts.clone());
        cx.loss = loss;
        let work = super::work::run(cx);
        Self { task: Task::new(wire, work), counts, started: None }
    }

    /// Goes on as far as a slice of work goes. `local` executes a call on the local brick's store: `|c| execute(store, c)`.
    pub fn step(&mut self, now: Time, local: &mut dyn FnMut(&HealCall) -> HealResult) -> Step {
        self.started.get_or_insert(now);
        self.task.step(local)
    }

    /// The next call that is to go to the other brick, with an id that its answer must come back under.
    #[must_use]
    pub fn poll_call(&mut self) -> Option<(u64, HealCall)> {
        self.task.poll_call()
    }

    /// The other brick's answer. Step afterwards. When the connection is lost, drop the healer and start another.
    pub fn on_return(&mut self, id: u64, result: HealResult) {
        self.task.on_return(id, result);
    }

    /// How it ended, once it did. An error is one that the caller must deal with (`EIO`, `ENOSPC` of a brick).
    #[must_use]
    pub const fn finished(&self) -> Option<Result<(), Errno>> {
        self.task.finished()
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self, now: Time) -> Progress {
        let mut p = *self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = now.since(self.started.unwrap_or(now));
        let micros = u64::try_from(passed.as_micros()).unwrap_or(u64::MAX).max(1);
        p.rate = u64::try_from(u128::from(p.bytes_sent) * 1_000_000 / u128::from(micros)).unwrap_or(u64::MAX);
        p.left = (p.units_done > 0).then(|| {
            let left = u128::from(micros) * u128::from(p.units_left) / u128::from(p.units_done);
            Duration::from_micros(u64::try_from(left).unwrap_or(u64::MAX))
        });
        p
    }
}

/// A heal of single objects, in either direction: the last short round under freeze, or the repair of damage.
#[must_use]
pub fn heal_objects(direction: Direction, items: BTreeMap<Gfid, HealItem>) -> Healer {
    Healer::new(direction, HealPlan { items, ..HealPlan::default() })
}
