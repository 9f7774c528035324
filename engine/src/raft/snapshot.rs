//! Snapshots: the core says who needs one; the driver moves the bytes.

use super::core::{RaftCore, State};
use super::message::Body;
use super::output::SnapshotMeta;
use super::progress::ProgressState;
use crate::types::{NodeId, Term, Time};

impl RaftCore {
    /// The stream to `to` has ended. `ok`: the follower has installed it. Otherwise it is tried again when
    /// the follower next answers a heartbeat.
    pub fn report_snapshot(&mut self, now: Time, to: NodeId, ok: bool) {
        self.now = now;
        let base = self.log.base();
        let Some(peer) = self.peer(to).filter(|p| p.state == ProgressState::Snapshot) else { return };
        let next = if ok { base.next() } else { peer.matched.next() };
        peer.become_probe(next);
        peer.probing = !ok;
        peer.probed_at = now;
    }

    /// Whether the snapshot that `from`, leading in `term`, offers is wanted. Ask at the start of the
    /// stream and again right before the restore: the log may have moved on in between.
    pub fn begin_snapshot_install(&mut self, now: Time, from: NodeId, term: Term, meta: &SnapshotMeta) -> bool {
        self.now = now;
        if term < self.term {
            self.out.send(self.term, from, Body::Stale);
            return false;
        }
        if term.0 > u64::MAX / 2 || meta.term > term || meta.index.0 > u64::MAX / 2 || from == self.config.id {
            self.ignore("impossible snapshot");
            return false;
        }
        if term > self.term {
            self.adopt_term(term);
        }
        if !self.accept_leader(from) {
            return false;
        }
        let commit = self.log.commit();
        if meta.index <= commit {
            self.promise(from, commit, Body::AppendOk { matched: commit });
            return false;
        }
        true
    }

    /// The state machine now holds the snapshot, durably, and nothing else.
    pub fn finish_snapshot_install(&mut self, now: Time, meta: SnapshotMeta) {
        self.now = now;
        assert!(!matches!(self.state, State::Leader(_)), "a leader's state is not replaced");
        let index = meta.index;
        self.log.restore(meta);
        if let Some(leader) = self.leader {
            self.promise(leader, index, Body::AppendOk { matched: index });
        }
    }
}
