//! What was applied since the last checkpoint, in memory.
//!
//! Changes of keys are kept as they were made, each once, under their revision; which version of a key a
//! reader sees is a question of its revision, so readers need no copy and no lock over more than a look. The
//! other tables keep the last value of each key. The next checkpoint folds all of it into the file
//! ([`super::fold`]), where a page is then written once for many changes.

use super::codec::{Logged, PLAIN_TABLES, Rev};
use super::types::{KeyValue, Keyspace};
use crate::types::Revision;
use bytes::Bytes;
use std::collections::BTreeMap;

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
    /// Those before it; mostly there are none, and then this takes no memory of its own.
    older: Vec<u32>,
}

/// One key space's changes.
#[derive(Debug, Default)]
pub(super) struct Recent {
    /// By revision, ascending: so it is found by a binary search.
    log: Vec<Change>,
    keys: BTreeMap<Bytes, Versions>,
    bytes: usize,
}

impl Recent {
    pub(super) fn push(&mut self, change: Change) {
        debug_assert!(self.log.last().is_none_or(|last| last.rev < change.rev));
        self.bytes += change.key.len() + change.value.len() + CHANGE_OVERHEAD_BYTES;
        let at = u32::try_from(self.log.len()).unwrap_or(u32::MAX);
        match self.keys.get_mut(&change.key) {
            Some(versions) => versions.older.push(std::mem::replace(&mut versions.last, at)),
            None => {
                self.keys.insert(change.key.clone(), Versions { last: at, older: Vec::new() });
            }
        }
        self.log.push(change);
    }

    fn at(&self, place: u32) -> &Change {
        &self.log[place as usize]
    }

    fn of(&self, versions: &Versions, at: u64) -> Option<&Change> {
        let last = self.at(versions.last);
        if last.rev.main <= at {
            return Some(last);
        }
        let later = versions.older.partition_point(|&place| self.at(place).rev.main <= at);
        later.checked_sub(1).map(|i| self.at(versions.older[i]))
    }

    /// The last change of a key at or below revision `at`, if there was one in here.
    pub(super) fn get(&self, key: &[u8], at: u64) -> Option<&Change> {
        self.of(self.keys.get(key)?, at)
    }

    /// The same for each key in the bounds that has one, in order.
    pub(super) fn range<'a>(&'a self, bounds: super::read::Bounds<'_>, at: u64) -> impl DoubleEndedIterator<Item = &'a Change> {
        self.keys.range::<[u8], _>(bounds).filter_map(move |(_, versions)| self.of(versions, at))
    }

    /// The change of exactly this revision.
    pub(super) fn logged(&self, rev: Rev) -> Option<&Change> {
        self.log.binary_search_by_key(&rev, |change| change.rev).ok().map(|i| &self.log[i])
    }

    /// Changes from `from` on, below `to`.
    pub(super) fn log_range(&self, from: Rev, to: Rev) -> &[Change] {
        let first = self.log.partition_point(|change| change.rev < from);
        let len = self.log[first..].partition_point(|change| change.rev < to);
        &self.log[first..first + len]
    }

    /// All changes, by revision.
    pub(super) fn log(&self) -> &[Change] {
        &self.log
    }

    /// The changes of each key, ascending; by key.
    pub(super) fn by_key(&self) -> impl Iterator<Item = (&Bytes, impl Iterator<Item = &Change>)> {
        self.keys.iter().map(|(key, v)| (key, v.older.iter().chain([&v.last]).map(|&place| self.at(place))))
    }
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
