//! Reading a key space: what was applied since the last checkpoint lies over the file.
//!
//! A view is of one revision. Changes of later ones are there and not looked at, so that a reader holds no
//! lock for longer than it takes to copy a few references.

use super::base::{BaseKeyspace, Seen, Walk};
use super::codec::{Current, Logged, Rev, damaged};
use super::error::{ReadError, StoreError};
use super::keys::KeyHash;
use super::overlay::{Change, Overlay, Recent};
use super::store::read_lock;
use super::types::{KeyValue, Keyspace, KvError, RangeRequest, RangeResponse, SortOrder, SortTarget};
use crate::types::Revision;
use bytes::Bytes;
use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::RwLock;

pub(super) type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// Changes that a cursor copies under one lock, first and at most.
const CHUNK_MIN: usize = 16;
const CHUNK_MAX: usize = 256;

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

    pub(super) fn start(&self) -> &'a [u8] {
        match *self {
            Self::One(key) | Self::Range(key, _) => key,
        }
    }

    pub(super) fn end(&self) -> Bound<&'a [u8]> {
        match *self {
            Self::One(key) => Bound::Included(key),
            Self::Range(_, None) => Bound::Unbounded,
            Self::Range(_, Some(end)) => Bound::Excluded(end),
        }
    }

    pub(super) fn bounds(&self) -> Bounds<'a> {
        (Bound::Included(self.start()), self.end())
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

/// What is known of a version, but for its key and value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbers {
    pub rev: Rev,
    pub create: u64,
    pub version: u64,
    pub lease: i64,
}

impl Numbers {
    /// `None` when the change is a deletion.
    pub(super) fn of_change(change: &Change) -> Option<Self> {
        let Change { rev, create, version, lease, .. } = *change;
        (!change.delete).then_some(Self { rev, create, version, lease })
    }

    pub(super) fn of_hit(hit: &Hit) -> Self {
        let Hit { rev, kv, .. } = hit;
        Self { rev: *rev, create: kv.create_revision.0, version: kv.version, lease: kv.lease }
    }
}

/// How much of a range is wanted.
struct Wanted<'f> {
    /// Load values at once.
    values: bool,
    reverse: bool,
    hits_max: usize,
    filter: &'f dyn Fn(&KeyValue) -> bool,
}

/// Changes over the file.
#[derive(Clone, Copy)]
pub(super) enum Layer<'t> {
    /// Perhaps being added to by somebody else.
    Shared(&'t RwLock<Overlay>, Keyspace),
    /// In the hands of whoever reads.
    Own(&'t Recent),
}

impl Layer<'_> {
    fn with<R>(&self, f: impl FnOnce(&Recent) -> R) -> R {
        match self {
            Self::Shared(overlay, keyspace) => f(read_lock(overlay).keyspace(*keyspace)),
            Self::Own(recent) => f(recent),
        }
    }
}

/// A key space at one moment.
pub(super) struct View<'t> {
    /// Later changes first.
    pub layers: [Option<Layer<'t>>; 2],
    pub base: &'t BaseKeyspace,
    /// The newest revision to be seen; inside a transaction that has written, its own.
    pub revision: u64,
    pub compact: u64,
}

fn hit_of(change: &Change) -> Option<Hit> {
    (!change.delete).then(|| Hit { rev: change.rev, kv: change.key_value(), loaded: true })
}

fn key_value(rev: Rev, record: &Logged<'_>) -> KeyValue {
    KeyValue {
        key: Bytes::copy_from_slice(record.key),
        value: Bytes::copy_from_slice(record.value),
        create_revision: Revision(record.create),
        mod_revision: Revision(rev.main),
        version: record.version,
        lease: record.lease,
    }
}

impl<'t> View<'t> {
    /// The numbers of a key's living version: what a put must know of it, without copies.
    pub(super) fn numbers(&self, key: &[u8], hash: KeyHash) -> Result<Option<Numbers>, StoreError> {
        for layer in self.layers.iter().flatten() {
            if let Some(found) = layer.with(|recent| recent.numbers(key, hash, self.revision)) {
                return Ok(found);
            }
        }
        self.base.numbers(key, hash)
    }

    /// The living version of a key, with its value if `values`.
    pub(super) fn get(&self, key: &[u8], values: bool) -> Result<Option<Hit>, StoreError> {
        let hash = KeyHash::of(key);
        for layer in self.layers.iter().flatten() {
            if let Some(found) = layer.with(|recent| recent.get(key, hash, self.revision).map(hit_of)) {
                return Ok(found);
            }
        }
        let Some(found) = self.base.get(key)? else { return Ok(None) };
        self.hit(Bytes::copy_from_slice(key), &Current::decode(found.record())?, values).map(Some)
    }

    fn hit(&self, key: Bytes, record: &Current<'_>, values: bool) -> Result<Hit, StoreError> {
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

    /// Fills in the value out of the history.
    pub(super) fn load(&self, hit: &mut Hit) -> Result<(), StoreError> {
        if !hit.loaded {
            hit.kv = self.logged(hit.rev)?.ok_or_else(|| damaged("log", "missing version", &hit.rev.key()))?;
            hit.loaded = true;
        }
        Ok(())
    }

    /// A put of the past; `None` when it has been collected.
    pub(super) fn logged(&self, rev: Rev) -> Result<Option<KeyValue>, StoreError> {
        if rev.main > self.base.revision {
            let found = self.layers.iter().flatten().find_map(|layer| layer.with(|recent| recent.logged(rev).map(Change::key_value)));
            return Ok(found);
        }
        self.base.logged(rev, |record| key_value(rev, record))
    }

    /// Shows `f` the history from `from` on, below `to`, until it returns false.
    pub(super) fn for_each_logged(
        &self,
        from: Rev,
        to: Rev,
        mut f: impl FnMut(Rev, &Logged<'_>) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        if from.main <= self.base.revision && !self.base.for_each_logged(from, to, &mut f)? {
            return Ok(());
        }
        for layer in self.layers.iter().rev().flatten() {
            let mut next = from;
            loop {
                let chunk = layer.with(|recent| {
                    let changes = recent.log_some(next, to);
                    changes[..changes.len().min(CHUNK_MAX)].to_vec()
                });
                let Some(last) = chunk.last() else { break };
                next = Rev { main: last.rev.main, sub: last.rev.sub.saturating_add(1) };
                for change in &chunk {
                    if !f(change.rev, &change.logged())? {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// Every living version in the span.
    pub(super) fn all(&self, span: Span<'_>, values: bool) -> Result<Vec<Hit>, StoreError> {
        let wanted = Wanted { values, reverse: false, hits_max: usize::MAX, filter: &|_| true };
        Ok(self.scan(span, self.revision, &wanted)?.0)
    }

    /// Walks the keys that live at revision `at`: the wanted hits and the count of all.
    fn scan(&self, span: Span<'_>, at: u64, wanted: &Wanted<'_>) -> Result<(Vec<Hit>, u64), StoreError> {
        let (mut hits, mut count) = (Vec::new(), 0);
        if span.is_empty() {
            return Ok((hits, count));
        }
        if let (Span::One(key), true) = (span, at == self.revision) {
            let hit = self.get(key, wanted.values)?;
            count = u64::from(hit.is_some());
            hits.extend(hit.filter(|hit| wanted.hits_max > 0 && (wanted.filter)(&hit.kv)));
            return Ok((hits, count));
        }
        let mut cursors = self.layers.map(|layer| layer.map(|layer| Cursor::new(layer, span, at, wanted.reverse)));
        let mut walk = self.base.walk(span, at, wanted.reverse)?;
        while let Some(from) = pick(&mut cursors, &walk, wanted.reverse) {
            let full = hits.len() >= wanted.hits_max;
            if let Some(change) = take(&mut cursors, &mut walk, from)? {
                if !change.delete {
                    count += 1;
                    hits.extend(hit_of(&change).filter(|hit| !full && (wanted.filter)(&hit.kv)));
                }
                continue;
            }
            if let Some(seen) = walk.seen()? {
                count += 1;
                if !full {
                    let hit = self.seen(walk.key().unwrap_or_default(), seen, wanted.values)?;
                    hits.extend(Some(hit).filter(|hit| (wanted.filter)(&hit.kv)));
                }
            }
            walk.advance()?;
        }
        Ok((hits, count))
    }

    fn seen(&self, key: &[u8], seen: Seen<'_>, values: bool) -> Result<Hit, StoreError> {
        match seen {
            Seen::Current(record) => self.hit(Bytes::copy_from_slice(key), &record, values),
            Seen::Old(rev) => {
                let mut hit = Hit { rev, kv: KeyValue::default(), loaded: false };
                self.load(&mut hit)?;
                Ok(hit)
            }
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
        let at = if now { self.revision } else { r.revision.0 };
        let (mut hits, count) = self.scan(span, at, &wanted)?;
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
        self.scan(Span::Range(b"", None), at, &wanted).map(drop)
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

/// Walks a layer's keys in chunks, so that its lock is held for moments only.
struct Cursor<'t> {
    layer: Layer<'t>,
    /// What is left: moves on with each chunk.
    from: Bound<Bytes>,
    to: Bound<Bytes>,
    at: u64,
    reverse: bool,
    chunk: VecDeque<Change>,
    chunk_max: usize,
    ended: bool,
}

fn owned(bound: Bound<&[u8]>) -> Bound<Bytes> {
    bound.map(Bytes::copy_from_slice)
}

fn borrowed(bound: &Bound<Bytes>) -> Bound<&[u8]> {
    bound.as_ref().map(|key| &key[..])
}

impl<'t> Cursor<'t> {
    fn new(layer: Layer<'t>, span: Span<'_>, at: u64, reverse: bool) -> Self {
        let (from, to) = span.bounds();
        let (from, to) = (owned(from), owned(to));
        Self { layer, from, to, at, reverse, chunk: VecDeque::new(), chunk_max: CHUNK_MIN, ended: false }
    }

    fn peek(&mut self) -> Option<&Change> {
        if self.chunk.is_empty() && !self.ended {
            self.fill();
        }
        self.chunk.front()
    }

    fn fill(&mut self) {
        let bounds = (borrowed(&self.from), borrowed(&self.to));
        self.chunk = self.layer.with(|recent| {
            let range = recent.range(bounds, self.at);
            if self.reverse { range.rev().take(self.chunk_max).cloned().collect() } else { range.take(self.chunk_max).cloned().collect() }
        });
        self.ended = self.chunk.len() < self.chunk_max;
        self.chunk_max = (self.chunk_max * 2).min(CHUNK_MAX);
        if let Some(last) = self.chunk.back() {
            let edge = Bound::Excluded(last.key.clone());
            if self.reverse {
                self.to = edge;
            } else {
                self.from = edge;
            }
            // An empty range of two excluded ends is more than the tree stands.
            self.ended |= matches!((&self.from, &self.to), (Bound::Excluded(a) | Bound::Included(a), Bound::Excluded(b)) if a >= b);
        }
    }
}

type Cursors<'t> = [Option<Cursor<'t>>; 2];

/// Which stream has the next key: a layer by its place, or the file (`None`); of equal keys, the layer on top.
fn pick(cursors: &mut Cursors<'_>, walk: &Walk<'_>, reverse: bool) -> Option<Option<usize>> {
    let mut best: Option<(Option<usize>, &[u8])> = None;
    for (i, cursor) in cursors.iter_mut().enumerate() {
        let Some(key) = cursor.as_mut().and_then(Cursor::peek).map(|change| &change.key[..]) else { continue };
        if best.is_none_or(|(_, best)| if reverse { key > best } else { key < best }) {
            best = Some((Some(i), key));
        }
    }
    if let Some(key) = walk.key()
        && best.is_none_or(|(_, best)| if reverse { key > best } else { key < best })
    {
        return Some(None);
    }
    best.map(|(from, _)| from)
}

/// Takes the next key's change off the layer that [`pick`] chose, and off the streams below; `None` when it
/// chose the file.
fn take(cursors: &mut Cursors<'_>, walk: &mut Walk<'_>, from: Option<usize>) -> Result<Option<Change>, StoreError> {
    let Some(from) = from else { return Ok(None) };
    let Some(change) = cursors[from].as_mut().and_then(|cursor| cursor.chunk.pop_front()) else { return Ok(None) };
    for cursor in cursors[from + 1..].iter_mut().flatten() {
        if cursor.peek().is_some_and(|below| below.key == change.key) {
            cursor.chunk.pop_front();
        }
    }
    if walk.key() == Some(&change.key[..]) {
        walk.advance()?;
    }
    Ok(Some(change))
}
