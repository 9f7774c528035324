//! Membership changes at the leader.

use super::core::{RaftCore, State};
use super::error::{ConfError, ProposeError};
use super::membership::{ConfChange, Membership};
use super::message::Body;
use super::progress::{Peer, ProgressState};
use super::quorum;
use crate::types::{EntryKind, Index, NodeId, Time};

impl RaftCore {
    /// Appends a membership change. It takes effect at once, on every node that has it in its log, and is
    /// undone where it is cut off again.
    ///
    /// One at a time: the next one is refused until this one is committed. A new leader must have
    /// committed an entry of its term first, without which two majorities need not meet (the flaw in the
    /// thesis' single-server changes that Ongaro corrected in 2015).
    ///
    /// # Errors
    /// See [`ProposeError`] and [`ConfError`].
    pub fn propose_conf(&mut self, now: Time, change: &ConfChange) -> Result<Index, ProposeError> {
        self.now = now;
        let data = change.encode();
        self.check_proposal(data.len())?;
        let (since, members) = self.log.membership();
        let commit = self.log.commit();
        let next = members.with(change)?;
        if since > commit || self.log.term_at(commit) != Some(self.term) {
            return Err(ConfError::Pending.into());
        }
        self.check_change(members, &next)?;
        let index = self.append_own(EntryKind::Conf, data);
        self.follow_membership(index);
        Ok(index)
    }

    /// Refuses what would leave the voters without a live majority, and voters that lag behind.
    fn check_change(&self, before: &Membership, after: &Membership) -> Result<(), ConfError> {
        let State::Leader(lead) = &self.state else { return Ok(()) };
        let last = self.log.last();
        let mut joins = after.voters.keys().filter(|id| !before.is_voter(**id));
        if let Some(id) = joins.next().filter(|id| before.contains(**id)) {
            let caught_up = lead.peers.get(id).is_some_and(|p| {
                let lag = last.0.saturating_sub(p.matched.0);
                p.is_active(self.now, self.config.election_timeout)
                    && p.state == ProgressState::Replicate
                    && lag <= self.config.promote_lag_max
            });
            if !caught_up {
                return Err(ConfError::NotCaughtUp(*id));
            }
        }
        if before.voters.keys().eq(after.voters.keys()) {
            return Ok(());
        }
        let me = self.config.id;
        // Whose connection broke is probed until it answers again: a process that died a moment ago does not count.
        let is_active = |p: &Peer| p.state != ProgressState::Probe && p.is_active(self.now, self.config.election_timeout);
        let is_alive = |id: &NodeId| *id == me || lead.peers.get(id).is_some_and(is_active);
        let alive = after.voters.keys().filter(|id| is_alive(id)).count();
        let needed = quorum::majority(after.voters.len());
        if alive < needed {
            return Err(ConfError::NoQuorum { alive, needed });
        }
        // etcd's rule: one that has never run yet is not followed by another.
        let added = after.voters.keys().any(|id| !before.contains(*id));
        if let Some(id) = before.voters.keys().find(|id| added && !is_alive(id)) {
            return Err(ConfError::Silent(*id));
        }
        Ok(())
    }

    /// Sends the log to whom the membership at `index` names, and lets the others know that they are out.
    fn follow_membership(&mut self, index: Index) {
        let me = self.config.id;
        let (members, next, now) = (self.log.membership().1, self.log.last().next(), self.now);
        let State::Leader(lead) = &mut self.state else { return };
        for id in members.ids().filter(|id| *id != me) {
            lead.peers.entry(id).or_insert_with(|| Peer::new(next, now)).leaving = None;
        }
        for (id, peer) in &mut lead.peers {
            if !members.contains(*id) {
                peer.leaving.get_or_insert(index);
            }
        }
        if lead.transfer.as_ref().is_some_and(|t| !members.is_voter(t.to)) {
            lead.transfer = None;
        }
    }

    /// A leader whose own removal is committed asks the best follower to take over, and steps down. Until
    /// then it leads without counting itself (thesis, section 4.2.2).
    pub(super) fn leave_if_removed(&mut self) {
        let (since, members) = self.log.membership();
        if members.is_voter(self.config.id) || since > self.log.commit() {
            return;
        }
        let State::Leader(lead) = &self.state else { return };
        let voters = lead.peers.iter().filter(|(id, _)| members.is_voter(**id));
        if let Some((id, _)) = voters.max_by_key(|(_, p)| p.matched) {
            self.out.send(self.term, *id, Body::TimeoutNow);
        }
        self.become_follower(None);
    }
}
