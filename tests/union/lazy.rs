//! `lazy-cpup`: huge files are copied up block by block.

use crate::stack::{Stack, System, fingerprint};
use crate::support::{BRICKRAFT, command, fsx, run};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};

const HUGE: u64 = 4 << 30;

/// A sparse file of 4 GiB below, with data here and there.
fn huge() -> Stack {
    let stack = Stack::new(System::Ours);
    let file = File::create(stack.lower().join("huge")).expect("make it");
    file.set_len(HUGE).expect("size");
    for (at, word) in [(0, "start"), (HUGE / 2, "middle"), (HUGE - 3, "end")] {
        file.write_all_at(word.as_bytes(), at).expect("write below");
    }
    // Its own data is more than a few blocks.
    file.write_all_at(&vec![7; 16 << 20], 1 << 20).expect("write below");
    stack
}

fn at(file: &File, offset: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0; len];
    file.read_exact_at(&mut buf, offset).expect("read");
    buf
}

fn option(stack: &Stack, name: &str) -> String {
    run(command(["getfattr", "--only-values", "-n", &format!("user.brickraft.{name}")]).arg(stack.mnt()))
}

/// KiB that it takes in the writable branch.
fn allocated(stack: &Stack) -> u64 {
    stack.upper().join("huge").metadata().expect("the copy").blocks() / 2
}

#[test]
fn a_small_write_to_a_huge_file_does_not_copy_it() {
    let stack = huge();
    let before = fingerprint(&stack.lower());
    stack.mount_with(",lazy-cpup=1G");
    assert_eq!(option(&stack, "lazy_cpup"), "1073741824");
    let path = stack.mnt().join("huge");
    let number = fs::metadata(&path).expect("stat").ino();
    let file = OpenOptions::new().read(true).write(true).open(&path).expect("open");
    file.write_all_at(b"written", HUGE / 2 + 100).expect("write");
    file.write_all_at(b"ST", 0).expect("write");
    file.sync_all().expect("fsync");
    assert!(allocated(&stack) <= 1024, "{} KiB were copied", allocated(&stack));
    let m = fs::metadata(&path).expect("stat");
    assert!(m.len() == HUGE && m.ino() == number && m.blocks() > 0);
    let check = |file: &File| {
        assert_eq!(at(file, 0, 5), b"STart");
        assert_eq!(at(file, HUGE / 2, 6), b"middle");
        assert_eq!(at(file, HUGE / 2 + 100, 7), b"written");
        assert_eq!(at(file, HUGE - 3, 3), b"end");
        assert!(at(file, 1 << 20, 16 << 20).iter().all(|b| *b == 7));
    };
    check(&file);
    drop(file);
    // Without the option, too.
    stack.unmount();
    stack.mount_with("");
    assert_eq!(option(&stack, "lazy_cpup"), "off");
    check(&File::open(&path).expect("open"));
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("chmod");
    fs::rename(&path, stack.mnt().join("renamed")).expect("rename");
    check(&File::open(stack.mnt().join("renamed")).expect("open"));
    fs::rename(stack.mnt().join("renamed"), &path).expect("rename");
    assert!(allocated(&stack) <= 1024, "{} KiB were copied", allocated(&stack));
    assert_eq!(fingerprint(&stack.lower()), before, "the read-only branch changed");
}

#[test]
fn what_is_left_is_copied_on_demand() {
    let stack = huge();
    stack.mount();
    let remount = |o: &str| command([BRICKRAFT, "union", "-o", &format!("remount,{o}")]).arg(stack.mnt()).output().expect("run");
    let done = remount("lazy-cpup=1G");
    assert!(done.status.success(), "{done:?}");
    assert_eq!(option(&stack, "lazy_cpup"), "1073741824");
    let path = stack.mnt().join("huge");
    OpenOptions::new().write(true).open(&path).expect("open").write_all_at(b"ST", 0).expect("write");
    assert!(allocated(&stack) <= 1024);
    let delete = format!("del:{}", stack.lower().display());
    let refused = remount(&delete);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("is needed") && said.contains("huge"), "{said}");
    let mtime = fs::metadata(&path).expect("stat").mtime_nsec();
    let said = run(command([BRICKRAFT, "union", "complete"]).arg(stack.mnt()));
    assert_eq!(said, "1 files are whole\n");
    // Holes stayed.
    assert!((16 << 10..20 << 10).contains(&allocated(&stack)), "{} KiB", allocated(&stack));
    assert_eq!(fs::metadata(&path).expect("stat").mtime_nsec(), mtime);
    let copy = File::open(stack.upper().join("huge")).expect("open the copy");
    assert_eq!((at(&copy, 0, 5), at(&copy, HUGE - 3, 3)), (b"STart".to_vec(), b"end".to_vec()));
    assert!(at(&copy, 1 << 20, 16 << 20).iter().all(|b| *b == 7));
    assert_eq!(fs::read_dir(stack.upper().join(".wh..wh.lazy")).expect("list").count(), 0);
    assert!(remount(&delete).status.success());
    assert_eq!(at(&File::open(&path).expect("open"), HUGE / 2, 6), b"middle");
}

#[test]
fn fsx_finds_no_mismatch_in_lazy_copies() {
    for transport in [",noio_uring", ",io_uring"] {
        let stack = Stack::new(System::Ours);
        fs::write(stack.lower().join("fsx"), vec![0; 600_000]).expect("write below");
        let before = fingerprint(&stack.lower());
        stack.mount_with(&format!(",lazy-cpup=64K{transport}"));
        fsx(&stack.mnt().join("fsx"), &stack.path("work"), 8);
        assert!(stack.upper().join("fsx").exists(), "never copied up");
        assert_eq!(fingerprint(&stack.lower()), before, "the read-only branch changed");
    }
}
