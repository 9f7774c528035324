//! A member's state out of its log and its store.
//!
//! The store is durable up to `S`, its last checkpoint; the log holds a compaction mark `M`, entries up to
//! `L`, and the hard state. Which cases there are, and why:
//!
//! | log | store | cause | what is done |
//! |---|---|---|---|
//! | none | `S = 0` | a new member | founder: make index 1; joiner: wait to be told |
//! | none | `S > 0` | the log was lost, and votes with it | refuse |
//! | `M = 0`, `L = 0` | `S = 0` | crash while being made, or a joiner not yet joined | as a new member |
//! | `M > S` | | the store was lost or replaced by an older one | refuse |
//! | `M = S`, other term | | they do not belong together | refuse |
//! | `M <= S <= L`, same term at `S` | | crash after a checkpoint | entries above `S` are applied again |
//! | `M < S <= L`, other term at `S` | | crash between a snapshot's restore and its mark | the log before `S` is superseded: mark `S` |
//! | `S > L` | | the same | the same |

use super::alone;
use super::core::GROUP;
use super::types::MemberConfig;
use crate::io::Io;
use crate::kv::{ApplyEntry, Store, StoreError};
use crate::raft::{Initial, InitialError, Membership, SnapshotMeta};
use crate::types::{EntryKind, HardState, Index, Term};
use crate::wal::{LogBatch, RecoveredGroup, SnapshotMark, Wal, WalError};
use thiserror::Error;

/// How a member that finds nothing on its disk begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// One of the members of a new cluster; the same membership on all of them (`identity::bootstrap`).
    Founder(Membership),
    /// A member that was added to a running cluster, which will tell it everything.
    Joiner,
}

/// Why a member cannot start.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The log.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Log and store do not fit together.
    #[error("log and store do not fit together: {0}; remove this member's data and let it join again")]
    Mismatch(String),
    /// Only a member can go on alone.
    #[error("the member has been permanently removed from the cluster, as its own log says; it cannot start a new one")]
    NotAMember,
    /// Consensus refuses what was found.
    #[error("log and store do not fit together: {0}; remove this member's data and let it join again")]
    Raft(#[from] InitialError),
}

/// A recovered member's parts.
pub(super) struct Opened<I: Io> {
    pub wal: Wal<I>,
    pub initial: Initial,
    pub applied: Index,
    pub applied_term: Term,
    pub membership: Membership,
}

/// The first state of a founder: as though a snapshot at index 1 of term 1 had been installed, so that a later
/// joiner, which starts at index 0, cannot do without being told the founders.
const FOUNDING: SnapshotMark = SnapshotMark { index: Index(1), term: Term(1) };

/// What is found on disk, told apart.
#[derive(Debug, PartialEq, Eq)]
enum Case {
    New,
    Replay,
    Superseded,
    Refuse(String),
}

fn classify(group: Option<&RecoveredGroup>, store: SnapshotMark) -> Case {
    let Some(group) = group else {
        return match store.index.0 {
            0 => Case::New,
            s => Case::Refuse(format!("the store has applied {s}, but the log is gone")),
        };
    };
    let mark = group.snapshot;
    let last = group.entries.last().map_or(mark.index, |e| e.index);
    if store.index == Index(0) && last == Index(0) {
        return Case::New;
    }
    if store.index < mark.index {
        return Case::Refuse(format!("the store has applied {}, but the log begins after {}", store.index, mark.index));
    }
    if store.index > last {
        return Case::Superseded;
    }
    if store.index == mark.index {
        return if store.term == mark.term {
            Case::Replay
        } else {
            Case::Refuse(format!("entry {} has term {} in the store and {} in the log", mark.index, store.term, mark.term))
        };
    }
    match group.entries.iter().find(|e| e.index == store.index) {
        Some(e) if e.term == store.term => Case::Replay,
        _ => Case::Superseded,
    }
}

pub(super) fn open<I: Io>(config: &MemberConfig, start: Start, io: I, store: &Store) -> Result<Opened<I>, OpenError> {
    let (mut wal, mut recovered) = Wal::recover(io, config.wal.clone())?;
    if let Some(torn) = &recovered.torn_tail {
        tracing::info!(file = torn.file, offset = torn.offset, "log: cut off a write that a crash interrupted");
    }
    let group = recovered.groups.remove(&GROUP);
    let (index, term) = store.applied();
    let at = SnapshotMark { index, term };
    let initial = match classify(group.as_ref(), at) {
        Case::Refuse(why) => return Err(OpenError::Mismatch(why)),
        Case::New => {
            let hard_state = group.map(|g| g.hard_state).unwrap_or_default();
            match start {
                Start::Founder(founders) => found(&mut wal, store, hard_state, &founders)?,
                Start::Joiner => Initial { hard_state, ..Initial::default() },
            }
        }
        Case::Replay => replay(group.unwrap_or_default(), at, membership_of(store)?),
        Case::Superseded => {
            let hard_state = raise(group.map(|g| g.hard_state).unwrap_or_default(), at);
            wal.append(GROUP, LogBatch { hard_state: Some(hard_state), entries: &[], snapshot: Some(at) })?;
            flush(&mut wal)?;
            let snapshot = SnapshotMeta { index, term, membership: membership_of(store)? };
            Initial { hard_state, snapshot, entries: Vec::new(), applied: index }
        }
    };
    let initial = if config.force_new_cluster { alone::force(config.id, &mut wal, initial, &membership_of(store)?)? } else { initial };
    let (applied, applied_term) = store.applied();
    Ok(Opened { wal, initial, applied, applied_term, membership: membership_of(store)? })
}

/// Makes a founder. The log is first, without a mark: if a crash comes before the store is made, the next
/// start finds nothing applied and does the same again.
fn found<I: Io>(wal: &mut Wal<I>, store: &Store, hard_state: HardState, founders: &Membership) -> Result<Initial, OpenError> {
    let hard_state = raise(hard_state, FOUNDING);
    wal.append(GROUP, LogBatch { hard_state: Some(HardState { commit: Index(0), ..hard_state }), entries: &[], snapshot: None })?;
    flush(wal)?;
    let bytes = postcard::to_allocvec(founders).map_err(|e| OpenError::Mismatch(format!("encode membership: {e}")))?;
    let entry = ApplyEntry { index: FOUNDING.index, term: FOUNDING.term, command: None, membership: Some(bytes.into()) };
    store.apply(&[entry])?;
    store.checkpoint()?;
    wal.append(GROUP, LogBatch { hard_state: Some(hard_state), entries: &[], snapshot: Some(FOUNDING) })?;
    flush(wal)?;
    let snapshot = SnapshotMeta { index: FOUNDING.index, term: FOUNDING.term, membership: founders.clone() };
    Ok(Initial { hard_state, snapshot, entries: Vec::new(), applied: FOUNDING.index })
}

/// A log that reaches over the store's state. Its entries before `at` are worth keeping for slow followers, but
/// the membership at its beginning is known only when it did not change on the way.
fn replay(group: RecoveredGroup, at: SnapshotMark, membership: Membership) -> Initial {
    let hard_state = raise(group.hard_state, at);
    let changed = group.entries.iter().any(|e| e.index <= at.index && e.kind == EntryKind::Conf);
    let base = if changed { at } else { group.snapshot };
    let entries = group.entries.into_iter().filter(|e| e.index > base.index).collect();
    Initial { hard_state, snapshot: SnapshotMeta { index: base.index, term: base.term, membership }, entries, applied: at.index }
}

/// A hard state that is not behind what the store holds. A vote of an older term is void in a newer one, and
/// none can have left in the newer one, since votes leave only after the hard state is durable.
pub(super) fn raise(mut hard_state: HardState, at: SnapshotMark) -> HardState {
    if hard_state.term < at.term {
        hard_state.term = at.term;
        hard_state.vote = None;
    }
    hard_state.commit = hard_state.commit.max(at.index);
    hard_state
}

fn membership_of(store: &Store) -> Result<Membership, OpenError> {
    match store.membership() {
        None => Ok(Membership::default()),
        Some(bytes) => postcard::from_bytes(&bytes).map_err(|e| OpenError::Mismatch(format!("decode membership: {e}"))),
    }
}

/// Waits until everything appended is durable. At start only.
pub(super) fn flush<I: Io>(wal: &mut Wal<I>) -> Result<(), OpenError> {
    loop {
        wal.poll()?;
        if !wal.has_pending() {
            return Ok(());
        }
        wal.io_mut().wait().map_err(|e| OpenError::Mismatch(format!("wait for the log: {e}")))?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Entry;

    fn group(mark: u64, last: u64) -> RecoveredGroup {
        let entry = |i| Entry { term: Term(i / 4 + 1), index: Index(i), kind: EntryKind::Noop, data: bytes::Bytes::new() };
        let snapshot = SnapshotMark { index: Index(mark), term: Term(if mark == 0 { 0 } else { mark / 4 + 1 }) };
        RecoveredGroup { hard_state: HardState::default(), snapshot, entries: (mark + 1..=last).map(entry).collect() }
    }

    #[test]
    fn every_case_of_the_table() {
        let at = |index: u64, term: u64| SnapshotMark { index: Index(index), term: Term(term) };
        let refused = |case: Case| matches!(case, Case::Refuse(_));
        assert_eq!(classify(None, at(0, 0)), Case::New);
        assert!(refused(classify(None, at(3, 1))));
        assert_eq!(classify(Some(&group(0, 0)), at(0, 0)), Case::New);
        for mark in 1..10 {
            for last in mark..12 {
                for store in 0..14 {
                    for term in [store / 4 + 1, 9] {
                        let case = classify(Some(&group(mark, last)), at(store, term));
                        let same = term == store / 4 + 1;
                        let expected = match () {
                            () if store < mark || (store == mark && !same && store <= last) => None,
                            () if store > last || !same => Some(Case::Superseded),
                            () => Some(Case::Replay),
                        };
                        match expected {
                            None => assert!(refused(case), "mark {mark} last {last} store {store} term {term}"),
                            Some(expected) => assert_eq!(case, expected, "mark {mark} last {last} store {store} term {term}"),
                        }
                    }
                }
            }
        }
    }
}
