//! Power is cut at every step. What was synced is there, to the byte; of the rest each byte is one of those that it was since.

use super::*;
use crate::union::Caller;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;

const SIZE_MAX: usize = 150;

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Truncate(usize),
    /// Offset, length, mode.
    Allocate(usize, usize, u32),
    Sync,
    Complete(u64),
    Chmod(u32),
    Rename,
    /// Something else takes its name.
    Replace,
    Unlink,
    /// In order, without a crash.
    Remount,
}

struct World {
    upper: Arc<SimBranch>,
    lower: Arc<SimBranch>,
}

impl World {
    fn new() -> Self {
        let [upper, lower] = [1, 2].map(|dev| Arc::new(SimBranch::new(dev)));
        super::super::put(&*lower, "/d/f", FileKind::File, &text(100));
        lower.settle();
        Self { upper, lower }
    }

    fn union(&self, upper: &Arc<SimBranch>) -> Union {
        Union::open(lazily(vec![sim_branch("upper", upper, Perm::RW), sim_branch("lower", &self.lower, Perm::RO)])).expect("open")
    }

    /// What each name holds after a power cut; the files of which unsynced data survives are chosen by `luck`.
    fn after_cut(&self, steps: usize, luck: u64) -> BTreeMap<String, Vec<u8>> {
        let keep = |ino: u64| match luck {
            0 => false,
            1 => true,
            luck => (ino.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (luck % 60)) & 1 == 1,
        };
        let cut = Arc::new(self.upper.cut_by(steps, keep));
        let union = self.union(&cut);
        let shown = files(&union);
        let (bitmaps, marks) = on_disk(&*cut);
        assert!(bitmaps.iter().all(|id| marks.contains(id)), "a bitmap is left: {bitmaps:?}, {marks:?}");
        // Where it goes on from there it stays right.
        for (path, content) in &shown {
            let ino = walk(&union, path).expect("walk");
            while !union.complete(ino, 20).unwrap_or_else(|e| panic!("complete {path}: {e}")) {}
            assert_eq!(&super::content(&union, ino).expect("read"), content, "completed");
        }
        let (bitmaps, marks) = on_disk(&*cut);
        assert_eq!((bitmaps.len(), marks.len()), (0, 0), "all is whole");
        shown
    }
}

fn files(union: &Union) -> BTreeMap<String, Vec<u8>> {
    let mut out = BTreeMap::new();
    for path in ["d/f", "d/g"] {
        if let Ok(ino) = walk(union, path) {
            out.insert(path.to_owned(), content(union, ino).unwrap_or_else(|e| panic!("read {path}: {e}")));
        }
    }
    out
}

/// One state that a file may come back in.
type Past = Vec<BTreeMap<String, Vec<u8>>>;

/// Whether it is as long as it was once, and each byte is one that it was.
fn was(shown: &[u8], past: &[&Vec<u8>]) -> bool {
    past.iter().any(|p| p.len() == shown.len()) && shown.iter().enumerate().all(|(i, byte)| past.iter().any(|p| p.get(i) == Some(byte)))
}

fn act(union: &Union, change: &Change) {
    let dir = walk(union, "d").expect("the directory");
    let Ok(ino) = walk(union, "d/f") else { return };
    let done = match change {
        Change::Write(at, data) => union.write(ino, *at as u64, data, false),
        Change::Truncate(size) => truncate(union, ino, *size as u64),
        Change::Allocate(at, len, mode) => union.fallocate(ino, *at as u64, *len as u64, *mode),
        Change::Sync => union.fsync(ino, true),
        Change::Complete(bytes) => union.complete(ino, *bytes).map(drop),
        Change::Chmod(mode) => union.setattr(ino, &SetAttr { mode: Some(*mode), ..SetAttr::default() }, false).map(drop),
        Change::Rename => union.rename(dir, b"f", dir, b"g", 0).and_then(|()| union.rename(dir, b"g", dir, b"f", 0)),
        Change::Replace => {
            let made = union.mknod(dir, b"g", FileKind::File, 0o644, 0, &Caller::default());
            made.and_then(|made| union.write(made.ino, 0, b"other", false).and_then(|()| union.fsync(made.ino, true)))
                .and_then(|()| union.rename(dir, b"g", dir, b"f", 0))
        }
        Change::Unlink => union.unlink(dir, b"f"),
        Change::Remount => return,
    };
    done.unwrap_or_else(|e| panic!("{change:?}: {e}"));
}

/// Carries out changes, and cuts the power at each of their steps.
fn cut_everywhere(changes: &[Change], context: &str) {
    let world = World::new();
    let mut union = world.union(&world.upper);
    world.upper.settle();
    let mut past: Past = vec![files(&union)];
    let mut from = 0;
    for (n, change) in changes.iter().enumerate() {
        if matches!(change, Change::Remount) {
            union.close();
            union = world.union(&world.upper);
        }
        act(&union, change);
        past.push(files(&union));
        let steps = world.upper.steps();
        for step in from..=steps {
            for luck in [0, 1, 7, 13, 29] {
                let shown = world.after_cut(step, luck);
                for path in ["d/f", "d/g"] {
                    let at_all: Vec<&Vec<u8>> = past.iter().filter_map(|p| p.get(path)).collect();
                    let is_between = path == "d/g" && matches!(change, Change::Rename | Change::Replace);
                    match shown.get(path) {
                        _ if is_between => {}
                        None => assert!(
                            past.iter().any(|p| !p.contains_key(path)) || matches!(change, Change::Rename),
                            "{context}: {path} is gone after step {step} of change {n}, {change:?}"
                        ),
                        Some(bytes) => assert!(
                            was(bytes, &at_all),
                            "{context}: change {n} of {changes:?} cut after step {step} of {from} to {steps}, luck {luck}:\n{}\nis none of\n{}",
                            String::from_utf8_lossy(bytes),
                            at_all.iter().map(|p| String::from_utf8_lossy(p).into_owned()).collect::<Vec<_>>().join("\n")
                        ),
                    }
                }
            }
        }
        // From the last step on there is nothing but what was synced.
        if matches!(change, Change::Sync) {
            past.drain(..past.len() - 1);
            for luck in [0, 1, 7, 13, 29] {
                assert_eq!(&world.after_cut(steps, luck), &past[0], "{context}: change {n} of {changes:?}: synced, and lost");
            }
        }
        from = steps;
    }
}

#[test]
fn every_step_shows_what_was_synced_and_no_more_than_was_written() {
    let write = |at, len| Change::Write(at, vec![b'W'; len]);
    let cases: &[&[Change]] = &[
        &[write(5, 3), Change::Sync, write(0, 100), Change::Sync],
        &[write(16, 16), write(40, 30), Change::Sync, write(20, 1), Change::Complete(1000)],
        &[Change::Truncate(70), Change::Truncate(100), Change::Sync, Change::Complete(30), Change::Sync],
        &[write(0, 1), Change::Sync, Change::Truncate(37), Change::Truncate(90), Change::Sync, write(30, 20), Change::Sync],
        &[write(0, 1), Change::Truncate(37), write(60, 10), Change::Sync, Change::Truncate(0), write(0, 100), Change::Sync],
        &[Change::Chmod(0o600), Change::Allocate(10, 50, 3), Change::Sync, Change::Allocate(90, 30, 16), Change::Sync],
        &[write(0, 1), Change::Sync, Change::Unlink],
        &[write(0, 1), Change::Sync, Change::Replace],
        &[write(0, 1), Change::Rename, Change::Sync, write(50, 20), Change::Remount, write(0, 100), Change::Sync],
    ];
    for (i, case) in cases.iter().enumerate() {
        cut_everywhere(case, &format!("case {i}"));
    }
}

#[test]
fn random_changes_of_lazy_copies_survive_a_cut_at_every_step() {
    for seed in 0..120 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let changes: Vec<Change> = (0..14)
            .map(|_| {
                let (at, len) = (rng.random_range(0..SIZE_MAX), rng.random_range(1..50));
                match rng.random_range(0..20) {
                    0..8 => Change::Write(at, vec![rng.random_range(b'0'..=b'9'); len]),
                    8..10 => Change::Truncate(at),
                    10..12 => Change::Allocate(at, len, [1, 3, 17, 16][rng.random_range(0..4)]),
                    12..15 => Change::Sync,
                    15 => Change::Complete(rng.random_range(1..60)),
                    16 => Change::Rename,
                    17 => Change::Remount,
                    18 => Change::Chmod(0o640),
                    _ if seed % 4 == 0 => Change::Replace,
                    _ => Change::Write(at / 16 * 16, vec![b'#'; 16]),
                }
            })
            .collect();
        cut_everywhere(&changes, &format!("seed {seed}"));
    }
}
