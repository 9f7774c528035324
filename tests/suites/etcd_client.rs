//! The integration tests of the crate etcd-client.

use crate::members::{Members, judge, suites};
use crate::support::dev::enter;
use crate::support::{output, run, text};

/// What does not pass, and why.
const KNOWN: &[(&str, &str)] = &[];

#[test]
fn the_crate_etcd_clients_own_tests_pass() {
    let list = suites().join("etcd-client/binaries");
    let binaries = std::fs::read_to_string(&list).unwrap_or_else(|e| panic!("{}: {e}; run `cargo xtask setup`", list.display()));
    // What its README asks for: tokens that end after two seconds, and root with this password.
    let members = Members::start(&["--auth-token-ttl=2"]);
    members.let_the_first_lead();
    for words in [&["user", "add", "root:rootpwd"][..], &["role", "add", "root"], &["user", "grant-role", "root", "root"]] {
        run(enter(&members.netns, ["etcdctl", "--endpoints=127.0.0.1:2379"]).env("ETCDCTL_API", "3").args(words));
    }
    let (mut passed, mut failed, mut said) = (0, Vec::new(), String::new());
    for binary in binaries.lines() {
        // One at a time, since some switch authentication on for everybody.
        let ended = output(enter(&members.netns, [binary]).args(["--test-threads=1"]));
        let words = text(&ended.stdout) + &text(&ended.stderr);
        for line in words.lines() {
            let Some((name, outcome)) = line.strip_prefix("test ").and_then(|l| l.split_once(" ... ")) else { continue };
            match outcome {
                "ok" => passed += 1,
                "FAILED" => failed.push(name.to_owned()),
                _ => {}
            }
        }
        said += &words;
    }
    judge("etcd-client", passed, 18, &failed, KNOWN, &said);
}
