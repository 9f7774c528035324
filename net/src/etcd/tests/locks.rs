use super::*;
use crate::etcd::pb::v3electionpb::{self as ve, election_client::ElectionClient};
use crate::etcd::pb::v3lockpb::{LockRequest, UnlockRequest, lock_client::LockClient};

async fn wait_for_count(s: &Server, prefix: &str, count: i64) {
    while s.count(prefix).await != count {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn locks_go_in_order_and_come_back() {
    with_server(|s| async move {
        let leases = [s.grant(60).await, s.grant(60).await, s.grant(60).await];
        let lock = |lease| {
            let mut client = LockClient::new(s.channel.clone());
            async move { client.lock(LockRequest { name: "m".into(), lease }).await.map(|r| r.into_inner().key) }
        };
        let first = lock(leases[0]).await.expect("lock");
        assert_eq!(first, format!("m/{:x}", leases[0]));
        let leaver = tokio::spawn(lock(leases[1]));
        wait_for_count(&s, "m/", 2).await;
        let third = tokio::spawn(lock(leases[2]));
        wait_for_count(&s, "m/", 3).await;
        // A client that goes away takes its place in the queue with it.
        leaver.abort();
        wait_for_count(&s, "m/", 2).await;
        assert!(!third.is_finished());
        LockClient::new(s.channel.clone()).unlock(UnlockRequest { key: first }).await.expect("unlock");
        let key = third.await.expect("no panic").expect("lock");
        assert_eq!(key, format!("m/{:x}", leases[2]));
        let unknown = lock(99).await;
        assert_refused(unknown, Code::NotFound, "etcdserver: requested lease not found");
        LockClient::new(s.channel.clone()).unlock(UnlockRequest { key }).await.expect("unlock");
        let own = lock(0).await.expect("a lock with a lease of its own");
        assert!(own.starts_with(b"m/"));
    });
}

#[test]
fn a_waiter_whose_lease_ended_gets_no_lock() {
    with_server(|s| async move {
        let (owner, waiter) = (s.grant(60).await, s.grant(60).await);
        let mut client = LockClient::new(s.channel.clone());
        let key = client.lock(LockRequest { name: "m".into(), lease: owner }).await.expect("lock").into_inner().key;
        let mut second = client.clone();
        let waiting = tokio::spawn(async move { second.lock(LockRequest { name: "m".into(), lease: waiter }).await });
        wait_for_count(&s, "m/", 2).await;
        s.lease().lease_revoke(pb::LeaseRevokeRequest { id: waiter }).await.expect("revoke");
        client.unlock(UnlockRequest { key }).await.expect("unlock");
        assert_refused(waiting.await.expect("no panic"), Code::Unknown, "mutex: session is expired");
    });
}

#[test]
fn elections() {
    with_server(|s| async move {
        let (lease, other) = (s.grant(60).await, s.grant(60).await);
        let mut client = ElectionClient::new(s.channel.clone());
        let nobody = client.leader(ve::LeaderRequest { name: "e".into() }).await;
        assert_refused(nobody, Code::Unknown, "election: no leader");
        let mut observed = client.observe(ve::LeaderRequest { name: "e".into() }).await.expect("observe").into_inner();

        let campaign = ve::CampaignRequest { name: "e".into(), lease, value: "one".into() };
        let leader = client.campaign(campaign).await.expect("campaign").into_inner().leader.expect("a leader");
        assert_eq!((leader.key.clone(), leader.lease), (format!("e/{lease:x}").into(), lease));
        let mut values = Vec::new();
        let mut second = client.clone();
        let waiting =
            tokio::spawn(async move { second.campaign(ve::CampaignRequest { name: "e".into(), lease: other, value: "two".into() }).await });
        wait_for_count(&s, "e/", 2).await;
        values.push(observed.message().await.expect("a leader").expect("no end").kv.expect("a pair").value);
        client.proclaim(ve::ProclaimRequest { leader: Some(leader.clone()), value: "one again".into() }).await.expect("proclaim");
        values.push(observed.message().await.expect("a leader").expect("no end").kv.expect("a pair").value);
        let known = client.leader(ve::LeaderRequest { name: "e".into() }).await.expect("leader").into_inner();
        assert_eq!(known.kv.expect("a pair").value.as_ref(), b"one again");

        client.resign(ve::ResignRequest { leader: Some(leader.clone()) }).await.expect("resign");
        waiting.await.expect("no panic").expect("campaign");
        values.push(observed.message().await.expect("a leader").expect("no end").kv.expect("a pair").value);
        assert_eq!(values, ["one", "one again", "two"]);
        let late = client.proclaim(ve::ProclaimRequest { leader: Some(leader), value: "x".into() }).await;
        assert_refused(late, Code::Unknown, "election: not leader");
        assert_refused(client.resign(ve::ResignRequest { leader: None }).await, Code::Unknown, "\"leader\" field must be provided");
    });
}
