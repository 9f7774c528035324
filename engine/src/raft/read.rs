//! ReadIndex (thesis, section 6.4): one round of heartbeats confirms many reads. And reads under the leader's lease
//! (6.4.1), where the configuration allows them.
//!
//! **Why the lease is right**: whoever answered a round that was sent at `t` heard the leader after `t`, and gives nobody
//! a vote for an election time-out after that (stickiness), nor within one after its own start. Any majority has one of
//! them, so no other leader exists before `t` plus a time-out, less what clocks may differ by. Only a leader that hands
//! over makes others vote earlier: from then on it has no lease.

use super::core::{RaftCore, State};
use super::error::ProposeError;
use super::message::Body;
use super::quorum;
use crate::types::{Index, Time};
use std::collections::VecDeque;
use std::time::Duration;

/// Rounds that are out at once. More than one, so that a read need not wait for the round before it to
/// end; few, so that a burst of reads shares heartbeats.
const ROUNDS_MAX: usize = 4;

/// How much faster one node's clock may run than another's for lease reads to be linearizable.
pub const CLOCK_DRIFT_PERCENT: u32 = 10;

/// Rounds whose time of sending is remembered.
const SENT_MAX: usize = 64;

/// The leader's reads that are not confirmed.
#[derive(Debug, Default)]
pub(super) struct Reads {
    /// When the rounds that nobody has confirmed were sent.
    sent: VecDeque<(u64, Time)>,
    /// When the latest confirmed round was sent; none: there is no lease.
    lease_from: Option<Time>,
    /// Somebody may have been asked to take over: no lease any more.
    pub handing_over: bool,
    /// Of the latest round. Counts from 1 in each leadership.
    pub round: u64,
    rounds: VecDeque<Round>,
    waiting: Vec<u64>,
    count: usize,
}

#[derive(Debug)]
struct Round {
    number: u64,
    index: Index,
    contexts: Vec<u64>,
}

impl Reads {
    /// A new round, which is about to be sent.
    pub fn begin_round(&mut self, now: Time) -> u64 {
        self.round += 1;
        if self.sent.len() >= SENT_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back((self.round, now));
        self.round
    }

    /// A majority has answered all rounds up to this one.
    fn confirmed(&mut self, round: u64) {
        while self.sent.front().is_some_and(|(number, _)| *number <= round) {
            self.lease_from = self.sent.pop_front().map(|(_, at)| at);
        }
    }

    fn has_lease(&self, now: Time, election_timeout: Duration) -> bool {
        let lease = election_timeout * (100 - CLOCK_DRIFT_PERCENT) / 100;
        !self.handing_over && self.lease_from.is_some_and(|at| now < at.after(lease))
    }

    /// Everything that is not confirmed.
    pub fn fail(self) -> impl Iterator<Item = u64> {
        self.rounds.into_iter().flat_map(|r| r.contexts).chain(self.waiting)
    }
}

impl RaftCore {
    /// Asks for the index at which a read is linearizable; the answer comes in [`Output::reads`] or
    /// [`Output::reads_failed`] under `ctx`. All reads before one output share a round.
    ///
    /// [`Output::reads`]: super::Output::reads
    /// [`Output::reads_failed`]: super::Output::reads_failed
    ///
    /// # Errors
    /// Not the leader, or too many reads are waiting.
    pub fn read_index(&mut self, now: Time, ctx: u64) -> Result<(), ProposeError> {
        self.now = now;
        let leader = self.leader;
        let State::Leader(lead) = &mut self.state else { return Err(ProposeError::NotLeader { leader }) };
        if lead.reads.count >= self.config.reads_max {
            return Err(ProposeError::Busy);
        }
        lead.reads.count += 1;
        lead.reads.waiting.push(ctx);
        Ok(())
    }

    /// Starts a round for the waiting reads. A leader that has committed nothing in its term does not know
    /// yet what is committed, so its reads wait.
    pub(super) fn start_reads(&mut self) {
        let commit = self.log.commit();
        let settled = self.log.term_at(commit) == Some(self.term);
        let State::Leader(lead) = &mut self.state else { return };
        let reads = &mut lead.reads;
        if reads.waiting.is_empty() || !settled {
            return;
        }
        if self.config.lease_reads && self.config.check_quorum && reads.has_lease(self.now, self.config.election_timeout) {
            reads.count -= reads.waiting.len();
            self.out.reads.extend(reads.waiting.drain(..).map(|ctx| (ctx, commit)));
            return;
        }
        if reads.rounds.len() >= ROUNDS_MAX {
            return;
        }
        let round = reads.begin_round(self.now);
        let contexts = std::mem::take(&mut reads.waiting);
        reads.rounds.push_back(Round { number: round, index: commit, contexts });
        for (id, peer) in &lead.peers {
            if self.log.membership().1.is_voter(*id) {
                let body = Body::Heartbeat { commit: commit.min(peer.matched), round };
                self.out.send(self.term, *id, body);
            }
        }
    }

    /// Answers the rounds that a majority has confirmed.
    pub(super) fn finish_reads(&mut self) {
        let me = self.config.id;
        let members = self.log.membership().1;
        let State::Leader(lead) = &mut self.state else { return };
        let peers = &lead.peers;
        if lead.reads.rounds.is_empty() && lead.reads.sent.is_empty() {
            return;
        }
        let of = |id| if id == me { u64::MAX } else { peers.get(&id).map_or(0, |p| p.round) };
        let confirmed = quorum::agreed(members, of);
        let reads = &mut lead.reads;
        reads.confirmed(confirmed);
        while reads.rounds.front().is_some_and(|r| r.number <= confirmed) {
            let Some(round) = reads.rounds.pop_front() else { break };
            reads.count -= round.contexts.len();
            self.out.reads.extend(round.contexts.into_iter().map(|ctx| (ctx, round.index)));
        }
    }
}
