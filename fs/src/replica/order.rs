//! The order of operations on this brick's own disk: conflicting ones run in the order of admission,
//! the others as they come.
//!
//! Every operation names the objects that it works on, and stands in one queue for each. It may start when
//! nothing before it in any of its queues conflicts. What an operation finds out only when it is about to
//! start (the object behind a name) is asked with [`Order::blocked`]; then it is parked, and it tries again
//! when that object's queue moves. Waiting is always for something that was admitted earlier or that
//! runs already, and what runs ends by itself, so there is no deadlock.

use crate::fop::Gfid;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// An operation's place in the order of admission.
pub(super) type Ticket = u64;

/// Whether others may work on the object at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Shared,
    Exclusive,
}

#[derive(Debug, Default)]
pub(super) struct Order {
    last: Ticket,
    queues: BTreeMap<Gfid, VecDeque<(Ticket, Mode)>>,
    keys: BTreeMap<Ticket, Vec<Gfid>>,
    running: BTreeSet<Ticket>,
    parked: BTreeMap<Gfid, BTreeSet<Ticket>>,
    candidates: BTreeSet<Ticket>,
}

impl Order {
    /// Takes an operation in. A key that is named twice counts once, exclusive if either is.
    pub fn admit(&mut self, keys: &[(Gfid, Mode)]) -> Ticket {
        self.last += 1;
        let ticket = self.last;
        let mut own: BTreeMap<Gfid, Mode> = BTreeMap::new();
        for &(key, mode) in keys {
            let m = own.entry(key).or_insert(mode);
            if mode == Mode::Exclusive {
                *m = Mode::Exclusive;
            }
        }
        for (&key, &mode) in &own {
            self.queues.entry(key).or_default().push_back((ticket, mode));
        }
        self.keys.insert(ticket, own.into_keys().collect());
        self.candidates.insert(ticket);
        ticket
    }

    /// The next operation that may start; it counts as running from now on.
    pub fn next_ready(&mut self) -> Option<Ticket> {
        while let Some(ticket) = self.candidates.pop_first() {
            if !self.running.contains(&ticket) && self.is_free(ticket) {
                self.running.insert(ticket);
                return Some(ticket);
            }
        }
        None
    }

    fn is_free(&self, ticket: Ticket) -> bool {
        let Some(keys) = self.keys.get(&ticket) else { return false };
        keys.iter().all(|key| {
            let mut before = self.queues.get(key).into_iter().flatten().take_while(|(t, _)| *t != ticket).peekable();
            before.peek().is_none() || (self.mode(*key, ticket) == Mode::Shared && before.all(|e| e.1 == Mode::Shared))
        })
    }

    fn mode(&self, key: Gfid, ticket: Ticket) -> Mode {
        let own = self.queues.get(&key).into_iter().flatten().find(|(t, _)| *t == ticket);
        own.map_or(Mode::Shared, |&(_, mode)| mode)
    }

    /// For an operation that [`Order::next_ready`] gave: must it wait for something on `key`, which it did
    /// not name? Then it is parked, and comes again from `next_ready`.
    pub fn blocked(&mut self, ticket: Ticket, key: Gfid) -> bool {
        if self.keys.get(&ticket).is_some_and(|k| k.contains(&key)) {
            return false;
        }
        let queue = self.queues.get(&key).into_iter().flatten();
        let blocked = queue.into_iter().any(|&(t, _)| t < ticket || self.running.contains(&t));
        if blocked {
            self.running.remove(&ticket);
            self.parked.entry(key).or_default().insert(ticket);
        }
        blocked
    }

    /// The operation has ended, or is given up.
    pub fn done(&mut self, ticket: Ticket) {
        self.running.remove(&ticket);
        self.candidates.remove(&ticket);
        for key in self.keys.remove(&ticket).unwrap_or_default() {
            if let Some(queue) = self.queues.get_mut(&key) {
                queue.retain(|&(t, _)| t != ticket);
                let mut front = queue.iter();
                if let Some(&(t, mode)) = front.next() {
                    self.candidates.insert(t);
                    if mode == Mode::Shared {
                        self.candidates.extend(front.take_while(|e| e.1 == Mode::Shared).map(|e| e.0));
                    }
                }
                if queue.is_empty() {
                    self.queues.remove(&key);
                }
            }
            self.candidates.extend(self.parked.remove(&key).unwrap_or_default());
        }
    }

    /// Operations that wait or run.
    pub fn len(&self) -> usize {
        self.keys.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Mode::{Exclusive, Shared};

    const A: Gfid = Gfid([1; 16]);
    const B: Gfid = Gfid([2; 16]);

    #[test]
    fn conflicting_operations_keep_their_order_and_others_do_not_wait() {
        let mut o = Order::default();
        let w1 = o.admit(&[(A, Exclusive)]);
        let r1 = o.admit(&[(A, Shared)]);
        let r2 = o.admit(&[(A, Shared), (B, Shared)]);
        let w2 = o.admit(&[(A, Exclusive), (B, Exclusive)]);
        let b = o.admit(&[(B, Shared)]);
        assert_eq!(o.next_ready(), Some(w1));
        assert_eq!(o.next_ready(), None);
        o.done(w1);
        assert_eq!((o.next_ready(), o.next_ready(), o.next_ready()), (Some(r1), Some(r2), None));
        o.done(r2);
        assert_eq!(o.next_ready(), None);
        o.done(r1);
        assert_eq!((o.next_ready(), o.next_ready()), (Some(w2), None));
        o.done(w2);
        assert_eq!(o.next_ready(), Some(b));
        o.done(b);
        assert_eq!(o.len(), 0);
    }

    #[test]
    fn what_is_found_late_parks_behind_what_runs() {
        let mut o = Order::default();
        let w = o.admit(&[(B, Exclusive)]);
        let u = o.admit(&[(A, Exclusive)]);
        assert_eq!((o.next_ready(), o.next_ready()), (Some(w), Some(u)));
        assert!(o.blocked(u, B));
        let later = o.admit(&[(A, Exclusive)]);
        assert_eq!(o.next_ready(), None, "{later} must stay behind {u}");
        o.done(w);
        assert_eq!(o.next_ready(), Some(u));
        assert!(!o.blocked(u, B));
        o.done(u);
        assert_eq!(o.next_ready(), Some(later));
    }
}
