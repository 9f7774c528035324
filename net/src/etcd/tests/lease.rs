use super::*;
use tokio_stream::StreamExt as _;

#[test]
fn life_of_a_lease() {
    with_server(|s| async move {
        let mut lease = s.lease();
        let granted = lease.lease_grant(pb::LeaseGrantRequest { ttl: 100, id: 5 }).await.expect("grant").into_inner();
        assert_eq!((granted.id, granted.ttl), (5, 100));
        let twice = lease.lease_grant(pb::LeaseGrantRequest { ttl: 100, id: 5 }).await;
        assert_refused(twice, Code::FailedPrecondition, "etcdserver: lease already exists");
        let long = lease.lease_grant(pb::LeaseGrantRequest { ttl: 9_000_000_001, id: 6 }).await;
        assert_refused(long, Code::OutOfRange, "etcdserver: too large lease TTL");
        let chosen = s.grant(100).await;
        assert!(chosen > 0);

        s.kv().put(pb::PutRequest { key: "k".into(), lease: 5, ..Default::default() }).await.expect("put");
        let left = lease.lease_time_to_live(pb::LeaseTimeToLiveRequest { id: 5, keys: true }).await.expect("ttl").into_inner();
        assert_eq!((left.granted_ttl, left.keys), (100, vec!["k".into()]));
        assert!((90..=100).contains(&left.ttl), "{}", left.ttl);
        let none = lease.lease_time_to_live(pb::LeaseTimeToLiveRequest { id: 99, keys: false }).await.expect("ttl").into_inner();
        assert_eq!((none.id, none.ttl, none.granted_ttl), (99, -1, 0));
        let mut all: Vec<_> =
            lease.lease_leases(pb::LeaseLeasesRequest {}).await.expect("leases").into_inner().leases.iter().map(|l| l.id).collect();
        all.sort_unstable();
        assert_eq!(all, [5, chosen]);

        lease.lease_revoke(pb::LeaseRevokeRequest { id: 5 }).await.expect("revoke");
        assert_eq!(s.count("k").await, 0);
        let again = lease.lease_revoke(pb::LeaseRevokeRequest { id: 5 }).await;
        assert_refused(again, Code::NotFound, "etcdserver: requested lease not found");
    });
}

#[test]
fn keep_alive_and_expiry() {
    with_server(|s| async move {
        let granted = s.lease().lease_grant(pb::LeaseGrantRequest { ttl: 1, id: 0 }).await.expect("grant").into_inner();
        assert_eq!(granted.ttl, 2, "no lease is shorter than an election");
        let requests = tokio_stream::iter([granted.id, 12345]).map(|id| pb::LeaseKeepAliveRequest { id });
        let mut answers = s.lease().lease_keep_alive(requests).await.expect("keep alive").into_inner();
        let kept = answers.message().await.expect("an answer").expect("no end");
        assert_eq!((kept.id, kept.ttl), (granted.id, 2));
        // A lease that is gone is an answer, not an error: clients see time 0.
        let gone = answers.message().await.expect("an answer").expect("no end");
        assert_eq!((gone.id, gone.ttl), (12345, 0));

        s.kv().put(pb::PutRequest { key: "k".into(), lease: granted.id, ..Default::default() }).await.expect("put");
        assert_eq!(s.count("k").await, 1);
        while s.count("k").await != 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
}
