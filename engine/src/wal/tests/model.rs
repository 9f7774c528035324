//! The reference: what the log's content is after each record, and a random workload.

use super::super::{LogBatch, Lsn, RecoveredGroup, SnapshotMark, Wal, WalConfig, WalError};
use crate::io::sim::SimIo;
use crate::types::{Entry, EntryKind, GroupId, HardState, Index, NodeId, Term};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;

pub type State = BTreeMap<GroupId, RecoveredGroup>;

/// Small, so that a short workload rolls, recycles and collects.
pub fn small() -> WalConfig {
    WalConfig { segment_bytes: 64 << 10, batch_bytes_max: 8 << 10, pipeline_bytes_min: 1024, log_id: 77, ..WalConfig::default() }
}

pub fn entry(term: u64, index: u64, len: usize) -> Entry {
    let data = vec![(index ^ term.wrapping_mul(31)) as u8; len];
    Entry { term: Term(term), index: Index(index), kind: EntryKind::Normal, data: data.into() }
}

/// Every state that the log went through, record by record.
pub struct Model {
    pub states: Vec<State>,
    /// For each LSN (from 1): how many of `states` it needs.
    pub at_lsn: Vec<usize>,
    pub durable: Lsn,
}

impl Model {
    pub fn new(initial: State) -> Self {
        Self { states: vec![initial], at_lsn: vec![1], durable: Lsn(0) }
    }

    pub fn now(&self) -> &State {
        self.states.last().unwrap()
    }

    fn change(&mut self, group: GroupId, f: impl FnOnce(&mut RecoveredGroup)) {
        let mut state = self.now().clone();
        f(state.entry(group).or_default());
        self.states.push(state);
    }

    /// What [`LogBatch`] promises, written down a second time.
    pub fn append(&mut self, group: GroupId, batch: &LogBatch<'_>) {
        if let Some(hs) = batch.hard_state {
            self.change(group, |g| g.hard_state = hs);
        }
        if let Some(mark) = batch.snapshot {
            self.change(group, |g| {
                let held = mark.index == g.snapshot.index || g.entries.iter().any(|e| e.index == mark.index && e.term == mark.term);
                g.entries.retain(|e| held && e.index > mark.index);
                g.snapshot = mark;
            });
        }
        for e in batch.entries {
            self.change(group, |g| {
                g.entries.retain(|old| old.index < e.index);
                g.entries.push(e.clone());
            });
        }
        self.at_lsn.push(self.states.len());
    }

    /// All that was acknowledged is there, and nothing that was never appended.
    pub fn check(&self, recovered: &State) -> Result<(), String> {
        let from = self.at_lsn[self.durable.0 as usize] - 1;
        if self.states[from..].contains(recovered) {
            return Ok(());
        }
        let older = self.states[..from].iter().rposition(|s| s == recovered);
        Err(format!("durable is state {from} of {}; recovered is {older:?}: {recovered:#?}", self.states.len()))
    }
}

/// A random addition to a random group.
pub fn addition(rng: &mut SmallRng, state: &State) -> (GroupId, Option<HardState>, Option<SnapshotMark>, Vec<Entry>) {
    let group = GroupId(rng.random_range(1..=3));
    let g = state.get(&group).cloned().unwrap_or_default();
    let last = g.entries.last().map_or(g.snapshot.index, |e| e.index);
    let term = g.hard_state.term.0.max(1);
    let hard_state = rng.random_bool(0.2).then(|| HardState {
        term: Term(term + rng.random_range(0..2)),
        vote: rng.random_bool(0.5).then(|| NodeId(rng.random_range(1..9))),
        commit: last,
    });
    let mut snapshot = None;
    let mut from = last.next();
    match rng.random_range(0..10) {
        // Compaction up to an entry that is there.
        0..4 if !g.entries.is_empty() => {
            let at = &g.entries[rng.random_range(g.entries.len() / 2..g.entries.len())];
            snapshot = Some(SnapshotMark { index: at.index, term: at.term });
        }
        // A snapshot from a leader.
        4 if rng.random_bool(0.3) => {
            snapshot = Some(SnapshotMark { index: Index(last.0 + 5), term: Term(term + 1) });
            from = Index(last.0 + 6);
        }
        // A new leader replaces the suffix.
        5 if g.entries.len() > 1 => from = g.entries[rng.random_range(1..g.entries.len())].index,
        _ => {}
    }
    let count = rng.random_range(0..4);
    let entries = (0..count).map(|i| entry(term, from.0 + i, rng.random_range(0..2500))).collect();
    (group, hard_state, snapshot, entries)
}

/// Appends and polls at random until `appends` are made or the log fails.
pub fn workload(wal: &mut Wal<SimIo>, model: &mut Model, seed: u64, appends: usize) -> Result<(), WalError> {
    let mut rng = SmallRng::seed_from_u64(seed);
    for _ in 0..appends {
        let (group, hard_state, snapshot, entries) = addition(&mut rng, model.now());
        let batch = LogBatch { hard_state, entries: &entries, snapshot };
        let lsn = wal.append(group, batch)?;
        model.append(group, &batch);
        assert_eq!(lsn.0 as usize, model.at_lsn.len() - 1);
        let disk = wal.io().disk().clone();
        // Slower than the appends come, so that several batches are in flight when the power goes.
        disk.complete(usize::from(rng.random_bool(0.5)));
        if rng.random_bool(0.7) {
            model.durable = wal.poll()?;
        }
    }
    wal.io().disk().set_manual(false);
    model.durable = wal.flush()?;
    Ok(())
}
