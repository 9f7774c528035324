//! Who watches a key.
//!
//! Nearly all watchers are on one key or on a prefix; both are found by look-ups, whose number depends on the
//! key's length alone. Other ranges are kept once for all their watchers and scanned up to the key.

use super::watch::{WatchId, WatchRequest};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

type Ids = BTreeSet<WatchId>;

/// Watchers by what they watch.
#[derive(Debug, Default)]
pub(super) struct Lookup {
    exact: BTreeMap<Bytes, Ids>,
    prefixes: BTreeMap<Bytes, Ids>,
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

fn add<K: Ord>(map: &mut BTreeMap<K, Ids>, key: K, id: WatchId) -> bool {
    let ids = map.entry(key).or_default();
    ids.insert(id) && ids.len() == 1
}

fn drop_id<K: Ord>(map: &mut BTreeMap<K, Ids>, key: &K, id: WatchId) -> bool {
    let Some(ids) = map.get_mut(key) else { return false };
    let emptied = ids.remove(&id) && ids.is_empty();
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
            add(&mut self.exact, request.key.clone(), id);
        } else if is_prefix(&request.key, &request.range_end) {
            if add(&mut self.prefixes, request.key.clone(), id) {
                *self.prefix_lens.entry(request.key.len()).or_default() += 1;
            }
        } else {
            add(&mut self.ranges, range_of(request), id);
        }
    }

    /// Does nothing when the watcher is not in it.
    pub(super) fn remove(&mut self, id: WatchId, request: &WatchRequest) {
        if request.range_end.is_empty() {
            drop_id(&mut self.exact, &request.key, id);
        } else if is_prefix(&request.key, &request.range_end) {
            if drop_id(&mut self.prefixes, &request.key, id)
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

    /// Appends the watchers of a key, each once.
    pub(super) fn find(&self, key: &Bytes, out: &mut Vec<WatchId>) {
        out.extend(self.exact.get(key).into_iter().flatten());
        for &len in self.prefix_lens.range(..=key.len()).map(|(len, _)| len) {
            out.extend(self.prefixes.get(&key[..len]).into_iter().flatten());
        }
        for ((start, end), ids) in &self.ranges {
            if start > key {
                break;
            }
            if end.is_empty() || key < end {
                out.extend(ids);
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
