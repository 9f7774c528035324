//! Damage is refused with file and offset; only the very last batch can pass for a torn tail.

use super::super::format::{BATCH_HEADER_BYTES, BatchHeader, SEGMENT_HEADER_BYTES, segment_name};
use super::super::{LogBatch, Recovered, Wal, WalError};
use super::model::{entry, small};
use crate::io::sim::SimDisk;
use crate::types::GroupId;

const LOG_ID: u64 = 77;

/// A log of `batches` batches, each durable before the next began, one entry each.
fn disk(batches: u64) -> SimDisk {
    let disk = SimDisk::new(1);
    let (mut wal, _) = Wal::recover(disk.open(), small()).unwrap();
    for i in 1..=batches {
        wal.append(GroupId(1), LogBatch { entries: &[entry(1, i, 6000)], ..LogBatch::default() }).unwrap();
        wal.flush().unwrap();
    }
    disk
}

fn open(disk: &SimDisk) -> Result<Recovered, WalError> {
    Wal::recover(disk.open(), small()).map(|(_, r)| r)
}

fn held(recovered: &Recovered) -> usize {
    recovered.groups.get(&GroupId(1)).map_or(0, |g| g.entries.len())
}

/// (file, offset, header) of every batch.
fn batches(disk: &SimDisk) -> Vec<(String, usize, BatchHeader)> {
    let mut found = Vec::new();
    for name in disk.names() {
        for (i, block) in disk.content(&name).unwrap().chunks(4096).enumerate() {
            if let Some(h) = BatchHeader::decode(block, LOG_ID) {
                found.push((name.clone(), i * 4096, h));
            }
        }
    }
    found.sort_by_key(|(_, _, h)| h.number);
    found
}

#[test]
fn a_flipped_bit_is_never_silent_but_in_the_last_batch() {
    let intact = disk(20);
    let all = batches(&intact);
    assert_eq!(all.len(), 20);
    assert_ne!(all[0].0, all[19].0, "more than one segment");
    for (name, at, header) in &all {
        for offset in (0..BATCH_HEADER_BYTES + header.payload_bytes as usize).step_by(61) {
            let copy = intact.fork(1);
            copy.flip_bit(name, at + offset, (offset % 8) as u8);
            match open(&copy) {
                Err(WalError::Damaged { file, offset, .. }) => {
                    assert_eq!((&file, offset as usize), (name, *at), "names the place");
                    assert!(header.number < 20);
                }
                Ok(r) if header.number == 20 => assert_eq!(held(&r), 19),
                other => panic!("batch {} byte {offset}: {other:?}", header.number),
            }
        }
    }
}

#[test]
fn missing_segments_are_refused() {
    let intact = disk(40);
    let names = intact.names();
    assert!(names.len() >= 5, "{names:?}");
    let last = batches(&intact).last().unwrap().0.clone();
    for name in names.iter().filter(|n| **n <= last) {
        let copy = intact.fork(1);
        copy.remove_file(name);
        assert!(matches!(open(&copy), Err(WalError::Damaged { file, .. }) if file == *name), "{name}");
    }
}

#[test]
fn segment_headers() {
    let intact = disk(40);
    let (first, prepared) = (segment_name(1), intact.names().last().unwrap().clone());
    // Of a segment that holds batches.
    let copy = intact.fork(1);
    copy.flip_bit(&first, 20, 1);
    assert!(matches!(open(&copy), Err(WalError::Damaged { file, offset: 0, .. }) if file == first));
    // Another version.
    let copy = intact.fork(1);
    copy.flip_bit(&first, 9, 1);
    assert!(matches!(open(&copy), Err(WalError::Version { found: 513, expected: 1, .. })));
    // Of the prepared one: made again.
    let copy = intact.fork(1);
    copy.flip_bit(&prepared, 20, 1);
    assert_eq!(held(&open(&copy).unwrap()), 40);
    // A renamed file that was not prepared again: stale, made again.
    let copy = intact.fork(1);
    copy.set_content(&prepared, copy.content(&first).unwrap());
    assert_eq!(held(&open(&copy).unwrap()), 40);
    // A file of another log.
    let other = SimDisk::new(2);
    drop(Wal::recover(other.open(), super::super::WalConfig { log_id: 78, ..small() }).unwrap());
    let copy = intact.fork(1);
    copy.set_content(&prepared, other.content(&first).unwrap());
    assert!(matches!(open(&copy), Err(WalError::Damaged { file, offset: 16, .. }) if file == prepared));
    // Cut short.
    let copy = intact.fork(1);
    let mut data = copy.content(&first).unwrap();
    data.truncate(40_000);
    copy.set_content(&first, data);
    assert!(matches!(open(&copy), Err(WalError::Damaged { .. })));
    // The only segment: never prepared is made anew, with batches inside it is refused.
    let copy = SimDisk::new(1);
    copy.set_content(&first, vec![0; 64 << 10]);
    assert_eq!(held(&open(&copy).unwrap()), 0);
    let copy = disk(1).fork(1);
    copy.remove_file(&segment_name(2));
    copy.flip_bit(&first, 20, 1);
    assert!(matches!(open(&copy), Err(WalError::Damaged { .. })));
}

/// A batch at the end that is only partly there, and batches behind a hole, written while it was in flight.
#[test]
fn torn_tails_are_cut_and_do_not_come_back() {
    let intact = disk(6);
    let all = batches(&intact);
    let (name, at, h) = &all[4];
    // Make batch 6 look as if batch 5 had still been in flight when it was written.
    let (name6, at6, h6) = &all[5];
    assert_eq!(name, name6);
    let mut data = intact.content(name).unwrap();
    data[*at6..at6 + BATCH_HEADER_BYTES].copy_from_slice(&BatchHeader { durable: 4, ..*h6 }.encode(LOG_ID));
    let hole = |bytes: std::ops::Range<usize>| {
        let copy = intact.fork(1);
        let mut data = data.clone();
        data[bytes].fill(0);
        copy.set_content(name, data);
        copy
    };
    for bytes in [*at..*at + h.total_bytes(), at + 512..at + 1024, *at..at + 512] {
        let copy = hole(bytes);
        let (mut wal, r) = Wal::recover(copy.open(), small()).unwrap();
        let torn = r.torn_tail.clone().unwrap();
        assert_eq!((held(&r), &torn.file, torn.offset, torn.batch), (4, name, *at as u64, 5));
        // The same batch 5 again: batch 6 must not follow it out of the grave.
        wal.append(GroupId(1), LogBatch { entries: &[entry(1, 5, 6000)], ..LogBatch::default() }).unwrap();
        wal.flush().unwrap();
        drop(wal);
        assert_eq!(held(&open(&copy).unwrap()), 5);
    }
    let whole = SEGMENT_HEADER_BYTES..data.len();
    assert!(open(&hole(whole)).is_ok_and(|r| held(&r) == 0), "nothing left to tell by: see FORMAT.md");
}

#[test]
fn random_damage_never_panics() {
    use rand::{Rng, SeedableRng};
    let intact = disk(12);
    let names = intact.names();
    for seed in 0..400 {
        let mut rng = rand::rngs::SmallRng::seed_from_u64(seed);
        let copy = intact.fork(seed);
        for _ in 0..rng.random_range(1..6) {
            let name = &names[rng.random_range(0..names.len())];
            let mut data = copy.content(name).unwrap();
            let from = rng.random_range(0..data.len());
            let to = (from + rng.random_range(1..10_000)).min(data.len());
            rng.fill(&mut data[from..to]);
            data.truncate(if rng.random_bool(0.2) { from } else { usize::MAX });
            copy.set_content(name, data);
        }
        if let Ok(r) = open(&copy) {
            // Several batches at the end may be gone at once here, so only this much can be said.
            assert!(held(&r) <= 12, "seed {seed}: {} entries", held(&r));
        }
    }
}
