//! What a mount must remember so that each operation happens once and open files stay open.

use brickraft_fs::fop::{Fop, Gfid};
use brickraft_fs::replica::BrickId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last_op: u64,
    under_way: BTreeSet<u64>,
    open: BTreeMap<Gfid, u32>,
    /// The primary that knows of `open`.
    told: BrickId,
}

/// An operation's number; it counts as under way until this is dropped.
#[derive(Debug)]
pub(super) struct Ticket<'a> {
    pub(super) op: u64,
    session: &'a Session,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.session.state.lock().expect("no panic holds it").under_way.remove(&self.op);
    }
}

impl Session {
    pub(super) fn new() -> Self {
        Self { id: rand::random::<u64>().max(1), state: Mutex::default() }
    }

    pub(super) fn begin(&self) -> Ticket<'_> {
        let mut state = self.state.lock().expect("no panic holds it");
        state.last_op += 1;
        let op = state.last_op;
        state.under_way.insert(op);
        Ticket { op, session: self }
    }

    /// All ops up to this one have been answered.
    pub(super) fn acked(&self) -> u64 {
        let state = self.state.lock().expect("no panic holds it");
        state.under_way.first().map_or(state.last_op, |first| first - 1)
    }

    /// Counts opens and releases that have succeeded.
    pub(super) fn note(&self, fop: &Fop) {
        let mut state = self.state.lock().expect("no panic holds it");
        match fop {
            Fop::Open { gfid, .. } | Fop::Create { gfid, open: true, .. } => *state.open.entry(*gfid).or_default() += 1,
            Fop::Release { gfid } => {
                if let Some(count) = state.open.get_mut(gfid) {
                    *count -= 1;
                    if *count == 0 {
                        state.open.remove(gfid);
                    }
                }
            }
            _ => {}
        }
    }

    /// The files that `primary` must be told of, one entry for each time that one is open; `None` when it knows.
    pub(super) fn to_reopen(&self, primary: BrickId) -> Option<Vec<Gfid>> {
        let mut state = self.state.lock().expect("no panic holds it");
        if state.told == primary {
            return None;
        }
        if state.told == 0 {
            // The first primary learns of every open as it happens.
            state.told = primary;
            return None;
        }
        Some(state.open.iter().flat_map(|(gfid, &count)| (0..count).map(|_| *gfid)).collect())
    }

    pub(super) fn reopened(&self, primary: BrickId) {
        self.state.lock().expect("no panic holds it").told = primary;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acked_is_below_the_oldest_under_way() {
        let s = Session::new();
        let (a, b) = (s.begin(), s.begin());
        assert_eq!(s.acked(), 0);
        drop(a);
        assert_eq!(s.acked(), 1);
        drop(b);
        assert_eq!(s.acked(), 2);
    }

    #[test]
    fn a_new_primary_is_told_what_is_open() {
        let s = Session::new();
        let g = Gfid([3; 16]);
        assert_eq!(s.to_reopen(1), None);
        s.note(&Fop::Open { gfid: g, flags: 0 });
        s.note(&Fop::Open { gfid: g, flags: 0 });
        s.note(&Fop::Release { gfid: g });
        assert_eq!(s.to_reopen(1), None);
        assert_eq!(s.to_reopen(2), Some(vec![g]));
        s.reopened(2);
        assert_eq!(s.to_reopen(2), None);
    }
}
