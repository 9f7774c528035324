//! Elections: pre-vote, votes, and the changes of role.

use super::core::{Lead, RaftCore, State, Transfer};
use super::message::Body;
use super::progress::Peer;
use super::quorum;
use super::read::Reads;
use crate::types::{EntryKind, Index, NodeId, Term, Time};
use bytes::Bytes;
use rand::Rng as _;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Who answered a candidate.
#[derive(Debug, Default)]
pub(super) struct Tally {
    granted: BTreeSet<NodeId>,
    refused: BTreeSet<NodeId>,
}

impl RaftCore {
    /// Enters a newer term as a follower.
    pub(super) fn adopt_term(&mut self, term: Term) {
        assert!(term > self.term, "terms only go up");
        self.term = term;
        self.vote = None;
        self.writes.touch();
        self.out.drop_held();
        self.become_follower(None);
    }

    pub(super) fn become_follower(&mut self, leader: Option<NodeId>) {
        let was = std::mem::replace(&mut self.state, State::Follower);
        if let State::Leader(lead) = was {
            self.out.reads_failed.extend(lead.reads.fail());
        }
        self.leader = leader;
        self.heard = None;
        self.reset_election_timer();
    }

    /// Asks for votes, or first asks whether asking makes sense.
    pub(super) fn campaign(&mut self, pre: bool) {
        self.start_campaign(pre, false);
    }

    pub(super) fn start_campaign(&mut self, pre: bool, transfer: bool) {
        let me = self.config.id;
        let (last, last_term) = (self.log.last(), self.log.last_term());
        self.become_follower(None);
        let body = if pre {
            self.state = State::PreCandidate(Tally { granted: BTreeSet::from([me]), ..Tally::default() });
            Body::PreVote { next: self.term.next(), last, last_term }
        } else {
            self.term = self.term.next();
            self.vote = Some(me);
            self.writes.touch();
            self.out.drop_held();
            // Its own vote counts once it is durable, as everybody's.
            self.state = State::Candidate(Tally::default());
            Body::Vote { last, last_term, transfer }
        };
        let others: Vec<_> = self.members().voters.keys().copied().filter(|id| *id != me).collect();
        for id in others {
            if pre {
                self.out.send(self.term, id, body.clone());
            } else {
                self.out.hold(self.writes.of_term, self.term, id, body.clone());
            }
        }
        self.decide_election();
    }

    pub(super) fn count_own_vote(&mut self) {
        let durable = self.writes.of_term <= self.writes.persisted;
        if let State::Candidate(tally) = &mut self.state
            && durable
            && tally.granted.insert(self.config.id)
        {
            self.decide_election();
        }
    }

    pub(super) fn on_pre_vote(&mut self, from: NodeId, next: Term, last: Index, last_term: Term) {
        let granted = next > self.term && self.log.is_covered_by(last, last_term);
        self.out.send(self.term, from, Body::PreVoteReply { next, granted });
        if next > self.term && !granted {
            self.hurry_election();
        }
    }

    /// A candidate with less of the log than this node has cannot win where this node is needed, so this one does not wait for
    /// its own timer. Nor do others with as much as it has: of more than three voters they take a moment's turns.
    fn hurry_election(&mut self) {
        // It has missed the leader as long as the candidate has, or it would not have heard the question: unless it has just been
        // started, and there is one that it has not heard yet.
        let silent = self.leader.is_some() || self.now >= self.started.after(self.config.election_timeout);
        if !silent || !self.config.pre_vote || !matches!(self.state, State::Follower) || !self.is_promotable() {
            return;
        }
        if self.members().voters.len() <= 3 {
            return self.campaign(true);
        }
        let wait = self.rng.random_range(Duration::ZERO..=self.config.election_timeout / 10);
        self.election_at = self.election_at.min(self.now.after(wait));
    }

    pub(super) fn on_vote(&mut self, from: NodeId, last: Index, last_term: Term) {
        let free = self.vote == Some(from) || (self.vote.is_none() && self.leader.is_none());
        if !free || !self.log.is_covered_by(last, last_term) {
            return self.out.send(self.term, from, Body::VoteReply { granted: false });
        }
        if self.vote.is_none() {
            self.vote = Some(from);
            self.writes.touch();
            self.become_follower(None);
        }
        self.promise(from, Index(0), Body::VoteReply { granted: true });
    }

    /// Sends what is true only once the term, the vote and the log up to `index` are durable.
    pub(super) fn promise(&mut self, to: NodeId, index: Index, body: Body) {
        let write = self.log.write_of(index, self.writes.next()).max(self.writes.of_term);
        if write <= self.writes.persisted {
            self.out.send(self.term, to, body);
        } else {
            self.out.hold(write, self.term, to, body);
        }
    }

    /// An answer to a vote (`asked` is `None`) or to a pre-vote for the term `asked`.
    pub(super) fn on_ballot(&mut self, from: NodeId, asked: Option<Term>, granted: bool) {
        let next = self.term.next();
        let tally = match (&mut self.state, asked) {
            (State::PreCandidate(tally), Some(term)) if term == next => tally,
            (State::Candidate(tally), None) => tally,
            _ => return, // decided already
        };
        // A voter that granted does not take it back within a term.
        if granted {
            tally.refused.remove(&from);
            tally.granted.insert(from);
        } else if !tally.granted.contains(&from) {
            tally.refused.insert(from);
        }
        self.decide_election();
    }

    fn decide_election(&mut self) {
        let members = self.log.membership().1;
        let (pre, tally) = match &self.state {
            State::PreCandidate(tally) => (true, tally),
            State::Candidate(tally) => (false, tally),
            _ => return,
        };
        if quorum::reached(members, |id| tally.granted.contains(&id)) {
            return if pre { self.start_campaign(false, false) } else { self.become_leader() };
        }
        let open = quorum::reached(members, |id| !tally.refused.contains(&id));
        if !open {
            self.become_follower(None);
        }
    }

    fn become_leader(&mut self) {
        assert!(self.writes.of_term <= self.writes.persisted, "a leader's own vote is durable");
        let (me, now) = (self.config.id, self.now);
        let next = self.log.last().next();
        let peers: BTreeMap<_, _> = self.members().ids().filter(|id| *id != me).map(|id| (id, Peer::new(next, now))).collect();
        self.state = State::Leader(Box::new(Lead {
            peers,
            heartbeat_at: now.after(self.config.heartbeat),
            quorum_from: now.after(self.config.election_timeout),
            transfer: None,
            reads: Reads::default(),
            uncommitted_bytes: 0,
        }));
        self.leader = Some(me);
        // Entries of older terms commit only with one of the own term (paper, 5.4.2).
        self.append_own(EntryKind::Noop, Bytes::new());
    }

    /// Whether a leader is known to be alive, so that campaigns are not listened to (thesis, 4.2.3).
    pub(super) fn leader_is_alive(&self, now: Time) -> bool {
        let timeout = self.config.election_timeout;
        let heard = self.heard.is_some_and(|at| now < at.after(timeout));
        // A node that was just started may have heard a leader, which relies on that, before it died.
        let fresh = self.config.lease_reads && now < self.started.after(timeout);
        matches!(self.state, State::Leader(_)) || (self.leader.is_some() && heard) || fresh
    }

    /// Hands leadership to the voter `to`, once its log has caught up. Gives up after an election time-out;
    /// until then proposals are refused. Does nothing when this node does not lead.
    pub fn transfer_leader(&mut self, now: Time, to: NodeId) {
        self.now = now;
        let possible = to != self.config.id && self.members().is_voter(to);
        if let State::Leader(lead) = &mut self.state
            && possible
        {
            lead.transfer = Some(Transfer { to, until: now.after(self.config.election_timeout), asked: false });
            lead.reads.handing_over = true;
            self.expect_commit(to, self.log.last());
        }
    }

    pub(super) fn on_timeout_now(&mut self, from: NodeId) {
        if self.leader != Some(from) || !self.is_promotable() {
            return self.ignore("TimeoutNow, but not from the leader to a voter");
        }
        self.start_campaign(false, true);
    }
}
