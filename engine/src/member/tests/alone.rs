//! A survivor goes on alone.

use super::cluster::Cluster;
use crate::member::{MemberError, MemberReply, MemberRequest};
use crate::raft::{ConfChange, MemberInfo};
use crate::types::NodeId;
use rand::Rng as _;
use std::time::Duration;

/// Everybody but `survivor` is lost for good; it is started with the flag, and cut off a few times on the way.
fn force(c: &mut Cluster, survivor: NodeId) {
    let others: Vec<NodeId> = c.ids().into_iter().filter(|id| *id != survivor).collect();
    for id in others {
        c.nodes.remove(&id);
    }
    c.config.force_new_cluster = true;
    for _ in 0..4 {
        c.power_cut(survivor);
        c.start(survivor);
        let pause = c.rng.random_range(0..1500);
        c.run(Duration::from_millis(pause));
    }
    c.until("the survivor to lead", |c| c.leader() == Some(survivor));
    c.config.force_new_cluster = false;
    c.power_cut(survivor);
    c.start(survivor);
    c.until("it to lead without the flag", |c| c.leader() == Some(survivor));
}

#[test]
fn nothing_that_the_survivor_had_is_lost() {
    for seed in 0..20 {
        let mut c = Cluster::new(3, 500 + seed);
        let leader = c.wait_leader();
        let survivor = *c.ids().iter().find(|id| **id != leader).expect("a follower");
        for i in 0..30 {
            c.put(leader, &format!("k{i}"), "v").expect("put");
        }
        c.converge();
        // Under load: what has reached the survivor's disk by then is kept, committed or not.
        for i in 30..60 {
            c.request(leader, MemberRequest::Propose(super::cluster::put(&format!("k{i}"), "v")));
        }
        let pause = c.rng.random_range(0..20);
        c.run(Duration::from_millis(pause));
        let committed = c.core(survivor).raft().committed();
        force(&mut c, survivor);
        let status = c.core(survivor).status();
        assert_eq!(status.membership.ids().collect::<Vec<_>>(), [survivor], "seed {seed}");
        assert!(status.applied > committed, "seed {seed}");
        let have = (0..60).filter(|i| c.get(survivor, &format!("k{i}")).is_some()).count();
        assert!(have >= 30 && (0..have).all(|i| c.get(survivor, &format!("k{i}")).is_some()), "seed {seed}: {have}");
        c.put(survivor, "after", "v").expect("put");
    }
}

#[test]
fn a_learner_survives_too_and_takes_new_members() {
    let mut c = Cluster::new(1, 77);
    let first = c.wait_leader();
    c.put(first, "k", "v").expect("put");
    let learner = c.joiner(2);
    let info = MemberInfo { peer_urls: vec!["http://127.0.0.1:2".into()], ..MemberInfo::default() };
    c.ask(first, MemberRequest::ConfChange(ConfChange::AddLearner(learner, info))).expect("add");
    c.until("the learner to catch up", |c| c.core(learner).status().applied == c.core(first).status().applied);
    force(&mut c, learner);
    assert_eq!(c.get(learner, "k"), Some(("v".into(), 1)));
    assert!(c.core(learner).status().membership.is_voter(learner));
    // It takes new members.
    let id = c.joiner(3);
    let info = MemberInfo { peer_urls: vec!["http://127.0.0.1:3".into()], ..MemberInfo::default() };
    c.ask(learner, MemberRequest::ConfChange(ConfChange::AddLearner(id, info))).expect("add");
    c.until("the new one to catch up", |c| c.core(id).status().applied == c.core(learner).status().applied);
    c.run(Duration::from_secs(1));
    let promoted = c.ask(learner, MemberRequest::ConfChange(ConfChange::Promote(id))).expect("promote");
    assert!(matches!(promoted, MemberReply::Members(m) if m.voters.len() == 2));
    let again = c.ask(learner, MemberRequest::ConfChange(ConfChange::Promote(id)));
    assert_eq!(again, Err(MemberError::NotLearner));
}
