//! Who watches a key.
//!
//! Nearly all watchers are on one key or on a prefix; both are found by look-ups, whose number depends on the
//! key's length alone. Other ranges are kept once for all their watchers and scanned up to the key.

use super::watch::{WatchId, WatchRequest};
use bytes::Bytes;
use std::borrow::Borrow;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

/// Watchers of the same. Mostly there is one, for which a set would take six times its room.
#[derive(Debug)]
enum Ids {
    One(WatchId),
    #[allow(clippy::box_collection, reason = "seldom: it halves the record")]
    Many(Box<BTreeSet<WatchId>>),
}

impl Ids {
    fn insert(&mut self, id: WatchId) {
        match self {
            Self::One(own) if *own == id => {}
            Self::One(own) => *self = Self::Many(Box::new(BTreeSet::from([*own, id]))),
            Self::Many(ids) => {
                ids.insert(id);
            }
        }
    }

    /// Whether anybody is left.
    fn remove(&mut self, id: WatchId) -> bool {
        match self {
            Self::One(own) => *own != id,
            Self::Many(ids) => {
                ids.remove(&id);
                !ids.is_empty()
            }
        }
    }

    fn append_to(&self, out: &mut Vec<WatchId>) {
        match self {
            Self::One(id) => out.push(*id),
            Self::Many(ids) => out.extend(ids.iter()),
        }
    }
}

/// Watchers by what they watch.
#[derive(Debug, Default)]
pub(super) struct Lookup {
    exact: BTreeMap<Box<[u8]>, Ids>,
    prefixes: BTreeMap<Box<[u8]>, Ids>,
    /// How many prefixes of each length there are.
    prefix_lens: BTreeMap<usize, usize>,
    /// By start and end; an empty end is none.
    ranges: BTreeMap<(Bytes, Bytes), Ids>,
}

/// Whether `[start, end)` is exactly the keys that begin with `start`.
fn is_prefix(start: &[u8], end: &[u8]) -> bool {
    // The end of a prefix's range: its last byte that can grow, grown; bytes behind it dropped.
    let Some(last) = start.iter().rposition(|&byte| byte < 0xff) else { return false };
    end.len() == last + 1 && end[..last] == start[..last] && end[last] == start[last] + 1
}

/// True when it is the first of its key.
fn add<K: Ord>(map: &mut BTreeMap<K, Ids>, key: K, id: WatchId) -> bool {
    match map.entry(key) {
        Entry::Vacant(entry) => {
            entry.insert(Ids::One(id));
            true
        }
        Entry::Occupied(mut entry) => {
            entry.get_mut().insert(id);
            false
        }
    }
}

/// True when it was the last of its key.
fn drop_id<Q: Ord + ?Sized, K: Ord + Borrow<Q>>(map: &mut BTreeMap<K, Ids>, key: &Q, id: WatchId) -> bool {
    let emptied = map.get_mut(key).is_some_and(|ids| !ids.remove(id));
    if emptied {
        map.remove(key);
    }
    emptied
}

fn range_of(request: &WatchRequest) -> (Bytes, Bytes) {
    let end = if request.range_end[..] == [0] { Bytes::new() } else { request.range_end.clone() };
    (request.key.clone(), end)
}

impl Lookup {
    pub(super) fn insert(&mut self, id: WatchId, request: &WatchRequest) {
        if request.range_end.is_empty() {
            add(&mut self.exact, request.key[..].into(), id);
        } else if is_prefix(&request.key, &request.range_end) {
            if add(&mut self.prefixes, request.key[..].into(), id) {
                *self.prefix_lens.entry(request.key.len()).or_default() += 1;
            }
        } else {
            add(&mut self.ranges, range_of(request), id);
        }
    }

    /// Does nothing when the watcher is not in it.
    pub(super) fn remove(&mut self, id: WatchId, request: &WatchRequest) {
        if request.range_end.is_empty() {
            drop_id(&mut self.exact, &request.key[..], id);
        } else if is_prefix(&request.key, &request.range_end) {
            if drop_id(&mut self.prefixes, &request.key[..], id)
                && let Some(count) = self.prefix_lens.get_mut(&request.key.len())
            {
                *count -= 1;
                if *count == 0 {
                    self.prefix_lens.remove(&request.key.len());
                }
            }
        } else {
            drop_id(&mut self.ranges, &range_of(request), id);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.prefixes.is_empty() && self.ranges.is_empty()
    }

    /// Appends the watchers of a key, each once.
    pub(super) fn find(&self, key: &Bytes, out: &mut Vec<WatchId>) {
        if let Some(ids) = self.exact.get(&key[..]) {
            ids.append_to(out);
        }
        for &len in self.prefix_lens.range(..=key.len()).map(|(len, _)| len) {
            if let Some(ids) = self.prefixes.get(&key[..len]) {
                ids.append_to(out);
            }
        }
        for ((start, end), ids) in &self.ranges {
            if start > key {
                break;
            }
            if end.is_empty() || key < end {
                ids.append_to(out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_exactly_the_watchers_of_a_key() {
        let requests: Vec<(&[u8], &[u8])> =
            vec![(b"a", b""), (b"a", b"b"), (b"a/", b"a0"), (b"a", b"c"), (b"\0", b"\0"), (b"b", b"\0"), (b"z\xff", b"{"), (b"c", b"a")];
        let request = |(key, end): &(&[u8], &[u8])| WatchRequest {
            key: Bytes::copy_from_slice(key),
            range_end: Bytes::copy_from_slice(end),
            ..WatchRequest::default()
        };
        let mut lookup = Lookup::default();
        for (i, r) in requests.iter().enumerate() {
            lookup.insert(WatchId(i as u64), &request(r));
        }
        let found = |lookup: &Lookup, key: &'static [u8]| {
            let mut ids = Vec::new();
            lookup.find(&Bytes::from_static(key), &mut ids);
            ids.sort();
            ids.into_iter().map(|id| id.0).collect::<Vec<_>>()
        };
        assert_eq!(found(&lookup, b"a"), [0, 1, 3, 4]);
        for (again, all) in [(9, [0, 1, 3, 4, 9].to_vec()), (10, [0, 1, 3, 4, 9, 10].to_vec())] {
            lookup.insert(WatchId(again), &request(&requests[0]));
            assert_eq!(found(&lookup, b"a"), all);
        }
        for gone in [10, 9, 9] {
            lookup.remove(WatchId(gone), &request(&requests[0]));
        }
        assert_eq!(found(&lookup, b"a"), [0, 1, 3, 4]);
        assert_eq!(found(&lookup, b"a/x"), [1, 2, 3, 4]);
        assert_eq!(found(&lookup, b"b"), [3, 4, 5]);
        assert_eq!(found(&lookup, b"z\xff\x01"), [4, 5, 6]);
        assert_eq!(found(&lookup, b"z"), [4, 5], "the range is cut to the prefix's own keys");
        for (i, r) in requests.iter().enumerate() {
            lookup.remove(WatchId(i as u64), &request(r));
        }
        assert!(lookup.exact.is_empty() && lookup.prefixes.is_empty() && lookup.prefix_lens.is_empty());
        assert!(lookup.ranges.is_empty());
    }
}
