//! What AUFS's users rely on, one by one.

use super::{Op, act, dir_branch, dump, union_of, walk};
use crate::fop::{Errno, FileKind, SetAttr};
use crate::union::{BranchChange, Caller, Perm, ROOT_INO, Union, UnionConfig};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

struct Dirs {
    _base: tempfile::TempDir,
    upper: PathBuf,
    lower: PathBuf,
}

fn dirs() -> Dirs {
    let base = tempfile::tempdir().unwrap();
    let (upper, lower) = (base.path().join("upper"), base.path().join("lower"));
    fs::create_dir(&upper).unwrap();
    fs::create_dir_all(lower.join("d/e")).unwrap();
    fs::write(lower.join("d/f"), "below").unwrap();
    fs::write(lower.join("g"), "g below").unwrap();
    Dirs { upper, lower, _base: base }
}

impl Dirs {
    fn union(&self) -> Union {
        union_of(vec![dir_branch(&self.upper, Perm::RW), dir_branch(&self.lower, Perm::RO)])
    }
}

fn text(union: &Union, ino: u64) -> String {
    let mut buf = vec![0; 100];
    let n = union.read(ino, 0, &mut buf).unwrap();
    String::from_utf8(buf[..n].to_vec()).unwrap()
}

#[test]
fn a_reader_sees_what_is_written_after_the_copy_up() {
    let d = dirs();
    let union = d.union();
    let ino = walk(&union, "d/f").unwrap();
    assert_eq!(text(&union, ino), "below");
    union.write(ino, 0, b"ABOVE", false).unwrap();
    assert_eq!(text(&union, ino), "ABOVE");
    assert_eq!(walk(&union, "d/f").unwrap(), ino, "the number stays");
    assert_eq!(fs::read_to_string(d.lower.join("d/f")).unwrap(), "below");
    assert_eq!(fs::read_to_string(d.upper.join("d/f")).unwrap(), "ABOVE");
    let again = d.union();
    assert_eq!(walk(&again, "d/f").unwrap(), ino, "over a remount too");
}

#[test]
fn what_is_unlinked_stays_usable_until_it_is_forgotten() {
    let d = dirs();
    let union = d.union();
    for path in ["d/f", "g"] {
        let ino = walk(&union, path).unwrap();
        if path == "g" {
            union.setattr(ino, &SetAttr { mode: Some(0o600), ..SetAttr::default() }, false).unwrap();
        }
        act(&union, &Op::Unlink(path.into())).unwrap();
        assert_eq!(walk(&union, path), Err(Errno::ENOENT));
        assert!(text(&union, ino).contains("below"));
        union.write(ino, 0, b"still", false).unwrap();
        assert!(text(&union, ino).starts_with("still"));
        assert_eq!(union.getattr(ino).unwrap().kind, FileKind::File);
        act(&union, &Op::Create(path.into())).unwrap();
        assert_ne!(walk(&union, path).unwrap(), ino, "a new object under the old name");
        assert!(text(&union, ino).starts_with("still"));
    }
}

#[test]
fn a_file_without_a_name_gets_one_or_leaves_nothing() {
    let d = dirs();
    let union = d.union();
    let dir = walk(&union, "d").unwrap();
    let caller = Caller { uid: 5, gid: 6, pid: 1, umask: 0o022 };
    let made = union.tmpfile(dir, 0o666, &caller).unwrap();
    assert_eq!((made.attr.nlink, made.attr.mode, made.attr.uid, made.attr.gid, made.attr.size), (0, 0o644, 5, 6, 0));
    union.write(made.ino, 0, b"without a name", false).unwrap();
    assert_eq!(text(&union, made.ino), "without a name");
    let names = || fs::read_dir(d.upper.join("d")).unwrap().count();
    assert_eq!(names(), 0, "its directory is above, and nothing in it");
    let root = union.link(made.ino, ROOT_INO, b"g");
    assert_eq!(root.map(|e| e.ino), Err(Errno::EEXIST));
    act(&union, &Op::Unlink("d/f".into())).unwrap();
    for (path, dir, links) in [("d/f", dir, 1), ("linked", ROOT_INO, 2)] {
        let name = path.rsplit('/').next().unwrap();
        let linked = union.link(made.ino, dir, name.as_bytes()).unwrap();
        assert_eq!((linked.ino, linked.attr.nlink), (made.ino, links));
        assert_eq!(walk(&union, path), Ok(made.ino));
        assert_eq!(fs::read_to_string(d.upper.join(path)).unwrap(), "without a name");
    }
    assert!(!d.upper.join("d/.wh.f").exists(), "the name is back");
    act(&union, &Op::Unlink("d/f".into())).unwrap();
    union.write(made.ino, 0, b"still", false).unwrap();
    assert_eq!(fs::read_to_string(d.upper.join("linked")).unwrap(), "stillut a name");
    let other = union.tmpfile(dir, 0o600, &caller).unwrap();
    union.write(other.ino, 0, b"gone", false).unwrap();
    assert!(union.forget(other.ino, 1));
    assert_eq!(union.getattr(other.ino), Err(Errno::ESTALE));
    assert_eq!(names(), 1, "a whiteout");
}

#[test]
fn a_file_without_a_name_moves_up_and_is_named_there() {
    for data in [&b""[..], b"written"] {
        let d = dirs();
        let top = d.upper.with_file_name("top");
        fs::create_dir(&top).unwrap();
        let union = d.union();
        let dir = walk(&union, "d").unwrap();
        let made = union.tmpfile(dir, 0o600, &Caller { uid: 0, gid: 0, pid: 1, umask: 0 }).unwrap();
        union.write(made.ino, 0, data, false).unwrap();
        let label = d.upper.display().to_string();
        union.change(BranchChange::Prepend(dir_branch(&top, Perm::RW))).unwrap();
        union.change(BranchChange::Modify { label, perm: Perm::RO }).unwrap();
        assert_eq!(union.link(made.ino, dir, b"named").map(|e| e.ino), Ok(made.ino));
        assert_eq!(walk(&union, "d/named"), Ok(made.ino));
        union.write(made.ino, data.len() as u64, b" on", false).unwrap();
        assert_eq!(fs::read(top.join("d/named")).unwrap(), [data, b" on"].concat());
        act(&union, &Op::Unlink("d/named".into())).unwrap();
        assert_eq!(text(&union, made.ino).as_bytes(), [data, b" on"].concat(), "still in use");
    }
}

#[test]
fn whiteouts_are_aufs_s() {
    let d = dirs();
    let union = d.union();
    act(&union, &Op::Unlink("d/f".into())).unwrap();
    let whiteout = d.upper.join("d/.wh.f");
    let base = d.upper.join(".wh..wh.aufs").symlink_metadata().unwrap();
    let made = whiteout.symlink_metadata().unwrap();
    assert!(made.is_file() && made.ino() == base.ino(), "a hard link of the base");
    assert_eq!(made.mode() & 0o7777, 0o444);
    assert_eq!(union.lookup(ROOT_INO, b".wh..wh.aufs"), Err(Errno::ENOENT));
    let wh = union.mknod(ROOT_INO, b".wh.x", FileKind::File, 0o644, 0, &Caller::default());
    assert_eq!(wh.map(drop), Err(Errno::EPERM));
    act(&union, &Op::Unlink("g".into())).unwrap();
    act(&union, &Op::Mkdir("g".into())).unwrap();
    assert!(!d.upper.join(".wh.g").exists(), "taken away by the creation");
    act(&union, &Op::Create("only".into())).unwrap();
    act(&union, &Op::Unlink("only".into())).unwrap();
    assert!(!d.upper.join(".wh.only").exists(), "nothing to hide");
    act(&union, &Op::Rmdir("d/e".into())).unwrap();
    act(&union, &Op::Mkdir("d/e".into())).unwrap();
    assert!(d.upper.join("d/e/.wh..wh..opq").exists(), "a directory over a whiteout is opaque");
    let again = d.union();
    assert_eq!(dump(&again), dump(&union));
}

#[test]
fn what_aufs_left_is_read() {
    let d = dirs();
    fs::create_dir_all(d.upper.join("d")).unwrap();
    fs::write(d.upper.join("d/.wh..wh..opq"), "").unwrap();
    fs::write(d.upper.join(".wh.g"), "").unwrap();
    let union = d.union();
    assert_eq!(dump(&union).keys().collect::<Vec<_>>(), ["/d"]);
}

#[test]
fn what_overlayfs_left_is_read() {
    let d = dirs();
    fs::create_dir_all(d.upper.join("d")).unwrap();
    fs::create_dir_all(d.upper.join("moved")).unwrap();
    let path = |p: &str| d.upper.join(p);
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(path("d"), "trusted.overlay.opaque", b"y", flags).unwrap();
    rustix::fs::setxattr(path("moved"), "trusted.overlay.redirect", b"/d", flags).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, path("g"), rustix::fs::FileType::CharacterDevice, rustix::fs::Mode::empty(), 0).unwrap();
    assert!(path("g").symlink_metadata().unwrap().file_type().is_char_device());
    let union = d.union();
    assert_eq!(dump(&union).keys().collect::<Vec<_>>(), ["/d", "/moved", "/moved/e", "/moved/f"]);
}

#[test]
fn listings_go_on_where_they_stopped_while_names_change() {
    let d = dirs();
    for i in 0..50 {
        fs::write(d.lower.join(format!("n{i}")), "").unwrap();
    }
    let union = d.union();
    let (mut seen, mut at) = (Vec::new(), 0);
    loop {
        let mut took = 0;
        union
            .readdir(ROOT_INO, at, false, &mut |e| {
                if took == 7 {
                    return true;
                }
                took += 1;
                at = e.cookie;
                seen.push(String::from_utf8_lossy(e.name).into_owned());
                false
            })
            .unwrap();
        if took == 0 {
            break;
        }
        // Another reader starts anew, and names come and go.
        union.readdir(ROOT_INO, 0, false, &mut |_| true).unwrap();
        let name = seen.last().unwrap().clone();
        if name.starts_with('n') {
            act(&union, &Op::Unlink(name)).unwrap();
        }
        act(&union, &Op::Create(format!("new{at}"))).unwrap();
    }
    for i in 0..50 {
        assert_eq!(seen.iter().filter(|n| **n == format!("n{i}")).count(), 1, "n{i}");
    }
}

#[test]
fn branches_change_while_it_lives() {
    let d = dirs();
    let union = union_of(vec![dir_branch(&d.upper, Perm::RW)]);
    assert_eq!(walk(&union, "g"), Err(Errno::ENOENT));
    union.change(BranchChange::Append(dir_branch(&d.lower, Perm::RO))).unwrap();
    let ino = walk(&union, "g").unwrap();
    assert_eq!(text(&union, ino), "g below");
    assert_eq!(union.branches().len(), 2);
    let label = d.lower.display().to_string();
    union.change(BranchChange::Modify { label: label.clone(), perm: Perm::RW }).unwrap();
    union.write(ino, 0, b"G", false).unwrap();
    assert_eq!(fs::read_to_string(d.lower.join("g")).unwrap(), "G below", "written in place");
    union.change(BranchChange::Delete { label: label.clone() }).unwrap();
    assert_eq!(walk(&union, "g"), Err(Errno::ENOENT));
    assert!(union.change(BranchChange::Delete { label }).is_err());
}

#[test]
fn directories_of_lower_branches_are_renamed() {
    let d = dirs();
    let union = d.union();
    let ino = walk(&union, "d/f").unwrap();
    act(&union, &Op::Rename("d".into(), "D".into(), 0)).unwrap();
    assert_eq!(walk(&union, "D/f").unwrap(), ino);
    act(&union, &Op::Mkdir("d".into())).unwrap();
    assert_eq!(dump(&d.union()).keys().collect::<Vec<_>>(), ["/D", "/D/e", "/D/f", "/d", "/g"]);
    let strict = Union::open(UnionConfig { dirren: false, ..union.config() }).unwrap();
    assert_eq!(act(&strict, &Op::Rename("D".into(), "x".into(), 0)), Err(Errno::EXDEV));
}

#[test]
fn only_dead_unions_work_directories_are_swept() {
    let d = dirs();
    let instances = || fs::read_dir(d.upper.join(".wh..wh.orph")).unwrap().count();
    let first = d.union();
    let second = d.union();
    assert_eq!(instances(), 2, "the first one lives");
    drop(first);
    let third = d.union();
    assert_eq!(instances(), 2, "the first one's is swept, the second one lives");
    second.close();
    third.close();
    assert_eq!(instances(), 0);
}

#[test]
fn a_name_that_vanished_does_not_take_the_file_with_it() {
    let d = dirs();
    fs::write(d.upper.join("x"), "text").unwrap();
    fs::hard_link(d.upper.join("x"), d.upper.join("y")).unwrap();
    let union = d.union();
    let ino = walk(&union, "x").unwrap();
    fs::remove_file(d.upper.join("x")).unwrap();
    assert_eq!(union.getattr(ino).map(drop), Err(Errno::ESTALE));
    assert_eq!(walk(&union, "y").unwrap(), ino);
    assert_eq!(union.getattr(ino).unwrap().nlink, 1);
    assert_eq!(text(&union, ino), "text");
}

#[test]
fn branches_must_be_apart() {
    let d = dirs();
    let open = |branches| Union::open(UnionConfig { branches, ..UnionConfig::default() }).map(drop).unwrap_err().to_string();
    let twice = open(vec![dir_branch(&d.upper, Perm::RW), dir_branch(&d.upper, Perm::RO)]);
    assert!(twice.contains("given twice"), "{twice}");
    let nested = open(vec![dir_branch(&d.upper, Perm::RW), dir_branch(&d.upper.join(".."), Perm::RO)]);
    assert!(nested.contains("lies inside"), "{nested}");
    let missing = open(vec![dir_branch(&d.upper.join("nothing"), Perm::RW)]);
    assert!(missing.contains("nothing") && missing.contains("open the directory"), "{missing}");
}

#[test]
fn holes_and_links_survive_a_copy_up() {
    let d = dirs();
    let file = fs::File::create(d.lower.join("sparse")).unwrap();
    file.set_len(1 << 30).unwrap();
    fs::hard_link(d.lower.join("g"), d.lower.join("g2")).unwrap();
    let union = d.union();
    let ino = walk(&union, "sparse").unwrap();
    union.write(ino, 1 << 29, b"x", false).unwrap();
    let m = d.upper.join("sparse").metadata().unwrap();
    assert!(m.len() == 1 << 30 && m.blocks() < 1000, "{} blocks", m.blocks());
    let (a, b) = (walk(&union, "g").unwrap(), walk(&union, "g2").unwrap());
    assert_eq!(a, b);
    union.write(a, 0, b"both", false).unwrap();
    assert_eq!((walk(&union, "g").unwrap(), walk(&union, "g2").unwrap()), (a, a));
    let again = d.union();
    for path in ["g", "g2"] {
        let ino = walk(&again, path).unwrap();
        assert_eq!((ino, text(&again, ino).as_str()), (a, "bothlow"), "{path}");
    }
    act(&again, &Op::Unlink("g".into())).unwrap();
    let left = walk(&again, "g2").unwrap();
    assert_eq!((text(&again, left).as_str(), again.getattr(left).unwrap().nlink), ("bothlow", 1));
}
