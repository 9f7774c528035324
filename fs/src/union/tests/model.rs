//! A union over directories, and a plain directory as its model: the same random changes, the same errnos, the same trees.

use super::{Dump, Op, Seen, act, dir_branch, dump, random};
use crate::fop::{Errno, FileKind, TimeSpec};
use crate::union::config::FREE_SPACE_GOOD_FOR;
use crate::union::{CreatePolicy, Layout, Perm, Union, UnionConfig};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::fs::{self, AtFlags, CWD, Mode, OFlags, RenameFlags, XattrFlags};
use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The same change by system calls.
fn act_plainly(root: &Path, op: &Op) -> Result<(), Errno> {
    let at = |path: &str| root.join(path.trim_start_matches('/'));
    match op {
        Op::Create(path) => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            fs::openat(CWD, at(path), flags, Mode::from_raw_mode(0o644)).map(drop)
        }
        Op::Write(path, data) => {
            // A device or a link is no file here.
            match at(path).symlink_metadata() {
                Ok(m) if !m.is_file() => return Err(Errno::EISDIR),
                _ => {}
            }
            let fd = fs::openat(CWD, at(path), OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
            rustix::io::pwrite(&fd, data, 0).map(drop)
        }
        Op::Truncate(path, size) => match at(path).symlink_metadata() {
            Ok(m) if m.is_dir() => Err(rustix::io::Errno::ISDIR),
            Ok(m) if !m.is_file() => Err(rustix::io::Errno::INVAL),
            _ => fs::openat(CWD, at(path), OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
                .and_then(|fd| fs::ftruncate(fd, *size)),
        },
        Op::Chmod(path, mode) => match at(path).symlink_metadata() {
            Ok(m) if m.is_symlink() => Err(rustix::io::Errno::OPNOTSUPP),
            _ => fs::chmodat(CWD, at(path), Mode::from_raw_mode(*mode), AtFlags::empty()),
        },
        Op::Chown(path, uid) => fs::chownat(CWD, at(path), Some(fs::Uid::from_raw(*uid)), None, AtFlags::SYMLINK_NOFOLLOW),
        Op::Mkdir(path) => fs::mkdirat(CWD, at(path), Mode::from_raw_mode(0o755)),
        Op::Symlink(path, target) => fs::symlinkat(target.as_str(), CWD, at(path)),
        Op::Link(from, path) => fs::linkat(CWD, at(from), CWD, at(path), AtFlags::empty()),
        Op::Unlink(path) => fs::unlinkat(CWD, at(path), AtFlags::empty()),
        Op::Rmdir(path) => fs::unlinkat(CWD, at(path), AtFlags::REMOVEDIR),
        Op::Rename(from, to, flags) => fs::renameat_with(CWD, at(from), CWD, at(to), RenameFlags::from_bits_retain(*flags)),
        Op::SetXattr(path, value) => fs::lsetxattr(at(path), "user.test", value, XattrFlags::empty()),
    }
    .map_err(Errno::from)
}

fn dump_plainly(root: &Path) -> Dump {
    fn walk(dir: &Path, at: &str, out: &mut Dump, firsts: &mut BTreeMap<u64, String>) {
        let mut names: Vec<String> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        for name in names {
            let (path, file) = (format!("{at}/{name}"), dir.join(&name));
            let m = file.symlink_metadata().unwrap();
            let kind = if m.is_dir() {
                FileKind::Dir
            } else if m.is_symlink() {
                FileKind::Symlink
            } else {
                FileKind::File
            };
            let content = match kind {
                FileKind::File => std::fs::read(&file).unwrap(),
                FileKind::Symlink => std::fs::read_link(&file).unwrap().into_os_string().into_encoded_bytes(),
                _ => Vec::new(),
            };
            let mut buf = [0; 16];
            let xattrs = match fs::lgetxattr(&file, "user.test", &mut buf[..]) {
                Ok(n) => vec![("user.test".to_string(), buf[..n].to_vec())],
                Err(_) => Vec::new(),
            };
            let first = firsts.entry(m.ino()).or_insert_with(|| path.clone()).clone();
            let mode = m.permissions().mode() & 0o7777;
            out.insert(path.clone(), Seen { kind, mode, owner: (m.uid(), m.gid()), content, xattrs, mtime: None, first });
            if kind == FileKind::Dir {
                walk(&file, &path, out, firsts);
            }
        }
    }
    let mut out = Dump::new();
    walk(root, "", &mut out, &mut BTreeMap::new());
    out
}

/// Puts `upper` on top of what is in `model`, without whiteouts: plainly. `links`: what was put there already, by number.
fn lay_over(upper: &Path, model: &Path, links: &mut BTreeMap<u64, PathBuf>) {
    for entry in std::fs::read_dir(upper).unwrap().map(Result::unwrap) {
        let (from, to) = (entry.path(), model.join(entry.file_name()));
        let (m, old) = (from.symlink_metadata().unwrap(), to.symlink_metadata().ok());
        if old.as_ref().is_some_and(|o| !(o.is_dir() && m.is_dir())) {
            if old.unwrap().is_dir() { std::fs::remove_dir_all(&to).unwrap() } else { std::fs::remove_file(&to).unwrap() }
        }
        if let Some(first) = links.get(&m.ino()) {
            fs::linkat(CWD, first, CWD, &to, AtFlags::empty()).unwrap();
            continue;
        }
        if m.nlink() > 1 && !m.is_dir() {
            links.insert(m.ino(), to.clone());
        }
        if m.is_dir() {
            let _ = std::fs::create_dir(&to);
            lay_over(&from, &to, links);
        } else if m.is_symlink() {
            std::os::unix::fs::symlink(std::fs::read_link(&from).unwrap(), &to).unwrap();
        } else {
            std::fs::copy(&from, &to).unwrap();
        }
        if !m.is_symlink() {
            std::fs::set_permissions(&to, m.permissions()).unwrap();
        }
        std::os::unix::fs::lchown(&to, Some(m.uid()), Some(m.gid())).unwrap();
        let mut buf = [0; 16];
        if let Ok(n) = fs::lgetxattr(&from, "user.test", &mut buf[..]) {
            fs::lsetxattr(&to, "user.test", &buf[..n], XattrFlags::empty()).unwrap();
        }
    }
}

/// What is varied.
#[derive(Clone, Copy, Debug, Default)]
struct Variant {
    layout: Layout,
    /// The middle branch can be written too.
    two_writable: bool,
    create: CreatePolicy,
}

fn run(seed: u64, variant: Variant) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let base = tempfile::tempdir().unwrap();
    let [model, upper, middle, lower] = ["model", "upper", "middle", "lower"].map(|n| base.path().join(n));
    for dir in [&model, &upper, &middle, &lower] {
        std::fs::create_dir(dir).unwrap();
    }
    for (dir, count) in [(&lower, 20), (&middle, 10), (&upper, 6)] {
        for _ in 0..count {
            let _ = act_plainly(dir, &random::op(&mut rng));
        }
        lay_over(dir, &model, &mut BTreeMap::new());
    }
    let open = || {
        let second = if variant.two_writable { Perm::RW } else { Perm::RO };
        let branches = vec![dir_branch(&upper, Perm::RW), dir_branch(&middle, second), dir_branch(&lower, Perm::RO)];
        Union::open(UnionConfig { branches, layout: variant.layout, create: variant.create, ..UnionConfig::default() }).unwrap()
    };
    let below = || (if variant.two_writable { Dump::new() } else { dump_plainly(&middle) }, dump_plainly(&lower));
    let below_before = below();
    let mut union = open();
    let without_times = |mut d: Dump| {
        d.values_mut().for_each(|s| s.mtime = None::<TimeSpec>);
        d
    };
    assert_eq!(without_times(dump(&union)), dump_plainly(&model), "seed {seed}, {variant:?}: at the start");
    let mut done: Vec<String> = Vec::new();
    for n in 0..60 {
        let op = random::op(&mut rng);
        let (ours, theirs) = (act(&union, &op), act_plainly(&model, &op));
        done.push(format!("{op:?} {ours:?}"));
        assert_eq!(ours, theirs, "seed {seed}, {variant:?}, change {n}: {op:?}\n{done:#?}");
        assert_eq!(without_times(dump(&union)), dump_plainly(&model), "seed {seed}, {variant:?}, after change {n}: {done:#?}");
        if rng.random_range(0..10) == 0 {
            let numbers = |u: &Union| -> Vec<u64> { dump(u).keys().map(|path| super::walk(u, path).unwrap()).collect() };
            let before = numbers(&union);
            union.close();
            union = open();
            assert_eq!(numbers(&union), before, "seed {seed}, {variant:?}, change {n}: inode numbers changed by a remount");
            assert_eq!(without_times(dump(&union)), dump_plainly(&model), "seed {seed}, {variant:?}, change {n}: after a remount");
        }
    }
    assert_eq!(below(), below_before, "a read-only branch was changed");
}

#[test]
fn a_union_behaves_as_a_plain_directory() {
    rustix::process::umask(Mode::empty());
    for seed in 0..80 {
        run(seed, Variant::default());
    }
}

#[test]
fn in_overlays_layout_too() {
    rustix::process::umask(Mode::empty());
    for seed in 1000..1040 {
        run(seed, Variant { layout: Layout::Overlay, ..Variant::default() });
    }
}

#[test]
fn with_two_writable_branches_too() {
    rustix::process::umask(Mode::empty());
    for seed in 2000..2060 {
        let create =
            [CreatePolicy::TopDownParent, CreatePolicy::RoundRobin, CreatePolicy::MostFree(FREE_SPACE_GOOD_FOR)][seed as usize % 3];
        run(seed, Variant { two_writable: true, create, ..Variant::default() });
    }
}
