//! Alarms, backups, and clusters that are made out of backups.

use crate::servers::{Servers, client, cluster, peer};
use crate::support::{output, run, text, wait_for};
use std::path::Path;

#[test]
fn a_full_store_takes_no_puts_until_it_is_disarmed() {
    let mut s = Servers::new();
    let quota = ["--quota-backend-bytes=300000", "--max-request-bytes=200000", "--max-txn-ops=3"];
    s.start(0, &quota);
    s.wait_leader(&[0]);
    let value = "x".repeat(50_000);
    let mut put = 0;
    let refused = loop {
        let said = output(&mut s.etcdctl(0, &["put", &format!("fill/{put}"), &value]));
        if !said.status.success() {
            break text(&said.stderr);
        }
        put += 1;
        assert!(put < 10, "the quota was never reached");
    };
    assert!(put >= 2 && refused.contains("etcdserver: mvcc: database space exceeded"), "{put}: {refused}");
    let alarms = s.ctl(0, &["alarm", "list"]);
    assert!(alarms.contains("alarm:NOSPACE"), "{alarms}");
    let status = s.status(0);
    assert!(status["errors"][0].as_str().is_some_and(|e| e.contains("alarm:NOSPACE")), "{status}");
    // It is part of the state: killing the process changes nothing.
    s.kill(0);
    s.start(0, &quota);
    s.wait_leader(&[0]);
    s.ctl_refused(0, &["put", "small", "1"], "database space exceeded");
    s.ctl_refused(0, &["lease", "grant", "60"], "database space exceeded");
    s.ctl(0, &["del", "--prefix", "fill/"]);
    s.ctl_refused(0, &["put", "small", "1"], "database space exceeded");
    let revision = s.status(0)["header"]["revision"].as_u64().expect("a revision").to_string();
    s.ctl(0, &["compaction", "--physical=true", &revision]);
    wait_for("the space", crate::servers::PATIENCE, || s.status(0)["dbSizeInUse"].as_u64().filter(|used| *used < 50_000));
    let disarmed = s.ctl(0, &["alarm", "disarm"]);
    assert!(disarmed.contains("alarm:NOSPACE"), "{disarmed}");
    s.ctl(0, &["put", "small", "1"]);
    assert_eq!(s.ctl(0, &["alarm", "list"]), "");
    // Other bounds that flags set.
    let with_input = |words: &[&str], content: &str| {
        let input = s.dir.path().join("input");
        std::fs::write(&input, content).expect("write");
        let said = s.etcdctl(0, words).stdin(std::fs::File::open(&input).expect("open")).output().expect("run etcdctl");
        text(&said.stderr)
    };
    let said = with_input(&["put", "large"], &"z".repeat(250_000));
    assert!(said.contains("etcdserver: request is too large"), "{said}");
    let said = with_input(&["txn"], "\nput a 1\nput b 1\nput c 1\nput d 1\n\n\n");
    assert!(said.contains("too many operations in txn request"), "{said}");
}

fn restore(s: &Servers, i: usize, file: &Path, members: &[usize], more: &[&str]) {
    let mut c = s.brickraft(&["snapshot", "restore"]);
    c.arg(file).arg("--data-dir").arg(s.data(i));
    c.args(["--name", &format!("m{i}"), "--initial-cluster", &cluster(members), "--initial-cluster-token", "again"]);
    c.args(["--initial-advertise-peer-urls", &peer(i)]).args(more);
    run(&mut c);
}

#[test]
fn a_backup_restores_to_clusters_of_one_and_of_three() {
    let mut s = Servers::cluster(3);
    for n in 0..50 {
        s.ctl(n % 3, &["put", &format!("key/{n}"), &format!("value {n}")]);
    }
    let granted = s.ctl(0, &["lease", "grant", "6000"]);
    let lease = granted.split(' ').nth(1).expect("an id").to_owned();
    s.ctl(1, &["put", "key/leased", "x", &format!("--lease={lease}")]);
    let revision = s.status(0)["header"]["revision"].as_u64().expect("a revision");

    let theirs = s.dir.path().join("theirs.db");
    let ours = s.dir.path().join("ours.db");
    s.ctl(1, &["snapshot", "save", theirs.to_str().expect("plain path")]);
    let ours_text = ours.to_str().expect("plain path");
    let said = run(&mut s.brickraft(&["snapshot", "save", ours_text, "--endpoints", &client(2)]));
    assert_eq!(said, format!("Snapshot saved at {ours_text}\n"));
    let many = format!("{},{}", client(0), client(1));
    s.brickraft_refused(&["snapshot", "save", "/dev/null", "--endpoints", &many], "snapshot must be requested to one selected node");

    let status: serde_json::Value =
        serde_json::from_str(&run(&mut s.brickraft(&["snapshot", "status", ours_text, "-w", "json"]))).expect("json");
    assert_eq!((status["revision"].as_u64(), status["totalKey"].as_u64()), (Some(revision), Some(51)), "{status}");
    let table = run(&mut s.brickraft(&["snapshot", "status", ours_text, "--write-out=table"]));
    assert!(table.contains("|   HASH   | REVISION | TOTAL KEYS | TOTAL SIZE |"), "{table}");

    // Cut or altered files are refused, with the place, and leave nothing behind.
    let good = std::fs::read(&ours).expect("read");
    let bad = s.dir.path().join("bad.db");
    let bad_text = bad.to_str().expect("plain path");
    let target = s.dir.path().join("none");
    let refused = |content: &[u8], expect: &str| {
        std::fs::write(&bad, content).expect("write");
        s.brickraft_refused(&["snapshot", "status", bad_text], expect);
        s.brickraft_refused(&["snapshot", "restore", bad_text, "--data-dir", target.to_str().expect("plain path")], expect);
        assert!(!target.exists());
    };
    refused(&good[..good.len() / 2], &format!("bad.db: backup refused at byte {}: the file breaks off here", good.len() / 2));
    let mut altered = good.clone();
    altered[good.len() / 2] ^= 1;
    refused(&altered, "backup refused at byte 64: the block of");
    refused(b"no backup", "the file ends inside its header");

    for i in 0..3 {
        s.stop(i);
        std::fs::rename(s.data(i), s.dir.path().join(format!("old{i}"))).expect("rename");
    }
    // One member.
    restore(&s, 0, &theirs, &[0], &[]);
    s.start(0, &[]);
    s.wait_leader(&[0]);
    s.wait_keys(0, "key/", 51);
    assert_eq!(s.status(0)["header"]["revision"].as_u64(), Some(revision));
    assert_eq!(s.ctl(0, &["get", "key/7", "--print-value-only"]), "value 7\n");
    let left = s.ctl(0, &["lease", "timetolive", &lease, "--keys"]);
    assert!(left.contains("granted with TTL(6000s)") && left.contains("key/leased"), "{left}");
    s.ctl(0, &["put", "key/new", "1"]);
    assert_eq!(s.members(0).len(), 1);
    s.kill(0);
    s.start(0, &[]);
    s.wait_keys(0, "key/", 52);
    s.stop(0);
    std::fs::remove_dir_all(s.data(0)).expect("remove");

    // Three members, with a jump of the revision.
    for i in 0..3 {
        restore(&s, i, &ours, &[0, 1, 2], &["--bump-revision", "1000", "--mark-compacted"]);
    }
    s.brickraft_refused(&["snapshot", "restore", ours_text, "--data-dir", s.data(0).to_str().expect("plain path")], "not empty");
    s.brickraft_refused(&["snapshot", "restore", ours_text, "--bump-revision=1"], "--mark-compacted required");
    for i in 0..3 {
        s.start(i, &["--initial-cluster", &cluster(&[0, 1, 2]), "--initial-cluster-token", "again"]);
    }
    s.wait_leader(&[0, 1, 2]);
    for i in 0..3 {
        s.wait_keys(i, "key/", 51);
    }
    s.ctl_refused(1, &["get", "key/1", &format!("--rev={revision}")], "required revision has been compacted");
    s.ctl(2, &["put", "key/new", "1"]);
    assert_eq!(s.status(2)["header"]["revision"].as_u64(), Some(revision + 1001));
    s.wait_keys(0, "key/", 52);
}
