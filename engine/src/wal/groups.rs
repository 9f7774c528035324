//! Per group: replay of records into state, and the bookkeeping that says which segments are still needed.

use super::format::Record;
use super::types::{RecoveredGroup, SnapshotMark};
use crate::types::{Entry, GroupId, HardState, Index, Term};
use std::collections::{BTreeMap, VecDeque};

/// What the log remembers of a group while it runs: no entries, only where they are.
#[derive(Debug, Default)]
pub struct Group {
    /// The last one appended.
    pub hard_state: HardState,
    /// The last one appended.
    pub snapshot: SnapshotMark,
    /// The segment with the newest copy of the hard state.
    pub hard_state_segment: Option<u64>,
    /// The segment with the newest copy of the snapshot mark.
    pub snapshot_segment: Option<u64>,
    /// Runs of entries of one term in one segment: (first index, term, segment), by index.
    runs: VecDeque<(Index, Term, u64)>,
    last: Index,
}

impl Group {
    /// The lowest segment with the newest copy of hard state or snapshot mark.
    #[must_use]
    pub fn state_segment(&self) -> Option<u64> {
        self.hard_state_segment.into_iter().chain(self.snapshot_segment).min()
    }

    /// The lowest segment that holds a live entry.
    #[must_use]
    pub fn first_segment(&self) -> Option<u64> {
        // Replaced suffixes are written again further on, so segments need not grow with the index.
        self.runs.iter().map(|(_, _, segment)| *segment).min()
    }

    /// The term of the entry at `index`, if the log has it.
    #[must_use]
    pub fn term_at(&self, index: Index) -> Option<Term> {
        if index > self.last || index <= self.snapshot.index {
            return None;
        }
        self.runs.iter().rev().find(|(first, ..)| *first <= index).map(|(_, term, _)| *term)
    }

    /// Why `entries` cannot be appended after `snapshot` was taken in.
    #[must_use]
    pub fn refuse(&self, snapshot: Option<SnapshotMark>, entries: &[Entry]) -> Option<String> {
        if let Some(mark) = snapshot
            && mark.index < self.snapshot.index
        {
            return Some(format!("snapshot mark goes back from {} to {}", self.snapshot.index, mark.index));
        }
        let (floor, last) = match snapshot {
            Some(mark) if self.resets(mark) => (mark.index, mark.index),
            Some(mark) => (mark.index, self.last.max(mark.index)),
            None => (self.snapshot.index, self.last),
        };
        let first = entries.first()?.index;
        if first <= floor || first > last.next() {
            return Some(format!("entry {first} does not follow: the log holds {}..={last}", floor.next()));
        }
        entries.windows(2).find(|w| w[1].index != w[0].index.next()).map(|w| format!("entry {} follows entry {}", w[1].index, w[0].index))
    }

    /// Whether taking `mark` in drops all entries: the log does not hold what it covers, or something else.
    #[must_use]
    pub fn resets(&self, mark: SnapshotMark) -> bool {
        mark.index != self.snapshot.index && self.term_at(mark.index) != Some(mark.term)
    }

    /// Notes a snapshot mark written to `segment`.
    pub fn compact(&mut self, mark: SnapshotMark, reset: bool, segment: u64) {
        self.snapshot = mark;
        self.snapshot_segment = Some(segment);
        if reset || self.last <= mark.index {
            self.runs.clear();
            self.last = mark.index;
            return;
        }
        while self.runs.get(1).is_some_and(|(first, ..)| *first <= mark.index.next()) {
            self.runs.pop_front();
        }
        if let Some((first, ..)) = self.runs.front_mut() {
            *first = (*first).max(mark.index.next());
        }
    }

    /// Notes an entry written to `segment`.
    pub fn push(&mut self, index: Index, term: Term, segment: u64) {
        while self.runs.back().is_some_and(|(first, ..)| *first >= index) {
            self.runs.pop_back();
        }
        if self.runs.back().is_none_or(|(_, t, s)| (*t, *s) != (term, segment)) {
            self.runs.push_back((index, term, segment));
        }
        self.last = index;
    }
}

/// Replays the records of live segments, in order.
#[derive(Debug, Default)]
pub struct Replay {
    /// State and bookkeeping.
    pub groups: BTreeMap<GroupId, (Group, Vec<Entry>)>,
}

impl Replay {
    /// Applies one record found in `segment`.
    ///
    /// Records from the lowest live segment may refer to entries that went with the segments before it, so
    /// there may be gaps on the way. A later snapshot mark is what made those segments superfluous, so
    /// [`Self::finish`] finds no gap in an intact log.
    pub fn apply(&mut self, id: GroupId, record: Record, segment: u64) {
        let (group, entries) = self.groups.entry(id).or_default();
        match record {
            Record::HardState(state) => {
                group.hard_state = state;
                group.hard_state_segment = Some(segment);
            }
            Record::Snapshot { mark, reset } => {
                group.compact(mark, reset, segment);
                entries.retain(|e| !reset && e.index > mark.index);
            }
            Record::Entry(entry) => {
                let keep = entries.partition_point(|e| e.index < entry.index);
                entries.truncate(keep);
                group.push(entry.index, entry.term, segment);
                entries.push(entry);
            }
        }
    }

    /// The groups' state; an error says which index of which group is missing.
    ///
    /// # Errors
    /// The group and the missing index: the segments do not hold what they should.
    pub fn finish(self) -> Result<(BTreeMap<GroupId, Group>, BTreeMap<GroupId, RecoveredGroup>), (GroupId, Index)> {
        let mut groups = BTreeMap::new();
        let mut recovered = BTreeMap::new();
        for (id, (group, entries)) in self.groups {
            let mut next = group.snapshot.index.next();
            for entry in &entries {
                if entry.index != next {
                    return Err((id, next));
                }
                next = next.next();
            }
            recovered.insert(id, RecoveredGroup { hard_state: group.hard_state, snapshot: group.snapshot, entries });
            groups.insert(id, group);
        }
        Ok((groups, recovered))
    }
}
