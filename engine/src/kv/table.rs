//! The tables without revisions (leases and their like), as the last checkpoint left them and as changed since.

use super::base::{Base, ReadTable};
use super::error::StoreError;
use super::overlay::Changes;
use bytes::Bytes;
use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::btree_map;
use std::iter::Peekable;
use std::ops::RangeBounds;
use std::sync::Arc;

/// A key or a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slice(pub Bytes);

impl Slice {
    pub(super) fn value(&self) -> &[u8] {
        &self.0
    }
}

/// A table to be read: changes lie over the file, later ones first.
#[derive(Clone, Copy)]
pub(super) struct Rows<'t> {
    pub layers: [Option<&'t Changes>; 2],
    pub base: &'t ReadTable,
}

type Item = Result<(Slice, Slice), StoreError>;

impl<'t> Rows<'t> {
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Slice>, StoreError> {
        for changes in self.layers.into_iter().flatten() {
            if let Some(value) = changes.get(key) {
                return Ok(value.clone().map(Slice));
            }
        }
        Ok(self.base.get(key)?.map(|value| Slice(Bytes::copy_from_slice(value.value()))))
    }

    pub(super) fn range<K: Borrow<[u8]>>(&self, range: impl RangeBounds<K>) -> Result<RowRange<'t>, StoreError> {
        let bounds = (range.start_bound().map(Borrow::borrow), range.end_bound().map(Borrow::borrow));
        let layers = self.layers.map(|changes| changes.map(|changes| changes.range::<[u8], _>(bounds).peekable()));
        Ok(RowRange { layers, base: self.base.range::<&[u8]>(bounds)?, ahead: None })
    }
}

/// Walks a table in order.
pub(super) struct RowRange<'t> {
    layers: [Option<Peekable<btree_map::Range<'t, Bytes, Option<Bytes>>>>; 2],
    base: redb::Range<'t, &'static [u8], &'static [u8]>,
    ahead: Option<(Bytes, Bytes)>,
}

impl RowRange<'_> {
    fn step(&mut self) -> Result<Option<(Bytes, Option<Bytes>)>, StoreError> {
        if self.ahead.is_none()
            && let Some(item) = self.base.next()
        {
            let (key, value) = item?;
            self.ahead = Some((Bytes::copy_from_slice(key.value()), Bytes::copy_from_slice(value.value())));
        }
        // The lowest key; of equal ones the layer on top, whose value counts.
        let mut best: Option<(usize, &Bytes)> = None;
        for (i, layer) in self.layers.iter_mut().enumerate() {
            let Some((key, _)) = layer.as_mut().and_then(|l| l.peek().copied()) else { continue };
            if best.is_none_or(|(_, lowest)| key < lowest) {
                best = Some((i, key));
            }
        }
        let order = match (&best, &self.ahead) {
            (None, _) => return Ok(self.ahead.take().map(|(key, value)| (key, Some(value)))),
            (Some(_), None) => Ordering::Less,
            (Some((_, key)), Some((in_base, _))) => (*key).cmp(in_base),
        };
        if order.is_gt() {
            return Ok(self.ahead.take().map(|(key, value)| (key, Some(value))));
        }
        if order.is_eq() {
            self.ahead = None;
        }
        let Some((from, key)) = best.map(|(i, key)| (i, key.clone())) else { return Ok(None) };
        let mut found = None;
        for layer in self.layers.iter_mut().skip(from).flatten() {
            let value = layer.next_if(|(k, _)| **k == key).map(|(_, value)| value.clone());
            found = found.or(value);
        }
        Ok(Some((key, found.flatten())))
    }
}

impl Iterator for RowRange<'_> {
    type Item = Item;
    fn next(&mut self) -> Option<Item> {
        loop {
            match self.step() {
                Err(error) => return Some(Err(error)),
                Ok(None) => return None,
                Ok(Some((key, Some(value)))) => return Some(Ok((Slice(key), Slice(value)))),
                Ok(Some((_, None))) => {}
            }
        }
    }
}

/// A table to be written: changes go to memory.
pub(super) struct Tbl<'t> {
    pub changes: &'t mut Changes,
    pub frozen: Option<&'t Changes>,
    pub base: &'t ReadTable,
}

impl Tbl<'_> {
    pub(super) fn rows(&self) -> Rows<'_> {
        Rows { layers: [Some(&*self.changes), self.frozen], base: self.base }
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Slice>, StoreError> {
        self.rows().get(key)
    }

    /// Returns what it replaces.
    pub(super) fn insert(&mut self, key: &[u8], value: &[u8]) -> Result<Option<Slice>, StoreError> {
        self.set(key, Some(Bytes::copy_from_slice(value)))
    }

    pub(super) fn remove(&mut self, key: &[u8]) -> Result<Option<Slice>, StoreError> {
        self.set(key, None)
    }

    fn set(&mut self, key: &[u8], value: Option<Bytes>) -> Result<Option<Slice>, StoreError> {
        let old = self.get(key)?;
        self.changes.insert(Bytes::copy_from_slice(key), value);
        Ok(old)
    }
}

/// A table at one moment, to be read at leisure.
pub(super) struct OwnedRows {
    pub changes: Changes,
    pub base: Arc<Base>,
    pub place: usize,
}

impl OwnedRows {
    pub(super) fn rows(&self) -> Rows<'_> {
        Rows { layers: [Some(&self.changes), None], base: &self.base.plain[self.place] }
    }

    pub(super) fn range<K: Borrow<[u8]>>(&self, range: impl RangeBounds<K>) -> Result<RowRange<'_>, StoreError> {
        self.rows().range(range)
    }
}
