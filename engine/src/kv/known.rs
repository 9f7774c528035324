//! The numbers of the keys that the last checkpoint wrote, in memory.
//!
//! A put needs the numbers of the version that it supersedes. For the first put of a key after a checkpoint they are in the file,
//! where looking them up takes longer than the put itself. Keys that changed lately are those that will change next: so what a checkpoint
//! knew of them is kept until the next one.

use super::overlay::{KeyHash, Places, Recent};
use super::read::Numbers;

/// Keys that are read at once.
const KEYS_AT_ONCE: usize = 256;

/// One key space's keys. They take some 80 bytes each, besides their own.
#[derive(Debug, Default)]
pub(super) struct Known {
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

impl Known {
    /// What the file knows of these keys once they are in it.
    pub(super) fn of(recent: &Recent) -> Self {
        let count = recent.keys();
        let mut known = Self { keys: Vec::new(), versions: Vec::with_capacity(count), places: Places::with_capacity(count) };
        let (hashes, places) = recent.hashed();
        for (hashes, places) in hashes.chunks(KEYS_AT_ONCE).zip(places.chunks(KEYS_AT_ONCE)) {
            for (hash, change) in hashes.iter().zip(recent.last_of_all(places)) {
                let at = u32::try_from(known.versions.len()).unwrap_or(u32::MAX);
                let key_start = known.keys.len();
                known.keys.extend_from_slice(&change.key);
                known.versions.push(Version { key_start, key_end: known.keys.len(), numbers: Numbers::of_change(change) });
                known.places.insert(*hash, at);
            }
        }
        known
    }

    /// As [`Recent::warm`].
    pub(super) fn warm(&self, hashes: &[KeyHash]) {
        let starts: Vec<usize> = self.places.likely(hashes).iter().map(|&at| self.versions[at as usize].key_start).collect();
        std::hint::black_box(starts.iter().fold(0, |sum: u8, &start| sum.wrapping_add(self.keys.get(start).copied().unwrap_or(0))));
    }

    /// The numbers of a key's living version; `None` inside: it has none. `None`: look into the file.
    pub(super) fn get(&self, key: &[u8], hash: KeyHash) -> Option<Option<Numbers>> {
        let is_it = |at: u32| {
            let Version { key_start, key_end, .. } = self.versions[at as usize];
            self.keys[key_start..key_end] == *key
        };
        self.places.find(hash, is_it).map(|at| self.versions[at as usize].numbers)
    }
}
