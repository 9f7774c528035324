//! What somebody removed in the source's directory while the target was away comes back; what users removed does not.

use super::stores::{Changes, assert_same, assert_same_pictures, dir_store, heal_with, picture};
use super::*;
use crate::fop::{Fop, TimeSpec};
use crate::store::{BrickStore, DirStore, OpCtx};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Everything in the brick's directory goes but what is ours.
fn remove_all(path: &Path) {
    for entry in std::fs::read_dir(path).expect("list the brick").flatten() {
        if entry.file_name() != ".brickraft" {
            let path = entry.path();
            let is_dir = entry.file_type().expect("its kind").is_dir();
            if is_dir { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }.expect("remove it");
        }
    }
}

fn guarded(source: &mut DirStore, target: &mut DirStore, loss: Loss) -> (Result<(), Errno>, Progress) {
    heal_with(Healer::guarded(Direction::Push, buckets(), loss), source, target, usize::MAX).expect("not cut off")
}

/// Everything that has a name is the same.
fn assert_same_names(a: &mut DirStore, b: &mut DirStore, seed: u64) {
    let named = |store: &mut DirStore| {
        let mut all = picture(store);
        let names: BTreeSet<Gfid> = all.values().flat_map(|o| o.1.iter().map(|n| n.1)).collect();
        all.retain(|g, _| *g == Gfid::ROOT || names.contains(g));
        all
    };
    assert_same_pictures(&named(a), &named(b), seed);
}

/// Two equal bricks; then the source changes by itself, and loses every name. What it had at each point.
fn lost(seed: u64, again: bool) {
    let temp: [_; 2] = std::array::from_fn(|_| tempfile::tempdir().expect("make a temporary directory"));
    let (mut source, mut target) = (dir_store(&temp[0]), dir_store(&temp[1]));
    let mut changes = Changes::new(seed);
    changes.apply(&mut source, 120);
    guarded(&mut source, &mut target, Loss::Ignore).0.expect("the first heal");
    let old = picture(&mut target);
    changes.apply(&mut source, seed as usize % 40);
    let new = picture(&mut source);
    let path = source.path().to_owned();
    remove_all(&path);
    if again {
        drop(source);
        source = DirStore::open(&path).expect("open the brick again");
        source.heal_swept(true).expect("put back what was swept");
    }
    // With a third brick in sync, the heal goes no further than the first thing that was lost.
    let was_lost = old.len() > 1 && old.keys().any(|g| *g != Gfid::ROOT && new.contains_key(g));
    let (refused, p) = guarded(&mut source, &mut target, Loss::Refuse);
    assert_eq!((refused.is_err(), p.refused), (was_lost, was_lost), "seed {seed}: {refused:?}");
    let (healed, p) = guarded(&mut source, &mut target, Loss::Restore);
    assert_eq!((healed, p.unresolved), (Ok(()), 0), "seed {seed}");
    assert_same_names(&mut source, &mut target, seed);
    let now = picture(&mut source);
    for (gfid, (_, _, xattrs, sums)) in old.iter().filter(|(g, _)| **g != Gfid::ROOT) {
        let named = now.values().any(|o| o.1.iter().any(|(_, g)| g == gfid));
        match new.get(gfid) {
            None => assert!(!named, "seed {seed}: {gfid} came back, although users removed it"),
            Some((head, ..)) => {
                assert!(named, "seed {seed}: {gfid} is lost: {head}");
                // A directory is as it was at the target; a file as it last was.
                let is_dir = head.starts_with("Dir");
                let want = if is_dir { (xattrs, sums) } else { (&new[gfid].2, &new[gfid].3) };
                assert_eq!((&now[gfid].2, &now[gfid].3), want, "seed {seed}: {gfid}");
            }
        }
    }
    // Each name that the target had is there again, if users left its object and its directory.
    for (dir, (_, names, ..)) in old.iter().filter(|(g, _)| new.contains_key(*g)) {
        for (name, gfid) in names.iter().filter(|(_, g)| new.contains_key(g)) {
            assert!(now[dir].1.contains(&(name.clone(), *gfid)), "seed {seed}: {name:?} in {dir}");
        }
    }
    let (again, p) = guarded(&mut source, &mut target, Loss::Restore);
    assert_eq!((again, p.objects_restored, p.objects_healed, p.objects_removed), (Ok(()), 0, 0, 0), "seed {seed}");
}

#[test]
fn what_the_source_lost_comes_back_from_the_target() {
    for seed in 0..60 {
        lost(seed, false);
    }
}

#[test]
fn what_the_source_lost_comes_back_although_it_was_opened_again() {
    for seed in 0..60 {
        lost(seed, true);
    }
}

/// A heal that is cut off in the middle of it can start again.
#[test]
fn a_restoration_that_is_cut_off_goes_on() {
    let temp: [_; 2] = std::array::from_fn(|_| tempfile::tempdir().expect("make a temporary directory"));
    let (mut source, mut target) = (dir_store(&temp[0]), dir_store(&temp[1]));
    Changes::new(7).apply(&mut source, 120);
    guarded(&mut source, &mut target, Loss::Ignore).0.expect("the first heal");
    let old = picture(&mut target);
    remove_all(source.path());
    for cut in (0..400).step_by(3) {
        heal_with(Healer::guarded(Direction::Push, buckets(), Loss::Restore), &mut source, &mut target, cut);
    }
    assert_eq!(guarded(&mut source, &mut target, Loss::Restore).0, Ok(()));
    assert_same(&mut source, &mut target, 7);
    let now = picture(&mut source);
    for (gfid, object) in old.iter().filter(|(g, _)| **g != Gfid::ROOT) {
        assert_eq!(now.get(gfid), Some(object), "object {gfid}");
    }
}

/// Names that were moved out of the brick by hand, not removed: files keep a link there.
#[test]
fn what_was_moved_away_by_hand_comes_back() {
    let temp: [_; 2] = std::array::from_fn(|_| tempfile::tempdir().expect("make a temporary directory"));
    let (mut source, mut target) = (dir_store(&temp[0]), dir_store(&temp[1]));
    let mut old = BTreeMap::new();
    for seed in 0.. {
        Changes::new(seed).apply(&mut source, 60);
        guarded(&mut source, &mut target, Loss::Ignore).0.expect("the first heal");
        old = picture(&mut target);
        if old.values().filter(|o| o.0.starts_with("Dir") && !o.1.is_empty()).count() > 3 {
            break;
        }
    }
    let root = old[&Gfid::ROOT].1.clone();
    for (name, gfid) in &root {
        if old[gfid].0.starts_with("Dir") {
            let name = std::str::from_utf8(name).expect("a plain name");
            std::fs::rename(source.path().join(name), temp[0].path().join(name)).expect("move it out of the brick");
        }
    }
    // (Directories below those seem to be there until one looks from above, and so are "unresolved" at first.)
    let (healed, p) = guarded(&mut source, &mut target, Loss::Restore);
    assert_eq!(healed, Ok(()));
    assert!(p.objects_restored > 0);
    for (name, _) in root.iter().filter(|(_, g)| old[g].0.starts_with("Dir")) {
        std::fs::remove_dir_all(temp[0].path().join(std::str::from_utf8(name).expect("plain"))).expect("remove what was moved away");
    }
    assert_same(&mut source, &mut target, 0);
    for (gfid, object) in old.iter().filter(|(g, _)| **g != Gfid::ROOT) {
        let now = &picture(&mut source)[gfid];
        assert_eq!((&now.1, &now.2, &now.3), (&object.1, &object.2, &object.3), "object {gfid}");
    }
}

/// Users have made something else of a name that was lost.
#[test]
fn what_has_another_under_its_name_comes_back_beside_it() {
    let temp: [_; 2] = std::array::from_fn(|_| tempfile::tempdir().expect("make a temporary directory"));
    let (mut source, mut target) = (dir_store(&temp[0]), dir_store(&temp[1]));
    let make = |s: &mut DirStore, parent, name: &'static str, g, dir: bool| {
        let (name, mode, uid, gid) = (name.into(), 0o755, 0, 0);
        let fop = if dir {
            Fop::MkDir { parent, name, gfid: g, mode, uid, gid }
        } else {
            Fop::Create { parent, name, gfid: g, mode, uid, gid, open: false }
        };
        s.apply(&fop, &OpCtx { time: TimeSpec::default() }).expect("make it");
    };
    let (dir, file, inner) = (gfid(1, 1), gfid(2, 2), gfid(3, 3));
    make(&mut source, Gfid::ROOT, "dir", dir, true);
    make(&mut source, Gfid::ROOT, "file", file, false);
    make(&mut source, dir, "inner", inner, false);
    guarded(&mut source, &mut target, Loss::Ignore).0.expect("the first heal");
    remove_all(source.path());
    let (dir_2, file_2) = (gfid(4, 4), gfid(5, 5));
    make(&mut source, Gfid::ROOT, "dir", dir_2, true);
    make(&mut source, Gfid::ROOT, "file", file_2, false);
    let (healed, p) = guarded(&mut source, &mut target, Loss::Restore);
    assert_eq!((healed, p.unresolved), (Ok(()), 0));
    assert_same(&mut source, &mut target, 0);
    let found = |s: &mut DirStore, parent, name: &str| s.heal_lookup(parent, name.as_bytes()).expect("look up").map(|e| e.gfid);
    for s in [&mut source, &mut target] {
        assert_eq!((found(s, Gfid::ROOT, "dir"), found(s, Gfid::ROOT, "file")), (Some(dir_2), Some(file_2)));
        assert_eq!(found(s, Gfid::ROOT, &format!("dir.{dir}")), Some(dir));
        assert_eq!(found(s, Gfid::ROOT, &format!("file.{file}")), Some(file));
        assert_eq!(found(s, dir, "inner"), Some(inner));
    }
}

/// A kill leaves at most one object without a name, since changes are made one at a time; that one goes, as what users removed.
#[test]
fn one_leftover_is_an_interrupted_change() {
    let temp: [_; 2] = std::array::from_fn(|_| tempfile::tempdir().expect("make a temporary directory"));
    let (mut source, mut target) = (dir_store(&temp[0]), dir_store(&temp[1]));
    let file = Fop::Create { parent: Gfid::ROOT, name: "file".into(), gfid: gfid(1, 1), mode: 0o644, uid: 0, gid: 0, open: false };
    source.apply(&file, &OpCtx { time: TimeSpec::default() }).expect("make a file");
    guarded(&mut source, &mut target, Loss::Ignore).0.expect("the first heal");
    let path = source.path().to_owned();
    std::fs::remove_file(path.join("file")).expect("remove it");
    drop(source);
    let mut source = DirStore::open(&path).expect("open the brick again");
    let (healed, p) = guarded(&mut source, &mut target, Loss::Restore);
    assert_eq!((healed, p.objects_restored), (Ok(()), 0));
    assert!(!target.path().join("file").exists());
}

/// What was put away at start goes when all bricks are the same again.
#[test]
fn what_was_put_away_goes_with_a_checkpoint() {
    let temp = tempfile::tempdir().expect("make a temporary directory");
    let mut source = dir_store(&temp);
    Changes::new(5).apply(&mut source, 80);
    let path = source.path().to_owned();
    remove_all(&path);
    drop(source);
    let mut source = DirStore::open(&path).expect("open the brick again");
    let swept = || std::fs::read_dir(path.join(".brickraft/swept")).expect("list").count();
    assert!(swept() > 1);
    source.reset_dirty(&crate::store::BucketSet::new()).expect("clear the bitmap");
    assert_eq!(swept(), 0);
}

/// What was put back and has no name on any brick goes with a checkpoint too, and never went to another brick.
#[test]
fn what_nobody_has_a_name_for_is_not_copied_and_goes() {
    let temp: [_; 2] = std::array::from_fn(|_| tempfile::tempdir().expect("make a temporary directory"));
    let (mut source, mut target) = (dir_store(&temp[0]), dir_store(&temp[1]));
    Changes::new(5).apply(&mut source, 80);
    let path = source.path().to_owned();
    remove_all(&path);
    drop(source);
    let mut source = DirStore::open(&path).expect("open the brick again");
    source.heal_swept(true).expect("put back what was swept");
    let (healed, p) = guarded(&mut source, &mut target, Loss::Restore);
    assert_eq!((healed, p.objects_restored, p.lost_some), (Ok(()), 0, true));
    let all = |s: &mut DirStore| (0..8).flat_map(|b| s.heal_objects(Bucket(b), None, 1000).expect("list")).collect::<Vec<_>>();
    assert_eq!(all(&mut target), [Gfid::ROOT]);
    assert!(all(&mut source).len() > 1);
    source.reset_dirty(&crate::store::BucketSet::new()).expect("clear the bitmap");
    assert_eq!(all(&mut source), [Gfid::ROOT]);
}
