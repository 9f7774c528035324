//! pjdfstest (the crate, installed by `cargo xtask setup`).
//!
//! BRICKRAFT_PJDFSTEST=all runs it on overlayfs, fuse-overlayfs and mergerfs too and prints the counts that
//! tests/README.md has.

use crate::stack::{Stack, System};
use crate::support::{command, output, text};
use std::fs;
use std::path::Path;

/// What Linux has of what the suite asks for; users and groups that every Debian has.
const CONFIGURATION: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.01
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// Passed, failed, skipped, and the names of those that failed.
fn count(system: System, more: &str) -> (usize, usize, usize, Vec<String>) {
    let suite = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin/pjdfstest");
    assert!(suite.exists(), "{} is missing: run `cargo xtask setup`", suite.display());
    let stack = Stack::new(system);
    stack.mount_with(more);
    let configuration = stack.path("pjdfstest.toml");
    fs::write(&configuration, CONFIGURATION).expect("write");
    let ended = output(command([&suite]).arg("-c").arg(configuration).arg("-p").arg(stack.mnt()).env("NO_COLOR", "1"));
    if system == System::Ours {
        assert_eq!(crate::notify::invalidated(&stack.mnt()), (0, 0), "what the union itself changed was taken for news");
    }
    let said = text(&ended.stdout);
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let summary =
        said.lines().rev().find(|l| l.starts_with("Summary:")).unwrap_or_else(|| panic!("no summary: {said}\n{}", text(&ended.stderr)));
    let of = |what: &str| {
        let words = words(summary);
        let at = words.iter().position(|w| w.trim_end_matches(',') == what).unwrap_or_else(|| panic!("{summary}"));
        words[at - 1].parse::<usize>().expect("a number")
    };
    let failed = said.lines().filter(|l| l.ends_with("FAILED")).filter_map(|l| words(l).first().cloned()).collect();
    (of("passed"), of("failed"), of("skipped"), failed)
}

#[test]
fn pjdfstest_passes() {
    if std::env::var("BRICKRAFT_PJDFSTEST").is_ok_and(|v| v == "all") {
        for system in [System::Overlayfs, System::FuseOverlayfs, System::Mergerfs] {
            let (passed, failed, skipped, names) = count(system, "");
            println!("{system:?}: {passed} passed, {failed} failed, {skipped} skipped: {names:?}");
        }
    }
    for options in [",noio_uring", ",io_uring", ",noio_uring,passthrough", ",io_uring,passthrough"] {
        let (passed, failed, skipped, names) = count(System::Ours, options);
        println!("Ours{options}: {passed} passed, {failed} failed, {skipped} skipped: {names:?}");
        assert_eq!(failed, 0, "{options} {names:?}");
        assert!(passed > 300, "{options}: only {passed} ran");
    }
}
