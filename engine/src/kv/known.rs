//! The numbers of the keys that the last checkpoints wrote, in memory.
//!
//! A put needs the numbers of the version that it supersedes. For the first put of a key after a checkpoint they are in the file,
//! where looking them up takes longer than the put itself. Keys that changed lately are those that will change next: so what the last
//! checkpoints knew of them is kept.

use super::keys::{KeyHash, Keys};
use super::overlay::Recent;
use super::read::Numbers;
use std::sync::Arc;

/// Checkpoints whose keys are kept. (With puts at random among 100,000 keys, and checkpoints of 135,000 changes, one would leave 4 to 14 of 100
/// puts to the file, two leave 1 to 4, three less than 1.)
const CHECKPOINTS: usize = 3;

/// The keys that one checkpoint wrote. They take some 80 bytes each, besides their own if they are long.
#[derive(Debug)]
pub(super) struct Written {
    keys: Arc<Keys>,
    /// Those of which [`Keys`] has the beginning only, one behind the other.
    long: Vec<u8>,
    /// Where each key begins in `long`; nothing at all if none is in there.
    starts: Vec<usize>,
}

impl Written {
    /// Of what a checkpoint writes.
    pub(super) fn new(recent: &Recent) -> Self {
        let keys = recent.shared_keys();
        let (mut long, mut starts) = (Vec::new(), Vec::new());
        if keys.iter().any(|entry| entry.is_cut()) {
            for (place, entry) in (0..).zip(keys.iter()) {
                starts.push(long.len());
                if entry.is_cut() {
                    long.extend_from_slice(recent.key(place));
                }
            }
        }
        Self { keys, long, starts }
    }

    /// From the beginning of a key that is cut.
    fn long(&self, place: u32) -> &[u8] {
        self.starts.get(place as usize).map_or(&[], |&start| &self.long[start..])
    }

    fn warm(&self, hashes: &[KeyHash]) -> Vec<KeyHash> {
        self.keys.warm(hashes, |place| self.long(place).first().copied().unwrap_or(0))
    }

    fn get(&self, key: &[u8], hash: KeyHash) -> Option<Option<Numbers>> {
        let place = self.keys.find(key, hash, |place| self.long(place).starts_with(key))?;
        Some(self.keys.at(place).numbers())
    }
}

/// One key space's keys, those of the last checkpoint first.
#[derive(Clone, Debug, Default)]
pub(super) struct Known(Vec<Arc<Written>>);

impl Known {
    /// What is known after one more checkpoint.
    pub(super) fn and(&self, written: Option<Written>) -> Self {
        let written = written.filter(|written| written.keys.len() > 0).map(Arc::new);
        Self(written.into_iter().chain(self.0.iter().cloned()).take(CHECKPOINTS).collect())
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
