//! (a) and (c): what happens in a brick's directory behind the servers' backs.

use crate::lab::Lab;
use crate::support::{command, run};
use crate::{tree, writer};
use std::fs;
use std::path::{Path, PathBuf};

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

fn remove(brick: &Path, dot_files: bool) {
    for entry in fs::read_dir(brick).expect("the brick").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != "lost+found" && (dot_files || !name.starts_with('.')) {
            run(command(["rm", "-rf"]).arg(entry.path()));
        }
    }
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

fn removed(of: impl FnOnce(&Lab) -> usize, dot_files: bool, heal: &[&str]) {
    let (lab, tree) = with_tree();
    remove(&lab.brick_dir(of(&lab)), dot_files);
    // A client that has nothing in its cache.
    let mnt = lab.hosts[2].mount("h1,h2", "rep", "mnt");
    tree::assert_same(&lab.hosts[2], &tree, &lab.hosts[2].dir.join("mnt/tree"));
    if !heal.is_empty() {
        lab.hosts[2].ok(heal);
    }
    lab.bricks_become_equal();
    tree::assert_same(&lab.hosts[0], &tree, &lab.hosts[0].dir.join("disk/brick/tree"));
    let written = writer::content(6);
    fs::write(mnt.join("after"), &written).expect("the volume is writable after");
    assert_eq!(fs::read(lab.brick_dir(1).join("after")).expect("on the brick"), written);
}

#[test]
fn all_of_the_primary_is_removed() {
    removed(Lab::primary, true, &[]);
}

#[test]
fn all_names_of_the_primary_are_removed() {
    removed(Lab::primary, false, &["volume", "heal", "rep", "full"]);
}

#[test]
fn all_names_of_the_secondary_are_removed() {
    removed(|lab| 1 - lab.primary(), false, &["volume", "heal", "rep", "full"]);
}
