//! ReadIndex.

use crate::harness::*;
use brickraft_engine::raft::*;
use brickraft_engine::types::*;

#[test]
fn one_round_confirms_many_reads() {
    let mut net = Net::new(3, 1);
    let leader = net.elect();
    net.run(50);
    let core = net.nodes.get_mut(&leader).unwrap().core.as_mut().unwrap();
    for ctx in 0..1_000 {
        net.checks.read_linearizability.asked(ctx, Index(1));
        core.read_index(Time(net.now), ctx).unwrap();
    }
    net.sent.clear();
    net.on(leader, |_, _| ());
    assert_eq!(net.sent["Heartbeat"], 2);
    net.run(5);
    assert_eq!(net.reads.len(), 1_000);
    let follower = net.nodes.keys().copied().find(|n| *n != leader).unwrap();
    assert_eq!(net.read(follower, 1_000), Err(ProposeError::NotLeader { leader: Some(leader) }));
}

#[test]
fn a_read_under_partition_is_refused() {
    let mut net = Net::new(3, 2);
    let old = net.elect();
    net.run(50);
    net.isolate(&[old]);
    net.read(old, 1).unwrap();
    let fresh = loop {
        net.run(10);
        if let Some(n) = net.leader().filter(|n| *n != old) {
            break n;
        }
    };
    net.propose(fresh, "x").unwrap();
    net.run(100);
    assert!(net.reads.is_empty());
    assert_eq!(net.reads_failed, [1]);
}

#[test]
fn a_new_leader_answers_reads_only_after_its_no_op() {
    let mut net = Net::new(3, 3);
    net.elect();
    net.run(50);
    let old = net.leader().unwrap();
    let to = net.nodes.keys().copied().find(|n| *n != old).unwrap();
    net.on(old, |core, now| core.transfer_leader(now, to));
    net.run_until(50, |net| net.leader() == Some(to));
    let no_op = net.core(to.0).last_index();
    assert!(net.core(to.0).committed() < no_op);
    net.read(to, 1).unwrap();
    assert!(net.reads.is_empty());
    net.run(50);
    assert!(net.reads[&1] >= no_op);
}

fn with_leases(seed: u64) -> (Net, NodeId) {
    let mut net = Net::with(3, seed, |config| config.lease_reads = true);
    let leader = net.elect();
    net.run(50);
    let leader = net.leader().unwrap_or(leader);
    (net, leader)
}

#[test]
fn under_the_lease_a_read_asks_nobody() {
    let (mut net, leader) = with_leases(4);
    net.sent.clear();
    net.read(leader, 1).unwrap();
    assert_eq!(net.reads.len(), 1);
    assert_eq!(net.sent.get("Heartbeat"), None);
}

/// Asks `old` to read after each millisecond: it must give no answer while anybody else leads.
fn never_answers_beside_another(net: &mut Net, old: NodeId, reads: std::ops::Range<u64>, seed: u64) {
    for ctx in reads {
        let before = net.reads.len();
        let _ = net.read(old, ctx);
        let fresh = net.leader().filter(|n| *n != old);
        assert!(fresh.is_none() || net.reads.len() == before, "seed {seed}: {old:?} answers a read, and {fresh:?} leads");
        net.run(1);
    }
}

#[test]
fn a_lease_ends_before_anybody_else_can_lead() {
    for seed in 10..60 {
        let (mut net, old) = with_leases(seed);
        net.isolate(&[old]);
        never_answers_beside_another(&mut net, old, 1..200, seed);
        net.run_until(1_000, |net| net.leader().is_some_and(|n| n != old));
        assert!(!net.reads.is_empty(), "it had a lease for a while");
    }
}

#[test]
fn a_restarted_voter_keeps_to_the_lease_it_has_forgotten() {
    for seed in 10..60 {
        let (mut net, old) = with_leases(seed);
        let others: Vec<_> = net.nodes.keys().copied().filter(|n| *n != old).collect();
        // One has not heard of the leader for so long that it campaigns; the other renews the lease and dies.
        net.cut.insert((old, others[0]));
        net.run(95);
        net.crash(others[1]);
        net.isolate(&[old]);
        net.restart(others[1]);
        never_answers_beside_another(&mut net, old, 1..100, seed);
    }
}

#[test]
fn who_hands_over_has_no_lease() {
    let (mut net, old) = with_leases(5);
    let to = net.nodes.keys().copied().find(|n| *n != old).unwrap();
    net.on(old, |core, now| core.transfer_leader(now, to));
    net.read(old, 1).unwrap();
    assert!(net.reads.is_empty(), "a read under way asks a majority");
    net.run(50);
    assert_eq!(net.leader(), Some(to));
}
