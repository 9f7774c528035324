//! Members come and go: etcd's recipe, its refusals, and the replacement of a dead one.

use crate::servers::{PATIENCE, Servers, client, cluster, peer};
use crate::support::{Daemon, output, run, text, wait_for};

fn urls(i: usize) -> String {
    format!("--peer-urls={}", peer(i))
}

#[track_caller]
fn wait_end(s: &mut Servers, i: usize, expect: &str) {
    let mut daemon = s.daemons.remove(&i).expect("it runs");
    assert!(!daemon.ended_well(PATIENCE));
    let log = daemon.log();
    assert!(log.contains(expect) && !log.contains("panicked"), "expected {expect:?}: {log}");
}

#[test]
fn etcds_recipe_adds_a_member_and_a_removed_one_says_so() {
    let mut s = Servers::cluster(3);
    for n in 0..20 {
        s.ctl(n % 3, &["put", &format!("key/{n}"), "x"]);
    }
    let existing = |members: &[usize]| ["--initial-cluster".to_owned(), cluster(members), "--initial-cluster-state=existing".to_owned()];
    let flags = existing(&[0, 1, 2, 3]);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let early = output(&mut s.server(3, &flags));
    assert!(!early.status.success() && text(&early.stderr).contains("add this one first"), "{}", text(&early.stderr));

    s.ctl_refused(0, &["member", "add", "m3", &urls(1)], "etcdserver: Peer URLs already exists");
    s.ctl_refused(0, &["member", "remove", "abc"], "etcdserver: member not found");
    let m1 = s.id(0, "m1");
    s.ctl_refused(0, &["member", "promote", &m1], "etcdserver: can only promote a learner member");
    let added = s.ctl(1, &["member", "add", "m3", "--learner", &urls(3)]);
    assert!(added.contains("ETCD_INITIAL_CLUSTER_STATE=\"existing\""), "{added}");
    s.ctl_refused(1, &["member", "add", "m4", "--learner", &urls(4)], "etcdserver: too many learner members in cluster");
    let m3 = s.id(0, "");
    s.ctl_refused(2, &["member", "promote", &m3], "etcdserver: can only promote a learner member which is in sync with leader");
    s.start(3, &flags);
    s.wait_keys(3, "key/", 20);
    s.ctl_in_time(2, &["member", "promote", &m3]);
    wait_for("the new member's name", PATIENCE, || {
        s.members(3).iter().any(|m| m["name"] == "m3" && m["isLearner"].is_null()).then_some(())
    });
    s.ctl(3, &["put", "key/20", "x"]);
    // It comes back with the same flags.
    s.kill(3);
    s.start(3, &flags);
    s.wait_keys(3, "key/", 21);
    s.ctl_in_time(3, &["put", "key/21", "x"]);

    // Removed while it runs, and while it does not.
    s.ctl(0, &["member", "remove", &m3]);
    let gone = "has been permanently removed from the cluster";
    wait_end(&mut s, 3, gone);
    let again = output(&mut s.server(3, &flags));
    assert!(!again.status.success() && text(&again.stderr).contains(gone), "{}", text(&again.stderr));
    let m2 = s.id(0, "m2");
    s.kill(2);
    let listed = run(&mut s.brickraft(&["member", "list", "--endpoints", &client(0)]));
    assert!(listed.contains(&format!("{m2}, started, m2, {}, {}, false", peer(2), client(2))), "{listed}");
    run(&mut s.brickraft(&["member", "remove", &m2, "--endpoints", &client(0)]));
    s.start(2, &["--initial-cluster", &cluster(&[0, 1, 2])]);
    wait_end(&mut s, 2, gone);
    s.ctl(0, &["put", "key/22", "x"]);
    s.wait_keys(1, "key/", 23);
}

#[test]
fn changes_that_could_cost_the_majority_are_refused() {
    let mut s = Servers::cluster(2);
    s.ctl(0, &["member", "add", "m2", &urls(2)]);
    s.ctl_refused(0, &["member", "add", "m3", &urls(3)], "etcdserver: re-configuration failed due to not enough started members");
    let unstarted = s.id(0, "");
    s.ctl(0, &["member", "update", &unstarted, &urls(5)]);
    assert!(s.members(1).iter().any(|m| m["peerURLs"][0] == peer(5).as_str()));
    s.ctl(0, &["member", "update", &unstarted, &urls(2)]);
    s.start(2, &["--initial-cluster", &cluster(&[0, 1, 2]), "--initial-cluster-state=existing"]);
    wait_for("all started", PATIENCE, || s.members(0).iter().all(|m| m["name"].is_string()).then_some(()));
    s.ctl_in_time(2, &["put", "a", "1"]);
    // All three live, so a fourth is welcome; a fifth is not before that has come.
    s.ctl(0, &["member", "add", "m3", &urls(3)]);
    s.ctl_refused(0, &["member", "add", "m4", &urls(4)], "etcdserver: unhealthy cluster");
    let unstarted = s.id(0, "");
    s.ctl(0, &["member", "remove", &unstarted]);
    let m1 = s.id(0, "m1");
    s.kill(2);
    wait_for("the refusal", PATIENCE, || {
        let said = output(&mut s.etcdctl(0, &["member", "add", "m3", &urls(3)]));
        text(&said.stderr).contains("etcdserver: unhealthy cluster").then_some(())
    });
    s.ctl_refused(0, &["member", "remove", &m1], "etcdserver: unhealthy cluster");
    let leader = s.wait_leader(&[0, 1]);
    assert!(s.status(leader)["leader"].as_u64() > Some(0));
    s.ctl(0, &["put", "a", "2"]);
}

#[test]
fn a_dead_member_is_replaced_without_losing_the_majority() {
    let mut s = Servers::cluster(3);
    for n in 0..20 {
        s.ctl(n % 3, &["put", &format!("key/{n}"), "x"]);
    }
    let dead = s.wait_leader(&[0, 1, 2]);
    let living: Vec<usize> = (0..3).filter(|i| *i != dead).collect();
    let old = s.id(living[0], &format!("m{dead}"));
    let endpoints = living.iter().map(|&i| client(i)).collect::<Vec<_>>().join(",");
    let new = urls(3);
    let words = ["member", "replace", &old, "m3", &new, "--endpoints", &endpoints];
    s.brickraft_refused(&words, "it is not dead");
    s.kill(dead);
    s.wait_leader(&living);
    // The command is cut off in the midst, and taken up again.
    let mut first = Daemon::spawn(s.brickraft(&words), &s.dir.path().join("replace"));
    first.wait_line("waiting for the new member", PATIENCE);
    first.kill();
    assert_eq!(s.members(living[0]).len(), 4);
    let mut second = Daemon::spawn(s.brickraft(&words), &s.dir.path().join("replace2"));
    let mut running = living.clone();
    running.push(3);
    s.start(3, &["--initial-cluster", &cluster(&running), "--initial-cluster-state=existing"]);
    assert!(second.ended_well(PATIENCE), "{}", second.log());
    let log = second.log();
    assert!(log.contains("promoted in cluster") && log.contains(&format!("Member {old} removed")), "{log}");
    let names = || s.members(living[0]).iter().map(|m| m["name"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>();
    // The new one may tell its name a moment later.
    wait_for("the new member's name", PATIENCE, || names().contains(&"m3".to_owned()).then_some(()));
    let names = names();
    assert!(names.len() == 3 && !names.contains(&format!("m{dead}")), "{names:?}");
    s.wait_keys(3, "key/", 20);
    // The new one counts: with one of the others gone there is still a majority.
    s.kill(living[0]);
    s.wait_leader(&[living[1], 3]);
    s.ctl_in_time(3, &["put", "key/20", "x"]);
}

#[test]
fn members_of_both_kinds_do_not_mix() {
    let mut s = Servers::new();
    let all = cluster(&[0, 1, 2]);
    let founders = ["--initial-cluster", all.as_str()];
    // Two of three founders are called etcd: the third does not get in, says why, and ends.
    s.start_etcd(0, &founders);
    s.start_etcd(1, &founders);
    s.wait_leader(&[0, 1]);
    s.start(2, &founders);
    let why = "runs as `etcd`, and this member was started as `brickraft server`";
    wait_end(&mut s, 2, why);
    assert!([0, 1].iter().any(|i| s.daemons[i].log().contains("a member that was started as `brickraft server` is not let in")));
    s.ctl(0, &["put", "a", "1"]);
    s.start_etcd(2, &founders);
    s.wait_keys(2, "a", 1);
    // One that comes later is told at once.
    s.ctl(0, &["member", "add", "m3", "--learner", &urls(3)]);
    let grown = cluster(&[0, 1, 2, 3]);
    let existing = ["--initial-cluster", grown.as_str(), "--initial-cluster-state=existing"];
    let said = output(&mut s.server(3, &existing));
    assert!(!said.status.success() && text(&said.stderr).contains(why), "{}", text(&said.stderr));
    s.start_etcd(3, &existing);
    s.wait_keys(3, "a", 1);
    // All of them together may change: it is the members that are running that must agree.
    let named = || s.members(0).iter().any(|m| m["name"] == "m3").then_some(());
    wait_for("the new member's name", PATIENCE, named);
    let m3 = s.id(0, "m3");
    s.ctl_in_time(0, &["member", "remove", &m3]);
    wait_end(&mut s, 3, "has been permanently removed from the cluster");
    (0..3).for_each(|i| s.stop(i));
    (0..2).for_each(|i| s.start(i, &founders));
    s.wait_leader(&[0, 1]);
    s.start_etcd(2, &founders);
    wait_end(&mut s, 2, "runs as `brickraft server`, and this member was started as `etcd`");
    s.start(2, &founders);
    s.wait_keys(2, "a", 1);
}
