//! The same between the real stores: two `SimStore`s, two `DirStore`s, and one of each. Changes go in as fops.

use super::*;
use crate::fop::{Attr, Fop, Reply, SetAttr, TimeSpec};
use crate::store::{BrickMeta, BrickStore, DataDone, DataOp, DirStore, OpCtx, SimStore};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;

const ROOT_ONLY: &str = "trusted.* attributes need root";

fn meta() -> BrickMeta {
    BrickMeta { volume: 1, brick: 1, incarnation: 1, ..BrickMeta::default() }
}

pub(super) fn dir_store(dir: &tempfile::TempDir) -> DirStore {
    let path = dir.path().join("brick");
    DirStore::create(&path, meta()).expect(ROOT_ONLY);
    DirStore::open(&path).expect("open the brick just made")
}

/// Random changes, the same for the same seed on any store.
pub(super) struct Changes {
    rng: SmallRng,
    dirs: Vec<Gfid>,
    files: Vec<Gfid>,
    time: i64,
}

impl Changes {
    pub(super) fn new(seed: u64) -> Self {
        Self { rng: SmallRng::seed_from_u64(seed), dirs: vec![Gfid::ROOT], files: Vec::new(), time: 1_000_000 }
    }

    fn pick(&mut self, of_dirs: bool) -> Gfid {
        let from = if of_dirs || self.files.is_empty() { &self.dirs } else { &self.files };
        from[self.rng.random_range(0..from.len())]
    }

    fn fop(&mut self) -> (Fop, Bytes) {
        let (parent, new_parent) = (self.pick(true), self.pick(true));
        let mut name = || Bytes::from(format!("n{}", self.rng.random_range(0..9)));
        let (name, new_name) = (name(), name());
        let mut id: [u8; 16] = self.rng.random();
        (id[0], id[1]) = (0, id[1] % 6);
        let (gfid, mode, uid, gid) = (Gfid(id), 0o640, 7, 8);
        let file = self.pick(false);
        let mut data = Bytes::new();
        let fop = match self.rng.random_range(0..16) {
            0..3 => {
                self.files.push(gfid);
                Fop::Create { parent, name, gfid, mode, uid, gid, open: false }
            }
            3..5 => {
                self.dirs.push(gfid);
                Fop::MkDir { parent, name, gfid, mode: 0o2750, uid, gid }
            }
            5 => Fop::Symlink { parent, name, gfid, target: "/etc/passwd".into(), uid, gid },
            6 => Fop::MkNod { parent, name, gfid, kind: FileKind::CharDevice, mode, rdev: 0x103, uid, gid },
            7 => Fop::Link { gfid: file, parent: new_parent, name: new_name },
            8 => Fop::Unlink { parent, name },
            9 => Fop::RmDir { parent, name },
            10 | 11 => Fop::Rename { parent, name, new_parent, new_name, flags: self.rng.random_range(0..3) },
            12 | 13 => {
                data = (0..self.rng.random_range(1..9000)).map(|_| self.rng.random::<u8>()).collect();
                Fop::Write { gfid: file, offset: self.rng.random_range(0..400_000) }
            }
            14 => Fop::SetXattr { gfid: file, name: "user.color".into(), value: name, flags: 0 },
            _ => {
                let size = self.files.contains(&file).then(|| self.rng.random_range(0..500_000));
                Fop::SetAttr { gfid: file, set: SetAttr { mode: Some(0o604), size, ..SetAttr::default() } }
            }
        };
        (fop, data)
    }

    pub(super) fn apply(&mut self, store: &mut impl BrickStore, changes: usize) {
        for _ in 0..changes {
            let (fop, data) = self.fop();
            self.time += 1;
            let time = TimeSpec { sec: self.time, nsec: 77 };
            if let Fop::Write { gfid, offset } = fop {
                store.submit(1, DataOp::Write { gfid, offset, data, time });
                let mut done = Vec::new();
                while done.is_empty() {
                    store.reap(&mut done);
                }
                assert!(matches!(done[0].1, DataDone::Write(_)));
            } else if let Err(e) = store.apply(&fop, &OpCtx { time }) {
                assert!(![Errno::EIO, Errno::ENOSPC].contains(&e), "{fop:?}: {e}");
            }
        }
    }
}

pub(super) type Picture = BTreeMap<Gfid, (String, Vec<(Bytes, Gfid)>, Vec<(Bytes, Bytes)>, Vec<(u64, u128)>)>;

/// Everything of a brick that must be equal.
pub(super) fn picture(store: &mut impl HealStore) -> Picture {
    let mut all = Picture::new();
    for bucket in (0..8).map(Bucket) {
        for gfid in store.heal_objects(bucket, None, usize::MAX).unwrap() {
            let (attr, place) = match store.heal_stat(gfid) {
                // A directory that was lost and nobody has.
                Err(Errno::ENOENT) if store.heal_lost(gfid, false) == Ok(true) => continue,
                other => other.unwrap(),
            };
            let Attr { kind, mode, nlink, uid, gid, rdev, mtime, size, .. } = attr;
            let is_dir = kind == FileKind::Dir;
            let (size, nlink) = if is_dir { (0, 0) } else { (size, nlink) };
            let target = (kind == FileKind::Symlink).then(|| store.heal_readlink(gfid).unwrap());
            let head = format!("{kind:?} {mode:o} {nlink} {uid} {gid} {rdev} {size} {mtime:?} {place:?} {target:?}");
            let mut names = Vec::new();
            if is_dir {
                names.extend(store.heal_entries(gfid, 0, usize::MAX).unwrap().0.into_iter().map(|e| (e.name, e.gfid)));
                names.sort();
            }
            let mut sums = Vec::new();
            if kind == FileKind::File {
                let call = HealCall::Sums { gfid, offset: 0, end: u64::MAX };
                let Ok(HealReturn::Sums { chunks, next: None }) = execute(store, &call) else { panic!("sums of {gfid}") };
                sums = chunks;
            }
            all.insert(gfid, (head, names, store.heal_xattrs(gfid).unwrap(), sums));
        }
    }
    assert_eq!(store.heal_limbo().unwrap(), []);
    all
}

pub(super) fn assert_same(a: &mut impl HealStore, b: &mut impl HealStore, seed: u64) {
    assert_same_pictures(&picture(a), &picture(b), seed);
}

pub(super) fn assert_same_pictures(a: &Picture, b: &Picture, seed: u64) {
    for g in a.keys().chain(b.keys()) {
        assert_eq!(a.get(g), b.get(g), "seed {seed}: object {g}");
    }
}

fn heal(source: &mut impl HealStore, target: &mut impl HealStore, plan: HealPlan, calls_max: usize) -> Option<Progress> {
    let (ended, progress) = heal_with(Healer::new(Direction::Push, plan), source, target, calls_max)?;
    assert_eq!(ended, Ok(()));
    Some(progress)
}

/// How it ended, unless that took more than `calls_max` calls.
pub(super) fn heal_with(
    mut healer: Healer,
    source: &mut impl HealStore,
    target: &mut impl HealStore,
    calls_max: usize,
) -> Option<(Result<(), Errno>, Progress)> {
    let mut calls = 0;
    while healer.step(NOW, &mut |c| execute(source, c)) != Step::Finished {
        while let Some((id, call)) = healer.poll_call() {
            calls += 1;
            if calls > calls_max {
                return None;
            }
            healer.on_return(id, execute(target, &call));
        }
    }
    Some((healer.finished().expect("it has finished"), healer.progress(NOW)))
}

/// An old target, a wiped one, and one cut off in the middle.
fn pair<S: BrickStore + HealStore, T: BrickStore + HealStore>(mut source: S, mut targets: [T; 3], seed: u64) {
    let mut changes = Changes::new(seed);
    changes.apply(&mut source, 100);
    Changes::new(seed).apply(&mut targets[0], 100);
    assert_same(&mut source, &mut targets[0], seed);
    // Both go on, differently.
    let mut other = Changes::new(seed);
    other.dirs.clone_from(&changes.dirs);
    other.files.clone_from(&changes.files);
    other.rng = SmallRng::seed_from_u64(seed ^ 0xffff);
    changes.apply(&mut source, 60);
    other.apply(&mut targets[0], 40);
    other.apply(&mut targets[2], 60);
    heal(&mut source, &mut targets[2], buckets(), 10 + seed as usize * 3);
    for target in &mut targets {
        let p = heal(&mut source, target, buckets(), usize::MAX).expect("not cut off");
        assert_same(&mut source, target, seed);
        assert_eq!(p.unresolved, 0, "seed {seed}");
        let again = heal(&mut source, target, buckets(), usize::MAX).expect("not cut off");
        assert_eq!((again.objects_healed, again.objects_removed, again.bytes_sent), (0, 0, 0), "seed {seed}");
    }
}

#[test]
fn simulated_stores_become_equal() {
    for seed in 0..40 {
        pair(SimStore::new(meta()), std::array::from_fn(|_| SimStore::new(meta())), seed);
    }
}

#[test]
fn directories_become_equal() {
    for seed in 0..6 {
        let temp: [_; 4] = std::array::from_fn(|_| tempfile::tempdir().expect("make a temporary directory"));
        pair(dir_store(&temp[3]), std::array::from_fn(|i| dir_store(&temp[i])), seed);
    }
}

#[test]
fn a_directory_and_a_simulated_store_become_equal() {
    for seed in 20..23 {
        let temp: [_; 3] = std::array::from_fn(|_| tempfile::tempdir().expect("make a temporary directory"));
        pair(SimStore::new(meta()), std::array::from_fn(|i| dir_store(&temp[i])), seed);
    }
}

/// The dirty bitmaps of both sides name every bucket that differs.
#[test]
fn a_heal_of_the_dirty_buckets_is_enough() {
    for seed in 0..40 {
        let (mut source, mut target) = (SimStore::new(meta()), SimStore::new(meta()));
        let mut changes = Changes::new(seed);
        changes.apply(&mut source, 100);
        heal(&mut source, &mut target, buckets(), usize::MAX);
        for s in [&mut source, &mut target] {
            s.reset_dirty(&crate::store::BucketSet::new()).expect("clear the bitmap");
        }
        changes.apply(&mut source, 30);
        Changes { rng: SmallRng::seed_from_u64(seed), ..changes }.apply(&mut target, 30);
        let mut dirty = source.dirty().clone();
        dirty.union_with(target.dirty());
        let p = heal(&mut source, &mut target, HealPlan::buckets(dirty.iter()), usize::MAX).expect("not cut off");
        assert_same(&mut source, &mut target, seed);
        assert_eq!(p.unresolved, 0, "seed {seed}");
    }
}

/// What somebody does in the brick's directory with plain tools is found and mended.
#[test]
fn files_altered_in_the_brick_directory_are_mended() {
    let temp: [_; 2] = std::array::from_fn(|_| tempfile::tempdir().expect("make a temporary directory"));
    let (mut a, mut b) = (dir_store(&temp[0]), dir_store(&temp[1]));
    let ctx = |sec| OpCtx { time: TimeSpec { sec, nsec: 0 } };
    let (docs, kept, lost) = (gfid(1, 1), gfid(2, 2), gfid(3, 3));
    for s in [&mut a, &mut b] {
        let (uid, gid) = (0, 0);
        let mkdir = Fop::MkDir { parent: Gfid::ROOT, name: "docs".into(), gfid: docs, mode: 0o755, uid, gid };
        assert!(matches!(s.apply(&mkdir, &ctx(1)), Ok(Reply::Attr(_))));
        for (name, g) in [("kept", kept), ("lost", lost)] {
            let create = Fop::Create { parent: docs, name: name.into(), gfid: g, mode: 0o644, uid, gid, open: false };
            assert!(matches!(s.apply(&create, &ctx(2)), Ok(Reply::Attr(_))));
            s.submit(1, DataOp::Write { gfid: g, offset: 0, data: "what was written".into(), time: ctx(3).time });
            let mut done = Vec::new();
            while done.is_empty() {
                s.reap(&mut done);
            }
        }
    }
    let scrub = |a: &mut DirStore, b: &mut DirStore| {
        let mut scrubber = scrub::Scrubber::new(buckets(), true);
        while scrubber.step(&mut |c| execute(a, c)) != Step::Finished {
            while let Some((id, call)) = scrubber.poll_call() {
                scrubber.on_return(id, execute(b, &call));
            }
        }
        scrubber.report()
    };
    assert!(scrub(&mut a, &mut b).findings.is_empty());
    let path = temp[1].path().join("brick/docs");
    std::fs::write(path.join("kept"), "something else").expect("alter a file");
    std::fs::remove_file(path.join("lost")).expect("remove a file");
    std::fs::write(path.join("stray"), "not ours").expect("drop a file");
    std::fs::rename(&path, temp[1].path().join("brick/renamed")).expect("rename a directory");
    let report = scrub(&mut a, &mut b);
    assert!(!report.findings.is_empty());
    let p = heal(&mut a, &mut b, buckets(), usize::MAX).expect("not cut off");
    assert_same(&mut a, &mut b, 0);
    assert_eq!(p.unresolved, 0);
    assert!(!path.join("stray").exists() && !temp[1].path().join("brick/renamed").exists());
}

/// The target loses power at some call of a heal; the next one makes it equal all the same.
#[test]
fn a_power_cut_in_a_heal_costs_only_time() {
    for seed in 0..30 {
        let (mut source, mut target) = (SimStore::new(meta()), SimStore::new(meta()));
        let mut changes = Changes::new(seed);
        changes.apply(&mut source, 80);
        heal(&mut source, &mut target, buckets(), usize::MAX);
        changes.apply(&mut source, 60);
        for cut in (0..120).step_by(7) {
            heal(&mut source, &mut target, buckets(), cut + seed as usize % 7);
            target.power_cut(&mut changes.rng);
        }
        let p = heal(&mut source, &mut target, buckets(), usize::MAX).expect("not cut off");
        assert_same(&mut source, &mut target, seed);
        assert_eq!(p.unresolved, 0, "seed {seed}");
    }
}

#[test]
fn a_full_heal_goes_over_every_bucket() {
    let (mut source, mut target) = (SimStore::new(meta()), SimStore::new(meta()));
    let mut changes = Changes::new(1);
    changes.apply(&mut source, 80);
    let p = heal(&mut source, &mut target, HealPlan::full(), usize::MAX).expect("not cut off");
    assert_same(&mut source, &mut target, 1);
    assert_eq!((p.units_done, p.units_left, p.unresolved), (1 << 16, 0, 0));
}
