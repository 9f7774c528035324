//! Power is cut at every step of every change: what a new union then shows is the state before or after.

use super::{Dump, Op, act, dump, put, random, sim_branch};
use crate::fop::FileKind;
use crate::union::branch::SimBranch;
use crate::union::{Layout, Perm, Union, UnionConfig};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use std::sync::Arc;

struct World {
    upper: Arc<SimBranch>,
    middle: Arc<SimBranch>,
    lower: Arc<SimBranch>,
    layout: Layout,
}

impl World {
    fn union(&self, upper: &Arc<SimBranch>) -> Union {
        let branches = vec![
            sim_branch("upper", upper, Perm::RW),
            sim_branch("middle", &self.middle, Perm { whiteouts: true, ..Perm::RO }),
            sim_branch("lower", &self.lower, Perm::RO),
        ];
        Union::open(UnionConfig { branches, layout: self.layout, ..UnionConfig::default() }).expect("open the union")
    }
}

/// Directory times are as they are: a copy-up puts them back in a step of its own.
fn comparable(mut dump: Dump) -> Dump {
    for seen in dump.values_mut() {
        seen.mtime = None;
    }
    dump
}

/// Carries out `op` and cuts the power at each of its steps.
fn cut_everywhere(world: &World, union: &Union, op: &Op, context: &str) {
    let before = comparable(dump(union));
    world.upper.settle();
    let result = act(union, op);
    let after = comparable(dump(union));
    if let Err(e) = result {
        assert_eq!(before, after, "{context}: {op:?} failed ({e}) and left something behind");
    }
    for steps in 0..=world.upper.steps() {
        for keep_data in [false, true] {
            let cut = Arc::new(world.upper.cut(steps, keep_data));
            let seen = comparable(dump(&world.union(&cut)));
            if seen != before && seen != after {
                let differs = |other: &Dump| -> Vec<String> {
                    let keys: std::collections::BTreeSet<_> = seen.keys().chain(other.keys()).collect();
                    keys.into_iter()
                        .filter(|k| seen.get(*k) != other.get(*k))
                        .map(|k| format!("{k}: {:?} / {:?}", seen.get(k), other.get(k)))
                        .collect()
                };
                panic!(
                    "{context}: {op:?} ({result:?}) cut after step {steps} of {}, data kept: {keep_data}:\nagainst before: {:#?}\nagainst after: {:#?}",
                    world.upper.steps(),
                    differs(&before),
                    differs(&after)
                );
            }
        }
    }
}

fn world(layout: Layout) -> World {
    let [upper, middle, lower] = [1, 2, 3].map(|dev| Arc::new(SimBranch::new(dev)));
    World { upper, middle, lower, layout }
}

/// What the issue names, one by one, on a tree with something of every kind on lower branches.
#[test]
fn every_step_of_every_operation_is_before_or_after() {
    for layout in [Layout::Aufs, Layout::Overlay] {
        let text = |path: &str| path.to_string();
        let ops: &[&[Op]] = &[
            &[Op::Chmod(text("/d/f"), 0o600)],
            &[Op::Write(text("/d/f"), b"NEW".to_vec())],
            &[Op::Truncate(text("/d/f"), 2)],
            &[Op::SetXattr(text("/d/e/deep"), b"v".to_vec())],
            &[Op::Chown(text("/d"), 5)],
            &[Op::Unlink(text("/d/f"))],
            &[Op::Chmod(text("/d/f"), 0o600), Op::Unlink(text("/d/f"))],
            &[Op::Unlink(text("/d/f")), Op::Create(text("/d/f"))],
            &[Op::Unlink(text("/d/f")), Op::Mkdir(text("/d/f"))],
            &[Op::Unlink(text("/d/e/deep")), Op::Rmdir(text("/d/e")), Op::Mkdir(text("/d/e")), Op::Rmdir(text("/d/e"))],
            &[Op::Rename(text("/d/f"), text("/g"), 0)],
            &[Op::Rename(text("/d/f"), text("/top"), 0)],
            &[
                Op::Rename(text("/d"), text("/moved"), 0),
                Op::Rename(text("/moved"), text("/d"), 0),
                Op::Rename(text("/d/e"), text("/e"), 0),
            ],
            &[Op::Unlink(text("/d/e/deep")), Op::Rename(text("/x"), text("/d/e"), 0)],
            &[Op::Rename(text("/d"), text("/x"), crate::fop::RENAME_EXCHANGE)],
            &[Op::Rename(text("/d"), text("/top"), crate::fop::RENAME_EXCHANGE)],
            &[Op::Rename(text("/top"), text("/d/f"), crate::fop::RENAME_EXCHANGE)],
            &[Op::Link(text("/d/f"), text("/x/linked"))],
            &[Op::Chmod(text("/h1"), 0o600), Op::Unlink(text("/h1")), Op::Rename(text("/h2"), text("/h3"), 0)],
            &[Op::Symlink(text("/x/s"), text("t")), Op::Rename(text("/x/s"), text("/d/f"), 0)],
        ];
        for (i, ops) in ops.iter().enumerate() {
            let world = world(layout);
            put(&*world.lower, "/d/f", FileKind::File, b"below");
            put(&*world.lower, "/d/e/deep", FileKind::File, b"deep");
            put(&*world.middle, "/d/m", FileKind::File, b"middle");
            put(&*world.lower, "/x", FileKind::Dir, b"");
            put(&*world.upper, "/top", FileKind::File, b"top");
            put(&*world.lower, "/h1", FileKind::File, b"linked");
            {
                use crate::union::branch::{At, Branch};
                let root = world.lower.root();
                world.lower.link(At::Name(&root, b"h1"), &root, b"h2").expect("link");
            }
            world.upper.settle();
            let union = world.union(&world.upper);
            for (n, op) in ops.iter().enumerate() {
                cut_everywhere(&world, &union, op, &format!("{layout}, case {i}, change {n}"));
            }
        }
    }
}

#[test]
fn random_changes_survive_a_cut_at_every_step() {
    for seed in 0..60 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let world = world(if seed % 3 == 2 { Layout::Overlay } else { Layout::Aufs });
        for (branch, count) in [(&world.lower, 12), (&world.middle, 6), (&world.upper, 4)] {
            // Each made through a union of its own, so that it is a tree that can be.
            let alone = super::union_of(vec![sim_branch("alone", branch, Perm::RW)]);
            for _ in 0..count {
                let _ = act(&alone, &random::op(&mut rng));
            }
            alone.close();
            branch.settle();
        }
        let union = world.union(&world.upper);
        for n in 0..25 {
            let op = random::op(&mut rng);
            cut_everywhere(&world, &union, &op, &format!("seed {seed}, change {n}"));
        }
    }
}
