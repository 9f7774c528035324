//! The lab from the first probe to the unmount, with a real tree of files.

use crate::lab::Lab;
use crate::support::{command, run, wait_for};
use crate::tree;
use std::time::Duration;

/// Objects that are copied.
const OBJECTS: usize = 20_500;

#[test]
fn the_gluster_lab() {
    let mut lab = Lab::new();
    for host in &mut lab.hosts {
        host.start();
    }
    let h1 = &lab.hosts[0];
    let said = h1.ok(&["peer", "probe", "h2"]);
    assert!(said.starts_with("peer probe: success"), "{said}");
    assert!(said.contains("cannot lose either server"), "two servers are told what they are: {said}");
    let said = h1.ok(&["peer", "probe", "h3"]);
    assert!(said.starts_with("peer probe: success") && !said.contains("cannot lose"), "{said}");
    let status = h1.ok(&["peer", "status"]);
    assert!(status.starts_with("Number of Peers: 2\n"), "{status}");
    assert_eq!(status.matches("State: Peer in Cluster (Connected)").count(), 2, "{status}");
    assert!(lab.hosts[1].ok(&["pool", "list"]).matches("Connected").count() == 3);

    let (a, b) = (lab.hosts[0].brick_name("brick"), lab.hosts[1].brick_name("brick"));
    let said = h1.ok(&["volume", "create", "rep", "replica", "2", &a, &b]);
    assert!(said.starts_with("volume create: rep: success"), "{said}");
    assert!(h1.ok(&["volume", "start", "rep"]).starts_with("volume start: rep: success"));
    lab.whole();
    let info = lab.hosts[1].ok(&["volume", "info", "rep"]);
    for line in ["Volume Name: rep", "Type: Replicate", "Status: Started", "Number of Bricks: 1 x 2 = 2", &format!("Brick1: {a}"), &format!("Brick2: {b}")] {
        assert!(info.lines().any(|l| l == line), "{line}:\n{info}");
    }
    assert!(h1.ok(&["volume", "status", "rep"]).matches(" Y ").count() == 2);

    // On a third machine, which has no brick.
    let mnt = lab.hosts[2].mount("h1", "rep", "mnt");
    let tree = tree::stage(&lab.hosts[2].dir, OBJECTS);
    run(command(["cp", "-a"]).arg(&tree).arg(&mnt));
    tree::assert_same(&lab.hosts[2], &tree, &lab.hosts[2].dir.join("mnt/tree"));
    assert!(lab.brick_differences().is_empty(), "the bricks differ:\n{}", lab.brick_differences());

    everything_in_a_brick_is_removed(&lab, &tree);

    let h3 = &lab.hosts[2];
    assert!(!h3.others().is_empty());
    h3.unmount("mnt");
    wait_for("the mount's process ends", Duration::from_secs(10), || h3.others().is_empty().then_some(()));
    assert!(!h3.is_mounted("mnt"));
    for host in &mut lab.hosts {
        assert!(host.server().stop(Duration::from_secs(10)), "the server of {} stops in order", host.name);
    }
}

/// (a), with dot files and all, while the mount is looked at.
fn everything_in_a_brick_is_removed(lab: &Lab, tree: &std::path::Path) {
    let victim = 1 - lab.primary();
    lab.remove_all(victim, true);
    lab.hosts[1].mount("h2,h1", "rep", "mnt2");
    tree::assert_same_to_rsync(&lab.hosts[1], tree, &lab.hosts[1].dir.join("mnt2/tree"));
    lab.bricks_become_equal();
    lab.hosts[1].unmount("mnt2");
}
