//! Heals while the source goes on changing: rounds over the change set, then the last one under freeze.

use super::world::{Changed, World};
use super::*;

fn note(set: &mut ChangeSet, changed: &Changed) {
    changed.dirs.iter().for_each(|d| set.note_names(*d));
    changed.objects.iter().for_each(|g| set.note_object(*g));
    changed.data.iter().for_each(|(g, start, end)| set.note_data(*g, *start, end - start));
}

/// One round; the source changes between the steps while `changes` are left. Returns how many the heal could not resolve.
fn round(plan: HealPlan, w: &mut World, target: &mut Model, set: &mut ChangeSet, mut changes: usize) -> u64 {
    let mut healer = Healer::new(Direction::Push, plan);
    loop {
        let step = healer.step(NOW, &mut |c| execute(&mut w.model, c));
        if changes > 0 {
            changes -= 1;
            note(set, &w.change());
        }
        while let Some((id, call)) = healer.poll_call() {
            healer.on_return(id, execute(target, &call));
        }
        if step == Step::Finished {
            assert_eq!(healer.finished(), Some(Ok(())));
            return healer.progress(NOW).unresolved;
        }
    }
}

#[test]
fn rounds_and_a_last_one_under_freeze_make_a_changing_source_and_its_target_equal() {
    for seed in 0..120 {
        let mut w = world(seed, 60);
        let mut target = if seed % 3 == 0 { Model::new() } else { w.model.clone() };
        for _ in 0..20 {
            w.change();
        }
        let mut set = ChangeSet::new(ChangeLimits::default());
        round(buckets(), &mut w, &mut target, &mut set, 60);
        for _ in 0..3 {
            let plan = set.take();
            round(plan, &mut w, &mut target, &mut set, 10);
        }
        let last = set.take();
        let unresolved = round(last, &mut w, &mut target, &mut set, 0);
        assert_equal(&w.model, &target, seed);
        assert_eq!(unresolved, 0, "seed {seed}");
    }
}

#[test]
fn the_same_seed_heals_by_the_same_calls() {
    let trace = |seed| {
        let (mut w, mut target) = (world(seed, 80), world(seed + 1, 50).model);
        let mut healer = Healer::new(Direction::Push, buckets());
        let mut calls = Vec::new();
        while healer.step(NOW, &mut |c| execute(&mut w.model, c)) != Step::Finished {
            while let Some((id, call)) = healer.poll_call() {
                healer.on_return(id, execute(&mut target, &call));
                calls.push(call);
            }
        }
        calls
    };
    assert_eq!(trace(5), trace(5));
}
