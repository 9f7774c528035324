use super::*;
use crate::etcd::pb::etcdserverpb::request_op::Request as Op;
use crate::etcd::pb::etcdserverpb::response_op::Response as Answer;

fn get(key: &'static str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.into(), ..Default::default() }
}

fn put(key: &'static str, value: &'static str) -> pb::PutRequest {
    pb::PutRequest { key: key.into(), value: value.into(), ..Default::default() }
}

fn op(request: Op) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

#[test]
fn put_get_delete() {
    with_server(|s| async move {
        let empty = s.kv().range(get("a")).await.expect("get").into_inner();
        let header = empty.header.expect("header");
        assert_eq!((header.revision, empty.count, empty.kvs.len()), (1, 0, 0));
        assert_eq!(header.member_id, s.handle.last_status().id.0);
        assert_eq!(header.cluster_id, s.handle.last_status().cluster_id);
        assert!(header.raft_term > 0);

        assert_eq!(s.put("a", "1").await.header.expect("header").revision, 2);
        let second = s.kv().put(pb::PutRequest { prev_kv: true, ..put("a", "2") }).await.expect("put").into_inner();
        assert_eq!(second.prev_kv.expect("previous").value.as_ref(), b"1");

        let now = s.kv().range(get("a")).await.expect("get").into_inner();
        let kv = &now.kvs[0];
        assert_eq!((kv.value.as_ref(), kv.version, kv.create_revision, kv.mod_revision), (b"2".as_ref(), 2, 2, 3));
        let old = s.kv().range(pb::RangeRequest { revision: 2, ..get("a") }).await.expect("get").into_inner();
        assert_eq!((old.kvs[0].value.as_ref(), old.header.expect("header").revision), (b"1".as_ref(), 3));

        let request = pb::DeleteRangeRequest { key: "a".into(), prev_kv: true, ..Default::default() };
        let deleted = s.kv().delete_range(request).await.expect("delete").into_inner();
        assert_eq!((deleted.deleted, deleted.prev_kvs[0].value.as_ref()), (1, b"2".as_ref()));
        assert_eq!(s.kv().range(get("a")).await.expect("get").into_inner().count, 0);
    });
}

#[test]
fn ranges() {
    with_server(|s| async move {
        for key in ["a1", "a2", "a3", "b1"] {
            s.put(key, key).await;
        }
        let prefix = pb::RangeRequest { key: "a".into(), range_end: "b".into(), ..Default::default() };
        let limited = s.kv().range(pb::RangeRequest { limit: 2, ..prefix.clone() }).await.expect("get").into_inner();
        assert_eq!((limited.kvs.len(), limited.count, limited.more), (2, 3, true));
        let sorted = pb::RangeRequest { sort_order: 2, sort_target: 3, keys_only: true, ..prefix.clone() };
        let sorted = s.kv().range(sorted).await.expect("get").into_inner();
        let keys: Vec<_> = sorted.kvs.iter().map(|kv| kv.key.as_ref()).collect();
        assert_eq!(keys, [b"a3".as_ref(), b"a2", b"a1"]);
        assert!(sorted.kvs.iter().all(|kv| kv.value.is_empty()));
        let from = pb::RangeRequest { key: "a3".into(), range_end: "\0".into(), serializable: true, ..Default::default() };
        assert_eq!(s.kv().range(from).await.expect("get").into_inner().count, 2);
        let none = pb::RangeRequest { max_mod_revision: -1, ..prefix.clone() };
        assert!(s.kv().range(none).await.expect("get").into_inner().kvs.is_empty());
        let odd = s.kv().range(pb::RangeRequest { sort_order: 9, ..prefix }).await;
        assert_refused(odd, Code::InvalidArgument, "etcdserver: invalid sort option");
    });
}

#[test]
fn refusals_are_etcds() {
    with_server(|s| async move {
        let invalid = Code::InvalidArgument;
        assert_refused(s.kv().range(get("")).await, invalid, "etcdserver: key is not provided");
        assert_refused(s.kv().put(put("", "v")).await, invalid, "etcdserver: key is not provided");
        assert_refused(s.kv().delete_range(pb::DeleteRangeRequest::default()).await, invalid, "etcdserver: key is not provided");
        let request = pb::PutRequest { ignore_value: true, ..put("a", "v") };
        assert_refused(s.kv().put(request).await, invalid, "etcdserver: value is provided");
        let request = pb::PutRequest { ignore_lease: true, lease: 1, ..put("a", "v") };
        assert_refused(s.kv().put(request).await, invalid, "etcdserver: lease is provided");
        let request = pb::PutRequest { ignore_value: true, ..put("a", "") };
        assert_refused(s.kv().put(request).await, invalid, "etcdserver: key not found");
        let request = pb::PutRequest { lease: 77, ..put("a", "v") };
        assert_refused(s.kv().put(request).await, Code::NotFound, "etcdserver: requested lease not found");
        let large = pb::PutRequest { key: "a".into(), value: vec![0; 1_600_000].into(), ..Default::default() };
        assert_refused(s.kv().put(large).await, invalid, "etcdserver: request is too large");

        let future = pb::RangeRequest { revision: 99, ..get("a") };
        assert_refused(s.kv().range(future).await, Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision");
        let twice = pb::TxnRequest { success: vec![op(Op::RequestPut(put("a", "1"))); 2], ..Default::default() };
        assert_refused(s.kv().txn(twice).await, invalid, "etcdserver: duplicate key given in txn request");
        let many = pb::TxnRequest { success: vec![op(Op::RequestRange(get("a"))); 129], ..Default::default() };
        assert_refused(s.kv().txn(many).await, invalid, "etcdserver: too many operations in txn request");
        let void = pb::TxnRequest { success: vec![pb::RequestOp::default()], ..Default::default() };
        assert_refused(s.kv().txn(void).await, invalid, "etcdserver: key not found");
    });
}

#[test]
fn transactions() {
    use pb::compare::{CompareResult, CompareTarget, TargetUnion};
    with_server(|s| async move {
        s.put("a", "1").await;
        let compare = pb::Compare {
            key: "a".into(),
            target: CompareTarget::Value.into(),
            result: CompareResult::Equal.into(),
            target_union: Some(TargetUnion::Value("1".into())),
            ..Default::default()
        };
        let nested = pb::TxnRequest { success: vec![op(Op::RequestPut(put("c", "3")))], ..Default::default() };
        let request = pb::TxnRequest {
            compare: vec![compare],
            success: vec![op(Op::RequestPut(put("b", "2"))), op(Op::RequestRange(get("b"))), op(Op::RequestTxn(nested))],
            failure: vec![op(Op::RequestRange(get("a")))],
        };
        let yes = s.kv().txn(request.clone()).await.expect("txn").into_inner();
        assert!(yes.succeeded);
        assert_eq!((yes.responses.len(), yes.header.expect("header").revision), (3, 3));
        let Some(Answer::ResponseRange(range)) = &yes.responses[1].response else { panic!("a range") };
        assert_eq!((range.kvs[0].value.as_ref(), range.kvs[0].mod_revision), (b"2".as_ref(), 3));
        let Some(Answer::ResponseTxn(nested)) = &yes.responses[2].response else { panic!("a transaction") };
        assert!(nested.succeeded);

        s.put("a", "other").await;
        let no = s.kv().txn(request).await.expect("txn").into_inner();
        assert!(!no.succeeded);
        // It changed nothing, so it takes no revision.
        assert_eq!(no.header.expect("header").revision, 4);

        // No stored number is negative: greater than -1 is always true.
        let compare = pb::Compare {
            key: "a".into(),
            target: CompareTarget::Version.into(),
            result: CompareResult::Greater.into(),
            target_union: Some(TargetUnion::Version(-1)),
            ..Default::default()
        };
        let request = pb::TxnRequest { compare: vec![compare], ..Default::default() };
        assert!(s.kv().txn(request).await.expect("txn").into_inner().succeeded);
    });
}

#[test]
fn compaction() {
    with_server(|s| async move {
        for value in ["1", "2", "3"] {
            s.put("a", value).await;
        }
        let compact = |revision| pb::CompactionRequest { revision, physical: true };
        s.kv().compact(compact(3)).await.expect("compact");
        let compacted = "etcdserver: mvcc: required revision has been compacted";
        assert_refused(s.kv().range(pb::RangeRequest { revision: 2, ..get("a") }).await, Code::OutOfRange, compacted);
        assert_refused(s.kv().compact(compact(3)).await, Code::OutOfRange, compacted);
        assert_refused(s.kv().compact(compact(9)).await, Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision");
        let kept = s.kv().range(pb::RangeRequest { revision: 3, ..get("a") }).await.expect("get").into_inner();
        assert_eq!(kept.kvs[0].value.as_ref(), b"2");
    });
}
