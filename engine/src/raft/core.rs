//! The core's state and its outer face.

use super::election::Tally;
use super::error::{InitialError, ProposeError};
use super::log::{ENTRY_BYTES, Log};
use super::membership::Membership;
use super::message::{Body, Message};
use super::output::{Initial, Output, Persist, RaftConfig, Role, RoleChange};
use super::progress::{Peer, Progress};
use super::quorum;
use super::read::Reads;
use crate::types::{Entry, EntryKind, HardState, Index, NodeId, Term, Time};
use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// A heartbeat without an answer for so many election time-outs is not timed any more.
const PING_LOST: u32 = 2;

/// One Raft node. See [the module](super) for the driver's duties.
#[derive(Debug)]
pub struct RaftCore {
    pub(super) config: RaftConfig,
    pub(super) rng: SmallRng,
    /// The time of the latest input.
    pub(super) now: Time,
    pub(super) term: Term,
    pub(super) vote: Option<NodeId>,
    pub(super) log: Log,
    pub(super) state: State,
    pub(super) leader: Option<NodeId>,
    /// When the leader was last heard.
    pub(super) heard: Option<Time>,
    /// When to campaign, unless leader.
    pub(super) election_at: Time,
    /// When this node was started: what it promised before, it has forgotten.
    pub(super) started: Time,
    pub(super) writes: Writes,
    pub(super) out: Outbox,
    announced: Option<RoleChange>,
    ignored: (u64, &'static str),
    late_heartbeats: u64,
}

#[derive(Debug)]
pub(super) enum State {
    Follower,
    PreCandidate(Tally),
    Candidate(Tally),
    Leader(Box<Lead>),
}

/// What only a leader has.
#[derive(Debug)]
pub(super) struct Lead {
    /// Everybody who is sent the log: the members but this node, and members on their way out.
    pub peers: BTreeMap<NodeId, Peer>,
    pub heartbeat_at: Time,
    /// Before this, a new leader need not have heard from a majority.
    pub quorum_from: Time,
    pub transfer: Option<Transfer>,
    pub reads: Reads,
    pub uncommitted_bytes: usize,
}

#[derive(Debug)]
pub(super) struct Transfer {
    pub to: NodeId,
    pub until: Time,
    /// TimeoutNow has been sent since the last heartbeat.
    pub asked: bool,
}

/// Numbers of the writes that the driver was given.
#[derive(Debug, Default)]
pub(super) struct Writes {
    issued: u64,
    pub persisted: u64,
    /// The write that holds the current term and vote.
    pub of_term: u64,
    hard_state_dirty: bool,
    /// The commit index in the last written hard state.
    commit: Index,
}

impl Writes {
    /// The number of the write that takes what is new now.
    pub fn next(&self) -> u64 {
        self.issued + 1
    }

    /// Term or vote changed.
    pub fn touch(&mut self) {
        self.hard_state_dirty = true;
        self.of_term = self.next();
    }
}

/// What goes out with the next output, or after a write.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    messages: Vec<(NodeId, Message)>,
    /// Messages that promise something: they leave after the write of this number.
    held: VecDeque<(u64, NodeId, Message)>,
    pub reads: Vec<(u64, Index)>,
    pub reads_failed: Vec<u64>,
    pub send_snapshot: Vec<NodeId>,
    pub round_trips: Vec<(NodeId, Duration)>,
}

impl Outbox {
    pub fn send(&mut self, term: Term, to: NodeId, body: Body) {
        // Of several acknowledgements in a row the last says it all.
        if let (Body::AppendOk { .. }, Some((last_to, last))) = (&body, self.messages.last_mut())
            && *last_to == to
            && last.term == term
            && matches!(last.body, Body::AppendOk { .. })
        {
            last.body = body;
            return;
        }
        self.messages.push((to, Message { term, body }));
    }

    pub fn hold(&mut self, seq: u64, term: Term, to: NodeId, body: Body) {
        if let (Body::AppendOk { .. }, Some((last_seq, last_to, last))) = (&body, self.held.back_mut())
            && (*last_seq, *last_to) == (seq, to)
            && matches!(last.body, Body::AppendOk { .. })
        {
            last.body = body;
            return;
        }
        self.held.push_back((seq, to, Message { term, body }));
    }

    /// Promises of an older term are not worth sending, and dropping them is always safe.
    pub fn drop_held(&mut self) {
        self.held.clear();
    }

    fn release(&mut self, persisted: u64) {
        // Not in order of numbers: a refusal may wait for the term alone.
        for (seq, to, msg) in std::mem::take(&mut self.held) {
            if seq <= persisted {
                self.send(msg.term, to, msg.body);
            } else {
                self.held.push_back((seq, to, msg));
            }
        }
    }
}

impl RaftCore {
    /// Starts a node from what its disk holds. The only voter of a cluster campaigns at once.
    ///
    /// # Errors
    /// The parts of `initial` do not fit together.
    pub fn new(config: RaftConfig, initial: Initial, now: Time, seed: u64) -> Result<Self, InitialError> {
        assert!(config.id != NodeId(0), "0 is nobody's id");
        let hard = initial.hard_state;
        // A snapshot may have become durable before the term that it came in.
        let term = hard.term.max(initial.snapshot.term);
        let mut core = Self {
            rng: SmallRng::seed_from_u64(seed),
            now,
            term,
            vote: hard.vote.filter(|_| term == hard.term),
            log: Log::new(initial, term)?,
            state: State::Follower,
            leader: None,
            heard: None,
            started: now,
            election_at: now,
            writes: Writes { commit: hard.commit, ..Writes::default() },
            out: Outbox::default(),
            announced: None,
            ignored: (0, ""),
            late_heartbeats: 0,
            config,
        };
        core.reset_election_timer();
        if core.is_voter() && core.members().voters.len() == 1 {
            core.campaign(false);
        }
        Ok(core)
    }

    /// Appends a command to the log. It is neither committed nor sent yet.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub fn propose(&mut self, now: Time, data: Bytes) -> Result<Index, ProposeError> {
        self.now = now;
        self.check_proposal(data.len())?;
        Ok(self.append_own(EntryKind::Normal, data))
    }

    pub(super) fn check_proposal(&self, bytes: usize) -> Result<(), ProposeError> {
        let State::Leader(lead) = &self.state else {
            return Err(ProposeError::NotLeader { leader: self.leader });
        };
        if !self.is_voter() {
            return Err(ProposeError::NotLeader { leader: None }); // on its way out
        }
        if lead.transfer.is_some() {
            return Err(ProposeError::Transferring);
        }
        let after = lead.uncommitted_bytes + bytes + ENTRY_BYTES;
        if lead.uncommitted_bytes > 0 && after > self.config.uncommitted_bytes_max {
            return Err(ProposeError::Busy);
        }
        Ok(())
    }

    /// Leader Append-Only: the one place where a leader changes its log.
    pub(super) fn append_own(&mut self, kind: EntryKind, data: Bytes) -> Index {
        let State::Leader(lead) = &mut self.state else { unreachable!("only a leader makes entries") };
        lead.uncommitted_bytes += data.len() + ENTRY_BYTES;
        let index = self.log.last().next();
        self.log.append(Entry { term: self.term, index, kind, data });
        index
    }

    /// The write number `seq`, and all before it, are durable.
    pub fn on_persisted(&mut self, now: Time, seq: u64) {
        assert!(seq <= self.writes.issued, "write {seq} was never given out");
        self.now = now;
        self.writes.persisted = self.writes.persisted.max(seq);
        self.log.persisted(self.writes.persisted);
        self.out.release(self.writes.persisted);
        self.count_own_vote();
    }

    /// The state machine holds everything up to `index`.
    pub fn on_applied(&mut self, index: Index) {
        self.log.applied_to(index);
    }

    /// Drops entries up to `upto` (at most what is applied) from memory. Followers that lack them get a
    /// snapshot, so keep a tail.
    pub fn compact(&mut self, upto: Index) {
        self.log.compact(upto);
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Time) {
        self.now = now;
        if matches!(self.state, State::Leader(_)) {
            return self.lead_timeout();
        }
        if now < self.election_at {
            return;
        }
        if self.is_promotable() {
            self.campaign(self.config.pre_vote);
        } else {
            self.leader = None; // silent for too long; a learner waits for whoever comes
            self.reset_election_timer();
        }
    }

    fn lead_timeout(&mut self) {
        let now = self.now;
        let State::Leader(lead) = &mut self.state else { return };
        if lead.transfer.as_ref().is_some_and(|t| now >= t.until) {
            lead.transfer = None; // the follower did not take over: serve on
        }
        if now >= lead.heartbeat_at {
            if now.since(lead.heartbeat_at) > self.config.heartbeat {
                self.late_heartbeats += lead.peers.len() as u64;
            }
            lead.heartbeat_at = now.after(self.config.heartbeat);
            if let Some(transfer) = &mut lead.transfer {
                transfer.asked = false;
            }
            // A round of its own, so that its answers can be told from those to others.
            let round = lead.reads.begin_round(now);
            let commit = self.log.commit();
            for (id, peer) in &mut lead.peers {
                // One that takes longer than the interval is waited for; one that is lost is not, for ever.
                if peer.ping.is_none_or(|(_, at)| now >= at.after(self.config.election_timeout * PING_LOST)) {
                    peer.ping = Some((round, now));
                }
                let body = Body::Heartbeat { commit: commit.min(peer.matched), round };
                self.out.send(self.term, *id, body);
            }
            self.check_quorum();
        }
    }

    /// A leader that a majority has not answered for an election time-out steps down.
    fn check_quorum(&mut self) {
        let (me, now, timeout) = (self.config.id, self.now, self.config.election_timeout);
        let members = self.log.membership().1;
        let commit = self.log.commit();
        let State::Leader(lead) = &mut self.state else { return };
        // A removed member that is silent will not learn of it from this leader.
        lead.peers.retain(|_, p| p.is_active(now, timeout) || p.leaving.is_none_or(|at| at > commit));
        let is_active = |id| id == me || lead.peers.get(&id).is_some_and(|p| p.is_active(now, timeout));
        let alive = now < lead.quorum_from || quorum::reached(members, is_active);
        if self.config.check_quorum && !alive {
            self.become_follower(None);
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    #[must_use]
    pub fn next_timeout(&self) -> Time {
        match &self.state {
            State::Leader(lead) => {
                let transfer = lead.transfer.as_ref().map_or(Time(u64::MAX), |t| t.until);
                let commits = lead.peers.values().filter_map(|peer| peer.commit_due);
                let spare = lead.peers.values().filter_map(|peer| peer.behind_since);
                let entries = spare.map(|since| since.after(self.config.spare_delay));
                commits.chain(entries).fold(lead.heartbeat_at.min(transfer), Time::min)
            }
            _ => self.election_at,
        }
    }

    /// What is to be done. Call it after every input.
    pub fn take_output(&mut self) -> Output {
        self.flush();
        let persist = self.take_persist();
        let (committed, more) = self.log.take_committed(self.config.apply_bytes_max);
        let change = RoleChange { role: self.role(), term: self.term, leader: self.leader };
        let role_changed = (self.announced != Some(change)).then_some(change);
        self.announced = Some(change);
        Output {
            persist,
            messages: std::mem::take(&mut self.out.messages),
            committed,
            reads: std::mem::take(&mut self.out.reads),
            reads_failed: std::mem::take(&mut self.out.reads_failed),
            send_snapshot: std::mem::take(&mut self.out.send_snapshot),
            round_trips: std::mem::take(&mut self.out.round_trips),
            role_changed,
            more,
        }
    }

    fn take_persist(&mut self) -> Option<Persist> {
        let has_entries = self.log.has_untaken();
        if !has_entries && !self.writes.hard_state_dirty {
            return None;
        }
        let seq = self.writes.next();
        let entries = self.log.take_unwritten(seq);
        // The commit index is only a hint: it rides along, and never makes a write of its own.
        let hard_state = self.hard_state();
        let with_hard_state = self.writes.hard_state_dirty || hard_state.commit > self.writes.commit;
        self.writes.issued = seq;
        self.writes.hard_state_dirty = false;
        if with_hard_state {
            self.writes.commit = hard_state.commit;
        }
        Some(Persist { seq, hard_state: with_hard_state.then_some(hard_state), entries })
    }

    pub(super) fn reset_election_timer(&mut self) {
        let base = u64::try_from(self.config.election_timeout.as_micros()).unwrap_or(u64::MAX / 4).max(1);
        // Half a time-out of spread is hundreds of round trips; with pre-vote, a tie costs little more than one. A whole
        // one, as in the paper, would keep clients waiting for longer than ties do.
        let wait = self.rng.random_range(base..base.saturating_add(base / 2).max(base + 1));
        self.election_at = Time(self.now.0.saturating_add(wait));
    }

    pub(super) fn ignore(&mut self, reason: &'static str) {
        self.ignored = (self.ignored.0 + 1, reason);
        tracing::debug!(node = self.config.id.0, term = self.term.0, reason, "ignored a Raft message");
    }

    pub(super) fn members(&self) -> &Membership {
        self.log.membership().1
    }

    /// Whether this node votes by the latest membership in its log.
    pub(super) fn is_voter(&self) -> bool {
        self.members().is_voter(self.config.id)
    }

    /// Whether this node may campaign: it is a voter, or its removal may still be undone. Without the
    /// latter, the one node whose log is long enough might not stand (thesis, section 4.2.2).
    pub(super) fn is_promotable(&self) -> bool {
        self.log.may_count(self.config.id)
    }
}

/// Status.
impl RaftCore {
    /// This node.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.config.id
    }

    /// This node's part.
    #[must_use]
    pub fn role(&self) -> Role {
        match self.state {
            State::Leader(_) => Role::Leader,
            State::Candidate(_) => Role::Candidate,
            State::PreCandidate(_) => Role::PreCandidate,
            State::Follower if self.is_promotable() => Role::Follower,
            State::Follower => Role::Learner,
        }
    }

    /// The current term.
    #[must_use]
    pub fn term(&self) -> Term {
        self.term
    }

    /// Who leads, as far as this node knows.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        self.leader
    }

    /// Term, vote and commit index.
    #[must_use]
    pub fn hard_state(&self) -> HardState {
        HardState { term: self.term, vote: self.vote, commit: self.log.commit() }
    }

    /// Heartbeats that were sent more than an interval late.
    #[must_use]
    pub fn late_heartbeats(&self) -> u64 {
        self.late_heartbeats
    }

    /// The commit index.
    #[must_use]
    pub fn committed(&self) -> Index {
        self.log.commit()
    }

    /// The last index in the log, durable or not.
    #[must_use]
    pub fn last_index(&self) -> Index {
        self.log.last()
    }

    /// The last index that is durable on this node.
    #[must_use]
    pub fn stable_index(&self) -> Index {
        self.log.stable()
    }

    /// The index before the first entry in memory.
    #[must_use]
    pub fn compacted(&self) -> Index {
        self.log.base()
    }

    /// The term of the entry at `index`, if it is in memory or the compaction point.
    #[must_use]
    pub fn term_at(&self, index: Index) -> Option<Term> {
        self.log.term_at(index)
    }

    /// The latest membership in the log, committed or not.
    #[must_use]
    pub fn membership(&self) -> &Membership {
        self.members()
    }

    /// The membership as of `index`; `None` before the compaction point.
    #[must_use]
    pub fn membership_at(&self, index: Index) -> Option<&Membership> {
        self.log.membership_at(index)
    }

    /// What the leader knows of `id`; `None` when this node does not lead, or of itself and strangers.
    #[must_use]
    pub fn progress(&self, id: NodeId) -> Option<Progress> {
        match &self.state {
            State::Leader(lead) => lead.peers.get(&id).map(|p| p.view(self.now, self.config.election_timeout)),
            _ => None,
        }
    }

    /// To whom this leader is handing over.
    #[must_use]
    pub fn transferring(&self) -> Option<NodeId> {
        match &self.state {
            State::Leader(lead) => lead.transfer.as_ref().map(|t| t.to),
            _ => None,
        }
    }

    /// How many messages were ignored, and why the last one was.
    #[must_use]
    pub fn ignored(&self) -> (u64, &'static str) {
        self.ignored
    }
}
