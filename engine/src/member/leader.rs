//! What a member does for the others while it leads: it takes forwarded proposals, answers questions whose
//! answer needs a confirmed leader, lets leases run out and remembers when it heard of which node.

use super::core::MemberCore;
use super::envelope::{Envelope, RequestId};
use super::types::{Answer, Ask, AskError, Forward, LeaseTtl, MemberError, MemberOutput, MemberReply, NodeLeases, PeerMessage, Proposal};
use crate::io::Io;
use crate::kv::types::{Command, KvError};
use crate::raft::{ConfChange, ConfError, ProposeError, Role};
use crate::types::{Index, NodeId, Term, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Leases whose revocation is proposed at once; the others follow at the next turn.
const REVOKE_MAX: usize = 256;
/// Confirmation rounds on their way; later questions share the next one.
const ROUNDS_MAX: usize = 8;
/// Questions that wait at the leader; more are told to come again.
const ASKS_MAX: usize = 64 * 1024;
/// Nodes whose last word is remembered.
const NODES_MAX: usize = 4096;

/// Proposals of one session of a member that were appended in this term, so that a message that comes twice is taken once.
#[derive(Debug, Default)]
struct Accepted {
    /// All numbers below it have their outcome.
    floor: u64,
    numbers: BTreeSet<u64>,
}

/// A question that waits to be answered.
#[derive(Clone, Debug)]
struct Waiting {
    from: NodeId,
    id: u64,
    ask: Ask,
}

#[derive(Debug)]
struct Change {
    term: Term,
    from: NodeId,
    id: u64,
}

#[derive(Debug)]
struct Moving {
    client: u64,
    to: NodeId,
    deadline: Time,
}

/// The leader's memory. Empty at all other members.
#[derive(Debug, Default)]
pub(super) struct LeaderSide {
    /// By session as well: a late message of a member's former life must not be taken for new.
    accepted: BTreeMap<(NodeId, u32), Accepted>,
    /// Not yet in a round.
    confirm: Vec<Waiting>,
    rounds: BTreeMap<u64, Vec<Waiting>>,
    next_round: u64,
    /// Confirmed at this index; answered once it is applied.
    confirmed: BTreeMap<Index, Vec<Waiting>>,
    /// Membership changes that wait to be applied. Kept when leadership is lost, since the change may be what
    /// ended it: whether the entry at the index is still the one proposed shows when it is applied.
    conf: BTreeMap<Index, Change>,
    /// When an entry of the leader's own term was first applied.
    since: Option<Time>,
    heard: BTreeMap<NodeId, Time>,
    moving: Option<Moving>,
}

impl LeaderSide {
    fn waiting(&self) -> usize {
        self.confirm.len() + self.rounds.values().chain(self.confirmed.values()).map(Vec::len).sum::<usize>()
    }

    pub(super) fn next_timeout(&self) -> Option<Time> {
        self.moving.as_ref().map(|m| m.deadline)
    }
}

fn conf_error(e: ConfError) -> AskError {
    AskError::Refused(match e {
        ConfError::Pending => return AskError::Retry,
        ConfError::Exists(_) => MemberError::MemberExists,
        ConfError::Unknown(_) => MemberError::MemberNotFound,
        ConfError::NotLearner(_) => MemberError::NotLearner,
        ConfError::NotCaughtUp(_) => MemberError::LearnerNotReady,
        ConfError::Silent(_) => MemberError::UnhealthyCluster,
        ConfError::LastVoter | ConfError::NoQuorum { .. } => MemberError::NotEnoughStarted,
    })
}

impl<I: Io> MemberCore<I> {
    pub(super) fn leads(&self) -> bool {
        self.raft.role() == Role::Leader
    }

    /// When this node was last heard of, by this leader's clock. `None` at a follower as well.
    #[must_use]
    pub fn node_last_heard(&self, node: NodeId) -> Option<Time> {
        self.leader.heard.get(&node).copied()
    }

    /// Since when this member leads with all of its predecessors' entries applied.
    #[must_use]
    pub fn leader_since(&self) -> Option<Time> {
        self.leader.since
    }

    pub(super) fn node_leases(&self, now: Time) -> Option<NodeLeases> {
        let leader_since = self.leader.since?;
        Some(NodeLeases { now, leader_since, last_heard: self.leader.heard.clone() })
    }

    /// Takes proposals of a follower, in their term only: see `origin.rs`. What is not taken is not answered: the
    /// follower sends it again, or learns from the log that this term is over.
    pub(super) fn on_forward(&mut self, now: Time, from: NodeId, forward: Forward) {
        let Forward { term, session, done_below, proposals } = forward;
        if term != self.raft.term() || !self.leads() {
            return;
        }
        let accepted = self.leader.accepted.entry((from, session)).or_default();
        if done_below > accepted.floor {
            accepted.floor = done_below;
            accepted.numbers = accepted.numbers.split_off(&done_below);
        }
        let mut last = Index(0);
        for Proposal { number, data } in proposals {
            let fresh = number >= accepted.floor && !accepted.numbers.contains(&number);
            if fresh && let Ok(index) = self.raft.propose(now, data) {
                accepted.numbers.insert(number);
                last = index;
            }
        }
        self.raft.expect_commit(from, last);
    }

    /// Takes a question, of this member's own clients as well.
    pub(super) fn on_ask(&mut self, now: Time, from: NodeId, id: u64, ask: Ask) {
        if !self.leads() || self.leader.waiting() >= ASKS_MAX {
            return self.answer(now, from, id, Err(AskError::Retry));
        }
        match ask {
            Ask::ConfChange(change) => self.propose_change(now, from, id, &change),
            Ask::NodeAlive(node) => {
                if self.leader.heard.len() < NODES_MAX || self.leader.heard.contains_key(&node) {
                    self.leader.heard.insert(node, now);
                }
                self.leader.confirm.push(Waiting { from, id, ask });
            }
            _ => self.leader.confirm.push(Waiting { from, id, ask }),
        }
    }

    fn answer(&mut self, now: Time, to: NodeId, id: u64, result: Result<Answer, AskError>) {
        if to == self.config.id {
            self.on_answer(now, to, id, result);
        } else {
            self.send(to, PeerMessage::Answer { id, result });
        }
    }

    fn propose_change(&mut self, now: Time, from: NodeId, id: u64, change: &ConfChange) {
        let refused = match self.change_refused(change) {
            Some(e) => AskError::Refused(e),
            None => match self.raft.propose_conf(now, change) {
                Ok(index) => {
                    let term = self.raft.term();
                    self.leader.conf.insert(index, Change { term, from, id });
                    return;
                }
                Err(ProposeError::Conf(ConfError::NoQuorum { .. })) => AskError::Refused(self.no_quorum()),
                Err(ProposeError::Conf(e)) => conf_error(e),
                Err(_) => AskError::Retry,
            },
        };
        self.answer(now, from, id, Err(refused));
    }

    /// Why a change would cost the majority: members that have never run, or members that do not answer.
    fn no_quorum(&self) -> MemberError {
        let unstarted = self.members.voters.values().any(|info| info.name.is_empty());
        if unstarted { MemberError::NotEnoughStarted } else { MemberError::UnhealthyCluster }
    }

    /// etcd's checks that Raft does not make: it knows no URLs.
    fn change_refused(&self, change: &ConfChange) -> Option<MemberError> {
        let members = self.raft.membership();
        let (id, info) = match change {
            ConfChange::AddLearner(id, info) | ConfChange::AddVoter(id, info) | ConfChange::Update(id, info) => (*id, info),
            ConfChange::Promote(_) | ConfChange::Remove(_) => return None,
        };
        let taken = members
            .ids()
            .filter(|other| *other != id)
            .filter_map(|other| members.info(other))
            .any(|other| other.peer_urls.iter().any(|url| info.peer_urls.contains(url)));
        if taken {
            return Some(MemberError::PeerUrlExists);
        }
        let another_learner = matches!(change, ConfChange::AddLearner(..)) && !members.learners.is_empty();
        (another_learner && !members.contains(id)).then_some(MemberError::TooManyLearners)
    }

    /// Starts one confirmation round for all questions that wait.
    pub(super) fn flush_confirm(&mut self, now: Time) {
        if self.leader.confirm.is_empty() || self.leader.rounds.len() >= ROUNDS_MAX {
            return;
        }
        let round = self.leader.next_round;
        match self.raft.read_index(now, round) {
            Ok(()) => {
                self.leader.next_round += 1;
                let waiting = std::mem::take(&mut self.leader.confirm);
                self.leader.rounds.insert(round, waiting);
            }
            Err(ProposeError::Busy) => {}
            Err(_) => {
                for w in std::mem::take(&mut self.leader.confirm) {
                    self.answer(now, w.from, w.id, Err(AskError::Retry));
                }
            }
        }
    }

    pub(super) fn on_confirmed(&mut self, now: Time, round: u64, index: Index) {
        let Some(waiting) = self.leader.rounds.remove(&round) else { return };
        for w in waiting {
            // The asker waits for its own store; only leases and node leases are answered out of this one.
            if matches!(w.ask, Ask::ReadIndex) {
                self.raft.expect_commit(w.from, index);
                self.answer(now, w.from, w.id, Ok(Answer::ReadIndex(index)));
            } else {
                self.leader.confirmed.entry(index).or_default().push(w);
            }
        }
        self.release_confirmed(now);
    }

    pub(super) fn on_unconfirmed(&mut self, now: Time, round: u64) {
        for w in self.leader.rounds.remove(&round).unwrap_or_default() {
            self.answer(now, w.from, w.id, Err(AskError::Retry));
        }
    }

    /// Answers questions whose index is applied.
    pub(super) fn release_confirmed(&mut self, now: Time) {
        while let Some(entry) = self.leader.confirmed.first_entry() {
            // Before the promotion the lessor knows no lease.
            if *entry.key() > self.applied || self.leader.since.is_none() {
                break;
            }
            for w in entry.remove() {
                let result = match w.ask {
                    Ask::LeaseKeepAlive(id) => match self.lessor.renew(now, id) {
                        Some(ttl_s) => {
                            self.config.stats.leases_renewed.fetch_add(1, Ordering::Relaxed);
                            Ok(Answer::LeaseKeepAlive { ttl_s })
                        }
                        None => Err(AskError::Refused(MemberError::Kv(KvError::LeaseNotFound))),
                    },
                    Ask::LeaseTtl { id, keys } => self.lease_left(now, id, keys).map_err(AskError::Refused),
                    Ask::NodeAlive(_) => Ok(Answer::NodeAlive),
                    Ask::ReadIndex | Ask::ConfChange(_) => Err(AskError::Retry),
                };
                self.answer(now, w.from, w.id, result);
            }
        }
    }

    fn lease_left(&self, now: Time, id: i64, keys: bool) -> Result<Answer, MemberError> {
        let Some((remaining_s, granted_s)) = self.lessor.remaining(now, id) else {
            return Ok(Answer::LeaseTtl(LeaseTtl { granted_s: 0, remaining_s: -1, keys: Vec::new() }));
        };
        let keys = if keys { self.store.lease_keys(id)? } else { Vec::new() };
        Ok(Answer::LeaseTtl(LeaseTtl { granted_s, remaining_s, keys }))
    }

    /// An entry of the leader's own term is applied, and so is everything that earlier leaders left.
    pub(super) fn promote(&mut self, now: Time) -> Result<(), String> {
        let leases = self.store.leases().map_err(|e| format!("read leases: {e}"))?;
        // Until this member was elected, the old leader may have renewed leases for clients.
        self.lessor.promote(now, &leases, self.config.election_timeout);
        self.leader.since = Some(now);
        self.release_confirmed(now);
        Ok(())
    }

    /// This member leads no longer, or leads a new term.
    pub(super) fn resign(&mut self, now: Time) {
        self.lessor.demote();
        let next_round = self.leader.next_round;
        let old = std::mem::replace(&mut self.leader, LeaderSide { next_round, ..LeaderSide::default() });
        let waiting = old.confirm.into_iter().chain(old.rounds.into_values().flatten()).chain(old.confirmed.into_values().flatten());
        for w in waiting {
            self.answer(now, w.from, w.id, Err(AskError::Retry));
        }
        self.leader.conf = old.conf;
        self.leader.moving = old.moving;
        self.check_moving(now);
    }

    /// What is in the log at `index` was applied: answers the membership changes up to there.
    pub(super) fn on_conf_applied(&mut self, now: Time, index: Index, term: Term) {
        while let Some(entry) = self.leader.conf.first_entry().filter(|e| *e.key() <= index) {
            let same = *entry.key() == index && entry.get().term == term;
            let Change { from, id, .. } = entry.remove();
            let result = if same { Ok(Answer::Members(self.members.clone())) } else { Err(AskError::Refused(MemberError::LeaderChanged)) };
            self.answer(now, from, id, result);
        }
    }

    pub(super) fn on_move_leader(&mut self, now: Time, client: u64, to: NodeId) {
        let refused = if !self.leads() {
            Some(MemberError::NotLeader)
        } else if !self.raft.membership().is_voter(to) {
            Some(MemberError::BadLeaderTransferee)
        } else if self.leader.moving.is_some() {
            Some(MemberError::TooManyRequests)
        } else {
            None
        };
        if let Some(e) = refused {
            return self.reply(client, Err(e));
        }
        if to == self.config.id {
            return self.reply(client, Ok(MemberReply::LeaderMoved));
        }
        self.raft.transfer_leader(now, to);
        self.leader.moving = Some(Moving { client, to, deadline: now.after(self.config.request_timeout) });
    }

    /// Has leadership arrived where it was sent?
    pub(super) fn check_moving(&mut self, now: Time) {
        let Some(moving) = &self.leader.moving else { return };
        let result = match self.raft.leader() {
            Some(leader) if leader == moving.to => Ok(MemberReply::LeaderMoved),
            _ if now >= moving.deadline => Err(MemberError::TimeoutLeaderTransfer),
            Some(leader) if leader != self.config.id => Err(MemberError::TimeoutLeaderTransfer),
            _ => return,
        };
        let client = moving.client;
        self.leader.moving = None;
        self.outputs.push_back(MemberOutput::Reply { id: client, result });
    }

    /// Proposes the end of leases that ran out.
    pub(super) fn revoke_expired(&mut self, now: Time) {
        if self.leader.since.is_none() || self.lessor.next_deadline().is_none_or(|d| d > now) {
            return;
        }
        for id in self.lessor.expired(now, REVOKE_MAX) {
            let request = RequestId { origin: NodeId(0), session: 0, number: 0 };
            let command = Command::LeaseRevoke { id };
            // What is refused now is reported by the lessor again.
            if let Ok(data) = (Envelope { request, command }).encode() {
                let _ = self.raft.propose(now, data);
            }
        }
    }

    /// The voter that has most of the log, to hand leadership to.
    pub(super) fn best_successor(&self) -> Option<NodeId> {
        let voters = self.raft.membership().voters.keys().copied().filter(|id| *id != self.config.id);
        let known = voters.filter_map(|id| self.raft.progress(id).map(|p| (p.recent_active, p.matched, id)));
        known.max().map(|(_, _, id)| id)
    }

    /// How long a graceful stop waits for a successor.
    pub(super) fn handover_max(&self) -> Duration {
        self.config.election_timeout * 2
    }
}
