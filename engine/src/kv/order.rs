//! Keys in order, cheap to add to.
//!
//! A tree of keys costs a put some thirty cache misses, since each comparison follows a pointer. Here keys stand in
//! sorted runs whose lengths double (Bentley and Saxe's logarithmic method), with their first bytes beside
//! them. The last ones to come are not sorted until there are enough of them; whoever reads in the meantime sorts what he wants of
//! them for himself.

use super::read::Bounds;
use bytes::Bytes;
use std::borrow::Cow;
use std::cmp::Ordering;
use std::ops::{Bound, Range};

/// Keys that come before they are sorted.
const RUN_MIN: usize = if cfg!(test) { 32 } else { 256 };
/// Bytes of a key that stand in its slot.
pub(super) const HEAD_BYTES: usize = 16;

/// A key's first bytes as numbers that compare as they do; what is missing counts as zeros, so equal heads say nothing of the keys' lengths.
pub(super) type Head = [u64; 2];

/// A key: its first bytes, and the caller's number for it.
#[derive(Clone, Copy, Debug)]
struct Slot {
    head: Head,
    place: u32,
}

pub(super) fn head(key: &[u8]) -> Head {
    let mut bytes = [0; HEAD_BYTES];
    let n = key.len().min(HEAD_BYTES);
    bytes[..n].copy_from_slice(&key[..n]);
    let number = u128::from_be_bytes(bytes);
    [(number >> 64) as u64, number as u64]
}

/// Numbers of distinct keys, in the order of the keys.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// Each sorted; each but the last two is longer than the one behind it.
    runs: Vec<Vec<Slot>>,
    /// In the order in which they came.
    tail: Vec<Slot>,
}

impl Order {
    /// Adds a key that is not in here. `key` gives the key of each number, `place`'s too.
    pub(super) fn insert<'k>(&mut self, place: u32, key: impl Fn(u32) -> &'k Bytes) {
        self.tail.push(Slot { head: head(key(place)), place });
        if self.tail.len() >= RUN_MIN {
            sort(&mut self.tail, &key);
            self.runs.push(std::mem::replace(&mut self.tail, Vec::with_capacity(RUN_MIN)));
            self.merge(&key);
        }
    }

    fn merge<'k>(&mut self, key: &impl Fn(u32) -> &'k Bytes) {
        while let [.., a, b] = &self.runs[..]
            && a.len() <= b.len()
        {
            let mut merged = Vec::with_capacity(a.len() + b.len());
            let (mut a, mut b) = (&a[..], &b[..]);
            while let ([x, ..], [y, ..]) = (a, b) {
                let from = if compare_slots(x, y, key).is_lt() { &mut a } else { &mut b };
                merged.push(from[0]);
                *from = &from[1..];
            }
            merged.extend_from_slice(a);
            merged.extend_from_slice(b);
            self.runs.truncate(self.runs.len() - 2);
            self.runs.push(merged);
        }
    }

    /// The numbers of all keys, in order: cheaper than [`Self::range`], since the sort merges the runs two by two.
    pub(super) fn all<'k>(&self, key: impl Fn(u32) -> &'k Bytes) -> Vec<u32> {
        let mut slots = self.runs.concat();
        slots.extend_from_slice(&self.tail);
        slots.sort_by(|a, b| compare_slots(a, b, &key));
        slots.into_iter().map(|slot| slot.place).collect()
    }

    /// The numbers of the keys in the bounds, in order.
    pub(super) fn range<'o, 'k, K: Fn(u32) -> &'k Bytes + 'o>(&'o self, bounds: Bounds<'_>, key: K) -> InOrder<'o, K> {
        let mut tail: Vec<Slot> =
            self.tail.iter().filter(|slot| !within(std::slice::from_ref(slot), bounds, &key).is_empty()).copied().collect();
        sort(&mut tail, &key);
        let runs = self.runs.iter().map(|run| Cow::Borrowed(within(run, bounds, &key))).chain([Cow::Owned(tail)]);
        let parts = runs.filter(|run| !run.is_empty()).map(|run| Part { left: 0..run.len(), run }).collect();
        InOrder { parts, key }
    }
}

/// How a slot's key compares with another, whose head is known. The keys themselves lie all over the memory: the other one is asked for, as
/// this one's is, only when the heads are equal.
fn compare<'k, 'o>(slot: &Slot, other_head: Head, other: impl FnOnce() -> &'o [u8], key: &impl Fn(u32) -> &'k Bytes) -> Ordering {
    slot.head.cmp(&other_head).then_with(|| key(slot.place)[..].cmp(other()))
}

/// How the keys of two slots compare.
fn compare_slots<'k>(a: &Slot, b: &Slot, key: &impl Fn(u32) -> &'k Bytes) -> Ordering {
    compare(a, b.head, || key(b.place), key)
}

fn sort<'k>(slots: &mut [Slot], key: &impl Fn(u32) -> &'k Bytes) {
    slots.sort_unstable_by(|a, b| compare_slots(a, b, key));
}

fn within<'o, 'k>(run: &'o [Slot], (from, to): Bounds<'_>, key: &impl Fn(u32) -> &'k Bytes) -> &'o [Slot] {
    let below = |bound: &[u8], or_at: bool| {
        let bound_head = head(bound);
        run.partition_point(|slot| match compare(slot, bound_head, || bound, key) {
            Ordering::Less => true,
            Ordering::Equal => or_at,
            Ordering::Greater => false,
        })
    };
    let first = match from {
        Bound::Included(bound) => below(bound, false),
        Bound::Excluded(bound) => below(bound, true),
        Bound::Unbounded => 0,
    };
    let end = match to {
        Bound::Included(bound) => below(bound, true),
        Bound::Excluded(bound) => below(bound, false),
        Bound::Unbounded => run.len(),
    };
    run.get(first..end).unwrap_or_default()
}

/// What is left of a run; not nothing.
struct Part<'o> {
    run: Cow<'o, [Slot]>,
    left: Range<usize>,
}

impl Part<'_> {
    fn first(&self) -> Slot {
        self.run[self.left.start]
    }

    fn last(&self) -> Slot {
        self.run[self.left.end - 1]
    }
}

/// A merge of the runs' parts within some bounds.
pub(super) struct InOrder<'o, K> {
    parts: Vec<Part<'o>>,
    key: K,
}

impl<'k, K: Fn(u32) -> &'k Bytes> InOrder<'_, K> {
    /// Which part has the first key, by `end` of each, in the sense of `wanted`; and the key's number.
    fn pick(&self, end: impl Fn(&Part<'_>) -> Slot, wanted: Ordering) -> Option<(usize, u32)> {
        let mut best: Option<(usize, Slot)> = None;
        for (i, part) in self.parts.iter().enumerate() {
            let slot = end(part);
            if best.is_none_or(|(_, best)| compare_slots(&slot, &best, &self.key) == wanted) {
                best = Some((i, slot));
            }
        }
        best.map(|(i, slot)| (i, slot.place))
    }

    fn shorten(&mut self, i: usize, shorten: impl FnOnce(&mut Range<usize>)) {
        shorten(&mut self.parts[i].left);
        if self.parts[i].left.is_empty() {
            self.parts.swap_remove(i);
        }
    }
}

impl<'k, K: Fn(u32) -> &'k Bytes> Iterator for InOrder<'_, K> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let (i, place) = self.pick(|part| part.first(), Ordering::Less)?;
        self.shorten(i, |left| left.start += 1);
        Some(place)
    }
}

impl<'k, K: Fn(u32) -> &'k Bytes> DoubleEndedIterator for InOrder<'_, K> {
    fn next_back(&mut self) -> Option<u32> {
        let (i, place) = self.pick(|part| part.last(), Ordering::Greater)?;
        self.shorten(i, |left| left.end -= 1);
        Some(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::SmallRng;
    use rand::{Rng as _, SeedableRng as _};
    use std::collections::BTreeSet;

    #[test]
    fn it_is_what_a_tree_would_be() {
        for seed in 0..20 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let (mut order, mut tree, mut keys): (Order, BTreeSet<Bytes>, Vec<Bytes>) = Default::default();
            // Few letters and a common beginning, so that many heads are equal, also by what is missing.
            let some_key = |rng: &mut SmallRng| {
                let beginning = if rng.random() { "/registry/pods/a" } else { "" };
                let rest = (0..rng.random_range(0..6)).map(|_| rng.random_range(0..3_u8));
                Bytes::from_iter(beginning.bytes().chain(rest))
            };
            for _ in 0..2_000 {
                let key = some_key(&mut rng);
                if tree.insert(key.clone()) {
                    keys.push(key);
                    order.insert(keys.len() as u32 - 1, |place| &keys[place as usize]);
                }
                if rng.random_ratio(1, 20) {
                    let (a, b) = (some_key(&mut rng), some_key(&mut rng));
                    let (a, b) = if a < b { (a, b) } else { (b, [&a[..], b"x"].concat().into()) };
                    let kind = |rng: &mut SmallRng, key: &'_ Bytes| match rng.random_range(0..3) {
                        0 => Bound::Unbounded,
                        1 => Bound::Included(key.clone()),
                        _ => Bound::Excluded(key.clone()),
                    };
                    let all = order.all(|place| &keys[place as usize]);
                    assert!(all.iter().map(|&place| &keys[place as usize]).eq(&tree), "seed {seed}");
                    let (from, to) = (kind(&mut rng, &a), kind(&mut rng, &b));
                    let bounds = (from.as_ref().map(|b| &b[..]), to.as_ref().map(|b| &b[..]));
                    let found = || order.range(bounds, |place| &keys[place as usize]).map(|place| &keys[place as usize]);
                    let wanted = || tree.range::<[u8], _>(bounds);
                    assert!(found().eq(wanted()), "seed {seed}");
                    assert!(found().rev().eq(wanted().rev()), "seed {seed}");
                }
            }
        }
    }
}
