//! Exactly the requests that newer clients send, Kubernetes' API server above all.

use super::watch::Watching;
use super::*;
use crate::etcd::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::etcd::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use crate::etcd::pb::etcdserverpb::request_op::Request as Op;
use crate::etcd::pb::etcdserverpb::response_op::Response as Answer;
use crate::etcd::pb::etcdserverpb::watch_request::RequestUnion;
use bytes::Bytes;

fn op(request: Op) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

fn get(key: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.to_owned().into(), ..Default::default() }
}

fn put(key: &str, value: &str, lease: i64) -> pb::PutRequest {
    pb::PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), lease, ..Default::default() }
}

fn unchanged_since(key: &str, mod_revision: i64) -> pb::Compare {
    pb::Compare {
        key: key.to_owned().into(),
        target: CompareTarget::Mod.into(),
        result: CompareResult::Equal.into(),
        target_union: Some(TargetUnion::ModRevision(mod_revision)),
        ..Default::default()
    }
}

/// What clientv3's OptimisticPut sends: put unless somebody was faster, and then say what is there.
async fn optimistic_put(s: &Server, key: &str, value: &str, since: i64) -> pb::TxnResponse {
    let request = pb::TxnRequest {
        compare: vec![unchanged_since(key, since)],
        success: vec![op(Op::RequestPut(put(key, value, 0)))],
        failure: vec![op(Op::RequestRange(get(key)))],
    };
    s.kv().txn(request).await.expect("txn").into_inner()
}

#[test]
fn creations_updates_and_deletions_are_optimistic() {
    with_server(|s| async move {
        let key = "/registry/pods/default/a";
        let created = optimistic_put(&s, key, "1", 0).await;
        assert!(created.succeeded);
        let revision = created.header.expect("header").revision;
        let again = optimistic_put(&s, key, "2", 0).await;
        assert!(!again.succeeded);
        let Some(Answer::ResponseRange(there)) = &again.responses[0].response else { panic!("a range") };
        assert_eq!((there.kvs[0].value.as_ref(), there.kvs[0].mod_revision), (b"1".as_ref(), revision));
        let updated = optimistic_put(&s, key, "2", revision).await;
        assert!(updated.succeeded);
        let revision = updated.header.expect("header").revision;
        let delete = |since| pb::TxnRequest {
            compare: vec![unchanged_since(key, since)],
            success: vec![op(Op::RequestDeleteRange(pb::DeleteRangeRequest { key: key.into(), ..Default::default() }))],
            failure: vec![op(Op::RequestRange(get(key)))],
        };
        assert!(!s.kv().txn(delete(revision - 1)).await.expect("txn").into_inner().succeeded);
        let deleted = s.kv().txn(delete(revision)).await.expect("txn").into_inner();
        let Some(Answer::ResponseDeleteRange(deleted)) = &deleted.responses[0].response else { panic!("a deletion") };
        assert_eq!(deleted.deleted, 1);
    });
}

#[test]
fn a_compare_may_span_a_range() {
    with_server(|s| async move {
        let none_there = pb::Compare { range_end: "/p0".into(), ..unchanged_since("/p/", 0) };
        let none_there =
            pb::Compare { target: CompareTarget::Create.into(), target_union: Some(TargetUnion::CreateRevision(0)), ..none_there };
        let first = |value| pb::TxnRequest {
            compare: vec![none_there.clone()],
            success: vec![op(Op::RequestPut(put("/p/a", value, 0)))],
            failure: vec![],
        };
        assert!(s.kv().txn(first("1")).await.expect("txn").into_inner().succeeded);
        assert!(!s.kv().txn(first("2")).await.expect("txn").into_inner().succeeded);
        s.put("/p/b", "x").await;
        // Every key of the range must fit.
        let all = |result: CompareResult, revision| pb::TxnRequest {
            compare: vec![pb::Compare { range_end: "/p0".into(), result: result.into(), ..unchanged_since("/p/", revision) }],
            ..Default::default()
        };
        assert!(s.kv().txn(all(CompareResult::Less, 4)).await.expect("txn").into_inner().succeeded);
        assert!(!s.kv().txn(all(CompareResult::Less, 3)).await.expect("txn").into_inner().succeeded);
    });
}

#[test]
fn lists_come_in_pages_of_one_revision() {
    with_server(|s| async move {
        let keys: Vec<String> = (0..7).map(|i| format!("/registry/pods/{i}")).collect();
        for key in &keys {
            s.kv().put(put(key, "x", 0)).await.expect("put");
        }
        let (mut key, mut revision, mut seen) = (Bytes::from_static(b"/registry/pods/"), 0, Vec::new());
        loop {
            let page = pb::RangeRequest { key: key.clone(), range_end: "/registry/pods0".into(), limit: 3, revision, ..Default::default() };
            let page = s.kv().range(page).await.expect("a page").into_inner();
            assert_eq!(page.count, 7 - i64::try_from(seen.len()).expect("few"), "count is of all that are left");
            if revision == 0 {
                revision = page.header.expect("header").revision;
                // What comes and goes between two pages is not in the list.
                s.put("/registry/pods/3x", "late").await;
                s.delete("/registry/pods/5").await;
            }
            let last = page.kvs.last().expect("a page is not empty").key.clone();
            seen.extend(page.kvs.into_iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()));
            if !page.more {
                break;
            }
            key = [&last[..], b"\0"].concat().into();
        }
        assert_eq!(seen, keys);
        let all = pb::RangeRequest { key: "/registry/pods/".into(), range_end: "/registry/pods0".into(), ..Default::default() };
        let count = s.kv().range(pb::RangeRequest { count_only: true, ..all.clone() }).await.expect("count").into_inner();
        assert_eq!((count.count, count.kvs.len(), count.more), (7, 0, false));
        let between =
            pb::RangeRequest { min_mod_revision: 3, max_mod_revision: 5, min_create_revision: 4, max_create_revision: 9, ..all.clone() };
        let between = s.kv().range(between).await.expect("range").into_inner();
        assert_eq!(between.kvs.iter().map(|kv| kv.mod_revision).collect::<Vec<_>>(), [4, 5]);
        let page = pb::RangeRequest { limit: 1, min_mod_revision: 3, ..all };
        let page = s.kv().range(page).await.expect("range").into_inner();
        assert!(page.more && page.kvs.len() == 1 && page.kvs[0].mod_revision == 3, "{page:?}");
    });
}

#[test]
fn one_of_many_compacts() {
    with_server(|s| async move {
        for value in ["1", "2", "3", "4"] {
            s.put("/registry/x", value).await;
        }
        // Each API server tries to move the key from the version that it saw; the one that does compacts.
        let dance = |version, revision: &str| pb::TxnRequest {
            compare: vec![pb::Compare {
                key: "compact_rev_key".into(),
                target: CompareTarget::Version.into(),
                result: CompareResult::Equal.into(),
                target_union: Some(TargetUnion::Version(version)),
                ..Default::default()
            }],
            success: vec![op(Op::RequestPut(put("compact_rev_key", revision, 0)))],
            failure: vec![op(Op::RequestRange(get("compact_rev_key")))],
        };
        let first = s.kv().txn(dance(0, "0")).await.expect("txn").into_inner();
        assert!(first.succeeded);
        let late = s.kv().txn(dance(0, "0")).await.expect("txn").into_inner();
        let Some(Answer::ResponseRange(there)) = &late.responses[0].response else { panic!("a range") };
        assert_eq!((late.succeeded, there.kvs[0].version, there.kvs[0].value.as_ref()), (false, 1, b"0".as_ref()));
        s.kv().compact(pb::CompactionRequest { revision: 4, physical: false }).await.expect("compact");
        assert!(s.kv().txn(dance(1, "4")).await.expect("txn").into_inner().succeeded);
        let mut w = Watching::start(&s).await;
        w.create(pb::WatchCreateRequest {
            key: "/registry/".into(),
            range_end: "/registry0".into(),
            start_revision: 2,
            ..Default::default()
        })
        .await;
        let gone = w.next().await;
        assert_eq!((gone.canceled, gone.compact_revision), (true, 4));
        assert_eq!(gone.cancel_reason, "etcdserver: mvcc: required revision has been compacted");
    });
}

#[test]
fn many_keys_share_a_lease() {
    with_server(|s| async move {
        let lease = s.grant(3600).await;
        for i in 0..50 {
            let key = format!("/registry/events/{i}");
            let created = pb::TxnRequest {
                compare: vec![unchanged_since(&key, 0)],
                success: vec![op(Op::RequestPut(put(&key, "x", lease)))],
                failure: vec![op(Op::RequestRange(get(&key)))],
            };
            assert!(s.kv().txn(created).await.expect("txn").into_inner().succeeded);
        }
        let left = s.lease().lease_time_to_live(pb::LeaseTimeToLiveRequest { id: lease, keys: true }).await.expect("ttl").into_inner();
        assert_eq!((left.keys.len(), left.granted_ttl), (50, 3600));
        s.lease().lease_revoke(pb::LeaseRevokeRequest { id: lease }).await.expect("revoke");
        assert_eq!(s.count("/registry/events/").await, 0);
    });
}

#[test]
fn the_watch_cache_is_fed() {
    with_server(|s| async move {
        s.put("/registry/pods/a", "1").await;
        s.put("/registry/pods/a", "2").await;
        let mut w = Watching::start(&s).await;
        let request = pb::WatchCreateRequest {
            key: "/registry/pods/".into(),
            range_end: "/registry/pods0".into(),
            start_revision: 3,
            prev_kv: true,
            progress_notify: true,
            fragment: true,
            ..Default::default()
        };
        assert!(w.create(request).await.created);
        let past = w.next().await;
        assert_eq!(past.events[0].prev_kv.as_ref().expect("previous").value.as_ref(), b"1");
        s.delete("/registry/pods/a").await;
        let gone = w.next().await;
        let event = &gone.events[0];
        assert_eq!((event.r#type, event.prev_kv.as_ref().expect("previous").value.as_ref()), (1, b"2".as_ref()));
        assert_eq!(event.kv.as_ref().expect("a pair").mod_revision, 4);
        // A consistent read from the cache: the current revision by a read, then progress up to there.
        let now = s.put("/registry/other", "x").await.header.expect("header").revision;
        w.ask(RequestUnion::ProgressRequest(pb::WatchProgressRequest {})).await;
        let progress = w.next().await;
        assert_eq!((progress.watch_id, progress.events.len(), progress.header.expect("header").revision), (-1, 0, now));
    });
}

#[test]
fn status_has_what_is_asked_for() {
    with_server(|s| async move {
        s.put("a", "1").await;
        let status = MaintenanceClient::new(s.channel.clone()).status(pb::StatusRequest {}).await.expect("status").into_inner();
        // Kubernetes takes RequestProgress for safe from 3.4.31 and 3.5.13 on, by this very text.
        let version: Vec<u32> = status.version.split('.').map(|n| n.parse().expect("a number")).collect();
        assert!(version >= vec![3, 5, 13], "{}", status.version);
        assert!(status.db_size > 0 && status.db_size_in_use > 0 && status.db_size_in_use <= status.db_size, "{status:?}");
        assert!(status.leader != 0 && status.raft_index >= status.raft_applied_index && status.raft_term > 0, "{status:?}");
        assert!(!status.is_learner && status.errors.is_empty());
    });
}
