//! Snapshots: round trip, point in time, damage.

use super::*;

fn filled() -> Store {
    let store = memory();
    run(&store, Command::LeaseGrant { id: 5, ttl_s: 60 });
    for i in 0..200 {
        run(&store, put(&format!("k{}", i % 50), &"x".repeat(i * 7)));
    }
    run(&store, put_lease("leased", 5));
    run(&store, delete("k1", "k2"));
    run(&store, put("large", &"y".repeat(3 << 20)));
    let conf = ApplyEntry { index: store.applied().0.next(), term: Term(3), command: None, membership: Some(b("m")) };
    store.apply(&[conf]).unwrap();
    run(&store, compact(100));
    store
}

fn stream(store: &Store) -> Vec<u8> {
    let mut all = Vec::new();
    let mut reader = store.snapshot().unwrap();
    assert_eq!(reader.header().index, store.applied().0);
    while let Some(chunk) = reader.next_chunk().unwrap() {
        assert!(chunk.len() <= SNAPSHOT_CHUNK_BYTES_MAX);
        all.extend_from_slice(&chunk);
    }
    all
}

fn pieces(bytes: &[u8], len: usize) -> impl Iterator<Item = Bytes> {
    bytes.chunks(len).map(Bytes::copy_from_slice)
}

#[test]
fn a_restored_store_is_the_same_store() {
    let store = filled();
    let bytes = stream(&store);
    let other = memory();
    run(&other, put("gone", "after restoring"));
    run(&other, Command::LeaseGrant { id: 99, ttl_s: 1 });
    assert_eq!(other.restore(pieces(&bytes, 1000)).unwrap(), store.applied());
    assert_eq!(stream(&other), bytes);
    assert_eq!((other.membership(), other.applied()), (store.membership(), store.applied()));
    assert_eq!((other.revision(U), other.compact_revision(U)), (store.revision(U), Revision(100)));
    assert_eq!(other.leases().unwrap(), store.leases().unwrap());
    for revision in [100, 150, 0] {
        assert_eq!(read(&other, &at(revision)), read(&store, &at(revision)));
    }
    assert_eq!(other.hash_kv(U, Revision(0)).unwrap(), store.hash_kv(U, Revision(0)).unwrap());
    assert_eq!(run(&other, put("a", "b")), run(&store, put("a", "b")));
}

#[test]
fn a_snapshot_is_of_one_moment() {
    let store = filled();
    let bytes = stream(&store);
    let mut reader = store.snapshot().unwrap();
    let mut late = reader.next_chunk().unwrap().unwrap().to_vec();
    run(&store, delete("\0", "\0"));
    store.checkpoint().unwrap();
    while let Some(chunk) = reader.next_chunk().unwrap() {
        late.extend_from_slice(&chunk);
    }
    assert!(late == bytes);
}

#[test]
fn damage_is_refused_and_changes_nothing() {
    let source = memory();
    for i in 0..20 {
        run(&source, put(&format!("k{i}"), "value"));
    }
    let good = stream(&source);
    let store = memory();
    run(&store, put("mine", "1"));
    let before = stream(&store);
    let refused = |bytes: &[u8]| {
        let error = store.restore(pieces(bytes, 64)).unwrap_err();
        assert!(matches!(error, StoreError::SnapshotRefused { .. }), "{error}");
        assert!(stream(&store) == before);
    };
    for cut in (0..good.len()).step_by(37) {
        refused(&good[..cut]);
    }
    for at in (0..good.len()).step_by(5) {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        refused(&bad);
    }
    refused(&[&good[..], b"x"].concat());
    let mut writer = store.begin_restore().unwrap();
    writer.push(&good[..100]).unwrap();
    assert!(matches!(store.apply(&[]), Err(StoreError::Restoring)));
    assert!(matches!(store.begin_restore(), Err(StoreError::Restoring)));
    assert_eq!(show(&read(&store, &all())), "mine=1");
    drop(writer);
    run(&store, put("mine", "2"));
    store.restore(pieces(&good, good.len())).unwrap();
}
