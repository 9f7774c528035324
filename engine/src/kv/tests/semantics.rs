//! etcd's semantics, one by one.

use super::*;

fn op(command: Command) -> TxnOp {
    match command {
        Command::Put(_, put) => TxnOp::Put(put),
        Command::DeleteRange(_, delete) => TxnOp::DeleteRange(delete),
        Command::Txn(_, txn) => TxnOp::Txn(txn),
        other => panic!("{other:?}"),
    }
}

fn txn(compare: Vec<Compare>, success: Vec<TxnOp>, failure: Vec<TxnOp>) -> Command {
    Command::Txn(U, TxnRequest { compare, success, failure })
}

fn cmp(key: &str, op: CompareOp, target: CompareTarget) -> Compare {
    Compare { key: b(key), range_end: Bytes::new(), op, target }
}

fn error(outcome: &ApplyOutcome) -> KvError {
    outcome.applied.result.clone().unwrap_err()
}

#[test]
fn an_empty_store_is_at_revision_1_and_each_change_adds_one() {
    let store = memory();
    assert_eq!(store.revision(U), Revision(1));
    let outcome = run(&store, put("a", "1"));
    assert_eq!(outcome.applied.revision, Revision(2));
    let outcome = run(&store, put("a", "2"));
    let event = &outcome.events[0];
    assert_eq!((event.kv.create_revision, event.kv.mod_revision, event.kv.version), (Revision(2), Revision(3), 2));
    assert_eq!(event.prev_kv.as_ref().unwrap().value, "1");
    assert_eq!(store.revision(Keyspace::System), Revision(1), "key spaces count for themselves");
    // Deleting nothing is no change.
    let outcome = run(&store, delete("zz", ""));
    assert_eq!(outcome.applied.revision, Revision(3));
    assert_eq!(outcome.applied.result, Ok(CommandResponse::Op(OpResponse::DeleteRange { deleted: 0, prev_kvs: vec![] })));
    let outcome = run(&store, delete("a", ""));
    assert_eq!((outcome.applied.revision, outcome.events[0].delete), (Revision(4), true));
    assert_eq!(outcome.events[0].kv, KeyValue { key: b("a"), mod_revision: Revision(4), ..Default::default() });
    // A key made again starts anew.
    let outcome = run(&store, put("a", "3"));
    assert_eq!((outcome.events[0].kv.version, outcome.events[0].kv.create_revision), (1, Revision(5)));
    assert_eq!(outcome.events[0].prev_kv, None);
}

#[test]
fn ranges() {
    let store = memory();
    for (k, v) in [("a", "3"), ("b", "1"), ("c", "2"), ("c/1", "5"), ("c/2", "4"), ("d", "0")] {
        run(&store, put(k, v));
    }
    run(&store, put("b", "9"));
    let range = |key: &str, end: &str| RangeRequest { key: b(key), range_end: b(end), ..Default::default() };
    assert_eq!(show(&read(&store, &range("c", ""))), "c=2");
    assert_eq!(show(&read(&store, &range("c", "d"))), "c=2 c/1=5 c/2=4");
    assert_eq!(show(&read(&store, &range("c/2", "\0"))), "c/2=4 d=0");
    assert_eq!(show(&read(&store, &range("d", "a"))), "");
    assert_eq!(refusal(&store, &range("", "")), KvError::EmptyKey);
    let limited = read(&store, &RangeRequest { limit: 2, ..all() });
    assert_eq!((show(&limited).as_str(), limited.more, limited.count), ("a=3 b=9", true, 6));
    let exact = read(&store, &RangeRequest { limit: 6, ..all() });
    assert!(!exact.more);
    let counted = read(&store, &RangeRequest { count_only: true, limit: 1, ..all() });
    assert_eq!((counted.kvs.len(), counted.more, counted.count), (0, false, 6));
    let keys = read(&store, &RangeRequest { keys_only: true, ..all() });
    assert!(keys.kvs.iter().all(|kv| kv.value.is_empty() && kv.version > 0));
    let sorted = |target, order, limit| show(&read(&store, &RangeRequest { sort_target: target, sort_order: order, limit, ..all() }));
    assert_eq!(sorted(SortTarget::Key, SortOrder::Descend, 2), "d=0 c/2=4");
    assert_eq!(sorted(SortTarget::Value, SortOrder::Ascend, 2), "d=0 c=2");
    assert_eq!(sorted(SortTarget::Mod, SortOrder::Descend, 2), "b=9 d=0");
    assert_eq!(sorted(SortTarget::Create, SortOrder::Descend, 1), "d=0");
    assert_eq!(sorted(SortTarget::Create, SortOrder::Ascend, 1), "a=3");
    assert_eq!(sorted(SortTarget::Version, SortOrder::Descend, 1), "b=9");
    let filtered = read(&store, &RangeRequest { min_mod_revision: Revision(4), max_create_revision: Revision(5), ..all() });
    assert_eq!((show(&filtered).as_str(), filtered.count), ("b=9 c=2 c/1=5", 6));
}

#[test]
fn reads_at_old_revisions_and_compaction() {
    let store = memory();
    run(&store, put("a", "1")); // 2
    run(&store, put("b", "1")); // 3
    run(&store, put("a", "2")); // 4
    run(&store, delete("b", "")); // 5
    run(&store, put("b", "2")); // 6
    run(&store, delete("a", "")); // 7
    let expect = ["", "a=1", "a=1 b=1", "a=2 b=1", "a=2", "a=2 b=2", "b=2"];
    for (i, expected) in expect.iter().enumerate() {
        assert_eq!(show(&read(&store, &at(i as u64 + 1))), *expected, "revision {}", i + 1);
    }
    assert_eq!(refusal(&store, &at(8)), KvError::FutureRevision);
    assert_eq!(error(&run(&store, compact(8))), KvError::FutureRevision);
    let before = store.sizes().in_use_bytes;
    assert_eq!(run(&store, compact(5)).applied.result, Ok(CommandResponse::Compacted));
    assert_eq!(error(&run(&store, compact(5))), KvError::Compacted);
    assert_eq!(store.compact_revision(U), Revision(5));
    while store.collect_garbage(1).unwrap() {}
    assert!(store.sizes().in_use_bytes < before);
    assert_eq!(refusal(&store, &at(4)), KvError::Compacted);
    for (i, expected) in expect.iter().enumerate().skip(4) {
        assert_eq!(show(&read(&store, &at(i as u64 + 1))), *expected, "revision {}", i + 1);
    }
    run(&store, compact(7));
    run(&store, delete("b", ""));
    run(&store, compact(8));
    while store.collect_garbage(1).unwrap() {}
    run(&store, put("c", "")); // 9
    run(&store, compact(9));
    while store.collect_garbage(10).unwrap() {}
    let rest = store.events_since(U, Revision(9), Revision(99), 99).unwrap();
    assert_eq!((rest.events.len(), rest.next), (1, Revision(10)));
    assert!(matches!(store.events_since(U, Revision(8), Revision(99), 9), Err(ReadError::CompactedAt(Revision(9)))));
}

#[test]
fn puts_with_ignore_value_and_ignore_lease() {
    let store = memory();
    run(&store, Command::LeaseGrant { id: 5, ttl_s: 60 });
    let with = |value: &str, lease, ignore_value, ignore_lease| {
        let request = PutRequest { key: b("k"), value: b(value), lease, ignore_value, ignore_lease, prev_kv: true };
        Command::Put(U, request)
    };
    assert_eq!(error(&run(&store, with("", 0, true, false))), KvError::KeyNotFound);
    assert_eq!(error(&run(&store, with("", 0, false, true))), KvError::KeyNotFound);
    assert_eq!(error(&run(&store, with("x", 0, true, false))), KvError::ValueProvided);
    assert_eq!(error(&run(&store, with("x", 5, false, true))), KvError::LeaseProvided);
    assert_eq!(error(&run(&store, with("x", 6, false, false))), KvError::LeaseNotFound);
    assert_eq!(store.revision(U), Revision(1), "a refusal changes nothing");
    run(&store, with("one", 5, false, false));
    run(&store, with("two", 0, false, true));
    let kv = store.get(U, b"k").unwrap().unwrap();
    assert_eq!((&kv.value[..], kv.lease), (&b"two"[..], 5));
    let outcome = run(&store, with("", 0, true, false));
    let kv = store.get(U, b"k").unwrap().unwrap();
    assert_eq!((&kv.value[..], kv.lease), (&b"two"[..], 0));
    let Ok(CommandResponse::Op(OpResponse::Put { prev_kv: Some(prev) })) = outcome.applied.result else { panic!() };
    assert_eq!((&prev.value[..], prev.lease), (&b"two"[..], 5));
}

#[test]
fn transactions() {
    let store = memory();
    run(&store, put("a", "1"));
    // One revision, sub-revisions inside; reads see what was written before them.
    let ops = vec![op(put("b", "2")), TxnOp::Range(all()), op(delete("a", "")), TxnOp::Range(all()), TxnOp::Range(at(2))];
    let outcome = run(&store, txn(vec![cmp("a", CompareOp::Equal, CompareTarget::Version(1))], ops, vec![]));
    assert_eq!(outcome.applied.revision, Revision(3));
    assert!(outcome.events.iter().all(|e| e.kv.mod_revision == Revision(3)));
    let Ok(CommandResponse::Op(OpResponse::Txn { succeeded: true, responses })) = outcome.applied.result else { panic!() };
    let ranges: Vec<String> = responses.iter().filter_map(|r| if let OpResponse::Range(r) = r { Some(show(r)) } else { None }).collect();
    assert_eq!(ranges, ["a=1 b=2", "b=2", "a=1"]);
    // A read-only transaction adds no revision.
    let outcome = run(&store, txn(vec![], vec![TxnOp::Range(all())], vec![]));
    assert_eq!(outcome.applied.revision, Revision(3));
    // Nested comparisons look at the state before the transaction.
    let inner = TxnRequest {
        compare: vec![cmp("n", CompareOp::Greater, CompareTarget::Version(0))],
        success: vec![op(put("seen", "yes"))],
        failure: vec![op(put("seen", "no"))],
    };
    run(&store, txn(vec![], vec![op(put("n", "1")), TxnOp::Txn(inner)], vec![]));
    assert_eq!(store.get(U, b"seen").unwrap().unwrap().value, "no");
    // All or nothing: the second operation is refused, the first leaves nothing.
    let before = (store.revision(U), show(&read(&store, &all())));
    assert_eq!(error(&run(&store, txn(vec![], vec![op(put("x", "1")), op(put_lease("y", 9))], vec![]))), KvError::LeaseNotFound);
    assert_eq!(error(&run(&store, txn(vec![], vec![op(put("x", "1")), TxnOp::Range(at(99))], vec![]))), KvError::FutureRevision);
    assert_eq!((store.revision(U), show(&read(&store, &all()))), before);
}

#[test]
fn no_key_is_put_twice_in_a_transaction() {
    let store = memory();
    let dup = |ops: Vec<TxnOp>| run(&store, txn(vec![], ops, vec![])).applied.result == Err(KvError::DuplicateKey);
    assert!(dup(vec![op(put("a", "")), op(put("a", ""))]));
    assert!(dup(vec![op(put("a", "")), op(delete("a", ""))]));
    assert!(dup(vec![op(delete("a", "c")), op(put("b", ""))]));
    assert!(dup(vec![op(delete("a", "\0")), op(put("z", ""))]));
    assert!(!dup(vec![op(delete("a", "b")), op(put("b", ""))]));
    assert!(dup(vec![op(put("a", "")), op(txn(vec![], vec![op(put("a", ""))], vec![]))]));
    assert!(dup(vec![op(put("a", "")), op(txn(vec![], vec![], vec![op(delete("a", ""))]))]));
    assert!(!dup(vec![op(txn(vec![], vec![op(put("a", ""))], vec![op(put("a", ""))]))]), "one of them runs");
    let many: Vec<TxnOp> = (0..129).map(|i| op(put(&i.to_string(), ""))).collect();
    assert_eq!(check_command(&txn(vec![], many, vec![]), 128), Err(KvError::TooManyOps));
    let mut deep = txn(vec![], vec![], vec![]);
    for _ in 0..70 {
        deep = txn(vec![], vec![op(deep)], vec![]);
    }
    assert_eq!(error(&run(&store, deep)), KvError::TooManyOps);
}

#[test]
fn comparisons() {
    use CompareOp::{Equal, Greater, Less, NotEqual};
    use CompareTarget::{Create, Lease, Mod, Value, Version};
    let store = memory();
    run(&store, Command::LeaseGrant { id: 5, ttl_s: 60 });
    run(&store, put_lease("k/1", 5)); // 2
    run(&store, put("k/2", "v")); // 3
    let holds = |compare: Compare| {
        let result = run(&store, txn(vec![compare], vec![], vec![])).applied.result;
        matches!(result, Ok(CommandResponse::Op(OpResponse::Txn { succeeded: true, .. })))
    };
    for (expected, key, op, target) in [
        (true, "k/1", Equal, Version(1)),
        (true, "k/1", Equal, Create(Revision(2))),
        (true, "k/1", Less, Mod(Revision(3))),
        (false, "k/1", Greater, Mod(Revision(2))),
        (true, "k/1", Equal, Value(b("v"))),
        (true, "k/1", NotEqual, Value(b("w"))),
        (true, "k/1", Equal, Lease(5)),
        (false, "k/2", Equal, Lease(5)),
        (true, "none", Equal, Version(0)),
        (true, "none", Equal, Create(Revision(0))),
        (false, "none", Equal, Value(b(""))),
        (false, "none", NotEqual, Value(b("x"))),
    ] {
        assert_eq!(holds(cmp(key, op, target.clone())), expected, "{key} {op:?} {target:?}");
    }
    let range = |op, target| Compare { key: b("k/"), range_end: b("k0"), op, target };
    assert!(holds(range(Equal, Version(1))));
    assert!(!holds(range(Equal, Create(Revision(2)))));
    assert!(holds(range(Less, Create(Revision(4)))));
}

#[test]
fn leases() {
    let store = memory();
    let grant = |id, ttl_s| run(&store, Command::LeaseGrant { id, ttl_s });
    assert_eq!(grant(5, 60).applied.result, Ok(CommandResponse::LeaseGranted { id: 5, ttl_s: 60 }));
    assert_eq!(error(&grant(5, 60)), KvError::LeaseExists);
    assert_eq!(error(&grant(6, 9_000_000_001)), KvError::LeaseTtlTooLarge);
    grant(6, 10);
    for (key, lease) in [("a", 5), ("b", 5), ("c", 5), ("d", 6)] {
        run(&store, put_lease(key, lease));
    }
    run(&store, put_lease("b", 6)); // moves
    run(&store, put("c", "free")); // detaches
    assert_eq!(store.lease_keys(5).unwrap(), [b("a")]);
    assert_eq!(store.lease_keys(6).unwrap(), [b("b"), b("d")]);
    assert_eq!(store.leases().unwrap(), [LeaseInfo { id: 5, ttl_s: 60 }, LeaseInfo { id: 6, ttl_s: 10 }]);
    let before = store.revision(U);
    let outcome = run(&store, Command::LeaseRevoke { id: 6 });
    assert_eq!((outcome.applied.revision, outcome.events.len()), (before.next(), 2));
    assert!(outcome.events.iter().all(|e| e.delete && e.kv.mod_revision == before.next() && e.prev_kv.is_some()));
    assert_eq!(error(&run(&store, Command::LeaseRevoke { id: 6 })), KvError::LeaseNotFound);
    run(&store, delete("a", ""));
    assert_eq!(run(&store, Command::LeaseRevoke { id: 5 }).events.len(), 0);
    assert_eq!(show(&read(&store, &all())), "c=free");
    assert!(store.leases().unwrap().is_empty());
}

#[test]
fn entries_apply_once_and_without_gaps() {
    let store = memory();
    let batch: Vec<ApplyEntry> = (1..=3).map(|i| entry(i, put("k", &i.to_string()))).collect();
    store.apply(&batch[..2]).unwrap();
    let outcomes = store.apply(&batch).unwrap();
    assert_eq!(outcomes.iter().map(|o| o.skipped).collect::<Vec<_>>(), [true, true, false]);
    assert_eq!(store.get(U, b"k").unwrap().unwrap().version, 3);
    assert!(matches!(store.apply(&[entry(5, put("k", ""))]), Err(StoreError::Gap { applied: Index(3), .. })));
    let conf = ApplyEntry { index: Index(4), term: Term(2), command: None, membership: Some(b("members")) };
    store.apply(&[conf]).unwrap();
    assert_eq!((store.applied(), store.membership()), ((Index(4), Term(2)), Some(b("members"))));
    let told = Command::MemberAttributes { id: crate::types::NodeId(7), name: "n".into(), client_urls: vec!["u".into()] };
    run(&store, told);
    assert_eq!(store.member_attributes().unwrap()[&crate::types::NodeId(7)].name, "n");
}

#[test]
fn open_errors_name_the_file_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = Store::open(&path, 1 << 20).unwrap();
    let text = Store::open(&path, 1 << 20).unwrap_err().to_string();
    assert!(text.contains("another process has it open"), "{text}");
    run(&store, put("a", "1"));
    store.checkpoint().unwrap();
    drop(store);
    std::fs::write(&path, vec![7; 100_000]).unwrap();
    let text = Store::open(&path, 1 << 20).unwrap_err().to_string();
    assert!(text.contains(path.to_str().unwrap()) && text.contains("join again"), "{text}");
    let text = Store::open(&dir.path().join("no/store"), 1 << 20).unwrap_err().to_string();
    assert!(text.contains("directory exists"), "{text}");
}

#[test]
fn compacting_at_a_deletion_frees_what_was_deleted() {
    let store = memory();
    let empty = store.sizes().in_use_bytes;
    run(&store, put("a", &"x".repeat(10_000)));
    run(&store, put("b", &"x".repeat(10_000)));
    let deleted = run(&store, delete("\0", "\0")).applied.revision;
    run(&store, compact(deleted.0));
    while store.collect_garbage(1).unwrap() {}
    assert!(store.sizes().in_use_bytes < empty + 1000, "{:?}", store.sizes());
    // Who watches from there is still told, without what is gone.
    let events = store.events_since(U, deleted, deleted, 9).unwrap().events;
    assert_eq!(events.iter().map(|e| (e.delete, e.prev_kv.is_some())).collect::<Vec<_>>(), [(true, false), (true, false)]);
    run(&store, put("c", "1"));
    run(&store, compact(deleted.0 + 1));
    while store.collect_garbage(1).unwrap() {}
    assert!(store.sizes().in_use_bytes < empty + 200, "{:?}", store.sizes());
}

#[test]
fn what_is_done_is_counted_as_etcd_counts() {
    let store = memory();
    let mut before = store.tally();
    let mut counted = |what: &str, expected: Tally| {
        let now = store.tally();
        let more = Tally {
            ranges: now.ranges - before.ranges,
            puts: now.puts - before.puts,
            deletes: now.deletes - before.deletes,
            txns: now.txns - before.txns,
            leases_granted: now.leases_granted - before.leases_granted,
            leases_revoked: now.leases_revoked - before.leases_revoked,
        };
        before = now;
        assert_eq!(more, expected, "{what}");
    };
    let none = Tally::default();
    run(&store, put("a", "1"));
    counted("put", Tally { puts: 1, ..none });
    run(&store, Command::Put(U, PutRequest { key: b("a"), prev_kv: true, ..Default::default() }));
    counted("put with the pair before", Tally { puts: 1, ranges: 1, txns: 1, ..none });
    read(&store, &all());
    counted("range", Tally { ranges: 1, ..none });
    run(&store, put_lease("a", 9));
    counted("refused", none);
    run(&store, Command::Put(Keyspace::System, PutRequest { key: b("s"), ..Default::default() }));
    store.range(Keyspace::System, &all()).unwrap();
    counted("the cluster's own", none);

    let there = || cmp("a", CompareOp::Greater, CompareTarget::Version(0));
    run(&store, txn(vec![there()], vec![op(put("b", "1"))], vec![]));
    counted("compare and put, as Kubernetes does", Tally { ranges: 1, puts: 1, ..none });
    run(&store, txn(vec![there(), there()], vec![op(put("b", "2")), op(put("c", "2"))], vec![]));
    counted("both parts are more than one operation", Tally { ranges: 2, puts: 2, txns: 2, ..none });
    run(&store, txn(vec![there()], vec![TxnOp::Range(all())], vec![]));
    counted("one that reads only is one", Tally { ranges: 2, txns: 1, ..none });
    let inner = op(txn(vec![], vec![op(put("d", "")), op(put("e", ""))], vec![]));
    run(&store, txn(vec![], vec![inner], vec![]));
    counted("nested", Tally { puts: 2, txns: 1, ..none });
    run(&store, Command::DeleteRange(U, DeleteRangeRequest { key: b("d"), range_end: b("f"), prev_kv: false }));
    counted("two keys at once", Tally { deletes: 1, ..none });

    run(&store, Command::LeaseGrant { id: 9, ttl_s: 10 });
    run(&store, Command::LeaseGrant { id: 9, ttl_s: 10 });
    counted("granted once", Tally { leases_granted: 1, ..none });
    run(&store, put_lease("l1", 9));
    run(&store, put_lease("l2", 9));
    run(&store, Command::LeaseRevoke { id: 9 });
    run(&store, Command::LeaseRevoke { id: 9 });
    counted("its keys go with it", Tally { puts: 2, deletes: 2, txns: 1, leases_revoked: 1, ..none });
    let again = entry(store.applied().0.0, put("a", "2"));
    assert!(store.apply(&[again]).unwrap()[0].skipped);
    counted("skipped", none);
}
