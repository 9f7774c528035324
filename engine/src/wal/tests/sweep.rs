//! Power cuts at every operation of a workload that rolls, recycles and collects.

use super::super::{Wal, WalError};
use super::model::{Model, State, small, workload};
use crate::io::sim::SimDisk;

fn recover(disk: &SimDisk) -> Result<(Wal<crate::io::sim::SimIo>, State), WalError> {
    Wal::recover(disk.open(), small()).map(|(wal, recovered)| (wal, recovered.groups))
}

/// One run: the disk goes off at operation `cut`, is cut, recovers (with a second cut during or after recovery), goes on.
/// Returns whether the workload was interrupted.
fn run(seed: u64, appends: usize, cut: u64) -> bool {
    let disk = SimDisk::new(seed);
    disk.off_at(cut);
    let mut model = Model::new(State::new());
    if let Ok((mut wal, _)) = recover(&disk) {
        disk.set_manual(seed.is_multiple_of(2));
        let ended = workload(&mut wal, &mut model, seed, appends);
        assert!(ended.is_ok() || disk.is_off(), "fails only because the power is off: {ended:?}");
        if !disk.is_off() {
            return false;
        }
    }
    disk.set_manual(false);
    disk.power_cut(seed.wrapping_mul(31) ^ cut);
    // Recovery itself is interrupted by a cut, then runs again.
    disk.off_at(disk.operations() + cut % 7);
    let first = recover(&disk).map(|(_, state)| state);
    disk.power_cut(seed ^ cut.wrapping_mul(17));
    let (mut wal, state) = recover(&disk).unwrap_or_else(|e| panic!("seed {seed} cut {cut}: {e}"));
    model.check(&state).unwrap_or_else(|e| panic!("seed {seed} cut {cut}: {e}"));
    if let Ok(first) = first {
        assert_eq!(first, state, "seed {seed} cut {cut}: what recovery answered stays true");
    }
    // It works on, and a clean restart finds everything.
    let mut model = Model::new(state);
    workload(&mut wal, &mut model, seed + 1, appends / 2).unwrap_or_else(|e| panic!("seed {seed} cut {cut}: {e}"));
    drop(wal);
    disk.power_cut(cut);
    let (_, state) = recover(&disk).unwrap_or_else(|e| panic!("seed {seed} cut {cut}, again: {e}"));
    model.check(&state).unwrap_or_else(|e| panic!("seed {seed} cut {cut}, again: {e}"));
    true
}

#[test]
fn power_cut_at_every_operation() {
    for seed in 1..=4 {
        let mut cut = 0;
        while run(seed, 500, cut) {
            cut += 1;
        }
        assert!(cut > 200, "the workload is long enough: {cut} operations");
    }
}

#[test]
fn power_cuts_in_a_longer_life() {
    for seed in 10..40 {
        run(seed, 600, 40 + seed * 37 % 900);
    }
}

#[test]
fn segments_are_collected_and_reused() {
    let disk = SimDisk::new(5);
    let (mut wal, _) = recover(&disk).unwrap();
    let mut model = Model::new(State::new());
    workload(&mut wal, &mut model, 5, 3000).unwrap();
    let newest = disk.names().last().cloned().unwrap();
    assert!(newest.as_str() > "0000000000000014.log", "rolled often: {newest}");
    assert!(disk.names().len() < 10, "and kept few: {:?}", disk.names());
    drop(wal);
    let (_, state) = recover(&disk).unwrap();
    assert_eq!(&state, model.now());
}

#[test]
fn same_seed_same_disk() {
    let content = |seed| {
        let disk = SimDisk::new(seed);
        let (mut wal, _) = recover(&disk).unwrap();
        workload(&mut wal, &mut Model::new(State::new()), seed, 200).unwrap();
        disk.names().into_iter().map(|n| (disk.content(&n), n)).collect::<Vec<_>>()
    };
    assert_eq!(content(3), content(3));
}
