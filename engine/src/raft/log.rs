//! The log in memory, from the compaction point on, and how far it is durable, committed and applied.

use super::error::InitialError;
use super::membership::{ConfChange, History, Membership};
use super::output::{Initial, SnapshotMeta};
use crate::types::{Entry, EntryKind, Index, NodeId, Term};
use std::collections::VecDeque;

/// Invariants: `base <= emitted <= commit <= last`, `emitted <= stable`, `stable <= taken <= last`,
/// entries are contiguous from `base + 1`, terms never go down.
#[derive(Debug)]
pub(super) struct Log {
    base: Index,
    base_term: Term,
    entries: VecDeque<Entry>,
    history: History,
    /// Handed out to be written.
    taken: Index,
    /// Durable.
    stable: Index,
    /// Writes under way: sequence number, and the last index that its completion makes durable.
    writes: VecDeque<(u64, Index)>,
    commit: Index,
    /// Handed out to be applied.
    emitted: Index,
    applied: Index,
}

impl Log {
    /// # Errors
    /// See [`InitialError`].
    pub fn new(initial: Initial, node_term: Term) -> Result<Self, InitialError> {
        let SnapshotMeta { index: base, term: base_term, membership } = initial.snapshot;
        let mut log = Self {
            base,
            base_term,
            entries: VecDeque::new(),
            history: History::new(base, membership),
            taken: base,
            stable: base,
            writes: VecDeque::new(),
            commit: base,
            emitted: base,
            applied: base,
        };
        // A snapshot that was installed over a log of another lineage: the log's rest is not ours.
        let other = initial.entries.iter().any(|e| e.index == base && e.term != base_term);
        for entry in initial.entries {
            if other || entry.index <= base {
                continue;
            }
            let (expected, before) = (log.last().next(), log.last_term());
            if entry.index != expected {
                return Err(InitialError::Gap { expected, found: entry.index });
            }
            if log.entries.is_empty() && entry.term < before {
                break; // likewise
            }
            if entry.term < before || entry.term > node_term {
                return Err(InitialError::Term { index: entry.index, found: entry.term, before, term: node_term });
            }
            if !entry_is_sound(&entry) {
                return Err(InitialError::Conf(entry.index));
            }
            log.append(entry);
        }
        let last = log.last();
        if initial.applied > last {
            return Err(InitialError::AppliedAhead { applied: initial.applied, last });
        }
        (log.taken, log.stable) = (last, last);
        log.applied = initial.applied.max(base);
        log.emitted = log.applied;
        log.commit = initial.hard_state.commit.min(last).max(log.applied);
        Ok(log)
    }

    pub fn base(&self) -> Index {
        self.base
    }

    pub fn last(&self) -> Index {
        Index(self.base.0 + self.entries.len() as u64)
    }

    pub fn last_term(&self) -> Term {
        self.entries.back().map_or(self.base_term, |e| e.term)
    }

    pub fn stable(&self) -> Index {
        self.stable
    }

    pub fn commit(&self) -> Index {
        self.commit
    }

    pub fn term_at(&self, index: Index) -> Option<Term> {
        if index == self.base { Some(self.base_term) } else { self.get(index).map(|e| e.term) }
    }

    fn get(&self, index: Index) -> Option<&Entry> {
        let at = index.0.checked_sub(self.base.0)?.checked_sub(1)?;
        self.entries.get(usize::try_from(at).ok()?)
    }

    fn position(&self, index: Index) -> usize {
        assert!(self.base < index && index.0 <= self.last().0 + 1, "index {index} in ({}, {}]", self.base, self.last());
        (index.0 - self.base.0 - 1) as usize
    }

    pub fn membership(&self) -> (Index, &Membership) {
        self.history.current()
    }

    /// Whether `id` votes by a membership that is not known to be superseded for good.
    pub fn may_count(&self, id: NodeId) -> bool {
        self.history.was_voter_since(self.commit, id)
    }

    pub fn membership_at(&self, index: Index) -> Option<&Membership> {
        self.history.at(index)
    }

    /// Whether a log that ends at (`last`, `last_term`) holds at least what this one does (paper, 5.4.1).
    pub fn is_covered_by(&self, last: Index, last_term: Term) -> bool {
        (last_term, last) >= (self.last_term(), self.last())
    }

    /// The highest index at most `upto` whose term is at most `term`: where two logs may still agree.
    pub fn find(&self, upto: Index, term: Term) -> Index {
        if upto < self.base {
            return upto;
        }
        let fit = self.entries.partition_point(|e| e.term <= term);
        if fit == 0 && self.base_term > term {
            return Index(self.base.0.saturating_sub(1));
        }
        Index(self.base.0 + fit as u64).min(upto)
    }

    /// Entries from `from` on, at least one if there is one, up to `bytes_max`.
    pub fn slice(&self, from: Index, upto: Index, bytes_max: usize) -> Vec<Entry> {
        if from > upto {
            return Vec::new();
        }
        let (start, end) = (self.position(from), self.position(upto.next()));
        let mut bytes = 0;
        let fits = self.entries.range(start..end).take_while(|e| {
            let first = bytes == 0;
            bytes += e.data.len() + ENTRY_BYTES;
            first || bytes <= bytes_max
        });
        let count = fits.count();
        self.entries.range(start..start + count).cloned().collect()
    }

    /// Appends one entry. The caller has checked it with [`entry_is_sound`].
    pub fn append(&mut self, entry: Entry) {
        assert!(entry.index == self.last().next(), "the log has no gaps: {} after {}", entry.index, self.last());
        assert!(entry.term >= self.last_term(), "terms never go down");
        if entry.kind == EntryKind::Conf
            && let Some(change) = ConfChange::decode(&entry.data)
        {
            self.history.append(entry.index, &change);
        }
        self.entries.push_back(entry);
    }

    /// Cuts off `from` and everything after it.
    pub fn truncate(&mut self, from: Index) {
        assert!(from > self.commit, "committed entries stay: cut at {from}, commit {}", self.commit);
        let keep = self.position(from);
        self.entries.truncate(keep);
        self.history.truncate(from);
        let last = self.last();
        self.taken = self.taken.min(last);
        self.stable = self.stable.min(last);
        for (_, upto) in &mut self.writes {
            *upto = (*upto).min(last);
        }
    }

    pub fn has_untaken(&self) -> bool {
        self.taken < self.last()
    }

    /// Hands out what is to be written as write number `seq`.
    pub fn take_unwritten(&mut self, seq: u64) -> Vec<Entry> {
        let entries = self.slice(self.taken.next(), self.last(), usize::MAX);
        if !entries.is_empty() {
            self.taken = self.last();
            self.writes.push_back((seq, self.taken));
        }
        entries
    }

    /// All writes up to `seq` are durable.
    pub fn persisted(&mut self, seq: u64) {
        while let Some((_, upto)) = self.writes.front().filter(|(s, _)| *s <= seq) {
            self.stable = self.stable.max(*upto);
            self.writes.pop_front();
        }
    }

    /// The write that makes `index` durable: 0 if it is, `next_seq` if it is not handed out.
    pub fn write_of(&self, index: Index, next_seq: u64) -> u64 {
        if index <= self.stable {
            return 0;
        }
        self.writes.iter().find(|(_, upto)| *upto >= index).map_or(next_seq, |(seq, _)| *seq)
    }

    /// Invariant: the commit index never goes back, and never past the end.
    pub fn commit_to(&mut self, index: Index) {
        assert!(index <= self.last(), "commit {index} <= last {}", self.last());
        self.commit = self.commit.max(index);
    }

    /// Bytes of the entries in (`after`, `upto`].
    pub fn bytes_between(&self, after: Index, upto: Index) -> usize {
        let (start, end) = (self.position(after.next()), self.position(upto.next()));
        self.entries.range(start..end).map(|e| e.data.len() + ENTRY_BYTES).sum()
    }

    /// What is to be applied next, and whether there is more.
    pub fn take_committed(&mut self, bytes_max: usize) -> (Vec<Entry>, bool) {
        let ready = self.commit.min(self.stable);
        let entries = self.slice(self.emitted.next(), ready, bytes_max);
        self.emitted = Index(self.emitted.0 + entries.len() as u64);
        (entries, self.emitted < ready)
    }

    pub fn applied_to(&mut self, index: Index) {
        self.applied = self.applied.max(index.min(self.emitted));
    }

    /// Drops entries up to `upto`, or up to what is applied if that is less.
    pub fn compact(&mut self, upto: Index) {
        let upto = upto.min(self.applied).min(self.taken);
        let Some(term) = self.term_at(upto).filter(|_| upto > self.base) else { return };
        self.entries.drain(..=self.position(upto));
        (self.base, self.base_term) = (upto, term);
        self.history.compact(upto);
    }

    /// The state machine has been replaced by a snapshot.
    pub fn restore(&mut self, meta: SnapshotMeta) {
        let SnapshotMeta { index, term, membership } = meta;
        if index < self.base {
            return;
        }
        if self.term_at(index) == Some(term) {
            (self.emitted, self.applied) = (index, index);
            self.stable = self.stable.max(index);
            self.taken = self.taken.max(index);
            self.commit = self.commit.max(index);
            return self.compact(index);
        }
        assert!(index > self.commit, "a snapshot contradicts committed entry {index}");
        self.entries.clear();
        self.history = History::new(index, membership);
        (self.base, self.base_term) = (index, term);
        (self.taken, self.stable, self.commit) = (index, index, index);
        (self.emitted, self.applied) = (index, index);
        self.writes.clear();
    }
}

/// What an entry costs besides its data.
pub(super) const ENTRY_BYTES: usize = 32;

/// Whether the entry's content can be appended: a conf entry must be readable.
pub(super) fn entry_is_sound(entry: &Entry) -> bool {
    entry.kind != EntryKind::Conf || ConfChange::decode(&entry.data).is_some()
}
