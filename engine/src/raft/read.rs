//! ReadIndex (thesis, section 6.4): one round of heartbeats confirms many reads.

use super::core::{RaftCore, State};
use super::error::ProposeError;
use super::message::Body;
use super::quorum;
use crate::types::{Index, Time};
use std::collections::VecDeque;

/// Rounds that are out at once. More than one, so that a read need not wait for the round before it to
/// end; few, so that a burst of reads shares heartbeats.
const ROUNDS_MAX: usize = 4;

/// The leader's reads that are not confirmed.
#[derive(Debug, Default)]
pub(super) struct Reads {
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
        if reads.waiting.is_empty() || !settled || reads.rounds.len() >= ROUNDS_MAX {
            return;
        }
        reads.round += 1;
        let contexts = std::mem::take(&mut reads.waiting);
        reads.rounds.push_back(Round { number: reads.round, index: commit, contexts });
        let round = reads.round;
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
        if lead.reads.rounds.is_empty() {
            return;
        }
        let of = |id| if id == me { u64::MAX } else { peers.get(&id).map_or(0, |p| p.round) };
        let confirmed = quorum::agreed(members, of);
        let reads = &mut lead.reads;
        while reads.rounds.front().is_some_and(|r| r.number <= confirmed) {
            let Some(round) = reads.rounds.pop_front() else { break };
            reads.count -= round.contexts.len();
            self.out.reads.extend(round.contexts.into_iter().map(|ctx| (ctx, round.index)));
        }
    }
}
