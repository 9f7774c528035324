//! fsx (the crate, installed by `cargo xtask setup`): random reads, writes, truncates, mmaps against a model.

use crate::support::dev::Dev;
use crate::support::fsx;

/// Seconds in CI; BRICKRAFT_FSX_SECONDS=300 for the long run.
const SECONDS: u64 = 45;

#[test]
fn fsx_finds_no_mismatch() {
    let dev = Dev::start();
    let artifacts = tempfile::tempdir().expect("temporary directory");
    fsx(&dev.mnt().join("fsx"), artifacts.path(), SECONDS);
    dev.assert_bricks_equal();
}
