//! fsx (the crate, installed by `cargo xtask setup`) on a file that begins its life in a read-only branch.

use crate::stack::{Stack, fingerprint};
use crate::support::fsx;
use std::fs;

/// Seconds in CI; BRICKRAFT_FSX_SECONDS=300 for the long run.
const SECONDS: u64 = 15;

#[test]
fn fsx_finds_no_mismatch() {
    let stack = Stack::ours();
    fs::write(stack.lower().join("fsx"), vec![0; 200_000]).expect("write below");
    let before = fingerprint(&stack.lower());
    fsx(&stack.mnt().join("fsx"), &stack.path("work"), SECONDS);
    assert!(stack.upper().join("fsx").exists(), "never copied up");
    assert_eq!(fingerprint(&stack.lower()), before, "the read-only branch changed");
}
