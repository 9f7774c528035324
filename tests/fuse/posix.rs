//! System calls and what they answer, compared with the machine's own file system where that is the easier oracle.

use crate::support::dev::Dev;
use rustix::fs::{self as fsx, AtFlags, CWD, FallocateFlags, Mode, OFlags, RenameFlags, SeekFrom, XattrFlags};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

#[test]
fn system_calls_answer_as_on_a_local_file_system() {
    let dev = Dev::start();
    let root = dev.mnt();
    for (name, case) in CASES {
        let dir = root.join(name);
        fs::create_dir(&dir).unwrap_or_else(|e| panic!("{name}: {e}"));
        case(&dir);
    }
    dev.assert_bricks_equal();
    let own = root.join(".brickraft");
    assert!(!own.exists(), "our own directory shows through the mount");
    assert_eq!(fs::create_dir(&own).expect_err("must be refused").raw_os_error(), Some(1));
}

const CASES: &[(&str, fn(&Path))] = &[
    ("rename", rename),
    ("links", links),
    ("nodes", nodes),
    ("attributes", attributes),
    ("xattrs", xattrs),
    ("holes", holes),
    ("unlinked", unlinked_but_open),
    ("listing", listing),
    ("names", names),
    ("append", append),
    ("set_ids", set_ids),
];

fn rename(d: &Path) {
    let (a, b, c) = (d.join("a"), d.join("b"), d.join("c"));
    fs::write(&a, "a").expect("write a");
    fs::write(&b, "b").expect("write b");
    assert_eq!(fsx::renameat_with(CWD, &a, CWD, &b, RenameFlags::NOREPLACE), Err(Errno::EXIST));
    fsx::renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE).expect("exchange");
    assert_eq!((fs::read_to_string(&a).expect("a"), fs::read_to_string(&b).expect("b")), ("b".into(), "a".into()));
    fsx::renameat_with(CWD, &a, CWD, &c, RenameFlags::NOREPLACE).expect("free name");
    fs::rename(&c, &b).expect("replace");
    assert_eq!(fs::read_to_string(&b).expect("b"), "b");
    assert!(!a.exists() && !c.exists());
    fs::create_dir_all(d.join("x/y/z")).expect("mkdir");
    fs::write(d.join("x/y/z/f"), "deep").expect("write");
    fs::rename(d.join("x/y"), d.join("moved")).expect("move a directory");
    assert_eq!(fs::read_to_string(d.join("moved/z/f")).expect("read"), "deep");
    assert_eq!(fs::rename(d.join("moved"), d.join("moved/z/in")).expect_err("into itself").raw_os_error(), Some(22));
    fs::create_dir(d.join("full")).expect("mkdir");
    fs::write(d.join("full/f"), "").expect("write");
    assert_eq!(fs::rename(d.join("x"), d.join("full")).expect_err("not empty").raw_os_error(), Some(39));
}

fn links(d: &Path) {
    let (a, b) = (d.join("a"), d.join("b"));
    fs::write(&a, "one").expect("write");
    fs::hard_link(&a, &b).expect("link");
    assert_eq!(fs::metadata(&a).expect("stat").nlink(), 2);
    assert_eq!(fs::metadata(&a).expect("stat").ino(), fs::metadata(&b).expect("stat").ino());
    fs::remove_file(&a).expect("unlink");
    assert_eq!(fs::metadata(&b).expect("stat").nlink(), 1);
    assert_eq!(fs::read_to_string(&b).expect("read"), "one");
    let s = d.join("s");
    symlink("../links/b", &s).expect("symlink");
    assert_eq!(fs::read_link(&s).expect("readlink"), Path::new("../links/b"));
    assert_eq!(fs::read_to_string(&s).expect("through it"), "one");
    let long = "x".repeat(3000);
    symlink(&long, d.join("long")).expect("long target");
    assert_eq!(fs::read_link(d.join("long")).expect("readlink").to_str(), Some(&long as &str));
}

fn nodes(d: &Path) {
    let fifo = d.join("fifo");
    fsx::mknodat(CWD, &fifo, fsx::FileType::Fifo, Mode::from_raw_mode(0o640), 0).expect("mkfifo");
    assert!(fs::metadata(&fifo).expect("stat").file_type().is_fifo());
    let null = d.join("null");
    fsx::mknodat(CWD, &null, fsx::FileType::CharacterDevice, Mode::from_raw_mode(0o666), fsx::makedev(1, 3)).expect("mknod");
    let m = fs::metadata(&null).expect("stat");
    assert!(m.file_type().is_char_device());
    assert_eq!(m.rdev(), fsx::makedev(1, 3));
    fs::write(&null, "gone").expect("write to the device");
    let socket = d.join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("bind");
    assert!(fs::metadata(&socket).expect("stat").file_type().is_socket());
}

fn attributes(d: &Path) {
    let f = d.join("f");
    fs::write(&f, "content").expect("write");
    fs::set_permissions(&f, fs::Permissions::from_mode(0o4751)).expect("chmod");
    std::os::unix::fs::chown(&f, Some(1234), Some(5678)).expect("chown");
    let m = fs::metadata(&f).expect("stat");
    // chown(2) takes the set-user-id bit away.
    assert_eq!((m.mode() & 0o7777, m.uid(), m.gid(), m.len()), (0o751, 1234, 5678, 7));
    let times = fsx::Timestamps {
        last_access: fsx::Timespec { tv_sec: 1_000_000_000, tv_nsec: 123_456_789 },
        last_modification: fsx::Timespec { tv_sec: 1_100_000_000, tv_nsec: 987_654_321 },
    };
    fsx::utimensat(CWD, &f, &times, AtFlags::empty()).expect("utimens");
    let m = fs::metadata(&f).expect("stat");
    assert_eq!((m.atime(), m.atime_nsec(), m.mtime(), m.mtime_nsec()), (1_000_000_000, 123_456_789, 1_100_000_000, 987_654_321));
    let file = OpenOptions::new().write(true).open(&f).expect("open");
    file.set_len(3).expect("truncate");
    assert_eq!(fs::read_to_string(&f).expect("read"), "con");
    file.set_len(5).expect("extend");
    assert_eq!(fs::read(&f).expect("read"), b"con\0\0");
    assert!(fs::metadata(&f).expect("stat").mtime() > 1_100_000_000);
    let fs_figures = fsx::statvfs(d).expect("statfs");
    assert!(fs_figures.f_blocks > 0 && fs_figures.f_namemax == 255);
}

fn xattrs(d: &Path) {
    let f = d.join("f");
    fs::write(&f, "").expect("write");
    fsx::setxattr(&f, "user.one", b"1", XattrFlags::CREATE).expect("set");
    assert_eq!(fsx::setxattr(&f, "user.one", b"2", XattrFlags::CREATE), Err(Errno::EXIST));
    assert_eq!(fsx::setxattr(&f, "user.two", b"2", XattrFlags::REPLACE), Err(Errno::NODATA));
    fsx::setxattr(&f, "user.two", b"22", XattrFlags::empty()).expect("set");
    let mut buffer = [0_u8; 256];
    let n = fsx::getxattr(&f, "user.two", &mut buffer[..]).expect("get");
    assert_eq!(&buffer[..n], b"22");
    let n = fsx::listxattr(&f, &mut buffer[..]).expect("list");
    let mut names: Vec<&[u8]> = buffer[..n].split(|&b| b == 0).filter(|n| !n.is_empty()).collect();
    names.sort_unstable();
    assert_eq!(names, [&b"user.one"[..], b"user.two"], "and nothing of ours");
    fsx::removexattr(&f, "user.one").expect("remove");
    assert_eq!(fsx::getxattr(&f, "user.one", &mut buffer[..]), Err(Errno::NODATA));
    assert_eq!(fsx::setxattr(&f, "trusted.brickraft.gfid", b"x", XattrFlags::empty()), Err(Errno::PERM));
}

fn holes(d: &Path) {
    let mut f = File::options().read(true).write(true).create_new(true).open(d.join("sparse")).expect("create");
    f.write_all_at(b"end", 10 << 20).expect("write far out");
    assert!(f.metadata().expect("stat").blocks() < 2048, "the hole takes space");
    assert_eq!(fsx::seek(&f, SeekFrom::Data(0)).expect("seek data") & !0xfff, 10 << 20);
    assert_eq!(fsx::seek(&f, SeekFrom::Hole(0)), Ok(0));
    fsx::fallocate(&f, FallocateFlags::empty(), 0, 1 << 20).expect("allocate");
    assert!(f.metadata().expect("stat").blocks() >= 2048);
    f.write_all_at(&[7; 8192], 0).expect("write");
    fsx::fallocate(&f, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 4096, 4096).expect("punch");
    let mut start = [1; 8192];
    f.rewind().expect("rewind");
    f.read_exact(&mut start).expect("read");
    assert!(start[..4096].iter().all(|&b| b == 7) && start[4096..].iter().all(|&b| b == 0));
    assert_eq!(f.metadata().expect("stat").len(), (10 << 20) + 3);
}

fn unlinked_but_open(d: &Path) {
    let path = d.join("f");
    let mut f = File::options().read(true).write(true).create_new(true).open(&path).expect("create");
    f.write_all(b"still").expect("write");
    fs::remove_file(&path).expect("unlink");
    fs::write(&path, "another").expect("the name is free");
    f.write_all(b" here").expect("write to the nameless file");
    f.rewind().expect("rewind");
    let mut content = String::new();
    f.read_to_string(&mut content).expect("read");
    assert_eq!(content, "still here");
    assert_eq!(f.metadata().expect("stat").nlink(), 0);
    assert_eq!(fs::read_to_string(&path).expect("read"), "another");
}

fn listing(d: &Path) {
    const FILES: usize = 3000;
    for i in 0..FILES {
        fs::write(d.join(format!("file-with-a-rather-long-name-{i:05}")), "").expect("write");
    }
    let count = || fs::read_dir(d).expect("opendir").map(|e| e.expect("entry").file_name()).collect::<std::collections::BTreeSet<_>>().len();
    assert_eq!(count(), FILES);
    // What is there all the time is listed exactly once, whatever goes and comes meanwhile.
    let mut seen = Vec::new();
    for (i, entry) in fs::read_dir(d).expect("opendir").enumerate() {
        seen.push(entry.expect("entry").file_name().into_string().expect("name"));
        if i % 100 == 0 {
            fs::write(d.join(format!("new-{i}")), "").expect("write");
        }
    }
    let old: Vec<_> = seen.iter().filter(|n| n.starts_with("file-")).collect();
    assert_eq!(old.len(), FILES);
    assert_eq!(fs::remove_dir(d).expect_err("not empty").raw_os_error(), Some(39));
}

fn names(d: &Path) {
    use std::os::unix::ffi::OsStrExt;
    let longest = d.join("n".repeat(255));
    fs::write(&longest, "x").expect("255 bytes");
    assert_eq!(fs::write(d.join("n".repeat(256)), "x").expect_err("256 bytes").raw_os_error(), Some(36));
    for odd in [&b"new\nline"[..], b"\xff\xfe not utf-8", b" ", b"\\", b"*", b"..."] {
        let path = d.join(std::ffi::OsStr::from_bytes(odd));
        fs::write(&path, odd).expect("write");
        assert_eq!(fs::read(&path).expect("read"), odd);
    }
    assert_eq!(fs::read_dir(d).expect("list").count(), 7);
    assert_eq!(fs::read(d.join("absent")).expect_err("absent").raw_os_error(), Some(2));
    assert_eq!(fs::read_dir(&longest).expect_err("a file").raw_os_error(), Some(20));
}

fn append(d: &Path) {
    let path = d.join("log");
    std::thread::scope(|scope| {
        for writer in 0..4_u8 {
            let path = &path;
            scope.spawn(move || {
                let mut f = OpenOptions::new().append(true).create(true).open(path).expect("open");
                for _ in 0..100 {
                    f.write_all(&[b'a' + writer; 64]).expect("append");
                }
            });
        }
    });
    let content = fs::read(&path).expect("read");
    assert_eq!(content.len(), 4 * 100 * 64, "an append was lost");
    assert!(content.chunks(64).all(|c| c.iter().all(|b| *b == c[0])), "appends are mixed");
}

fn set_ids(d: &Path) {
    std::os::unix::fs::chown(d, None, Some(4321)).expect("chgrp");
    fs::set_permissions(d, fs::Permissions::from_mode(0o2775)).expect("chmod");
    fs::write(d.join("f"), "").expect("write");
    fs::create_dir(d.join("sub")).expect("mkdir");
    assert_eq!(fs::metadata(d.join("f")).expect("stat").gid(), 4321);
    let sub = fs::metadata(d.join("sub")).expect("stat");
    assert_eq!((sub.gid(), sub.mode() & 0o2000), (4321, 0o2000));
    let fd = fsx::open(d.join("f"), OFlags::WRONLY, Mode::empty()).expect("open");
    fsx::fchmod(&fd, Mode::from_raw_mode(0o6777)).expect("fchmod");
    assert_eq!(fs::metadata(d.join("f")).expect("stat").mode() & 0o7777, 0o6777);
}
