//! A cluster that has lost its majority for good goes on from one survivor.

use crate::servers::{PATIENCE, Servers, cluster, host};
use crate::support::{run, wait_for};
use std::time::Duration;

#[test]
fn a_survivor_keeps_all_that_it_knows_and_takes_new_members() {
    let mut s = Servers::cluster(3);
    let old = s.wait_leader(&[0, 1, 2]);
    let survivor = (old + 1) % 3;
    let dead: Vec<usize> = (0..3).filter(|i| *i != survivor).collect();
    let server = |i: usize| format!("--server={}:24007", host(i));
    let brick = |i: usize| {
        let path = s.dir.path().join(format!("brick{i}"));
        format!("{}:{}", host(i), path.display())
    };
    let bricks = (brick(survivor), brick(old));
    wait_for("all servers in the pool", PATIENCE, || {
        let list = run(&mut s.brickraft(&[&server(survivor), "pool", "list"]));
        (list.matches("onnected").count() == 3).then_some(())
    });
    run(&mut s.brickraft(&[&server(survivor), "--mode=script", "volume", "create", "rep", "replica", "2", &bricks.0, &bricks.1, "force"]));
    let granted = s.ctl(0, &["lease", "grant", "6000"]);
    let lease = granted.split(' ').nth(1).expect("an id").to_owned();
    for n in 0..60 {
        s.ctl(n % 3, &["put", &format!("key/{n}"), "x", &format!("--lease={lease}")]);
    }
    s.wait_keys(survivor, "key/", 60);

    // The power goes everywhere at once, and two machines do not come back.
    for i in 0..3 {
        s.kill(i);
    }
    for &i in &dead {
        std::fs::remove_dir_all(s.data(i)).expect("remove");
    }
    let flags = ["--initial-cluster", &cluster(&[0, 1, 2])];
    let forced = [&flags[..], &["--force-new-cluster"]].concat();
    // Cut off at any moment of it, the next start does the same.
    for wait_ms in [20, 60, 100, 150, 250, 400] {
        s.start(survivor, &forced);
        std::thread::sleep(Duration::from_millis(wait_ms));
        s.kill(survivor);
    }
    s.start(survivor, &forced);
    s.wait_leader(&[survivor]);
    s.wait_keys(survivor, "key/", 60);
    assert_eq!(s.members(survivor).len(), 1);
    let left = s.ctl(survivor, &["lease", "timetolive", &lease]);
    assert!(left.contains("granted with TTL(6000s)"), "{left}");
    s.ctl(survivor, &["put", "key/60", "x"]);
    // What the cluster knows of itself is there too: the volume, with its brick on the survivor.
    let info = run(&mut s.brickraft(&[&server(survivor), "volume", "info", "rep"]));
    assert!(info.contains("rep") && info.contains(&bricks.0), "{info}");

    // It stays so without the flag, after kill -9 as well.
    s.kill(survivor);
    s.start(survivor, &flags);
    s.wait_leader(&[survivor]);
    assert_eq!(s.members(survivor).len(), 1);

    // New members, by etcd's recipe.
    let mut running = vec![survivor];
    for &i in &dead {
        let url = crate::servers::peer(i);
        s.ctl_in_time(survivor, &["member", "add", &format!("m{i}"), &format!("--peer-urls={url}")]);
        running.push(i);
        s.start(i, &["--initial-cluster", &cluster(&running), "--initial-cluster-state", "existing"]);
        s.wait_keys(i, "key/", 61);
        wait_for("a voter more", PATIENCE, || {
            let members = s.members(survivor);
            (members.len() == running.len() && members.iter().all(|m| m["isLearner"].is_null() && m["name"].is_string())).then_some(())
        });
    }
    s.kill(survivor);
    s.wait_leader(&dead);
    s.ctl_in_time(dead[0], &["put", "key/61", "x"]);
    s.wait_keys(dead[1], "key/", 62);
}
