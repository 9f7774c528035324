//! Membership changes.

use crate::harness::*;
use brickraft_engine::raft::*;
use brickraft_engine::types::*;

fn change(net: &mut Net, change: ConfChange) -> Result<Index, ProposeError> {
    let leader = net.leader().unwrap();
    net.on(leader, |core, now| core.propose_conf(now, &change))
}

#[test]
fn a_learner_catches_up_and_becomes_a_voter() {
    let mut net = Net::with(1, 1, |config| config.promote_lag_max = 2);
    net.run(10);
    for i in 0..50 {
        net.propose(id(1), &i.to_string()).unwrap();
    }
    net.run(10);
    net.checkpoint(id(1), 0);
    let index = change(&mut net, ConfChange::AddLearner(id(2), info(2))).unwrap();
    net.run(500);
    assert_eq!(change(&mut net, ConfChange::Promote(id(2))), Err(ConfError::NotCaughtUp(id(2)).into()));
    assert_eq!(net.core(1).committed(), index, "a learner that is not there yet does no harm");
    net.join(2);
    net.settle(index);
    net.run(20);
    assert_eq!(net.core(2).role(), Role::Learner);
    let index = change(&mut net, ConfChange::Promote(id(2))).unwrap();
    net.settle(index);
    assert_eq!(net.core(2).role(), Role::Follower);
    assert_eq!(net.core(2).membership().voters.len(), 2);
    assert_eq!(net.core(2).membership_at(Index(index.0 - 1)).unwrap().voters.len(), 1);
}

#[test]
fn three_nodes_grow_from_one() {
    let mut net = Net::new(1, 2);
    net.run(10);
    for n in [2, 3] {
        net.join(n);
        let index = change(&mut net, ConfChange::AddLearner(id(n), info(n))).unwrap();
        net.settle(index);
        // The newcomer may have applied all before the leader has heard so.
        net.run(20);
        let index = change(&mut net, ConfChange::Promote(id(n))).unwrap();
        net.settle(index);
    }
    net.crash(id(1));
    net.run(300);
    let leader = net.elect();
    net.propose(leader, "x").unwrap();
}

#[test]
fn changes_come_one_at_a_time_and_fit() {
    let mut net = Net::new(3, 3);
    let leader = net.elect();
    net.run(50);
    let refused = |e: ConfError| Err(ProposeError::Conf(e));
    assert_eq!(change(&mut net, ConfChange::Remove(id(9))), refused(ConfError::Unknown(id(9))));
    assert_eq!(change(&mut net, ConfChange::AddLearner(id(2), info(2))), refused(ConfError::Exists(id(2))));
    assert_eq!(change(&mut net, ConfChange::Promote(id(2))), refused(ConfError::NotLearner(id(2))));
    let renamed = MemberInfo { name: "renamed".into(), ..info(2) };
    let index = change(&mut net, ConfChange::Update(id(2), renamed.clone())).unwrap();
    assert_eq!(change(&mut net, ConfChange::Remove(id(2))), refused(ConfError::Pending));
    net.settle(index);
    assert_eq!(net.core(3).membership().info(id(2)), Some(&renamed));
    // One of three is down: neither may another one go, nor a fourth count at once.
    let down = net.nodes.keys().copied().find(|n| *n != leader).unwrap();
    let up = net.nodes.keys().copied().find(|n| *n != leader && *n != down).unwrap();
    net.crash(down);
    net.run(140);
    assert_eq!(change(&mut net, ConfChange::Remove(up)), refused(ConfError::NoQuorum { alive: 1, needed: 2 }));
    assert_eq!(change(&mut net, ConfChange::AddVoter(id(4), info(4))), refused(ConfError::NoQuorum { alive: 2, needed: 3 }));
    // The dead one may.
    let index = change(&mut net, ConfChange::Remove(down)).unwrap();
    net.run(50);
    assert_eq!(net.core(leader.0).committed(), index);
}

#[test]
fn a_removed_follower_learns_of_it_and_stays_quiet() {
    let mut net = Net::new(3, 4);
    let leader = net.elect();
    let out = net.nodes.keys().copied().find(|n| *n != leader).unwrap();
    // The leader has heard from all.
    net.run(50);
    let index = change(&mut net, ConfChange::Remove(out)).unwrap();
    net.settle(index);
    net.run(20);
    assert_eq!((net.core(out.0).role(), net.core(out.0).committed()), (Role::Learner, index));
    assert_eq!(net.core(leader.0).progress(out), None);
    let term = net.core(leader.0).term();
    net.run(2_000);
    assert_eq!(net.core(leader.0).term(), term);
    assert_eq!(net.leader(), Some(leader));
}

#[test]
fn a_leader_that_is_removed_hands_over_after_the_commit() {
    let mut net = Net::new(3, 5);
    let old = net.elect();
    net.run(50);
    let index = change(&mut net, ConfChange::Remove(old)).unwrap();
    net.run_until(100, |net| net.leader().is_some_and(|l| l != old));
    assert_eq!(net.core(old.0).role(), Role::Learner);
    assert!(net.core(old.0).committed() >= index);
    let leader = net.elect();
    let index = net.propose(leader, "x").unwrap();
    net.settle(index);
    net.run(1_000);
    assert_eq!(net.leader(), Some(leader));
}

#[test]
fn a_change_that_is_cut_off_is_undone() {
    let mut net = Net::new(3, 6);
    let old = net.elect();
    net.run(50);
    net.isolate(&[old]);
    change(&mut net, ConfChange::AddLearner(id(4), info(4))).unwrap();
    assert!(net.core(old.0).membership().contains(id(4)));
    net.run(400);
    net.heal();
    let leader = net.elect();
    let index = net.propose(leader, "x").unwrap();
    net.settle(index);
    assert!(net.nodes.values().all(|n| *n.core.as_ref().unwrap().membership() == founders(3)));
}
