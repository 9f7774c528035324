//! Members come and go.

use super::cluster::Cluster;
use crate::member::{MemberError, MemberEvent, MemberReply, MemberRequest};
use crate::raft::{ConfChange, MemberInfo};
use crate::types::NodeId;
use std::time::Duration;

fn info(number: usize) -> MemberInfo {
    MemberInfo { peer_urls: vec![format!("http://127.0.0.1:{number}")], ..MemberInfo::default() }
}

fn change(c: &mut Cluster, at: NodeId, change: ConfChange) -> Result<crate::raft::Membership, MemberError> {
    match c.ask(at, MemberRequest::ConfChange(change))? {
        MemberReply::Members(m) => Ok(m),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_member_is_added_promoted_and_removed() {
    let mut c = Cluster::new(1, 21);
    let first = c.wait_leader();
    for i in 0..50 {
        c.put(first, &format!("k{i}"), "v").expect("put");
    }
    let mut ids = vec![first];
    for number in 2..=3 {
        let id = c.joiner(number);
        assert_eq!(change(&mut c, first, ConfChange::Promote(id)), Err(MemberError::MemberNotFound));
        let members = change(&mut c, first, ConfChange::AddLearner(id, info(number))).expect("add");
        assert!(members.learners.contains_key(&id));
        let taken = change(&mut c, first, ConfChange::AddLearner(NodeId(77), info(number)));
        assert_eq!(taken, Err(MemberError::PeerUrlExists));
        c.until("the joiner to catch up", |c| c.core(id).status().applied == c.core(first).status().applied);
        c.run(Duration::from_secs(1));
        let members = change(&mut c, first, ConfChange::Promote(id)).expect("promote");
        assert!(members.is_voter(id));
        ids.push(id);
    }
    c.converge();
    for id in &ids {
        assert_eq!(c.get(*id, "k9"), Some(("v".into(), 1)));
        assert_eq!(c.core(*id).status().membership.voters.len(), 3);
    }
    // Added members restart from their own disks.
    for id in &ids {
        c.power_cut(*id);
    }
    c.converge();
    let removed = c.wait_leader();
    change(&mut c, removed, ConfChange::Remove(removed)).expect("remove the leader");
    c.power_cut(removed);
    c.nodes.remove(&removed);
    c.until("another leader", |c| c.leader().is_some());
    c.converge();
    let left = c.wait_leader();
    assert_eq!(c.core(left).status().membership.voters.len(), 2);
}

/// A cluster one of whose followers died a moment ago, and its leader.
fn with_a_dead_follower(members: usize, seed: u64) -> (Cluster, NodeId) {
    let mut c = Cluster::new(members, seed);
    let leader = c.wait_leader();
    c.put(leader, "k", "v").expect("put");
    c.converge();
    let leader = c.wait_leader();
    let dead = *c.ids().iter().find(|id| **id != leader).expect("a follower");
    c.isolate(dead);
    c.run(Duration::from_millis(50));
    c.handle(leader, MemberEvent::PeerUnreachable(dead));
    (c, leader)
}

#[test]
fn a_member_that_died_a_moment_ago_does_not_count_as_alive() {
    let (mut c, leader) = with_a_dead_follower(3, 31);
    // Four voters, of which two answer, would have no majority.
    let refused = change(&mut c, leader, ConfChange::AddVoter(NodeId(77), info(9)));
    assert_eq!(refused, Err(MemberError::UnhealthyCluster));
    c.put(leader, "k", "w").expect("put");
}

#[test]
fn no_voter_is_added_while_another_is_silent() {
    let (mut c, leader) = with_a_dead_follower(5, 32);
    // Of six voters the five that answer would be more than enough.
    let refused = change(&mut c, leader, ConfChange::AddVoter(NodeId(77), info(9)));
    assert_eq!(refused, Err(MemberError::UnhealthyCluster));
    change(&mut c, leader, ConfChange::AddLearner(NodeId(78), info(8))).expect("a learner has no vote");
}
