//! The living keys in the file: FORMAT.md, `KS.current`.
//!
//! They lie in order, in blocks of a page each. So a checkpoint descends the tree once for a page of keys, not once for
//! each of them, and what it changes within a page it merges in one pass.

use super::base::ReadTable;
use super::block;
use super::codec::{Current, INLINE_BYTES_MAX};
use super::error::StoreError;
use super::fold::{FileTable, PAGE_BYTES, RECORD_OVERHEAD_BYTES};
use super::overlay::Change;
use super::read::Span;
use super::runs::{Guard, Range};
use redb::ReadableTable;
use std::cmp::Ordering;
use std::ops::{self, Bound};

/// A block is split before it grows beyond this; a larger record stands alone. With a key of usual length it fits into a page.
pub(super) const BLOCK_BYTES_MAX: usize = 3840;
/// The same, so that tests have many blocks.
const SPLIT_BYTES: usize = if cfg!(test) { 300 } else { BLOCK_BYTES_MAX };

/// What there is of a key, as [`Current::encode`] made it.
pub(super) struct Found<'t> {
    block: Guard<'t>,
    at: ops::Range<usize>,
}

impl Found<'_> {
    pub(super) fn record(&self) -> &[u8] {
        &self.block.value()[self.at.clone()]
    }
}

/// A key's record, if it lives.
pub(super) fn get<'t>(table: &'t ReadTable, key: &[u8]) -> Result<Option<Found<'t>>, StoreError> {
    let Some(item) = table.range::<&[u8]>(..=key)?.next_back() else { return Ok(None) };
    let (_, block) = item?;
    let mut at = None;
    for place in places(block.value()) {
        let place = place?;
        match block.value()[place.key].cmp(key) {
            Ordering::Less => {}
            Ordering::Equal => at = Some(place.value),
            Ordering::Greater => break,
        }
    }
    Ok(at.map(|at| Found { block, at }))
}

/// A record's place in its block.
struct Place {
    key: ops::Range<usize>,
    value: ops::Range<usize>,
}

/// The places of a block's records.
fn places(block: &[u8]) -> impl Iterator<Item = Result<Place, StoreError>> {
    let mut end = 0;
    block::records("current", block).map(move |record| {
        let (key, value) = record?;
        let start = end + block::RECORD_HEADER_LEN;
        let middle = start + key.len();
        end = middle + value.len();
        Ok(Place { key: start..middle, value: middle..end })
    })
}

/// Walks living keys, up or down.
pub(super) struct Keys<'t> {
    blocks: Range<'t>,
    block: Option<Guard<'t>>,
    /// All records of the block, and which of them are still to come.
    places: Vec<Place>,
    left: ops::Range<usize>,
    start: Vec<u8>,
    end: Bound<Vec<u8>>,
    reverse: bool,
}

impl<'t> Keys<'t> {
    /// Stands at the first key of the span, or the last in reverse.
    pub(super) fn new(table: &'t ReadTable, span: Span<'_>, reverse: bool) -> Result<Self, StoreError> {
        let (start, end) = (span.start(), span.end());
        // `start` lies in the block whose key is the last at or before it.
        let first = match table.range::<&[u8]>(..=start)?.next_back() {
            Some(item) => item?.0.value().to_vec(),
            None => start.to_vec(),
        };
        let blocks = table.range::<&[u8]>((Bound::Included(&first[..]), end))?;
        let (start, end) = (start.to_vec(), end.map(<[u8]>::to_vec));
        let mut keys = Self { blocks, block: None, places: Vec::new(), left: 0..0, start, end, reverse };
        keys.fill()?;
        Ok(keys)
    }

    /// The key that it stands at; `None` at the end.
    pub(super) fn key(&self) -> Option<&[u8]> {
        self.part(|place| &place.key)
    }

    /// Its record, as [`Current::encode`] made it.
    pub(super) fn record(&self) -> Option<&[u8]> {
        self.part(|place| &place.value)
    }

    fn part(&self, part: impl Fn(&Place) -> &ops::Range<usize>) -> Option<&[u8]> {
        let at = if self.reverse { self.left.end.checked_sub(1)? } else { self.left.start };
        let place = self.places.get(at).filter(|_| !self.left.is_empty())?;
        Some(&self.block.as_ref()?.value()[part(place).clone()])
    }

    pub(super) fn advance(&mut self) -> Result<(), StoreError> {
        if self.reverse {
            self.left.end = self.left.end.saturating_sub(1);
        } else {
            self.left.start += 1;
        }
        self.fill()
    }

    /// Goes on to the next block that has something of the span, if this one is used up.
    fn fill(&mut self) -> Result<(), StoreError> {
        while self.left.is_empty() {
            let Some(item) = (if self.reverse { self.blocks.next_back() } else { self.blocks.next() }) else {
                self.block = None;
                return Ok(());
            };
            let block = item?.1;
            let bytes = block.value();
            self.places.clear();
            for place in places(bytes) {
                self.places.push(place?);
            }
            let before = |place: &Place| bytes[place.key.clone()] < self.start[..];
            let within = |place: &Place| match &self.end {
                Bound::Included(end) => bytes[place.key.clone()] <= end[..],
                Bound::Excluded(end) => bytes[place.key.clone()] < end[..],
                Bound::Unbounded => true,
            };
            self.left = self.places.partition_point(before)..self.places.partition_point(within);
            self.block = Some(block);
        }
        Ok(())
    }
}

/// A block with the table's key.
type Block = (Vec<u8>, Vec<u8>);

/// Merges changes into the blocks.
pub(super) struct Merger<'a, 't> {
    table: &'a mut FileTable<'t>,
    used: &'a mut u64,
    merged: Vec<u8>,
    /// Where the records of `merged` end.
    ends: Vec<usize>,
}

impl<'a, 't> Merger<'a, 't> {
    /// `used` is the count of bytes in use.
    pub(super) fn new(table: &'a mut FileTable<'t>, used: &'a mut u64) -> Self {
        Self { table, used, merged: Vec::new(), ends: Vec::new() }
    }

    /// Puts the last changes of some keys, which come in order, into the table; says how many bytes of pages that dirtied, about.
    pub(super) fn merge(&mut self, changes: &[&Change]) -> Result<usize, StoreError> {
        let Some(first) = changes.first() else { return Ok(0) };
        let last_block = self.table.last()?.map(|(key, _)| key.value().to_vec());
        let mut left = changes;
        let mut dirtied = 0;
        let mut found = self.block_of(&first.key)?;
        while !left.is_empty() {
            // What comes before all blocks has a block of its own: its key in the table is the lowest of all.
            let (at, old) = found.take().unwrap_or_default();
            let is_last = last_block.as_ref().is_none_or(|last| *last == at);
            let last_key = last_key(&old)?;
            let mut count = 1;
            while let Some(change) = left.get(count) {
                if !is_last && last_key.is_none_or(|last| change.key > last) {
                    let next = self.block_of(&change.key)?;
                    if next.as_ref().map_or(&[][..], |(key, _)| key) != at {
                        found = next;
                        break;
                    }
                }
                count += 1;
            }
            let (these, others) = left.split_at(count);
            dirtied += self.merge_block(&at, &old, last_key, these)?;
            left = others;
        }
        Ok(dirtied)
    }

    /// The block that a key belongs to.
    fn block_of(&self, key: &[u8]) -> Result<Option<Block>, StoreError> {
        let found = self.table.range::<&[u8]>(..=key)?.next_back().transpose()?;
        Ok(found.map(|(key, block)| (key.value().to_vec(), block.value().to_vec())))
    }

    fn merge_block(&mut self, at: &[u8], old: &[u8], last_key: Option<&[u8]>, changes: &[&Change]) -> Result<usize, StoreError> {
        self.merged.clear();
        self.ends.clear();
        let mut record = Vec::new();
        let mut rest = old;
        let mut head = block::next("current", &mut rest)?;
        for change in changes {
            while let Some((key, value)) = head.filter(|(key, _)| *key < &change.key[..]) {
                self.push(key, value);
                head = block::next("current", &mut rest)?;
            }
            let replaced = head.filter(|(key, _)| *key == &change.key[..]).map(|(_, value)| value.len() as u64);
            if replaced.is_some() {
                head = block::next("current", &mut rest)?;
            }
            let key_bytes = change.key.len() as u64 + RECORD_OVERHEAD_BYTES;
            if let Some(value) = replaced {
                *self.used = self.used.saturating_sub(value + key_bytes);
            }
            if !change.delete {
                current_of(change).encode(&mut record);
                *self.used += record.len() as u64 + key_bytes;
                self.push(&change.key, &record);
            }
        }
        while let Some((key, value)) = head {
            self.push(key, value);
            head = block::next("current", &mut rest)?;
        }
        // Keys that only ever grow fill block after block; others leave room in both halves.
        let appended = changes.first().is_some_and(|first| last_key.is_none_or(|last| first.key > last));
        self.write(at, !old.is_empty(), appended)
    }

    fn push(&mut self, key: &[u8], value: &[u8]) {
        block::push(&mut self.merged, key, value);
        self.ends.push(self.merged.len());
    }

    /// Writes what was merged instead of the block `at`, in as many blocks as it takes.
    fn write(&mut self, at: &[u8], existed: bool, fill: bool) -> Result<usize, StoreError> {
        if self.merged.is_empty() {
            if existed {
                self.table.remove(at)?;
            }
            return Ok(PAGE_BYTES);
        }
        let all = self.merged.len();
        let even = all / all.div_ceil(SPLIT_BYTES) + all / self.ends.len();
        let max = if fill { SPLIT_BYTES } else { even.min(SPLIT_BYTES) };
        let (mut start, mut end, mut dirtied) = (0, 0, 0);
        for next in self.ends.iter().copied().chain([usize::MAX]) {
            if next - start > max && end > start {
                let block = &self.merged[start..end];
                let key = if start == 0 { at } else { block::first_key("current", block)? };
                self.table.insert(key, block)?;
                dirtied += (key.len() + block.len()).next_multiple_of(PAGE_BYTES);
                start = end;
            }
            end = next;
        }
        Ok(dirtied)
    }
}

fn current_of(change: &Change) -> Current<'_> {
    Current {
        rev: change.rev,
        create: change.create,
        version: change.version,
        lease: change.lease,
        inline: (change.value.len() <= INLINE_BYTES_MAX).then_some(&change.value[..]),
    }
}

fn last_key(block: &[u8]) -> Result<Option<&[u8]>, StoreError> {
    block::records("current", block).last().map(|record| Ok(record?.0)).transpose()
}

#[cfg(test)]
mod tests {
    use super::super::codec::{Rev, tables_of};
    use super::super::types::Keyspace;
    use super::*;
    use bytes::Bytes;
    use rand::{Rng, SeedableRng, rngs::SmallRng};
    use redb::{Database, ReadableDatabase as _, backends::InMemoryBackend};
    use std::collections::BTreeMap;

    type Model = BTreeMap<Vec<u8>, u64>;

    fn change(key: &[u8], main: u64, delete: bool, value: usize) -> Change {
        Change {
            rev: Rev { main, sub: 0 },
            prev: Rev::NONE,
            older: crate::kv::overlay::NOWHERE,
            create: 1,
            version: 1,
            lease: 0,
            delete,
            key: Bytes::copy_from_slice(key),
            value: Bytes::from(vec![7; value]),
        }
    }

    fn merge(db: &Database, used: &mut u64, changes: &[Change]) {
        let txn = db.begin_write().unwrap();
        {
            let mut table = txn.open_table(tables_of(Keyspace::User)[0]).unwrap();
            Merger::new(&mut table, used).merge(&changes.iter().collect::<Vec<_>>()).unwrap();
        }
        txn.commit().unwrap();
    }

    fn revision(record: &[u8]) -> u64 {
        Current::decode(record).unwrap().rev.main
    }

    fn walk(table: &ReadTable, span: Span<'_>, reverse: bool) -> Vec<(Vec<u8>, u64)> {
        let mut keys = Keys::new(table, span, reverse).unwrap();
        let mut found = Vec::new();
        while let Some(key) = keys.key() {
            found.push((key.to_vec(), revision(keys.record().unwrap())));
            keys.advance().unwrap();
        }
        found
    }

    /// Blocks are in order, none is empty or too large, and the count of bytes is right.
    fn check(db: &Database, model: &Model, used: u64) -> ReadTable {
        let table = db.begin_read().unwrap().open_table(tables_of(Keyspace::User)[0]).unwrap();
        let (mut bytes, mut last): (u64, Option<Vec<u8>>) = (0, None);
        for item in table.iter().unwrap() {
            let (at, block) = item.unwrap();
            assert!(last.as_deref().is_none_or(|last| last < at.value()), "the block before reaches into this one");
            let records: Vec<_> = block::records("current", block.value()).collect::<Result<_, _>>().unwrap();
            assert!(!records.is_empty() && (block.value().len() <= SPLIT_BYTES || records.len() == 1));
            assert!(at.value() <= records[0].0);
            for (key, value) in records {
                assert!(last.as_deref().is_none_or(|last| last < key));
                bytes += (key.len() + value.len()) as u64 + RECORD_OVERHEAD_BYTES;
                last = Some(key.to_vec());
            }
        }
        assert_eq!(bytes, used);
        let all: Vec<_> = model.iter().map(|(key, main)| (key.clone(), *main)).collect();
        assert_eq!(walk(&table, Span::Range(b"", None), false), all);
        table
    }

    #[test]
    fn merges_are_what_a_map_would_be() {
        for seed in 0..40 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let db = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
            let (mut model, mut used) = (Model::new(), 0);
            let keys = [20, 300, 3_000][seed as usize % 3];
            let deletions = [5, 50, 90][seed as usize / 3 % 3];
            for main in 2..30 {
                let mut batch = BTreeMap::new();
                for _ in 0..rng.random_range(0..120) {
                    let key = format!("{:0len$}", rng.random_range(0..keys), len = rng.random_range(1..9)).into_bytes();
                    let delete = rng.random_range(0..100) < deletions;
                    let value = if rng.random_range(0..20) == 0 { 1_000 } else { rng.random_range(0..INLINE_BYTES_MAX) };
                    batch.insert(key.clone(), change(&key, main, delete, value));
                }
                for (key, change) in &batch {
                    if change.delete {
                        model.remove(key)
                    } else {
                        model.insert(key.clone(), main)
                    };
                }
                merge(&db, &mut used, &batch.into_values().collect::<Vec<_>>());
                let table = check(&db, &model, used);
                for _ in 0..20 {
                    let mut key = || format!("{:03}", rng.random_range(0..keys)).into_bytes();
                    let (from, to) = (key(), key());
                    assert_eq!(get(&table, &from).unwrap().map(|found| revision(found.record())), model.get(&from).copied());
                    let (from, to) = (from.clone().min(to.clone()), from.max(to));
                    let mut wanted: Vec<_> = model.range(from.clone()..to.clone()).map(|(key, main)| (key.clone(), *main)).collect();
                    assert_eq!(walk(&table, Span::Range(&from, Some(&to)), false), wanted);
                    wanted.reverse();
                    assert_eq!(walk(&table, Span::Range(&from, Some(&to)), true), wanted);
                    assert_eq!(walk(&table, Span::One(&from), true).len(), usize::from(model.contains_key(&from)));
                }
            }
            let gone: Vec<_> = model.keys().map(|key| change(key, 99, true, 0)).collect();
            merge(&db, &mut used, &gone);
            check(&db, &Model::new(), 0);
        }
    }

    #[test]
    fn keys_that_only_grow_fill_their_blocks() {
        let db = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
        let mut used = 0;
        for main in 0..50 {
            let changes: Vec<_> = (0..7).map(|i| change(format!("{main:03}{i}").as_bytes(), main + 2, false, 1)).collect();
            merge(&db, &mut used, &changes);
        }
        let table = db.begin_read().unwrap().open_table(tables_of(Keyspace::User)[0]).unwrap();
        let blocks: Vec<_> = table.iter().unwrap().map(|item| item.unwrap().1.value().len()).collect();
        let full = SPLIT_BYTES * 4 / 5;
        assert!(blocks[..blocks.len() - 1].iter().all(|len| *len > full), "{blocks:?}");
    }

    #[test]
    fn a_damaged_block_is_said_to_be_damaged() {
        let db = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
        let txn = db.begin_write().unwrap();
        txn.open_table(tables_of(Keyspace::User)[0]).unwrap().insert(&b""[..], &b"\x09\0\0\0\x01\0\0\0short"[..]).unwrap();
        txn.commit().unwrap();
        let table = db.begin_read().unwrap().open_table(tables_of(Keyspace::User)[0]).unwrap();
        assert!(matches!(get(&table, b"key"), Err(StoreError::Damaged { table: "current", .. })));
        assert!(matches!(Keys::new(&table, Span::Range(b"", None), true), Err(StoreError::Damaged { table: "current", .. })));
    }
}
