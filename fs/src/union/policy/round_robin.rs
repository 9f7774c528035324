//! `rr`: each branch in turn.

use super::Candidate;
use std::sync::atomic::{AtomicUsize, Ordering};

#[derive(Debug, Default)]
pub(super) struct RoundRobin(AtomicUsize);

impl RoundRobin {
    pub(super) fn pick<'a>(&self, candidates: &'a [Candidate]) -> Option<&'a Candidate> {
        let turn = self.0.fetch_add(1, Ordering::Relaxed);
        candidates.get(turn % candidates.len().max(1))
    }
}
