//! Which writable branch gets a new object (`create=`) or a copy (`cpup=`). One file for each family, as mergerfs has it.

mod bottom_up;
mod free_space;
mod round_robin;
mod top_down;

use super::slot::Slot;
use super::{CopyUpPolicy, CreatePolicy};
use free_space::FreeSpace;
use round_robin::RoundRobin;
use std::sync::Arc;

/// A writable branch that may be chosen.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) slot: Arc<Slot>,
    /// Whether the parent directory exists there.
    pub(super) has_parent: bool,
    /// Whether it is above all branches where the parent exists.
    pub(super) above: bool,
}

/// The policies with what they remember.
#[derive(Debug)]
pub(super) struct Policies {
    create: CreatePolicy,
    copyup: CopyUpPolicy,
    turn: RoundRobin,
    space: FreeSpace,
}

impl Policies {
    pub(super) fn new(create: CreatePolicy, copyup: CopyUpPolicy) -> Self {
        Self { create, copyup, turn: RoundRobin::default(), space: FreeSpace::default() }
    }

    /// For a new object. `candidates` top-down.
    pub(super) fn create(&self, candidates: &[Candidate]) -> Option<Arc<Slot>> {
        let with_parent: Vec<Candidate> = candidates.iter().filter(|c| c.has_parent).cloned().collect();
        let among_parents = if with_parent.is_empty() { candidates } else { &with_parent };
        let chosen = match self.create {
            CreatePolicy::TopDownParent | CreatePolicy::TopDownMove => top_down::pick(candidates),
            CreatePolicy::RoundRobin => self.turn.pick(candidates),
            CreatePolicy::MostFree(every) => self.space.pick(candidates, every).map(|(c, _)| c),
            CreatePolicy::ParentMostFree(every) => self.space.pick(among_parents, every).map(|(c, _)| c),
            CreatePolicy::MostFreeRoundRobin { low, every } => self.space_or_turn(candidates, low, every),
            CreatePolicy::ParentMostFreeRoundRobin { low, every } => self.space_or_turn(among_parents, low, every),
        };
        chosen.map(|c| Arc::clone(&c.slot))
    }

    fn space_or_turn<'a>(&self, candidates: &'a [Candidate], low: u64, every: std::time::Duration) -> Option<&'a Candidate> {
        match self.space.pick(candidates, every) {
            Some((chosen, free)) if free >= low => Some(chosen),
            _ => self.turn.pick(candidates),
        }
    }

    /// For a copy. `candidates` top-down, all above where the object lies.
    pub(super) fn copyup(&self, candidates: &[Candidate]) -> Option<Arc<Slot>> {
        match self.copyup {
            CopyUpPolicy::TopDownParent => top_down::pick(candidates),
            CopyUpPolicy::BottomUpParent => bottom_up::pick_with_parent(candidates),
            CopyUpPolicy::BottomUp => bottom_up::pick(candidates),
        }
        .map(|c| Arc::clone(&c.slot))
    }
}
