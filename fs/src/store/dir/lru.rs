//! A small map that forgets what was used longest ago. Bounds the descriptors that a brick keeps open.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// At most `entries_max` entries.
pub(crate) struct Lru<K, V> {
    entries_max: usize,
    stamp: u64,
    map: HashMap<K, (V, u64)>,
    order: BTreeMap<u64, K>,
}

impl<K: Hash + Eq + Copy, V: Clone> Lru<K, V> {
    pub(crate) fn new(entries_max: usize) -> Self {
        Self { entries_max: entries_max.max(1), stamp: 0, map: HashMap::new(), order: BTreeMap::new() }
    }

    pub(crate) fn get(&mut self, key: K) -> Option<V> {
        let (value, stamp) = self.map.get_mut(&key)?;
        self.stamp += 1;
        self.order.remove(stamp);
        *stamp = self.stamp;
        self.order.insert(self.stamp, key);
        Some(value.clone())
    }

    pub(crate) fn put(&mut self, key: K, value: V) {
        self.remove(key);
        if self.map.len() >= self.entries_max
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.map.remove(&oldest);
        }
        self.stamp += 1;
        self.map.insert(key, (value, self.stamp));
        self.order.insert(self.stamp, key);
    }

    pub(crate) fn remove(&mut self, key: K) {
        if let Some((_, stamp)) = self.map.remove(&key) {
            self.order.remove(&stamp);
        }
    }

    pub(crate) fn clear(&mut self) {
        self.map.clear();
        self.order.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::Lru;

    #[test]
    fn forgets_the_least_recently_used() {
        let mut lru = Lru::new(2);
        lru.put(1, 'a');
        lru.put(2, 'b');
        assert_eq!(lru.get(1), Some('a'));
        lru.put(3, 'c');
        assert_eq!((lru.get(1), lru.get(2), lru.get(3)), (Some('a'), None, Some('c')));
        lru.remove(1);
        assert_eq!(lru.get(1), None);
    }
}
