//! Who belongs to the cluster, and how that changes: one server at a time (thesis, section 4.1).

use super::error::ConfError;
use crate::types::{Index, NodeId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// A member's name and addresses. Raft looks only at ids; these travel with the membership.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberInfo {
    /// Human-readable name; empty until the member has started.
    pub name: String,
    /// Where its peers reach it.
    pub peer_urls: Vec<String>,
    /// Where clients reach it.
    pub client_urls: Vec<String>,
}

/// The members of the cluster. No id is in both maps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// Who elects leaders and commits entries.
    pub voters: BTreeMap<NodeId, MemberInfo>,
    /// Who receives the log but is not counted.
    pub learners: BTreeMap<NodeId, MemberInfo>,
}

/// One step of change: the data of an [`EntryKind::Conf`](crate::types::EntryKind::Conf) entry, in postcard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConfChange {
    /// A new member that is not counted yet.
    AddLearner(NodeId, MemberInfo),
    /// A learner becomes a voter.
    Promote(NodeId),
    /// A new member that is counted at once, or a learner that becomes a voter with new addresses.
    AddVoter(NodeId, MemberInfo),
    /// A member leaves, voter or learner.
    Remove(NodeId),
    /// A member's name or addresses change.
    Update(NodeId, MemberInfo),
}

impl ConfChange {
    /// The bytes of a log entry.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        // A plain enum of integers and strings into a growing buffer: postcard has no error to give.
        Bytes::from(postcard::to_allocvec(self).unwrap_or_default())
    }

    /// Reads the bytes of a log entry; `None` when they are not a change.
    #[must_use]
    pub fn decode(data: &[u8]) -> Option<Self> {
        postcard::from_bytes(data).ok()
    }
}

impl Membership {
    /// Whether `id` votes.
    #[must_use]
    pub fn is_voter(&self, id: NodeId) -> bool {
        self.voters.contains_key(&id)
    }

    /// Whether `id` is a member of either kind.
    #[must_use]
    pub fn contains(&self, id: NodeId) -> bool {
        self.voters.contains_key(&id) || self.learners.contains_key(&id)
    }

    /// A member's name and addresses.
    #[must_use]
    pub fn info(&self, id: NodeId) -> Option<&MemberInfo> {
        self.voters.get(&id).or_else(|| self.learners.get(&id))
    }

    /// All ids, voters first.
    pub fn ids(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.voters.keys().chain(self.learners.keys()).copied()
    }

    /// The membership after `change`.
    ///
    /// # Errors
    /// The change does not fit: the member is unknown, known already, or the last voter.
    pub fn with(&self, change: &ConfChange) -> Result<Self, ConfError> {
        let mut next = self.clone();
        match change {
            ConfChange::AddLearner(id, info) => {
                if self.contains(*id) {
                    return Err(ConfError::Exists(*id));
                }
                next.learners.insert(*id, info.clone());
            }
            ConfChange::AddVoter(id, info) => {
                if self.is_voter(*id) {
                    return Err(ConfError::Exists(*id));
                }
                next.learners.remove(id);
                next.voters.insert(*id, info.clone());
            }
            ConfChange::Promote(id) => {
                let Some(info) = next.learners.remove(id) else {
                    return Err(if self.is_voter(*id) { ConfError::NotLearner(*id) } else { ConfError::Unknown(*id) });
                };
                next.voters.insert(*id, info);
            }
            ConfChange::Remove(id) => {
                if !self.contains(*id) {
                    return Err(ConfError::Unknown(*id));
                }
                next.learners.remove(id);
                next.voters.remove(id);
                if next.voters.is_empty() {
                    return Err(ConfError::LastVoter);
                }
            }
            ConfChange::Update(id, info) => {
                let slot = next.voters.get_mut(id).or_else(|| next.learners.get_mut(id));
                *slot.ok_or(ConfError::Unknown(*id))? = info.clone();
            }
        }
        Ok(next)
    }
}

/// The membership at every index from the compaction point on.
///
/// A change takes effect when it is *appended*, on every node (thesis, section 4.1), so what is cut off
/// from the log is undone here. Invariant: indexes ascend; the first is at or before the compaction point.
#[derive(Debug)]
pub(super) struct History {
    steps: VecDeque<(Index, Membership)>,
}

impl History {
    pub fn new(base: Index, membership: Membership) -> Self {
        Self { steps: VecDeque::from([(base, membership)]) }
    }

    /// The latest membership and the index that made it.
    pub fn current(&self) -> (Index, &Membership) {
        let (index, membership) = &self.steps[self.steps.len() - 1];
        (*index, membership)
    }

    pub fn at(&self, index: Index) -> Option<&Membership> {
        self.steps.iter().rev().find(|(from, _)| *from <= index).map(|(_, m)| m)
    }

    /// Whether `id` votes by the membership at `from` or by any after it.
    pub fn was_voter_since(&self, from: Index, id: NodeId) -> bool {
        let later = self.steps.iter().rev().take_while(|(at, _)| *at > from);
        self.at(from).into_iter().chain(later.map(|(_, m)| m)).any(|m| m.is_voter(id))
    }

    /// Takes in the change of an appended entry. A change that does not fit changes nothing; since that
    /// depends on the log before it alone, all nodes agree on it.
    pub fn append(&mut self, index: Index, change: &ConfChange) {
        let (last, current) = self.current();
        assert!(index > last, "membership changes ascend: {index} after {last}");
        let next = current.with(change).unwrap_or_else(|_| current.clone());
        self.steps.push_back((index, next));
    }

    /// Undoes everything from `from` on.
    pub fn truncate(&mut self, from: Index) {
        while self.steps.len() > 1 && self.current().0 >= from {
            self.steps.pop_back();
        }
        assert!(self.current().0 < from, "the membership at the compaction point is committed");
    }

    /// Forgets what no index above `upto` needs.
    pub fn compact(&mut self, upto: Index) {
        while self.steps.len() > 1 && self.steps[1].0 <= upto {
            self.steps.pop_front();
        }
    }
}
