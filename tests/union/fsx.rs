//! fsx (the crate, installed by `cargo xtask setup`) on a file that begins its life in a read-only branch.

use crate::stack::Stack;
use crate::support::{command, output, text};
use std::fs;
use std::path::Path;

/// Seconds in CI; BRICKRAFT_FSX_SECONDS=300 for the long run.
const SECONDS: u64 = 15;

#[test]
fn fsx_finds_no_mismatch() {
    let fsx = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin/fsx");
    assert!(fsx.exists(), "{} is missing: run `cargo xtask setup`", fsx.display());
    let seconds = std::env::var("BRICKRAFT_FSX_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(SECONDS);
    let stack = Stack::ours();
    fs::write(stack.lower().join("fsx"), vec![0; 200_000]).expect("write below");
    let before = crate::stack::fingerprint(&stack.lower());
    let seed = std::process::id().to_string();
    let mut c = command(["timeout", &seconds.to_string()]);
    c.arg(&fsx).args(["-q", "-S", &seed, "-P"]).arg(stack.path("work")).arg(stack.mnt().join("fsx"));
    let ended = output(&mut c);
    // timeout(1) says 124 when fsx was still content at the end.
    assert_eq!(ended.status.code(), Some(124), "fsx -S {seed}: {}\n{}{}", ended.status, text(&ended.stdout), text(&ended.stderr));
    assert!(stack.upper().join("fsx").exists(), "never copied up");
    assert_eq!(crate::stack::fingerprint(&stack.lower()), before, "the read-only branch changed");
}
