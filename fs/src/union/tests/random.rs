//! Random changes in a small world of names, so that they meet.

use super::Op;
use crate::fop::{RENAME_EXCHANGE, RENAME_NOREPLACE};
use rand::Rng;
use rand::rngs::SmallRng;

/// A path of at most three components.
pub(super) fn path(rng: &mut SmallRng) -> String {
    let depth = rng.random_range(1..=3);
    let names = ["a", "b", "c"];
    (0..depth).map(|_| format!("/{}", names[rng.random_range(0..names.len())])).collect()
}

pub(super) fn op(rng: &mut SmallRng) -> Op {
    let at = path(rng);
    match rng.random_range(0..22) {
        0..3 => Op::Create(at),
        3 => Op::Write(at, format!("text {}", rng.random_range(0..1000)).into_bytes()),
        4 => Op::Truncate(at, rng.random_range(0..6)),
        5 => Op::Chmod(at, [0o600, 0o640, 0o755][rng.random_range(0..3)]),
        6 => Op::Chown(at, rng.random_range(0..3)),
        7..10 => Op::Mkdir(at),
        10 => Op::Symlink(at, "some/where".into()),
        11 => Op::Link(at, path(rng)),
        12..14 => Op::Unlink(at),
        14..16 => Op::Rmdir(at),
        16..19 => Op::Rename(at, path(rng), 0),
        19 => Op::Rename(at, path(rng), RENAME_NOREPLACE),
        20 => Op::Rename(at, path(rng), RENAME_EXCHANGE),
        _ => Op::SetXattr(at, vec![rng.random_range(0..9)]),
    }
}
