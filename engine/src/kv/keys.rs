//! Keys by their hashes, each with the numbers of its last change.
//!
//! A put looks for its key in all layers, and most of its time goes into waiting for memory: keys, and changes of them, lie all over it. So a
//! key, and what a put wants to know of it, stand in one line of the processor's cache, and those of many keys can be asked for at once
//! ([`Keys::warm`]).

use super::codec::Rev;
use super::order::{HEAD_BYTES, head};
use super::overlay::Change;
use super::pieces::Pieces;
use super::read::Numbers;
use hashbrown::HashTable;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::LazyLock;

/// A key's length and first bytes: all of it, if it is short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ShortKey {
    /// [`head`], in halves, which leave no gap behind the length.
    head: [u32; 4],
    len: u32,
}

impl ShortKey {
    fn of(key: &[u8]) -> Self {
        let [a, b] = head(key);
        let head = [(a >> 32) as u32, a as u32, (b >> 32) as u32, b as u32];
        Self { head, len: u32::try_from(key.len()).unwrap_or(u32::MAX) }
    }

    /// Whether keys that are equal in this may differ yet.
    fn is_cut(self) -> bool {
        self.len as usize > HEAD_BYTES
    }
}

/// A key, and what there is to know of its last change: with where the rest is, one line of the processor's cache.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub(super) struct Entry {
    key: ShortKey,
    sub: u32,
    pub(super) main: u64,
    create: u64,
    /// 0: deleted.
    version: u64,
    lease: i64,
    /// Where the key's last change stands; the caller's number.
    pub(super) last: u32,
    /// How many changes the key has.
    pub(super) count: u32,
}

const _: () = assert!(size_of::<Entry>() == 64);

impl Entry {
    pub(super) fn of(change: &Change, last: u32, count: u32) -> Self {
        let Change { rev: Rev { main, sub }, create, version, lease, delete, .. } = *change;
        Self { key: ShortKey::of(&change.key), sub, main, create, version: if delete { 0 } else { version }, lease, last, count }
    }

    /// `None`: it was deleted.
    pub(super) fn numbers(&self) -> Option<Numbers> {
        let Self { sub, main, create, version, lease, .. } = *self;
        (version > 0).then_some(Numbers { rev: Rev { main, sub }, create, version, lease })
    }

    /// Whether it holds no more than the key's beginning.
    pub(super) fn is_cut(&self) -> bool {
        self.key.is_cut()
    }
}

/// A key's hash, the same in all layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KeyHash(u32);

impl KeyHash {
    pub(super) fn of(key: &[u8]) -> Self {
        /// Keys come from clients: nobody shall make them collide.
        static SECRET: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        let mut hasher = SECRET.build_hasher();
        hasher.write(key);
        Self(hasher.finish() as u32)
    }

    /// What the table takes: it looks at both ends of the number.
    fn spread(self) -> u64 {
        u64::from(self.0) << 32 | u64::from(self.0)
    }
}

/// A key in the hash table. With its hash beside it, most other keys need no look at themselves, and the table
/// grows without a look at any.
#[derive(Clone, Copy, Debug)]
struct Place {
    hash: KeyHash,
    /// In [`Keys::entries`].
    at: u32,
}

/// Keys, each once. What goes beyond [`HEAD_BYTES`] of a key, its owner has.
#[derive(Clone, Debug, Default)]
pub(super) struct Keys {
    /// In the order in which they came.
    entries: Pieces<Entry>,
    places: HashTable<Place>,
}

impl Keys {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// All, in the order in which they came: by their numbers, from 0 on.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    pub(super) fn at(&self, place: u32) -> &Entry {
        self.entries.at(place)
    }

    pub(super) fn at_mut(&mut self, place: u32) -> &mut Entry {
        self.entries.at_mut(place)
    }

    /// Adds a key that is not in here; says its number.
    pub(super) fn push(&mut self, hash: KeyHash, entry: Entry) -> u32 {
        let at = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        self.entries.push(entry);
        self.places.insert_unique(hash.spread(), Place { hash, at }, |place| place.hash.spread());
        at
    }

    /// A key's number. `is_it` tells of a key that is cut, and has the same beginning and length, whether it is this one.
    pub(super) fn find(&self, key: &[u8], hash: KeyHash, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let short = ShortKey::of(key);
        let is_it = |at: u32| self.at(at).key == short && (!short.is_cut() || is_it(at));
        self.places.find(hash.spread(), |place| place.hash == hash && is_it(place.at)).map(|place| place.at)
    }

    /// Reads what looking for these keys will read, so that it is in the processor's caches by then. One by one, each look-up waits for
    /// memory several times over, each time for an address that was read just before; here the waits of many keys overlap. `first_byte` reads
    /// one of the rest of a key that is cut. Returns the hashes that no key has.
    pub(super) fn warm(&self, hashes: &[KeyHash], first_byte: impl Fn(u32) -> u8) -> Vec<KeyHash> {
        let (mut likely, mut left) = (Vec::with_capacity(hashes.len()), Vec::new());
        for &hash in hashes {
            match self.places.find(hash.spread(), |place| place.hash == hash) {
                Some(place) => likely.push(place.at),
                None => left.push(hash),
            }
        }
        let mut sum = likely.iter().fold(0, |sum: u64, &at| sum.wrapping_add(self.at(at).main));
        for &at in likely.iter().filter(|&&at| self.at(at).is_cut()) {
            sum = sum.wrapping_add(u64::from(first_byte(at)));
        }
        std::hint::black_box(sum);
        left
    }
}
