//! Messages: terms first, then each to its place.

use super::core::{RaftCore, State};
use super::message::{Body, Message};
use crate::types::{NodeId, Term, Time};

/// Terms above this come from a broken peer: they would leave no room to count on.
const TERM_MAX: Term = Term(u64::MAX / 2);

impl RaftCore {
    /// Takes a message from `from`. Anything goes: strangers, old terms, nonsense.
    pub fn step(&mut self, now: Time, from: NodeId, msg: Message) {
        self.now = now;
        if from == self.config.id || from == NodeId(0) || msg.term > TERM_MAX {
            return self.ignore("impossible sender or term");
        }
        if self.is_stranger(from, &msg.body) {
            return self.ignore("answer from a stranger");
        }
        if self.is_unwanted_campaign(now, &msg) {
            return self.ignore("campaign while the leader is alive");
        }
        if msg.term < self.term {
            return self.step_older(from, &msg.body);
        }
        if msg.term > self.term {
            self.adopt_term(msg.term);
        }
        match msg.body {
            Body::PreVote { next, last, last_term } => self.on_pre_vote(from, next, last, last_term),
            Body::PreVoteReply { next, granted } => self.on_ballot(from, Some(next), granted),
            Body::Vote { last, last_term, .. } => self.on_vote(from, last, last_term),
            Body::VoteReply { granted } => self.on_ballot(from, None, granted),
            Body::Append { prev, prev_term, commit, entries } => {
                if self.accept_leader(from) {
                    self.on_append(from, prev, prev_term, commit, entries);
                }
            }
            Body::Heartbeat { commit, round } => {
                if self.accept_leader(from) {
                    self.follow_commit(commit);
                    self.promise(from, crate::types::Index(0), Body::HeartbeatReply { round });
                }
            }
            Body::Commit { commit } => {
                if self.accept_leader(from) {
                    self.follow_commit(commit);
                }
            }
            Body::AppendOk { matched } => self.on_append_ok(from, matched),
            Body::AppendRefused { prev, hint, hint_term } => self.on_append_refused(from, prev, hint, hint_term),
            Body::HeartbeatReply { round } => self.on_heartbeat_reply(from, round),
            Body::Stale => {}
            Body::TimeoutNow => self.on_timeout_now(from),
        }
    }

    /// A leader's peers are known to it, so answers from others, of whatever term, are not for it. Followers
    /// listen to strangers: their membership may lag.
    fn is_stranger(&self, from: NodeId, body: &Body) -> bool {
        let State::Leader(lead) = &self.state else { return false };
        let answer = matches!(
            body,
            Body::PreVoteReply { .. }
                | Body::VoteReply { .. }
                | Body::AppendOk { .. }
                | Body::AppendRefused { .. }
                | Body::HeartbeatReply { .. }
                | Body::Stale
        );
        answer && !lead.peers.contains_key(&from)
    }

    /// Leader stickiness: who hears the leader does not help to depose it, unless the leader asked for it.
    fn is_unwanted_campaign(&self, now: Time, msg: &Message) -> bool {
        let applies = match msg.body {
            Body::PreVote { .. } => self.config.pre_vote || self.config.check_quorum,
            Body::Vote { transfer, .. } => self.config.check_quorum && !transfer,
            _ => return false,
        };
        applies && msg.term >= self.term && self.leader_is_alive(now)
    }

    /// The sender lags: tell it, if it waits for an answer.
    fn step_older(&mut self, from: NodeId, body: &Body) {
        let answer = match body {
            Body::PreVote { next, .. } => Body::PreVoteReply { next: *next, granted: false },
            Body::Vote { .. } => Body::VoteReply { granted: false },
            // With pre-vote, nothing else would tell a leader that this node has gone ahead.
            Body::Append { .. } | Body::Heartbeat { .. } => Body::Stale,
            _ => return,
        };
        self.out.send(self.term, from, answer);
    }

    /// Takes `from` for the leader of the current term. False if there is another one already.
    pub(super) fn accept_leader(&mut self, from: NodeId) -> bool {
        if self.leader.is_some_and(|known| known != from) {
            self.ignore("a second leader in one term");
            return false;
        }
        if self.leader.is_none() {
            self.become_follower(Some(from));
        }
        self.heard = Some(self.now);
        self.reset_election_timer();
        true
    }
}
