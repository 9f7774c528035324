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
