//! What changed at the source while a heal runs: the plan of its next round.
//!
//! The caller notes every change when it is applied (a write: when it has *completed*, since the heal may have read the
//! old bytes until then), from before the bulk round starts. It then heals in rounds: bulk, [`ChangeSet::take`], heal, take,
//! ... until [`ChangeSet::is_small`]; freezes and drains; heals the last plan; and the target is equal. A set that does not
//! shrink says how hard to throttle the writers ([`ChangeSet::throttle`]).
//!
//! It is bounded. A file with many extents is taken as a whole; a bucket with many objects, or any when there are too many
//! in all, is taken as a whole too.

use super::healer::{HealItem, HealPlan};
use super::work::merge_items;
use crate::fop::{Bucket, Fop, Gfid};
use std::collections::{BTreeMap, BTreeSet};

/// Bounds of a [`ChangeSet`].
#[derive(Clone, Copy, Debug)]
pub struct ChangeLimits {
    /// Extents of one file; above, the file is taken as a whole.
    pub extents_max: usize,
    /// Objects noted one by one; above, the bucket of the next one is taken as a whole.
    pub objects_max: usize,
    /// Most objects that may be healed under freeze.
    pub freeze_objects_max: usize,
    /// Most bytes of data that may be healed under freeze.
    pub freeze_bytes_max: u64,
}

impl Default for ChangeLimits {
    fn default() -> Self {
        Self { extents_max: 64, objects_max: 100_000, freeze_objects_max: 256, freeze_bytes_max: 16 << 20 }
    }
}

/// What changed since the last [`ChangeSet::take`].
#[derive(Clone, Debug, Default)]
pub struct ChangeSet {
    limits: ChangeLimits,
    buckets: BTreeSet<Bucket>,
    items: BTreeMap<Gfid, HealItem>,
    last_weight: Option<u64>,
    stalled: u32,
}

impl ChangeSet {
    /// An empty set.
    #[must_use]
    pub fn new(limits: ChangeLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Notes an operation that was applied. `object`: what the name stood for, of those that take or replace a name (`Unlink`,
    /// `RmDir`, `Rename`; without it the heal finds out by itself, a little later). `Write` notes nothing: its length is in
    /// the payload, see [`ChangeSet::note_data`].
    pub fn note(&mut self, fop: &Fop, object: Option<Gfid>) {
        match fop {
            Fop::Create { parent, gfid, .. }
            | Fop::MkNod { parent, gfid, .. }
            | Fop::Symlink { parent, gfid, .. }
            | Fop::Link { parent, gfid, .. }
            | Fop::MkDir { parent, gfid, .. } => {
                self.note_names(*parent);
                self.note_object(*gfid);
            }
            Fop::Unlink { parent, .. } | Fop::RmDir { parent, .. } => self.note_names(*parent),
            Fop::Rename { parent, new_parent, .. } => {
                self.note_names(*parent);
                self.note_names(*new_parent);
            }
            Fop::SetAttr { gfid, set } => match set.size {
                // Below the new size nothing changed; above it, what a later write leaves out is a hole.
                Some(size) => self.note_data(*gfid, size, u64::MAX - size),
                None => self.note_object(*gfid),
            },
            Fop::Fallocate { gfid, offset, .. } => self.note_data(*gfid, *offset, u64::MAX - offset),
            Fop::SetXattr { gfid, .. } | Fop::RemoveXattr { gfid, .. } => self.note_object(*gfid),
            _ => {}
        }
        if let Some(object) = object {
            self.note_object(object);
        }
    }

    /// A directory's names (and times) changed.
    pub fn note_names(&mut self, dir: Gfid) {
        self.add(dir, HealItem { names: true, ..HealItem::default() });
    }

    /// Attributes, extended attributes, place, or existence changed.
    pub fn note_object(&mut self, gfid: Gfid) {
        self.add(gfid, HealItem::default());
    }

    /// Data changed from `offset` on, `len` bytes.
    pub fn note_data(&mut self, gfid: Gfid, offset: u64, len: u64) {
        self.add(gfid, HealItem { data: vec![(offset, offset.saturating_add(len))], ..HealItem::default() });
    }

    /// Something in the bucket changed, nobody knows what.
    pub fn note_bucket(&mut self, bucket: Bucket) {
        self.buckets.insert(bucket);
        self.items.retain(|g, _| g.bucket() != bucket);
    }

    /// Notes all of a plan again: the heal that carried it was cut off.
    pub fn note_plan(&mut self, plan: HealPlan) {
        plan.buckets.into_iter().for_each(|b| self.note_bucket(b));
        plan.items.into_iter().for_each(|(g, item)| self.add(g, item));
    }

    fn add(&mut self, gfid: Gfid, item: HealItem) {
        if self.buckets.contains(&gfid.bucket()) {
            return;
        }
        if self.items.len() >= self.limits.objects_max && !self.items.contains_key(&gfid) {
            self.note_bucket(gfid.bucket());
            return;
        }
        merge_items(&mut self.items, gfid, item);
        if let Some(known) = self.items.get_mut(&gfid)
            && known.data.len() > self.limits.extents_max
        {
            known.data = vec![(0, u64::MAX)];
        }
    }

    /// Objects to heal; a whole bucket counts as many as may be frozen, and one.
    #[must_use]
    pub fn objects(&self) -> usize {
        self.items.len() + self.buckets.len() * (self.limits.freeze_objects_max + 1)
    }

    /// Bytes of data to heal, by the extents noted. An open end counts as half of what may be frozen: its length is not known.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let open = self.limits.freeze_bytes_max / 2;
        let extents = self.items.values().flat_map(|i| &i.data);
        extents.map(|(start, end)| if *end == u64::MAX { open } else { end - start }).fold(0, u64::saturating_add)
    }

    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty() && self.items.is_empty()
    }

    /// Whether the rest may be healed under freeze.
    #[must_use]
    pub fn is_small(&self) -> bool {
        self.objects() <= self.limits.freeze_objects_max && self.bytes() <= self.limits.freeze_bytes_max
    }

    /// The plan of the next round; the set is empty afterwards.
    pub fn take(&mut self) -> HealPlan {
        let weight = self.bytes().saturating_add(self.objects() as u64 * 4096);
        // A round should leave at most three quarters of what the round before it left.
        let shrinks = self.last_weight.is_none_or(|last| weight <= last / 4 * 3);
        self.stalled = if shrinks || self.is_small() { self.stalled / 2 } else { (self.stalled + 1).min(8) };
        self.last_weight = Some(weight);
        let items = std::mem::take(&mut self.items);
        HealPlan { buckets: std::mem::take(&mut self.buckets).into_iter().collect(), items, ..HealPlan::default() }
    }

    /// By how much writers should be slowed, in 256ths of the time: 0 while rounds shrink, doubling with each that does
    /// not, 255 at most. The caller delays each change by that share of the time its round takes.
    #[must_use]
    pub fn throttle(&self) -> u8 {
        match self.stalled {
            0 => 0,
            n => u8::try_from((1u32 << n.min(8)) - 1).unwrap_or(u8::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fop::SetAttr;

    fn gfid(bucket: u16, n: u8) -> Gfid {
        Gfid::in_bucket(Bucket(bucket), [n; 14])
    }

    #[test]
    fn extents_join_and_fall_back_to_the_file_and_to_the_bucket() {
        let mut set = ChangeSet::new(ChangeLimits { extents_max: 3, objects_max: 2, ..ChangeLimits::default() });
        set.note_data(gfid(1, 1), 0, 10);
        set.note_data(gfid(1, 1), 20, 10);
        set.note_data(gfid(1, 1), 5, 15);
        assert_eq!(set.items[&gfid(1, 1)].data, [(0, 30)]);
        for at in 0..3 {
            set.note_data(gfid(1, 1), 1000 + at * 100, 1);
        }
        assert_eq!(set.items[&gfid(1, 1)].data, [(0, u64::MAX)]);
        set.note_object(gfid(2, 1));
        set.note_names(gfid(2, 2));
        let plan = set.take();
        assert_eq!(plan.buckets, [Bucket(2)]);
        assert_eq!(plan.items.keys().copied().collect::<Vec<_>>(), [gfid(1, 1)]);
        assert!(set.is_empty());
        set.note_plan(plan.clone());
        assert_eq!(set.take(), plan);
    }

    #[test]
    fn a_truncation_covers_what_may_be_written_behind_it() {
        let mut set = ChangeSet::default();
        let cut = SetAttr { size: Some(4096), ..SetAttr::default() };
        set.note(&Fop::SetAttr { gfid: gfid(1, 1), set: cut }, None);
        assert_eq!(set.take().items[&gfid(1, 1)].data, [(4096, u64::MAX)]);
    }

    #[test]
    fn writers_are_slowed_only_while_rounds_do_not_shrink() {
        let mut set = ChangeSet::new(ChangeLimits::default());
        let mut round = |mib: u64| {
            set.note_data(gfid(1, 1), 0, mib << 20);
            set.take();
            set.throttle()
        };
        assert_eq!((round(1000), round(500), round(490), round(480)), (0, 0, 1, 3));
        assert_eq!((round(100), round(1)), (1, 0));
    }
}
