//! Changes in memory over the file: whoever reads sees one moment, whatever is folded meanwhile.

use super::model::{Keys, Model, compare_events, compare_range, random_command};
use super::*;
use crate::kv::store::Reading;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::sync::atomic::{AtomicBool, Ordering};

/// What a reading shows, forward, in reverse, with limits, and of a past revision.
fn shown(reading: &Reading, past: u64) -> String {
    let view = reading.view();
    let descend = RangeRequest { sort_order: SortOrder::Descend, ..all() };
    let some = RangeRequest { limit: 3, ..descend.clone() };
    let requests = [all(), descend, some, RangeRequest { limit: 2, ..all() }, at(past), RangeRequest { count_only: true, ..at(past) }];
    format!("{:?}", requests.map(|request| view.range(&request).unwrap()))
}

fn model_shows(reading: &Reading, keys: &Keys) {
    let found: Keys = reading.view().range(&all()).unwrap().kvs.into_iter().map(|kv| (kv.key.clone(), kv)).collect();
    assert_eq!(found, *keys);
}

#[test]
fn a_reader_keeps_its_moment_over_folds_and_compactions() {
    for seed in 0..10 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let store = memory();
        let mut model = Model { states: vec![Keys::new()], ..Model::default() };
        let mut held: Vec<(Reading, u64, String, Keys)> = Vec::new();
        let (mut index, mut frozen) = (0, None);
        for _ in 0..150 {
            for _ in 0..rng.random_range(1..6) {
                index += 1;
                let command = random_command(&mut rng, model.revision());
                model.apply(&command);
                store.apply(&[entry(index, command)]).unwrap();
            }
            match (rng.random_range(0..6), frozen.take()) {
                (0, None) => frozen = Some(store.freeze().unwrap()),
                (1, None) => {
                    store.checkpoint().unwrap();
                }
                (2, None) => {
                    store.collect_garbage(20).unwrap();
                }
                (0..3, Some(half)) => {
                    store.fold_frozen(half, 100, &|_| {}).unwrap();
                }
                (_, still) => frozen = still,
            }
            if rng.random_ratio(1, 8) {
                let reading = store.reading(U);
                let past = rng.random_range(model.compact.max(1)..=model.revision());
                let shows = shown(&reading, past);
                held.push((reading, past, shows, model.states[model.revision() as usize - 1].clone()));
            }
            for (reading, past, shows, keys) in &held {
                assert_eq!(&shown(reading, *past), shows, "seed {seed}");
                model_shows(reading, keys);
            }
            if held.len() > 3 {
                held.remove(rng.random_range(0..held.len()));
            }
            compare_range(&store, &model, &mut rng);
        }
        compare_events(&store, &model);
    }
}

/// Ranges longer than a cursor's chunk, over all three layers.
#[test]
fn long_ranges_merge_the_layers() {
    let store = memory();
    let mut index = 0;
    let mut expected = std::collections::BTreeMap::new();
    let mut put_all = |store: &Store, keys: &mut dyn Iterator<Item = u32>, value: &str| {
        for key in keys {
            index += 1;
            let key = format!("k{key:05}");
            let command = if value.is_empty() { delete(&key, "") } else { put(&key, value) };
            store.apply(&[entry(index, command)]).unwrap();
            if value.is_empty() {
                expected.remove(&key)
            } else {
                expected.insert(key, value.to_owned())
            };
        }
        expected.clone()
    };
    put_all(&store, &mut (0..2000).filter(|k| k % 2 == 0), "file");
    store.checkpoint().unwrap();
    let in_file = put_all(&store, &mut std::iter::empty(), "x");
    let file_revision = store.revision(U).0;
    put_all(&store, &mut (0..2000).filter(|k| k % 3 == 0), "frozen");
    put_all(&store, &mut (0..2000).filter(|k| k % 20 == 0), "");
    let half = store.freeze().unwrap();
    put_all(&store, &mut (500..1500).filter(|k| k % 5 == 0), "recent");
    let now = put_all(&store, &mut (0..2000).filter(|k| k % 7 == 0), "");
    let check = |store: &Store| {
        for (request, expected) in [(all(), &now), (at(file_revision), &in_file)] {
            let found = read(store, &request);
            let pairs: Vec<_> = found.kvs.iter().map(|kv| (String::from_utf8(kv.key.to_vec()).unwrap(), kv.value.clone())).collect();
            let wanted: Vec<_> = expected.iter().map(|(key, value)| (key.clone(), b(value))).collect();
            assert_eq!(pairs, wanted);
            assert_eq!(found.count, expected.len() as u64);
            let descend = read(store, &RangeRequest { sort_order: SortOrder::Descend, limit: 700, ..request });
            assert!(descend.kvs.iter().eq(found.kvs.iter().rev().take(700)) && descend.count == found.count);
        }
    };
    check(&store);
    store.fold_frozen(half, 0, &|_| {}).unwrap();
    check(&store);
    store.checkpoint().unwrap();
    check(&store);
}

#[test]
fn a_snapshot_waits_for_the_fold_that_runs_and_has_everything() {
    let store = memory();
    for i in 0..50 {
        run(&store, put(&format!("k{i}"), "1"));
    }
    let half = store.freeze().unwrap();
    run(&store, Command::LeaseGrant { id: 9, ttl_s: 5 });
    run(&store, put_lease("k1", 9));
    run(&store, delete("k2", ""));
    assert_eq!(store.last_checkpoint().unwrap().header().index, Index(0));
    std::thread::scope(|scope| {
        let snapshot = scope.spawn(|| store.snapshot().unwrap());
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!snapshot.is_finished());
        store.fold_frozen(half, 0, &|_| {}).unwrap();
        let snapshot = snapshot.join().unwrap();
        assert_eq!(snapshot.header().index, Index(53));
        let other = memory();
        other.restore(snapshot.map(Result::unwrap)).unwrap();
        assert_eq!(read(&other, &all()), read(&store, &all()));
        assert_eq!(other.lease_keys(9).unwrap(), [b("k1")]);
        assert_eq!(other.hash_kv(U, Revision(0)).unwrap(), store.hash_kv(U, Revision(0)).unwrap());
    });
}

/// A checkpoint's steps are nobody else's to see: whoever takes the last checkpoint meanwhile gets the one before, whole.
#[test]
fn the_last_checkpoint_is_whole_while_another_is_taken() {
    let store = memory();
    let write = |value: &str| (0..400).for_each(|i| drop(run(&store, put(&format!("k{i}"), value))));
    write("1");
    store.checkpoint().unwrap();
    write("2");
    let ended = AtomicBool::new(false);
    let look = || loop {
        let last = ended.load(Ordering::Acquire);
        let snapshot = store.last_checkpoint().unwrap();
        let wanted = if snapshot.header().index == Index(400) { "1" } else { "2" };
        let other = memory();
        other.restore(snapshot.map(Result::unwrap)).unwrap();
        let found = read(&other, &all());
        assert!(found.kvs.len() == 400 && found.kvs.iter().all(|kv| kv.value == wanted), "{wanted}");
        if last {
            return wanted;
        }
    };
    std::thread::scope(|scope| {
        let looker = scope.spawn(look);
        store.checkpoint().unwrap();
        ended.store(true, Ordering::Release);
        assert_eq!(looker.join().unwrap(), "2");
    });
}

/// Two keys that are always written together are never seen apart, while another thread folds.
#[test]
fn readers_on_other_threads_see_whole_batches() {
    let store = memory();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = |request: RangeRequest| {
            let (store, ended) = (&store, &ended);
            move || {
                let (mut last, mut rounds) = (0, 0);
                while !ended.load(Ordering::Acquire) {
                    let found = read(store, &request);
                    let values: std::collections::BTreeSet<_> = found.kvs.iter().map(|kv| kv.value.clone()).collect();
                    assert!(values.len() <= 1, "{values:?}");
                    assert!(found.kvs.is_empty() || found.kvs.len() == 300);
                    let revision = found.kvs.first().map_or(0, |kv| kv.mod_revision.0);
                    assert!(revision >= last, "time went backwards");
                    last = revision;
                    rounds += 1;
                }
                assert!(rounds > 5, "{rounds} reads");
            }
        };
        scope.spawn(reader(all()));
        scope.spawn(reader(RangeRequest { sort_order: SortOrder::Descend, ..all() }));
        let folder = scope.spawn(|| {
            while !ended.load(Ordering::Acquire) {
                store.checkpoint().unwrap();
            }
        });
        for i in 0..400 {
            let puts =
                (0..300).map(|k| TxnOp::Put(PutRequest { key: b(&format!("k{k}")), value: b(&i.to_string()), ..Default::default() }));
            run(&store, Command::Txn(U, TxnRequest { success: puts.collect(), ..Default::default() }));
            if i % 20 == 19 {
                run(&store, compact(i));
            }
        }
        ended.store(true, Ordering::Release);
        folder.join().unwrap();
    });
}

/// A checkpoint that may take its time says how far it is, and takes none once somebody waits for it.
#[test]
fn a_checkpoint_tells_its_progress_and_hurries_when_it_is_awaited() {
    let store = memory();
    let fill = || (0..100).for_each(|k| drop(run(&store, put(&format!("k{}", k % 40), "v"))));
    fill();
    let told = std::cell::RefCell::new(Vec::new());
    store.paced_checkpoint(&|done| told.borrow_mut().push(done)).unwrap();
    let told = told.into_inner();
    assert!(told.len() > 30 && told.is_sorted(), "{told:?}");
    assert!(told[0] > 0.0 && told[0] < 0.1 && told.last() == Some(&1.0), "{told:?}");

    fill();
    let calls = std::cell::Cell::new(0);
    std::thread::scope(|scope| {
        store
            .paced_checkpoint(&|_| {
                calls.set(calls.get() + 1);
                scope.spawn(|| store.snapshot().unwrap());
                while !store.is_awaited() {
                    std::thread::yield_now();
                }
            })
            .unwrap();
    });
    assert_eq!(calls.get(), 1);
}
