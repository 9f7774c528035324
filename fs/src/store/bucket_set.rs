//! A set of buckets: the dirty bitmap, and what a heal has left to do.

use crate::fop::Bucket;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How many buckets a volume has.
pub const BUCKET_COUNT: usize = 1 << 16;

/// A set of [`Bucket`]s, 8 KiB whatever it holds. Iterates in ascending order.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct BucketSet {
    words: Vec<u64>,
    len: usize,
}

impl Default for BucketSet {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for BucketSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.len <= 8 {
            return f.debug_set().entries(self.iter().map(|b| b.0)).finish();
        }
        write!(f, "BucketSet({} buckets)", self.len)
    }
}

impl BucketSet {
    /// The empty set.
    #[must_use]
    pub fn new() -> Self {
        Self { words: vec![0; BUCKET_COUNT / 64], len: 0 }
    }

    /// Every bucket.
    #[must_use]
    pub fn full() -> Self {
        Self { words: vec![u64::MAX; BUCKET_COUNT / 64], len: BUCKET_COUNT }
    }

    const fn place(b: Bucket) -> (usize, u64) {
        (b.0 as usize / 64, 1 << (b.0 % 64))
    }

    /// Whether `b` is in the set.
    #[must_use]
    pub fn contains(&self, b: Bucket) -> bool {
        let (word, bit) = Self::place(b);
        self.words[word] & bit != 0
    }

    /// Adds `b`; true when it was not there.
    pub fn insert(&mut self, b: Bucket) -> bool {
        let (word, bit) = Self::place(b);
        let new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.len += usize::from(new);
        new
    }

    /// Takes `b` out; true when it was there.
    pub fn remove(&mut self, b: Bucket) -> bool {
        let (word, bit) = Self::place(b);
        let was = self.words[word] & bit != 0;
        self.words[word] &= !bit;
        self.len -= usize::from(was);
        was
    }

    /// Adds all of `other`.
    pub fn union_with(&mut self, other: &Self) {
        for (a, b) in self.words.iter_mut().zip(&other.words) {
            *a |= b;
        }
        self.len = self.words.iter().map(|w| w.count_ones() as usize).sum();
    }

    /// How many buckets it holds.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its buckets, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Bucket> + '_ {
        self.words.iter().enumerate().filter(|(_, w)| **w != 0).flat_map(|(i, w)| {
            (0..64u32).filter(move |bit| w >> bit & 1 == 1).map(move |bit| Bucket(u16::try_from(i * 64).unwrap_or(0) + bit as u16))
        })
    }

    /// The smallest bucket that is `>= from`.
    #[must_use]
    pub fn next_from(&self, from: Bucket) -> Option<Bucket> {
        let (first, _) = Self::place(from);
        let mut mask = u64::MAX << (from.0 % 64);
        for i in first..self.words.len() {
            let word = self.words[i] & mask;
            if word != 0 {
                return Some(Bucket((i * 64) as u16 + word.trailing_zeros() as u16));
            }
            mask = u64::MAX;
        }
        None
    }

    /// The set as bytes: bit `b % 8` of byte `b / 8` stands for bucket `b`.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.words.iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    /// The set from [`BucketSet::to_bytes`]'s form; `None` when it is not 8,192 bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != BUCKET_COUNT / 8 {
            return None;
        }
        let words: Vec<u64> = bytes.chunks_exact(8).map(|c| u64::from_le_bytes(c.try_into().expect("8 bytes"))).collect();
        let len = words.iter().map(|w| w.count_ones() as usize).sum();
        Some(Self { words, len })
    }
}

impl From<BucketSet> for Vec<u8> {
    fn from(set: BucketSet) -> Self {
        set.to_bytes()
    }
}

impl TryFrom<Vec<u8>> for BucketSet {
    type Error = String;
    fn try_from(bytes: Vec<u8>) -> Result<Self, String> {
        Self::from_bytes(&bytes).ok_or_else(|| format!("a bucket set has {} bytes, found {}", BUCKET_COUNT / 8, bytes.len()))
    }
}

impl FromIterator<Bucket> for BucketSet {
    fn from_iter<I: IntoIterator<Item = Bucket>>(iter: I) -> Self {
        let mut set = Self::new();
        set.extend(iter);
        set
    }
}

impl Extend<Bucket> for BucketSet {
    fn extend<I: IntoIterator<Item = Bucket>>(&mut self, iter: I) {
        for b in iter {
            self.insert(b);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behaves_as_a_set() {
        let mut s = BucketSet::new();
        assert!(s.insert(Bucket(5)) && !s.insert(Bucket(5)) && s.insert(Bucket(65_535)) && s.insert(Bucket(64)));
        assert_eq!(s.iter().collect::<Vec<_>>(), [Bucket(5), Bucket(64), Bucket(65_535)]);
        assert_eq!(s.next_from(Bucket(6)), Some(Bucket(64)));
        assert_eq!(BucketSet::from_bytes(&s.to_bytes()), Some(s.clone()));
        let coded = postcard::to_allocvec(&s).unwrap();
        assert_eq!(postcard::from_bytes::<BucketSet>(&coded).unwrap(), s);
        assert!(postcard::from_bytes::<BucketSet>(&[1, 0]).is_err());
        assert!(s.remove(Bucket(64)) && !s.remove(Bucket(64)));
        assert_eq!(s.len(), 2);
        assert_eq!(BucketSet::full().iter().count(), BUCKET_COUNT);
    }
}
