//! Leader Append-Only: a leader never overwrites or deletes entries in its log; it only appends.

use brickraft_engine::{
    raft::{RaftCore, Role},
    types::{Index, NodeId, Term},
};
use std::collections::BTreeMap;

#[derive(Default)]
pub struct LeaderAppendOnly {
    /// The end of each leader's log when it was last seen.
    ends: BTreeMap<(NodeId, Term), (Index, Term)>,
}

impl LeaderAppendOnly {
    pub fn observe(&mut self, core: &RaftCore) {
        if core.role() != Role::Leader {
            return;
        }
        let last = core.last_index();
        let end = (last, core.term_at(last).unwrap());
        if let Some((index, term)) = self.ends.insert((core.id(), core.term()), end) {
            assert!(last >= index, "leader {} cut its log from {index} to {last}", core.id());
            assert!(index < core.compacted() || core.term_at(index) == Some(term), "leader {} overwrote {index}", core.id());
        }
    }
}
