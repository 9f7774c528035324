//! Blocks of history outside of the tables: how long they stay, and what is said when they are not there.

use super::crash::{HISTORY, LossyDisk, TABLES};
use super::*;
use crate::kv::codec::{META, META_STATE, SNAPSHOT_TABLES, State};
use redb::Database;
use std::path::Path;

/// Puts of one round each supersede those of the round before.
fn fill(store: &Store, round: usize, keys: usize) {
    for key in 0..keys {
        run(store, put(&format!("k{key}"), &format!("{round:04}-").repeat(1 + key % 40)));
    }
}

fn stream(reader: SnapshotReader) -> Vec<u8> {
    reader.map(|chunk| chunk.unwrap()).collect::<Vec<_>>().concat()
}

fn compact_all(store: &Store) {
    run(store, compact(store.revision(U).0));
    while store.collect_garbage(1_000).unwrap() {}
}

#[test]
fn history_stays_for_as_long_as_somebody_reads_it() {
    let disk = LossyDisk::default();
    let store = disk.open();
    fill(&store, 1, 100);
    store.checkpoint().unwrap();
    let wanted = stream(store.last_checkpoint().unwrap());
    let old = store.last_checkpoint().unwrap();
    for round in 2..5 {
        fill(&store, round, 100);
        compact_all(&store);
        store.checkpoint().unwrap();
    }
    let before = disk.lock().volatile[HISTORY].clone();
    assert_eq!(stream(old), wanted);
    // Nobody reads it any more: the next checkpoint gives it back.
    store.checkpoint().unwrap();
    let after = disk.lock().volatile[HISTORY].clone();
    let zeros = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == 0).count();
    assert!(zeros(&after) > zeros(&before) + 10_000, "{} and {}", zeros(&before), zeros(&after));
    let values: Vec<_> = read(&store, &all()).kvs.into_iter().map(|kv| kv.value).collect();
    assert!(values.len() == 100 && values.iter().all(|value| value.starts_with(b"0004-")));
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn files_go_with_what_was_in_them_and_are_missed_when_they_are_needed() {
    let dir = tempfile::tempdir().unwrap();
    let (path, history) = (dir.path().join("kv.redb"), dir.path().join("kv.history"));
    let store = Store::open(&path, 1 << 20).unwrap();
    store.checkpoint().unwrap();
    assert!(!history.exists(), "an empty store has none");
    for round in 0..20 {
        fill(&store, round, 100);
        store.checkpoint().unwrap();
    }
    let all_files = files(&history);
    assert!(all_files.len() > 3, "{all_files:?}");
    compact_all(&store);
    for _ in 0..3 {
        store.checkpoint().unwrap();
    }
    // What lives was written last, over the border of two at most.
    let left = files(&history);
    assert!(left.len() <= 2 && all_files.ends_with(&left), "{left:?} of {all_files:?}");
    let found = read(&store, &all());
    drop(store);
    let store = Store::open(&path, 1 << 20).unwrap();
    assert_eq!(read(&store, &all()), found);
    fill(&store, 20, 100);
    store.checkpoint().unwrap();
    drop(store);
    std::fs::remove_file(history.join(all_files.last().unwrap())).unwrap();
    let text = Store::open(&path, 1 << 20).unwrap_err().to_string();
    assert!(text.contains("a history file is missing; remove this member's data and let it join again"), "{text}");
    // Without the tables it is nobody's.
    std::fs::remove_file(&path).unwrap();
    drop(Store::open(&path, 1 << 20).unwrap());
    assert_eq!(files(&history), Vec::<String>::new());
}

#[test]
fn damage_is_found() {
    let disk = LossyDisk::default();
    let store = disk.open();
    fill(&store, 1, 100);
    store.checkpoint().unwrap();
    let keep = disk.lock().volatile[HISTORY].clone();
    for at in (0..keep.len()).step_by(997) {
        disk.lock().volatile[HISTORY][at] ^= 1;
        let found = stream_or_error(&store);
        // What pads a block is not looked at.
        if let Err(error) = found {
            assert!(error.to_string().contains("table history: block of"), "{error}");
        } else {
            assert_eq!(keep[at], 0);
        }
        disk.lock().volatile[HISTORY] = keep.clone();
    }
    disk.lock().volatile[HISTORY].truncate(1_000);
    let text = stream_or_error(&store).unwrap_err().to_string();
    assert!(text.contains("read history at address"), "{text}");
    assert!(text.contains("check the disk"), "{text}");
}

/// Blocks often end exactly where a file does: the next one is the first of the next file.
#[test]
fn what_lies_at_the_border_of_files_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let (path, history) = (dir.path().join("kv.redb"), dir.path().join("kv.history"));
    let (store, model) = (Store::open(&path, 1 << 20).unwrap(), memory());
    // Some records that fill blocks exactly, so that borders are hit, and others.
    let lens = [512 - 8 - 12 - 41 - 2, 300, 60, 2_000];
    let mut events = 0;
    for round in 0..40 {
        for _ in 0..200 {
            events += 1;
            let value = "v".repeat(lens[if round % 4 == 0 { 0 } else { events % lens.len() }]);
            for store in [&store, &model] {
                run(store, put(&format!("k{}", events % 7), &value));
            }
        }
        store.checkpoint().unwrap();
    }
    model.checkpoint().unwrap();
    assert!(files(&history).len() > 20);
    let none_is_too_long = || {
        for name in files(&history) {
            assert!(std::fs::metadata(history.join(name)).unwrap().len() <= crate::kv::segments::SEGMENT_BYTES);
        }
    };
    none_is_too_long();
    let page = |store: &Store| store.events_since(U, Revision(2), store.revision(U), usize::MAX).unwrap();
    let hash = model.hash_all().unwrap();
    assert_eq!(store.hash_all().unwrap(), hash);
    assert_eq!(page(&store), page(&model));
    let all = stream(store.last_checkpoint().unwrap());
    drop(store);
    let store = Store::open(&path, 1 << 20).unwrap();
    assert_eq!(store.hash_all().unwrap(), hash);
    // A restore writes all of it behind what there is.
    store.restore(all.chunks(10_000).map(Bytes::copy_from_slice)).unwrap();
    assert_eq!(store.hash_all().unwrap(), hash);
    none_is_too_long();
    drop(store);
    assert_eq!(Store::open(&path, 1 << 20).unwrap().hash_all().unwrap(), hash);
}

/// A restore that is given up leaves its blocks behind; what follows is written over them. One that is completed leaves the old ones
/// to who reads them.
#[test]
fn restores_given_up_and_completed() {
    let source = memory();
    fill(&source, 7, 200);
    let incoming = stream(source.snapshot().unwrap());
    let disk = LossyDisk::default();
    let store = disk.open();
    fill(&store, 1, 100);
    store.checkpoint().unwrap();
    let before = stream(store.last_checkpoint().unwrap());
    let mut writer = store.begin_restore().unwrap();
    writer.push(&incoming[..incoming.len() - 1]).unwrap();
    assert!(matches!(writer.finish(), Err(StoreError::SnapshotRefused { .. })));
    assert_eq!(stream(store.last_checkpoint().unwrap()), before);
    fill(&store, 2, 100);
    store.checkpoint().unwrap();
    let second = stream(store.last_checkpoint().unwrap());
    assert_eq!(stream(disk.after_power_cut().open().last_checkpoint().unwrap()), second);

    let old = store.last_checkpoint().unwrap();
    store.restore([Bytes::copy_from_slice(&incoming)].into_iter()).unwrap();
    for round in 8..11 {
        fill(&store, round, 100);
        store.checkpoint().unwrap();
    }
    assert_eq!(stream(old), second);
    store.checkpoint().unwrap();
    assert_eq!(read(&store, &at(201)), read(&source, &at(201)));
    assert_eq!(read(&disk.after_power_cut().open(), &all()), read(&store, &all()));
}

/// Large records do not stay in the tables, though they are the last of their checkpoint.
#[test]
fn large_last_blocks_lie_outside() {
    let disk = LossyDisk::default();
    let store = disk.open();
    for i in 0..5 {
        run(&store, put("large", &"y".repeat(2_000 + i)));
        store.checkpoint().unwrap();
        assert!(disk.lock().volatile[HISTORY].len() > 2_000 * (i + 1));
    }
    assert_eq!(disk.open().get(U, b"large").unwrap().unwrap().value.len(), 2_004);
}

fn stream_or_error(store: &Store) -> Result<(), StoreError> {
    store.last_checkpoint()?.try_for_each(|chunk| chunk.map(drop))
}

/// In files of version 3 all history stands in the tables, as it does in the stream.
#[test]
fn files_of_version_3_are_read_and_go_on() {
    let store = memory();
    fill(&store, 1, 100);
    run(&store, delete("k7", ""));
    let wanted = stream(store.snapshot().unwrap());
    let state = State::decode(&wanted[12..][..State::LEN]).unwrap();
    let disk = LossyDisk::default();
    let db = Database::builder().create_with_backend(disk.file(TABLES)).unwrap();
    let txn = db.begin_write().unwrap();
    txn.open_table(META).unwrap().insert(META_STATE, &state.encode(3)[..]).unwrap();
    // Header and trailer have no records.
    let mut rest = &wanted[12 + State::LEN + 4..wanted.len() - 25];
    while let Some((&number, fields)) = rest.split_first() {
        let (key_len, fields) = fields.split_first_chunk().unwrap();
        let (value_len, fields) = fields.split_first_chunk().unwrap();
        let (key, fields) = fields.split_at(u32::from_le_bytes(*key_len) as usize);
        let (value, fields) = fields.split_at(u32::from_le_bytes(*value_len) as usize);
        let table = SNAPSHOT_TABLES.iter().find(|table| table.0 == number).unwrap().1;
        txn.open_table(table).unwrap().insert(key, value).unwrap();
        rest = fields;
    }
    txn.commit().unwrap();
    drop(db);

    let old = disk.open();
    assert_eq!(stream(old.last_checkpoint().unwrap()), wanted);
    assert_eq!(disk.lock().volatile[HISTORY].len(), 0);
    for store in [&store, &old] {
        fill(store, 2, 100);
        store.checkpoint().unwrap();
    }
    assert!(disk.lock().volatile[HISTORY].len() > 10_000);
    assert_eq!(read(&old, &at(101)), read(&store, &at(101)));
    for store in [&store, &old] {
        compact_all(store);
    }
    assert_eq!(old.hash_all().unwrap(), store.hash_all().unwrap());
    drop(old);
    assert_eq!(read(&disk.open(), &all()), read(&store, &all()));
}
