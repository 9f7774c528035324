//! What every [`BrickStore`] must do. Both stores pass it; a third one has to.

use super::{BrickMeta, BrickStore, BucketSet, DataDone, DataOp, OpCtx};
use crate::fop::{Attr, Bucket, Errno, FileKind, Fop, FopResult, Gfid, RENAME_EXCHANGE, RENAME_NOREPLACE, Reply, SetAttr, TimeSpec};
use crate::heal::{ExactAttr, HealStore, Place, STRANGER};
use bytes::Bytes;
use std::collections::BTreeMap;

/// A store under test, and how to close and open it again (no power cut).
pub trait Subject {
    /// The store.
    type Store: BrickStore + HealStore;
    /// The store as it is now.
    fn store(&mut self) -> &mut Self::Store;
    /// Closes it in an orderly way and opens it again.
    fn reopen(&mut self);
}

/// What a new brick under test is given.
#[must_use]
pub fn meta() -> BrickMeta {
    BrickMeta { volume: 0x1234 << 100, brick: 7, incarnation: 1, epoch: 2, synced_epoch: 0, held: 0 }
}

/// Runs all of it, each case on a new subject.
pub fn run<S: Subject>(new: &mut dyn FnMut() -> S) {
    let cases: &[(&str, fn(&mut S))] = &[
        ("create_and_look_up", create_and_look_up),
        ("creating_again_succeeds", creating_again_succeeds),
        ("names_are_checked", names_are_checked),
        ("private_is_invisible", private_is_invisible),
        ("all_kinds", all_kinds),
        ("read_and_write", read_and_write),
        ("attributes", attributes),
        ("directories_are_removed_when_empty", directories_are_removed_when_empty),
        ("links", links),
        ("rename_files", rename_files),
        ("rename_directories", rename_directories),
        ("exchange", exchange),
        ("orphans", orphans),
        ("extended_attributes", extended_attributes),
        ("listing_while_it_changes", listing_while_it_changes),
        ("set_gid_directories", set_gid_directories),
        ("space", space),
        ("marks", marks),
        ("identity", identity),
        ("heal_makes_and_moves", heal_makes_and_moves),
        ("heal_lists", heal_lists),
    ];
    for (name, case) in cases {
        tracing::debug!(name, "conformance");
        let mut subject = new();
        case(&mut subject);
    }
}

/// A gfid in bucket `n >> 8`.
fn id(n: u16) -> Gfid {
    Gfid::in_bucket(Bucket(n >> 8), [n as u8; 14])
}

const fn at(sec: i64) -> OpCtx {
    OpCtx { time: TimeSpec { sec, nsec: 5 } }
}

fn b(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn create(parent: Gfid, name: &str, gfid: Gfid) -> Fop {
    Fop::Create { parent, name: b(name), gfid, mode: 0o640, uid: 3, gid: 4, open: false }
}

fn mkdir(parent: Gfid, name: &str, gfid: Gfid) -> Fop {
    Fop::MkDir { parent, name: b(name), gfid, mode: 0o750, uid: 3, gid: 4 }
}

fn rename(parent: Gfid, name: &str, new_parent: Gfid, new_name: &str, flags: u32) -> Fop {
    Fop::Rename { parent, name: b(name), new_parent, new_name: b(new_name), flags }
}

fn unlink(parent: Gfid, name: &str) -> Fop {
    Fop::Unlink { parent, name: b(name) }
}

fn do_it<S: Subject>(s: &mut S, fop: &Fop, sec: i64) -> FopResult {
    s.store().apply(fop, &at(sec))
}

fn must<S: Subject>(s: &mut S, fop: &Fop) {
    if let Err(e) = do_it(s, fop, 100) {
        panic!("{fop:?}: {e}");
    }
}

fn lookup<S: Subject>(s: &mut S, parent: Gfid, name: &str) -> Result<Attr, Errno> {
    attr_in(s.store().query(&Fop::Lookup { parent, name: b(name) }))
}

fn stat<S: Subject>(s: &mut S, gfid: Gfid) -> Result<Attr, Errno> {
    attr_in(s.store().query(&Fop::GetAttr { gfid }))
}

fn attr_in(result: FopResult) -> Result<Attr, Errno> {
    match result? {
        Reply::Attr(a) => Ok(a),
        other => panic!("not attributes: {other:?}"),
    }
}

/// Runs a data operation to its end.
pub fn data<B: BrickStore + ?Sized>(store: &mut B, op: DataOp) -> DataDone {
    store.submit(77, op);
    let mut out = Vec::new();
    for _ in 0..10_000 {
        store.reap(&mut out);
        if let Some((token, done)) = out.pop() {
            assert_eq!(token, 77);
            return done;
        }
        if store.ready_fd().is_some() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
    panic!("the operation did not end");
}

fn write<S: Subject>(s: &mut S, gfid: Gfid, offset: u64, text: &[u8], sec: i64) -> Result<Attr, Errno> {
    match data(s.store(), DataOp::Write { gfid, offset, data: Bytes::copy_from_slice(text), time: at(sec).time }) {
        DataDone::Write(result) => result,
        other => panic!("{other:?}"),
    }
}

fn read<S: Subject>(s: &mut S, gfid: Gfid, offset: u64, len: u32) -> Result<Bytes, Errno> {
    match data(s.store(), DataOp::Read { gfid, offset, len }) {
        DataDone::Read(result) => result,
        other => panic!("{other:?}"),
    }
}

fn names<S: Subject>(s: &mut S, gfid: Gfid) -> BTreeMap<Bytes, Gfid> {
    let (mut found, mut cookie) = (BTreeMap::new(), 0);
    loop {
        match s.store().query(&Fop::ReadDir { gfid, cookie, bytes: 200, plus: true }) {
            Ok(Reply::Entries { entries, end }) => {
                for e in entries {
                    assert_ne!(e.cookie, 0);
                    cookie = e.cookie;
                    assert_eq!(e.attr.as_ref().map(|a| (a.gfid, a.kind)), Some((e.gfid, e.kind)));
                    assert!(found.insert(e.name, e.gfid).is_none(), "listed twice");
                }
                if end {
                    return found;
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

fn create_and_look_up<S: Subject>(s: &mut S) {
    let root = stat(s, Gfid::ROOT).unwrap();
    assert_eq!((root.kind, root.gfid), (FileKind::Dir, Gfid::ROOT));
    let made = attr_in(do_it(s, &create(Gfid::ROOT, "a", id(1)), 50)).unwrap();
    assert_eq!((made.kind, made.mode, made.uid, made.gid, made.nlink, made.size), (FileKind::File, 0o640, 3, 4, 1, 0));
    assert_eq!(made.mtime, at(50).time);
    assert_eq!(lookup(s, Gfid::ROOT, "a").unwrap().gfid, id(1));
    assert_eq!(stat(s, Gfid::ROOT).unwrap().mtime, at(50).time);
    assert_eq!(lookup(s, Gfid::ROOT, "b"), Err(Errno::ENOENT));
    assert_eq!(lookup(s, id(9), "b"), Err(Errno::ENOENT));
    assert_eq!(lookup(s, id(1), "b"), Err(Errno::ENOTDIR));
    assert_eq!(stat(s, id(9)), Err(Errno::ENOENT));
    must(s, &mkdir(Gfid::ROOT, "d", id(0x101)));
    must(s, &create(id(0x101), "a", id(0x102)));
    assert_eq!(lookup(s, id(0x101), "a").unwrap().gfid, id(0x102));
    s.reopen();
    assert_eq!(lookup(s, id(0x101), "a").unwrap().gfid, id(0x102));
    assert_eq!(names(s, Gfid::ROOT), [(b("a"), id(1)), (b("d"), id(0x101))].into());
    assert_eq!(s.store().query(&create(Gfid::ROOT, "x", id(3))), Err(Errno::EINVAL));
    assert_eq!(do_it(s, &Fop::GetAttr { gfid: id(1) }, 1), Err(Errno::EINVAL));
}

fn creating_again_succeeds<S: Subject>(s: &mut S) {
    let fops = [
        create(Gfid::ROOT, "f", id(1)),
        mkdir(Gfid::ROOT, "d", id(2)),
        Fop::Symlink { parent: Gfid::ROOT, name: b("s"), gfid: id(3), target: b("x"), uid: 1, gid: 1 },
        Fop::Link { gfid: id(1), parent: Gfid::ROOT, name: b("l") },
    ];
    for fop in &fops {
        let first = attr_in(do_it(s, fop, 10)).unwrap();
        let again = attr_in(do_it(s, fop, 20)).unwrap();
        assert_eq!((first.gfid, first.mtime, first.nlink), (again.gfid, again.mtime, again.nlink));
    }
    assert_eq!(do_it(s, &create(Gfid::ROOT, "f", id(4)), 1), Err(Errno::EEXIST));
    assert_eq!(do_it(s, &mkdir(Gfid::ROOT, "f", id(1)), 1), Err(Errno::EEXIST));
    assert_eq!(do_it(s, &create(Gfid::ROOT, "other", id(1)), 1), Err(Errno::EEXIST), "a gfid is one object's");
    assert_eq!(do_it(s, &mkdir(Gfid::ROOT, "other", id(2)), 1), Err(Errno::EEXIST));
    assert_eq!(do_it(s, &create(Gfid::ROOT, "other", id(2)), 1), Err(Errno::EEXIST));
    assert_eq!(do_it(s, &mkdir(Gfid::ROOT, "other", id(1)), 1), Err(Errno::EEXIST));
    assert_eq!(names(s, Gfid::ROOT).len(), 4);
}

fn names_are_checked<S: Subject>(s: &mut S) {
    for (name, error) in [("", Errno::EINVAL), (".", Errno::EINVAL), ("..", Errno::EINVAL), ("a/b", Errno::EINVAL), ("a\0", Errno::EINVAL), (&"x".repeat(256), Errno::ENAMETOOLONG)] {
        assert_eq!(do_it(s, &create(Gfid::ROOT, name, id(1)), 1), Err(error), "{name:?}");
        assert_eq!(lookup(s, Gfid::ROOT, name), Err(error), "{name:?}");
    }
    must(s, &create(Gfid::ROOT, &"x".repeat(255), id(1)));
    assert_eq!(do_it(s, &create(Gfid::ROOT, "r", Gfid::ROOT), 1), Err(Errno::EEXIST));
}

fn private_is_invisible<S: Subject>(s: &mut S) {
    assert!(names(s, Gfid::ROOT).is_empty());
    assert_eq!(lookup(s, Gfid::ROOT, ".brickraft"), Err(Errno::ENOENT));
    assert_eq!(do_it(s, &mkdir(Gfid::ROOT, ".brickraft", id(1)), 1), Err(Errno::EPERM));
    assert_eq!(do_it(s, &Fop::RmDir { parent: Gfid::ROOT, name: b(".brickraft") }, 1), Err(Errno::EPERM));
    must(s, &mkdir(Gfid::ROOT, "d", id(1)));
    must(s, &mkdir(id(1), ".brickraft", id(2)));
    assert_eq!(do_it(s, &rename(Gfid::ROOT, "d", Gfid::ROOT, ".brickraft", 0), 1), Err(Errno::EPERM));
    let name = b("trusted.brickraft.gfid");
    assert_eq!(s.store().query(&Fop::GetXattr { gfid: id(1), name: name.clone() }), Err(Errno::ENODATA));
    assert_eq!(do_it(s, &Fop::SetXattr { gfid: id(1), name: name.clone(), value: b("x"), flags: 0 }, 1), Err(Errno::EPERM));
    assert_eq!(do_it(s, &Fop::RemoveXattr { gfid: id(1), name }, 1), Err(Errno::EPERM));
    assert_eq!(s.store().query(&Fop::ListXattr { gfid: id(1) }), Ok(Reply::Data(Bytes::new())));
}

fn all_kinds<S: Subject>(s: &mut S) {
    let kinds = [(FileKind::File, 0), (FileKind::Fifo, 0), (FileKind::Socket, 0), (FileKind::CharDevice, 0x103), (FileKind::BlockDevice, 0x801)];
    for (n, (kind, rdev)) in kinds.into_iter().enumerate() {
        let gfid = id(n as u16 + 1);
        let fop = Fop::MkNod { parent: Gfid::ROOT, name: b(&format!("n{n}")), gfid, kind, mode: 0o604, rdev, uid: 1, gid: 2 };
        let attr = attr_in(do_it(s, &fop, 9)).unwrap();
        assert_eq!((attr.kind, attr.rdev, attr.mode, attr.mtime), (kind, rdev, 0o604, at(9).time));
        if kind != FileKind::File {
            assert_eq!(read(s, gfid, 0, 1), Err(Errno::EINVAL));
        }
    }
    let target = "../../../../etc/passwd";
    must(s, &Fop::Symlink { parent: Gfid::ROOT, name: b("s"), gfid: id(20), target: b(target), uid: 5, gid: 6 });
    assert_eq!(s.store().query(&Fop::ReadLink { gfid: id(20) }), Ok(Reply::Data(b(target))));
    let attr = stat(s, id(20)).unwrap();
    assert_eq!((attr.kind, attr.size, attr.uid, attr.mode), (FileKind::Symlink, target.len() as u64, 5, 0o777));
    assert_eq!(lookup(s, id(20), "x"), Err(Errno::ENOTDIR));
    assert_eq!(s.store().query(&Fop::ReadLink { gfid: id(1) }), Err(Errno::EINVAL));
    assert_eq!(do_it(s, &Fop::MkNod { parent: Gfid::ROOT, name: b("x"), gfid: id(30), kind: FileKind::Dir, mode: 0, rdev: 0, uid: 0, gid: 0 }, 1), Err(Errno::EINVAL));
}

fn read_and_write<S: Subject>(s: &mut S) {
    must(s, &create(Gfid::ROOT, "f", id(1)));
    let attr = write(s, id(1), 5, b"hello", 60).unwrap();
    assert_eq!((attr.size, attr.mtime, attr.nlink), (10, at(60).time, 1));
    assert_eq!(&read(s, id(1), 0, 100).unwrap()[..], b"\0\0\0\0\0hello");
    assert_eq!(&read(s, id(1), 7, 2).unwrap()[..], b"ll");
    assert_eq!(&read(s, id(1), 10, 2).unwrap()[..], b"");
    assert_eq!(&read(s, id(1), 1 << 40, 2).unwrap()[..], b"");
    assert_eq!(write(s, id(1), u64::MAX, b"x", 1), Err(Errno::EFBIG));
    assert_eq!(write(s, id(9), 0, b"x", 1), Err(Errno::ENOENT));
    assert_eq!(read(s, Gfid::ROOT, 0, 1), Err(Errno::EISDIR));
    let big: Vec<u8> = (0..1 << 20).map(|i: u32| (i % 251) as u8).collect();
    assert_eq!(write(s, id(1), 4_000, &big, 61).unwrap().size, 4_000 + (1 << 20));
    assert_eq!(&read(s, id(1), 4_000, 1 << 20).unwrap()[..], &big[..]);
    for op in [DataOp::Fsync { gfid: id(1), data_only: false }, DataOp::Fsync { gfid: id(1), data_only: true }, DataOp::Fsync { gfid: Gfid::ROOT, data_only: false }, DataOp::SyncAll] {
        assert_eq!(data(s.store(), op), DataDone::Synced(Ok(())));
    }
    assert_eq!(data(s.store(), DataOp::Fsync { gfid: id(9), data_only: false }), DataDone::Synced(Err(Errno::ENOENT)));
    s.reopen();
    assert_eq!(&read(s, id(1), 4_000, 1 << 20).unwrap()[..], &big[..]);
    assert_eq!(stat(s, id(1)).unwrap().mtime, at(61).time);
    many_at_once(s);
}

/// Writes to several places at once; the last mtime wins in whatever order they end.
fn many_at_once<S: Subject>(s: &mut S) {
    for n in 0..20u64 {
        s.store().submit(n, DataOp::Write { gfid: id(1), offset: n * 10_000, data: vec![n as u8; 5_000].into(), time: at(200 + n as i64).time });
    }
    let mut out = Vec::new();
    for _ in 0..10_000 {
        s.store().reap(&mut out);
        if s.store().pending() == 0 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_micros(100));
    }
    assert_eq!(out.len(), 20);
    assert!(out.iter().all(|(_, d)| matches!(d, DataDone::Write(Ok(_)))));
    assert_eq!(stat(s, id(1)).unwrap().mtime, at(219).time);
    assert!(read(s, id(1), 190_000, 5_000).unwrap().iter().all(|x| *x == 19));
}

fn attributes<S: Subject>(s: &mut S) {
    must(s, &create(Gfid::ROOT, "f", id(1)));
    write(s, id(1), 0, b"0123456789", 60).unwrap();
    let set = |set: SetAttr| Fop::SetAttr { gfid: id(1), set };
    let attr = attr_in(do_it(s, &set(SetAttr { size: Some(4), ..SetAttr::default() }), 70)).unwrap();
    assert_eq!((attr.size, attr.mtime), (4, at(70).time));
    let attr = attr_in(do_it(s, &set(SetAttr { mode: Some(0o6755), uid: Some(8), gid: Some(9), ..SetAttr::default() }), 80)).unwrap();
    assert_eq!((attr.mode, attr.uid, attr.gid, attr.mtime), (0o6755, 8, 9, at(70).time));
    let attr = attr_in(do_it(s, &set(SetAttr { uid: Some(10), ..SetAttr::default() }), 80)).unwrap();
    assert_eq!((attr.mode, attr.uid, attr.gid), (0o755, 10, 9), "a change of owner clears set-id bits");
    let (t1, t2) = (TimeSpec { sec: -5, nsec: 7 }, TimeSpec { sec: 5_000_000_000, nsec: 999_999_999 });
    let attr = attr_in(do_it(s, &set(SetAttr { atime: Some(t1), mtime: Some(t2), size: Some(6), ..SetAttr::default() }), 90)).unwrap();
    assert_eq!((attr.atime, attr.mtime, attr.size), (t1, t2, 6));
    assert_eq!(&read(s, id(1), 0, 9).unwrap()[..], b"0123\0\0");
    let bad = [SetAttr { size: Some(u64::MAX), mode: Some(0), ..SetAttr::default() }, SetAttr { uid: Some(u32::MAX), mode: Some(0), ..SetAttr::default() }];
    for (set_bad, error) in bad.into_iter().zip([Errno::EFBIG, Errno::EINVAL]) {
        assert_eq!(do_it(s, &set(set_bad), 1), Err(error));
        assert_eq!(stat(s, id(1)).unwrap().mode, 0o755);
    }
    assert_eq!(do_it(s, &Fop::SetAttr { gfid: Gfid::ROOT, set: SetAttr { size: Some(0), ..SetAttr::default() } }, 1), Err(Errno::EISDIR));
    must(s, &Fop::SetAttr { gfid: Gfid::ROOT, set: SetAttr { mode: Some(0o1777), ..SetAttr::default() } });
    assert_eq!(stat(s, Gfid::ROOT).unwrap().mode, 0o1777);
    must(s, &Fop::Symlink { parent: Gfid::ROOT, name: b("s"), gfid: id(20), target: b("f"), uid: 5, gid: 6 });
    must(s, &Fop::SetAttr { gfid: id(20), set: SetAttr { uid: Some(77), mtime: Some(t1), ..SetAttr::default() } });
    assert_eq!((stat(s, id(20)).unwrap().uid, stat(s, id(20)).unwrap().mtime, stat(s, id(1)).unwrap().uid), (77, t1, 10), "the link, not what it points to");
}

fn directories_are_removed_when_empty<S: Subject>(s: &mut S) {
    must(s, &mkdir(Gfid::ROOT, "d", id(1)));
    must(s, &create(id(1), "f", id(2)));
    let rmdir = Fop::RmDir { parent: Gfid::ROOT, name: b("d") };
    assert_eq!(do_it(s, &rmdir, 1), Err(Errno::ENOTEMPTY));
    assert_eq!(do_it(s, &unlink(Gfid::ROOT, "d"), 1), Err(Errno::EISDIR));
    assert_eq!(do_it(s, &Fop::RmDir { parent: id(1), name: b("f") }, 1), Err(Errno::ENOTDIR));
    must(s, &unlink(id(1), "f"));
    assert_eq!(stat(s, id(2)), Err(Errno::ENOENT));
    assert_eq!(do_it(s, &unlink(id(1), "f"), 1), Err(Errno::ENOENT));
    assert_eq!(do_it(s, &rmdir, 33), Ok(Reply::Done));
    assert_eq!(stat(s, Gfid::ROOT).unwrap().mtime, at(33).time);
    assert_eq!(stat(s, id(1)), Err(Errno::ENOENT));
    assert_eq!(do_it(s, &create(id(1), "f", id(3)), 1), Err(Errno::ENOENT));
    assert_eq!(do_it(s, &rmdir, 1), Err(Errno::ENOENT));
}

fn links<S: Subject>(s: &mut S) {
    must(s, &mkdir(Gfid::ROOT, "d", id(0x101)));
    must(s, &create(Gfid::ROOT, "f", id(1)));
    let attr = attr_in(do_it(s, &Fop::Link { gfid: id(1), parent: id(0x101), name: b("g") }, 40)).unwrap();
    assert_eq!((attr.nlink, attr.gfid), (2, id(1)));
    assert_eq!(stat(s, id(0x101)).unwrap().mtime, at(40).time);
    assert_eq!(do_it(s, &Fop::Link { gfid: id(0x101), parent: Gfid::ROOT, name: b("x") }, 1), Err(Errno::EPERM));
    assert_eq!(do_it(s, &Fop::Link { gfid: id(9), parent: Gfid::ROOT, name: b("x") }, 1), Err(Errno::ENOENT));
    assert_eq!(do_it(s, &Fop::Link { gfid: id(1), parent: Gfid::ROOT, name: b("d") }, 1), Err(Errno::EEXIST));
    assert_eq!(do_it(s, &rename(Gfid::ROOT, "f", id(0x101), "g", 0), 1), Ok(Reply::Done), "two names of one file");
    assert_eq!(names(s, Gfid::ROOT).len(), 2);
    must(s, &unlink(Gfid::ROOT, "f"));
    assert_eq!(stat(s, id(1)).unwrap().nlink, 1);
    must(s, &unlink(id(0x101), "g"));
    assert_eq!(stat(s, id(1)), Err(Errno::ENOENT));
}

fn rename_files<S: Subject>(s: &mut S) {
    must(s, &mkdir(Gfid::ROOT, "d", id(0x101)));
    must(s, &create(Gfid::ROOT, "a", id(1)));
    must(s, &create(id(0x101), "b", id(2)));
    assert_eq!(do_it(s, &rename(Gfid::ROOT, "a", id(0x101), "b", RENAME_NOREPLACE), 1), Err(Errno::EEXIST));
    assert_eq!(do_it(s, &rename(Gfid::ROOT, "a", id(0x101), "b", 3), 1), Err(Errno::EINVAL));
    assert_eq!(do_it(s, &rename(Gfid::ROOT, "a", Gfid::ROOT, "d", 0), 1), Err(Errno::EISDIR));
    assert_eq!(do_it(s, &rename(Gfid::ROOT, "d", Gfid::ROOT, "a", 0), 1), Err(Errno::ENOTDIR));
    assert_eq!(do_it(s, &rename(Gfid::ROOT, "a", id(0x101), "b", 0), 44), Ok(Reply::Done));
    assert_eq!((stat(s, Gfid::ROOT).unwrap().mtime, stat(s, id(0x101)).unwrap().mtime), (at(44).time, at(44).time));
    assert_eq!(lookup(s, id(0x101), "b").unwrap().gfid, id(1));
    assert_eq!(stat(s, id(2)), Err(Errno::ENOENT));
    assert_eq!(do_it(s, &rename(Gfid::ROOT, "a", id(0x101), "c", 0), 1), Err(Errno::ENOENT));
    must(s, &rename(id(0x101), "b", Gfid::ROOT, "z", RENAME_NOREPLACE));
    assert_eq!(names(s, Gfid::ROOT), [(b("d"), id(0x101)), (b("z"), id(1))].into());
}

fn rename_directories<S: Subject>(s: &mut S) {
    must(s, &mkdir(Gfid::ROOT, "a", id(0x101)));
    must(s, &mkdir(id(0x101), "b", id(0x201)));
    must(s, &mkdir(id(0x201), "c", id(0x301)));
    must(s, &create(id(0x301), "f", id(0x302)));
    assert_eq!(do_it(s, &rename(Gfid::ROOT, "a", id(0x301), "x", 0), 1), Err(Errno::EINVAL), "into itself");
    must(s, &rename(id(0x101), "b", Gfid::ROOT, "b2", 0));
    must(s, &create(id(0x301), "g", id(0x303)));
    s.reopen();
    assert_eq!(lookup(s, id(0x301), "g").unwrap().gfid, id(0x303));
    assert_eq!(names(s, Gfid::ROOT), [(b("a"), id(0x101)), (b("b2"), id(0x201))].into());
    assert_eq!(do_it(s, &rename(Gfid::ROOT, "a", Gfid::ROOT, "b2", 0), 1), Err(Errno::ENOTEMPTY));
    assert_eq!(s.store().heal_stat(id(0x101)).unwrap().1, Some(Place::At { parent: Gfid::ROOT, name: b("a") }));
    must(s, &rename(Gfid::ROOT, "b2", Gfid::ROOT, "a", 0));
    assert_eq!(stat(s, id(0x101)), Err(Errno::ENOENT));
    assert_eq!(s.store().heal_stat(id(0x201)).unwrap().1, Some(Place::At { parent: Gfid::ROOT, name: b("a") }));
    s.reopen();
    assert_eq!(lookup(s, id(0x301), "f").unwrap().gfid, id(0x302));
}

fn exchange<S: Subject>(s: &mut S) {
    must(s, &mkdir(Gfid::ROOT, "a", id(0x101)));
    must(s, &create(id(0x101), "x", id(0x102)));
    must(s, &mkdir(Gfid::ROOT, "b", id(0x201)));
    must(s, &mkdir(id(0x201), "c", id(0x301)));
    must(s, &create(Gfid::ROOT, "f", id(1)));
    assert_eq!(do_it(s, &rename(Gfid::ROOT, "a", Gfid::ROOT, "none", RENAME_EXCHANGE), 1), Err(Errno::ENOENT));
    must(s, &rename(Gfid::ROOT, "a", id(0x201), "c", RENAME_EXCHANGE));
    must(s, &rename(Gfid::ROOT, "f", id(0x201), "c", RENAME_EXCHANGE));
    s.reopen();
    assert_eq!(lookup(s, Gfid::ROOT, "a").unwrap().gfid, id(0x301));
    assert_eq!(lookup(s, id(0x101), "x").unwrap().gfid, id(0x102));
    assert_eq!(s.store().heal_stat(id(0x101)).unwrap().1, Some(Place::At { parent: Gfid::ROOT, name: b("f") }));
    assert_eq!(s.store().heal_stat(id(0x301)).unwrap().1, Some(Place::At { parent: Gfid::ROOT, name: b("a") }));
    assert_eq!(lookup(s, id(0x201), "c").unwrap().gfid, id(1));
}

fn orphans<S: Subject>(s: &mut S) {
    for (name, gfid) in [("a", id(1)), ("b", id(2)), ("c", id(3))] {
        must(s, &create(Gfid::ROOT, name, gfid));
        write(s, gfid, 0, name.as_bytes(), 5).unwrap();
    }
    s.store().keep_orphan(id(1), true).unwrap();
    s.store().keep_orphan(id(2), true).unwrap();
    must(s, &unlink(Gfid::ROOT, "a"));
    must(s, &rename(Gfid::ROOT, "c", Gfid::ROOT, "b", 0));
    assert_eq!(s.store().orphans(), Ok(vec![id(1), id(2)]));
    assert_eq!(stat(s, id(1)).unwrap().nlink, 0);
    assert_eq!(&read(s, id(2), 0, 9).unwrap()[..], b"b");
    assert_eq!(write(s, id(1), 1, b"!", 5).unwrap().size, 2);
    assert_eq!(do_it(s, &Fop::Link { gfid: id(1), parent: Gfid::ROOT, name: b("back") }, 1), Err(Errno::ENOENT));
    s.reopen();
    assert_eq!(s.store().orphans(), Ok(vec![id(1), id(2)]));
    assert_eq!(&read(s, id(1), 0, 9).unwrap()[..], b"a!");
    s.store().keep_orphan(id(1), false).unwrap();
    s.store().keep_orphan(id(2), false).unwrap();
    assert_eq!((s.store().orphans(), stat(s, id(1))), (Ok(vec![]), Err(Errno::ENOENT)));
    s.store().keep_orphan(id(3), true).unwrap();
    s.store().keep_orphan(id(3), false).unwrap();
    must(s, &unlink(Gfid::ROOT, "b"));
    assert_eq!(stat(s, id(3)), Err(Errno::ENOENT));
    // A heal that brings a file back does not find the content that was kept.
    must(s, &create(Gfid::ROOT, "d", id(4)));
    write(s, id(4), 0, b"old", 5).unwrap();
    s.store().keep_orphan(id(4), true).unwrap();
    must(s, &unlink(Gfid::ROOT, "d"));
    s.store().heal_make(id(4), FileKind::File, 0, None).unwrap();
    assert_eq!(s.store().heal_stat(id(4)).unwrap().0.size, 0);
    s.store().heal_link(Gfid::ROOT, b"d", id(4)).unwrap();
    assert_eq!((s.store().orphans(), stat(s, id(4)).unwrap().size), (Ok(vec![]), 0));
}

fn extended_attributes<S: Subject>(s: &mut S) {
    must(s, &create(Gfid::ROOT, "f", id(1)));
    must(s, &mkdir(Gfid::ROOT, "d", id(2)));
    for gfid in [id(1), id(2), Gfid::ROOT] {
        let set = |value: &str, flags| Fop::SetXattr { gfid, name: b("user.x"), value: b(value), flags };
        assert_eq!(do_it(s, &set("1", 2), 1), Err(Errno::ENODATA), "XATTR_REPLACE");
        must(s, &set("1", 0));
        assert_eq!(do_it(s, &set("2", 1), 1), Err(Errno::EEXIST), "XATTR_CREATE");
        must(s, &set("3", 2));
        assert_eq!(s.store().query(&Fop::GetXattr { gfid, name: b("user.x") }), Ok(Reply::Data(b("3"))));
        assert_eq!(s.store().query(&Fop::ListXattr { gfid }), Ok(Reply::Data(b("user.x\0"))));
        assert_eq!(s.store().heal_xattrs(gfid), Ok(vec![(b("user.x"), b("3"))]));
        must(s, &Fop::RemoveXattr { gfid, name: b("user.x") });
        assert_eq!(do_it(s, &Fop::RemoveXattr { gfid, name: b("user.x") }, 1), Err(Errno::ENODATA));
        assert_eq!(s.store().query(&Fop::GetXattr { gfid, name: b("user.x") }), Err(Errno::ENODATA));
    }
    let long = Fop::SetXattr { gfid: id(1), name: b(&"user.x".repeat(50)), value: b(""), flags: 0 };
    assert_eq!(do_it(s, &long, 1), Err(Errno(34)));
}

fn listing_while_it_changes<S: Subject>(s: &mut S) {
    for n in 0..300 {
        must(s, &create(Gfid::ROOT, &format!("file-{n}"), id(n + 1)));
    }
    let (mut seen, mut cookie, mut round) = (BTreeMap::new(), 0, 0);
    loop {
        let Ok(Reply::Entries { entries, end }) = s.store().query(&Fop::ReadDir { gfid: Gfid::ROOT, cookie, bytes: 700, plus: false }) else { panic!("readdir") };
        for e in entries {
            assert!(seen.insert(e.name, e.gfid).is_none(), "listed twice");
            cookie = e.cookie;
        }
        if end {
            break;
        }
        round += 1;
        // What was listed goes, what was not listed yet stays; new names may or may not appear.
        let gone = seen.keys().next().cloned().unwrap_or_default();
        let _ = do_it(s, &Fop::Unlink { parent: Gfid::ROOT, name: gone }, 1);
        must(s, &create(Gfid::ROOT, &format!("new-{round}"), id(1_000 + round)));
    }
    for n in 0..300 {
        assert_eq!(seen.get(format!("file-{n}").as_bytes()), Some(&id(n + 1)), "file-{n}");
    }
}

fn set_gid_directories<S: Subject>(s: &mut S) {
    must(s, &mkdir(Gfid::ROOT, "d", id(1)));
    must(s, &Fop::SetAttr { gfid: id(1), set: SetAttr { mode: Some(0o2775), gid: Some(50), ..SetAttr::default() } });
    must(s, &create(id(1), "f", id(2)));
    must(s, &mkdir(id(1), "e", id(3)));
    assert_eq!((stat(s, id(2)).unwrap().gid, stat(s, id(2)).unwrap().mode), (50, 0o640));
    assert_eq!((stat(s, id(3)).unwrap().gid, stat(s, id(3)).unwrap().mode), (50, 0o2750));
}

fn space<S: Subject>(s: &mut S) {
    must(s, &create(Gfid::ROOT, "f", id(1)));
    let alloc = |offset, len, mode| Fop::Fallocate { gfid: id(1), offset, len, mode };
    assert_eq!(do_it(s, &alloc(0, 8_192, 0), 66), Ok(Reply::Done));
    assert_eq!((stat(s, id(1)).unwrap().size, stat(s, id(1)).unwrap().mtime), (8_192, at(66).time));
    assert_eq!(do_it(s, &alloc(0, 20_000, 1), 67), Ok(Reply::Done));
    assert_eq!((stat(s, id(1)).unwrap().size, stat(s, id(1)).unwrap().mtime), (8_192, at(67).time));
    write(s, id(1), 0, &[7; 16_384], 68).unwrap();
    must(s, &alloc(4_096, 4_096, 3));
    let got = read(s, id(1), 0, 16_384).unwrap();
    assert!(got[..4_096].iter().all(|x| *x == 7) && got[4_096..8_192].iter().all(|x| *x == 0) && got[8_192..].iter().all(|x| *x == 7));
    assert_eq!(do_it(s, &alloc(0, 0, 0), 1), Err(Errno::EINVAL));
    assert_eq!(do_it(s, &alloc(0, 1, 1 << 20), 1), Err(Errno::EOPNOTSUPP));
    assert_eq!(s.store().query(&Fop::Lseek { gfid: id(1), offset: 0, whence: 4 }), Ok(Reply::Offset(4_096)));
    assert_eq!(s.store().query(&Fop::Lseek { gfid: id(1), offset: 5_000, whence: 3 }), Ok(Reply::Offset(8_192)));
    assert_eq!(s.store().query(&Fop::Lseek { gfid: id(1), offset: 20_000, whence: 3 }), Err(Errno::ENXIO));
    assert!(matches!(s.store().query(&Fop::StatFs), Ok(Reply::StatFs(f)) if f.blocks > 0 && f.bfree > 0 && f.frsize > 0 && f.namelen == 255));
    assert_eq!(s.store().heal_next_data(id(1), 4_100), Ok(Some((8_192, 16_384))));
    assert_eq!(s.store().heal_next_data(id(1), 16_384), Ok(None));
    s.store().heal_punch(id(1), 0, 4_096).unwrap();
    assert_eq!(s.store().heal_next_data(id(1), 0), Ok(Some((8_192, 16_384))));
}

fn marks<S: Subject>(s: &mut S) {
    assert!(s.store().dirty().is_empty());
    must(s, &mkdir(Gfid::ROOT, "d", id(0x501)));
    must(s, &create(id(0x501), "f", id(0x502)));
    must(s, &mkdir(id(0x501), "e", id(0x601)));
    let set = |list: &[u16]| list.iter().map(|n| Bucket(*n)).collect::<BucketSet>();
    assert_eq!(s.store().dirty(), &set(&[0, 5, 6]));
    let _ = do_it(s, &create(id(0x701), "f", id(0x702)), 1);
    let _ = do_it(s, &create(id(0x601), ".", id(0x702)), 1);
    assert_eq!(s.store().dirty(), &set(&[0, 5, 6]), "a refusal marks nothing");
    s.store().reset_dirty(&set(&[9])).unwrap();
    s.reopen();
    assert_eq!(s.store().dirty(), &set(&[9]));
    write(s, id(0x502), 0, b"x", 1).unwrap();
    assert_eq!(s.store().dirty(), &set(&[5, 9]));
    s.store().mark_dirty(Bucket(65_535)).unwrap();
    s.reopen();
    assert_eq!(s.store().dirty(), &set(&[5, 9, 65_535]));
}

fn identity<S: Subject>(s: &mut S) {
    assert_eq!(s.store().meta(), meta());
    assert!(s.store().intact());
    let new = BrickMeta { epoch: 9, synced_epoch: 8, incarnation: 7, held: 6, ..meta() };
    s.store().set_meta(new).unwrap();
    assert_eq!(s.store().meta(), new);
    s.reopen();
    assert_eq!(s.store().meta(), new);
    assert!(s.store().intact());
}

fn heal_makes_and_moves<S: Subject>(s: &mut S) {
    let at_place = |parent, name: &str| Some(Place::At { parent, name: b(name) });
    assert_eq!(s.store().heal_place_dir(id(0x101), Gfid::ROOT, b"a"), Ok(None));
    assert_eq!(s.store().heal_place_dir(id(0x101), Gfid::ROOT, b"a"), Ok(at_place(Gfid::ROOT, "a")));
    assert_eq!(s.store().heal_place_dir(id(0x201), id(0x101), b"b"), Ok(None));
    assert_eq!(s.store().heal_place_dir(id(0x101), id(0x201), b"x"), Err(Errno::EINVAL));
    assert_eq!(s.store().heal_place_dir(id(0x301), Gfid::ROOT, b"a"), Err(Errno::EEXIST));
    assert_eq!(s.store().heal_place_dir(id(0x301), id(0x999), b"a"), Err(Errno::ENOENT));
    assert_eq!(s.store().heal_to_limbo(id(0x101)), Ok(at_place(Gfid::ROOT, "a")));
    assert_eq!(s.store().heal_to_limbo(id(0x101)), Ok(Some(Place::Limbo)));
    assert_eq!(s.store().heal_limbo(), Ok(vec![id(0x101)]));
    s.reopen();
    assert_eq!(s.store().heal_stat(id(0x201)).unwrap().1, at_place(id(0x101), "b"));
    assert_eq!(s.store().heal_remove(id(0x101)), Err(Errno::ENOTEMPTY));
    assert_eq!(s.store().heal_place_dir(id(0x201), Gfid::ROOT, b"b"), Ok(at_place(id(0x101), "b")));
    assert_eq!(s.store().heal_remove(id(0x101)), Ok(()));
    assert_eq!(s.store().heal_remove(id(0x101)), Ok(()));
    assert_eq!(names(s, Gfid::ROOT), [(b("b"), id(0x201))].into());

    assert_eq!(s.store().heal_make(id(1), FileKind::File, 0, None), Ok(()));
    assert_eq!(s.store().heal_write(id(1), 3, &b("xyz")), Ok(()));
    assert_eq!(s.store().heal_make(id(1), FileKind::File, 0, None), Ok(()));
    assert_eq!(s.store().heal_make(id(1), FileKind::Fifo, 0, None), Err(Errno::EEXIST));
    assert_eq!(s.store().heal_stat(id(1)).map(|(a, p)| (a.nlink, a.size, p)), Ok((0, 6, None)));
    assert_eq!(s.store().heal_read(id(1), 2, 100), Ok(b("\0xyz")));
    assert_eq!(s.store().heal_link(Gfid::ROOT, b"f", id(1)), Ok(()));
    assert_eq!(s.store().heal_link(Gfid::ROOT, b"f", id(1)), Ok(()));
    assert_eq!(s.store().heal_link(Gfid::ROOT, b"b", id(1)), Err(Errno::EEXIST));
    assert_eq!(s.store().heal_remove(id(1)), Err(Errno::ENOTEMPTY));
    assert_eq!(s.store().heal_unlink(Gfid::ROOT, b"b"), Err(Errno::EISDIR));
    assert_eq!(s.store().heal_set_attr(id(1), &ExactAttr { mode: 0o4711, uid: 1, gid: 2, atime: at(3).time, mtime: at(4).time }), Ok(()));
    assert_eq!(s.store().heal_truncate(id(1), 4), Ok(()));
    let attr = stat(s, id(1)).unwrap();
    assert_eq!((attr.mode, attr.uid, attr.gid, attr.atime, attr.size), (0o4711, 1, 2, at(3).time, 4));
    assert_eq!(s.store().heal_set_signature(id(1), Some(b"sig")), Ok(()));
    assert_eq!(s.store().heal_signature(id(1)), Ok(Some(b("sig"))));
    assert_eq!(s.store().heal_xattrs(id(1)), Ok(vec![]));
    assert_eq!(s.store().heal_set_signature(id(1), None), Ok(()));
    assert_eq!(s.store().heal_signature(id(1)), Ok(None));
    assert_eq!(s.store().heal_set_xattr(id(1), b"user.a", Some(b"1")), Ok(()));
    assert_eq!(s.store().heal_set_xattr(id(1), b"user.b", None), Ok(()));
    assert_eq!(s.store().heal_xattrs(id(1)), Ok(vec![(b("user.a"), b("1"))]));
    assert_eq!(s.store().heal_unlink(Gfid::ROOT, b"f"), Ok(()));
    assert_eq!(s.store().heal_unlink(Gfid::ROOT, b"f"), Ok(()));
    assert_eq!(stat(s, id(1)).unwrap().nlink, 0);
    assert_eq!(s.store().heal_remove(id(1)), Ok(()));
    assert_eq!(stat(s, id(1)), Err(Errno::ENOENT));
    assert_eq!(s.store().heal_make(id(2), FileKind::Symlink, 0, Some(b"text")), Ok(()));
    assert_eq!(s.store().heal_make(id(2), FileKind::Symlink, 0, Some(b"other")), Err(Errno::EEXIST));
    assert_eq!(s.store().heal_readlink(id(2)), Ok(b("text")));
}

fn heal_lists<S: Subject>(s: &mut S) {
    must(s, &mkdir(Gfid::ROOT, "d", id(0x101)));
    for n in 0..50u16 {
        must(s, &create(id(0x101), &format!("f{n}"), id(0x102 + n)));
    }
    let mut all = Vec::new();
    while let Ok(more) = s.store().heal_objects(Bucket(1), all.last().copied(), 7) {
        if more.is_empty() {
            break;
        }
        all.extend(more);
    }
    assert_eq!(all, (0..51).map(|n| id(0x101 + n)).collect::<Vec<_>>());
    assert_eq!(s.store().heal_objects(Bucket(0), None, 10), Ok(vec![Gfid::ROOT]));
    assert_eq!(s.store().heal_objects(Bucket(2), None, 10), Ok(vec![]));
    assert_eq!(s.store().heal_stat(Gfid::ROOT).unwrap().1, Some(Place::At { parent: Gfid::ROOT, name: Bytes::new() }));
    let (mut found, mut cookie) = (BTreeMap::new(), 0);
    loop {
        let (entries, next) = s.store().heal_entries(id(0x101), cookie, 9).unwrap();
        assert!(entries.len() <= 9);
        for e in entries {
            assert!(e.gfid != STRANGER && !e.is_dir);
            assert!(found.insert(e.name, e.gfid).is_none());
        }
        if next == 0 {
            break;
        }
        cookie = next;
    }
    assert_eq!(found.len(), 50);
    let entry = s.store().heal_lookup(Gfid::ROOT, b"d").unwrap().unwrap();
    assert!(entry.is_dir && entry.gfid == id(0x101));
    assert_eq!(s.store().heal_lookup(Gfid::ROOT, b"none"), Ok(None));
    assert_eq!(s.store().heal_lookup(id(0x999), b"none"), Err(Errno::ENOENT));
}
