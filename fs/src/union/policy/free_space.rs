//! `mfs` and its kin: the branch with the most free space, measured anew after some seconds.

use super::Candidate;
use crate::union::node::lock;
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

#[derive(Debug, Default)]
pub(super) struct FreeSpace {
    /// By the branch's label: when measured, and bytes free.
    measured: Mutex<HashMap<String, (Instant, u64)>>,
}

impl FreeSpace {
    /// The one with the most free space, and how much that is in bytes; the higher of equals.
    pub(super) fn pick<'a>(&self, candidates: &'a [Candidate], every: Duration) -> Option<(&'a Candidate, u64)> {
        let mut best: Option<(&Candidate, u64)> = None;
        for candidate in candidates {
            let free = self.free(candidate, every);
            if best.is_none_or(|(_, most)| free > most) {
                best = Some((candidate, free));
            }
        }
        best
    }

    fn free(&self, candidate: &Candidate, every: Duration) -> u64 {
        let (label, now) = (candidate.slot.source.label(), Instant::now());
        if let Some((at, free)) = lock(&self.measured).get(&label)
            && now.duration_since(*at) < every
        {
            return *free;
        }
        let free = candidate.slot.branch.statfs().map_or(0, |s| s.bavail.saturating_mul(u64::from(s.frsize)));
        lock(&self.measured).insert(label, (now, free));
        free
    }
}
