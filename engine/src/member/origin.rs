//! The side of a member that took requests from its clients and owes them an outcome.
//!
//! A proposal is offered to the leader of one term and can stand in the log in that term only (the leader
//! checks it, see `leader.rs`). Hence its fate is known: it is applied here; or an entry of a later term is
//! applied here first, and then it never will be, and is offered again. Until then it waits, and is at most sent again to the
//! same leader in the same term, which knows what it has taken. No word of refusal counts: it may be about the second copy
//! of a message whose first copy was taken. So clients see no error when leadership moves, and no command is ever
//! applied twice.

use super::core::MemberCore;
use super::envelope::{Envelope, RequestId};
use super::types::{Answer, Ask, AskError, Forward, MemberError, MemberOutput, MemberReply, MemberRequest, PeerMessage, Proposal};
use crate::io::Io;
use crate::kv::types::{Applied, Command};
use crate::raft::ProposeError;
use crate::types::{Index, NodeId, Term, Time};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Bytes of proposals in one [`Forward`], unless one proposal is larger.
const FORWARD_BYTES_MAX: usize = 1 << 20;
/// ReadIndex rounds on their way. There is one as a rule, and the reads that come meanwhile share the next one; more of
/// them, while answers are overdue.
const READ_ROUNDS_MAX: usize = 4;
/// How long a round of reads keeps the next one waiting.
const READ_ROUND_OVERDUE: Duration = Duration::from_millis(10);
/// Without an answer for so long, what can be asked twice is asked again.
const RESEND: Duration = Duration::from_millis(500);

/// Where and when something was sent.
#[derive(Clone, Copy, Debug)]
struct Sent {
    term: Term,
    at: Time,
}

#[derive(Debug)]
enum Kind {
    /// Encoded, and to which leader it was offered.
    Propose {
        data: Bytes,
        sent: Option<Sent>,
        /// It may be in a snapshot that was installed here.
        lost_sight: bool,
    },
    /// Reads, and whether the answer is the list of members.
    Read {
        members: bool,
    },
    Ask(Ask),
}

#[derive(Debug)]
struct Pending {
    /// The caller's number for the request.
    client: u64,
    deadline: Time,
    kind: Kind,
}

impl Pending {
    /// What to offer to the leader of `term`: nothing that an earlier one may have taken.
    fn offer(&mut self, term: Term) -> Option<(&Bytes, &mut Option<Sent>)> {
        match &mut self.kind {
            Kind::Propose { data, sent, .. } if sent.is_none_or(|s| s.term == term) => Some((data, sent)),
            _ => None,
        }
    }
}

/// A question that waits for the leader's answer.
#[derive(Debug)]
struct Round {
    sent: Sent,
    to: NodeId,
    /// Reads share it; it is no other question.
    reads: bool,
    /// The requests that it answers.
    requests: Vec<u64>,
}

/// Requests without an outcome. All are in `pending`; the other fields say what is to be done about them.
#[derive(Debug)]
pub(super) struct Origin {
    session: u32,
    /// Invariant: numbers ascend with deadlines, since all requests have the same time-out.
    pending: BTreeMap<u64, Pending>,
    next_number: u64,
    /// Proposals that no leader was offered.
    unsent: VecDeque<u64>,
    /// Reads that are in no round.
    reads: Vec<u64>,
    /// Other questions that are not sent.
    asks: VecDeque<u64>,
    rounds: BTreeMap<u64, Round>,
    /// Reads that wait for the store to apply an index.
    confirmed: BTreeMap<Index, Vec<u64>>,
    next_round: u64,
    /// After a refusal, nothing is offered to the same leader before this time.
    hold_until: Time,
    leaderless_since: Option<Time>,
    leader_changed_at: Time,
    /// Who led last, also while nobody does.
    last_leader: Option<NodeId>,
    last_resend: Time,
}

impl Origin {
    pub(super) fn new(session: u32, now: Time) -> Self {
        Self {
            session,
            pending: BTreeMap::new(),
            next_number: 1,
            unsent: VecDeque::new(),
            reads: Vec::new(),
            asks: VecDeque::new(),
            rounds: BTreeMap::new(),
            confirmed: BTreeMap::new(),
            next_round: 1,
            hold_until: Time(0),
            leaderless_since: Some(now),
            leader_changed_at: Time(0),
            last_leader: None,
            last_resend: now,
        }
    }

    fn has_unsent(&self) -> bool {
        !(self.unsent.is_empty() && self.reads.is_empty() && self.asks.is_empty())
    }

    /// When the reads that wait may go out: not while a round is on its way that is not overdue. `None`: no time
    /// brings it about, only an answer.
    fn reads_due(&self) -> Option<Time> {
        let mut under_way = self.rounds.values().filter(|r| r.reads).map(|r| r.sent.at);
        let Some(first) = under_way.next() else { return Some(Time(0)) };
        let (count, last) = under_way.fold((1, first), |(n, last), at| (n + 1, last.max(at)));
        (count < READ_ROUNDS_MAX).then(|| last.after(READ_ROUND_OVERDUE))
    }

    /// When [`MemberCore::origin_tick`] or [`MemberCore::flush_origin`] has something to do.
    pub(super) fn next_timeout(&self, no_leader: Duration) -> Option<Time> {
        let (_, first) = self.pending.first_key_value()?;
        let mut next = first.deadline.min(self.last_resend.after(RESEND));
        if self.has_unsent() {
            let offer = match self.leaderless_since {
                Some(since) => Some(since.after(no_leader)),
                None if self.unsent.is_empty() && self.asks.is_empty() => self.reads_due().map(|due| due.max(self.hold_until)),
                None => Some(self.hold_until),
            };
            next = offer.map_or(next, |at| next.min(at));
        }
        Some(next)
    }
}

impl<I: Io> MemberCore<I> {
    /// How long requests wait for a leader to come up. An election takes one to two time-outs.
    pub(super) fn no_leader_after(&self) -> Duration {
        self.config.election_timeout * 2
    }

    /// Takes a client's request in.
    pub(super) fn on_request(&mut self, now: Time, client: u64, request: MemberRequest) {
        if self.stopped.is_some() {
            return self.reply(client, Err(MemberError::Stopped));
        }
        let kind = match request {
            MemberRequest::Propose(command) => return self.on_propose(now, client, command),
            MemberRequest::ReadIndex => Kind::Read { members: false },
            MemberRequest::MemberList { linearizable: true } => Kind::Read { members: true },
            MemberRequest::MemberList { linearizable: false } => {
                let members = self.members.clone();
                return self.reply(client, Ok(MemberReply::Members(members)));
            }
            MemberRequest::LeaseKeepAlive(id) => Kind::Ask(Ask::LeaseKeepAlive(id)),
            MemberRequest::LeaseTimeToLive { id, keys } => Kind::Ask(Ask::LeaseTtl { id, keys }),
            MemberRequest::NodeAlive { node } => Kind::Ask(Ask::NodeAlive(node)),
            MemberRequest::ConfChange(change) => Kind::Ask(Ask::ConfChange(change)),
            MemberRequest::MoveLeader(to) => return self.on_move_leader(now, client, to),
            MemberRequest::Status => {
                let status = Box::new(self.status());
                return self.reply(client, Ok(MemberReply::Status(status)));
            }
            MemberRequest::NodeLeases => {
                let result = self.node_leases(now).map(MemberReply::NodeLeases).ok_or(MemberError::NotLeader);
                return self.reply(client, result);
            }
        };
        self.admit(now, client, kind);
    }

    fn on_propose(&mut self, now: Time, client: u64, command: Command) {
        let number = self.origin.next_number;
        let request = RequestId { origin: self.config.id, session: self.origin.session, number };
        match (Envelope { request, command }).encode() {
            Ok(data) if data.len() > self.config.request_bytes_max => self.reply(client, Err(MemberError::RequestTooLarge)),
            Ok(data) => self.admit(now, client, Kind::Propose { data, sent: None, lost_sight: false }),
            Err(e) => self.reply(client, Err(MemberError::Storage(format!("encode command: {e}")))),
        }
    }

    fn admit(&mut self, now: Time, client: u64, kind: Kind) {
        if self.origin.pending.len() >= self.config.pending_max {
            return self.reply(client, Err(MemberError::TooManyRequests));
        }
        if let (Kind::Propose { .. }, Some(e)) = (&kind, self.overloaded()) {
            return self.reply(client, Err(e));
        }
        let number = self.origin.next_number;
        self.origin.next_number += 1;
        self.enqueue(number, &kind);
        let deadline = now.after(self.config.request_timeout);
        self.origin.pending.insert(number, Pending { client, deadline, kind });
    }

    fn enqueue(&mut self, number: u64, kind: &Kind) {
        match kind {
            Kind::Propose { .. } => self.origin.unsent.push_back(number),
            Kind::Read { .. } => self.origin.reads.push(number),
            Kind::Ask(_) => self.origin.asks.push_back(number),
        }
    }

    pub(super) fn reply(&mut self, client: u64, result: Result<MemberReply, MemberError>) {
        self.outputs.push_back(MemberOutput::Reply { id: client, result });
    }

    fn finish(&mut self, number: u64, result: Result<MemberReply, MemberError>) {
        if let Some(pending) = self.origin.pending.remove(&number) {
            if let (Kind::Read { .. }, Err(e)) = (&pending.kind, &result) {
                let late = matches!(e, MemberError::Timeout | MemberError::TimeoutLeaderFail);
                let stats = &self.config.stats;
                let count = if late { &stats.reads_late } else { &stats.reads_failed };
                count.fetch_add(1, Ordering::Relaxed);
            }
            self.reply(pending.client, result);
        }
    }

    /// Offers what waits to the leader, if there is one.
    pub(super) fn flush_origin(&mut self, now: Time) {
        let Some(leader) = self.raft.leader() else { return };
        if now < self.origin.hold_until {
            return;
        }
        if leader == self.config.id {
            self.propose_own(now);
        } else {
            self.forward_proposals(now, leader);
        }
        self.flush_asks(now, leader);
    }

    fn propose_own(&mut self, now: Time) {
        let term = self.raft.term();
        while let Some(number) = self.origin.unsent.front().copied() {
            if let Some(Pending { kind: Kind::Propose { data, sent: sent @ None, .. }, .. }) = self.origin.pending.get_mut(&number) {
                match self.raft.propose(now, data.clone()) {
                    Ok(_) => *sent = Some(Sent { term, at: now }),
                    // Not leader, or handing over: wait for who comes. Busy: wait for commits.
                    Err(ProposeError::Busy) => break,
                    Err(_) => {
                        self.origin.hold_until = now.after(self.config.heartbeat);
                        break;
                    }
                }
            }
            self.origin.unsent.pop_front();
        }
    }

    fn forward_proposals(&mut self, now: Time, leader: NodeId) {
        let term = self.raft.term();
        while !self.origin.unsent.is_empty() {
            let mut proposals = Vec::new();
            let mut bytes = 0;
            while let Some(number) = self.origin.unsent.front().copied() {
                let offer = self.origin.pending.get_mut(&number).and_then(|p| p.offer(term));
                if let Some((data, sent)) = offer {
                    if bytes > 0 && bytes + data.len() > FORWARD_BYTES_MAX {
                        break;
                    }
                    bytes += data.len();
                    *sent = Some(Sent { term, at: now });
                    proposals.push(Proposal { number, data: data.clone() });
                }
                self.origin.unsent.pop_front();
            }
            let done_below = self.origin.pending.first_key_value().map_or(self.origin.next_number, |(n, _)| *n);
            if !proposals.is_empty() {
                self.send(leader, PeerMessage::Forward(Forward { term, session: self.origin.session, done_below, proposals }));
            }
        }
    }

    fn flush_asks(&mut self, now: Time, leader: NodeId) {
        if !self.origin.reads.is_empty() && self.origin.reads_due().is_some_and(|due| due <= now) {
            let requests = std::mem::take(&mut self.origin.reads);
            self.start_round(now, leader, requests, Ask::ReadIndex);
        }
        while let Some(number) = self.origin.asks.pop_front() {
            if let Some(Pending { kind: Kind::Ask(ask), .. }) = self.origin.pending.get(&number) {
                let ask = ask.clone();
                self.start_round(now, leader, vec![number], ask);
            }
        }
    }

    fn start_round(&mut self, now: Time, leader: NodeId, requests: Vec<u64>, ask: Ask) {
        let id = self.origin.next_round;
        self.origin.next_round += 1;
        let sent = Sent { term: self.raft.term(), at: now };
        let reads = matches!(ask, Ask::ReadIndex);
        self.origin.rounds.insert(id, Round { sent, to: leader, reads, requests });
        if leader == self.config.id {
            self.on_ask(now, leader, id, ask);
        } else {
            self.send(leader, PeerMessage::Ask { id, ask });
        }
    }

    /// The leader answers a question. A late answer to one that was asked again is as good as the second:
    /// it was confirmed after the request came in.
    pub(super) fn on_answer(&mut self, now: Time, from: NodeId, id: u64, result: Result<Answer, AskError>) {
        if self.origin.rounds.get(&id).is_none_or(|r| r.to != from) {
            return;
        }
        let Some(round) = self.origin.rounds.remove(&id) else { return };
        let reply = match result {
            Ok(Answer::ReadIndex(index)) => {
                self.origin.confirmed.entry(index).or_default().extend(round.requests);
                return self.release_reads();
            }
            Ok(Answer::LeaseKeepAlive { ttl_s }) => Ok(MemberReply::LeaseKeepAlive { ttl_s }),
            Ok(Answer::LeaseTtl(ttl)) => Ok(MemberReply::LeaseTtl(ttl)),
            Ok(Answer::NodeAlive) => Ok(MemberReply::NodeAlive),
            Ok(Answer::Members(membership)) => Ok(MemberReply::Members(membership)),
            Err(AskError::Refused(e)) => Err(e),
            Err(AskError::Retry) => {
                self.origin.hold_until = now.after(self.config.heartbeat);
                return self.requeue(round.requests);
            }
        };
        for number in round.requests {
            self.finish(number, reply.clone());
        }
    }

    fn requeue(&mut self, numbers: Vec<u64>) {
        for number in numbers {
            match self.origin.pending.get_mut(&number) {
                Some(Pending { kind: Kind::Propose { sent, lost_sight: false, .. }, .. }) => {
                    *sent = None;
                    self.origin.unsent.push_back(number);
                }
                Some(Pending { kind: Kind::Read { .. }, .. }) => self.origin.reads.push(number),
                Some(Pending { kind: Kind::Ask(_), .. }) => self.origin.asks.push_back(number),
                Some(Pending { kind: Kind::Propose { .. }, .. }) | None => {}
            }
        }
    }

    /// Answers reads whose index is applied.
    pub(super) fn release_reads(&mut self) {
        while let Some(entry) = self.origin.confirmed.first_entry() {
            if *entry.key() > self.applied {
                break;
            }
            let index = *entry.key();
            for number in entry.remove() {
                let members = matches!(self.origin.pending.get(&number), Some(Pending { kind: Kind::Read { members: true }, .. }));
                let reply = if members { MemberReply::Members(self.members.clone()) } else { MemberReply::ReadIndex(index) };
                self.finish(number, Ok(reply));
            }
        }
    }

    /// A command of this member was applied.
    pub(super) fn on_outcome(&mut self, request: RequestId, applied: Applied) {
        if request.origin == self.config.id && request.session == self.origin.session {
            self.finish(request.number, Ok(MemberReply::Applied(applied)));
        }
    }

    /// Entries of this term are applied now: proposals offered in an earlier one are lost, and known to be.
    pub(super) fn on_term_applied(&mut self, term: Term) {
        let lost = |(n, p): (&u64, &Pending)| match &p.kind {
            Kind::Propose { sent: Some(s), lost_sight: false, .. } if s.term < term => Some(*n),
            _ => None,
        };
        let lost: Vec<u64> = self.origin.pending.iter().filter_map(lost).collect();
        self.requeue(lost);
        // A change of the membership has no request id in its entry: whether it was made is open.
        let open: Vec<u64> = self.origin.rounds.iter().filter(|(_, r)| r.sent.term < term).map(|(id, _)| *id).collect();
        for id in open {
            let Some(round) = self.origin.rounds.get(&id) else { continue };
            if !round.requests.iter().any(|n| self.is_change(*n)) {
                continue;
            }
            for number in self.origin.rounds.remove(&id).map(|r| r.requests).unwrap_or_default() {
                self.finish(number, Err(MemberError::LeaderChanged));
            }
        }
    }

    fn is_change(&self, number: u64) -> bool {
        matches!(self.origin.pending.get(&number), Some(Pending { kind: Kind::Ask(Ask::ConfChange(_)), .. }))
    }

    /// A snapshot was installed: commands of this member may be in it, and nobody can tell which. Those that
    /// were offered to a leader are never offered again; they time out, which says that the outcome is open.
    pub(super) fn forget_sent(&mut self) {
        for pending in self.origin.pending.values_mut() {
            if let Kind::Propose { sent, lost_sight, .. } = &mut pending.kind {
                *lost_sight |= sent.is_some();
            }
        }
    }

    /// Role, term or leader changed: questions to the old leader are asked again.
    pub(super) fn on_leader_change(&mut self, now: Time) {
        let leader = self.raft.leader();
        if leader.is_some() && leader != self.origin.last_leader {
            self.origin.last_leader = leader;
            self.config.stats.leader_changes.fetch_add(1, Ordering::Relaxed);
        }
        self.origin.hold_until = Time(0);
        self.origin.leader_changed_at = now;
        self.origin.leaderless_since = match (leader, self.origin.leaderless_since) {
            (Some(_), _) => None,
            (None, since) => since.or(Some(now)),
        };
        let term = self.raft.term();
        let stale: Vec<u64> =
            self.origin.rounds.iter().filter(|(_, r)| r.sent.term != term || Some(r.to) != leader).map(|(id, _)| *id).collect();
        for id in stale {
            self.abandon_round(id);
        }
    }

    /// Asks again, but for changes of the membership: the old leader may have made them, and may say so yet.
    fn abandon_round(&mut self, id: u64) {
        if self.origin.rounds.get(&id).is_some_and(|r| r.requests.iter().any(|n| self.is_change(*n))) {
            return;
        }
        if let Some(round) = self.origin.rounds.remove(&id) {
            self.requeue(round.requests);
        }
    }

    /// Time-outs of requests.
    pub(super) fn origin_tick(&mut self, now: Time) {
        let leaderless = self.origin.leaderless_since.is_some_and(|since| now.since(since) >= self.no_leader_after());
        if leaderless && self.origin.has_unsent() {
            let mut waiting: Vec<u64> = std::mem::take(&mut self.origin.unsent).into();
            waiting.append(&mut self.origin.reads);
            waiting.extend(std::mem::take(&mut self.origin.asks));
            for number in waiting {
                self.finish(number, Err(MemberError::NoLeader));
            }
        }
        while let Some((number, pending)) = self.origin.pending.first_key_value() {
            if pending.deadline > now {
                break;
            }
            let changed = self.origin.leader_changed_at.after(self.config.request_timeout) > now;
            let error =
                if changed && self.origin.leader_changed_at > Time(0) { MemberError::TimeoutLeaderFail } else { MemberError::Timeout };
            let number = *number;
            self.finish(number, Err(error));
        }
        if now.since(self.origin.last_resend) >= RESEND {
            self.origin.last_resend = now;
            self.resend(now);
        }
    }

    /// Messages may be lost: what has no answer goes out again. The leader knows what it has taken.
    fn resend(&mut self, now: Time) {
        let Some(leader) = self.raft.leader() else { return };
        let old = |sent: &Sent| now.since(sent.at) >= RESEND;
        let rounds: Vec<u64> = self.origin.rounds.iter().filter(|(_, r)| old(&r.sent)).map(|(id, _)| *id).collect();
        for id in rounds {
            self.abandon_round(id);
        }
        if leader == self.config.id {
            return;
        }
        let term = self.raft.term();
        let lost = |(n, p): (&u64, &Pending)| match &p.kind {
            Kind::Propose { sent: Some(s), lost_sight: false, .. } if s.term == term && old(s) => Some(*n),
            _ => None,
        };
        let lost: Vec<u64> = self.origin.pending.iter().filter_map(lost).collect();
        for number in lost {
            self.origin.unsent.push_back(number);
        }
    }

    /// The member is stopping for good: nobody waits any longer.
    pub(super) fn fail_all(&mut self, error: &MemberError) {
        for (_, pending) in std::mem::take(&mut self.origin.pending) {
            self.outputs.push_back(MemberOutput::Reply { id: pending.client, result: Err(error.clone()) });
        }
        self.origin.unsent.clear();
        self.origin.reads.clear();
        self.origin.asks.clear();
        self.origin.rounds.clear();
        self.origin.confirmed.clear();
    }
}
