//! The tree in memory: file operations with the results that a directory gives.

use super::node::Node;
use crate::fop::{
    Attr, Errno, FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE, FileKind, Fop, Gfid, RENAME_EXCHANGE, RENAME_NOREPLACE, SetAttr,
    TimeSpec,
};
use crate::heal::Place;
use crate::store::check;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub(super) type Res<T> = Result<T, Errno>;

/// All objects of a brick.
#[derive(Clone)]
pub(super) struct Tree {
    pub(super) nodes: BTreeMap<Gfid, Arc<Node>>,
    /// What changed since the journal was last written.
    pub(super) touched: BTreeSet<Gfid>,
    /// Objects that are open somewhere.
    pub(super) kept: BTreeSet<Gfid>,
}

impl Tree {
    pub(super) fn new() -> Self {
        let mut root = Node::new(FileKind::Dir, 0o755);
        root.place = Some(Place::At { parent: Gfid::ROOT, name: Bytes::new() });
        Self { nodes: [(Gfid::ROOT, Arc::new(root))].into(), touched: BTreeSet::new(), kept: BTreeSet::new() }
    }

    pub(super) fn get(&self, gfid: Gfid) -> Res<&Node> {
        self.nodes.get(&gfid).map(|n| &**n).ok_or(Errno::ENOENT)
    }

    pub(super) fn get_mut(&mut self, gfid: Gfid) -> Res<&mut Node> {
        let node = self.nodes.get_mut(&gfid).ok_or(Errno::ENOENT)?;
        self.touched.insert(gfid);
        Ok(Arc::make_mut(node))
    }

    pub(super) fn put(&mut self, gfid: Gfid, node: Node) {
        self.touched.insert(gfid);
        self.nodes.insert(gfid, Arc::new(node));
    }

    pub(super) fn drop_node(&mut self, gfid: Gfid) {
        self.touched.insert(gfid);
        self.nodes.remove(&gfid);
    }

    pub(super) fn dir(&self, gfid: Gfid) -> Res<&Node> {
        self.get(gfid).and_then(|n| if n.is_dir() { Ok(n) } else { Err(Errno::ENOTDIR) })
    }

    /// A regular file.
    pub(super) fn file(&self, gfid: Gfid) -> Res<&Node> {
        let node = self.get(gfid)?;
        match node.kind {
            FileKind::File => Ok(node),
            FileKind::Dir => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }

    pub(super) fn entry(&self, parent: Gfid, name: &[u8]) -> Res<Option<(Gfid, &Node)>> {
        let dir = self.dir(parent)?;
        Ok(dir.entries.get(name).and_then(|(_, gfid)| self.get(*gfid).ok().map(|n| (*gfid, n))))
    }

    pub(super) fn attr(&self, gfid: Gfid) -> Res<Attr> {
        self.get(gfid).map(|n| n.attr(gfid))
    }

    pub(super) fn enter(&mut self, parent: Gfid, name: &[u8], gfid: Gfid) -> Res<()> {
        let is_dir = self.get(gfid)?.is_dir();
        self.get_mut(parent)?.enter(name, gfid, is_dir);
        let node = self.get_mut(gfid)?;
        if is_dir {
            node.place = Some(Place::At { parent, name: Bytes::copy_from_slice(name) });
        } else {
            node.names += 1;
        }
        Ok(())
    }

    /// Takes a name away; the object stays, a directory without a place.
    pub(super) fn leave(&mut self, parent: Gfid, name: &[u8]) -> Res<Option<Gfid>> {
        let Some(gfid) = self.dir(parent)?.entries.get(name).map(|(_, g)| *g) else { return Ok(None) };
        let is_dir = self.get(gfid).is_ok_and(Node::is_dir);
        self.get_mut(parent)?.leave(name, is_dir);
        if let Ok(node) = self.get_mut(gfid) {
            if is_dir {
                node.place = None;
            } else {
                node.names = node.names.saturating_sub(1);
            }
        }
        Ok(Some(gfid))
    }

    /// An object that has lost a name goes, unless it has another or is open.
    fn settle(&mut self, gfid: Gfid, time: TimeSpec) {
        let keep = self.kept.contains(&gfid);
        let Ok(node) = self.get_mut(gfid) else { return };
        node.ctime = time;
        if !node.is_dir() && node.names > 0 {
            return;
        }
        if keep && !node.is_dir() {
            node.orphan = true;
        } else {
            self.drop_node(gfid);
        }
    }

    fn touch(&mut self, gfid: Gfid, time: TimeSpec) {
        if let Ok(node) = self.get_mut(gfid) {
            (node.mtime, node.ctime) = (time, time);
        }
    }

    pub(super) fn make(&mut self, parent: Gfid, name: &[u8], gfid: Gfid, mut node: Node, time: TimeSpec) -> Res<Attr> {
        match self.entry(parent, name)? {
            Some((there, old)) if there == gfid && old.kind == node.kind => return Ok(old.attr(gfid)),
            Some(_) => return Err(Errno::EEXIST),
            None => {}
        }
        // A nameless one is what a heal left; a create takes its place, a mkdir does not.
        match self.get(gfid) {
            Ok(old) if old.is_dir() || old.names > 0 || old.orphan || node.is_dir() => return Err(Errno::EEXIST),
            _ => {}
        }
        let dir = self.dir(parent)?;
        if dir.mode & 0o2000 != 0 {
            node.gid = dir.gid;
            if node.is_dir() {
                node.mode |= 0o2000;
            }
        }
        (node.atime, node.mtime, node.ctime) = (time, time, time);
        self.put(gfid, node);
        self.enter(parent, name, gfid)?;
        self.touch(parent, time);
        self.attr(gfid)
    }

    pub(super) fn link(&mut self, gfid: Gfid, parent: Gfid, name: &[u8], time: TimeSpec) -> Res<Attr> {
        check::name(parent, name)?;
        self.dir(parent)?;
        let node = self.get(gfid)?;
        if node.orphan {
            return Err(Errno::ENOENT);
        }
        if node.is_dir() {
            return Err(Errno::EPERM);
        }
        match self.entry(parent, name)? {
            Some((there, _)) if there == gfid => return self.attr(gfid),
            Some(_) => return Err(Errno::EEXIST),
            None => {}
        }
        self.enter(parent, name, gfid)?;
        self.touch(parent, time);
        self.attr(gfid)
    }

    pub(super) fn remove(&mut self, parent: Gfid, name: &[u8], directory: bool, time: TimeSpec) -> Res<()> {
        check::name(parent, name)?;
        let (gfid, node) = self.entry(parent, name)?.ok_or(Errno::ENOENT)?;
        match (node.is_dir(), directory) {
            (true, false) => return Err(Errno::EISDIR),
            (false, true) => return Err(Errno::ENOTDIR),
            (true, true) if !node.entries.is_empty() => return Err(Errno::ENOTEMPTY),
            _ => {}
        }
        self.leave(parent, name)?;
        self.settle(gfid, time);
        self.touch(parent, time);
        Ok(())
    }

    /// Whether `gfid` is `below` or one of the directories above it.
    pub(super) fn is_above(&self, gfid: Gfid, below: Gfid) -> bool {
        let mut at = below;
        for _ in 0..=self.nodes.len() {
            if at == gfid {
                return true;
            }
            match self.get(at).ok().and_then(|n| n.place.clone()) {
                Some(Place::At { parent, .. }) if at != Gfid::ROOT => at = parent,
                _ => return false,
            }
        }
        false
    }

    pub(super) fn rename(&mut self, from: (Gfid, &[u8]), to: (Gfid, &[u8]), flags: u32, time: TimeSpec) -> Res<()> {
        check::name(from.0, from.1)?;
        check::name(to.0, to.1)?;
        check::rename_flags(flags)?;
        self.dir(from.0)?;
        self.dir(to.0)?;
        let (source, node) = self.entry(from.0, from.1)?.ok_or(Errno::ENOENT)?;
        let target = self.entry(to.0, to.1)?;
        let exchange = flags == RENAME_EXCHANGE;
        match target {
            Some(_) if flags == RENAME_NOREPLACE => return Err(Errno::EEXIST),
            None if exchange => return Err(Errno::ENOENT),
            Some((gfid, _)) if gfid == source => return Ok(()),
            _ => {}
        }
        if node.is_dir() && self.is_above(source, to.0) {
            return Err(Errno::EINVAL);
        }
        if let Some((gfid, other)) = target {
            if other.is_dir() && self.is_above(gfid, from.0) {
                return Err(if exchange { Errno::EINVAL } else { Errno::ENOTEMPTY });
            }
            match (node.is_dir(), other.is_dir()) {
                _ if exchange => {}
                (true, false) => return Err(Errno::ENOTDIR),
                (false, true) => return Err(Errno::EISDIR),
                (true, true) if !other.entries.is_empty() => return Err(Errno::ENOTEMPTY),
                _ => {}
            }
        }
        let target = target.map(|(gfid, _)| gfid);
        self.leave(from.0, from.1)?;
        self.leave(to.0, to.1)?;
        self.enter(to.0, to.1, source)?;
        match target {
            Some(other) if exchange => self.enter(from.0, from.1, other)?,
            Some(other) => self.settle(other, time),
            None => {}
        }
        self.touch(from.0, time);
        self.touch(to.0, time);
        self.get_mut(source)?.ctime = time;
        Ok(())
    }

    pub(super) fn set_attr(&mut self, gfid: Gfid, set: &SetAttr, time: TimeSpec) -> Res<Attr> {
        let node = self.get(gfid)?;
        if set.size.is_some() {
            match node.kind {
                FileKind::File => {}
                FileKind::Dir => return Err(Errno::EISDIR),
                _ => return Err(Errno::EINVAL),
            }
        }
        check::set_attr(node.kind, set)?;
        let node = self.get_mut(gfid)?;
        if let Some(size) = set.size {
            node.content.truncate(size);
            node.mtime = time;
        }
        node.chown(set.uid, set.gid);
        node.mode = set.mode.map_or(node.mode, |m| m & 0o7777);
        node.atime = set.atime.unwrap_or(node.atime);
        node.mtime = set.mtime.unwrap_or(node.mtime);
        node.ctime = time;
        self.attr(gfid)
    }

    pub(super) fn fallocate(&mut self, gfid: Gfid, offset: u64, len: u64, mode: u32, time: TimeSpec) -> Res<()> {
        if !matches!(mode, 0 | FALLOC_KEEP_SIZE | 3 | FALLOC_ZERO_RANGE | 17) {
            return Err(Errno::EOPNOTSUPP);
        }
        self.file(gfid)?;
        if len == 0 {
            return Err(Errno::EINVAL);
        }
        let end = offset.checked_add(len).filter(|e| i64::try_from(*e).is_ok()).ok_or(Errno::EFBIG)?;
        let node = self.get_mut(gfid)?;
        if mode & FALLOC_KEEP_SIZE == 0 {
            node.content.size = node.content.size.max(end);
        }
        if mode & (FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE) != 0 {
            node.content.punch(offset, end);
        }
        (node.mtime, node.ctime) = (time, time);
        Ok(())
    }

    /// `value`: `None` removes.
    pub(super) fn set_xattr(&mut self, gfid: Gfid, name: &[u8], value: Option<&[u8]>, flags: u32) -> Res<()> {
        const CREATE: u32 = 1;
        const REPLACE: u32 = 2;
        check::xattr(name, value.unwrap_or_default())?;
        let node = self.get(gfid)?;
        if flags & !(CREATE | REPLACE) != 0 {
            return Err(Errno::EINVAL);
        }
        xattr_namespace(node.kind, name, Errno::EPERM)?;
        let there = node.xattrs.contains_key(name);
        if there && flags & CREATE != 0 {
            return Err(Errno::EEXIST);
        }
        if !there && (flags & REPLACE != 0 || value.is_none()) {
            return Err(Errno::ENODATA);
        }
        let node = self.get_mut(gfid)?;
        match value {
            Some(value) => node.xattrs.insert(Bytes::copy_from_slice(name), Bytes::copy_from_slice(value)),
            None => node.xattrs.remove(name),
        };
        Ok(())
    }

    /// Objects that never got a name or lost it go, as at a brick's start.
    pub(super) fn sweep(&mut self) {
        self.kept.clear();
        let nameless: Vec<Gfid> = self.nodes.iter().filter(|(_, n)| !n.is_dir() && n.names == 0 && !n.orphan).map(|(g, _)| *g).collect();
        nameless.into_iter().for_each(|g| self.drop_node(g));
    }
}

/// Which names of attributes a kind of object can have.
pub(super) fn xattr_namespace(kind: FileKind, name: &[u8], refused: Errno) -> Res<()> {
    if name.starts_with(b"user.") {
        return if matches!(kind, FileKind::File | FileKind::Dir) { Ok(()) } else { Err(refused) };
    }
    if [&b"trusted."[..], b"security.", b"system.posix_acl_"].iter().any(|p| name.starts_with(p)) {
        return Ok(());
    }
    Err(Errno::EOPNOTSUPP)
}

/// What a creating operation makes.
pub(super) fn new_node(fop: &Fop) -> Res<(Gfid, &Bytes, Gfid, Node)> {
    let (parent, name, gfid, uid, gid, mut node) = match fop {
        Fop::Create { parent, name, gfid, mode, uid, gid, .. } => (parent, name, gfid, uid, gid, Node::new(FileKind::File, mode & 0o7777)),
        Fop::MkNod { parent, name, gfid, kind, mode, rdev, uid, gid } => {
            let mut node = Node::new(*kind, mode & 0o7777);
            if matches!(kind, FileKind::CharDevice | FileKind::BlockDevice) {
                node.rdev = *rdev;
            }
            (parent, name, gfid, uid, gid, node)
        }
        Fop::MkDir { parent, name, gfid, mode, uid, gid } => (parent, name, gfid, uid, gid, Node::new(FileKind::Dir, mode & 0o7777)),
        Fop::Symlink { parent, name, gfid, target, uid, gid } => {
            let mut node = Node::new(FileKind::Symlink, 0o777);
            node.target = target.clone();
            (parent, name, gfid, uid, gid, node)
        }
        _ => return Err(Errno::EINVAL),
    };
    check::name(*parent, name)?;
    check::new_node(*gfid, node.kind, &node.target)?;
    if matches!(fop, Fop::MkNod { kind: FileKind::Dir | FileKind::Symlink, .. }) {
        return Err(Errno::EINVAL);
    }
    (node.uid, node.gid) = (*uid, *gid);
    Ok((*parent, name, *gfid, node))
}
