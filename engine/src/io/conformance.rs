//! What every [`Io`] must do. Each implementation runs this suite in its tests.

use super::{AlignedBuf, BLOCK_BYTES, Completion, Io, IoOp};
use std::collections::BTreeMap;

/// Runs the whole suite on an empty directory.
///
/// # Panics
/// When the implementation does not conform: this is a test.
pub fn check<I: Io>(io: &mut I) {
    names(io);
    writes_read_back(io);
    many_in_flight(io);
    a_handle_follows_its_file(io);
    bad_arguments_are_errors(io);
}

fn block(byte: u8, blocks: usize) -> AlignedBuf {
    let mut buf = AlignedBuf::zeroed(blocks * BLOCK_BYTES);
    buf.as_mut_slice().fill(byte);
    buf
}

/// Waits for `count` completions.
///
/// # Panics
/// When waiting fails, or nothing is left to wait for.
pub fn drain<I: Io>(io: &mut I, count: usize) -> BTreeMap<u64, Completion> {
    let mut out = Vec::new();
    let mut idle = 0;
    while out.len() < count {
        io.wait().expect("wait");
        let before = out.len();
        io.reap(&mut out).expect("reap");
        idle = if out.len() == before { idle + 1 } else { 0 };
        assert!(idle < 1000, "{} of {count} completions, then nothing", out.len());
    }
    assert_eq!(out.len(), count, "one completion for each operation");
    out.into_iter().map(|c| (c.token, c)).collect()
}

fn names<I: Io>(io: &mut I) {
    assert!(io.list().expect("list").is_empty(), "starts empty, and leaves no probe behind");
    assert!(io.open("b", false).is_err(), "opens only what exists");
    let b = io.open("b", true).expect("create");
    let a = io.open("a", true).expect("create");
    assert_ne!(a, b);
    assert_eq!(io.list().expect("list"), ["a", "b"], "sorted");
    assert_eq!(io.len(a).expect("len"), 0);
    io.rename("b", "a").expect("rename replaces");
    assert_eq!(io.list().expect("list"), ["a"]);
    io.submit(1, IoOp::SyncDir).expect("submit");
    drain(io, 1)[&1].result.as_ref().expect("sync of the directory");
    io.close(a);
    io.close(b);
    io.remove("a").expect("remove");
    assert!(io.remove("a").is_err(), "gone");
    io.submit(2, IoOp::SyncDir).expect("submit");
    drain(io, 1)[&2].result.as_ref().expect("sync of the directory");
    io.wait().expect("wait returns at once when nothing is in flight");
}

fn writes_read_back<I: Io>(io: &mut I) {
    let f = io.open("f", true).expect("create");
    let at = |blocks: usize| (blocks * BLOCK_BYTES) as u64;
    io.submit(1, IoOp::Zero { file: f, offset: 0, len: 8 * BLOCK_BYTES }).expect("submit");
    drain(io, 1)[&1].result.as_ref().expect("zero");
    io.submit(2, IoOp::Fsync { file: f }).expect("submit");
    drain(io, 1)[&2].result.as_ref().expect("fsync");
    assert_eq!(io.len(f).expect("len"), at(8));
    for (token, durable) in [(3, true), (4, false)] {
        io.submit(token, IoOp::Write { file: f, offset: at(token as usize), data: block(token as u8, 1), durable }).expect("submit");
    }
    let done = drain(io, 2);
    for token in [3, 4] {
        done[&token].result.as_ref().expect("write");
        let data = done[&token].data.as_ref().expect("the buffer comes back");
        assert_eq!(data.as_slice()[0], token as u8);
    }
    let mut all = vec![9; 9 * BLOCK_BYTES];
    assert_eq!(io.read_at(f, 0, &mut all).expect("read"), 8 * BLOCK_BYTES, "short at the end of the file");
    for (i, block) in all.chunks(BLOCK_BYTES).take(8).enumerate() {
        let want = if i == 3 || i == 4 { i as u8 } else { 0 };
        assert!(block.iter().all(|b| *b == want), "block {i}");
    }
    assert_eq!(io.read_at(f, at(100), &mut all).expect("read past the end"), 0);
    io.submit(5, IoOp::Write { file: f, offset: at(8), data: block(5, 2), durable: true }).expect("submit");
    drain(io, 1)[&5].result.as_ref().expect("a write that grows the file");
    assert_eq!(io.len(f).expect("len"), at(10));
    io.close(f);
    io.remove("f").expect("remove");
}

fn many_in_flight<I: Io>(io: &mut I) {
    let f = io.open("m", true).expect("create");
    for i in 0..100_u64 {
        io.submit(i, IoOp::Write { file: f, offset: i * BLOCK_BYTES as u64, data: block(i as u8, 1), durable: i % 3 == 0 }).expect("submit");
    }
    for (token, done) in drain(io, 100) {
        done.result.unwrap_or_else(|e| panic!("write {token}: {e}"));
    }
    let mut all = vec![0; 100 * BLOCK_BYTES];
    assert_eq!(io.read_at(f, 0, &mut all).expect("read"), all.len());
    assert!(all.chunks(BLOCK_BYTES).enumerate().all(|(i, b)| b.iter().all(|x| usize::from(*x) == i)));
    io.close(f);
    io.remove("m").expect("remove");
}

fn a_handle_follows_its_file<I: Io>(io: &mut I) {
    let f = io.open("old", true).expect("create");
    io.rename("old", "new").expect("rename");
    io.submit(1, IoOp::Write { file: f, offset: 0, data: block(7, 1), durable: true }).expect("submit");
    drain(io, 1)[&1].result.as_ref().expect("write");
    io.close(f);
    let f = io.open("new", false).expect("open by the new name");
    let mut byte = [0];
    assert_eq!(io.read_at(f, 0, &mut byte).expect("read"), 1);
    assert_eq!(byte, [7]);
    io.close(f);
    io.remove("new").expect("remove");
}

fn bad_arguments_are_errors<I: Io>(io: &mut I) {
    assert!(io.rename("none", "other").is_err());
    assert!(io.open("none", false).is_err());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::disk::DiskIo;
    use crate::io::sim::SimDisk;
    use crate::io::std_io::StdIo;
    use crate::io::uring_io::UringIo;

    #[test]
    fn uring_conforms() {
        let dir = tempfile::tempdir().unwrap();
        check(&mut UringIo::open(dir.path()).unwrap());
    }

    #[test]
    fn uring_without_direct_io_conforms() {
        let dir = tempfile::tempdir().unwrap();
        check(&mut UringIo::buffered(dir.path()).unwrap());
    }

    #[test]
    fn std_conforms() {
        let dir = tempfile::tempdir().unwrap();
        check(&mut StdIo::open(dir.path()).unwrap());
    }

    #[test]
    fn the_picked_one_conforms() {
        let dir = tempfile::tempdir().unwrap();
        check(&mut DiskIo::open(dir.path()).unwrap());
    }

    #[test]
    fn sim_conforms() {
        for seed in 0..50 {
            check(&mut SimDisk::new(seed).open());
            let disk = SimDisk::new(seed);
            disk.set_manual(true);
            check(&mut disk.open());
        }
    }

    /// Only the simulator can cut the power, so durability is checked there.
    #[test]
    fn sim_keeps_what_is_durable_and_tears_the_rest() {
        let (mut lost, mut kept, mut torn) = (0, 0, 0);
        for seed in 0..200 {
            let disk = SimDisk::new(seed);
            let mut io = disk.open();
            let f = io.open("f", true).unwrap();
            io.submit(1, IoOp::SyncDir).unwrap();
            io.submit(2, IoOp::Write { file: f, offset: 0, data: block(1, 1), durable: true }).unwrap();
            drain(&mut io, 2);
            io.submit(3, IoOp::Write { file: f, offset: BLOCK_BYTES as u64, data: block(2, 1), durable: false }).unwrap();
            drain(&mut io, 1);
            disk.set_manual(true);
            io.submit(4, IoOp::Write { file: f, offset: 2 * BLOCK_BYTES as u64, data: block(3, 1), durable: true }).unwrap();
            disk.power_cut(seed);
            assert!(io.list().is_err(), "the process is dead");
            let mut io = disk.open();
            let f = io.open("f", false).unwrap();
            let mut all = vec![0; 3 * BLOCK_BYTES];
            let n = io.read_at(f, 0, &mut all).unwrap();
            assert!(n >= BLOCK_BYTES && all[..BLOCK_BYTES].iter().all(|b| *b == 1));
            let sectors = all[2 * BLOCK_BYTES..].chunks(512).filter(|s| s[0] == 3).count();
            match sectors {
                0 => lost += 1,
                8 => kept += 1,
                _ => torn += 1,
            }
        }
        assert!(lost > 0 && torn > 0, "{lost} lost, {kept} kept, {torn} torn");
    }

    #[test]
    fn sim_faults() {
        let disk = SimDisk::new(1);
        let mut io = disk.open();
        let f = io.open("f", true).unwrap();
        disk.fail_at(disk.operations() + 1, std::io::ErrorKind::PermissionDenied);
        io.submit(1, IoOp::Fsync { file: f }).unwrap();
        assert!(drain(&mut io, 1)[&1].result.is_err());
        disk.set_capacity(BLOCK_BYTES as u64);
        io.submit(2, IoOp::Zero { file: f, offset: 0, len: 2 * BLOCK_BYTES }).unwrap();
        assert_eq!(drain(&mut io, 1)[&2].result.as_ref().unwrap_err().kind(), std::io::ErrorKind::StorageFull);
        disk.off_at(disk.operations());
        assert!(io.submit(3, IoOp::SyncDir).is_err());
    }
}
