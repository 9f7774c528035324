//! fsx (the crate, installed by `cargo xtask setup`): random reads, writes, truncates, mmaps against a model.

use crate::support::dev::Dev;
use crate::support::{command, output, text};
use std::path::Path;

/// Seconds in CI; BRICKRAFT_FSX_SECONDS=300 for the long run.
const SECONDS: u64 = 45;

#[test]
fn fsx_finds_no_mismatch() {
    let fsx = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin/fsx");
    assert!(fsx.exists(), "{} is missing: run `cargo xtask setup`", fsx.display());
    let seconds = std::env::var("BRICKRAFT_FSX_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(SECONDS);
    let dev = Dev::start();
    let artifacts = tempfile::tempdir().expect("temporary directory");
    let seed = std::process::id().to_string();
    let mut c = command(["timeout", &seconds.to_string()]);
    c.arg(&fsx).args(["-q", "-S", &seed, "-P"]).arg(artifacts.path()).arg(dev.mnt().join("fsx"));
    let ended = output(&mut c);
    // timeout(1) says 124 when fsx was still content at the end.
    assert_eq!(ended.status.code(), Some(124), "fsx -S {seed}: {}\n{}{}", ended.status, text(&ended.stdout), text(&ended.stderr));
    dev.assert_bricks_equal();
}
