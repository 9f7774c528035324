//! One thing at a time.

use super::cluster::{Cluster, put};
use crate::kv::types::{Command, CommandResponse, Keyspace, PutRequest};
use crate::member::{MemberError, MemberEvent, MemberReply, MemberRequest};
use crate::types::{NodeId, Time};
use bytes::Bytes;
use std::time::Duration;

#[test]
fn a_lone_member_survives_power_cuts() {
    let mut c = Cluster::new(1, 1);
    let id = c.wait_leader();
    for i in 0..60 {
        c.put(id, &format!("k{i}"), "v").expect("put");
        if i % 7 == 0 {
            c.power_cut(id);
            c.start(id);
        }
    }
    for i in 0..60 {
        assert_eq!(c.get(id, &format!("k{i}")), Some(("v".into(), 1)), "k{i}");
    }
}

#[test]
fn three_members_take_writes_anywhere_and_outlive_their_leader() {
    let mut c = Cluster::new(3, 2);
    let leader = c.wait_leader();
    for (i, id) in c.ids().into_iter().enumerate() {
        c.put(id, &format!("k{i}"), "v").expect("put");
        assert!(matches!(c.ask(id, MemberRequest::ReadIndex), Ok(MemberReply::ReadIndex(_))));
        assert!(c.get(id, &format!("k{i}")).is_some(), "a member sees its own write");
    }
    c.power_cut(leader);
    let other = c.ids().into_iter().find(|id| *id != leader).unwrap();
    // Taken while nobody leads: it waits for the next leader.
    c.put(other, "after", "v").expect("put");
    c.ask(other, MemberRequest::ReadIndex).expect("read");
    assert!(c.get(other, "k0").is_some() && c.get(other, "k1").is_some() && c.get(other, "k2").is_some());
    c.converge();
}

#[test]
fn a_minority_acknowledges_nothing_and_reads_nothing_stale() {
    let mut c = Cluster::new(3, 3);
    let old = c.wait_leader();
    c.put(old, "k", "1").expect("put");
    c.isolate(old);
    let write = c.request(old, MemberRequest::Propose(put("lost", "x")));
    let read = c.request(old, MemberRequest::ReadIndex);
    let other = c.ids().into_iter().find(|id| *id != old).unwrap();
    c.put(other, "k", "2").expect("the majority goes on");
    c.run(Duration::from_secs(4));
    assert!(!matches!(c.outcomes.get(&write), Some(Ok(_))), "{:?}", c.outcomes.get(&write));
    assert!(!matches!(c.outcomes.get(&read), Some(Ok(_))), "{:?}", c.outcomes.get(&read));
    c.converge();
    let after = c.outcomes.get(&read).cloned();
    if let Some(Ok(_)) = after {
        assert_eq!(c.get(old, "k").map(|k| k.0), Some("2".into()));
    }
    let written = c.outcome(write).is_ok();
    c.converge();
    assert!(!written || c.get(other, "lost").is_some());
}

#[test]
fn reads_that_wait_for_a_round_let_their_member_sleep() {
    let mut c = Cluster::new(3, 12);
    let leader = c.wait_leader();
    let other = c.ids().into_iter().find(|id| *id != leader).unwrap();
    c.run(Duration::from_secs(1));
    for id in [leader, other] {
        let mut reads = Vec::new();
        for i in 0..20 {
            reads.push(c.request(id, MemberRequest::ReadIndex));
            assert!(c.core(id).next_timeout() > c.now, "read {i}: it turns without end");
        }
        for read in reads {
            assert!(matches!(c.outcome(read), Ok(MemberReply::ReadIndex(_))));
        }
    }
}

#[test]
fn without_a_leader_requests_fail_with_that_reason() {
    let mut c = Cluster::new(3, 4);
    let leader = c.wait_leader();
    let ids = c.ids();
    for id in ids.iter().filter(|id| **id != leader) {
        c.power_cut(*id);
    }
    c.run(Duration::from_secs(4));
    assert_eq!(c.ask(leader, MemberRequest::ReadIndex), Err(MemberError::NoLeader));
    assert_eq!(c.put(leader, "a", "b"), Err(MemberError::NoLeader));
}

#[test]
fn leases_run_out_unless_kept_alive() {
    let mut c = Cluster::new(3, 5);
    let leader = c.wait_leader();
    let follower = c.ids().into_iter().find(|id| *id != leader).unwrap();
    let granted = c.ask(follower, MemberRequest::Propose(Command::LeaseGrant { id: 7, ttl_s: 5 })).expect("grant");
    assert!(
        matches!(&granted, MemberReply::Applied(a) if matches!(a.result, Ok(CommandResponse::LeaseGranted { id: 7, .. }))),
        "{granted:?}"
    );
    let request = PutRequest { key: Bytes::from_static(b"l"), value: Bytes::from_static(b"v"), lease: 7, ..PutRequest::default() };
    c.ask(follower, MemberRequest::Propose(Command::Put(Keyspace::User, request))).expect("put");
    for _ in 0..3 {
        c.run(Duration::from_secs(3));
        assert_eq!(c.ask(follower, MemberRequest::LeaseKeepAlive(7)), Ok(MemberReply::LeaseKeepAlive { ttl_s: 5 }));
    }
    let Ok(MemberReply::LeaseTtl(left)) = c.ask(follower, MemberRequest::LeaseTimeToLive { id: 7, keys: true }) else { panic!("ttl") };
    assert_eq!((left.granted_s, left.keys.len()), (5, 1));
    assert!(left.remaining_s >= 4);
    // A new leader gives it its full time again.
    c.run(Duration::from_secs(3));
    c.power_cut(leader);
    c.until("another leader", |c| c.leader().is_some_and(|l| l != leader));
    c.run(Duration::from_secs(4));
    assert!(c.get(follower, "l").is_some(), "not before its time under the new leader");
    c.run(Duration::from_secs(5));
    assert_eq!(c.get(follower, "l"), None);
    let gone = c.ask(follower, MemberRequest::LeaseKeepAlive(7));
    assert!(matches!(gone, Err(MemberError::Kv(_))), "{gone:?}");
}

#[test]
fn the_leader_remembers_nodes() {
    let mut c = Cluster::new(3, 6);
    let leader = c.wait_leader();
    let follower = c.ids().into_iter().find(|id| *id != leader).unwrap();
    let before = c.now;
    assert_eq!(c.ask(follower, MemberRequest::NodeAlive { node: NodeId(42) }), Ok(MemberReply::NodeAlive));
    assert!(c.core(leader).node_last_heard(NodeId(42)).is_some_and(|t| t >= before && t <= c.now));
    assert!(c.core(leader).leader_since().is_some_and(|t| t > Time(0)));
    assert_eq!(c.core(follower).node_last_heard(NodeId(42)), None);
    assert_eq!(c.ask(follower, MemberRequest::NodeLeases), Err(MemberError::NotLeader));
}

#[test]
fn a_leader_that_is_stopped_hands_over_and_loses_no_request() {
    let mut c = Cluster::new(3, 7);
    let leader = c.wait_leader();
    let follower = c.ids().into_iter().find(|id| *id != leader).unwrap();
    let requests: Vec<_> = (0..50).map(|i| c.request(follower, MemberRequest::Propose(put(&format!("k{i}"), "v")))).collect();
    c.handle(leader, MemberEvent::Stop);
    let start = c.now;
    c.until("the stop", |c| c.nodes[&leader].stopped);
    assert!(c.now.since(start) < Duration::from_millis(50), "took {:?}", c.now.since(start));
    for (i, request) in requests.into_iter().enumerate() {
        assert!(c.outcome(request).is_ok(), "k{i}");
        assert_eq!(c.get(follower, &format!("k{i}")), Some(("v".into(), 1)));
    }
}

#[test]
fn leadership_moves_on_request() {
    let mut c = Cluster::new(3, 8);
    let leader = c.wait_leader();
    let to = c.ids().into_iter().find(|id| *id != leader).unwrap();
    assert_eq!(c.ask(to, MemberRequest::MoveLeader(leader)), Err(MemberError::NotLeader));
    assert_eq!(c.ask(leader, MemberRequest::MoveLeader(NodeId(5))), Err(MemberError::BadLeaderTransferee));
    assert_eq!(c.ask(leader, MemberRequest::MoveLeader(to)), Ok(MemberReply::LeaderMoved));
    c.until("the new leader", |c| c.leader() == Some(to));
}

#[test]
fn a_failed_log_write_stops_the_member_with_its_cause() {
    let mut c = Cluster::new(3, 9);
    let leader = c.wait_leader();
    let disk = c.nodes[&leader].disk.clone();
    disk.fail_at(disk.operations() + 1, std::io::ErrorKind::Other);
    let request = c.request(leader, MemberRequest::Propose(put("k", "v")));
    assert_eq!(c.outcome(request), Err(MemberError::Stopped));
    assert!(c.nodes[&leader].fatal.as_ref().is_some_and(|f| f.starts_with("log ")), "{:?}", c.nodes[&leader].fatal);
    let other = c.ids().into_iter().find(|id| *id != leader).unwrap();
    c.put(other, "after", "v").expect("the others go on");
    c.power_cut(leader);
    c.converge();
}

#[test]
fn too_many_requests_are_refused() {
    let mut c = Cluster::new(1, 10);
    c.config.pending_max = 10;
    let id = c.wait_leader();
    c.power_cut(id);
    c.start(id);
    let requests: Vec<_> = (0..20).map(|i| c.request(id, MemberRequest::Propose(put(&format!("k{i}"), "v")))).collect();
    let refused = requests.into_iter().map(|r| c.outcome(r)).filter(|o| *o == Err(MemberError::TooManyRequests)).count();
    assert_eq!(refused, 10);
    let large = "x".repeat(2 << 20);
    assert_eq!(c.put(id, "large", &large), Err(MemberError::RequestTooLarge));
}

#[test]
fn a_member_that_lags_or_has_lost_all_gets_a_snapshot() {
    let mut c = Cluster::new(3, 11);
    let leader = c.wait_leader();
    let lagging = c.ids().into_iter().find(|id| *id != leader).unwrap();
    c.power_cut(lagging);
    let value = "v".repeat(300);
    for i in 0..200 {
        c.put(leader, &format!("k{i}"), &value).expect("put");
    }
    c.run(Duration::from_secs(6));
    assert!(c.core(leader).raft().compacted().0 > 100, "compacted {}", c.core(leader).raft().compacted());
    c.start(lagging);
    for i in 200..220 {
        c.put(leader, &format!("k{i}"), &value).expect("writes go on");
    }
    c.converge();
    assert_eq!(c.get(lagging, "k7"), Some((value.clone(), 1)));
    c.power_cut(lagging);
    c.start(lagging);
    c.converge();
    assert_eq!(c.get(lagging, "k219"), Some((value, 1)));
}
