//! The tests of Python's etcd3, which start three members themselves.

use crate::members::{etcd_in, judge, suites};
use crate::support::dev::enter;
use crate::support::{Netns, output, text};

/// What does not pass, and why.
const KNOWN: &[(&str, &str)] = &[
    ("TestEtcd3::test_snapshot", "it lets etcdctl look into the snapshot, whose format is ours"),
    ("TestClient::test_user_pwd_auth", "it looks for a module under a name that it does not have; it fails against etcd as well"),
    (
        "TestEtcd3::test_get_key_serializable",
        "sometimes: it writes at any member, stops two, and reads the third, which need not have heard of it; 20 runs against \
         etcd 3.4 and 20 against ours failed 3 times each",
    ),
];

#[test]
fn pythons_etcd3_tests_pass() {
    let python = suites().join("python");
    let tests = suites().join("etcd3");
    assert!(python.join("bin/pifpaf").exists() && tests.join("tests").exists(), "run `cargo xtask setup`");
    let (netns, dir) = (Netns::new(), tempfile::tempdir().expect("temporary directory"));
    let path = std::env::join_paths(
        [etcd_in(dir.path()), python.join("bin")].into_iter().chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
    )
    .expect("a path");
    let mut c = enter(
        &netns,
        ["pifpaf", "-e", "PYTHON", "run", "etcd", "--cluster", "--", "python", "-m", "pytest", "-q", "-rfE", "--tb=short", "tests"],
    );
    c.current_dir(&tests).env("PATH", path).env("TEST_ETCD_VERSION", "v3.5.21").env("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python");
    let ended = output(&mut c);
    let said = text(&ended.stdout) + &text(&ended.stderr);
    // "FAILED tests/test_etcd3.py::TestEtcd3::test_hash - ...", and at the end "2 failed, 90 passed in 60.00s".
    let failed: Vec<String> = said
        .lines()
        .filter_map(|l| l.strip_prefix("FAILED ").or_else(|| l.strip_prefix("ERROR ")))
        .filter_map(|l| l.split_once("::")?.1.split(' ').next().map(str::to_owned))
        .collect();
    let words: Vec<&str> = said.split([' ', '\n']).collect();
    let passed = words.windows(2).find(|w| w[1].starts_with("passed")).and_then(|w| w[0].parse().ok()).unwrap_or(0);
    judge("etcd3", passed, 78, &failed, KNOWN, &said);
}
