//! Who walks a tree that is not in memory is scouted for.

use crate::links::Links;
use crate::stack::{Stack, System};
use crate::support::{command, run, wait_for};
use rustix::fs::{Advice, Mode, OFlags, fadvise};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

const FILES: usize = 240;

fn scouted(dir: &Path) -> u64 {
    run(command(["getfattr", "--only-values", "-n", "user.brickraft.scouted"]).arg(dir)).parse().expect("a number")
}

/// Drops the data of all files below from memory.
fn chill(dir: &Path) {
    run(command(["sync", "-f"]).arg(dir));
    for entry in fs::read_dir(dir).expect("list").map(|e| e.expect("entry")) {
        if entry.file_type().expect("type").is_dir() {
            chill(&entry.path());
        } else {
            fadvise(File::open(entry.path()).expect("open"), 0, None, Advice::DontNeed).expect("fadvise");
        }
    }
}

/// Whether a file's start is in memory. Moves no time of access.
fn in_memory(path: &Path) -> bool {
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::NOATIME, Mode::empty()).expect("open");
    rustix::io::preadv2(&file, &mut [std::io::IoSliceMut::new(&mut [0])], 0, rustix::io::ReadWriteFlags::NOWAIT).is_ok()
}

fn walk(dir: &Path, each: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(dir).expect("list").map(|e| e.expect("entry")) {
        if entry.file_type().expect("type").is_dir() {
            walk(&entry.path(), each);
        } else {
            each(&entry.path());
        }
    }
}

fn cold_stack() -> Option<Stack> {
    // Not in a file system in memory.
    let stack = Stack::within(System::Ours, Path::new("/var/tmp"));
    for i in 0..FILES {
        let dir = stack.lower().join(format!("d{}/e{}", i % 3, i % 4));
        fs::create_dir_all(&dir).expect("mkdir");
        fs::write(dir.join(format!("f{i}")), format!("{i}").repeat(3000)).expect("write below");
    }
    chill(&stack.lower());
    let first = stack.lower().join("d0/e0/f0");
    let cold = !in_memory(&first);
    chill(&stack.lower());
    if !cold {
        eprintln!("left out: what lies in /var/tmp stays in memory");
    }
    cold.then_some(stack)
}

fn check_walk(more: &str) {
    let Some(stack) = cold_stack() else { return };
    let (mnt, lower) = (stack.mnt(), stack.lower());
    let times = |path: &Path| {
        let m = path.metadata().expect("stat");
        (m.atime(), m.atime_nsec())
    };
    stack.mount_with(more);
    assert_eq!(scouted(&mnt), 0);
    let mut files = Vec::new();
    walk(&mnt, &mut |path| files.push(path.strip_prefix(&mnt).expect("below").to_owned()));
    let before: Vec<_> = files.iter().map(|f| times(&lower.join(f))).collect();
    assert_eq!((files.len(), scouted(&mnt)), (FILES, 0), "nothing was read yet");
    for (i, file) in files.iter().enumerate() {
        let content = fs::read_to_string(mnt.join(file)).expect("read");
        let number = file.file_name().expect("name").to_str().expect("plain")[1..].to_owned();
        assert_eq!(content, number.repeat(3000));
        // At first at its pace; it comes first ever after.
        if i < 20 {
            let next = u64::try_from(i + 1).expect("small");
            wait_for("the next file", Duration::from_secs(20), || (scouted(&mnt) >= next).then_some(()));
        }
        if i == 20 {
            wait_for("the scout to be far ahead", Duration::from_secs(20), || (scouted(&mnt) >= 60).then_some(()));
            wait_for("what it asked for", Duration::from_secs(20), || in_memory(&lower.join(&files[60])).then_some(()));
        }
    }
    let most = u64::try_from(FILES - 1).expect("small");
    wait_for("the scout's end", Duration::from_secs(20), || (scouted(&mnt) >= most / 2).then_some(()));
    assert!(scouted(&mnt) <= most, "each once");
    // Files of a read-only branch are not marked as read.
    let after: Vec<_> = files.iter().map(|f| times(&lower.join(f))).collect();
    assert!(before == after, "times of access moved");
    let known = scouted(&mnt);
    run(command(["sh", "-c", "tar cf - . | cat > /dev/null"]).current_dir(&mnt));
    assert_eq!(scouted(&mnt), known, "what is in memory is left alone");
}

#[test]
fn a_cold_tree_is_fetched_ahead_of_who_walks_it() {
    check_walk("");
}

#[test]
fn it_is_so_without_rings_and_with_no_names_remembered() {
    check_walk(",noio_uring,udba=reval");
}

#[test]
fn a_branch_goes_while_it_is_being_scouted() {
    let _links = Links::install();
    let Some(stack) = cold_stack() else { return };
    let extra = stack.path("extra");
    fs::create_dir(&extra).expect("mkdir");
    stack.mount_with(&format!(":{}=ro", extra.display()));
    let (mnt, mut read) = (stack.mnt(), 0);
    walk(&mnt, &mut |path| {
        assert!(!fs::read(path).expect("read").is_empty());
        read += 1;
        if read == 60 {
            run(command(["mount", "-o", &format!("remount,del:{}", extra.display())]).arg(&mnt));
        }
    });
    assert_eq!(read, FILES);
}
