//! A confirmed read sees everything that was committed anywhere before it was asked for.

use brickraft_engine::types::Index;
use std::collections::BTreeMap;

#[derive(Default)]
pub struct ReadLinearizability {
    asked: BTreeMap<u64, Index>,
    pub answered: u64,
    pub failed: u64,
}

impl ReadLinearizability {
    pub fn asked(&mut self, ctx: u64, committed: Index) {
        self.asked.insert(ctx, committed);
    }

    pub fn answered(&mut self, ctx: u64, index: Index) {
        let least = self.asked.remove(&ctx).expect("each read is answered once");
        assert!(index >= least, "read {ctx} sees {index}, but {least} was committed before");
        self.answered += 1;
    }

    pub fn failed(&mut self, ctx: u64) {
        self.asked.remove(&ctx).expect("each read is answered once");
        self.failed += 1;
    }
}
