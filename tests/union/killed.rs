//! The process that serves a union gets SIGKILL in the midst of changes of what lies below. (Power cuts at each step are
//! played in `fs/src/union/tests/crash.rs`; here it is the real process, on the real file system, at any moment.)

use crate::stack::{Stack, System};
use crate::support::{command, output, run, wait_for};
use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

/// How often it is killed.
const TRIALS: u64 = 8;
/// Changes of each kind, more than are done until it is killed.
const CHANGES: usize = 400;
/// More than one write, so that a copy can be cut short.
const CONTENT: &str = "what the lower branch holds, ";
const REPEATED: usize = 1_000;

/// What is changed, and how it looks before and after. Each works on names of its own.
const KINDS: [Kind; 6] = [
    Kind { name: "append", change: append, before: is_content, after: is_appended },
    Kind { name: "remove", change: remove, before: is_content, after: is_gone },
    Kind { name: "rename", change: rename, before: is_content, after: is_renamed },
    Kind { name: "rename-dir", change: rename, before: is_dir, after: is_renamed_dir },
    Kind { name: "remove-dir", change: remove_dir, before: is_empty_dir, after: is_gone },
    Kind { name: "opaque", change: make_opaque, before: is_dir, after: is_opaque },
];

struct Kind {
    name: &'static str,
    change: fn(&Path) -> std::io::Result<()>,
    before: fn(&Path) -> bool,
    after: fn(&Path) -> bool,
}

fn moved(path: &Path) -> std::path::PathBuf {
    path.with_extension("moved")
}

fn append(path: &Path) -> std::io::Result<()> {
    fs::OpenOptions::new().append(true).open(path)?.write_all(b"and more")
}

fn remove(path: &Path) -> std::io::Result<()> {
    fs::remove_file(path)
}

fn rename(path: &Path) -> std::io::Result<()> {
    fs::rename(path, moved(path))
}

fn remove_dir(path: &Path) -> std::io::Result<()> {
    fs::remove_dir(path)
}

/// A new directory takes the place of a lower one with content.
fn make_opaque(path: &Path) -> std::io::Result<()> {
    let aside = path.with_extension("aside");
    fs::create_dir(&aside)?;
    fs::write(aside.join("new"), "new")?;
    // RENAME_EXCHANGE: one change.
    rustix::fs::renameat_with(rustix::fs::CWD, &aside, rustix::fs::CWD, path, rustix::fs::RenameFlags::EXCHANGE)?;
    Ok(())
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}

fn is_content(path: &Path) -> bool {
    read(path).is_some_and(|text| text == CONTENT.repeat(REPEATED)) && !moved(path).exists()
}

fn is_appended(path: &Path) -> bool {
    read(path).is_some_and(|text| text == CONTENT.repeat(REPEATED) + "and more")
}

fn is_gone(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
}

fn is_renamed(path: &Path) -> bool {
    is_gone(path) && read(&moved(path)).is_some_and(|text| text == CONTENT.repeat(REPEATED))
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).map(|d| d.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect()).unwrap_or_default();
    names.sort();
    names
}

fn is_dir(path: &Path) -> bool {
    names(path) == ["file", "inner"] && read(&path.join("file")).as_deref() == Some("x")
}

fn is_empty_dir(path: &Path) -> bool {
    path.is_dir() && names(path).is_empty()
}

fn is_renamed_dir(path: &Path) -> bool {
    is_gone(path) && is_dir(&moved(path))
}

fn is_opaque(path: &Path) -> bool {
    names(path) == ["new"] && is_dir(&path.with_extension("aside"))
}

fn fill(lower: &Path) {
    for kind in &KINDS {
        for i in 0..CHANGES {
            let path = lower.join(format!("{}{i}", kind.name));
            match kind.name {
                "append" | "remove" | "rename" => fs::write(path, CONTENT.repeat(REPEATED)).expect("write"),
                "remove-dir" => fs::create_dir(path).expect("mkdir"),
                _ => {
                    fs::create_dir_all(path.join("inner")).expect("mkdir");
                    fs::write(path.join("file"), "x").expect("write");
                }
            }
        }
    }
}

#[test]
fn what_was_under_way_when_it_was_killed_is_done_or_not_begun() {
    let stack = Stack::new(System::Ours);
    fill(&stack.lower());
    // By kind: how many were answered, but for those that a kill cut short.
    let mut done = [0; KINDS.len()];
    let mut cut_short = BTreeSet::new();
    for trial in 0..TRIALS {
        stack.mount();
        let mnt = stack.mnt();
        let pid = stack.says("pid");
        let killer = std::thread::spawn({
            let pid = pid.clone();
            move || {
                std::thread::sleep(Duration::from_micros(7_000 + trial * trial * 1_300));
                run(&mut command(["kill", "-KILL", &pid]));
            }
        });
        let (mut kind, mut alive) = (trial as usize % KINDS.len(), true);
        while alive && done[kind] < CHANGES {
            let path = mnt.join(format!("{}{}", KINDS[kind].name, done[kind]));
            alive = (KINDS[kind].change)(&path).is_ok();
            if alive {
                done[kind] += 1;
                kind = (kind + 1) % KINDS.len();
            }
        }
        killer.join().expect("kill");
        wait_for("its end", Duration::from_secs(10), || (!Path::new(&format!("/proc/{pid}")).exists()).then_some(()));
        output(command(["umount", "-l"]).arg(&mnt));
        stack.mount();
        for (k, kind) in KINDS.iter().enumerate() {
            for i in 0..(done[k] + 2).min(CHANGES) {
                let path = mnt.join(format!("{}{i}", kind.name));
                let (before, after) = ((kind.before)(&path), (kind.after)(&path));
                let fits = if i == done[k] || cut_short.contains(&(k, i)) {
                    before || after
                } else if i < done[k] {
                    after
                } else {
                    before
                };
                assert!(fits, "trial {trial}: {} of {} answered: before {before}, after {after}", path.display(), done[k]);
            }
            // One that was done, but not answered, is not done again, nor one that has made its directory aside.
            let next = mnt.join(format!("{}{}", kind.name, done[k]));
            if done[k] < CHANGES && ((kind.after)(&next) || next.with_extension("aside").exists()) {
                cut_short.insert((k, done[k]));
                done[k] += 1;
            }
        }
        let leftovers: Vec<_> = names(&mnt).into_iter().filter(|name| name.starts_with(".wh.")).collect();
        assert!(leftovers.is_empty(), "{leftovers:?}");
        stack.unmount();
    }
    assert!(done.iter().all(|n| *n > 3 && *n < CHANGES), "killed too early or too late to mean something: {done:?}");
}
