//! Scrubs of two models: what is damaged on one side is found, judged and mended.

use super::*;
use crate::heal::scrub::{Difference, Doubt, ScrubReport, Scrubber, Signer, Verdict};
use std::time::Duration;

fn scrub(local: &mut Model, remote: &mut Model, plan: HealPlan, sign: bool) -> ScrubReport {
    let mut scrubber = Scrubber::new(plan, sign);
    while scrubber.step(&mut |c| execute(local, c)) != Step::Finished {
        while let Some((id, call)) = scrubber.poll_call() {
            scrubber.on_return(id, execute(remote, &call));
        }
    }
    assert_eq!(scrubber.finished(), Some(Ok(())));
    scrubber.report()
}

fn repair(local: &mut Model, remote: &mut Model, report: &ScrubReport) {
    for (direction, items) in report.repairs() {
        let mut healer = heal_objects(direction, items);
        assert_eq!(drive(&mut healer, local, remote, usize::MAX, |_| {}), Some(Ok(())));
    }
}

/// Damages one thing as somebody in the brick's directory would: times move.
fn damage(m: &mut Model, w: &mut World, how: u64) -> bool {
    let files: Vec<_> = m.objs.iter().filter(|(_, o)| o.kind == FileKind::File && o.size > 0).map(|(g, _)| *g).collect();
    let Some(file) = files.get(how as usize / 4 % files.len().max(1)).copied() else { return false };
    match how % 4 {
        0 => m.heal_write(file, 0, &Bytes::from_static(b"altered!")).unwrap(),
        1 => {
            // Bit rot: no time moves.
            let o = m.objs.get_mut(&file).unwrap();
            let Some(page) = o.pages.values_mut().next() else { return false };
            page[0] ^= 0x40;
        }
        2 => m.heal_truncate(file, 1).unwrap(),
        _ => {
            let dir = w.any(|o| o.entries.values().any(|g| *g == file)).unwrap();
            let (name, _) = m.objs[&dir].entries.iter().find(|(_, g)| **g == file).unwrap();
            let name = name.clone();
            m.heal_unlink(dir, &name).unwrap();
            let sum = m.names_of(file);
            if how % 8 == 7 && sum == 0 {
                m.heal_remove(file).unwrap();
            }
        }
    }
    true
}

#[test]
fn what_was_signed_is_mended_on_either_side() {
    for seed in 0..80 {
        let mut w = world(seed, 60);
        let mut other = w.model.clone();
        let first = scrub(&mut w.model, &mut other, buckets(), true);
        assert!(first.findings.is_empty() && first.signed > 0, "{first:?}");
        let good = w.model.clone();
        let remote_side = seed % 2 == 0;
        let mut hurt = good.clone();
        if !damage(&mut hurt, &mut w, seed / 2) {
            continue;
        }
        let (mut local, mut remote) = if remote_side { (good.clone(), hurt) } else { (hurt, good.clone()) };
        let report = scrub(&mut local, &mut remote, buckets(), false);
        assert!(!report.findings.is_empty() && report.undecided().count() == 0, "seed {seed}: {report:?}");
        let sure = scrub(&mut local, &mut remote, report.suspects(), false);
        repair(&mut local, &mut remote, &sure);
        for m in [&mut local, &mut remote] {
            // A healed file has no signature any more.
            for (g, o) in &good.objs {
                m.objs.get_mut(g).expect("healed").signature.clone_from(&o.signature);
            }
            assert_equal(&good, m, seed);
        }
        let again = scrub(&mut local, &mut remote, buckets(), false);
        assert!(again.findings.is_empty(), "seed {seed}: {again:?}");
    }
}

#[test]
fn what_nobody_signed_is_reported_and_left() {
    let mut w = world(4, 60);
    let mut other = w.model.clone();
    let file = w.any(|o| o.kind == FileKind::File && !o.pages.is_empty()).unwrap();
    other.objs.get_mut(&file).unwrap().pages.values_mut().next().unwrap()[0] ^= 1;
    let report = scrub(&mut w.model, &mut other, buckets(), true);
    assert_eq!(report.undecided().count(), 1);
    let f = &report.findings[0];
    assert_eq!((f.gfid, f.difference, f.verdict), (file, Difference::Content, Verdict::Undecidable(Doubt::NoWitness)));
    assert!(report.repairs().iter().all(|(_, items)| items.is_empty()));
}

#[test]
fn names_that_either_side_lost_are_joined_without_signatures() {
    let mut w = world(9, 80);
    let mut other = w.model.clone();
    let good = w.model.clone();
    let dir = w.any(|o| o.entries.len() >= 3).unwrap();
    let is_file = |name: &&Bytes| good.objs[&good.objs[&dir].entries[*name]].kind != FileKind::Dir;
    let names: Vec<_> = good.objs[&dir].entries.keys().filter(is_file).cloned().collect();
    w.model.heal_unlink(dir, &names[0]).unwrap();
    other.heal_unlink(dir, names.last().unwrap()).unwrap();
    let report = scrub(&mut w.model, &mut other, buckets(), false);
    assert_eq!(report.undecided().count(), 0, "{report:?}");
    repair(&mut w.model, &mut other, &report);
    assert_equal(&w.model, &other, 9);
    assert_eq!(w.model.objs[&dir].entries, good.objs[&dir].entries);
}

#[test]
fn idle_files_are_signed_once_and_written_ones_are_not() {
    let mut m = world(2, 60).model;
    let files: Vec<_> = m.objs.iter().filter(|(_, o)| o.kind == FileKind::File).map(|(g, _)| *g).collect();
    let mut signer = Signer::new(Duration::from_secs(10));
    files.iter().for_each(|g| signer.note(*g, Time(0)));
    let late = Time(20_000_000);
    signer.step(Time(5_000_000), &mut |_| panic!("nothing is due"));
    signer.step(late, &mut |c| execute(&mut m, c));
    signer.note(files[0], late); // written while it is hashed
    while signer.next_due().is_some_and(|at| at <= late) {
        signer.step(late, &mut |c| execute(&mut m, c));
    }
    assert_eq!(signer.waiting(), 1);
    assert!(files[1..].iter().all(|g| m.objs[g].signature.is_some()) && m.objs[&files[0]].signature.is_none());
    let mut other = m.clone();
    assert_eq!(scrub(&mut m, &mut other, HealPlan::objects(files[1..].to_vec()), true).signed, 0);
}
