//! The numbers of the keys that the last checkpoints wrote, in memory.
//!
//! A put needs the numbers of the version that it supersedes. For the first put of a key after a checkpoint they are in the file,
//! where looking them up takes longer than the put itself. Keys that changed lately are those that will change next: so what the last
//! two checkpoints knew of them is kept.

use super::overlay::{Change, KeyHash, Places};
use super::read::Numbers;
use std::sync::Arc;

/// Checkpoints whose keys are kept. (With puts at random among 100,000 keys, and checkpoints of 135,000 changes, one would leave 4 to 14 of 100
/// puts to the file, two leave 1 to 4.)
const CHECKPOINTS: usize = 2;

/// The keys that one checkpoint wrote. They take some 80 bytes each, besides their own.
#[derive(Debug, Default)]
pub(super) struct Written {
    keys: Vec<u8>,
    versions: Vec<Version>,
    /// In `versions`.
    places: Places,
}

#[derive(Debug)]
struct Version {
    key_start: usize,
    key_end: usize,
    /// `None`: it was deleted.
    numbers: Option<Numbers>,
}

impl Written {
    pub(super) fn with_capacity(keys: usize) -> Self {
        Self { keys: Vec::new(), versions: Vec::with_capacity(keys), places: Places::with_capacity(keys) }
    }

    /// The last change of a key that is not in here yet.
    pub(super) fn push(&mut self, change: &Change, hash: KeyHash) {
        let at = u32::try_from(self.versions.len()).unwrap_or(u32::MAX);
        let key_start = self.keys.len();
        self.keys.extend_from_slice(&change.key);
        self.versions.push(Version { key_start, key_end: self.keys.len(), numbers: Numbers::of_change(change) });
        self.places.insert(hash, at);
    }

    fn warm(&self, hashes: &[KeyHash]) -> Vec<KeyHash> {
        let (likely, left) = self.places.likely(hashes);
        let starts: Vec<usize> = likely.iter().map(|&at| self.versions[at as usize].key_start).collect();
        std::hint::black_box(starts.iter().fold(0, |sum: u8, &start| sum.wrapping_add(self.keys.get(start).copied().unwrap_or(0))));
        left
    }

    fn get(&self, key: &[u8], hash: KeyHash) -> Option<Option<Numbers>> {
        let is_it = |at: u32| {
            let Version { key_start, key_end, .. } = self.versions[at as usize];
            self.keys[key_start..key_end] == *key
        };
        self.places.find(hash, is_it).map(|at| self.versions[at as usize].numbers)
    }
}

/// One key space's keys, those of the last checkpoint first.
#[derive(Clone, Debug, Default)]
pub(super) struct Known(Vec<Arc<Written>>);

impl Known {
    /// What is known after one more checkpoint.
    pub(super) fn and(&self, written: Written) -> Self {
        if written.versions.is_empty() {
            return self.clone();
        }
        Self([Arc::new(written)].into_iter().chain(self.0.iter().cloned()).take(CHECKPOINTS).collect())
    }

    /// As [`super::overlay::Recent::warm`].
    pub(super) fn warm(&self, hashes: &[KeyHash]) {
        self.0.iter().fold(hashes.to_vec(), |left, written| written.warm(&left));
    }

    /// The numbers of a key's living version; `None` inside: it has none. `None`: look into the file.
    pub(super) fn get(&self, key: &[u8], hash: KeyHash) -> Option<Option<Numbers>> {
        self.0.iter().find_map(|written| written.get(key, hash))
    }
}
