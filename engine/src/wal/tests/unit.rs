//! Arguments, latching, bounds.

use super::super::{LogBatch, Lsn, SnapshotMark, Wal, WalConfig, WalError};
use super::model::{entry, small};
use crate::io::sim::SimDisk;
use crate::types::{Entry, GroupId, HardState, Index, Term};

const G: GroupId = GroupId(1);

fn entries(e: &[Entry]) -> LogBatch<'_> {
    LogBatch { entries: e, ..LogBatch::default() }
}

#[test]
fn appends_become_durable_in_order_and_come_back() {
    let disk = SimDisk::new(1);
    let (mut wal, recovered) = Wal::recover(disk.open(), small()).unwrap();
    assert!(recovered.groups.is_empty() && recovered.torn_tail.is_none());
    let hs = HardState { term: Term(3), vote: None, commit: Index(1) };
    let lsn = wal.append(G, LogBatch { hard_state: Some(hs), entries: &[entry(3, 1, 10), entry(3, 2, 5000)], snapshot: None }).unwrap();
    assert_eq!((lsn, wal.durable(), wal.has_pending()), (Lsn(1), Lsn(0), true));
    assert_eq!(wal.flush().unwrap(), Lsn(1));
    drop(wal);
    disk.power_cut(1);
    let (_, recovered) = Wal::recover(disk.open(), small()).unwrap();
    let g = &recovered.groups[&G];
    assert_eq!((g.hard_state, g.entries.len(), &g.entries[1]), (hs, 2, &entry(3, 2, 5000)));
}

#[test]
fn nothing_is_acknowledged_before_all_before_it_is_durable() {
    for seed in 0..50 {
        let disk = SimDisk::new(seed);
        let (mut wal, _) = Wal::recover(disk.open(), WalConfig { pipeline_bytes_min: 1, ..small() }).unwrap();
        wal.poll().unwrap();
        disk.set_manual(true);
        for i in 1..=4 {
            wal.append(G, entries(&[entry(1, i, 100)])).unwrap();
            wal.poll().unwrap();
        }
        let mut last = Lsn(0);
        for _ in 0..20 {
            disk.complete(1);
            let durable = wal.poll().unwrap();
            assert!(durable >= last);
            last = durable;
            let fork = disk.fork(seed);
            let (_, recovered) = Wal::recover(fork.open(), small()).unwrap();
            let held = recovered.groups.get(&G).map_or(0, |g| g.entries.len() as u64);
            assert!(held >= durable.0, "{held} entries on the disk, {} acknowledged", durable.0);
        }
        assert_eq!(last, Lsn(4));
    }
}

#[test]
fn what_does_not_follow_is_refused_and_changes_nothing() {
    let disk = SimDisk::new(1);
    let (mut wal, _) = Wal::recover(disk.open(), small()).unwrap();
    wal.append(G, entries(&[entry(1, 1, 1), entry(1, 2, 1)])).unwrap();
    for bad in [vec![entry(1, 4, 1)], vec![entry(1, 3, 1), entry(1, 5, 1)], vec![entry(1, 0, 1)], vec![entry(1, 3, 70_000)]] {
        assert!(matches!(wal.append(G, entries(&bad)), Err(WalError::Rejected { .. })), "{bad:?}");
    }
    let mark = |index, term| LogBatch { snapshot: Some(SnapshotMark { index: Index(index), term: Term(term) }), ..LogBatch::default() };
    wal.append(G, mark(2, 1)).unwrap();
    assert!(matches!(wal.append(G, mark(1, 1)), Err(WalError::Rejected { .. })));
    assert!(matches!(wal.append(G, entries(&[entry(1, 2, 1)])), Err(WalError::Rejected { .. })), "compacted");
    wal.append(G, entries(&[entry(1, 3, 1)])).unwrap();
    wal.flush().unwrap();
}

#[test]
fn a_failed_operation_latches() {
    for kind in [std::io::ErrorKind::StorageFull, std::io::ErrorKind::Other] {
        let disk = SimDisk::new(1);
        let (mut wal, _) = Wal::recover(disk.open(), small()).unwrap();
        wal.append(G, entries(&[entry(1, 1, 1)])).unwrap();
        wal.flush().unwrap();
        disk.fail_at(disk.operations() + 1, kind);
        wal.append(G, entries(&[entry(1, 2, 1)])).unwrap();
        let first = wal.flush().unwrap_err().to_string();
        for _ in 0..3 {
            assert_eq!(wal.poll().unwrap_err().to_string(), first);
            assert_eq!(wal.append(G, entries(&[entry(1, 3, 1)])).unwrap_err().to_string(), first);
        }
        assert_eq!(wal.durable(), Lsn(1));
    }
}

#[test]
fn the_queue_is_bounded() {
    let disk = SimDisk::new(1);
    let (mut wal, _) = Wal::recover(disk.open(), WalConfig { queue_bytes_max: 10_000, ..small() }).unwrap();
    wal.append(G, entries(&[entry(1, 1, 20_000)])).unwrap();
    assert!(matches!(wal.append(G, entries(&[entry(1, 2, 1)])), Err(WalError::QueueFull { .. })));
    wal.flush().unwrap();
    wal.append(G, entries(&[entry(1, 2, 1)])).unwrap();
}

#[test]
fn idle_groups_do_not_hold_segments() {
    let disk = SimDisk::new(1);
    let (mut wal, _) = Wal::recover(disk.open(), small()).unwrap();
    let idle = HardState { term: Term(9), vote: None, commit: Index(0) };
    wal.append(GroupId(2), LogBatch { hard_state: Some(idle), ..LogBatch::default() }).unwrap();
    for i in 1..200 {
        wal.append(G, LogBatch { snapshot: Some(SnapshotMark { index: Index(i), term: Term(1) }), ..LogBatch::default() }).unwrap();
        wal.append(G, entries(&[entry(1, i + 1, 3000)])).unwrap();
        wal.flush().unwrap();
    }
    assert!(wal.segments() <= 3, "{}", wal.segments());
    drop(wal);
    let (_, recovered) = Wal::recover(disk.open(), small()).unwrap();
    assert_eq!(recovered.groups[&GroupId(2)].hard_state, idle);
    assert_eq!(recovered.groups[&G].entries.len(), 1);
}

#[test]
fn on_a_real_disk_across_rolls_and_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let config = WalConfig { segment_bytes: 256 << 10, ..WalConfig::default() };
    let mut next = 1;
    for _ in 0..3 {
        let io = crate::io::disk::DiskIo::open(dir.path()).unwrap();
        let (mut wal, recovered) = Wal::recover(io, config.clone()).unwrap();
        assert_eq!(recovered.groups.get(&G).map_or(0, |g| g.entries.len()) as u64, next - 1);
        for _ in 0..60 {
            wal.append(G, entries(&[entry(1, next, 10_000)])).unwrap();
            next += 1;
            if next % 5 == 0 {
                wal.flush().unwrap();
            }
        }
        wal.flush().unwrap();
        assert!(wal.segments() > 2);
    }
}
