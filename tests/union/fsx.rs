//! fsx (the crate, installed by `cargo xtask setup`) on a file that begins its life in a read-only branch.

use crate::stack::{Stack, System, fingerprint};
use crate::support::fsx;
use std::fs;

/// Seconds in CI; BRICKRAFT_FSX_SECONDS=300 for the long run.
const SECONDS: u64 = 8;

#[test]
fn fsx_finds_no_mismatch() {
    for transport in [",noio_uring", ",io_uring"] {
        let stack = Stack::new(System::Ours);
        fs::write(stack.lower().join("fsx"), vec![0; 200_000]).expect("write below");
        let before = fingerprint(&stack.lower());
        stack.mount_with(transport);
        fsx(&stack.mnt().join("fsx"), &stack.path("work"), SECONDS);
        assert!(stack.upper().join("fsx").exists(), "never copied up");
        assert_eq!(fingerprint(&stack.lower()), before, "the read-only branch changed");
    }
}
