//! `passthrough`: large files are read and written in the kernel, and seen as ever.

use crate::stack::{Stack, System, fingerprint, own_mounts};
use crate::support::{Unmount, command, fsx, output, run, wait_for};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::time::Duration;

const LARGE_BYTES: usize = 32 << 20;

/// By the device and by rings.
const TRANSPORTS: [&str; 2] = ["noio_uring", "io_uring"];

fn mounted(transport: &str) -> Stack {
    let stack = Stack::new(System::Ours);
    let content: Vec<u8> = (0..LARGE_BYTES).map(|i| (i / 7 % 251) as u8).collect();
    fs::write(stack.lower().join("large"), content).expect("write below");
    fs::write(stack.lower().join("small"), "small").expect("write below");
    stack.mount_with(&format!(",passthrough,udba=none,{transport}"));
    stack
}

/// What the serving process has read and written so far, bytes.
fn moved(stack: &Stack) -> u64 {
    let pid = stack.says("pid");
    let io = fs::read_to_string(format!("/proc/{pid}/io")).expect("the serving process");
    let of = |name: &str| io.lines().find_map(|l| l.strip_prefix(name)).expect(name).trim().parse::<u64>().expect("a number");
    of("rchar:") + of("wchar:")
}

#[test]
fn large_files_are_read_and_written_without_the_server() {
    TRANSPORTS.into_iter().for_each(read_and_write);
}

fn read_and_write(transport: &str) {
    let stack = mounted(transport);
    let before = fingerprint(&stack.lower());
    let start = moved(&stack);
    assert!(fs::read(stack.mnt().join("large")).expect("read") == fs::read(stack.lower().join("large")).expect("read"));
    let read = moved(&stack) - start;
    assert!(read < 1 << 20, "the server moved {read} bytes for a read");
    // A copy-up is the server's; what is written then is not.
    OpenOptions::new().append(true).open(stack.mnt().join("large")).expect("open").write_all(b"!").expect("append");
    let start = moved(&stack);
    let file = OpenOptions::new().write(true).open(stack.mnt().join("large")).expect("open");
    file.write_all_at(&vec![9; LARGE_BYTES], 0).expect("write");
    drop(file);
    let written = moved(&stack) - start;
    assert!(written < 1 << 20, "the server moved {written} bytes for a write");
    let content = fs::read(stack.upper().join("large")).expect("read above");
    assert!(content.len() == LARGE_BYTES + 1 && content[..LARGE_BYTES].iter().all(|b| *b == 9) && content[LARGE_BYTES] == b'!');
    // Small again: cached, and not with what the cache had before.
    OpenOptions::new().write(true).open(stack.mnt().join("large")).expect("open").set_len(1000).expect("truncate");
    assert_eq!(fs::read(stack.mnt().join("large")).expect("read"), vec![9; 1000]);
    assert_eq!(fs::read_to_string(stack.mnt().join("small")).expect("read"), "small");
    assert_eq!(fingerprint(&stack.lower()), before, "the read-only branch changed");
}

#[test]
fn who_reads_a_lower_file_goes_on_and_others_see_its_copy() {
    TRANSPORTS.into_iter().for_each(read_across_a_copy_up);
}

fn read_across_a_copy_up(transport: &str) {
    let stack = mounted(transport);
    let path = stack.mnt().join("large");
    let old = File::open(&path).expect("open");
    let at = |file: &File, offset: u64| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).map(|()| byte[0])
    };
    let was = at(&old, 5).expect("read");
    let number = fs::metadata(&path).expect("stat").ino();
    let writer = OpenOptions::new().read(true).write(true).open(&path).expect("open for writing");
    writer.write_all_at(&[was + 1], 5).expect("write");
    assert_eq!(at(&writer, 5).expect("read"), was + 1, "a writer sees what it wrote");
    let new = File::open(&path).expect("open");
    assert_eq!(at(&new, 5).expect("read"), was + 1, "who opens now sees the copy");
    assert_eq!(at(&old, 5).expect("read"), was, "who opened before reads on");
    writer.set_len(LARGE_BYTES as u64 + 1).expect("grow");
    assert_eq!(fs::metadata(&path).expect("stat").len(), LARGE_BYTES as u64 + 1);
    assert_eq!(at(&new, LARGE_BYTES as u64).expect("read"), 0);
    let numbers = [&old, &new, &writer].map(|f| f.metadata().expect("stat").ino());
    assert_eq!((numbers, fs::metadata(&path).expect("stat").ino()), ([number; 3], number), "one inode number");
    fs::hard_link(&path, stack.mnt().join("link")).expect("link");
    assert_eq!(fs::metadata(stack.mnt().join("link")).expect("stat").ino(), number);
    fs::rename(stack.mnt().join("link"), stack.mnt().join("renamed")).expect("rename");
    assert_eq!(at(&File::open(stack.mnt().join("renamed")).expect("open"), 5).expect("read"), was + 1);
    drop((old, new, writer));
    let mut content = Vec::new();
    File::open(&path).expect("open").read_to_end(&mut content).expect("read");
    assert!(content.len() == LARGE_BYTES + 1 && content[5] == was + 1);
}

#[test]
fn programs_run_and_fsx_finds_no_mismatch() {
    TRANSPORTS.into_iter().for_each(run_and_fsx);
}

fn run_and_fsx(transport: &str) {
    let stack = mounted(transport);
    fs::copy("/bin/bash", stack.mnt().join("bash")).expect("copy");
    assert_eq!(run(command([stack.mnt().join("bash")]).args(["-c", "echo hello"])), "hello\n");
    fs::write(stack.lower().join("fsx"), vec![0; 200_000]).expect("write below");
    fsx(&stack.mnt().join("fsx"), &stack.path("work"), 6);
}

/// Somebody else makes a file in the branch that the kernel takes for missing: who may not open it does not get it by O_CREAT.
#[test]
fn a_file_that_others_made_is_opened_as_any_other() {
    for transport in TRANSPORTS {
        let stack = Stack::new(System::Ours);
        fs::create_dir(stack.upper().join("d")).expect("mkdir");
        fs::set_permissions(stack.upper().join("d"), std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("chmod");
        stack.mount_with(&format!(",passthrough,udba=none,{transport}"));
        let path = stack.mnt().join("d/x");
        assert!(!path.exists());
        let below = stack.upper().join("d/x");
        fs::write(&below, "of root alone").expect("write");
        fs::set_permissions(&below, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("chmod");
        let mut other = command(["sh", "-c", &format!("echo of another >> {}", path.display())]);
        std::os::unix::process::CommandExt::uid(&mut other, 65_534);
        let refused = output(&mut other);
        assert!(!refused.status.success(), "{transport}: a file of root's was opened for another");
        assert_eq!(fs::read_to_string(&below).expect("read"), "of root alone");
        fs::write(&path, "anew").expect("truncate and write");
        assert_eq!(fs::read_to_string(&below).expect("read"), "anew");
        stack.unmount();
    }
}

/// Lets a file system go on.
struct Thaw(PathBuf);

impl Drop for Thaw {
    fn drop(&mut self) {
        let _ = output(command(["fsfreeze", "-u"]).arg(&self.0));
    }
}

/// How many threads of a process are in a sleep that nothing interrupts.
fn waiting(pid: &str) -> usize {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("the serving process");
    let state = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
    threads.flatten().map(state).filter(|stat| stat.rsplit_once(") ").is_some_and(|(_, after)| after.starts_with('D'))).count()
}

/// Requests of one processor come by one ring: while some wait for the disk, others are answered all the same.
#[test]
fn others_are_answered_while_copies_wait_for_the_disk() {
    own_mounts();
    // Into a directory that is there, each waits for its own; else one holds locks that all who look into the root wait for.
    others_are_answered("", 4);
    others_are_answered("dir", 1);
}

fn others_are_answered(dir: &str, waiting_at_least: usize) {
    const WRITERS: usize = 4;
    let on_first = |shell: String| command(["timeout", "60", "taskset", "-c", "0", "sh", "-c", &shell]);
    let stack = Stack::new(System::Ours);
    let image = stack.path("image");
    File::create(&image).and_then(|f| f.set_len(64 << 20)).expect("an image");
    run(command(["mkfs.ext4", "-q"]).arg(&image));
    run(command(["mount", "-o", "loop"]).args([&image, &stack.upper()]));
    let _unmount = Unmount(stack.upper());
    let _thaw = Thaw(stack.upper());
    fs::create_dir_all(stack.lower().join(dir)).expect("mkdir");
    for n in 0..WRITERS {
        fs::write(stack.lower().join(dir).join(format!("small{n}")), "below").expect("write below");
    }
    fs::write(stack.lower().join("other"), "another").expect("write below");
    // Enough for all of them, however many processors there may be.
    stack.mount_with(",passthrough,udba=none,io_uring,threads=64");
    fs::metadata(stack.mnt().join("other")).expect("its name is known");
    let mnt = stack.mnt().display().to_string();
    let server = stack.says("pid");
    run(command(["fsfreeze", "-f"]).arg(stack.upper()));
    let append = |n| on_first(format!("echo and more >> {mnt}/{dir}/small{n}")).spawn().expect("start");
    let mut waiters: Vec<_> = (0..WRITERS).map(append).collect();
    let is_waiting = || (waiting(&server) >= waiting_at_least).then_some(());
    wait_for("the copies wait for the disk", Duration::from_secs(20), is_waiting);
    waiters.push(on_first(format!("touch -r {mnt} -c {mnt}/{dir}/small0; exec ls {mnt} > /dev/null")).spawn().expect("start"));
    std::thread::sleep(Duration::from_millis(200));
    let said = stack.path("said");
    let mut others = on_first(format!("cat {mnt}/other")).stdout(File::create(&said).expect("a file")).spawn().expect("start");
    wait_for("others are answered", Duration::from_secs(20), || others.try_wait().expect("wait"));
    assert_eq!(fs::read_to_string(&said).expect("read"), "another");
    assert!(waiters.iter_mut().all(|w| w.try_wait().expect("wait").is_none()), "they wait for the disk");
    run(command(["fsfreeze", "-u"]).arg(stack.upper()));
    assert!(waiters.iter_mut().all(|w| w.wait().expect("wait").success()));
    for n in 0..WRITERS {
        assert_eq!(fs::read_to_string(stack.upper().join(dir).join(format!("small{n}"))).expect("read above"), "belowand more\n");
    }
    stack.unmount();
}
