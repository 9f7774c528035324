//! A real tree of files, and its comparison.

use crate::lab::{Host, head};
use crate::support::{command, output, run, text};
use std::fs;
use std::path::{Path, PathBuf};

/// Files, directories and so on below `dir`, and the bytes of the files.
fn count(dir: &Path) -> (usize, u64) {
    let mut found = (1, 0);
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(t) if t.is_dir() => {
                let below = count(&entry.path());
                found = (found.0 + below.0, found.1 + below.1);
            }
            _ => found = (found.0 + 1, found.1 + entry.metadata().map(|m| m.len()).unwrap_or(0)),
        }
    }
    found
}

/// The files below `tree`, by their paths in it, in their order.
pub fn files(tree: &Path) -> Vec<PathBuf> {
    let (mut found, mut dirs) = (Vec::new(), vec![PathBuf::new()]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(tree.join(&dir)).expect("list a directory").flatten() {
            let kind = entry.file_type().expect("its kind");
            if kind.is_dir() {
                dirs.push(dir.join(entry.file_name()));
            } else if kind.is_file() {
                found.push(dir.join(entry.file_name()));
            }
        }
    }
    found.sort();
    found
}

/// Makes a tree of at least `objects` objects below `dir` out of /usr/share, by hard links: the parts with the smallest
/// files first.
pub fn stage(dir: &Path, objects: usize) -> PathBuf {
    let mut parts: Vec<(PathBuf, usize, u64)> = Vec::new();
    for entry in fs::read_dir("/usr/share").expect("read /usr/share").flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            let (n, bytes) = count(&entry.path());
            parts.push((entry.path(), n, bytes));
        }
    }
    parts.sort_by_key(|(_, n, bytes)| bytes / (*n as u64));
    let tree = dir.join("tree");
    fs::create_dir(&tree).expect("make the tree");
    let mut total = 0;
    let mut chosen = Vec::new();
    for (path, n, _) in parts {
        if total >= objects {
            break;
        }
        total += n;
        chosen.push(path);
    }
    assert!(total >= objects, "/usr/share has only {total} files");
    let linked = output(command(["cp", "-al"]).args(&chosen).arg(&tree));
    if !linked.status.success() {
        run(command(["cp", "-a"]).args(&chosen).arg(&tree));
    }
    tree
}

/// Panics unless the two trees, which lie on `host`, are the same in every respect that cp -a keeps; rsync and diff look.
#[track_caller]
pub fn assert_same(host: &Host, want: &Path, got: &Path) {
    assert_same_to_rsync(host, want, got);
    let differences = output(host.command(["diff", "-r", "--no-dereference"]).args([want, got]));
    let said = format!("{}{}", text(&differences.stdout), text(&differences.stderr));
    assert!(said.is_empty(), "diff sees differences between {} and {}:\n{}", want.display(), got.display(), head(&said));
}

/// The same, in half the time: rsync looks, which reads everything too.
#[track_caller]
pub fn assert_same_to_rsync(host: &Host, want: &Path, got: &Path) {
    let slash = |p: &Path| format!("{}/", p.display());
    let differences = output(host.command(["rsync", "-nac", "--delete", "-i"]).args([slash(want), slash(got)]));
    let said = format!("{}{}", text(&differences.stdout), text(&differences.stderr));
    assert!(said.is_empty(), "rsync sees differences between {} and {}:\n{}", want.display(), got.display(), head(&said));
}
