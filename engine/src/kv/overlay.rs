//! What was applied since the last checkpoint, in memory.
//!
//! Changes of keys are kept as they were made, each once, under their revision; which version of a key a
//! reader sees is a question of its revision, so readers need no copy and no lock over more than a look. The
//! other tables keep the last value of each key. The next checkpoint folds all of it into the file
//! ([`super::fold`]), where a page is then written once for many changes.

use super::codec::{Logged, PLAIN_TABLES, Rev};
use super::order::{HEAD_BYTES, Order, head};
use super::read::Numbers;
use super::types::{KeyValue, Keyspace};
use crate::types::Revision;
use bytes::Bytes;
use hashbrown::HashTable;
use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::LazyLock;

/// What a change takes in memory besides its bytes: itself, its place under its key, allocations.
const CHANGE_OVERHEAD_BYTES: usize = 224;

/// No place of a change.
pub(super) const NOWHERE: u32 = u32::MAX;

/// One change of a key. In two lines of the processor's cache: numbers, and where the bytes are.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(super) struct Change {
    pub rev: Rev,
    /// As in [`Logged::prev`].
    pub prev: Rev,
    pub create: u64,
    pub version: u64,
    pub lease: i64,
    /// Where the key's change before this one stands in [`Recent`]; [`NOWHERE`] before it is there, and if there is none.
    pub older: u32,
    pub delete: bool,
    pub key: Bytes,
    pub value: Bytes,
}

const _: () = assert!(size_of::<Change>() == 128);

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

/// A key, and what there is to know of its last change: with where the rest is, one line of the processor's cache. Most of a put's time goes
/// into waiting for memory, and changes and keys lie all over it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Latest {
    pub key: ShortKey,
    sub: u32,
    pub main: u64,
    create: u64,
    /// 0: deleted.
    version: u64,
    lease: i64,
}

impl Latest {
    pub(super) fn of(change: &Change) -> Self {
        let Change { rev: Rev { main, sub }, create, version, lease, delete, .. } = *change;
        Self { key: ShortKey::of(&change.key), sub, main, create, version: if delete { 0 } else { version }, lease }
    }

    /// `None`: it was deleted.
    pub(super) fn numbers(&self) -> Option<Numbers> {
        let Self { sub, main, create, version, lease, .. } = *self;
        (version > 0).then_some(Numbers { rev: Rev { main, sub }, create, version, lease })
    }
}

/// A key of [`Recent`].
#[derive(Debug)]
#[repr(align(64))]
struct Entry {
    latest: Latest,
    /// Where its last change stands in [`Recent::log`].
    last: u32,
    /// How many changes it has.
    count: u32,
}

const _: () = assert!(size_of::<Entry>() == 64);

/// A key's length and first bytes: all of it, if it is short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ShortKey {
    /// [`head`], in halves, which leave no gap behind the length.
    head: [u32; 4],
    len: u32,
}

impl ShortKey {
    pub(super) fn of(key: &[u8]) -> Self {
        let [a, b] = head(key);
        let head = [(a >> 32) as u32, a as u32, (b >> 32) as u32, b as u32];
        Self { head, len: u32::try_from(key.len()).unwrap_or(u32::MAX) }
    }

    /// Whether keys that are equal in this may differ yet.
    pub(super) fn is_cut(self) -> bool {
        self.len as usize > HEAD_BYTES
    }
}

/// Elements of one piece of [`Pieces`].
const PIECE_LEN: usize = 1 << 10;

/// A vector in pieces, since a long one that grows moves all that it holds into fresh memory, which the kernel has to clear first (an eighth of
/// the time under transactions).
#[derive(Debug)]
struct Pieces<T> {
    /// All but the last are full.
    pieces: Vec<Vec<T>>,
}

impl<T> Default for Pieces<T> {
    fn default() -> Self {
        Self { pieces: Vec::new() }
    }
}

impl<T> Pieces<T> {
    fn len(&self) -> usize {
        self.pieces.last().map_or(0, |last| (self.pieces.len() - 1) * PIECE_LEN + last.len())
    }

    fn push(&mut self, element: T) {
        match self.pieces.last_mut() {
            Some(last) if last.len() < PIECE_LEN => last.push(element),
            _ => {
                let mut piece = Vec::with_capacity(PIECE_LEN);
                piece.push(element);
                self.pieces.push(piece);
            }
        }
    }

    fn at(&self, place: u32) -> &T {
        &self.pieces[place as usize / PIECE_LEN][place as usize % PIECE_LEN]
    }

    fn at_mut(&mut self, place: u32) -> &mut T {
        &mut self.pieces[place as usize / PIECE_LEN][place as usize % PIECE_LEN]
    }

    fn last(&self) -> Option<&T> {
        self.pieces.last()?.last()
    }
}

/// Changes by revision, ascending: so one is found by a binary search.
type Log = Pieces<Change>;

impl Log {
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

/// Changes of one key that are looked for one by one.
const CHAIN_MAX: u32 = if cfg!(test) { 2 } else { 32 };

/// One key space's changes.
///
/// A put asks for its key three times, so keys are found by hash; they are in order as well ([`Order`]), for ranges.
#[derive(Debug, Default)]
pub(super) struct Recent {
    log: Log,
    /// The keys, in the order in which they came.
    entries: Pieces<Entry>,
    /// In `entries`.
    places: Places,
    order: Order,
    /// Of keys with more than [`CHAIN_MAX`] changes: where that many-th stands, and those after it, but for the last. Ascending.
    many: BTreeMap<u32, Vec<u32>>,
    bytes: usize,
}

impl Recent {
    /// `hash` is that of the change's key.
    pub(super) fn push(&mut self, mut change: Change, hash: KeyHash) {
        debug_assert!(self.log.last().is_none_or(|last| last.rev < change.rev));
        self.bytes += change.key.len() + change.value.len() + CHANGE_OVERHEAD_BYTES;
        let at = u32::try_from(self.log.len()).unwrap_or(u32::MAX);
        if let Some(place) = self.place(&change.key, hash) {
            let entry = self.entries.at_mut(place);
            change.older = entry.last;
            if entry.count >= CHAIN_MAX {
                self.many.entry(place).or_default().push(entry.last);
            }
            *entry = Entry { latest: Latest::of(&change), last: at, count: entry.count.saturating_add(1) };
            self.log.push(change);
            return;
        }
        let place = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        self.entries.push(Entry { latest: Latest::of(&change), last: at, count: 1 });
        self.log.push(change);
        self.places.insert(hash, place);
        let Self { log, entries, order, .. } = self;
        order.insert(place, |place| key_of(log, entries, place));
    }

    fn place(&self, key: &[u8], hash: KeyHash) -> Option<u32> {
        let short = ShortKey::of(key);
        self.places.find(hash, |at| self.entries.at(at).latest.key == short && (!short.is_cut() || self.key(at) == key))
    }

    /// Reads what looking for these keys will read, so that it is in the processor's caches by then. One by one, each look-up waits for
    /// memory five times over, each time for an address that was read just before; here the waits of many keys overlap. Returns those that
    /// are not in here.
    pub(super) fn warm(&self, hashes: &[KeyHash]) -> Vec<KeyHash> {
        let (likely, left) = self.places.likely(hashes);
        let entries: Vec<&Entry> = likely.iter().map(|&at| self.entries.at(at)).collect();
        let mut sum = entries.iter().fold(0, |sum: u64, entry| sum.wrapping_add(entry.latest.main));
        for entry in entries.iter().filter(|entry| entry.latest.key.is_cut()) {
            sum = sum.wrapping_add(self.at(entry.last).key.first().copied().map_or(0, u64::from));
        }
        std::hint::black_box(sum);
        left
    }

    fn at(&self, place: u32) -> &Change {
        self.log.at(place)
    }

    fn key(&self, place: u32) -> &Bytes {
        key_of(&self.log, &self.entries, place)
    }

    /// Whether anything in here is as old as `at`. Readers of the past ask of every key.
    fn reaches(&self, at: u64) -> bool {
        self.log.pieces.first().and_then(|piece| piece.first()).is_some_and(|first| first.rev.main <= at)
    }

    fn of(&self, place: u32, at: u64) -> Option<&Change> {
        let entry = self.entries.at(place);
        if entry.latest.main <= at {
            return Some(self.at(entry.last));
        }
        if !self.reaches(at) {
            return None;
        }
        let mut later = self.at(entry.last);
        if let Some(many) = self.many.get(&place) {
            let end = many.partition_point(|&place| self.at(place).rev.main <= at);
            if let Some(found) = end.checked_sub(1) {
                return Some(self.at(many[found]));
            }
            later = self.at(many[0]);
        }
        self.before(later).find(|change| change.rev.main <= at)
    }

    /// The last change of a key at or below revision `at`, if there was one in here.
    pub(super) fn get(&self, key: &[u8], hash: KeyHash, at: u64) -> Option<&Change> {
        self.of(self.place(key, hash)?, at)
    }

    /// The numbers of that change, cheaper.
    pub(super) fn numbers(&self, key: &[u8], hash: KeyHash, at: u64) -> Option<Option<Numbers>> {
        let place = self.place(key, hash)?;
        let latest = &self.entries.at(place).latest;
        if latest.main <= at { Some(latest.numbers()) } else { self.of(place, at).map(Numbers::of_change) }
    }

    /// The same as [`Self::get`] for each key in the bounds that has one, in order.
    pub(super) fn range<'a>(&'a self, bounds: super::read::Bounds<'_>, at: u64) -> impl DoubleEndedIterator<Item = &'a Change> {
        let keys = self.reaches(at).then(|| self.order.range(bounds, |place| self.key(place)));
        keys.into_iter().flatten().filter_map(move |place| self.of(place, at))
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
        self.entries.len()
    }

    /// The latest change.
    pub(super) fn last(&self) -> Option<&Change> {
        self.log.last()
    }

    /// All keys in order, as numbers for [`Self::last_of_all`].
    pub(super) fn in_order(&self) -> Vec<u32> {
        self.order.all(|place| self.key(place))
    }

    /// The last changes of some keys. They lie anywhere in memory, and are read here so that the waits for it overlap.
    pub(super) fn last_of_all(&self, places: &[u32]) -> Vec<&Change> {
        let last: Vec<u32> = places.iter().map(|&place| self.entries.at(place).last).collect();
        let last: Vec<&Change> = last.iter().map(|&at| self.at(at)).collect();
        let revisions = last.iter().fold(0, |sum: u64, change| sum.wrapping_add(change.rev.main));
        let bytes = last.iter().filter_map(|change| change.key.first()).fold(0, |sum: u8, byte| sum.wrapping_add(*byte));
        std::hint::black_box((revisions, bytes));
        last
    }

    /// Reads the numbers of all changes before these, as [`Self::warm`].
    pub(super) fn warm_before(&self, changes: &[&Change]) {
        let mut older: Vec<u32> = changes.iter().map(|change| change.older).collect();
        while !older.is_empty() {
            older.retain(|&at| at != NOWHERE);
            older.iter_mut().for_each(|at| *at = self.at(*at).older);
        }
    }

    /// The changes of the same key before this one, descending.
    pub(super) fn before<'a>(&'a self, change: &'a Change) -> impl Iterator<Item = &'a Change> {
        std::iter::successors(Some(change), |change| (change.older != NOWHERE).then(|| self.at(change.older))).skip(1)
    }
}

fn key_of<'a>(log: &'a Log, entries: &Pieces<Entry>, place: u32) -> &'a Bytes {
    &log.at(entries.at(place).last).key
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
