//! What others change in watched branches, without a kernel that caches.

use super::{dir_branch, sim_branch, union_of, walk};
use crate::union::branch::SimBranch;
use crate::union::{Caller, Perm, READ_BYTES, ROOT_INO, Stale, Union, Watcher};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

const RO: Perm = Perm::RO;

/// Somebody else: events of this process are not told.
fn other(dir: &Path, line: &str) {
    let status = Command::new("sh").args(["-c", line]).current_dir(dir).status().expect("run sh");
    assert!(status.success(), "{line}");
}

/// All that was told, and whether everything is to be forgotten.
fn heard(union: &Union, watcher: &Watcher) -> (Vec<Stale>, bool) {
    watcher.wait(Some(Duration::from_millis(200))).expect("wait");
    let (mut stale, mut everything, mut buf) = (Vec::new(), false, vec![0; READ_BYTES]);
    loop {
        let changes = watcher.read(&mut buf).expect("read");
        stale.extend(changes.changes.iter().flat_map(|c| union.stale(c)));
        everything |= changes.everything;
        if !changes.more {
            return (stale, everything);
        }
    }
}

#[test]
fn others_are_heard_and_own_changes_are_not() {
    let (upper, lower) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    fs::create_dir(lower.path().join("dir")).expect("mkdir");
    let union = union_of(vec![dir_branch(upper.path(), Perm::RW), dir_branch(lower.path(), RO)]);
    assert!(!union.lasts(ROOT_INO), "nobody watches");
    let watcher = union.watch(true).expect("watch");
    let dir = walk(&union, "dir").expect("look up");
    assert!(union.lasts(ROOT_INO) && union.lasts(dir));
    let seen = union.seen();
    let made = union.mknod(dir, b"own", crate::fop::FileKind::File, 0o600, 0, &Caller::default()).expect("mknod");
    union.write(made.ino, 0, b"data", false).expect("write");
    assert!(union.attr_lasts(made.ino, &union.getattr(made.ino).expect("stat")));
    assert_eq!((heard(&union, &watcher), union.seen()), ((vec![], false), seen));

    other(lower.path(), "echo x > dir/new");
    let (stale, everything) = heard(&union, &watcher);
    assert!(!everything && union.seen() > seen);
    assert!(stale.iter().all(|s| s.dir == dir && s.name.as_deref() == Some(b"new")), "{stale:?}");
    assert!(stale.iter().any(|s| s.names) && stale.iter().any(|s| s.data));
    assert!(union.look_again(dir, b"new").is_some());
    // A whiteout is about the name that it hides; a second name makes the first one's attributes short-lived.
    other(upper.path(), "touch .wh.hidden; ln dir/own dir/twin");
    let (stale, _) = heard(&union, &watcher);
    assert!(stale.iter().any(|s| s.dir == ROOT_INO && s.name.as_deref() == Some(b"hidden")), "{stale:?}");
    assert!(stale.iter().any(|s| s.dir == dir && s.name.as_deref() == Some(b"twin")), "{stale:?}");
    assert!(!union.attr_lasts(made.ino, &union.getattr(made.ino).expect("stat")));
    // Layers that come or go by themselves leave nothing to believe below.
    other(lower.path(), "mv dir gone");
    let (stale, everything) = heard(&union, &watcher);
    assert!(!everything && stale.iter().any(|s| s.name.as_deref() == Some(b"dir")), "{stale:?}");
    assert_eq!(union.look_again(ROOT_INO, b"dir"), Some(dir));
    assert!(heard(&union, &watcher).1);
}

#[test]
fn what_is_forgotten_is_not_watched() {
    let (upper, lower) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    for i in 0..50 {
        fs::create_dir_all(lower.path().join(format!("{i}/sub"))).expect("mkdir");
    }
    let union = union_of(vec![dir_branch(upper.path(), Perm::RW), dir_branch(lower.path(), RO)]);
    let watcher = union.watch(true).expect("watch");
    let mut known = Vec::new();
    for i in 0..50 {
        // Twice: it is one directory, and one mark.
        let dirs = [0, 1].map(|_| union.lookup(ROOT_INO, i.to_string().as_bytes()).expect("look up").ino);
        known.extend(dirs);
        known.push(union.lookup(dirs[0], b"sub").expect("look up").ino);
    }
    assert_eq!(watcher.watched(), 102);
    known.into_iter().for_each(|ino| {
        union.forget(ino, 1);
    });
    assert_eq!(watcher.watched(), 2);
    other(lower.path(), "touch 7/x");
    assert_eq!(heard(&union, &watcher), (vec![], false), "a mark is left");
}

#[test]
fn where_a_layer_is_not_watched_nothing_lasts() {
    let upper = tempfile::tempdir().expect("a directory");
    fs::create_dir(upper.path().join("dir")).expect("mkdir");
    let lower = Arc::new(SimBranch::new(1));
    let union = union_of(vec![dir_branch(upper.path(), Perm::RW), sim_branch("sim", &lower, RO)]);
    let watcher = union.watch(true).expect("watch");
    let dir = walk(&union, "dir").expect("look up");
    assert!(!union.lasts(ROOT_INO) && union.lasts(dir), "the directory has one layer, the root two");
    watcher.give_up();
    assert!(!union.lasts(dir), "nobody listens");
}
