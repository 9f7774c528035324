//! What every [`Branch`] must do. All of ours pass it; another one has to.

use super::{At, Branch, Handle, New, Open};
use crate::fop::{Errno, FileKind, RENAME_EXCHANGE, RENAME_NOREPLACE, SetAttr, TimeSpec};

fn new(kind: FileKind, mode: u32) -> New<'static> {
    New { kind, mode, rdev: 0, target: b"", uid: 3, gid: 4 }
}

fn names(branch: &dyn Branch, dir: &Handle) -> Vec<String> {
    let mut out = Vec::new();
    branch.list(dir, &mut |e| out.push(String::from_utf8_lossy(e.name).into_owned())).expect("list");
    out.sort();
    out
}

/// Runs all of it, each case on a new, empty branch.
pub fn run(make: &mut dyn FnMut() -> Box<dyn Branch>) {
    for case in [objects, data, renames, links_and_holds, without_a_name, attributes, extended_attributes] {
        let branch = make();
        case(&*branch, &branch.root());
    }
}

fn objects(b: &dyn Branch, root: &Handle) {
    assert_eq!(b.stat(At::Name(root, b"x")).unwrap_err(), Errno::ENOENT);
    let stat = b.make(root, b"f", &new(FileKind::File, 0o640)).expect("make a file");
    assert_eq!((stat.kind, stat.mode, stat.uid, stat.gid, stat.size), (FileKind::File, 0o640, 3, 4, 0));
    assert_eq!(b.make(root, b"f", &new(FileKind::File, 0o640)).unwrap_err(), Errno::EEXIST);
    assert_eq!(b.stat(At::Name(root, b"f")).expect("stat").id, stat.id);
    let dir = b.make(root, b"d", &new(FileKind::Dir, 0o1750)).expect("make a directory");
    assert_eq!((dir.kind, dir.mode), (FileKind::Dir, 0o1750));
    b.make(root, b"s", &New { target: b"over/there", ..new(FileKind::Symlink, 0o777) }).expect("make a link");
    assert_eq!(b.readlink(At::Name(root, b"s")).expect("readlink"), b"over/there");
    let pipe = b.make(root, b"p", &new(FileKind::Fifo, 0o600)).expect("make a pipe");
    assert_eq!((pipe.kind, pipe.uid), (FileKind::Fifo, 3));
    let (open, held) = b.make_open(root, b"o", &new(FileKind::File, 0o2444)).expect("make a file and open it");
    assert_eq!((open.kind, open.mode, open.uid, open.gid, open.size), (FileKind::File, 0o2444, 3, 4, 0));
    if let Some(held) = held {
        b.write(&held, 0, b"written").expect("write");
    }
    assert_eq!(b.stat(At::Name(root, b"o")).expect("stat").id, open.id);
    assert_eq!(b.make_open(root, b"o", &new(FileKind::File, 0o640)).unwrap_err(), Errno::EEXIST);
    assert_eq!(names(b, root), ["d", "f", "o", "p", "s"]);
    let d = b.open(At::Name(root, b"d"), Open::Path).expect("hold");
    b.make(&d, b"in", &new(FileKind::File, 0o600)).expect("make inside");
    assert_eq!(b.rmdir(root, b"d").unwrap_err(), Errno::ENOTEMPTY);
    assert_eq!(b.rmdir(root, b"f").unwrap_err(), Errno::ENOTDIR);
    assert_eq!(b.unlink(root, b"d").unwrap_err(), Errno::EISDIR);
    b.unlink(&d, b"in").expect("unlink");
    b.rmdir(root, b"d").expect("rmdir");
    assert_eq!(b.stat(At::Name(root, b"d")).unwrap_err(), Errno::ENOENT);
}

fn data(b: &dyn Branch, root: &Handle) {
    b.make(root, b"f", &new(FileKind::File, 0o600)).expect("make");
    let f = b.open(At::Name(root, b"f"), Open::Write).expect("open");
    b.write(&f, 10_000, b"end").expect("write");
    b.write(&f, 0, b"start").expect("write");
    let mut buf = [1; 8];
    assert_eq!(b.read(&f, 9_998, &mut buf), Ok(5));
    assert_eq!(&buf[..5], b"\0\0end");
    assert_eq!(b.read(&f, 20_000, &mut buf), Ok(0));
    let mut all = vec![1; 20_000];
    assert_eq!(b.read_telling(&f, 0, &mut all), Ok((10_003, false)), "what was just written is in memory");
    assert_eq!((&all[..5], &all[10_000..10_003]), (&b"start"[..], &b"end"[..]));
    assert_eq!(b.fetch(At::Name(root, b"f"), 1 << 20), Ok(super::Fetched::InMemory));
    b.fsync(&f, false).expect("fsync");
    assert_eq!(b.stat(At::Open(&f)).expect("stat").size, 10_003);
    assert_eq!(b.lseek(&f, 10_003, 3).unwrap_err(), Errno::ENXIO);
    assert_eq!(b.lseek(&f, 1, 3), Ok(1));
    b.make(root, b"g", &new(FileKind::File, 0o600)).expect("make");
    let g = b.open(At::Name(root, b"g"), Open::Write).expect("open");
    b.copy_from(&g, b, &f, 10_003).expect("copy");
    assert_eq!(b.read(&g, 10_000, &mut buf), Ok(3));
    assert_eq!(&buf[..3], b"end");
    b.set_attr(At::Name(root, b"g"), &SetAttr { size: Some(3), ..SetAttr::default() }).expect("truncate");
    assert_eq!(b.read(&g, 0, &mut buf), Ok(3));
    assert_eq!(&buf[..3], b"sta");
}

fn renames(b: &dyn Branch, root: &Handle) {
    for name in [b"a", b"b"] {
        b.make(root, name, &new(FileKind::File, 0o600)).expect("make");
    }
    for name in [b"d", b"e"] {
        b.make(root, name, &new(FileKind::Dir, 0o700)).expect("make");
    }
    let d = b.open(At::Name(root, b"d"), Open::Path).expect("hold");
    let a = b.stat(At::Name(root, b"a")).expect("stat").id;
    assert_eq!(b.rename(root, b"a", root, b"b", RENAME_NOREPLACE).unwrap_err(), Errno::EEXIST);
    assert_eq!(b.rename(root, b"a", root, b"d", 0).unwrap_err(), Errno::EISDIR);
    assert_eq!(b.rename(root, b"d", root, b"a", 0).unwrap_err(), Errno::ENOTDIR);
    b.rename(root, b"a", &d, b"x", 0).expect("move");
    assert_eq!(b.stat(At::Name(&d, b"x")).expect("stat").id, a);
    assert_eq!(b.rename(root, b"e", root, b"d", 0).unwrap_err(), Errno::ENOTEMPTY);
    b.rename(root, b"d", root, b"e", 0).expect("replace an empty directory");
    assert_eq!(b.stat(At::Name(&d, b"x")).expect("the handle still names it").id, a);
    b.rename(&d, b"x", root, b"b", RENAME_EXCHANGE).expect("swap");
    assert_eq!(b.stat(At::Name(root, b"b")).expect("stat").id, a);
    assert_eq!(names(b, &d), ["x"]);
    assert_eq!(names(b, root), ["b", "e"]);
}

fn links_and_holds(b: &dyn Branch, root: &Handle) {
    let made = b.make(root, b"f", &new(FileKind::File, 0o600)).expect("make");
    b.link(At::Name(root, b"f"), root, b"g").expect("link");
    assert_eq!(b.link(At::Name(root, b"f"), root, b"g").unwrap_err(), Errno::EEXIST);
    let stat = b.stat(At::Name(root, b"g")).expect("stat");
    assert_eq!((stat.id, stat.nlink), (made.id, 2));
    let held = b.open(At::Name(root, b"f"), Open::Write).expect("open");
    b.link(At::Open(&held), root, b"h").expect("link what is held");
    b.write(&held, 0, b"kept").expect("write");
    for name in [b"f", b"g", b"h"] {
        b.unlink(root, name).expect("unlink");
    }
    let mut buf = [0; 4];
    assert_eq!(b.read(&held, 0, &mut buf), Ok(4));
    b.write(&held, 4, b"!").expect("write to what has no name");
    assert_eq!(b.stat(At::Open(&held)).expect("stat").size, 5);
}

fn without_a_name(b: &dyn Branch, root: &Handle) {
    let Some((made, held)) = b.make_unnamed(root, &new(FileKind::File, 0o4640)).expect("make") else { return };
    assert_eq!((made.kind, made.mode, made.uid, made.gid, made.size, made.nlink), (FileKind::File, 0o4640, 3, 4, 0, 0));
    assert!(names(b, root).is_empty());
    b.write(&held, 0, b"data").expect("write");
    b.fsync(&held, false).expect("fsync");
    b.make(root, b"taken", &new(FileKind::File, 0o600)).expect("make");
    assert_eq!(b.link(At::Open(&held), root, b"taken").unwrap_err(), Errno::EEXIST);
    b.link(At::Open(&held), root, b"f").expect("give it a name");
    b.link(At::Open(&held), root, b"g").expect("and another one");
    let stat = b.stat(At::Name(root, b"f")).expect("stat");
    assert_eq!((stat.id, stat.nlink, stat.size), (made.id, 2, 4));
    b.unlink(root, b"f").expect("unlink");
    b.unlink(root, b"g").expect("unlink");
    assert_eq!(b.link(At::Open(&held), root, b"h").unwrap_err(), Errno::ENOENT, "what had a name and lost it gets none");
    assert_eq!(names(b, root), ["taken"]);
}

fn attributes(b: &dyn Branch, root: &Handle) {
    b.make(root, b"f", &new(FileKind::File, 0o600)).expect("make");
    let t = TimeSpec { sec: 1_000_000_000, nsec: 7 };
    let set = SetAttr { mode: Some(0o4711), uid: Some(10), gid: Some(11), size: Some(9), atime: Some(t), mtime: Some(t) };
    b.set_attr(At::Name(root, b"f"), &set).expect("set");
    let stat = b.stat(At::Name(root, b"f")).expect("stat");
    assert_eq!((stat.mode, stat.uid, stat.gid, stat.size, stat.atime, stat.mtime), (0o4711, 10, 11, 9, t, t));
    b.set_attr(At::Name(root, b"f"), &SetAttr { uid: Some(12), ..SetAttr::default() }).expect("chown");
    assert_eq!(b.stat(At::Name(root, b"f")).expect("stat").mode, 0o711, "chown takes set-id bits away");
    b.make(root, b"s", &New { target: b"nowhere", ..new(FileKind::Symlink, 0o777) }).expect("make");
    b.set_attr(At::Name(root, b"s"), &SetAttr { uid: Some(1), mtime: Some(t), ..SetAttr::default() }).expect("of a link itself");
    assert_eq!(b.stat(At::Name(root, b"s")).expect("stat").uid, 1);
}

fn extended_attributes(b: &dyn Branch, root: &Handle) {
    b.make(root, b"f", &new(FileKind::File, 0o600)).expect("make");
    let at = At::Name(root, b"f");
    assert_eq!(b.get_xattr(at, b"user.a").unwrap_err(), Errno::ENODATA);
    b.set_xattr(at, b"user.a", b"1", 0).expect("set");
    assert_eq!(b.set_xattr(at, b"user.a", b"1", 1).unwrap_err(), Errno::EEXIST);
    assert_eq!(b.set_xattr(at, b"user.b", b"1", 2).unwrap_err(), Errno::ENODATA);
    let held = b.open(at, Open::Path).expect("hold");
    assert_eq!(b.get_xattr(At::Open(&held), b"user.a").expect("get"), b"1");
    assert!(b.list_xattr(at).expect("list").contains(&b"user.a".to_vec()));
    b.remove_xattr(At::Open(&held), b"user.a").expect("remove");
    assert_eq!(b.remove_xattr(at, b"user.a").unwrap_err(), Errno::ENODATA);
}

#[cfg(test)]
mod tests {
    use super::super::{LocalBranch, SimBranch};
    use super::run;

    #[test]
    fn local_branches_conform() {
        rustix::process::umask(rustix::fs::Mode::empty());
        let mut dirs = Vec::new();
        run(&mut || {
            dirs.push(tempfile::tempdir().unwrap());
            Box::new(LocalBranch::open(dirs.last().unwrap().path()).unwrap())
        });
    }

    #[test]
    fn simulated_branches_conform() {
        run(&mut || Box::new(SimBranch::new(1)));
    }
}
