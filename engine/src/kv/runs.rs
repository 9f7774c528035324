//! The index of superseded versions: FORMAT.md, `KS.index`.
//!
//! Each checkpoint adds a run: what was superseded since the one before, sorted by key and revision, in blocks.
//! A version is needed from the index only by a read at a revision from which on it was superseded, so a read
//! at R looks at the runs that reach beyond R, and no others; and what compaction makes unreachable goes by
//! whole runs. Runs are merged when there are many, so that their number stays logarithmic.

use super::base::ReadTable;
use super::block;
use super::codec::{Rev, index_key, split_index_key, split_index_value};
use super::error::StoreError;
use super::history::{Block, History};
use super::read::{Bounds, Span};
use redb::ReadableTable;
use std::collections::BTreeMap;
use std::ops::Bound;

pub(super) type Range<'t> = redb::Range<'t, &'static [u8], &'static [u8]>;
pub(super) type Guard<'t> = redb::AccessGuard<'t, &'static [u8]>;

/// So many runs of one size class are merged into one.
pub(super) const RUNS_MERGED: usize = 8;

/// How many blocks a key space's runs have, by what they reach up to. Whoever does not know has to read them all to count them; after an opening
/// nobody does.
pub(super) type RunSizes = BTreeMap<u64, usize>;

/// The table's key of a block: the last revision that its run is about, and the block's first record.
pub(super) fn block_key(upto: u64, first: &[u8]) -> Vec<u8> {
    let mut key = upto.to_be_bytes().to_vec();
    key.extend_from_slice(first);
    key
}

/// The first run that reaches beyond a revision.
pub(super) fn next_run(index: &impl ReadableTable<&'static [u8], &'static [u8]>, beyond: u64) -> Result<Option<u64>, StoreError> {
    let from = beyond.saturating_add(1).to_be_bytes();
    let Some(item) = index.range::<&[u8]>(&from[..]..)?.next() else { return Ok(None) };
    let (key, _) = item?;
    match key.value().first_chunk::<8>() {
        Some(upto) => Ok(Some(u64::from_be_bytes(*upto))),
        None => Err(super::codec::damaged("index", "key", key.value())),
    }
}

/// One record of the index.
pub(super) struct Old {
    pub key: Vec<u8>,
    pub rev: Rev,
    pub tombstone: bool,
}

/// Walks one run from some key on.
pub(super) struct RunCursor<'t> {
    history: &'t History,
    blocks: Range<'t>,
    block: Option<Block<'t>>,
    offset: usize,
    /// Records before it are left out.
    start: Vec<u8>,
    end: Option<Vec<u8>>,
}

impl<'t> RunCursor<'t> {
    /// Records from `start` on, below `end`: both are keys of records.
    pub(super) fn new<T: ReadableTable<&'static [u8], &'static [u8]>>(
        (index, history): (&'t T, &'t History),
        upto: u64,
        start: Vec<u8>,
        end: Option<Vec<u8>>,
    ) -> Result<Self, StoreError> {
        let (lowest, wanted) = (upto.to_be_bytes(), block_key(upto, &start));
        // `start` lies in the block whose first record is the last at or before it.
        let first = match index.range::<&[u8]>(&lowest[..]..=&wanted[..])?.next_back() {
            Some(item) => item?.0.value().to_vec(),
            None => wanted,
        };
        let beyond = upto.checked_add(1).map(u64::to_be_bytes);
        let bounds: Bounds<'_> = (Bound::Included(&first), beyond.as_ref().map_or(Bound::Unbounded, |key| Bound::Excluded(&key[..])));
        Ok(Self { history, blocks: index.range::<&[u8]>(bounds)?, block: None, offset: 0, start, end })
    }

    /// The next record as it is in the block: key and value.
    pub(super) fn next_raw<R>(&mut self, f: impl FnOnce(&[u8], &[u8]) -> R) -> Result<Option<R>, StoreError> {
        loop {
            let Some(block) = &self.block else {
                let Some(item) = self.blocks.next() else { return Ok(None) };
                self.block = Some(self.history.block_of(item?.1)?);
                self.offset = 0;
                continue;
            };
            let mut rest = &block.bytes()[self.offset..];
            let before = rest.len();
            let Some((key, value)) = block::next("index", &mut rest)? else {
                self.block = None;
                continue;
            };
            self.offset += before - rest.len();
            if self.end.as_deref().is_some_and(|end| key >= end) {
                return Ok(None);
            }
            if key >= &self.start[..] {
                return Ok(Some(f(key, value)));
            }
        }
    }

    /// As [`Self::next_raw`], over what `key` and `value` hold; false at the end.
    pub(super) fn next_into(&mut self, (own_key, own_value): &mut (Vec<u8>, Vec<u8>)) -> Result<bool, StoreError> {
        let copy = |key: &[u8], value: &[u8]| {
            own_key.clear();
            own_key.extend_from_slice(key);
            own_value.clear();
            own_value.extend_from_slice(value);
        };
        Ok(self.next_raw(copy)?.is_some())
    }

    fn next(&mut self) -> Result<Option<Old>, StoreError> {
        let parse = |key: &[u8], value: &[u8]| {
            let (key, main) = split_index_key(key)?;
            let (sub, tombstone) = split_index_value(value)?;
            Ok(Old { key, rev: Rev { main, sub }, tombstone })
        };
        self.next_raw(parse)?.transpose()
    }
}

/// One key of the index, with its version as of the wanted revision.
pub(super) struct OldVersion {
    pub key: Vec<u8>,
    /// `None`: deleted, or not yet there.
    pub visible: Option<Rev>,
}

/// Groups the runs that matter by key.
pub(super) struct OldVersions<'t> {
    /// With the next record of each; those at their end are gone.
    runs: Vec<(Old, RunCursor<'t>)>,
    at: u64,
}

impl<'t> OldVersions<'t> {
    pub(super) fn new(index: &'t ReadTable, history: &'t History, span: Span<'_>, at: u64) -> Result<Self, StoreError> {
        let (start, end) = match span {
            Span::One(key) => (index_key(key, 0), Some(index_key(key, u64::MAX))),
            Span::Range(start, end) => (index_key(start, 0), end.map(|end| index_key(end, 0))),
        };
        let mut runs = Vec::new();
        let mut beyond = at;
        while let Some(upto) = next_run(index, beyond)? {
            let mut cursor = RunCursor::new((index, history), upto, start.clone(), end.clone())?;
            if let Some(old) = cursor.next()? {
                runs.push((old, cursor));
            }
            beyond = upto;
        }
        Ok(Self { runs, at })
    }

    pub(super) fn next(&mut self) -> Result<Option<OldVersion>, StoreError> {
        let lowest = self.runs.iter().map(|(old, _)| &old.key).min();
        let Some(key) = lowest.cloned() else { return Ok(None) };
        let mut latest: Option<(Rev, bool)> = None;
        let mut i = 0;
        while i < self.runs.len() {
            let (old, cursor) = &mut self.runs[i];
            if old.key != key {
                i += 1;
                continue;
            }
            if old.rev.main <= self.at && latest.is_none_or(|(rev, _)| rev < old.rev) {
                latest = Some((old.rev, old.tombstone));
            }
            match cursor.next()? {
                Some(next) => *old = next,
                None => drop(self.runs.swap_remove(i)),
            }
        }
        Ok(Some(OldVersion { key, visible: latest.filter(|(_, tombstone)| !tombstone).map(|(rev, _)| rev) }))
    }
}
