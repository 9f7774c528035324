//! Which blocks are there: one bit each, as the bitmap file has them. Block `k` is bit `k % 8`, counted from the lowest, of byte `k / 8`.

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

    /// Puts a block in; whether it was not in it before.
    pub(super) fn add(&mut self, block: u64) -> bool {
        let fresh = !self.has(block);
        if let Some(byte) = usize::try_from(block / 8).ok().and_then(|i| self.0.get_mut(i)) {
            *byte |= 1 << (block % 8);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_set() {
        let mut bits = Bits::new(vec![0; bytes_for(20) as usize]);
        for k in [0, 7, 8, 19] {
            assert!(bits.add(k) && !bits.add(k) && bits.has(k), "{k}");
        }
        assert_eq!(bits.bytes(0..3), [0x81, 0x01, 0x08]);
        assert_eq!((bits.missing(20), bits.missing(8), bits.missing(9)), (16, 6, 6));
        assert_eq!((bits.next(true, 1, 20), bits.next(false, 7, 20), bits.next(true, 9, 19), bits.next(true, 9, 20)), (7, 9, 19, 19));
        assert!(!bits.has(1000));
    }
}
