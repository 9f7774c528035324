//! Leader Completeness: an entry committed in a term is in the logs of the leaders of all later terms.

use brickraft_engine::{
    raft::{RaftCore, Role},
    types::{Index, NodeId, Term},
};
use std::collections::BTreeMap;

#[derive(Default)]
pub struct LeaderCompleteness {
    /// Of each committed entry: its term, and the term in which the commitment was first seen.
    committed: BTreeMap<Index, (Term, Term)>,
    leaders: BTreeMap<Term, NodeId>,
}

impl LeaderCompleteness {
    pub fn observe(&mut self, core: &RaftCore) {
        let known = self.committed.last_key_value().map_or(Index(0), |(index, _)| *index);
        for i in known.0 + 1..=core.committed().0 {
            if let Some(term) = core.term_at(Index(i)) {
                self.committed.insert(Index(i), (term, core.term()));
            }
        }
        if core.role() == Role::Leader && self.leaders.insert(core.term(), core.id()).is_none() {
            for (index, (term, seen)) in self.committed.range(core.compacted()..) {
                let has = core.term_at(*index) == Some(*term);
                assert!(has || *seen >= core.term(), "leader {} of term {} lacks committed entry {index}", core.id(), core.term());
            }
        }
    }

    pub fn highest(&self) -> Index {
        self.committed.last_key_value().map_or(Index(0), |(index, _)| *index)
    }
}
