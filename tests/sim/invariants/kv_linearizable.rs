//! Puts and gets of the key-value store are linearizable, and every put is done at most once.
//!
//! The store numbers its changes, so the order in which everything must have happened is known: what has to be shown
//! is that it respects real time (an operation that began after another ended is not before it), that each get saw
//! what was there at its revision, and that no acknowledged put is missing.

use crate::kv::{Answer, short};
use bytes::Bytes;
use std::collections::BTreeMap;

/// An operation with the highest revision that any operation had told before it began.
#[derive(Clone, Debug)]
pub struct Operation {
    pub key: Bytes,
    pub put: Option<Bytes>,
    pub floor: u64,
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} after {}", String::from_utf8_lossy(&self.key), self.put.as_deref().map_or("get".into(), short), self.floor)
    }
}

/// What clients did and were told.
#[derive(Default)]
pub struct History {
    pub floor: u64,
    /// Values are unique.
    pub tried: BTreeMap<Bytes, Bytes>,
    acked: BTreeMap<Bytes, u64>,
    gets: Vec<(Bytes, Option<Bytes>, u64)>,
}

impl History {
    pub fn done(&mut self, operation: Operation, answer: Answer) {
        let revision = match answer {
            Answer::Put { revision } => {
                assert!(revision > operation.floor, "{operation:?} got revision {revision}, after {} was told", operation.floor);
                self.acked.extend(operation.put.map(|value| (value, revision)));
                revision
            }
            Answer::Got { value, revision } => {
                assert!(revision >= operation.floor, "{operation:?} read at revision {revision}, after {} was told", operation.floor);
                self.gets.push((operation.key, value, revision));
                revision
            }
            Answer::Failed(_) => return,
        };
        self.floor = self.floor.max(revision);
    }

    /// `events`: all puts that the store has, with their revisions, in order.
    pub fn check(&self, events: &[(u64, Bytes, Bytes)]) {
        let mut places: BTreeMap<&Bytes, u64> = BTreeMap::new();
        for (revision, key, value) in events {
            assert_eq!(self.tried.get(value), Some(key), "nobody put {value:?} at {key:?}");
            let earlier = places.insert(value, *revision);
            assert!(earlier.is_none(), "{value:?} was put at revision {earlier:?} and again at {revision}");
        }
        for (value, revision) in &self.acked {
            assert_eq!(places.get(value), Some(revision), "{value:?} was acknowledged at revision {revision}");
        }
        for (key, value, revision) in &self.gets {
            let at = events.iter().rev().find(|(r, k, _)| r <= revision && k == key).map(|(_, _, v)| v);
            assert_eq!(value.as_ref(), at, "a get of {key:?} at revision {revision} saw the wrong value");
        }
    }
}
