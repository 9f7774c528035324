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
use std::hash::{BuildHasher as _, RandomState};
use std::ops::Bound;

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

/// One key space's changes.
///
/// A put asks for its key three times, so keys are found by hash; they are in order as well ([`Order`]), for ranges.
#[derive(Debug, Default)]
pub(super) struct Recent {
    log: Log,
    /// Of each key, in the order in which the keys came.
    versions: Vec<Versions>,
    /// Places in `versions`, by key.
    places: HashTable<u32>,
    order: Order,
    /// Keys come from clients: nobody shall make them collide.
    hasher: RandomState,
    bytes: usize,
}

impl Recent {
    pub(super) fn push(&mut self, change: Change) {
        debug_assert!(self.log.last().is_none_or(|last| last.rev < change.rev));
        self.bytes += change.key.len() + change.value.len() + CHANGE_OVERHEAD_BYTES;
        let at = u32::try_from(self.log.len()).unwrap_or(u32::MAX);
        let hash = self.hasher.hash_one(&change.key[..]);
        let Self { log, versions, places, .. } = self;
        let same = |place: &u32| change.key == key_of(log, versions, *place);
        if let Some(&place) = places.find(hash, same) {
            let versions = &mut versions[place as usize];
            versions.older.get_or_insert_default().push(std::mem::replace(&mut versions.last, at));
            self.log.push(change);
            return;
        }
        let place = u32::try_from(self.versions.len()).unwrap_or(u32::MAX);
        self.versions.push(Versions { last: at, older: None });
        self.log.push(change);
        let Self { log, versions, places, hasher, order, .. } = self;
        places.insert_unique(hash, place, |&place| hasher.hash_one(&key_of(log, versions, place)[..]));
        order.insert(place, |place| key_of(log, versions, place));
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
    pub(super) fn get(&self, key: &[u8], at: u64) -> Option<&Change> {
        let place = self.places.find(self.hasher.hash_one(key), |&place| self.key(place) == key)?;
        self.of(*place, at)
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

    /// All changes, by revision.
    pub(super) fn log(&self) -> impl Iterator<Item = &Change> {
        self.log.pieces.iter().flatten()
    }

    /// The latest change.
    pub(super) fn last(&self) -> Option<&Change> {
        self.log.last()
    }

    /// The changes of each key, ascending; by key.
    pub(super) fn by_key(&self) -> impl Iterator<Item = (&Bytes, impl Iterator<Item = &Change>)> {
        let everything = (Bound::Unbounded, Bound::Unbounded);
        self.order.range(everything, |place| self.key(place)).map(|place| {
            let Versions { last, older } = &self.versions[place as usize];
            (self.key(place), older.as_deref().into_iter().flatten().chain([last]).map(|&place| self.at(place)))
        })
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
