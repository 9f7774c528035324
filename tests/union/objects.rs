//! Every kind of object, in every place that it can have in a union, through every operation: the outcome, errors
//! included, is the kernel's overlayfs's.
//!
//! The cases are of our own making, after what unionmount-testsuite checks. Each is a directory of its own in one union of ours
//! and one overlayfs; what an operation answers and what is there afterwards is written down for both, and compared.
//! In the end both are mounted anew, and their whole trees are compared.

use crate::stack::{Stack, System};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// What the case is about; always called `x`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Object {
    Nothing,
    File,
    EmptyFile,
    /// Two names, `x` and `x2`.
    Linked,
    EmptyDir,
    Dir,
    ToFile,
    ToDir,
    ToNothing,
    Fifo,
    Device,
}

const OBJECTS: [Object; 11] = [
    Object::Nothing,
    Object::File,
    Object::EmptyFile,
    Object::Linked,
    Object::EmptyDir,
    Object::Dir,
    Object::ToFile,
    Object::ToDir,
    Object::ToNothing,
    Object::Fifo,
    Object::Device,
];

/// Where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Upper,
    Lower,
    /// In both; the upper one counts.
    Both,
    /// Below, and removed through the union.
    Removed,
    /// Below, and touched through the union.
    Touched,
}

const PLACES: [Place; 5] = [Place::Upper, Place::Lower, Place::Both, Place::Removed, Place::Touched];

type Answer = Result<String, rustix::io::Errno>;
type Operation = (&'static str, fn(&Path) -> Answer);

fn io(result: std::io::Result<impl ToString>) -> Answer {
    result.map(|s| s.to_string()).map_err(|e| rustix::io::Errno::from_raw_os_error(e.raw_os_error().unwrap_or(0)))
}

fn done(result: rustix::io::Result<()>) -> Answer {
    result.map(|()| String::new())
}

/// Opens `x`, and reads, writes and reads again as far as the mode lets.
fn open(path: &Path, flags: OFlags) -> Answer {
    let fd: OwnedFd = rustix::fs::open(path, flags | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::from_raw_mode(0o640))?;
    let mut file = File::from(fd);
    if !file.metadata().is_ok_and(|m| m.is_file()) {
        return Ok("opened".into());
    }
    let mut said = String::new();
    let mut content = Vec::new();
    let _ = write!(said, "read {:?} ", file.read_to_end(&mut content).map_err(|e| e.raw_os_error()));
    let _ = write!(said, "write {:?} ", file.write(b"new").map_err(|e| e.raw_os_error()));
    let _ = write!(said, "seek {:?} ", file.seek(SeekFrom::Start(1)).map_err(|e| e.raw_os_error()));
    content.clear();
    let _ =
        write!(said, "read {:?} {:?} ", file.read_to_end(&mut content).map_err(|e| e.raw_os_error()), String::from_utf8_lossy(&content));
    let _ = write!(said, "size {:?}", file.metadata().map(|m| m.len()).ok());
    Ok(said)
}

/// Never waits for the other end of a fifo.
fn opened(path: &Path, append: bool) -> std::io::Result<File> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    fs::OpenOptions::new().read(!append).append(append).custom_flags(flags).open(path)
}

fn of(dir: &Path, name: &str) -> PathBuf {
    dir.join(name)
}

fn rename(from: PathBuf, to: PathBuf, flags: RenameFlags) -> Answer {
    done(rustix::fs::renameat_with(CWD, &from, CWD, &to, flags))
}

const R: OFlags = OFlags::RDONLY;
const W: OFlags = OFlags::WRONLY;
const RW: OFlags = OFlags::RDWR;

fn time(seconds: i64) -> Timespec {
    Timespec { tv_sec: seconds, tv_nsec: 7 }
}

/// By hand, so that each is one line; beside `x` there are `file`, `empty-dir` and `full-dir` (below, `file` touched by nobody).
#[rustfmt::skip]
const OPERATIONS: &[Operation] = &[
    ("nothing", |_| Ok(String::new())),
    ("open r", |d| open(&of(d, "x"), R)),
    ("open w", |d| open(&of(d, "x"), W)),
    ("open rw", |d| open(&of(d, "x"), RW)),
    ("open w append", |d| open(&of(d, "x"), W | OFlags::APPEND)),
    ("open rw append", |d| open(&of(d, "x"), RW | OFlags::APPEND)),
    ("open r trunc", |d| open(&of(d, "x"), R | OFlags::TRUNC)),
    ("open w trunc", |d| open(&of(d, "x"), W | OFlags::TRUNC)),
    ("open rw trunc", |d| open(&of(d, "x"), RW | OFlags::TRUNC)),
    ("open w append trunc", |d| open(&of(d, "x"), W | OFlags::APPEND | OFlags::TRUNC)),
    ("open r creat", |d| open(&of(d, "x"), R | OFlags::CREATE)),
    ("open w creat", |d| open(&of(d, "x"), W | OFlags::CREATE)),
    ("open rw creat", |d| open(&of(d, "x"), RW | OFlags::CREATE)),
    ("open w creat append", |d| open(&of(d, "x"), W | OFlags::CREATE | OFlags::APPEND)),
    ("open w creat trunc", |d| open(&of(d, "x"), W | OFlags::CREATE | OFlags::TRUNC)),
    ("open rw creat excl", |d| open(&of(d, "x"), RW | OFlags::CREATE | OFlags::EXCL)),
    ("open w creat excl trunc", |d| open(&of(d, "x"), W | OFlags::CREATE | OFlags::EXCL | OFlags::TRUNC)),
    ("open r directory", |d| open(&of(d, "x"), R | OFlags::DIRECTORY)),
    ("open r nofollow", |d| open(&of(d, "x"), R | OFlags::NOFOLLOW)),
    ("open w nofollow", |d| open(&of(d, "x"), W | OFlags::NOFOLLOW)),
    ("open r slash", |d| open(&of(d, "x/"), R)),
    ("open w slash", |d| open(&of(d, "x/"), W)),
    ("open w creat slash", |d| open(&of(d, "x/"), W | OFlags::CREATE)),
    ("read dir", |d| io(fs::read_dir(of(d, "x")).map(|l| { let mut n: Vec<_> = l.flatten().map(|e| e.file_name().into_string()).collect(); n.sort(); format!("{n:?}") }))),
    ("readlink", |d| io(fs::read_link(of(d, "x")).map(|p| p.display().to_string()))),
    ("truncate 0", |d| done(rustix::fs::open(of(d, "x"), W | OFlags::NONBLOCK, Mode::empty()).and_then(|f| rustix::fs::ftruncate(&f, 0)))),
    ("truncate 2", |d| done(rustix::fs::open(of(d, "x"), W | OFlags::NONBLOCK, Mode::empty()).and_then(|f| rustix::fs::ftruncate(&f, 2)))),
    ("truncate 9000", |d| done(rustix::fs::open(of(d, "x"), W | OFlags::NONBLOCK, Mode::empty()).and_then(|f| rustix::fs::ftruncate(&f, 9000)))),
    ("chmod", |d| done(rustix::fs::chmod(of(d, "x"), Mode::from_raw_mode(0o4751)))),
    ("chown", |d| io(std::os::unix::fs::lchown(of(d, "x"), Some(12), Some(34)).map(|()| ""))),
    ("chmod, then chown", |d| done(rustix::fs::chmod(of(d, "x"), Mode::from_raw_mode(0o6755))).and_then(|_| io(std::os::unix::fs::chown(of(d, "x"), Some(12), None).map(|()| "")))),
    ("utimes", |d| done(rustix::fs::utimensat(CWD, of(d, "x"), &Timestamps { last_access: time(1_000), last_modification: time(2_000) }, AtFlags::SYMLINK_NOFOLLOW))),
    ("setxattr", |d| done(rustix::fs::setxattr(of(d, "x"), "user.test", b"value", rustix::fs::XattrFlags::empty()))),
    ("removexattr", |d| done(rustix::fs::removexattr(of(d, "x"), "user.test"))),
    ("unlink", |d| io(fs::remove_file(of(d, "x")).map(|()| ""))),
    ("unlink slash", |d| done(rustix::fs::unlink(of(d, "x/")))),
    ("unlink twice", |d| io(fs::remove_file(of(d, "x")).and_then(|()| fs::remove_file(of(d, "x"))).map(|()| ""))),
    ("unlink, create", |d| io(fs::remove_file(of(d, "x")).and_then(|()| fs::write(of(d, "x"), "again")).map(|()| ""))),
    ("unlink, mkdir", |d| io(fs::remove_file(of(d, "x")).and_then(|()| fs::create_dir(of(d, "x"))).map(|()| ""))),
    ("unlink, symlink", |d| io(fs::remove_file(of(d, "x")).and_then(|()| symlink("file", of(d, "x"))).map(|()| ""))),
    ("unlink while open", |d| io(opened(&of(d, "x"), false).and_then(|mut f| { fs::remove_file(of(d, "x"))?; let mut s = String::new(); f.read_to_string(&mut s)?; Ok(format!("{s:?} links {}", f.metadata()?.nlink())) }))),
    ("rmdir", |d| io(fs::remove_dir(of(d, "x")).map(|()| ""))),
    ("rmdir slash", |d| done(rustix::fs::rmdir(of(d, "x/")))),
    ("rmdir dot", |d| done(rustix::fs::rmdir(of(d, "x/.")))),
    ("rmdir twice", |d| io(fs::remove_dir(of(d, "x")).and_then(|()| fs::remove_dir(of(d, "x"))).map(|()| ""))),
    ("rmdir, mkdir", |d| io(fs::remove_dir(of(d, "x")).and_then(|()| fs::create_dir(of(d, "x"))).map(|()| ""))),
    ("rmdir, create", |d| io(fs::remove_dir(of(d, "x")).and_then(|()| fs::write(of(d, "x"), "again")).map(|()| ""))),
    ("rm -r", |d| io(fs::remove_dir_all(of(d, "x")).map(|()| ""))),
    ("rm -r, mkdir", |d| io(fs::remove_dir_all(of(d, "x")).and_then(|()| fs::create_dir(of(d, "x"))).map(|()| ""))),
    ("rm -r, mkdir, create within", |d| io(fs::remove_dir_all(of(d, "x")).and_then(|()| fs::create_dir(of(d, "x"))).and_then(|()| fs::write(of(d, "x/a"), "anew")).map(|()| ""))),
    ("mkdir", |d| io(fs::create_dir(of(d, "x")).map(|()| ""))),
    ("mkdir slash", |d| io(fs::create_dir(of(d, "x/")).map(|()| ""))),
    ("create within", |d| io(fs::write(of(d, "x/new"), "new").map(|()| ""))),
    ("mkdir within", |d| io(fs::create_dir(of(d, "x/new")).map(|()| ""))),
    ("write within", |d| open(&of(d, "x/a"), W | OFlags::APPEND)),
    ("unlink within", |d| io(fs::remove_file(of(d, "x/a")).map(|()| ""))),
    ("unlink within, create", |d| io(fs::remove_file(of(d, "x/a")).and_then(|()| fs::write(of(d, "x/a"), "again")).map(|()| ""))),
    ("rename within", |d| rename(of(d, "x/a"), of(d, "x/b"), RenameFlags::empty())),
    ("rename out", |d| rename(of(d, "x/a"), of(d, "out"), RenameFlags::empty())),
    ("rename in", |d| rename(of(d, "file"), of(d, "x/in"), RenameFlags::empty())),
    ("mknod fifo", |d| done(rustix::fs::mknodat(CWD, of(d, "x"), FileType::Fifo, Mode::from_raw_mode(0o600), 0))),
    ("mknod device", |d| done(rustix::fs::mknodat(CWD, of(d, "x"), FileType::CharacterDevice, Mode::from_raw_mode(0o600), 0x0105))),
    ("symlink", |d| io(symlink("file", of(d, "x")).map(|()| ""))),
    ("link to new", |d| io(fs::hard_link(of(d, "x"), of(d, "new")).map(|()| ""))),
    ("link to new, write", |d| io(fs::hard_link(of(d, "x"), of(d, "new")).and_then(|()| opened(&of(d, "new"), true)?.write_all(b"more")).map(|()| ""))),
    ("link to new, unlink", |d| io(fs::hard_link(of(d, "x"), of(d, "new")).and_then(|()| fs::remove_file(of(d, "x"))).map(|()| ""))),
    ("link to file", |d| io(fs::hard_link(of(d, "x"), of(d, "file")).map(|()| ""))),
    ("link to itself", |d| io(fs::hard_link(of(d, "x"), of(d, "x")).map(|()| ""))),
    ("link over x", |d| io(fs::hard_link(of(d, "file"), of(d, "x")).map(|()| ""))),
    ("link followed", |d| done(rustix::fs::linkat(CWD, of(d, "x"), CWD, of(d, "new"), AtFlags::SYMLINK_FOLLOW))),
    ("rename to new", |d| rename(of(d, "x"), of(d, "new"), RenameFlags::empty())),
    ("rename to new and back", |d| rename(of(d, "x"), of(d, "new"), RenameFlags::empty()).and_then(|_| rename(of(d, "new"), of(d, "x"), RenameFlags::empty()))),
    ("rename twice", |d| rename(of(d, "x"), of(d, "new"), RenameFlags::empty()).and_then(|_| rename(of(d, "new"), of(d, "newer"), RenameFlags::empty()))),
    ("rename to new slash", |d| rename(of(d, "x"), of(d, "new/"), RenameFlags::empty())),
    ("rename to itself", |d| rename(of(d, "x"), of(d, "x"), RenameFlags::empty())),
    ("rename over file", |d| rename(of(d, "x"), of(d, "file"), RenameFlags::empty())),
    ("rename over empty dir", |d| rename(of(d, "x"), of(d, "empty-dir"), RenameFlags::empty())),
    ("rename over full dir", |d| rename(of(d, "x"), of(d, "full-dir"), RenameFlags::empty())),
    ("rename into dir", |d| rename(of(d, "x"), of(d, "full-dir/x"), RenameFlags::empty())),
    ("rename into itself", |d| rename(of(d, "x"), of(d, "x/x"), RenameFlags::empty())),
    ("rename file over x", |d| rename(of(d, "file"), of(d, "x"), RenameFlags::empty())),
    ("rename empty dir over x", |d| rename(of(d, "empty-dir"), of(d, "x"), RenameFlags::empty())),
    ("rename full dir over x", |d| rename(of(d, "full-dir"), of(d, "x"), RenameFlags::empty())),
    ("rename to new, mkdir", |d| rename(of(d, "x"), of(d, "new"), RenameFlags::empty()).and_then(|_| io(fs::create_dir(of(d, "x")).map(|()| "")))),
    ("rename to new, create", |d| rename(of(d, "x"), of(d, "new"), RenameFlags::empty()).and_then(|_| io(fs::write(of(d, "x"), "again").map(|()| "")))),
    ("rename to new, write within", |d| rename(of(d, "x"), of(d, "new"), RenameFlags::empty()).and_then(|_| open(&of(d, "new/a"), W | OFlags::APPEND))),
    ("rename to new, unlink within", |d| rename(of(d, "x"), of(d, "new"), RenameFlags::empty()).and_then(|_| io(fs::remove_file(of(d, "new/a")).map(|()| "")))),
    ("rename noreplace", |d| rename(of(d, "x"), of(d, "file"), RenameFlags::NOREPLACE)),
    ("rename noreplace new", |d| rename(of(d, "x"), of(d, "new"), RenameFlags::NOREPLACE)),
    ("exchange with file", |d| rename(of(d, "x"), of(d, "file"), RenameFlags::EXCHANGE)),
    ("exchange with empty dir", |d| rename(of(d, "x"), of(d, "empty-dir"), RenameFlags::EXCHANGE)),
    ("exchange with full dir", |d| rename(of(d, "x"), of(d, "full-dir"), RenameFlags::EXCHANGE)),
    ("exchange with nothing", |d| rename(of(d, "x"), of(d, "new"), RenameFlags::EXCHANGE)),
];

/// Makes the object in a branch's directory for the case.
fn make(dir: &Path, object: Object, content: &str) {
    let x = dir.join("x");
    match object {
        Object::Nothing => {}
        Object::File => {
            fs::write(&x, content).expect("write");
            rustix::fs::setxattr(&x, "user.test", b"old", rustix::fs::XattrFlags::empty()).expect("setxattr");
        }
        Object::EmptyFile => fs::write(&x, "").expect("write"),
        Object::Linked => {
            fs::write(&x, content).expect("write");
            fs::hard_link(&x, dir.join("x2")).expect("link");
        }
        Object::EmptyDir => fs::create_dir(&x).expect("mkdir"),
        Object::Dir => {
            fs::create_dir_all(x.join("sub")).expect("mkdir");
            fs::write(x.join("a"), content).expect("write");
            fs::write(x.join(format!("only-{content}")), content).expect("write");
            fs::write(x.join("sub/deep"), content).expect("write");
        }
        Object::ToFile => symlink("file", &x).expect("symlink"),
        Object::ToDir => symlink("full-dir", &x).expect("symlink"),
        Object::ToNothing => symlink("nowhere", &x).expect("symlink"),
        Object::Fifo => rustix::fs::mknodat(CWD, &x, FileType::Fifo, Mode::from_raw_mode(0o644), 0).expect("mkfifo"),
        // /dev/null's numbers.
        Object::Device => rustix::fs::mknodat(CWD, &x, FileType::CharacterDevice, Mode::from_raw_mode(0o644), 0x0103).expect("mknod"),
    }
}

fn neighbours(dir: &Path) {
    fs::write(dir.join("file"), "neighbour").expect("write");
    fs::create_dir(dir.join("empty-dir")).expect("mkdir");
    fs::create_dir_all(dir.join("full-dir")).expect("mkdir");
    fs::write(dir.join("full-dir/inner"), "inner").expect("write");
}

struct Case {
    name: String,
    object: Object,
    place: Place,
    operation: &'static Operation,
}

fn cases() -> Vec<Case> {
    let mut out = Vec::new();
    for object in OBJECTS {
        for place in PLACES {
            if object == Object::Nothing && place != Place::Upper {
                continue;
            }
            for (i, operation) in OPERATIONS.iter().enumerate() {
                out.push(Case { name: format!("{object:?}-{place:?}-{i}"), object, place, operation });
            }
        }
    }
    out
}

/// Branches for all cases, before anything is mounted.
fn prepare(stack: &Stack, cases: &[Case]) {
    for case in cases {
        let (upper, lower) = (stack.upper().join(&case.name), stack.lower().join(&case.name));
        fs::create_dir(&lower).expect("mkdir");
        neighbours(&lower);
        if case.place != Place::Upper {
            make(&lower, case.object, "lower");
        }
        if matches!(case.place, Place::Upper | Place::Both) {
            fs::create_dir(&upper).expect("mkdir");
            make(&upper, case.object, "upper one");
        }
    }
}

/// What a union shows of one name, as far as two unions can agree on it.
fn look(path: &Path) -> String {
    let Ok(meta) = path.symlink_metadata() else { return "nothing".into() };
    let mode = meta.permissions().mode();
    let mut out = format!("{mode:o} {}:{}", meta.uid(), meta.gid());
    if meta.is_dir() {
        // Link counts of directories are not promised by either.
        return out;
    }
    let _ = write!(out, " links {} size {}", meta.nlink(), meta.size());
    if meta.is_symlink() {
        let _ = write!(out, " to {:?}", fs::read_link(path));
    } else if meta.is_file() {
        let content = fs::read(path).map(|c| String::from_utf8_lossy(&c[..c.len().min(64)]).into_owned());
        let mut value = [0; 64];
        let xattr = rustix::fs::getxattr(path, "user.test", &mut value[..]).map(|n| String::from_utf8_lossy(&value[..n]).into_owned());
        let _ = write!(out, " content {content:?} xattr {xattr:?}");
        if meta.mtime() < 10_000 {
            let _ = write!(out, " time {}.{}", meta.mtime(), meta.mtime_nsec());
        }
    } else {
        let _ = write!(out, " device {:x}", meta.rdev());
    }
    out
}

fn tree(dir: &Path) -> String {
    crate::stack::names(dir).iter().map(|name| format!("  {} {}\n", name.display(), look(&dir.join(name)))).collect()
}

/// Carries one case out on a mounted union; what came of it.
fn play(dir: &Path, case: &Case) -> String {
    let x = dir.join("x");
    match case.place {
        Place::Removed if x.is_dir() && !x.is_symlink() => fs::remove_dir_all(&x).expect("remove"),
        Place::Removed => fs::remove_file(&x).expect("remove"),
        Place::Touched if matches!(case.object, Object::File | Object::EmptyFile | Object::Linked) => {
            fs::OpenOptions::new().append(true).open(&x).and_then(|mut f| f.write_all(b"+")).expect("append");
        }
        Place::Touched if case.object == Object::Dir => fs::write(x.join("touched"), "t").expect("create within"),
        Place::Touched => std::os::unix::fs::lchown(&x, Some(5), Some(5)).expect("chown"),
        _ => {}
    }
    let answer = match case.operation.1(dir) {
        Ok(said) => format!("ok {said}"),
        Err(e) => format!("{e:?}"),
    };
    format!("{answer}\n{}", tree(dir))
}

/// SEMANTICS.md: link counts of files that have several names below are those of where they lie; overlayfs's index counts anew. And
/// what was unlinked while it was open has no name left with us; overlayfs still counts the lower one.
fn as_far_as_promised(case: &Case, seen: String) -> String {
    if case.object != Object::Linked && case.operation.0 != "unlink while open" {
        return seen;
    }
    let words = seen.split(' ').collect::<Vec<_>>();
    let counted = |i: usize| i > 0 && words[i - 1] == "links";
    words
        .iter()
        .enumerate()
        .map(|(i, word)| if counted(i) { word.trim_start_matches(|c: char| c.is_ascii_digit()) } else { *word })
        .collect::<Vec<_>>()
        .join(" ")
}

/// All cases of some objects; how many, and what differs.
fn compare(objects: &[Object], transport: &str) -> (usize, Vec<String>) {
    let cases: Vec<Case> = cases().into_iter().filter(|c| objects.contains(&c.object)).collect();
    let (ours, theirs) = (Stack::in_memory(System::Ours), Stack::in_memory(System::Overlayfs));
    for stack in [&ours, &theirs] {
        prepare(stack, &cases);
    }
    let below = crate::stack::fingerprint(&ours.lower());
    ours.mount_with(&format!(",udba=none,{transport}"));
    theirs.mount();
    let mut wrong = Vec::new();
    let mut compare = |when: &str, case: &Case, a: String, b: String| {
        let (a, b) = (as_far_as_promised(case, a), as_far_as_promised(case, b));
        if a != b {
            let lines = a.lines().zip(b.lines()).find(|(a, b)| a != b).map(|(a, b)| format!("    ours:      {a}\n    overlayfs: {b}\n"));
            let told = lines.unwrap_or_else(|| format!("    ours:\n{a}    overlayfs:\n{b}"));
            wrong.push(format!("{:?} {:?}, {}{when}:\n{told}", case.place, case.object, case.operation.0));
        }
    };
    for case in &cases {
        compare("", case, play(&ours.mnt().join(&case.name), case), play(&theirs.mnt().join(&case.name), case));
    }
    ours.remount();
    theirs.remount();
    for case in &cases {
        compare(" (mounted anew)", case, tree(&ours.mnt().join(&case.name)), tree(&theirs.mnt().join(&case.name)));
    }
    assert_eq!(crate::stack::fingerprint(&ours.lower()), below, "the read-only branch changed");
    (cases.len(), wrong)
}

#[test]
fn every_object_through_every_operation_is_as_on_overlayfs() {
    crate::stack::own_mounts();
    let (mut count, mut wrong) = (0, Vec::new());
    for (objects, transport) in OBJECTS.chunks(4).zip(["noio_uring", "io_uring"].into_iter().cycle()) {
        let (cases, differ) = compare(objects, transport);
        count += cases;
        wrong.extend(differ);
    }
    println!("{count} cases, {} differ", wrong.len());
    assert!(count > 3000 && wrong.is_empty(), "{} of {count} differ:\n{}", wrong.len(), wrong[..wrong.len().min(60)].join(""));
}
