//! Reading the tables, inside a read transaction or in the midst of a write transaction alike.

use super::codec::{Current, Logged, Rev, damaged, index_key, split_index_key, split_index_value};
use super::error::{ReadError, StoreError};
use super::types::{KeyValue, KvError, RangeRequest, RangeResponse, SortOrder, SortTarget};
use crate::types::Revision;
use bytes::Bytes;
use redb::ReadableTable;
use std::cmp::Ordering;
use std::ops::Bound;

/// A request's keys.
#[derive(Clone, Copy, Debug)]
pub(super) enum Span<'a> {
    One(&'a [u8]),
    /// `[start, end)`; no end: everything from `start` on.
    Range(&'a [u8], Option<&'a [u8]>),
}

impl<'a> Span<'a> {
    /// etcd's convention: no `range_end` is one key, `\0` is everything from `key` on.
    pub(super) fn new(key: &'a [u8], range_end: &'a [u8]) -> Self {
        match range_end {
            [] => Self::One(key),
            [0] => Self::Range(key, None),
            _ => Self::Range(key, Some(range_end.max(key))),
        }
    }

    fn bounds(&self) -> (Bound<&'a [u8]>, Bound<&'a [u8]>) {
        match *self {
            Self::One(key) => (Bound::Included(key), Bound::Included(key)),
            Self::Range(start, None) => (Bound::Included(start), Bound::Unbounded),
            Self::Range(start, Some(end)) => (Bound::Included(start), Bound::Excluded(end)),
        }
    }

    fn is_empty(&self) -> bool {
        matches!(self, Self::Range(start, Some(end)) if start >= end)
    }
}

/// A visible version of a key; its value may still be in `log`.
#[derive(Clone, Debug)]
pub(super) struct Hit {
    pub rev: Rev,
    pub kv: KeyValue,
    /// `kv.value` is filled.
    pub loaded: bool,
}

/// How much of a range is wanted.
struct Wanted<'f> {
    /// Load values at once.
    values: bool,
    reverse: bool,
    hits_max: usize,
    filter: &'f dyn Fn(&KeyValue) -> bool,
}

/// The three tables of a key space at one moment.
pub(super) struct View<'t, T> {
    pub current: &'t T,
    pub log: &'t T,
    pub index: &'t T,
    /// The newest revision to be seen; inside a transaction that has written, its own.
    pub revision: u64,
    pub compact: u64,
}

impl<T: ReadableTable<&'static [u8], &'static [u8]>> View<'_, T> {
    /// The living version of a key, with its value if `values`.
    pub(super) fn get(&self, key: &[u8], values: bool) -> Result<Option<Hit>, StoreError> {
        let Some(guard) = self.current.get(key)? else { return Ok(None) };
        self.hit(Bytes::copy_from_slice(key), Current::decode(guard.value())?, values).map(Some)
    }

    fn hit(&self, key: Bytes, record: Current<'_>, values: bool) -> Result<Hit, StoreError> {
        let mut hit = Hit {
            rev: record.rev,
            kv: KeyValue {
                key,
                value: Bytes::new(),
                create_revision: Revision(record.create),
                mod_revision: Revision(record.rev.main),
                version: record.version,
                lease: record.lease,
            },
            loaded: false,
        };
        if values {
            match record.inline {
                Some(value) => {
                    hit.kv.value = Bytes::copy_from_slice(value);
                    hit.loaded = true;
                }
                None => self.load(&mut hit)?,
            }
        }
        Ok(hit)
    }

    /// Fills in the value out of `log`.
    fn load(&self, hit: &mut Hit) -> Result<(), StoreError> {
        if !hit.loaded {
            hit.kv = self.logged(hit.rev)?.ok_or_else(|| damaged("log", "missing version", &hit.rev.key()))?;
            hit.loaded = true;
        }
        Ok(())
    }

    /// A put of the past, out of `log`; `None` when it has been collected.
    pub(super) fn logged(&self, rev: Rev) -> Result<Option<KeyValue>, StoreError> {
        let Some(guard) = self.log.get(&rev.key()[..])? else { return Ok(None) };
        let record = Logged::decode(guard.value())?;
        Ok(Some(KeyValue {
            key: Bytes::copy_from_slice(record.key),
            value: Bytes::copy_from_slice(record.value),
            create_revision: Revision(record.create),
            mod_revision: Revision(rev.main),
            version: record.version,
            lease: record.lease,
        }))
    }

    /// Every living version in the span.
    pub(super) fn all(&self, span: Span<'_>, values: bool) -> Result<Vec<Hit>, StoreError> {
        let wanted = Wanted { values, reverse: false, hits_max: usize::MAX, filter: &|_| true };
        Ok(self.scan(span, &wanted)?.0)
    }

    /// Walks the living keys: the wanted hits and the count of all.
    fn scan(&self, span: Span<'_>, wanted: &Wanted<'_>) -> Result<(Vec<Hit>, u64), StoreError> {
        let (mut hits, mut count) = (Vec::new(), 0);
        if span.is_empty() {
            return Ok((hits, count));
        }
        if let Span::One(key) = span {
            let hit = self.get(key, wanted.values)?;
            count = u64::from(hit.is_some());
            hits.extend(hit.filter(|hit| wanted.hits_max > 0 && (wanted.filter)(&hit.kv)));
            return Ok((hits, count));
        }
        let mut range = self.current.range::<&[u8]>(span.bounds())?;
        while let Some(item) = if wanted.reverse { range.next_back() } else { range.next() } {
            count += 1;
            if hits.len() < wanted.hits_max {
                let (key, record) = item?;
                let key = Bytes::copy_from_slice(key.value());
                let hit = self.hit(key, Current::decode(record.value())?, wanted.values)?;
                if (wanted.filter)(&hit.kv) {
                    hits.push(hit);
                }
            } else {
                item?;
            }
        }
        Ok((hits, count))
    }

    /// The same as of revision `at`: a merge of `current`, which knows keys untouched since, with `index`,
    /// which knows superseded versions and deletions.
    fn scan_at(&self, span: Span<'_>, at: u64, wanted: &Wanted<'_>) -> Result<(Vec<Hit>, u64), StoreError> {
        let (mut hits, mut count) = (Vec::new(), 0);
        if span.is_empty() {
            return Ok((hits, count));
        }
        let mut olds = OldVersions::new(self.index, span, at)?;
        let mut range = self.current.range::<&[u8]>(span.bounds())?;
        let (mut old, mut new) = (olds.next()?, range.next().transpose()?);
        loop {
            let order = match (&old, &new) {
                (None, None) => return Ok((hits, count)),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(old), Some((key, _))) => old.key[..].cmp(key.value()),
            };
            let full = hits.len() >= wanted.hits_max;
            let mut seen = None;
            if order.is_ge() {
                if let Some((key, record)) = &new {
                    let record = Current::decode(record.value())?;
                    if record.rev.main <= at {
                        count += 1;
                        let wanted_now = (!full).then(|| self.hit(Bytes::copy_from_slice(key.value()), record, wanted.values));
                        seen = Some(wanted_now.transpose()?);
                    }
                }
                new = range.next().transpose()?;
            }
            if order.is_le() {
                if let Some(rev) = old.as_ref().and_then(|old| old.visible).filter(|_| seen.is_none()) {
                    count += 1;
                    if !full {
                        let mut hit = Hit { rev, kv: KeyValue::default(), loaded: false };
                        self.load(&mut hit)?;
                        seen = Some(Some(hit));
                    }
                }
                old = olds.next()?;
            }
            hits.extend(seen.flatten().filter(|hit| (wanted.filter)(&hit.kv)));
        }
    }

    /// Refuses revisions outside of history; 0 is now.
    pub(super) fn check_revision(&self, revision: Revision) -> Result<(), KvError> {
        if revision.0 > self.revision {
            return Err(KvError::FutureRevision);
        }
        if revision.0 > 0 && revision.0 < self.compact {
            return Err(KvError::Compacted);
        }
        Ok(())
    }

    /// etcd's Range. Sorting and filters work on light records; values are loaded for what is returned.
    pub(super) fn range(&self, r: &RangeRequest) -> Result<RangeResponse, ReadError> {
        self.check_revision(r.revision)?;
        let limit = if r.limit == 0 { usize::MAX } else { usize::try_from(r.limit).unwrap_or(usize::MAX) };
        let now = r.revision.0 == 0 || r.revision.0 == self.revision;
        let filtered =
            [r.min_mod_revision, r.max_mod_revision, r.min_create_revision, r.max_create_revision].iter().any(|bound| bound.0 > 0);
        // What comes out of the scan in the wanted order needs no sorting.
        let descending_keys = r.sort_target == SortTarget::Key && r.sort_order == SortOrder::Descend;
        let reverse = descending_keys && now;
        let sorted = reverse || (r.sort_target == SortTarget::Key && !descending_keys);
        let hits_max = match (r.count_only, sorted && !filtered) {
            (true, _) => 0,
            (false, true) => limit.saturating_add(1),
            (false, false) => usize::MAX,
        };
        let values = (!r.keys_only && sorted && !filtered) || r.sort_target == SortTarget::Value;
        let filter = |kv: &KeyValue| passes(r, kv);
        let wanted = Wanted { values, reverse, hits_max, filter: &filter };
        let span = Span::new(&r.key, &r.range_end);
        let (mut hits, count) = if now { self.scan(span, &wanted)? } else { self.scan_at(span, r.revision.0, &wanted)? };
        if !sorted {
            sort(&mut hits, r.sort_target, r.sort_order);
        }
        let more = !r.count_only && hits.len() > limit;
        hits.truncate(limit);
        let mut kvs = Vec::with_capacity(hits.len());
        for mut hit in hits {
            if r.keys_only {
                hit.kv.value = Bytes::new();
            } else {
                self.load(&mut hit)?;
            }
            kvs.push(hit.kv);
        }
        Ok(RangeResponse { kvs, more, count })
    }

    /// Every version that is visible at `at`, as key and revision, in order.
    pub(super) fn for_each_at(&self, at: u64, mut f: impl FnMut(&KeyValue)) -> Result<(), StoreError> {
        // The filter sees every hit and keeps none, so that memory stays flat.
        let cell = std::cell::RefCell::new(&mut f);
        let filter = |kv: &KeyValue| {
            (cell.borrow_mut())(kv);
            false
        };
        let wanted = Wanted { values: false, reverse: false, hits_max: usize::MAX, filter: &filter };
        self.scan_at(Span::Range(b"", None), at, &wanted).map(drop)
    }
}

fn passes(r: &RangeRequest, kv: &KeyValue) -> bool {
    let within = |x: Revision, min: Revision, max: Revision| (min.0 == 0 || x >= min) && (max.0 == 0 || x <= max);
    within(kv.mod_revision, r.min_mod_revision, r.max_mod_revision)
        && within(kv.create_revision, r.min_create_revision, r.max_create_revision)
}

/// Stable, so that equal ones stay in key order and every member answers alike.
fn sort(hits: &mut [Hit], target: SortTarget, order: SortOrder) {
    hits.sort_by(|a, b| {
        let (a, b) = (&a.kv, &b.kv);
        let ascending = match target {
            SortTarget::Key => a.key.cmp(&b.key),
            SortTarget::Version => a.version.cmp(&b.version),
            SortTarget::Create => a.create_revision.cmp(&b.create_revision),
            SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
            SortTarget::Value => a.value.cmp(&b.value),
        };
        if order == SortOrder::Descend { ascending.reverse() } else { ascending }
    });
}

/// One key of `index`, with its version as of the wanted revision.
struct OldVersion {
    key: Vec<u8>,
    /// `None`: deleted, or not yet there.
    visible: Option<Rev>,
}

/// Groups `index` by key.
struct OldVersions<'t> {
    range: redb::Range<'t, &'static [u8], &'static [u8]>,
    ahead: Option<(Vec<u8>, Rev, bool)>,
    at: u64,
}

impl<'t> OldVersions<'t> {
    fn new<T: ReadableTable<&'static [u8], &'static [u8]>>(index: &'t T, span: Span<'_>, at: u64) -> Result<Self, StoreError> {
        let (start, end) = match span {
            Span::One(key) => (index_key(key, 0), Some(index_key(key, u64::MAX))),
            Span::Range(start, end) => (index_key(start, 0), end.map(|end| index_key(end, 0))),
        };
        let end = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let range = index.range::<&[u8]>((Bound::Included(&start[..]), end))?;
        let mut olds = Self { range, ahead: None, at };
        olds.ahead = olds.read()?;
        Ok(olds)
    }

    fn read(&mut self) -> Result<Option<(Vec<u8>, Rev, bool)>, StoreError> {
        let Some(item) = self.range.next() else { return Ok(None) };
        let (key, value) = item?;
        let (key, main) = split_index_key(key.value())?;
        let (sub, tombstone) = split_index_value(value.value())?;
        Ok(Some((key, Rev { main, sub }, tombstone)))
    }

    fn next(&mut self) -> Result<Option<OldVersion>, StoreError> {
        let Some((key, rev, tombstone)) = self.ahead.take() else { return Ok(None) };
        let mut old = OldVersion { key, visible: None };
        let mut version = Some((rev, tombstone));
        while let Some((rev, tombstone)) = version {
            if rev.main <= self.at {
                old.visible = (!tombstone).then_some(rev);
            }
            version = match self.read()? {
                Some((key, rev, tombstone)) if key == old.key => Some((rev, tombstone)),
                other => {
                    self.ahead = other;
                    None
                }
            };
        }
        Ok(Some(old))
    }
}
