//! Tests of what only a directory can get wrong: cuts between two system calls, what others do in it, creation.

use super::sys::crash;
use super::*;
use crate::fop::{Attr, FileKind, RENAME_EXCHANGE, SetAttr, TimeSpec};
use crate::heal::{HealStore, STRANGER};
use crate::store::conformance::{self, Subject};
use crate::store::{DataDone, SimStore};
use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tempfile::TempDir;

/// A brick in a temporary directory.
struct InDir {
    dir: TempDir,
    store: Option<DirStore>,
}

fn new() -> InDir {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("brick");
    DirStore::create(&path, conformance::meta()).unwrap();
    let store = Some(DirStore::open(&path).unwrap());
    InDir { dir, store }
}

impl InDir {
    fn path(&self) -> PathBuf {
        self.dir.path().join("brick")
    }
}

impl Subject for InDir {
    type Store = DirStore;
    fn store(&mut self) -> &mut DirStore {
        self.store.as_mut().unwrap()
    }
    fn reopen(&mut self) {
        self.store = None;
        self.store = Some(DirStore::open(&self.path()).unwrap());
    }
}

#[test]
fn conforms() {
    conformance::run(&mut new);
}

#[test]
fn creation_refuses_what_belongs_to_a_volume() {
    let mut b = new();
    let path = b.path();
    assert!(matches!(DirStore::create(&path, conformance::meta()), Err(StoreError::AlreadyBrick { brick: 7, .. })));
    assert!(matches!(DirStore::create(&path.join("in"), conformance::meta()), Err(StoreError::InsideBrick { .. })));
    assert!(matches!(DirStore::create(b.dir.path(), conformance::meta()), Err(StoreError::ContainsBrick { .. })));
    assert!(matches!(DirStore::open(&path), Err(StoreError::Locked { .. })));
    assert!(matches!(DirStore::open(b.dir.path()), Err(StoreError::NotABrick { .. })));
    let full = b.dir.path().join("full");
    std::fs::create_dir_all(full.join("x")).unwrap();
    assert!(matches!(DirStore::create(&full, conformance::meta()), Err(StoreError::NotEmpty { .. })));
    std::fs::remove_dir(full.join("x")).unwrap();
    std::fs::create_dir(full.join(".brickraft")).unwrap();
    DirStore::create(&full, conformance::meta()).unwrap();
    b.store = None;
    let meta = path.join(".brickraft/brick");
    let mut bytes = std::fs::read(&meta).unwrap();
    bytes[20] ^= 1;
    std::fs::write(&meta, bytes).unwrap();
    assert!(matches!(DirStore::open(&path), Err(StoreError::Damaged { .. })));
    assert!(matches!(DirStore::create(&path, conformance::meta()), Err(StoreError::Damaged { .. })));
}

#[test]
fn an_emptied_or_replaced_directory_is_noticed() {
    let mut b = new();
    assert!(b.store().intact());
    std::fs::remove_file(b.path().join(".brickraft/brick")).unwrap();
    assert!(!b.store().intact());
    let mut b = new();
    std::fs::remove_dir_all(b.path()).unwrap();
    assert!(!b.store().intact());
    DirStore::create(&b.path(), conformance::meta()).unwrap();
    assert!(!b.store().intact(), "another directory under the same path");
    let mut b = new();
    std::fs::remove_dir_all(b.path().join(".brickraft/index")).unwrap();
    assert!(!b.store().intact());
}

fn id(n: u8) -> Gfid {
    Gfid::in_bucket(Bucket(u16::from(n)), [n; 14])
}

fn name(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn create(parent: Gfid, text: &str, gfid: Gfid) -> Fop {
    Fop::Create { parent, name: name(text), gfid, mode: 0o644, uid: 0, gid: 0, open: false }
}

fn mkdir(parent: Gfid, text: &str, gfid: Gfid) -> Fop {
    Fop::MkDir { parent, name: name(text), gfid, mode: 0o755, uid: 0, gid: 0 }
}

fn rename(parent: Gfid, from: &str, new_parent: Gfid, to: &str, flags: u32) -> Fop {
    Fop::Rename { parent, name: name(from), new_parent, new_name: name(to), flags }
}

const CTX: OpCtx = OpCtx { time: TimeSpec { sec: 9, nsec: 9 } };

#[test]
fn what_others_put_into_a_brick_stays_outside() {
    let mut b = new();
    let path = b.path();
    b.store().apply(&create(Gfid::ROOT, "mine", id(1)), &CTX).unwrap();
    std::fs::write(path.join("theirs"), "x").unwrap();
    std::fs::copy(path.join("mine"), path.join("copy")).unwrap();
    std::os::unix::fs::symlink("/etc", path.join("link")).unwrap();
    let lookup = |b: &mut InDir, n: &str| b.store().query(&Fop::Lookup { parent: Gfid::ROOT, name: name(n) });
    for n in ["theirs", "copy", "link"] {
        assert_eq!(lookup(&mut b, n), Err(Errno::ENOENT), "{n}");
        assert_eq!(b.store().heal_lookup(Gfid::ROOT, n.as_bytes()).unwrap().unwrap().gfid, STRANGER);
    }
    b.store().apply(&create(Gfid::ROOT, "theirs", id(2)), &CTX).unwrap();
    assert_eq!(std::fs::read(path.join(".brickraft/lost/0-theirs")).unwrap(), b"x", "moved out of the way, not destroyed");
    assert_eq!(b.store().heal_unlink(Gfid::ROOT, b"link"), Ok(()));
    // The index lost its link: the next look at the name makes it again.
    std::fs::remove_file(path.join(".brickraft/index/00/01").join(id(1).to_string())).unwrap();
    assert!(b.store().query(&Fop::GetAttr { gfid: id(1) }).is_err());
    assert!(lookup(&mut b, "mine").is_ok() && b.store().query(&Fop::GetAttr { gfid: id(1) }).is_ok());
    // A directory that somebody removed.
    b.store().apply(&mkdir(Gfid::ROOT, "d", id(3)), &CTX).unwrap();
    std::fs::remove_dir(path.join("d")).unwrap();
    assert_eq!(b.store().query(&Fop::GetAttr { gfid: id(3) }), Err(Errno::ENOENT));
    assert_eq!(b.store().apply(&create(id(3), "f", id(4)), &CTX), Err(Errno::ENOENT));
    // A directory that was replaced by a symbolic link leads nowhere.
    b.store().apply(&mkdir(Gfid::ROOT, "e", id(5)), &CTX).unwrap();
    b.reopen();
    std::fs::remove_dir(path.join("e")).unwrap();
    std::os::unix::fs::symlink("/tmp", path.join("e")).unwrap();
    assert_eq!(b.store().apply(&create(id(5), "f", id(6)), &CTX), Err(Errno::ENOENT));
}

/// Everything that a user can see, by path.
fn tree<S: BrickStore + ?Sized>(store: &mut S) -> BTreeMap<Vec<u8>, (Attr, Vec<(Bytes, Bytes)>, Bytes)> {
    let mut out = BTreeMap::new();
    let mut todo = vec![(Vec::new(), Gfid::ROOT)];
    while let Some((path, gfid)) = todo.pop() {
        let Ok(Reply::Attr(mut attr)) = store.query(&Fop::GetAttr { gfid }) else { panic!("{gfid} is listed and not there") };
        (attr.ctime, attr.blocks) = (TimeSpec::default(), 0);
        let content = match attr.kind {
            FileKind::File => store.heal_read(gfid, 0, 1 << 20).unwrap(),
            FileKind::Symlink => store.heal_readlink(gfid).unwrap(),
            FileKind::Dir => {
                attr.size = 0;
                let Ok(Reply::Entries { entries, end: true }) = store.query(&Fop::ReadDir { gfid, cookie: 0, bytes: 1 << 20, plus: false }) else { panic!() };
                for e in entries {
                    todo.push(([&path[..], b"/", &e.name].concat(), e.gfid));
                }
                Bytes::new()
            }
            _ => Bytes::new(),
        };
        // Nobody sets the atime of what is only read.
        attr.atime = TimeSpec::default();
        out.insert(path, (attr, store.heal_xattrs(gfid).unwrap(), content));
    }
    out
}

/// A change out of a small world, so that it often meets what is there.
fn any_change(rng: &mut SmallRng, fresh: &mut u8) -> Fop {
    let dirs = [Gfid::ROOT, id(1), id(2), id(3)];
    let parent = dirs[rng.random_range(0..4)];
    let names = ["a", "b", "c", "d"];
    let text = name(names[rng.random_range(0..4)]);
    let object = id(rng.random_range(1..40));
    *fresh = fresh.wrapping_add(1).max(10);
    let new = if rng.random_bool(0.8) { id(*fresh) } else { object };
    match rng.random_range(0..14) {
        0 | 1 => Fop::Create { parent, name: text, gfid: new, mode: rng.random_range(0..0o7777), uid: 1, gid: 2, open: false },
        2 | 3 => Fop::MkDir { parent, name: text, gfid: id(rng.random_range(1..6)), mode: rng.random_range(0..0o7777), uid: 1, gid: 2 },
        4 => Fop::Symlink { parent, name: text, gfid: new, target: name("some/where"), uid: 1, gid: 2 },
        5 => Fop::MkNod { parent, name: text, gfid: new, kind: FileKind::Fifo, mode: 0o644, rdev: 0, uid: 1, gid: 2 },
        6 => Fop::Link { gfid: object, parent, name: text },
        7 => Fop::Unlink { parent, name: text },
        8 => Fop::RmDir { parent, name: text },
        9 | 10 => {
            let (to, new_name) = (dirs[rng.random_range(0..4)], name(names[rng.random_range(0..4)]));
            Fop::Rename { parent, name: text, new_parent: to, new_name, flags: rng.random_range(0..4) }
        }
        11 => {
            let set = SetAttr {
                mode: rng.random_bool(0.5).then(|| rng.random_range(0..0o7777)),
                uid: rng.random_bool(0.3).then_some(5),
                gid: rng.random_bool(0.3).then_some(6),
                size: rng.random_bool(0.3).then(|| rng.random_range(0..20_000)),
                atime: None,
                mtime: rng.random_bool(0.3).then_some(TimeSpec { sec: 3, nsec: 4 }),
            };
            Fop::SetAttr { gfid: object, set }
        }
        12 => {
            let (gfid, name) = (object, name("user.x"));
            if rng.random_bool(0.3) { Fop::RemoveXattr { gfid, name } } else { Fop::SetXattr { gfid, name, value: text, flags: rng.random_range(0..3) } }
        }
        _ => Fop::Fallocate { gfid: object, offset: rng.random_range(0..9_000), len: rng.random_range(0..9_000), mode: [0, 1, 3][rng.random_range(0..3)] },
    }
}

fn shown(result: crate::fop::FopResult) -> String {
    match result {
        Ok(Reply::Attr(a)) => {
            let size = if a.kind == FileKind::Dir { 0 } else { a.size };
            format!("{:?}", (a.gfid, a.kind, a.mode, a.nlink, a.uid, a.gid, a.rdev, size, a.mtime))
        }
        other => format!("{other:?}"),
    }
}

#[test]
fn directory_and_memory_agree() {
    for seed in 0..40 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let (mut b, mut sim, mut fresh) = (new(), SimStore::new(conformance::meta()), 0);
        // The roots were born differently.
        let root = Fop::SetAttr { gfid: Gfid::ROOT, set: SetAttr { mode: Some(0o755), uid: Some(0), gid: Some(0), mtime: Some(CTX.time), ..SetAttr::default() } };
        b.store().apply(&root, &CTX).unwrap();
        sim.apply(&root, &CTX).unwrap();
        for step in 0..200 {
            let ctx = OpCtx { time: TimeSpec { sec: 100 + step, nsec: 1 } };
            if rng.random_bool(0.15) {
                let (gfid, offset) = (id(rng.random_range(1..40)), rng.random_range(0..10_000));
                let op = DataOp::Write { gfid, offset, data: vec![step as u8; rng.random_range(1..9_000)].into(), time: ctx.time };
                let (x, y) = (conformance::data(b.store(), op.clone()), conformance::data(&mut sim, op));
                match (x, y) {
                    (DataDone::Write(x), DataDone::Write(y)) => assert_eq!(shown(x.map(Reply::Attr)), shown(y.map(Reply::Attr)), "seed {seed}, step {step}"),
                    other => panic!("{other:?}"),
                }
                continue;
            }
            if rng.random_bool(0.05) {
                let (gfid, keep) = (id(rng.random_range(10..40)), rng.random_bool(0.7));
                assert_eq!(b.store().keep_orphan(gfid, keep), sim.keep_orphan(gfid, keep));
                continue;
            }
            let fop = any_change(&mut rng, &mut fresh);
            let (x, y) = (shown(b.store().apply(&fop, &ctx)), shown(sim.apply(&fop, &ctx)));
            assert_eq!(x, y, "seed {seed}, step {step}: {fop:?}");
            assert!(b.store().dirty().iter().all(|d| d.0 < 256));
        }
        assert_eq!(tree(b.store()), tree(&mut sim), "seed {seed}");
        assert_eq!(b.store().orphans(), sim.orphans(), "seed {seed}");
        b.reopen();
        assert_eq!(tree(b.store()), tree(&mut sim), "seed {seed}, reopened");
    }
}

/// No index entry without its object, no object without its index entry.
fn check_index(b: &mut InDir) {
    for n in 0..=255u16 {
        for gfid in b.store().heal_objects(Bucket(n), None, 1_000).unwrap() {
            let (attr, _) = b.store().heal_stat(gfid).unwrap_or_else(|e| panic!("{gfid} is in the index and not there: {e}"));
            assert!(attr.nlink > 0, "{gfid} has no name");
        }
    }
    assert!(std::fs::read_dir(b.path().join(".brickraft/tmp")).unwrap().next().is_none());
}

#[test]
fn a_change_that_is_cut_happened_wholly_or_not_at_all() {
    std::panic::set_hook(Box::new(|info| {
        if !info.payload().is::<crash::Killed>() {
            eprintln!("{info}");
        }
    }));
    let cases = [
        create(Gfid::ROOT, "new", id(9)),
        mkdir(id(1), "new", id(9)),
        Fop::Symlink { parent: id(1), name: name("new"), gfid: id(9), target: name("x"), uid: 0, gid: 0 },
        Fop::Link { gfid: id(3), parent: Gfid::ROOT, name: name("l") },
        Fop::Unlink { parent: id(1), name: name("f") },
        Fop::Unlink { parent: id(1), name: name("open") },
        Fop::RmDir { parent: Gfid::ROOT, name: name("empty") },
        rename(id(1), "f", Gfid::ROOT, "g", 0),
        rename(id(1), "f", id(1), "open", 0),
        rename(Gfid::ROOT, "d", Gfid::ROOT, "empty", 0),
        rename(id(1), "sub", Gfid::ROOT, "sub2", 0),
        rename(id(1), "sub", Gfid::ROOT, "empty", RENAME_EXCHANGE),
        rename(id(1), "f", Gfid::ROOT, "empty", RENAME_EXCHANGE),
    ];
    for fop in cases {
        for n in 0.. {
            let mut b = new();
            for made in [mkdir(Gfid::ROOT, "d", id(1)), mkdir(Gfid::ROOT, "empty", id(2)), create(id(1), "f", id(3)), create(id(1), "open", id(4)), mkdir(id(1), "sub", id(5)), create(id(5), "deep", id(6))] {
                b.store().apply(&made, &CTX).unwrap();
            }
            b.store().keep_orphan(id(4), true).unwrap();
            b.store().reset_dirty(&BucketSet::new()).unwrap();
            let names = |b: &mut InDir| tree(b.store()).into_iter().map(|(path, (attr, ..))| (path, attr.gfid, attr.kind)).collect::<Vec<_>>();
            let before = names(&mut b);
            crash::arm(Some(n));
            let killed = catch_unwind(AssertUnwindSafe(|| b.store().apply(&fop, &CTX))).is_err();
            crash::arm(None);
            b.reopen();
            check_index(&mut b);
            let cut = names(&mut b);
            // Once more, as a heal or a retry would; what was done already may be refused.
            let again = b.store().apply(&fop, &CTX);
            b.reopen();
            check_index(&mut b);
            if cut == before {
                assert!(again.is_ok(), "{fop:?} at {n}: {again:?}");
            } else {
                assert!(!b.store().dirty().is_empty());
            }
            if !matches!(fop, Fop::Rename { flags: RENAME_EXCHANGE, .. }) {
                let after = names(&mut b);
                assert!(cut == before || cut == after, "{fop:?} at {n}: half done: {cut:?}");
            }
            if !killed {
                assert!(n >= 2);
                break;
            }
        }
    }
}
