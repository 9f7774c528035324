//! `O_TMPFILE`: by rings, and in words where the transport has no such request.

use crate::stack::{Stack, System, names};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, open};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

fn unnamed(dir: &Path, more: OFlags) -> Result<File, Errno> {
    open(dir, OFlags::TMPFILE | OFlags::RDWR | more, Mode::from_raw_mode(0o640)).map(File::from)
}

/// As linkat(2)'s page has it.
fn name(file: &File, path: &Path) -> Result<(), Errno> {
    linkat(CWD, format!("/proc/self/fd/{}", file.as_raw_fd()), CWD, path, AtFlags::SYMLINK_FOLLOW)
}

#[test]
fn a_file_is_made_without_a_name_and_given_one() {
    for options in [",io_uring", ",io_uring,passthrough,udba=none", ",io_uring,writeback"] {
        let stack = Stack::new(System::Ours);
        fs::create_dir(stack.lower().join("d")).expect("mkdir");
        stack.mount_with(options);
        let dir = stack.mnt().join("d");
        let mut file = unnamed(&dir, OFlags::empty()).expect(options);
        file.write_all(&[7; 300_000]).expect("write");
        let before = file.metadata().expect("stat");
        assert_eq!((before.nlink(), before.len(), before.mode() & 0o7777), (0, 300_000, 0o640), "{options}");
        assert_eq!(names(&stack.mnt()), [Path::new("d")], "{options}");
        name(&file, &dir.join("named")).expect("link");
        let after = fs::metadata(dir.join("named")).expect("stat");
        assert_eq!((after.ino(), after.nlink(), after.len()), (before.ino(), 1, 300_000), "{options}");
        file.write_all_at(b"more", 300_000).expect("write on");
        file.sync_all().expect("sync");
        let above = fs::read(stack.upper().join("d/named")).expect("read above");
        assert!(above.len() == 300_004 && above.starts_with(&[7; 300_000]) && above.ends_with(b"more"), "{options}");
        // Whoever asks for it gets one that will never have a name.
        let never = unnamed(&dir, OFlags::EXCL).expect(options);
        assert_eq!(name(&never, &dir.join("never")), Err(Errno::NOENT), "{options}");
        drop((file, never));
        stack.remount();
        assert_eq!(fs::metadata(dir.join("named")).expect("stat").len(), 300_004, "{options}");
        stack.unmount();
    }
}

#[test]
fn the_device_has_no_such_request() {
    let stack = Stack::new(System::Ours);
    stack.mount_with(",noio_uring");
    assert_eq!(unnamed(&stack.mnt(), OFlags::empty()).err(), Some(Errno::OPNOTSUPP));
}
