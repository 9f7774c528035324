//! Sets of keys, as permissions add up to them.

use super::types::Permission;
use bytes::Bytes;

/// Keys, as disjoint ranges in ascending order of which no two touch.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct KeySet(Vec<(Bytes, Option<Bytes>)>);

/// Where a permission or request ends, as it stands in etcd's messages.
fn end_of(key: &Bytes, range_end: &Bytes) -> Option<Bytes> {
    match &range_end[..] {
        [] => Some([&key[..], &[0]].concat().into()),
        [0] => None,
        _ => Some(range_end.clone()),
    }
}

impl KeySet {
    /// What the permissions cover together.
    pub(super) fn new<'p>(permissions: impl Iterator<Item = &'p Permission>) -> Self {
        let mut ranges: Vec<_> = permissions.map(|p| (p.key.clone(), end_of(&p.key, &p.range_end))).collect();
        ranges.sort();
        let mut set: Vec<(Bytes, Option<Bytes>)> = Vec::new();
        for (start, end) in ranges {
            match set.last_mut() {
                Some((_, None)) => break,
                Some((_, Some(last))) if start <= *last => match end {
                    Some(end) if end <= *last => {}
                    Some(end) => *last = end,
                    None => {
                        if let Some(open) = set.last_mut() {
                            open.1 = None;
                        }
                    }
                },
                _ => set.push((start, end)),
            }
        }
        Self(set)
    }

    /// Whether every key of a request's range is in the set. A range that holds no key counts as its first.
    pub(super) fn covers(&self, key: &[u8], range_end: &[u8]) -> bool {
        let after = self.0.partition_point(|(start, _)| &start[..] <= key);
        let Some((_, end)) = after.checked_sub(1).and_then(|i| self.0.get(i)) else { return false };
        let Some(end) = end else { return true };
        match range_end {
            [0] => false,
            _ if range_end > key => *end >= range_end,
            _ => &end[..] > key,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::types::PermissionKind;
    use super::*;

    fn set(ranges: &[(&'static str, &'static str)]) -> KeySet {
        let permissions: Vec<_> = ranges
            .iter()
            .map(|(key, end)| Permission { kind: PermissionKind::Read, key: (*key).into(), range_end: (*end).into() })
            .collect();
        KeySet::new(permissions.iter())
    }

    #[test]
    fn ranges_add_up() {
        assert_eq!(set(&[("a", "c"), ("c", "e"), ("b", "d")]), set(&[("a", "e")]));
        assert_eq!(set(&[("a", "\0"), ("b", "c"), ("x", "")]), set(&[("a", "\0")]));
        assert_eq!(set(&[("a", "c"), ("b", "\0")]), set(&[("a", "\0")]));
        assert_eq!(set(&[("a", "c"), ("x", "z")]).0.len(), 2);
    }

    #[test]
    fn what_is_covered() {
        let keys = set(&[("a", ""), ("c", "e"), ("e", "g"), ("x", "\0")]);
        for (key, end) in
            [("a", ""), ("c", ""), ("f", ""), ("c", "g"), ("d", "f"), ("x", ""), ("x", "\0"), ("z", "\0"), ("y", "z"), ("f", "c")]
        {
            assert!(keys.covers(key.as_bytes(), end.as_bytes()), "{key} {end}");
        }
        for (key, end) in
            [("", ""), ("a\0", ""), ("a", "b"), ("b", ""), ("g", ""), ("c", "g\0"), ("c", "\0"), ("\0", "\0"), ("w", "y"), ("g", "a")]
        {
            assert!(!keys.covers(key.as_bytes(), end.as_bytes()), "{key} {end}");
        }
        assert!(!set(&[]).covers(b"a", b""));
        assert!(set(&[("a", "")]).covers(b"a", b"a\0"), "a range that is one key");
        assert!(set(&[("\0", "\0")]).covers(b"\0", b"\0"));
    }

    /// Against the definition, over every range of a small alphabet.
    #[test]
    fn covers_means_every_key() {
        let letters = ["a", "b", "c", "d"];
        let ends = ["", "\0", "a", "b", "c", "d", "e"];
        let inside = |key: &str, end: &str, x: &str| match end {
            "" => x == key,
            "\0" => x >= key,
            _ => x >= key && x < end,
        };
        for (k1, e1) in letters.iter().flat_map(|k| ends.map(|e| (*k, e))).filter(|(k, e)| e.len() != 1 || *e == "\0" || e > k) {
            for (k2, e2) in letters.iter().flat_map(|k| ends.map(|e| (*k, e))).filter(|(k, e)| e.is_empty() || *e == "\0" || e > k) {
                let keys = set(&[(k1, e1), (k2, e2)]);
                for (key, end) in letters.iter().flat_map(|k| ends.map(|e| (*k, e))).filter(|(k, e)| e.is_empty() || *e == "\0" || e > k) {
                    // Between two letters lies a key as well, and behind the last one too.
                    let probes = ["a", "a0", "b", "b0", "c", "c0", "d", "d0", "e", "z"];
                    let whole = probes.iter().filter(|x| inside(key, end, x)).all(|x| inside(k1, e1, x) || inside(k2, e2, x));
                    assert_eq!(keys.covers(key.as_bytes(), end.as_bytes()), whole, "({k1},{e1})+({k2},{e2}) covers ({key},{end})");
                }
            }
        }
    }
}
