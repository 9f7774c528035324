//! What was applied since the last checkpoint, in memory.
//!
//! Changes of keys are kept as they were made, each once, under their revision; which version of a key a
//! reader sees is a question of its revision, so readers need no copy and no lock over more than a look. The
//! other tables keep the last value of each key. The next checkpoint folds all of it into the file
//! ([`super::fold`]), where a page is then written once for many changes.

use super::codec::{Logged, PLAIN_TABLES, Rev};
use super::order::Order;
use super::types::{KeyValue, Keyspace};
use crate::types::Revision;
use bytes::Bytes;
use hashbrown::HashTable;
use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::LazyLock;

/// What a change takes in memory besides its bytes: itself, its place under its key, allocations.
const CHANGE_OVERHEAD_BYTES: usize = 224;

/// One change of a key.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub rev: Rev,
    pub delete: bool,
    pub create: u64,
    pub version: u64,
    pub lease: i64,
    /// As in [`Logged::prev`].
    pub prev: Rev,
    pub key: Bytes,
    pub value: Bytes,
}

impl Change {
    pub(super) fn logged(&self) -> Logged<'_> {
        let Self { delete, create, version, lease, prev, .. } = *self;
        Logged { delete, create, version, lease, prev, key: &self.key, value: &self.value }
    }

    pub(super) fn key_value(&self) -> KeyValue {
        KeyValue {
            key: self.key.clone(),
            value: self.value.clone(),
            create_revision: Revision(self.create),
            mod_revision: Revision(self.rev.main),
            version: self.version,
            lease: self.lease,
        }
    }
}

/// Where a key's changes stand in [`Recent::log`], ascending.
#[derive(Debug)]
struct Versions {
    last: u32,
    /// The key's.
    hash: KeyHash,
    /// Those before it; mostly there are none, and then this takes a pointer's room.
    #[allow(clippy::box_collection, reason = "mostly absent: it halves the record")]
    older: Option<Box<Vec<u32>>>,
}

/// Changes in one piece of [`Log`].
const PIECE_LEN: usize = 1 << 10;

/// Changes by revision, ascending: so one is found by a binary search. In pieces, since a long vector that grows moves
/// all that it holds into fresh memory, which the kernel has to clear first (an eighth of the time under transactions).
#[derive(Debug, Default)]
struct Log {
    /// All but the last are full.
    pieces: Vec<Vec<Change>>,
}

impl Log {
    fn len(&self) -> usize {
        self.pieces.last().map_or(0, |last| (self.pieces.len() - 1) * PIECE_LEN + last.len())
    }

    fn push(&mut self, change: Change) {
        match self.pieces.last_mut() {
            Some(last) if last.len() < PIECE_LEN => last.push(change),
            _ => {
                let mut piece = Vec::with_capacity(PIECE_LEN);
                piece.push(change);
                self.pieces.push(piece);
            }
        }
    }

    fn at(&self, place: u32) -> &Change {
        &self.pieces[place as usize / PIECE_LEN][place as usize % PIECE_LEN]
    }

    fn last(&self) -> Option<&Change> {
        self.pieces.last()?.last()
    }

    /// The piece that holds the first change at or after `rev`, and that change's place in it.
    fn from(&self, rev: Rev) -> (&[Change], usize) {
        let piece = self.pieces.partition_point(|piece| piece.last().is_some_and(|last| last.rev < rev));
        let piece = self.pieces.get(piece).map_or(&[][..], |piece| piece);
        (piece, piece.partition_point(|change| change.rev < rev))
    }
}

/// A key's hash, the same in all layers: a put looks for its key in each of them.
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
    at: u32,
}

/// Numbers of keys, by their hashes; the keys lie elsewhere.
#[derive(Debug, Default)]
pub(super) struct Places(HashTable<Place>);

impl Places {
    pub(super) fn with_capacity(keys: usize) -> Self {
        Self(HashTable::with_capacity(keys))
    }

    /// The key must not be in it.
    pub(super) fn insert(&mut self, hash: KeyHash, at: u32) {
        self.0.insert_unique(hash.spread(), Place { hash, at }, |place| place.hash.spread());
    }

    /// `is_it`: whether a number is the key's.
    pub(super) fn find(&self, hash: KeyHash, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        self.0.find(hash.spread(), |place| place.hash == hash && is_it(place.at)).map(|place| place.at)
    }

    /// The numbers of keys that have these hashes, nearly always those that are looked for; and the hashes that no key has.
    pub(super) fn likely(&self, hashes: &[KeyHash]) -> (Vec<u32>, Vec<KeyHash>) {
        let (mut likely, mut left) = (Vec::with_capacity(hashes.len()), Vec::new());
        for &hash in hashes {
            match self.0.find(hash.spread(), |place| place.hash == hash) {
                Some(place) => likely.push(place.at),
                None => left.push(hash),
            }
        }
        (likely, left)
    }
}

/// One key space's changes.
///
/// A put asks for its key three times, so keys are found by hash; they are in order as well ([`Order`]), for ranges.
#[derive(Debug, Default)]
pub(super) struct Recent {
    log: Log,
    /// Of each key, in the order in which the keys came.
    versions: Vec<Versions>,
    /// In `versions`.
    places: Places,
    order: Order,
    bytes: usize,
}

impl Recent {
    /// `hash` is that of the change's key.
    pub(super) fn push(&mut self, change: Change, hash: KeyHash) {
        debug_assert!(self.log.last().is_none_or(|last| last.rev < change.rev));
        self.bytes += change.key.len() + change.value.len() + CHANGE_OVERHEAD_BYTES;
        let at = u32::try_from(self.log.len()).unwrap_or(u32::MAX);
        if let Some(place) = self.place(&change.key, hash) {
            let versions = &mut self.versions[place as usize];
            versions.older.get_or_insert_default().push(std::mem::replace(&mut versions.last, at));
            self.log.push(change);
            return;
        }
        let place = u32::try_from(self.versions.len()).unwrap_or(u32::MAX);
        self.versions.push(Versions { last: at, hash, older: None });
        self.log.push(change);
        self.places.insert(hash, place);
        let Self { log, versions, order, .. } = self;
        order.insert(place, |place| key_of(log, versions, place));
    }

    fn place(&self, key: &[u8], hash: KeyHash) -> Option<u32> {
        self.places.find(hash, |at| self.key(at) == key)
    }

    /// Reads what looking for these keys will read, so that it is in the processor's caches by then. One by one, each look-up waits for
    /// memory five times over, each time for an address that was read just before; here the waits of many keys overlap. Returns those that
    /// are not in here.
    pub(super) fn warm(&self, hashes: &[KeyHash]) -> Vec<KeyHash> {
        let (likely, left) = self.places.likely(hashes);
        self.last_of_all(&likely);
        left
    }

    fn at(&self, place: u32) -> &Change {
        self.log.at(place)
    }

    fn key(&self, place: u32) -> &Bytes {
        key_of(&self.log, &self.versions, place)
    }

    fn of(&self, place: u32, at: u64) -> Option<&Change> {
        let versions = &self.versions[place as usize];
        let last = self.at(versions.last);
        if last.rev.main <= at {
            return Some(last);
        }
        let older = versions.older.as_deref()?;
        let later = older.partition_point(|&place| self.at(place).rev.main <= at);
        later.checked_sub(1).map(|i| self.at(older[i]))
    }

    /// The last change of a key at or below revision `at`, if there was one in here.
    pub(super) fn get(&self, key: &[u8], hash: KeyHash, at: u64) -> Option<&Change> {
        self.of(self.place(key, hash)?, at)
    }

    /// The same for each key in the bounds that has one, in order.
    pub(super) fn range<'a>(&'a self, bounds: super::read::Bounds<'_>, at: u64) -> impl DoubleEndedIterator<Item = &'a Change> {
        self.order.range(bounds, |place| self.key(place)).filter_map(move |place| self.of(place, at))
    }

    /// The change of exactly this revision.
    pub(super) fn logged(&self, rev: Rev) -> Option<&Change> {
        let (piece, at) = self.log.from(rev);
        piece.get(at).filter(|change| change.rev == rev)
    }

    /// Changes from `from` on, below `to`: the first of them, perhaps not all.
    pub(super) fn log_some(&self, from: Rev, to: Rev) -> &[Change] {
        let (piece, first) = self.log.from(from);
        let len = piece[first..].partition_point(|change| change.rev < to);
        &piece[first..first + len]
    }

    /// All changes, by revision, in pieces.
    pub(super) fn log_pieces(&self) -> impl Iterator<Item = &[Change]> {
        self.log.pieces.iter().map(|piece| &piece[..])
    }

    /// How many changes there are.
    pub(super) fn changes(&self) -> usize {
        self.log.len()
    }

    /// And of how many keys.
    pub(super) fn keys(&self) -> usize {
        self.versions.len()
    }

    /// The latest change.
    pub(super) fn last(&self) -> Option<&Change> {
        self.log.last()
    }

    /// All keys in order, as numbers for [`Self::last_of_all`] and [`Self::changes_of`].
    pub(super) fn in_order(&self) -> Vec<u32> {
        self.order.all(|place| self.key(place))
    }

    /// A key's hash.
    pub(super) fn hash_of(&self, place: u32) -> KeyHash {
        self.versions[place as usize].hash
    }

    /// The last changes of some keys. They lie anywhere in memory, and are read here so that the waits for it overlap.
    pub(super) fn last_of_all(&self, places: &[u32]) -> Vec<&Change> {
        let last: Vec<u32> = places.iter().map(|&place| self.versions[place as usize].last).collect();
        let last: Vec<&Change> = last.iter().map(|&at| self.at(at)).collect();
        let revisions = last.iter().fold(0, |sum: u64, change| sum.wrapping_add(change.rev.main));
        let bytes = last.iter().filter_map(|change| change.key.first()).fold(0, |sum: u8, byte| sum.wrapping_add(*byte));
        std::hint::black_box((revisions, bytes));
        last
    }

    /// A key's changes, ascending.
    pub(super) fn changes_of(&self, place: u32) -> impl Iterator<Item = &Change> {
        let Versions { last, older, .. } = &self.versions[place as usize];
        older.as_deref().into_iter().flatten().chain([last]).map(|&place| self.at(place))
    }
}

fn key_of<'a>(log: &'a Log, versions: &[Versions], place: u32) -> &'a Bytes {
    &log.at(versions[place as usize].last).key
}

/// Changes of a table whose keys have no revisions; `None`: removed.
pub(super) type Changes = BTreeMap<Bytes, Option<Bytes>>;

/// All that was applied since some point.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    pub keyspaces: [Recent; 2],
    /// In the order of [`PLAIN_TABLES`].
    pub plain: [Changes; PLAIN_TABLES.len()],
}

impl Overlay {
    pub(super) fn keyspace(&self, keyspace: Keyspace) -> &Recent {
        &self.keyspaces[keyspace as usize]
    }

    /// About the memory that key spaces take.
    pub(super) fn bytes(&self) -> usize {
        self.keyspaces.iter().map(|recent| recent.bytes).sum()
    }
}
