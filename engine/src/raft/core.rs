//! The core's state and its outer face. (Signatures first; bodies follow.)
#![allow(missing_docs, dead_code, unused_variables)]

use super::error::{InitialError, ProposeError};
use super::membership::{ConfChange, Membership};
use super::message::Message;
use super::output::{Initial, Output, RaftConfig, Role, SnapshotMeta};
use super::progress::Progress;
use crate::types::{HardState, Index, NodeId, Term, Time};
use bytes::Bytes;

#[derive(Debug)]
pub struct RaftCore {
    config: RaftConfig,
    membership: Membership,
}

impl RaftCore {
    pub fn new(config: RaftConfig, initial: Initial, now: Time, seed: u64) -> Result<Self, InitialError> {
        Ok(Self { config, membership: initial.snapshot.membership })
    }
    pub fn step(&mut self, now: Time, from: NodeId, msg: Message) {}
    pub fn handle_timeout(&mut self, now: Time) {}
    pub fn next_timeout(&self) -> Time {
        Time(u64::MAX)
    }
    pub fn propose(&mut self, now: Time, data: Bytes) -> Result<Index, ProposeError> {
        Err(ProposeError::NotLeader { leader: None })
    }
    pub fn propose_conf(&mut self, now: Time, change: &ConfChange) -> Result<Index, ProposeError> {
        Err(ProposeError::NotLeader { leader: None })
    }
    pub fn read_index(&mut self, now: Time, ctx: u64) -> Result<(), ProposeError> {
        Err(ProposeError::NotLeader { leader: None })
    }
    pub fn transfer_leader(&mut self, now: Time, to: NodeId) {}
    pub fn on_persisted(&mut self, now: Time, seq: u64) {}
    pub fn on_applied(&mut self, index: Index) {}
    pub fn compact(&mut self, upto: Index) {}
    pub fn report_snapshot(&mut self, now: Time, to: NodeId, ok: bool) {}
    pub fn report_unreachable(&mut self, to: NodeId) {}
    pub fn begin_snapshot_install(&mut self, now: Time, from: NodeId, term: Term, meta: &SnapshotMeta) -> bool {
        false
    }
    pub fn finish_snapshot_install(&mut self, now: Time, meta: SnapshotMeta) {}
    pub fn take_output(&mut self) -> Output {
        Output::default()
    }
    pub fn id(&self) -> NodeId {
        self.config.id
    }
    pub fn role(&self) -> Role {
        Role::Learner
    }
    pub fn term(&self) -> Term {
        Term(0)
    }
    pub fn leader(&self) -> Option<NodeId> {
        None
    }
    pub fn hard_state(&self) -> HardState {
        HardState::default()
    }
    pub fn committed(&self) -> Index {
        Index(0)
    }
    pub fn last_index(&self) -> Index {
        Index(0)
    }
    /// The index before the first entry in memory.
    pub fn compacted(&self) -> Index {
        Index(0)
    }
    pub fn term_at(&self, index: Index) -> Option<Term> {
        None
    }
    pub fn membership(&self) -> &Membership {
        &self.membership
    }
    /// The membership as of `index`.
    pub fn membership_at(&self, index: Index) -> Option<&Membership> {
        None
    }
    pub fn progress(&self, id: NodeId) -> Option<Progress> {
        None
    }
    /// The leader that has been asked to hand over, and to whom.
    pub fn transferring(&self) -> Option<NodeId> {
        None
    }
}
