//! Whole unions: over simulated branches with power cuts, and over directories beside a plain directory as the model.

mod basic;
mod crash;
mod format;
mod lazy;
mod model;
mod outside;
mod placed;
mod random;
mod together;
mod volatile;

use super::branch::{Branch, SimBranch};
use super::{BranchConfig, BranchSource, Caller, Entry, Perm, ROOT_INO, Res, Union, UnionConfig};
use crate::fop::{Errno, FileKind, SetAttr, TimeSpec};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// What there is to see: by path; equal numbers say that names are links of one object.
pub(super) type Dump = BTreeMap<String, Seen>;

/// One object as a user sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) kind: FileKind,
    pub(super) mode: u32,
    pub(super) owner: (u32, u32),
    pub(super) content: Vec<u8>,
    pub(super) xattrs: Vec<(String, Vec<u8>)>,
    /// Of a file: when it was written.
    pub(super) mtime: Option<TimeSpec>,
    /// The first path of the same object.
    pub(super) first: String,
}

pub(super) fn sim_branch(label: &str, branch: &Arc<SimBranch>, perm: Perm) -> BranchConfig {
    BranchConfig { source: BranchSource::Other { label: label.into(), branch: Arc::clone(branch) as Arc<dyn Branch> }, perm }
}

pub(super) fn dir_branch(path: &Path, perm: Perm) -> BranchConfig {
    BranchConfig { source: BranchSource::Dir(path.to_owned()), perm }
}

pub(super) fn union_of(branches: Vec<BranchConfig>) -> Union {
    Union::open(UnionConfig { branches, ..UnionConfig::default() }).expect("open the union")
}

/// The number of a path.
pub(super) fn walk(union: &Union, path: &str) -> Res<u64> {
    path.split('/').filter(|c| !c.is_empty()).try_fold(ROOT_INO, |at, name| {
        usable(union, at)?;
        union.lookup(at, name.as_bytes()).map(|e| e.ino)
    })
}

/// Parent's number and last name of a path.
pub(super) fn split<'a>(union: &Union, path: &'a str) -> Res<(u64, &'a [u8])> {
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    let parent = walk(union, parent)?;
    usable(union, parent)?;
    Ok((parent, name.as_bytes()))
}

/// Whether a path can go on here. The links of these tests lead nowhere.
fn usable(union: &Union, at: u64) -> Res<()> {
    match union.getattr(at)?.kind {
        FileKind::Dir => Ok(()),
        FileKind::Symlink => Err(Errno::ENOENT),
        _ => Err(Errno::ENOTDIR),
    }
}

/// What a change does, by path.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Create(String),
    Write(String, Vec<u8>),
    Truncate(String, u64),
    Chmod(String, u32),
    Chown(String, u32),
    Mkdir(String),
    Symlink(String, String),
    Link(String, String),
    Unlink(String),
    Rmdir(String),
    Rename(String, String, u32),
    SetXattr(String, Vec<u8>),
}

/// Carries out a change through a union.
pub(super) fn act(union: &Union, op: &Op) -> Res<()> {
    let caller = Caller::default();
    match op {
        Op::Create(path) => {
            let (parent, name) = split(union, path)?;
            union.mknod(parent, name, FileKind::File, 0o644, 0, &caller).map(drop)
        }
        Op::Write(path, data) => {
            let ino = walk(union, path)?;
            match union.getattr(ino)?.kind {
                FileKind::File => union.write(ino, 0, data, false),
                _ => Err(Errno::EISDIR),
            }
        }
        Op::Truncate(path, size) => {
            let ino = walk(union, path)?;
            union.setattr(ino, &SetAttr { size: Some(*size), ..SetAttr::default() }, false).map(drop)
        }
        Op::Chmod(path, mode) => {
            let ino = walk(union, path)?;
            union.setattr(ino, &SetAttr { mode: Some(*mode), ..SetAttr::default() }, false).map(drop)
        }
        Op::Chown(path, uid) => {
            let ino = walk(union, path)?;
            union.setattr(ino, &SetAttr { uid: Some(*uid), ..SetAttr::default() }, false).map(drop)
        }
        Op::Mkdir(path) => {
            let (parent, name) = split(union, path)?;
            union.mkdir(parent, name, 0o755, &caller).map(drop)
        }
        Op::Symlink(path, target) => {
            let (parent, name) = split(union, path)?;
            union.symlink(parent, name, target.as_bytes(), &caller).map(drop)
        }
        Op::Link(from, path) => {
            let ino = walk(union, from)?;
            let (parent, name) = split(union, path)?;
            union.link(ino, parent, name).map(drop)
        }
        Op::Unlink(path) => {
            let (parent, name) = split(union, path)?;
            union.unlink(parent, name)
        }
        Op::Rmdir(path) => {
            let (parent, name) = split(union, path)?;
            union.rmdir(parent, name)
        }
        Op::Rename(from, to, flags) => {
            let (parent, name) = split(union, from)?;
            let (new_parent, new_name) = split(union, to)?;
            union.rename(parent, name, new_parent, new_name, *flags)
        }
        Op::SetXattr(path, value) => union.setxattr(walk(union, path)?, b"user.test", value, 0),
    }
}

/// Everything that a union shows. Checks that listings and lookups agree.
pub(super) fn dump(union: &Union) -> Dump {
    let mut out = Dump::new();
    let mut firsts = BTreeMap::new();
    dump_dir(union, ROOT_INO, "", &mut out, &mut firsts);
    out
}

fn dump_dir(union: &Union, dir: u64, at: &str, out: &mut Dump, firsts: &mut BTreeMap<u64, String>) {
    let mut names = Vec::new();
    union
        .readdir(dir, 0, false, &mut |e| {
            if !matches!(e.name, b"." | b"..") {
                names.push((String::from_utf8_lossy(e.name).into_owned(), e.ino, e.kind));
            }
            false
        })
        .unwrap_or_else(|e| panic!("list {at:?}: {e}"));
    names.sort_by(|a, b| a.0.cmp(&b.0));
    let mut attributes = BTreeMap::new();
    let with_attributes = union.readdir(dir, 0, true, &mut |e| {
        if let Some(entry) = e.entry {
            union.forget(entry.ino, 1);
            attributes.insert(String::from_utf8_lossy(e.name).into_owned(), unread(entry));
        }
        false
    });
    with_attributes.unwrap_or_else(|e| panic!("list {at:?} with attributes: {e}"));
    assert_eq!(attributes.len(), names.len(), "{at:?}: listings with and without attributes differ");
    let doubles: Vec<_> = names.windows(2).filter(|w| w[0].0 == w[1].0).collect();
    assert!(doubles.is_empty(), "listed twice in {at:?}: {doubles:?}");
    for (name, listed, kind) in names {
        let path = format!("{at}/{name}");
        let entry = union.lookup(dir, name.as_bytes()).unwrap_or_else(|e| panic!("{path} is listed, but: {e}"));
        assert_eq!((entry.ino, entry.attr.kind), (listed, kind), "{path}: the listing and the lookup differ");
        assert_eq!(attributes.get(&name), Some(&unread(entry.clone())), "{path}: the listing with attributes and the lookup differ");
        assert_eq!(union.getattr(entry.ino).unwrap_or_else(|e| panic!("stat {path}: {e}")).mode, entry.attr.mode);
        let first = firsts.entry(entry.ino).or_insert_with(|| path.clone()).clone();
        out.insert(path.clone(), see(union, entry.ino, first));
        if kind == FileKind::Dir {
            dump_dir(union, entry.ino, &path, out, firsts);
        }
        union.forget(entry.ino, 1);
    }
}

/// Reading by another name moves the time of the last access.
fn unread(mut entry: Entry) -> Entry {
    entry.attr.atime = TimeSpec::default();
    entry
}

fn see(union: &Union, ino: u64, first: String) -> Seen {
    let attr = union.getattr(ino).expect("getattr");
    let content = match attr.kind {
        FileKind::File => {
            let mut buf = vec![0; usize::try_from(attr.size).expect("small")];
            let n = union.read(ino, 0, &mut buf).expect("read");
            assert_eq!(n, buf.len(), "{first}: short read");
            buf
        }
        FileKind::Symlink => union.readlink(ino).expect("readlink"),
        _ => Vec::new(),
    };
    let mut xattrs = Vec::new();
    for name in union.listxattr(ino).expect("listxattr").split(|b| *b == 0).filter(|n| n.starts_with(b"user.")) {
        xattrs.push((String::from_utf8_lossy(name).into_owned(), union.getxattr(ino, name).expect("getxattr")));
    }
    xattrs.sort();
    let mtime = (attr.kind == FileKind::File).then_some(attr.mtime);
    Seen { kind: attr.kind, mode: attr.mode, owner: (attr.uid, attr.gid), content, xattrs, mtime, first }
}

/// All that a reader gets, who asks for a little more than there is.
pub(super) fn content(union: &Union, ino: u64) -> Res<Vec<u8>> {
    let mut buf = vec![0; usize::try_from(union.getattr(ino)?.size).expect("small") + 5];
    let n = union.read(ino, 0, &mut buf)?;
    buf.truncate(n);
    Ok(buf)
}

/// A branch's directory by path, made where missing.
pub(super) fn put(branch: &dyn Branch, path: &str, kind: FileKind, content: &[u8]) {
    use super::branch::{At, New, Open};
    let mut dir = branch.root();
    let mut components: Vec<&str> = path.split('/').filter(|c| !c.is_empty()).collect();
    let name = components.pop().expect("a name");
    for component in components {
        let new = New { kind: FileKind::Dir, mode: 0o755, rdev: 0, target: b"", uid: 0, gid: 0 };
        let _ = branch.make(&dir, component.as_bytes(), &new);
        dir = branch.open(At::Name(&dir, component.as_bytes()), Open::Path).expect("open");
    }
    let mode = if kind == FileKind::Dir { 0o755 } else { 0o644 };
    let target: &[u8] = if kind == FileKind::Symlink { content } else { b"" };
    branch.make(&dir, name.as_bytes(), &New { kind, mode, rdev: 0, target, uid: 0, gid: 0 }).unwrap_or_else(|e| panic!("put {path}: {e}"));
    if kind == FileKind::File && !content.is_empty() {
        let file = branch.open(At::Name(&dir, name.as_bytes()), Open::Write).expect("open");
        branch.write(&file, 0, content).expect("write");
    }
}
