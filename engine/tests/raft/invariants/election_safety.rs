//! Election Safety: at most one leader can be elected in a given term.

use brickraft_engine::{
    raft::{RaftCore, Role},
    types::{NodeId, Term},
};
use std::collections::BTreeMap;

#[derive(Default)]
pub struct ElectionSafety {
    leaders: BTreeMap<Term, NodeId>,
}

impl ElectionSafety {
    pub fn observe(&mut self, core: &RaftCore) {
        if core.role() == Role::Leader {
            let known = *self.leaders.entry(core.term()).or_insert(core.id());
            assert_eq!(known, core.id(), "two leaders in term {}", core.term());
        }
    }
}
