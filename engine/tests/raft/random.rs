//! Random histories: every property holds at every step, and the cluster recovers when the faults end.

use crate::harness::*;
use brickraft_engine::raft::*;
use brickraft_engine::types::*;
use rand::Rng;
use std::time::Duration;

/// One random thing at a random node.
fn disturb(net: &mut Net, step: u64, down_max: usize) {
    let ids: Vec<_> = net.nodes.keys().copied().collect();
    let dice = net.rng.random_range(0..200);
    let mut n = ids[net.rng.random_range(0..ids.len())];
    if dice >= 47 && net.rng.random_range(0..4) > 0 {
        n = net.leader().unwrap_or(n); // where proposals have an effect
    }
    let up = net.nodes[&n].core.is_some();
    let down = ids.iter().filter(|n| net.nodes[n].core.is_none()).count();
    let other = ids[net.rng.random_range(0..ids.len())];
    match dice {
        0..4 if up && down < down_max => net.crash(n),
        0..25 if !up => net.restart(n),
        25..28 => net.isolate(&[n]),
        28..31 => {
            net.cut.insert((n, other));
        }
        31..42 => net.cut.clear(),
        42..47 => net.checkpoint(n, 3),
        47..50 if up => net.on(n, |core, now| core.transfer_leader(now, other)),
        50..60 if up => {
            let _ = net.read(n, step);
        }
        60..64 if up => {
            let change = if net.core(n.0).membership().is_voter(other) {
                ConfChange::Remove(other)
            } else if net.core(n.0).membership().contains(other) {
                ConfChange::Promote(other)
            } else {
                ConfChange::AddLearner(other, info(other.0))
            };
            let _ = net.on(n, |core, now| core.propose_conf(now, &change));
        }
        64..66 if up => net.on(n, |core, _| core.report_unreachable(other)),
        66..69 => net.write_delay = [100..200, 100..30_000][net.rng.random_range(0..2)].clone(),
        _ if up => {
            for i in 0..net.rng.random_range(1..4) {
                let _ = net.propose(n, &format!("{step}.{i}"));
            }
        }
        _ => {}
    }
}

fn run(seed: u64) -> Net {
    let voters = 3 + 2 * (seed % 2);
    let mut net = Net::with(voters, seed, |config| {
        config.pre_vote = !seed.is_multiple_of(5);
        config.check_quorum = !seed.is_multiple_of(7);
        config.lease_reads = seed.is_multiple_of(2);
        config.inflight_max = 4;
        config.append_bytes_max = 200;
        config.spare_delay = Duration::from_micros([0, 2_000, 30_000][(seed / 2 % 3) as usize]);
    });
    for (i, node) in net.nodes.values_mut().enumerate() {
        node.drift = [0, 45, -45, 30, -30][(seed as usize / 4 * i) % 5];
    }
    net.loss = [0, 2, 10][(seed % 3) as usize];
    net.duplication = 5;
    net.delay = 200..[2_000, 20_000][(seed / 3 % 2) as usize];
    for step in 0..250 {
        disturb(&mut net, step, voters as usize / 2 + 1);
        let pause = net.rng.random_range(0..12);
        net.run(pause);
    }
    net.heal();
    net.write_delay = 100..200;
    let down: Vec<_> = net.nodes.iter().filter(|(_, node)| node.core.is_none()).map(|(n, _)| *n).collect();
    for n in down {
        net.restart(n);
    }
    net.run(300);
    let leader = net.elect();
    net.run(50);
    let leader = net.leader().unwrap_or(leader);
    let highest = net.checks.leader_completeness.highest();
    let _ = net.propose(leader, "last");
    net.settle(highest);
    net
}

#[test]
fn properties_hold_over_many_seeds() {
    let seeds = std::env::var("RAFT_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(1_000);
    let start = std::env::var("RAFT_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0);
    let (mut applied, mut reads, mut snapshots, mut terms) = (0, 0, 0, 0);
    for seed in start..start + seeds {
        let done = std::panic::catch_unwind(|| {
            let net = run(seed);
            let term = net.core(net.leader().unwrap().0).term().0;
            (net.checks.state_machine_safety.applied.len(), net.checks.read_linearizability.answered, net.snapshots, term)
        });
        let Ok((a, r, s, t)) = done else { panic!("seed {seed} (RAFT_SEED={seed} RAFT_SEEDS=1)") };
        (applied, reads, snapshots, terms) = (applied + a, reads + r, snapshots + s, terms + t);
    }
    println!("{seeds} seeds: {applied} entries, {reads} reads, {snapshots} snapshots, {terms} terms");
    assert!(seeds < 100 || (reads > seeds && snapshots > seeds / 10 && applied as u64 > 20 * seeds), "the runs must do something");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let trace = |net: Net| (net.now, net.sent, net.nodes.into_values().map(|n| (n.roles, n.state)).collect::<Vec<_>>());
    for seed in [3, 4, 12] {
        assert_eq!(trace(run(seed)), trace(run(seed)));
    }
}

#[test]
fn nonsense_from_the_network_is_ignored() {
    let mut net = Net::new(3, 1);
    let leader = net.elect();
    let follower = net.nodes.keys().copied().find(|n| *n != leader).unwrap();
    let (term, last) = (net.core(leader.0).term(), net.core(leader.0).last_index());
    let entry = |term, index, kind| Entry { term, index: Index(index), kind, data: bytes::Bytes::from_static(&[0xff; 3]) };
    let max = Index(u64::MAX);
    let mut bodies = vec![
        Body::AppendOk { matched: max },
        Body::AppendRefused { prev: max, hint: max, hint_term: Term(u64::MAX) },
        Body::AppendRefused { prev: Index(0), hint: max, hint_term: term },
        Body::HeartbeatReply { round: u64::MAX },
        Body::Heartbeat { commit: max, round: u64::MAX },
        Body::Commit { commit: max },
        Body::Vote { last: Index(0), last_term: Term(0), transfer: true },
        Body::PreVote { next: Term(u64::MAX), last: max, last_term: term },
        Body::TimeoutNow,
        Body::Stale,
        Body::Append { prev: max, prev_term: term, commit: max, entries: vec![entry(term, 0, EntryKind::Normal)] },
    ];
    for entries in [
        vec![entry(term, last.0 + 2, EntryKind::Normal)],
        vec![entry(Term(u64::MAX), last.0 + 1, EntryKind::Normal)],
        vec![entry(term, last.0 + 1, EntryKind::Conf)],
        vec![entry(Term(0), last.0 + 1, EntryKind::Normal)],
    ] {
        bodies.push(Body::Append { prev: last, prev_term: term, commit: last, entries });
    }
    bodies.push(Body::Append { prev: last, prev_term: Term(0), commit: last, entries: Vec::new() });
    for from in [leader, follower, id(3), id(0), id(99)] {
        for to in [leader, follower] {
            for body in &bodies {
                for t in [Term(0), term, Term(u64::MAX)] {
                    net.on(to, |core, now| core.step(now, from, Message { term: t, body: body.clone() }));
                }
            }
        }
    }
    net.run(1_000);
    let leader = net.elect();
    let index = net.propose(leader, "still alive").unwrap();
    net.settle(index);
}
