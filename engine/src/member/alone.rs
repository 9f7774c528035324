//! Clusters that begin from what another cluster left: a survivor that goes on alone, and a restored backup.

use super::core::GROUP;
use super::recovery::{OpenError, flush, raise};
use crate::io::Io;
use crate::kv::{Refound, Store};
use crate::raft::{ConfChange, Initial, Membership};
use crate::types::{Entry, EntryKind, HardState, Index, NodeId};
use crate::wal::{LogBatch, SnapshotMark, Wal, WalConfig};

/// Makes member `me` the only one: appends its own promotion, where it is a learner, and the removal of all others
/// behind all that the log holds, in a new term that it has voted for itself in, and counts all of it as committed.
///
/// etcd drops what is not known to be committed. Here the commit index on the disk is a hint that lags, so entries
/// that were acknowledged may lie behind it; all are kept. It is one log write: a crash leaves all of it or none.
pub(super) fn force<I: Io>(me: NodeId, wal: &mut Wal<I>, mut initial: Initial, applied: &Membership) -> Result<Initial, OpenError> {
    let mut membership = applied.clone();
    for entry in initial.entries.iter().filter(|e| e.index > initial.applied && e.kind == EntryKind::Conf) {
        if let Some(next) = ConfChange::decode(&entry.data).and_then(|change| membership.with(&change).ok()) {
            membership = next;
        }
    }
    if !membership.contains(me) {
        return Err(OpenError::NotAMember);
    }
    let promotion = (!membership.is_voter(me)).then_some(ConfChange::Promote(me));
    let removals = membership.ids().filter(|id| *id != me).map(ConfChange::Remove);
    let changes: Vec<ConfChange> = promotion.into_iter().chain(removals).collect();
    let mut last = initial.entries.last().map_or(initial.snapshot.index, |e| e.index);
    if changes.is_empty() && initial.hard_state.commit >= last {
        return Ok(initial);
    }
    let term = initial.hard_state.term.next();
    let mut added = Vec::new();
    for change in changes {
        last = last.next();
        added.push(Entry { term, index: last, kind: EntryKind::Conf, data: change.encode() });
    }
    initial.hard_state = HardState { term, vote: Some(me), commit: last };
    wal.append(GROUP, LogBatch { hard_state: Some(initial.hard_state), entries: &added, snapshot: None })?;
    flush(wal)?;
    tracing::warn!(removed = added.len(), commit = last.0, "forced a new cluster of one member");
    initial.entries.extend(added);
    Ok(initial)
}

/// Makes a member of a new cluster out of a store that a backup was restored into and an empty log: what
/// `brickraft snapshot restore` does. Every member of the new cluster that does it with the same backup and the same
/// founders ends up with the same state, which lies behind no state of the old cluster.
///
/// # Errors
/// When the log's directory is in use already, or log or store fail.
pub fn refound<I: Io>(io: I, wal: WalConfig, store: &Store, founders: &Membership, options: Refound) -> Result<Index, OpenError> {
    let (mut wal, recovered) = Wal::recover(io, wal)?;
    if !recovered.groups.is_empty() {
        return Err(OpenError::Mismatch("the log of the member to be made is not empty".into()));
    }
    let membership = postcard::to_allocvec(founders).map_err(|e| OpenError::Mismatch(format!("encode membership: {e}")))?;
    let (index, term) = store.refound(&Refound { membership: membership.into(), ..options })?;
    let at = SnapshotMark { index, term };
    wal.append(GROUP, LogBatch { hard_state: Some(raise(HardState::default(), at)), entries: &[], snapshot: Some(at) })?;
    flush(&mut wal)?;
    Ok(index)
}
