//! The numbers of the keys that the last checkpoints wrote, in memory.
//!
//! A put needs the numbers of the version that it supersedes. For the first put of a key after a checkpoint they are in the file,
//! where looking them up takes longer than the put itself. Keys that changed lately are those that will change next: so what the last
//! two checkpoints knew of them is kept.

use super::overlay::{Change, KeyHash, Latest, Places, ShortKey};
use super::read::Numbers;
use std::sync::Arc;

/// Checkpoints whose keys are kept. (With puts at random among 100,000 keys, and checkpoints of 135,000 changes, one would leave 4 to 14 of 100
/// puts to the file, two leave 1 to 4.)
const CHECKPOINTS: usize = 2;

/// The keys that one checkpoint wrote. They take some 80 bytes each, besides their own if they are long.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// Those of which [`Version`] has the beginning only.
    keys: Vec<u8>,
    versions: Vec<Version>,
    /// In `versions`.
    places: Places,
}

#[derive(Debug)]
#[repr(align(64))]
struct Version {
    latest: Latest,
    /// In `keys`.
    start: usize,
}

const _: () = assert!(size_of::<Version>() == 64);

impl Written {
    pub(super) fn with_capacity(keys: usize) -> Self {
        Self { keys: Vec::new(), versions: Vec::with_capacity(keys), places: Places::with_capacity(keys) }
    }

    /// The last change of a key that is not in here yet.
    pub(super) fn push(&mut self, change: &Change) {
        let (latest, start) = (Latest::of(change), self.keys.len());
        if latest.key.is_cut() {
            self.keys.extend_from_slice(&change.key);
        }
        self.places.insert(KeyHash::of(&change.key), u32::try_from(self.versions.len()).unwrap_or(u32::MAX));
        self.versions.push(Version { latest, start });
    }

    fn warm(&self, hashes: &[KeyHash]) -> Vec<KeyHash> {
        let (likely, left) = self.places.likely(hashes);
        let versions: Vec<&Version> = likely.iter().map(|&at| &self.versions[at as usize]).collect();
        let mut sum = versions.iter().fold(0, |sum: u64, version| sum.wrapping_add(version.latest.main));
        for version in versions.iter().filter(|version| version.latest.key.is_cut()) {
            sum = sum.wrapping_add(self.keys.get(version.start).copied().map_or(0, u64::from));
        }
        std::hint::black_box(sum);
        left
    }

    fn get(&self, key: &[u8], hash: KeyHash) -> Option<Option<Numbers>> {
        let short = ShortKey::of(key);
        let is_it = |at: u32| {
            let Version { latest, start } = &self.versions[at as usize];
            latest.key == short && (!short.is_cut() || self.keys[*start..start + key.len()] == *key)
        };
        self.places.find(hash, is_it).map(|at| self.versions[at as usize].latest.numbers())
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
