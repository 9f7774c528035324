//! Log Matching: if two logs contain an entry with the same index and term, then the logs are identical in
//! all entries up through it.
//!
//! Shown by induction: of all logs ever written, an entry (index, term) has one content and one
//! predecessor.

use brickraft_engine::{
    raft::{Persist, RaftCore},
    types::{Entry, Index, Term},
};
use std::collections::HashMap;

#[derive(Default)]
pub struct LogMatching {
    entries: HashMap<(Index, Term), (Term, Entry)>,
}

impl LogMatching {
    pub fn observe(&mut self, core: &RaftCore, persist: &Persist) {
        let Some(first) = persist.entries.first() else { return };
        let Some(mut before) = core.term_at(Index(first.index.0 - 1)) else { return };
        for entry in &persist.entries {
            let here = (before, entry.clone());
            let known = self.entries.entry((entry.index, entry.term)).or_insert_with(|| here.clone());
            assert_eq!(*known, here, "node {} has another entry at {} of term {}", core.id(), entry.index, entry.term);
            before = entry.term;
        }
    }
}
