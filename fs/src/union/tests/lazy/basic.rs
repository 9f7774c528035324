//! One by one, over directories of this machine.

use super::*;
use crate::union::branch::LocalBranch;
use crate::union::{BranchChange, Caller, Layout, ROOT_INO};
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

struct Dirs {
    _base: tempfile::TempDir,
    upper: PathBuf,
    lower: PathBuf,
}

fn dirs() -> Dirs {
    let base = tempfile::tempdir().unwrap();
    let (upper, lower) = (base.path().join("upper"), base.path().join("lower"));
    fs::create_dir(&upper).unwrap();
    fs::create_dir_all(lower.join("d")).unwrap();
    fs::write(lower.join("d/f"), text(100)).unwrap();
    fs::write(lower.join("small"), text(31)).unwrap();
    Dirs { upper, lower, _base: base }
}

impl Dirs {
    fn config(&self) -> UnionConfig {
        lazily(vec![dir_branch(&self.upper, Perm::RW), dir_branch(&self.lower, Perm::RO)])
    }

    fn union(&self) -> Union {
        Union::open(self.config()).unwrap()
    }

    /// Without the option.
    fn plain(&self) -> Union {
        Union::open(UnionConfig { lazy: LazyConfig::default(), ..self.config() }).unwrap()
    }

    fn on_disk(&self) -> (Vec<String>, Vec<String>) {
        on_disk(&LocalBranch::open(&self.upper).unwrap())
    }
}

fn has_mark(path: &Path) -> bool {
    rustix::fs::lgetxattr(path, "trusted.brickraft.lazy", &mut [0; 4096][..]).is_ok()
}

#[test]
fn one_block_is_written_and_no_more_is_copied() {
    let d = dirs();
    let file = fs::OpenOptions::new().write(true).open(d.lower.join("d/f")).unwrap();
    file.set_len(1 << 40).unwrap();
    file.write_all_at(b"far", 1 << 39).unwrap();
    let union = d.union();
    let ino = walk(&union, "d/f").unwrap();
    let before = union.getattr(ino).unwrap();
    union.write(ino, 5, b"NEW", false).unwrap();
    union.fsync(ino, false).unwrap();
    let copy = d.upper.join("d/f").metadata().unwrap();
    assert!(copy.len() == 1 << 40 && copy.blocks() < 100, "{} blocks", copy.blocks());
    let after = union.getattr(ino).unwrap();
    assert_eq!((after.size, after.mode, after.ino_shown()), (before.size, before.mode, before.ino_shown()));
    let mut buf = [0; 10];
    assert_eq!(union.read(ino, 0, &mut buf), Ok(10));
    assert_eq!(&buf, b"abcdeNEWij");
    assert_eq!(union.read(ino, 1 << 39, &mut buf[..3]), Ok(3));
    assert_eq!(&buf[..3], b"far");
    assert_eq!(union.lseek(ino, 1 << 20, 3), Ok(1 << 39), "the lower file's data is found");
    union.write(walk(&union, "small").unwrap(), 0, b"X", false).unwrap();
    assert!(has_mark(&d.upper.join("d/f")) && !has_mark(&d.upper.join("small")));
}

trait Shown {
    fn ino_shown(&self) -> u64;
}

impl Shown for crate::fop::Attr {
    fn ino_shown(&self) -> u64 {
        u64::from_be_bytes(self.gfid.0[8..].try_into().unwrap())
    }
}

#[test]
fn a_union_without_the_option_reads_and_writes_it() {
    let d = dirs();
    let union = d.union();
    let ino = walk(&union, "d/f").unwrap();
    union.write(ino, 20, b"NEW", false).unwrap();
    union.rename(walk(&union, "d").unwrap(), b"f", ROOT_INO, b"g", 0).unwrap();
    union.close();
    let plain = d.plain();
    let mut model = text(100);
    model[20..23].copy_from_slice(b"NEW");
    assert_eq!(walk(&plain, "g").unwrap(), ino);
    assert_eq!(content(&plain, ino).unwrap(), model);
    plain.write(ino, 99, b"END", false).unwrap();
    model.truncate(99);
    model.extend(b"END");
    assert_eq!(content(&plain, ino).unwrap(), model);
    plain.close();
    assert_eq!(content(&d.union(), ino).map(drop), Err(Errno::ESTALE));
    let again = d.plain();
    let ino = walk(&again, "g").unwrap();
    assert_eq!(content(&again, ino).unwrap(), model);
    // Of a branch that cannot be written any more, too; and what is copied up from it is whole.
    again.close();
    let top = tempfile::tempdir().unwrap();
    let mut config = d.config();
    config.branches[0].perm = Perm::RO;
    config.branches.insert(0, dir_branch(top.path(), Perm::RW));
    let three = Union::open(config).unwrap();
    let ino = walk(&three, "g").unwrap();
    assert_eq!(content(&three, ino).unwrap(), model);
    three.write(ino, 0, b"TOP", false).unwrap();
    model[..3].copy_from_slice(b"TOP");
    assert_eq!(content(&three, ino).unwrap(), model);
    assert_eq!(fs::read(top.path().join("g")).unwrap(), model);
    assert!(!has_mark(&top.path().join("g")));
}

#[test]
fn it_becomes_an_ordinary_file_when_nothing_is_missing() {
    let d = dirs();
    let union = d.union();
    let ino = walk(&union, "d/f").unwrap();
    union.write(ino, 3, b"NEW", false).unwrap();
    let mtime = union.getattr(ino).unwrap().mtime;
    assert_eq!(d.on_disk().0, d.on_disk().1);
    assert_eq!(d.on_disk().0.len(), 1);
    assert!(union.backing(ino).unwrap().is_none(), "not passed through");
    assert_eq!(union.complete(ino, 1), Ok(false), "one block");
    while !union.complete(ino, 40).unwrap() {}
    let mut model = text(100);
    model[3..6].copy_from_slice(b"NEW");
    assert_eq!(fs::read(d.upper.join("d/f")).unwrap(), model);
    assert_eq!(content(&union, ino).unwrap(), model);
    assert_eq!(union.getattr(ino).unwrap().mtime, mtime, "it was not changed");
    assert_eq!(d.on_disk(), (vec![], vec![]));
    assert!(union.backing(ino).unwrap().is_some());
    // By being written, too, and by being cut off.
    for path in ["a", "b"] {
        fs::write(d.lower.join(path), text(100)).unwrap();
    }
    let (a, b) = (walk(&union, "a").unwrap(), walk(&union, "b").unwrap());
    for at in 0..10 {
        union.write(a, at * 10, b"0123456789", false).unwrap();
    }
    union.write(b, 0, b"x", false).unwrap();
    assert_eq!(d.on_disk().0.len(), 2);
    union.fsync(a, true).unwrap();
    assert_eq!(d.on_disk().0.len(), 1);
    truncate(&union, b, 0).unwrap();
    assert_eq!(d.on_disk(), (vec![], vec![]));
    assert_eq!((content(&union, a).unwrap().len(), content(&union, b).unwrap().len()), (100, 0));
}

#[test]
fn what_was_cut_off_does_not_come_back() {
    let d = dirs();
    let union = d.union();
    let ino = walk(&union, "d/f").unwrap();
    union.write(ino, 0, b"x", false).unwrap();
    truncate(&union, ino, 37).unwrap();
    truncate(&union, ino, 90).unwrap();
    union.write(ino, 34, b"Y", false).unwrap();
    let mut model = text(37);
    model.resize(90, 0);
    (model[0], model[34]) = (b'x', b'Y');
    assert_eq!(content(&union, ino).unwrap(), model);
    union.close();
    let again = d.union();
    assert_eq!(content(&again, walk(&again, "d/f").unwrap()).unwrap(), model);
}

#[test]
fn a_lower_file_that_changed_or_vanished_gives_eio() {
    let changes: [fn(&Path); 4] = [
        |f| fs::remove_file(f).unwrap(),
        |f| fs::write(f, text(99)).unwrap(),
        |f| {
            std::thread::sleep(std::time::Duration::from_millis(20));
            fs::OpenOptions::new().write(true).open(f).unwrap().write_all_at(b"!", 50).unwrap();
        },
        |f| {
            let copy = f.with_file_name("copy");
            assert!(std::process::Command::new("cp").arg("-a").args([f, &copy]).status().unwrap().success());
            fs::rename(copy, f).unwrap();
        },
    ];
    for (i, change) in changes.iter().enumerate() {
        let d = dirs();
        let union = d.union();
        let ino = walk(&union, "d/f").unwrap();
        union.write(ino, 0, &[b'N'; 16], false).unwrap();
        union.fsync(ino, true).unwrap();
        if i == 2 {
            // While it is in use, too.
            assert!(content(&union, ino).is_ok());
            change(&d.lower.join("d/f"));
            assert_eq!(content(&union, ino), Err(Errno::EIO));
        } else {
            change(&d.lower.join("d/f"));
        }
        union.close();
        let again = d.union();
        let ino = walk(&again, "d/f").unwrap();
        assert_eq!(content(&again, ino), Err(Errno::EIO), "change {i}");
        let mut buf = [0; 16];
        assert_eq!(again.read(ino, 0, &mut buf), Ok(16), "what was written is there");
        assert_eq!(buf, [b'N'; 16]);
        assert_eq!(again.write(ino, 20, b"part", false), Err(Errno::EIO), "part of a block that cannot be read");
        assert_eq!(again.complete(ino, u64::MAX), Err(Errno::EIO));
        again.write(ino, 16, &[b'W'; 16], false).unwrap();
        truncate(&again, ino, 32).unwrap();
        assert_eq!(content(&again, ino).unwrap(), [[b'N'; 16], [b'W'; 16]].concat());
        again.unlink(walk(&again, "d").unwrap(), b"f").unwrap();
        assert_eq!(d.on_disk(), (vec![], vec![]));
    }
}

#[test]
fn a_copy_made_behind_its_back_gives_eio_and_does_no_harm() {
    let d = dirs();
    let union = d.union();
    let ino = walk(&union, "d/f").unwrap();
    union.write(ino, 0, &[b'N'; 16], false).unwrap();
    union.close();
    let twin = d.upper.join("d/twin");
    assert!(std::process::Command::new("cp").arg("-a").args([&d.upper.join("d/f"), &twin]).status().unwrap().success());
    assert!(has_mark(&twin));
    let union = d.union();
    let twin = walk(&union, "d/twin").unwrap();
    assert_eq!(content(&union, twin), Err(Errno::EIO));
    assert_eq!(truncate(&union, twin, 5), Err(Errno::EIO));
    truncate(&union, twin, 0).unwrap();
    union.write(twin, 0, b"anew", false).unwrap();
    assert_eq!(content(&union, twin).unwrap(), b"anew");
    union.unlink(walk(&union, "d").unwrap(), b"twin").unwrap();
    let ino = walk(&union, "d/f").unwrap();
    assert_eq!(content(&union, ino).unwrap()[..20], [&[b'N'; 16][..], &text(20)[16..]].concat());
    // A lost bitmap is seen, as is one that is not whole.
    union.close();
    let id = d.on_disk().0.remove(0);
    let bitmap = d.upper.join(".wh..wh.lazy").join(id);
    fs::OpenOptions::new().write(true).open(&bitmap).unwrap().set_len(0).unwrap();
    let union = d.union();
    assert_eq!(content(&union, walk(&union, "d/f").unwrap()), Err(Errno::EIO));
    fs::remove_file(bitmap).unwrap();
    let union = d.union();
    assert_eq!(content(&union, walk(&union, "d/f").unwrap()), Err(Errno::EIO));
}

#[test]
fn branches_that_are_needed_stay() {
    let d = dirs();
    let other = tempfile::tempdir().unwrap();
    let union = d.union();
    union.change(BranchChange::Append(dir_branch(other.path(), Perm::RO))).unwrap();
    let ino = walk(&union, "d/f").unwrap();
    union.write(ino, 0, b"x", false).unwrap();
    let label = d.lower.display().to_string();
    let delete = || union.change(BranchChange::Delete { label: label.clone() }).map_err(|e| e.to_string());
    let write = || union.change(BranchChange::Modify { label: label.clone(), perm: Perm::RW }).map_err(|e| e.to_string());
    for refused in [delete(), write()] {
        let why = refused.unwrap_err();
        assert!(why.contains("of 1 files") && why.contains("d/f") && why.contains("union complete"), "{why}");
    }
    union.change(BranchChange::Delete { label: other.path().display().to_string() }).unwrap();
    // Without a name it still needs it.
    union.lookup(walk(&union, "d").unwrap(), b"f").unwrap();
    union.unlink(walk(&union, "d").unwrap(), b"f").unwrap();
    assert!(delete().is_err());
    let mut model = text(100);
    model[0] = b'x';
    assert_eq!(content(&union, ino).unwrap(), model);
    union.write(ino, 50, b"yz", false).unwrap();
    union.fsync(ino, false).unwrap();
    assert!(union.complete(ino, u64::MAX).unwrap());
    model[50..52].copy_from_slice(b"yz");
    assert_eq!(content(&union, ino).unwrap(), model);
    write().unwrap();
    delete().unwrap();
}

#[test]
fn it_can_be_switched_while_it_lives_and_not_with_overlays_layout() {
    let d = dirs();
    let plain = d.plain();
    plain.change(BranchChange::LazyCopyUp(Some(64))).unwrap();
    assert_eq!(plain.config().lazy.cpup, Some(64));
    fs::write(d.lower.join("later"), text(100)).unwrap();
    plain.write(walk(&plain, "d/f").unwrap(), 0, b"x", false).unwrap();
    plain.change(BranchChange::LazyCopyUp(None)).unwrap();
    plain.write(walk(&plain, "later").unwrap(), 0, b"x", false).unwrap();
    assert!(has_mark(&d.upper.join("d/f")) && !has_mark(&d.upper.join("later")));
    let overlay = UnionConfig { layout: Layout::Overlay, ..d.config() };
    let why = Union::open(overlay.clone()).map(drop).unwrap_err().to_string();
    assert!(why.contains("layout=overlay"), "{why}");
    let union = Union::open(UnionConfig { lazy: LazyConfig::default(), ..overlay }).unwrap();
    assert!(union.change(BranchChange::LazyCopyUp(Some(1))).is_err());
}

#[test]
fn what_was_written_reaches_the_disk_by_itself() {
    let d = dirs();
    let mut config = d.config();
    config.lazy.flush_after = Some(std::time::Duration::from_millis(5));
    let union = Union::open(config).unwrap();
    union.write(walk(&union, "d/f").unwrap(), 20, b"NEW", false).unwrap();
    // As if the process had been killed.
    let seen = || {
        let other = d.plain();
        content(&other, walk(&other, "d/f").unwrap()).unwrap()[20..23] == *b"NEW"
    };
    let patient = (0..1000).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(5));
        seen()
    });
    assert!(patient, "it never did");
}

#[test]
fn completion_keeps_capabilities_and_attributes() {
    let d = dirs();
    let flags = rustix::fs::XattrFlags::empty();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    rustix::fs::setxattr(d.lower.join("d/f"), "security.capability", &capability, flags).unwrap();
    rustix::fs::setxattr(d.lower.join("d/f"), "user.test", b"kept", flags).unwrap();
    let union = d.union();
    let ino = walk(&union, "d/f").unwrap();
    union.setattr(ino, &SetAttr { mode: Some(0o4711), ..SetAttr::default() }, false).unwrap();
    assert!(union.complete(ino, u64::MAX).unwrap());
    assert_eq!(union.getxattr(ino, b"security.capability").unwrap(), capability);
    assert_eq!((union.getxattr(ino, b"user.test").unwrap(), union.getattr(ino).unwrap().mode), (b"kept".to_vec(), 0o4711));
    assert_eq!(fs::read(d.upper.join("d/f")).unwrap(), text(100));
}

#[test]
fn it_is_found_below_renamed_directories_and_in_a_branch_that_moved() {
    let d = dirs();
    let union = d.union();
    union.rename(ROOT_INO, b"d", ROOT_INO, b"moved", 0).unwrap();
    let ino = walk(&union, "moved/f").unwrap();
    union.write(ino, 0, b"x", false).unwrap();
    assert!(has_mark(&d.upper.join("moved/f")));
    union.close();
    let mut model = text(100);
    model[0] = b'x';
    let elsewhere = d.lower.with_file_name("elsewhere");
    fs::rename(&d.lower, &elsewhere).unwrap();
    let config = lazily(vec![dir_branch(&d.upper, Perm::RW), dir_branch(&elsewhere, Perm::RO)]);
    let union = Union::open(config).unwrap();
    assert_eq!(content(&union, walk(&union, "moved/f").unwrap()).unwrap(), model);
    let refused = union.change(BranchChange::Delete { label: elsewhere.display().to_string() });
    assert!(refused.is_err(), "it is needed by another name");
    // Where a branch in between redirects, the path is another one, and the copy whole.
    union.close();
    let top = tempfile::tempdir().unwrap();
    fs::write(elsewhere.join("d/g"), text(100)).unwrap();
    let perms = [(top.path(), Perm::RW), (&d.upper, Perm::RO), (&elsewhere, Perm::RO)];
    let union = Union::open(lazily(perms.map(|(path, perm)| dir_branch(path, perm)).to_vec())).unwrap();
    let ino = walk(&union, "moved/g").unwrap();
    union.write(ino, 0, b"x", false).unwrap();
    assert_eq!(fs::read(top.path().join("moved/g")).unwrap(), model);
    assert!(!has_mark(&top.path().join("moved/g")));
}

#[test]
fn hard_linked_lower_files_are_copied_whole_and_links_of_copies_share_it() {
    let d = dirs();
    fs::hard_link(d.lower.join("d/f"), d.lower.join("d/g")).unwrap();
    fs::write(d.lower.join("single"), text(100)).unwrap();
    let union = d.union();
    union.write(walk(&union, "d/g").unwrap(), 0, b"x", false).unwrap();
    assert!(!has_mark(&d.upper.join("d/g")));
    let ino = walk(&union, "single").unwrap();
    union.link(ino, ROOT_INO, b"second").unwrap();
    assert!(has_mark(&d.upper.join("second")));
    union.write(walk(&union, "second").unwrap(), 0, b"2", false).unwrap();
    union.unlink(ROOT_INO, b"single").unwrap();
    assert_eq!(d.on_disk().0.len(), 1);
    assert_eq!(content(&union, ino).unwrap()[..17], [b"2", &text(17)[1..]].concat());
    union.mknod(ROOT_INO, b"over", FileKind::File, 0o600, 0, &Caller::default()).unwrap();
    union.rename(ROOT_INO, b"over", ROOT_INO, b"second", 0).unwrap();
    assert_eq!(d.on_disk(), (vec![], vec![]));
    assert_eq!(content(&union, ino).unwrap()[..17], [b"2", &text(17)[1..]].concat(), "it is still open");
}
