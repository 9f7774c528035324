//! What was applied since the last checkpoint, in memory.
//!
//! Changes of keys are kept as they were made, each once, under their revision; which version of a key a
//! reader sees is a question of its revision, so readers need no copy and no lock over more than a look. The
//! other tables keep the last value of each key. The next checkpoint folds all of it into the file
//! ([`super::fold`]), where a page is then written once for many changes.

use super::codec::{Logged, PLAIN_TABLES, Rev};
use super::keys::{Entry, KeyHash, Keys};
use super::order::Order;
use super::pieces::Pieces;
use super::read::Numbers;
use super::types::{KeyValue, Keyspace};
use crate::types::Revision;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

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

/// Changes by revision, ascending: so one is found by a binary search.
type Log = Pieces<Change>;

impl Log {
    /// The piece that holds the first change at or after `rev`, and that change's place in it.
    fn from(&self, rev: Rev) -> (&[Change], usize) {
        let pieces = self.pieces();
        let piece = pieces.partition_point(|piece| piece.last().is_some_and(|last| last.rev < rev));
        let piece = pieces.get(piece).map_or(&[][..], |piece| piece);
        (piece, piece.partition_point(|change| change.rev < rev))
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
    /// Once this is frozen, others keep them ([`super::known`]).
    keys: Arc<Keys>,
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
        let place = self.place(&change.key, hash);
        let keys = Arc::make_mut(&mut self.keys);
        if let Some(place) = place {
            let entry = keys.at_mut(place);
            change.older = entry.last;
            if entry.count >= CHAIN_MAX {
                self.many.entry(place).or_default().push(entry.last);
            }
            *entry = Entry::of(&change, at, entry.count.saturating_add(1));
            self.log.push(change);
            return;
        }
        let place = keys.push(hash, Entry::of(&change, at, 1));
        self.log.push(change);
        let Self { log, keys, order, .. } = self;
        order.insert(place, |place| key_of(log, keys, place));
    }

    fn place(&self, key: &[u8], hash: KeyHash) -> Option<u32> {
        self.keys.find(key, hash, |at| self.key(at) == key)
    }

    /// As [`Keys::warm`].
    pub(super) fn warm(&self, hashes: &[KeyHash]) -> Vec<KeyHash> {
        self.keys.warm(hashes, |place| self.key(place).first().copied().unwrap_or(0))
    }

    /// Its keys, with what is known of their last changes.
    pub(super) fn shared_keys(&self) -> Arc<Keys> {
        Arc::clone(&self.keys)
    }

    fn at(&self, place: u32) -> &Change {
        self.log.at(place)
    }

    /// The key of this number.
    pub(super) fn key(&self, place: u32) -> &Bytes {
        key_of(&self.log, &self.keys, place)
    }

    /// Whether anything in here is as old as `at`. Readers of the past ask of every key.
    fn reaches(&self, at: u64) -> bool {
        self.log.first().is_some_and(|first| first.rev.main <= at)
    }

    fn of(&self, place: u32, at: u64) -> Option<&Change> {
        let entry = self.keys.at(place);
        if entry.main <= at {
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
        let entry = self.keys.at(place);
        if entry.main <= at { Some(entry.numbers()) } else { self.of(place, at).map(Numbers::of_change) }
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
        self.log.pieces().iter().map(|piece| &piece[..])
    }

    /// How many changes there are.
    pub(super) fn changes(&self) -> usize {
        self.log.len()
    }

    /// And of how many keys.
    pub(super) fn keys(&self) -> usize {
        self.keys.len()
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
        let last: Vec<u32> = places.iter().map(|&place| self.keys.at(place).last).collect();
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

fn key_of<'a>(log: &'a Log, keys: &Keys, place: u32) -> &'a Bytes {
    &log.at(keys.at(place).last).key
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
