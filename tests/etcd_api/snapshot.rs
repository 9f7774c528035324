//! Alarms, backups, and clusters that are made out of backups.

use crate::servers::{PATIENCE, Servers, client, cluster, host, peer};
use crate::support::{Unmount, output, run, text, wait_for};
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

/// What it says besides.
fn restore(s: &Servers, i: usize, file: &Path, members: &[usize], more: &[&str]) -> String {
    let mut c = s.brickraft(&["snapshot", "restore"]);
    c.arg(file).arg("--data-dir").arg(s.data(i));
    c.args(["--name", &format!("m{i}"), "--initial-cluster", &cluster(members), "--initial-cluster-token", "again"]);
    c.args(["--initial-advertise-peer-urls", &peer(i)]).args(more);
    let ended = output(&mut c);
    assert!(ended.status.success(), "{}", text(&ended.stderr));
    text(&ended.stderr)
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

#[test]
fn users_and_roles_are_restored() {
    let mut s = Servers::cluster(1);
    for words in [
        &["user", "add", "root:pw"][..],
        &["user", "add", "alice:secret"],
        &["role", "add", "team"],
        &["role", "grant-permission", "--prefix", "team", "readwrite", "team/"],
        &["user", "grant-role", "alice", "team"],
        &["auth", "enable"],
        &["--user=alice:secret", "put", "team/k", "v"],
    ] {
        s.ctl(0, words);
    }
    let saved = s.dir.path().join("saved.db");
    let save = ["snapshot", "save", saved.to_str().expect("plain path"), "--endpoints", &client(0)];
    s.brickraft_refused(&save, "etcdserver: user name is empty");
    s.brickraft_refused(&[&save[..], &["--user=root:wrong"]].concat(), "authentication failed, invalid user ID or password");
    s.brickraft_refused(&[&save[..], &["--user=alice:secret"]].concat(), "etcdserver: permission denied");
    run(&mut s.brickraft(&[&save[..], &["--user=root", "--password=pw"]].concat()));
    let listed = run(&mut s.brickraft(&["member", "list", "--endpoints", &client(0), "--user=alice:secret"]));
    assert!(listed.contains("started, m0"), "{listed}");
    // What comes after the backup is forgotten, and only that.
    s.ctl(0, &["--user=root:pw", "user", "delete", "alice"]);
    s.ctl(0, &["--user=root:pw", "user", "add", "late:late"]);
    s.stop(0);
    std::fs::rename(s.data(0), s.dir.path().join("old0")).expect("rename");
    restore(&s, 0, &saved, &[0], &[]);
    s.start(0, &[]);
    assert_eq!(s.ctl_in_time(0, &["--user=alice:secret", "get", "team/k"]), "team/k\nv\n");
    s.ctl_refused(0, &["get", "team/k"], "user name is empty");
    s.ctl_refused(0, &["--user=late:late", "get", "team/k"], "authentication failed, invalid user ID or password");
    s.ctl_refused(0, &["--user=alice:secret", "put", "other", "v"], "permission denied");
    s.ctl(0, &["--user=alice:secret", "put", "team/k", "w"]);
    assert_eq!(s.ctl(0, &["--user=root:pw", "user", "list"]), "alice\nroot\n");
    let role = s.ctl(0, &["--user=root:pw", "role", "get", "team"]);
    assert!(role.contains("(prefix team/)"), "{role}");
    s.ctl(0, &["--user=root:pw", "auth", "disable"]);
    s.ctl(0, &["put", "other", "v"]);
}

/// `brickraft mount` of that volume on the directory `mnt`, until the guard goes.
fn mount(s: &Servers, volume: &str) -> (Unmount, std::path::PathBuf) {
    let on = s.dir.path().join("mnt");
    std::fs::create_dir_all(&on).expect("make the directory");
    let log = format!("log-file={}", s.dir.path().join("mnt.log").display());
    run(s.brickraft(&["mount", &format!("{}:{volume}", host(0))]).arg(&on).args(["-o", &log]));
    (Unmount(on.clone()), on)
}

#[test]
fn a_restored_cluster_finds_its_volumes() {
    let mut s = Servers::cluster(3);
    let dir = s.dir.path().to_owned();
    let brick = |i: usize| dir.join(format!("brick{i}"));
    let bricks: Vec<String> = (0..2).map(|i| format!("{}:{}", host(i), brick(i).display())).collect();
    let asked = |s: &Servers, words: &[&str]| {
        let mut c = s.brickraft(&["--mode=script", "--server", &host(0)]);
        c.args(words);
        c
    };
    wait_for("the volume", PATIENCE, || {
        output(&mut asked(&s, &["volume", "create", "rep", "replica", "2", &bricks[0], &bricks[1], "force"])).status.success().then_some(())
    });
    run(&mut asked(&s, &["volume", "start", "rep"]));
    let whole = |s: &Servers| {
        wait_for("both bricks in sync", PATIENCE, || {
            let status = text(&output(&mut asked(s, &["volume", "status", "rep"])).stdout);
            (status.contains("primary") && status.contains("in sync")).then_some(())
        });
    };
    whole(&s);
    {
        let (_unmount, mnt) = mount(&s, "rep");
        std::fs::write(mnt.join("before"), "1").expect("write");
        let saved = s.dir.path().join("saved.db");
        run(&mut s.brickraft(&["snapshot", "save", saved.to_str().expect("plain path"), "--endpoints", &client(1)]));
        // Files are no affair of the backup: the bricks have them.
        std::fs::write(mnt.join("after"), "2").expect("write");
        std::fs::File::open(mnt.join("after")).and_then(|f| f.sync_all()).expect("sync");
    }
    // The store is lost on all servers, the bricks are not.
    (0..3).for_each(|i| s.kill(i));
    for i in 0..3 {
        std::fs::rename(s.data(i), s.dir.path().join(format!("old{i}"))).expect("rename");
        let said = restore(&s, i, &s.dir.path().join("saved.db"), &[0, 1, 2], &[]);
        assert!(said.contains("note: volumes rep: ") && !said.contains("no members"), "{said}");
        s.start(i, &["--initial-cluster", &cluster(&[0, 1, 2]), "--initial-cluster-token", "again"]);
    }
    s.wait_leader(&[0, 1, 2]);
    whole(&s);
    let info = run(&mut asked(&s, &["volume", "info", "rep"]));
    assert!(info.contains("Status: Started"), "{info}");
    {
        let (_unmount, mnt) = mount(&s, "rep");
        for (name, content) in [("before", "1"), ("after", "2")] {
            assert_eq!(std::fs::read_to_string(mnt.join(name)).expect(name), content);
        }
        std::fs::write(mnt.join("new"), "3").expect("write");
    }
    for i in 0..2 {
        assert_eq!(std::fs::read_to_string(brick(i).join("new")).expect("the brick's own file"), "3");
    }

    // The same backup once more: the bricks have seen later configurations of their group, so nobody serves from what it
    // says, and no file is lost or goes back in time.
    (0..3).for_each(|i| s.stop(i));
    for i in 0..3 {
        std::fs::remove_dir_all(s.data(i)).expect("remove");
        restore(&s, i, &s.dir.path().join("saved.db"), &[0, 1, 2], &[]);
        s.start(i, &["--initial-cluster", &cluster(&[0, 1, 2]), "--initial-cluster-token", "again"]);
    }
    s.wait_leader(&[0, 1, 2]);
    wait_for("the volume is known", PATIENCE, || output(&mut asked(&s, &["volume", "info", "rep"])).status.success().then_some(()));
    std::thread::sleep(std::time::Duration::from_secs(3));
    let status = text(&output(&mut asked(&s, &["volume", "status", "rep"])).stdout);
    assert!(!status.contains("in sync"), "{status}");
    for i in 0..2 {
        assert_eq!(std::fs::read_to_string(brick(i).join("new")).expect("the brick's own file"), "3");
    }
    // A restore that forgets a server with a brick says so.
    s.stop(0);
    std::fs::remove_dir_all(s.data(0)).expect("remove");
    let said = restore(&s, 0, &s.dir.path().join("saved.db"), &[0], &[]);
    assert!(said.contains(&format!("no members of the new cluster, by their peer URLs: {}", host(1))), "{said}");
}
