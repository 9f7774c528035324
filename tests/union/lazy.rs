//! `lazy-cpup`: huge files are copied up block by block.

use crate::stack::{Stack, System, fingerprint};
use crate::support::{BRICKRAFT, command, fsx, run};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::fs::FallocateFlags;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};

const HUGE: u64 = 4 << 30;
/// Of a file that is changed at random: five blocks.
const SIZE_MAX: usize = 600_000;

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

/// KiB that it takes in the writable branch.
fn allocated(stack: &Stack) -> u64 {
    stack.upper().join("huge").metadata().expect("the copy").blocks() / 2
}

#[test]
fn a_small_write_to_a_huge_file_does_not_copy_it() {
    let stack = huge();
    let before = fingerprint(&stack.lower());
    stack.mount_with(",lazy-cpup=1G");
    assert_eq!(stack.says("lazy_cpup"), "1073741824");
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
    assert_eq!(stack.says("lazy_cpup"), "off");
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
    assert_eq!(stack.says("lazy_cpup"), "1073741824");
    let path = stack.mnt().join("huge");
    OpenOptions::new().write(true).open(&path).expect("open").write_all_at(b"ST", 0).expect("write");
    assert!(allocated(&stack) <= 1024);
    let delete = format!("del:{}", stack.lower().display());
    let refused = remount(&delete);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("is needed") && said.contains("huge"), "{said}");
    let mtime = fs::metadata(&path).expect("stat").mtime_nsec();
    let said = run(command([BRICKRAFT, "union", "complete"]).arg(stack.mnt()));
    assert_eq!(said, "1 file is whole\n");
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
fn the_log_names_the_copy_and_the_lower_file_that_is_not_what_it_was() {
    let stack = huge();
    stack.mount_with(",lazy-cpup=1G");
    fs::create_dir(stack.mnt().join("dir")).expect("mkdir");
    fs::rename(stack.mnt().join("huge"), stack.mnt().join("dir/moved")).expect("rename");
    stack.unmount();
    fs::remove_file(stack.lower().join("huge")).expect("remove it below");
    let log = stack.path("log");
    stack.mount_with(&format!(",log-file={}", log.display()));
    let error = fs::read(stack.mnt().join("dir/moved")).expect_err("its data is gone");
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    let said = fs::read_to_string(&log).expect("the log");
    for name in [stack.upper().join("dir/moved"), stack.lower().join("huge")] {
        assert!(said.contains(name.to_str().expect("plain path")), "{} is not in the log: {said}", name.display());
    }
    fs::remove_file(stack.mnt().join("dir/moved")).expect("it can be removed");
    assert_eq!(fs::read_dir(stack.upper().join(".wh..wh.lazy")).expect("list").count(), 0);
}

/// A random change of a file and of its model.
fn change(file: &File, model: &mut Vec<u8>, rng: &mut SmallRng) {
    let (at, len) = (rng.random_range(0..SIZE_MAX), rng.random_range(1..40_000));
    let fill = rng.random_range(1..255);
    let grow = |model: &mut Vec<u8>, end: usize| model.resize(model.len().max(end), 0);
    match rng.random_range(0..10) {
        0..5 => {
            file.write_all_at(&vec![fill; len], at as u64).expect("write");
            grow(model, at + len);
            model[at..at + len].fill(fill);
        }
        5 => {
            file.set_len(at as u64).expect("truncate");
            model.resize(at, 0);
        }
        n @ 6..9 => {
            let flags =
                [FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, FallocateFlags::ZERO_RANGE, FallocateFlags::empty()][n - 6];
            rustix::fs::fallocate(file, flags, at as u64, len as u64).expect("fallocate");
            if n > 6 {
                grow(model, at + len);
            }
            let end = model.len().min(at + len);
            if n < 8 {
                model[at.min(end)..end].fill(0);
            }
        }
        _ => {
            let (mut from, mut to) = (at as u64, (at + SIZE_MAX / 2) as u64);
            let done = rustix::fs::copy_file_range(file, Some(&mut from), file, Some(&mut to), len).expect("copy_file_range");
            if done > 0 {
                grow(model, at + SIZE_MAX / 2 + done);
                model.copy_within(at..at + done, at + SIZE_MAX / 2);
            }
        }
    }
}

/// fsx begins with a truncation; here it begins with what is below.
#[test]
fn random_use_is_as_of_a_plain_file() {
    for (seed, transport) in [(1, ",noio_uring"), (2, ",io_uring"), (3, ",noio_uring,writeback"), (4, ",noio_uring,passthrough")] {
        let mut rng = SmallRng::seed_from_u64(seed);
        let stack = Stack::new(System::Ours);
        let mut model: Vec<u8> = (0..SIZE_MAX).map(|i| (i / 3 % 251) as u8).collect();
        fs::write(stack.lower().join("file"), &model).expect("write below");
        let before = fingerprint(&stack.lower());
        for round in 0..6 {
            stack.mount_with(&format!(",lazy-cpup=64K{transport}"));
            let path = stack.mnt().join("file");
            for n in 0..40 {
                let file = OpenOptions::new().read(true).write(true).open(&path).expect("open");
                change(&file, &mut model, &mut rng);
                if rng.random_range(0..8) == 0 {
                    file.sync_data().expect("fdatasync");
                }
                let shown = fs::read(&path).expect("read");
                let differs = shown.iter().zip(&model).position(|(a, b)| a != b);
                assert!(shown.len() == model.len() && differs.is_none(), "{transport}, round {round}, change {n}: at {differs:?}");
            }
            stack.unmount();
        }
        assert_eq!(fingerprint(&stack.lower()), before, "the read-only branch changed");
    }
}

/// What fsx has more than the test above: memory mappings.
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

/// Stores through shared mappings of the mount, at the file's places that `python3` is told, and no write(2) at all.
#[test]
fn stores_through_mappings_stay_with_what_was_below() {
    const STORE: &str = "import mmap, os, sys\n\
        fd = os.open(sys.argv[1], os.O_RDWR)\n\
        m = mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)\n\
        for place in sys.argv[3:]:\n    m[int(place):int(place) + 3] = sys.argv[2].encode()\n\
        m.flush()\n";
    for transport in [",noio_uring", ",noio_uring,writeback", ",io_uring", ",noio_uring,passthrough"] {
        let stack = Stack::new(System::Ours);
        let mut model: Vec<u8> = (0..3 << 20).map(|i: u32| (i / 3 % 251) as u8).collect();
        fs::write(stack.lower().join("file"), &model).expect("write below");
        let before = fingerprint(&stack.lower());
        stack.mount_with(&format!(",lazy-cpup=1M{transport}"));
        let path = stack.mnt().join("file");
        // Across the edges of pages and blocks, and the last bytes.
        for (word, places) in [("NEW", [0, 4094, 131_070, 1 << 20, (3 << 20) - 3]), ("TOO", [1, 131_071, 200_000, 2 << 20, (3 << 20) - 4])]
        {
            run(command(["python3", "-c", STORE]).arg(&path).arg(word).args(places.map(|place: usize| place.to_string())));
            for place in places {
                model[place..place + 3].copy_from_slice(word.as_bytes());
            }
            assert!(fs::read(&path).expect("read") == model, "{transport}, {word}");
        }
        assert!(stack.upper().join("file").metadata().expect("the copy").blocks() < 2 * (1 << 10), "{transport}: all was copied");
        stack.unmount();
        stack.mount_with(transport);
        assert!(fs::read(&path).expect("read") == model, "{transport}, mounted anew");
        assert_eq!(fingerprint(&stack.lower()), before, "the read-only branch changed");
    }
}

/// Neither a listing of attributes nor a copy with all of them shows what a lazy copy carries.
#[test]
fn copies_with_all_attributes_are_ordinary_files() {
    let stack = huge();
    stack.mount_with(",lazy-cpup=1G");
    let path = stack.mnt().join("huge");
    OpenOptions::new().write(true).open(&path).expect("open").write_all_at(b"ST", 0).expect("write");
    assert_eq!(run(command(["getfattr", "-d", "-m", "-", "--absolute-names"]).arg(&path)), "");
    let copy = stack.mnt().join("copy");
    run(command(["cp", "-a", "--sparse=always"]).args([&path, &copy]));
    let file = File::open(stack.upper().join("copy")).expect("open the copy in its branch");
    assert_eq!((at(&file, 0, 5), at(&file, HUGE / 2, 6)), (b"STart".to_vec(), b"middle".to_vec()));
    assert_eq!(run(command(["getfattr", "-d", "-m", "lazy", "--absolute-names"]).arg(stack.upper().join("copy"))), "");
    assert!(!run(command(["getfattr", "-d", "-m", "lazy", "--absolute-names"]).arg(stack.upper().join("huge"))).is_empty());
}
