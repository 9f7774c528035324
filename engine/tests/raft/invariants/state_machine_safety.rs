//! State Machine Safety: no two servers apply different entries at the same index.

use brickraft_engine::types::{Entry, Index, NodeId};
use std::collections::BTreeMap;

#[derive(Default)]
pub struct StateMachineSafety {
    pub applied: BTreeMap<Index, Entry>,
}

impl StateMachineSafety {
    pub fn observe(&mut self, node: NodeId, at: Index, entry: &Entry) {
        assert_eq!(entry.index, at.next(), "node {node} applies out of order");
        let known = self.applied.entry(entry.index).or_insert_with(|| entry.clone());
        assert_eq!(known, entry, "node {node} applies another entry at {}", entry.index);
    }
}
