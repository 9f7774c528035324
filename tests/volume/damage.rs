//! (a) and (c): what happens in a brick's directory behind the servers' backs.

use crate::lab::{HEAL, Lab};
use crate::support::{command, run, wait_for};
use crate::{tree, writer};
use std::fs;
use std::path::PathBuf;

const OBJECTS: usize = 1_000;

/// A volume with a small tree on it, and the tree.
fn with_tree() -> (Lab, PathBuf) {
    let lab = Lab::with_volume();
    let tree = tree::stage(&lab.hosts[2].dir, OBJECTS);
    let mnt = lab.hosts[2].mount("h1", "rep", "mnt");
    run(command(["cp", "-a"]).arg(&tree).arg(&mnt));
    lab.hosts[2].unmount("mnt");
    (lab, tree)
}

/// (c): bytes are flipped in one brick, which moves the files' mtime: an open finds it.
fn flipped(of: impl FnOnce(&Lab) -> usize) {
    let (lab, _) = with_tree();
    let mnt = lab.hosts[2].mount("h1", "rep", "mnt");
    let want: Vec<(String, Vec<u8>)> = (1..20).map(|n| (format!("flipped-{n}"), writer::content(n))).collect();
    for (name, content) in &want {
        fs::write(mnt.join(name), content).expect("write");
    }
    lab.hosts[2].unmount("mnt");
    let brick = lab.brick_dir(of(&lab));
    for (name, _) in &want {
        let to = format!("of={}", brick.join(name).display());
        run(&mut command(["dd", "if=/dev/urandom", &to, "bs=1", "count=16", "seek=40", "conv=notrunc", "status=none"]));
    }
    let mnt = lab.hosts[2].mount("h1,h2", "rep", "mnt");
    for (name, content) in &want {
        assert!(&fs::read(mnt.join(name)).expect("read") == content, "{name} is read as it was altered");
    }
    lab.bricks_become_equal();
    for (name, content) in &want {
        assert!(&fs::read(brick.join(name)).expect("read") == content, "{name} is not healed");
    }
}

#[test]
fn bytes_of_the_primary_are_flipped() {
    flipped(Lab::primary);
}

#[test]
fn bytes_of_the_secondary_are_flipped() {
    flipped(|lab| 1 - lab.primary());
}

/// `look`: the tree is looked at before it is healed, by a client that has nothing in its cache.
fn removed(of: impl FnOnce(&Lab) -> usize, dot_files: bool, look: bool) {
    let (lab, tree) = with_tree();
    lab.remove_all(of(&lab), dot_files);
    let mnt = lab.hosts[2].mount("h1,h2", "rep", "mnt");
    if look {
        tree::assert_same_to_rsync(&lab.hosts[2], &tree, &lab.hosts[2].dir.join("mnt/tree"));
    }
    if !dot_files {
        lab.hosts[2].ok(&["volume", "heal", "rep", "full"]);
    }
    lab.bricks_become_equal();
    tree::assert_same(&lab.hosts[2], &tree, &lab.hosts[2].dir.join("mnt/tree"));
    tree::assert_same(&lab.hosts[0], &tree, &lab.hosts[0].dir.join("disk/brick/tree"));
    let written = writer::content(6);
    fs::write(mnt.join("after"), &written).expect("the volume is writable after");
    assert_eq!(fs::read(lab.brick_dir(1).join("after")).expect("on the brick"), written);
}

#[test]
fn all_of_the_primary_is_removed() {
    removed(Lab::primary, true, true);
}

#[test]
fn all_names_of_the_primary_are_removed() {
    removed(Lab::primary, false, true);
}

#[test]
fn all_names_of_the_primary_are_removed_and_nobody_looks() {
    removed(Lab::primary, false, false);
}

#[test]
fn all_names_of_the_secondary_are_removed() {
    removed(|lab| 1 - lab.primary(), false, false);
}

/// All names of the primary are removed while the other brick is away. Nobody can be asked then; and what the primary lost
/// must not be taken for removed by users when the other one comes back, and be removed there too.
fn removed_alone(restart: bool) {
    let (mut lab, tree) = with_tree();
    let primary = lab.primary();
    let other = 1 - primary;
    lab.hosts[other].kill();
    wait_for("the primary is alone", HEAL, || (!lab.states().iter().any(|s| s == "in sync")).then_some(()));
    let mnt = lab.hosts[2].mount("h1,h2", "rep", "mnt");
    // What users change meanwhile counts: a file that goes must not come back.
    let files = tree::files(&tree);
    let (gone, rewritten) = (&files[0], &files[1]);
    let content = writer::content(7);
    fs::remove_file(mnt.join("tree").join(gone)).expect("remove a file");
    fs::write(mnt.join("tree").join(rewritten), &content).expect("rewrite a file");
    lab.hosts[2].unmount("mnt");
    lab.remove_all(primary, false);
    if restart {
        lab.hosts[primary].kill();
        lab.hosts[primary].start();
    }
    lab.hosts[other].start();
    lab.bricks_become_equal();
    let mnt = lab.hosts[2].mount("h1,h2", "rep", "mnt").join("tree");
    let there = tree::files(&mnt);
    assert_eq!(there, files[1..], "the files that are there");
    assert!(fs::read(mnt.join(rewritten)).expect("read") == content, "what was written while the other was away");
    for file in &there {
        if file != rewritten {
            assert!(fs::read(mnt.join(file)).expect("read") == fs::read(tree.join(file)).expect("read"), "{} differs", file.display());
        }
    }
}

#[test]
fn all_names_are_removed_while_the_other_brick_is_away() {
    removed_alone(false);
}

#[test]
fn all_names_are_removed_while_the_other_brick_is_away_and_the_server_starts_again() {
    removed_alone(true);
}

/// The same with a third brick in sync: it has what is newest, so the primary is made whole from there before it heals another.
#[test]
fn all_names_of_the_primary_are_removed_while_one_of_three_is_away() {
    let mut lab = Lab::with_cluster();
    let bricks: Vec<String> = lab.hosts.iter().map(|h| h.brick_name("brick")).collect();
    let create = ["volume", "create", "rep", "replica", "3", &bricks[0], &bricks[1], &bricks[2]];
    lab.hosts[0].ok(&create);
    lab.hosts[0].ok(&["volume", "start", "rep"]);
    lab.whole_with(3);
    let tree = tree::stage(&lab.hosts[2].dir, OBJECTS);
    let primary = lab.primary();
    let away = usize::from(primary == 0);
    let mnt = lab.hosts[2].mount("h3", "rep", "mnt");
    run(command(["cp", "-a"]).arg(&tree).arg(mnt.join("before")));
    lab.hosts[away].kill();
    wait_for("a brick is away", HEAL, || (lab.states().iter().filter(|s| *s == "in sync").count() == 1).then_some(()));
    run(command(["cp", "-a"]).arg(&tree).arg(mnt.join("meanwhile")));
    lab.hosts[2].unmount("mnt");
    lab.remove_all(primary, false);
    lab.hosts[away].start();
    lab.whole_with(3);
    for host in &lab.hosts {
        for copy in ["before", "meanwhile"] {
            tree::assert_same(host, &tree, &host.dir.join("disk/brick").join(copy));
        }
    }
}

fn scrub(lab: &Lab) {
    lab.hosts[2].ok(&["volume", "scrub", "rep"]);
    wait_for("the scrub ends", HEAL, || {
        let report = lab.hosts[2].json(&["volume", "heal", "rep", "info"]);
        report["groups"].as_array()?.iter().all(|g| g["heals"].as_array().is_some_and(Vec::is_empty)).then_some(())
    });
}

/// (c) again, but size and mtime are as they were: only a content's signature, which the first scrub makes, can tell.
fn rotten(of: impl FnOnce(&Lab) -> usize) {
    let lab = Lab::with_volume();
    let mnt = lab.hosts[2].mount("h1", "rep", "mnt");
    let content = writer::content(5);
    fs::write(mnt.join("rotten"), &content).expect("write");
    lab.hosts[2].unmount("mnt");
    scrub(&lab);
    let path = lab.brick_dir(of(&lab)).join("rotten");
    let mtime = path.metadata().and_then(|m| m.modified()).expect("its mtime");
    run(&mut command(["dd", "if=/dev/urandom", &format!("of={}", path.display()), "bs=1", "count=16", "seek=4000", "conv=notrunc", "status=none"]));
    fs::File::options().write(true).open(&path).and_then(|f| f.set_modified(mtime)).expect("set its mtime back");
    assert!(fs::read(&path).expect("read") != content);
    scrub(&lab);
    lab.bricks_become_equal();
    assert!(fs::read(&path).expect("read") == content, "the altered file won or stayed");
    let mnt = lab.hosts[2].mount("h1", "rep", "mnt");
    assert!(fs::read(mnt.join("rotten")).expect("read") == content);
}

#[test]
fn bits_of_the_primary_rot() {
    rotten(Lab::primary);
}

#[test]
fn bits_of_the_secondary_rot() {
    rotten(|lab| 1 - lab.primary());
}
