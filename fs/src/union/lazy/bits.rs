//! Which blocks are there: one bit each, as the bitmap file has them. Block `k` is bit `k % 8`, counted from the lowest, of byte `k / 8`.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of blocks. What is beyond its end is not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bits(Vec<u8>);

/// Bytes that a bitmap of so many blocks takes.
pub(super) fn bytes_for(blocks: u64) -> u64 {
    blocks.div_ceil(8)
}

impl Bits {
    /// From a bitmap file.
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    fn byte(&self, block: u64) -> u8 {
        usize::try_from(block / 8).ok().and_then(|i| self.0.get(i)).copied().unwrap_or(0)
    }

    pub(super) fn has(&self, block: u64) -> bool {
        self.byte(block) & 1 << (block % 8) != 0
    }

    /// Puts blocks in; how many were not in it before.
    pub(super) fn add(&mut self, blocks: Range<u64>) -> u64 {
        let (mut fresh, mut at) = (0, blocks.start);
        while at < blocks.end {
            let (first, last) = (at % 8, (blocks.end - at / 8 * 8).min(8));
            let mask = (0xff_u8 << first) & (0xff >> (8 - last));
            if let Some(byte) = usize::try_from(at / 8).ok().and_then(|i| self.0.get_mut(i)) {
                fresh += u64::from((mask & !*byte).count_ones());
                *byte |= mask;
            }
            at = (at / 8 + 1) * 8;
        }
        fresh
    }

    /// The first block from `at` on, below `end`, that is in the set or not, as `wanted` says; `end` if there is none.
    pub(super) fn next(&self, wanted: bool, at: u64, end: u64) -> u64 {
        let other = if wanted { 0 } else { 0xff };
        let mut at = at;
        while at < end {
            if at.is_multiple_of(8) && self.byte(at) == other {
                at += 8;
            } else if self.has(at) == wanted {
                return at;
            } else {
                at += 1;
            }
        }
        end
    }

    /// How many of the first `blocks` are missing.
    pub(super) fn missing(&self, blocks: u64) -> u64 {
        let whole: u64 = (0..blocks / 8).map(|i| u64::from(self.byte(i * 8).count_zeros())).sum();
        let rest = (blocks / 8 * 8..blocks).filter(|k| !self.has(*k)).count() as u64;
        whole + rest
    }

    /// Bytes of the bitmap.
    pub(super) fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.0[range.start.min(self.0.len())..range.end.min(self.0.len())]
    }
}

/// Stretches of blocks. A hole in a disk of many TiB has as many blocks as there are, and is one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ranges {
    /// End by start; they do not touch each other.
    ranges: BTreeMap<u64, u64>,
    blocks: u64,
}

impl Ranges {
    pub(super) fn is_empty(&self) -> bool {
        self.blocks == 0
    }

    /// How many blocks they have.
    pub(super) fn blocks(&self) -> u64 {
        self.blocks
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.ranges.iter().map(|(start, end)| *start..*end)
    }

    pub(super) fn add(&mut self, blocks: Range<u64>) {
        let Range { mut start, mut end } = blocks;
        if start >= end {
            return;
        }
        // From the last one on that begins before its end, all that touch it.
        while let Some((s, e)) = self.ranges.range(..=end).next_back().map(|(s, e)| (*s, *e)).filter(|(_, e)| *e >= start) {
            self.ranges.remove(&s);
            self.blocks -= e - s;
            (start, end) = (start.min(s), end.max(e));
        }
        self.ranges.insert(start, end);
        self.blocks += end - start;
    }

    /// Blocks from `end` on are none of them.
    pub(super) fn cut(&mut self, end: u64) {
        for (start, stop) in self.ranges.split_off(&end) {
            self.blocks -= stop - start;
        }
        if let Some(mut last) = self.ranges.last_entry()
            && *last.get() > end
        {
            self.blocks -= *last.get() - end;
            last.insert(end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_set() {
        let mut bits = Bits::new(vec![0; bytes_for(20) as usize]);
        for k in [0, 7, 8, 19] {
            assert!(bits.add(k..k + 1) == 1 && bits.add(k..k + 1) == 0 && bits.has(k), "{k}");
        }
        assert_eq!(bits.bytes(0..3), [0x81, 0x01, 0x08]);
        assert_eq!((bits.missing(20), bits.missing(8), bits.missing(9)), (16, 6, 6));
        assert_eq!((bits.next(true, 1, 20), bits.next(false, 7, 20), bits.next(true, 9, 19), bits.next(true, 9, 20)), (7, 9, 19, 19));
        assert!(!bits.has(1000));
        for (start, end) in (0..=20).flat_map(|start| (start..=20).map(move |end| (start, end))) {
            let mut more = bits.clone();
            let fresh = (start..end).filter(|k| !bits.has(*k)).count() as u64;
            assert_eq!(more.add(start..end), fresh, "{start}..{end}");
            assert!((0..24).all(|k| more.has(k) == (bits.has(k) || (start..end).contains(&k))), "{start}..{end}");
        }
    }

    #[test]
    fn stretches_are_a_set_too() {
        let mut rng = 1_u64;
        let mut random = |bound: u64| {
            rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (rng >> 33) % bound
        };
        for _ in 0..200 {
            let (mut ranges, mut model) = (Ranges::default(), std::collections::BTreeSet::new());
            for _ in 0..20 {
                let start = random(60);
                let end = start + random(12);
                ranges.add(start..end);
                model.extend(start..end);
                if random(5) == 0 {
                    let end = random(60);
                    ranges.cut(end);
                    model.retain(|k| *k < end);
                }
                let all: Vec<_> = ranges.iter().collect();
                assert!(all.windows(2).all(|w| w[0].end < w[1].start), "{all:?}");
                assert_eq!(all.into_iter().flatten().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
                assert_eq!((ranges.blocks(), ranges.is_empty()), (model.len() as u64, model.is_empty()));
            }
        }
    }
}
