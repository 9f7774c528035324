//! Heals between two models: random trees, moved directories, interruptions, changes meanwhile.

mod format;
mod loss;
mod model;
mod rounds;
mod scrubs;
mod stores;
mod world;

use super::*;
use crate::fop::{Bucket, Errno, FileKind, Gfid};
use brickraft_engine::types::Time;
use bytes::Bytes;
use model::{Model, Obj, PAGE};
use world::World;

const NOW: Time = Time(1);

/// Runs a heal to its end, or until `calls` went to the target; `meanwhile` is called between steps.
fn drive(
    healer: &mut Healer,
    local: &mut Model,
    remote: &mut Model,
    calls: usize,
    mut meanwhile: impl FnMut(&mut Model),
) -> Option<Result<(), Errno>> {
    let mut left = calls;
    loop {
        let step = healer.step(NOW, &mut |c| execute(local, c));
        meanwhile(local);
        let mut quiet = true;
        while let Some((id, call)) = healer.poll_call() {
            quiet = false;
            if left == 0 {
                return None;
            }
            left -= 1;
            // Every call must survive its encoding.
            let coded = postcard::to_allocvec(&call).unwrap();
            let call: HealCall = postcard::from_bytes(&coded).unwrap();
            healer.on_return(id, execute(remote, &call));
        }
        match step {
            Step::Finished => return healer.finished(),
            Step::Waiting => assert!(!quiet, "the heal waits for nothing"),
            Step::More => {}
        }
    }
}

fn buckets() -> HealPlan {
    // The worlds use few buckets; all 65,536 would only take time.
    HealPlan::buckets((0..8).map(Bucket))
}

fn heal_all(source: &mut Model, target: &mut Model) -> Progress {
    let mut healer = Healer::new(Direction::Push, buckets());
    assert_eq!(drive(&mut healer, source, target, usize::MAX, |_| {}), Some(Ok(())));
    healer.progress(NOW)
}

fn assert_equal(source: &Model, target: &Model, seed: u64) {
    target.fsck();
    let (s, t) = (source.picture(), target.picture());
    for g in s.keys().chain(t.keys()) {
        assert_eq!(s.get(g), t.get(g), "seed {seed}: object {g}");
    }
}

fn world(seed: u64, changes: usize) -> World {
    let mut world = World::new(seed);
    for _ in 0..changes {
        world.change();
    }
    world.model.fsck();
    world
}

#[test]
fn a_wiped_target_becomes_equal() {
    for seed in 0..30 {
        let mut source = world(seed, 120).model;
        let mut target = Model::new();
        let p = heal_all(&mut source, &mut target);
        assert_equal(&source, &target, seed);
        assert_eq!((p.unresolved, p.units_left, p.units_done), (0, 0, 8), "seed {seed}");
    }
}

#[test]
fn an_old_target_becomes_equal_and_again_needs_nothing() {
    for seed in 0..80 {
        let mut w = world(seed, 80);
        let mut target = w.model.clone();
        for _ in 0..(seed % 50) {
            w.change();
        }
        let p = heal_all(&mut w.model, &mut target);
        assert_equal(&w.model, &target, seed);
        assert_eq!(p.unresolved, 0, "seed {seed}");
        let again = heal_all(&mut w.model, &mut target);
        assert_eq!((again.objects_healed, again.objects_removed, again.bytes_sent), (0, 0, 0), "seed {seed}");
    }
}

#[test]
fn a_target_that_went_its_own_way_becomes_equal() {
    for seed in 0..60 {
        let mut w = world(seed, 60);
        let mut other = World { model: w.model.clone(), rng: world(seed + 1000, 0).rng };
        for _ in 0..40 {
            w.change();
            other.change();
        }
        let p = heal_all(&mut w.model, &mut other.model);
        assert_equal(&w.model, &other.model, seed);
        assert_eq!(p.unresolved, 0, "seed {seed}");
    }
}

#[test]
fn a_pull_is_a_push_the_other_way() {
    for seed in 0..30 {
        let mut source = world(seed, 80).model;
        let mut target = world(seed + 1, 40).model;
        let mut healer = Healer::new(Direction::Pull, buckets());
        assert_eq!(drive(&mut healer, &mut target, &mut source, usize::MAX, |_| {}), Some(Ok(())));
        assert_equal(&source, &target, seed);
    }
}

#[test]
fn a_heal_that_is_cut_off_at_any_call_can_start_again() {
    for seed in 0..2 {
        let mut w = world(seed, 40);
        let old = w.model.clone();
        for _ in 0..30 {
            w.change();
        }
        for cut in 0..300 {
            let mut target = old.clone();
            let mut healer = Healer::new(Direction::Push, buckets());
            let ended = drive(&mut healer, &mut w.model, &mut target, cut, |_| {});
            heal_all(&mut w.model, &mut target);
            assert_equal(&w.model, &target, seed);
            if ended.is_some() {
                break;
            }
        }
    }
}

fn gfid(bucket: u8, n: u8) -> Gfid {
    let mut id = [0; 16];
    (id[1], id[15]) = (bucket, n);
    Gfid(id)
}

fn mkdir(m: &mut Model, parent: Gfid, name: &'static str, g: Gfid) {
    m.objs.insert(g, Obj { place: Some(Place::At { parent, name: name.into() }), ..Obj::new(FileKind::Dir) });
    m.objs.get_mut(&parent).unwrap().entries.insert(name.into(), g);
}

#[test]
fn moved_directories_come_out_right_in_any_order() {
    // Every assignment of three buckets to a and b, so that either comes first, or both together.
    for (x, y) in (0..3).flat_map(|x| (0..3).map(move |y| (x, y))) {
        let (a, b, root) = (gfid(x, 10), gfid(y, 20), Gfid::ROOT);
        let mut beside = Model::new();
        mkdir(&mut beside, root, "a", a);
        mkdir(&mut beside, root, "b", b);
        let mut swapped = Model::new();
        mkdir(&mut swapped, root, "b", a);
        mkdir(&mut swapped, root, "a", b);
        let mut a_in_b = Model::new();
        mkdir(&mut a_in_b, root, "b", b);
        mkdir(&mut a_in_b, b, "a", a);
        let mut b_in_a = Model::new();
        mkdir(&mut b_in_a, root, "a", a);
        mkdir(&mut b_in_a, a, "b", b);
        let all = [beside, swapped, a_in_b, b_in_a, Model::new()];
        for (source, target) in all.iter().flat_map(|s| all.iter().map(move |t| (s.clone(), t.clone()))) {
            let (mut source, mut target) = (source, target);
            assert_eq!(heal_all(&mut source, &mut target).unresolved, 0);
            assert_equal(&source, &target, 0);
        }
    }
}

#[test]
fn only_what_differs_is_sent() {
    let mut source = Model::new();
    let file = gfid(1, 1);
    source.objs.insert(file, Obj::new(FileKind::File));
    source.objs.get_mut(&Gfid::ROOT).unwrap().entries.insert("big".into(), file);
    source.heal_truncate(file, 1 << 30).unwrap();
    for at in 0..64u64 {
        source.heal_write(file, at * (16 << 20), &Bytes::from(vec![at as u8 + 1; 8192])).unwrap();
    }
    let mut target = source.clone();
    source.heal_write(file, 700 << 20, &Bytes::from(vec![7; 40 << 10])).unwrap();
    let sent = heal_all(&mut source, &mut target).bytes_sent;
    assert_equal(&source, &target, 0);
    assert_eq!(sent, 40 << 10);
    // A hole where there was data costs no data.
    source.heal_punch(file, 16 << 20, 8192).unwrap();
    assert_eq!(heal_all(&mut source, &mut target).bytes_sent, 0);
    assert_equal(&source, &target, 0);
    assert_eq!(target.objs[&file].pages.len() as u64, (40 << 10) / PAGE + 63 * 2);
}

#[test]
fn a_disk_that_fails_ends_the_heal() {
    let mut source = world(3, 100).model;
    let mut target = Model::new();
    let mut healer = Healer::new(Direction::Push, buckets());
    let mut calls = 0;
    let ended = loop {
        if healer.step(NOW, &mut |c| execute(&mut source, c)) == Step::Finished {
            break healer.finished();
        }
        while let Some((id, call)) = healer.poll_call() {
            calls += 1;
            healer.on_return(id, if calls > 30 { Err(Errno::ENOSPC) } else { execute(&mut target, &call) });
        }
    };
    assert_eq!(ended, Some(Err(Errno::ENOSPC)));
}

/// Parts of a heal that have their answers, but are not looked at for a while, hold up nobody: here links of files, while many
/// directories beside them are made.
#[test]
fn a_directory_of_files_and_many_directories_is_made() {
    let mut source = Model::new();
    let mut target = Model::new();
    for n in 0..4 {
        let g = gfid(1, n + 1);
        source.heal_make(g, FileKind::File, 0, None).unwrap();
        source.heal_link(Gfid::ROOT, format!("a{n}").as_bytes(), g).unwrap();
    }
    for n in 0..250 {
        source.heal_place_dir(gfid(2 + n % 6, n), Gfid::ROOT, format!("d{n:03}").as_bytes()).unwrap();
    }
    let p = heal_all(&mut source, &mut target);
    assert_equal(&source, &target, 0);
    assert_eq!(p.unresolved, 0);
}
