//! What is fetched ahead of a walker, step by step, without threads.

use super::super::branch::{Branch, LocalBranch, SimBranch, volume};
use super::super::names::{XATTR_IMPURE, XATTR_LAZY};
use super::super::tests::{dir_branch, put, sim_branch, union_of, walk};
use super::super::{BranchChange, BranchConfig, BranchSource, Perm, ROOT_INO, Union};
use super::window::AHEAD_FILES_MAX;
use super::{WALKS_MAX, lock};
use crate::fop::FileKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

fn scouting(branches: Vec<BranchConfig>) -> Union {
    let union = union_of(branches);
    lock(&union.scout.0.state).running = true;
    union
}

/// What the threads do, here and now.
fn scout_now(union: &Union) {
    let shared = &union.scout.0;
    loop {
        let hungry = lock(&shared.state).walks.iter().find(|w| w.hungry.load(Ordering::Acquire)).cloned();
        let Some(walk) = hungry else { return };
        union.scout(shared, &walk);
    }
}

fn listed(union: &Union, dir: u64) -> Vec<(u64, FileKind, Vec<u8>)> {
    let mut all = Vec::new();
    let add = &mut |e: super::super::DirEntry<'_>| {
        if let Some(entry) = e.entry {
            all.push((entry.ino, e.kind, e.name.to_vec()));
        }
        false
    };
    union.readdir(dir, 0, true, add).expect("list");
    all
}

/// Walks depth first and reads all; calls `each` with every file's name after it was read.
fn walk_all(union: &Union, dir: u64, each: &mut dyn FnMut(&[u8])) {
    for (ino, kind, name) in listed(union, dir) {
        match kind {
            FileKind::Dir => walk_all(union, ino, each),
            FileKind::File => {
                union.read(ino, 0, &mut [0; 64]).expect("read");
                scout_now(union);
                each(&name);
            }
            _ => {}
        }
    }
}

/// Directories of directories of files, all files with names of their own.
fn forest(branch: &dyn Branch, files: usize) {
    for i in 0..files {
        put(branch, &format!("a{}/b{}/f{i}", i % 5, i % 7), FileKind::File, b"some");
    }
    put(branch, "a1/empty/none", FileKind::File, b"");
    put(branch, "a1/link", FileKind::Symlink, b"f1");
}

fn cold_forest(files: usize) -> (Arc<SimBranch>, Union) {
    let (upper, lower) = (Arc::new(SimBranch::new(1)), Arc::new(SimBranch::new(2)));
    forest(&*lower, files);
    lower.chill();
    let union = scouting(vec![sim_branch("upper", &upper, Perm::RW), sim_branch("lower", &lower, Perm::RO)]);
    (lower, union)
}

fn walks(union: &Union) -> usize {
    lock(&union.scout.0.state).walks.len()
}

#[test]
fn a_walk_is_scouted_in_its_own_order_and_within_the_bound() {
    let (lower, union) = cold_forest(600);
    let (mut order, mut most) = (Vec::new(), 0);
    walk_all(&union, ROOT_INO, &mut |name| {
        if name != b"none" {
            order.push(name.to_vec());
            most = most.max((lower.fetched().len() + 1).saturating_sub(order.len()));
        }
    });
    // All but the first, whose wait began it: into directories and out of them again, to the end of the tree.
    assert_eq!(lower.fetched(), order[1..]);
    assert_eq!(union.scouted(), 599);
    let bound = usize::try_from(AHEAD_FILES_MAX).expect("small");
    assert!(most > bound / 2 && most <= bound, "{most} files ahead");
    assert_eq!(walks(&union), 1);
}

#[test]
fn a_tree_in_memory_is_not_scouted() {
    let (lower, union) = cold_forest(100);
    walk_all(&union, ROOT_INO, &mut |_| {});
    union.scout.clear();
    let before = lower.fetched().len();
    walk_all(&union, ROOT_INO, &mut |_| {});
    assert_eq!((lower.fetched().len(), walks(&union)), (before, 0));
}

#[test]
fn who_has_not_listed_is_no_walker_and_who_reads_one_file_gets_one_more() {
    let (lower, union) = cold_forest(300);
    for i in [3, 77, 150] {
        let ino = walk(&union, &format!("a{}/b{}/f{i}", i % 5, i % 7)).expect("look up");
        union.read(ino, 0, &mut [0; 8]).expect("read");
        scout_now(&union);
    }
    assert_eq!(lower.fetched().len(), 0);
    let dir = walk(&union, "a0/b0").expect("look up");
    let (ino, ..) = listed(&union, dir)[1];
    union.read(ino, 0, &mut [0; 8]).expect("read");
    scout_now(&union);
    assert_eq!(lower.fetched().len(), 1);
}

#[test]
fn it_begins_in_the_middle_and_goes_up_only_where_somebody_has_listed() {
    let (lower, union) = cold_forest(300);
    let dir = walk(&union, "a2/b3").expect("look up");
    walk_all(&union, dir, &mut |_| {});
    let mut fetched = lower.fetched();
    let mut names: Vec<_> = listed(&union, dir).into_iter().map(|(_, _, name)| name).skip(1).collect();
    fetched.sort();
    names.sort();
    assert_eq!(fetched, names);
}

#[test]
fn walkers_beyond_the_bound_push_the_oldest_out() {
    let (_, union) = cold_forest(400);
    for a in 0..5 {
        for b in 0..7 {
            let dir = walk(&union, &format!("a{a}/b{b}")).expect("look up");
            let first = listed(&union, dir)[0].0;
            union.read(first, 0, &mut [0; 8]).expect("read");
            scout_now(&union);
        }
    }
    assert_eq!(walks(&union), WALKS_MAX);
}

#[test]
fn a_change_of_branches_ends_all_walks() {
    let (lower, union) = cold_forest(300);
    let mut count = 0;
    walk_all(&union, ROOT_INO, &mut |_| {
        count += 1;
        if count == 50 {
            let more = Arc::new(SimBranch::new(3));
            union.change(BranchChange::Append(sim_branch("more", &more, Perm::RO))).expect("append");
            assert_eq!(walks(&union), 0);
        }
    });
    assert!(lower.fetched().len() > 200, "and begin again");
    union.change(BranchChange::Delete { label: "lower".into() }).expect("delete");
    assert_eq!(walks(&union), 0);
    union.close();
    union.scout.reads(&union.table.find(ROOT_INO).expect("root"), true);
    assert_eq!(walks(&union), 0, "after the end none begins");
}

#[test]
fn what_was_replaced_or_removed_meanwhile_does_no_harm() {
    let (lower, union) = cold_forest(300);
    let mut gone = 0;
    walk_all(&union, ROOT_INO, &mut |name| {
        let number: usize = std::str::from_utf8(&name[1..]).ok().and_then(|n| n.parse().ok()).unwrap_or(0);
        // Behind the walker's back, in the branch: some other file, which may be ahead or not.
        let other = (number * 31 + 7) % 300;
        let dir = put_dir(&*lower, other);
        if gone < 20 && number.is_multiple_of(3) && lower.unlink(&dir, format!("f{other}").as_bytes()).is_ok() {
            put(&*lower, &format!("a{}/b{}/f{other}", other % 5, other % 7), FileKind::Dir, b"");
            gone += 1;
        }
    });
    assert_eq!(gone, 20);
}

fn put_dir(branch: &dyn Branch, i: usize) -> super::super::branch::Handle {
    use super::super::branch::{At, Open};
    [format!("a{}", i % 5), format!("b{}", i % 7)]
        .iter()
        .fold(branch.root(), |dir, name| branch.open(At::Name(&dir, name.as_bytes()), Open::Path).expect("open"))
}

#[test]
fn of_a_volume_nothing_is_fetched() {
    let (upper, lower) = (Arc::new(SimBranch::new(1)), Arc::new(SimBranch::new(2)));
    forest(&*lower, 40);
    lower.chill();
    let source = BranchSource::Volume { label: "volume".into(), volume: volume(), subdir: PathBuf::new() };
    let union = scouting(vec![
        sim_branch("upper", &upper, Perm::RW),
        BranchConfig { source, perm: Perm::RO },
        sim_branch("lower", &lower, Perm::RO),
    ]);
    walk_all(&union, ROOT_INO, &mut |_| {});
    // The root has a layer there, so no directory is gone into from it; within one that lies here, files are.
    let firsts = lower.fetched();
    assert!(!firsts.is_empty() && firsts.len() < 40, "{}", firsts.len());
}

#[test]
fn access_times_stay_and_local_files_in_memory_are_left_alone() {
    let base = tempfile::tempdir().expect("directory");
    let [upper, lower] = ["upper", "lower"].map(|n| base.path().join(n));
    for dir in [&upper, &lower] {
        std::fs::create_dir(dir).expect("mkdir");
    }
    forest(&LocalBranch::open(&lower).expect("open"), 30);
    let union = scouting(vec![dir_branch(&upper, Perm::RW), dir_branch(&lower, Perm::RO)]);
    let mut files = 0;
    walk_all(&union, ROOT_INO, &mut |_| files += 1);
    assert_eq!((files, union.scouted(), walks(&union)), (31, 0, 0));
}

#[test]
fn what_was_copied_up_in_part_is_left_out() {
    use super::super::branch::{At, Open};
    let (upper, lower) = (Arc::new(SimBranch::new(1)), Arc::new(SimBranch::new(2)));
    (0..40).for_each(|i| put(&*upper, &format!("dir/f{i}"), FileKind::File, b"some"));
    let dir = upper.open(At::Name(&upper.root(), b"dir"), Open::Path).expect("open");
    upper.set_xattr(At::Open(&dir), XATTR_IMPURE, b"y", 0).expect("mark");
    for i in 10..20 {
        upper.set_xattr(At::Name(&dir, format!("f{i}").as_bytes()), XATTR_LAZY, b"a mark", 0).expect("mark");
    }
    upper.chill();
    let union = scouting(vec![sim_branch("upper", &upper, Perm::RW), sim_branch("lower", &lower, Perm::RO)]);
    walk_all(&union, ROOT_INO, &mut |_| {});
    let fetched = upper.fetched();
    assert!((10..20).all(|i| !fetched.contains(&format!("f{i}").into_bytes())), "{fetched:?}");
    assert!(fetched.len() >= 15);
}

#[test]
fn a_long_listing_is_kept_for_the_walk_through_it() {
    let base = tempfile::tempdir().expect("directory");
    let [upper, lower] = ["upper", "lower"].map(|n| base.path().join(n));
    for dir in [&upper, &lower] {
        std::fs::create_dir(dir).expect("mkdir");
    }
    for i in 0..20_001 {
        std::fs::File::create(lower.join(format!("f{i}"))).expect("create");
    }
    let union = scouting(vec![dir_branch(&upper, Perm::RW), dir_branch(&lower, Perm::RO)]);
    let all = listed(&union, ROOT_INO);
    assert_eq!(all.len(), 20_001);
    union.scout.reads(&union.table.find(all[100].0).expect("listed"), true);
    scout_now(&union);
    let walk = lock(&union.scout.0.state).walks[0].clone();
    assert!(lock(&walk.window).read(all[101].0).is_some());
    union.scout.clear();
    assert!(union.scout.kept(ROOT_INO).is_none());
}

#[test]
fn threads_scout_let_go_of_silent_walkers_and_end_with_the_union() {
    let (lower, union) = cold_forest(300);
    let shared = Arc::clone(&union.scout.0);
    let union = Arc::new(union);
    let wait = |what: &str, holds: &dyn Fn() -> bool| {
        let started = std::time::Instant::now();
        while !holds() {
            assert!(started.elapsed() < std::time::Duration::from_secs(30), "{what}");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    };
    union.start_scout().expect("start");
    let mut files = 0;
    walk_all_by_threads(&union, ROOT_INO, &mut files);
    assert_eq!(files, 301);
    wait("something is fetched", &|| !lower.fetched().is_empty());
    wait("the walk is let go of", &|| walks(&union) == 0);
    drop(union);
    wait("the threads end", &|| Arc::strong_count(&shared) == 1);
}

fn walk_all_by_threads(union: &Union, dir: u64, files: &mut usize) {
    for (ino, kind, _) in listed(union, dir) {
        match kind {
            FileKind::Dir => walk_all_by_threads(union, ino, files),
            FileKind::File => {
                union.read(ino, 0, &mut [0; 64]).expect("read");
                *files += 1;
                // The disk is slower than the scout.
                std::thread::sleep(std::time::Duration::from_micros(100));
            }
            _ => {}
        }
    }
}
