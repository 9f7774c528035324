//! [`SimBranch`]: a branch in memory, for tests, whose power can be cut at every step.
//!
//! Changes of names and attributes reach the disk in order, and a cut loses them from some point on; data that was not synced is lost (or,
//! by choice, kept: both must be survived).

use super::{At, Branch, Fetched, Handle, Listed, New, ObjectId, Open, RENAME_WHITEOUT, SEEK_DATA, Stat};
use crate::fop::{
    Errno, FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE, FileKind, RENAME_EXCHANGE, RENAME_NOREPLACE, SetAttr, StatFs, TimeSpec,
};
use crate::union::Res;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const ROOT: u64 = 2;

/// An object by number.
#[derive(Debug)]
pub struct SimObject(u64);

#[derive(Clone, Debug)]
struct Node {
    kind: FileKind,
    mode: u32,
    uid: u32,
    gid: u32,
    rdev: u64,
    nlink: u32,
    /// Never had a name, and may get one.
    unnamed: bool,
    target: Vec<u8>,
    names: BTreeMap<Vec<u8>, u64>,
    data: Arc<Vec<u8>>,
    synced: Arc<Vec<u8>>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    atime: TimeSpec,
    mtime: TimeSpec,
    ctime: TimeSpec,
}

#[derive(Clone, Debug)]
struct Tree {
    nodes: BTreeMap<u64, Arc<Node>>,
    next: u64,
    clock: i64,
}

#[derive(Debug)]
struct State {
    tree: Tree,
    /// What the disk would hold had it stopped after so many changes.
    history: Vec<Tree>,
}

/// A branch in memory.
#[derive(Debug)]
pub struct SimBranch {
    dev: u64,
    state: Mutex<State>,
    memory: Mutex<Memory>,
    /// How the next links end.
    links: Mutex<VecDeque<Option<Errno>>>,
}

/// What is not in memory.
#[derive(Debug, Default)]
struct Memory {
    cold: BTreeSet<u64>,
    fetched: Vec<Vec<u8>>,
}

impl SimBranch {
    /// An empty one; `dev` tells several apart.
    #[must_use]
    pub fn new(dev: u64) -> Self {
        let root = node(&New { kind: FileKind::Dir, mode: 0o755, rdev: 0, target: b"", uid: 0, gid: 0 }, TimeSpec::default());
        let tree = Tree { nodes: BTreeMap::from([(ROOT, Arc::new(root))]), next: ROOT + 1, clock: 0 };
        Self::of(dev, tree)
    }

    /// All of `tree` is durable.
    fn of(dev: u64, tree: Tree) -> Self {
        let state = State { history: vec![tree.clone()], tree };
        Self { dev, state: Mutex::new(state), memory: Mutex::default(), links: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes all that there is durable, and the start of what is counted.
    pub fn settle(&self) {
        let mut state = self.lock();
        state.tree.sync_all();
        state.history = vec![state.tree.clone()];
    }

    /// Changes since [`SimBranch::settle`].
    #[must_use]
    pub fn steps(&self) -> usize {
        self.lock().history.len() - 1
    }

    /// Lets the next calls of link fail so, in this order; `None`: not.
    pub fn fail_links(&self, with: impl IntoIterator<Item = Option<Errno>>) {
        self.links.lock().unwrap_or_else(PoisonError::into_inner).extend(with);
    }

    /// Drops all data from memory: reading the start of a file waits for the disk once.
    pub fn chill(&self) {
        let files = self.lock().tree.nodes.iter().filter(|(_, n)| !n.data.is_empty()).map(|(ino, _)| *ino).collect();
        *self.memory() = Memory { cold: files, fetched: Vec::new() };
    }

    /// The names of the files that [`Branch::fetch`] fetched since [`SimBranch::chill`].
    #[must_use]
    pub fn fetched(&self) -> Vec<Vec<u8>> {
        self.memory().fetched.clone()
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disk after a power cut that only `steps` changes survived, `keep_data`: with the data that was not synced.
    #[must_use]
    pub fn cut(&self, steps: usize, keep_data: bool) -> Self {
        self.cut_by(steps, |_| keep_data)
    }

    /// The same, with the data that was not synced of those files, by number, that `keep` says.
    #[must_use]
    pub fn cut_by(&self, steps: usize, keep: impl Fn(u64) -> bool) -> Self {
        let mut tree = self.lock().history[steps].clone();
        // What had no name is gone.
        tree.nodes.retain(|_, n| n.nlink > 0);
        for (_, node) in tree.nodes.iter_mut().filter(|(ino, _)| !keep(**ino)) {
            let node = Arc::make_mut(node);
            node.data = Arc::clone(&node.synced);
        }
        Self::of(self.dev, tree)
    }
}

fn node(new: &New<'_>, now: TimeSpec) -> Node {
    Node {
        kind: new.kind,
        mode: new.mode & 0o7777,
        uid: new.uid,
        gid: new.gid,
        rdev: new.rdev,
        nlink: if new.kind == FileKind::Dir { 2 } else { 1 },
        unnamed: false,
        target: new.target.to_vec(),
        names: BTreeMap::new(),
        data: Arc::default(),
        synced: Arc::default(),
        xattrs: BTreeMap::new(),
        atime: now,
        mtime: now,
        ctime: now,
    }
}

fn number(handle: &Handle) -> Res<u64> {
    match handle {
        Handle::Sim(object) => Ok(object.0),
        _ => Err(Errno::EBADF),
    }
}

impl Tree {
    fn get(&self, ino: u64) -> Res<&Node> {
        self.nodes.get(&ino).map(|n| &**n).ok_or(Errno::ESTALE)
    }

    fn get_mut(&mut self, ino: u64) -> Res<&mut Node> {
        self.clock += 1;
        let now = TimeSpec { sec: self.clock, nsec: 0 };
        let node = self.nodes.get_mut(&ino).map(Arc::make_mut).ok_or(Errno::ESTALE)?;
        node.ctime = now;
        Ok(node)
    }

    fn find(&self, dir: u64, name: &[u8]) -> Res<u64> {
        let node = self.get(dir)?;
        if node.kind != FileKind::Dir {
            return Err(Errno::ENOTDIR);
        }
        node.names.get(name).copied().ok_or(Errno::ENOENT)
    }

    fn at(&self, at: At<'_>) -> Res<u64> {
        match at {
            At::Name(dir, name) => self.find(number(dir)?, name),
            At::Open(held) => number(held),
        }
    }

    fn add_name(&mut self, dir: u64, name: &[u8], ino: u64) -> Res<()> {
        let parent = self.get_mut(dir)?;
        if parent.nlink == 0 {
            return Err(Errno::ENOENT);
        }
        parent.names.insert(name.to_vec(), ino);
        parent.mtime = parent.ctime;
        Ok(())
    }

    /// Takes a name away, and what it named with its last one.
    fn drop_name(&mut self, dir: u64, name: &[u8]) -> Res<()> {
        let ino = self.find(dir, name)?;
        let parent = self.get_mut(dir)?;
        parent.names.remove(name);
        parent.mtime = parent.ctime;
        let node = self.get_mut(ino)?;
        node.nlink = if node.kind == FileKind::Dir { 0 } else { node.nlink - 1 };
        Ok(())
    }

    /// Whether `above` is `ino` or one of the directories that lead to it.
    fn contains(&self, above: u64, ino: u64) -> bool {
        above == ino || self.nodes.get(&above).is_some_and(|n| n.names.values().any(|child| self.contains(*child, ino)))
    }

    fn rename(&mut self, dir: u64, name: &[u8], new_dir: u64, new_name: &[u8], flags: u32) -> Res<()> {
        let ino = self.find(dir, name)?;
        let old = match self.find(new_dir, new_name) {
            Ok(old) => Some(old),
            Err(Errno::ENOENT) => None,
            Err(e) => return Err(e),
        };
        if self.contains(ino, new_dir) {
            return Err(Errno::EINVAL);
        }
        if flags & RENAME_EXCHANGE != 0 {
            let old = old.ok_or(Errno::ENOENT)?;
            self.add_name(new_dir, new_name, ino)?;
            return self.add_name(dir, name, old);
        }
        if let Some(old) = old {
            if flags & RENAME_NOREPLACE != 0 {
                return Err(Errno::EEXIST);
            }
            if old == ino {
                return Ok(());
            }
            match (self.get(ino)?.kind == FileKind::Dir, self.get(old)?.kind == FileKind::Dir) {
                (true, false) => return Err(Errno::ENOTDIR),
                (false, true) => return Err(Errno::EISDIR),
                (true, true) if !self.get(old)?.names.is_empty() => return Err(Errno::ENOTEMPTY),
                _ => {}
            }
            self.drop_name(new_dir, new_name)?;
        }
        let parent = self.get_mut(dir)?;
        parent.names.remove(name);
        parent.mtime = parent.ctime;
        self.add_name(new_dir, new_name, ino)?;
        if flags & RENAME_WHITEOUT != 0 {
            self.make(dir, name, &New { kind: FileKind::CharDevice, mode: 0, rdev: 0, target: b"", uid: 0, gid: 0 })?;
        }
        Ok(())
    }

    fn make(&mut self, dir: u64, name: &[u8], new: &New<'_>) -> Res<u64> {
        match self.find(dir, name) {
            Ok(_) => return Err(Errno::EEXIST),
            Err(Errno::ENOENT) => {}
            Err(e) => return Err(e),
        }
        let ino = self.add(|now| node(new, now));
        self.add_name(dir, name, ino)?;
        Ok(ino)
    }

    fn sync_all(&mut self) {
        for node in self.nodes.values_mut().map(Arc::make_mut) {
            node.synced = Arc::clone(&node.data);
        }
    }

    fn add(&mut self, node: impl FnOnce(TimeSpec) -> Node) -> u64 {
        let ino = self.next;
        self.next += 1;
        self.clock += 1;
        self.nodes.insert(ino, Arc::new(node(TimeSpec { sec: self.clock, nsec: 0 })));
        ino
    }
}

impl SimBranch {
    /// Carries out one change of metadata: wholly, or not at all.
    fn change<T>(&self, f: impl FnOnce(&mut Tree) -> Res<T>) -> Res<T> {
        let mut state = self.lock();
        let mut tree = state.tree.clone();
        let done = f(&mut tree)?;
        state.tree = tree.clone();
        state.history.push(tree);
        Ok(done)
    }

    fn stat_of(&self, ino: u64, n: &Node) -> Stat {
        let subdirs = if n.kind == FileKind::Dir { n.names.len() as u32 } else { 0 };
        Stat {
            id: ObjectId(self.dev, ino),
            dev: self.dev,
            ino,
            kind: n.kind,
            mode: n.mode,
            nlink: n.nlink + subdirs,
            uid: n.uid,
            gid: n.gid,
            rdev: n.rdev,
            size: if n.kind == FileKind::Symlink { n.target.len() as u64 } else { n.data.len() as u64 },
            blocks: (n.data.len() as u64).div_ceil(512),
            atime: n.atime,
            mtime: n.mtime,
            ctime: n.ctime,
        }
    }
}

impl Branch for SimBranch {
    fn root(&self) -> Handle {
        Handle::Sim(Arc::new(SimObject(ROOT)))
    }

    fn can_hold_overlay(&self) -> bool {
        true
    }

    fn stat(&self, at: At<'_>) -> Res<Stat> {
        let state = self.lock();
        let ino = state.tree.at(at)?;
        Ok(self.stat_of(ino, state.tree.get(ino)?))
    }

    fn open(&self, at: At<'_>, how: Open) -> Res<Handle> {
        let state = self.lock();
        let ino = state.tree.at(at)?;
        match (how, state.tree.get(ino)?.kind) {
            (Open::Path, _) | (_, FileKind::File) => Ok(Handle::Sim(Arc::new(SimObject(ino)))),
            (_, FileKind::Dir) => Err(Errno::EISDIR),
            _ => Err(Errno::ENXIO),
        }
    }

    fn list(&self, dir: &Handle, each: &mut dyn FnMut(Listed<'_>)) -> Res<()> {
        let tree = self.lock().tree.clone();
        let node = tree.get(number(dir)?)?;
        if node.kind != FileKind::Dir {
            return Err(Errno::ENOTDIR);
        }
        for (name, ino) in &node.names {
            each(Listed { name, ino: *ino, kind: tree.get(*ino)?.kind });
        }
        Ok(())
    }

    fn readlink(&self, at: At<'_>) -> Res<Vec<u8>> {
        let state = self.lock();
        let node = state.tree.get(state.tree.at(at)?)?;
        if node.kind == FileKind::Symlink { Ok(node.target.clone()) } else { Err(Errno::EINVAL) }
    }

    fn make(&self, dir: &Handle, name: &[u8], new: &New<'_>) -> Res<Stat> {
        let dir = number(dir)?;
        let ino = self.change(|tree| tree.make(dir, name, new))?;
        let state = self.lock();
        Ok(self.stat_of(ino, state.tree.get(ino)?))
    }

    fn make_unnamed(&self, dir: &Handle, new: &New<'_>) -> Res<Option<(Stat, Handle)>> {
        let dir = number(dir)?;
        let ino = self.change(|tree| {
            tree.get(dir)?;
            Ok(tree.add(|now| Node { nlink: 0, unnamed: true, ..node(new, now) }))
        })?;
        let handle = Handle::Sim(Arc::new(SimObject(ino)));
        Ok(Some((self.stat(At::Open(&handle))?, handle)))
    }

    fn link(&self, from: At<'_>, dir: &Handle, name: &[u8]) -> Res<()> {
        let dir = number(dir)?;
        if let Some(Some(e)) = self.links.lock().unwrap_or_else(PoisonError::into_inner).pop_front() {
            return Err(e);
        }
        self.change(|tree| {
            let ino = tree.at(from)?;
            if tree.find(dir, name).is_ok() {
                return Err(Errno::EEXIST);
            }
            let node = tree.get_mut(ino)?;
            match (node.kind, node.nlink) {
                (FileKind::Dir, _) => return Err(Errno::EPERM),
                (_, 0) if !node.unnamed => return Err(Errno::ENOENT),
                _ => node.nlink += 1,
            }
            node.unnamed = false;
            tree.add_name(dir, name, ino)
        })
    }

    fn unlink(&self, dir: &Handle, name: &[u8]) -> Res<()> {
        let dir = number(dir)?;
        self.change(|tree| match tree.get(tree.find(dir, name)?)?.kind {
            FileKind::Dir => Err(Errno::EISDIR),
            _ => tree.drop_name(dir, name),
        })
    }

    fn rmdir(&self, dir: &Handle, name: &[u8]) -> Res<()> {
        let dir = number(dir)?;
        self.change(|tree| {
            let node = tree.get(tree.find(dir, name)?)?;
            match node.kind {
                FileKind::Dir if node.names.is_empty() => tree.drop_name(dir, name),
                FileKind::Dir => Err(Errno::ENOTEMPTY),
                _ => Err(Errno::ENOTDIR),
            }
        })
    }

    fn rename(&self, dir: &Handle, name: &[u8], new_dir: &Handle, new_name: &[u8], flags: u32) -> Res<()> {
        let (dir, new_dir) = (number(dir)?, number(new_dir)?);
        self.change(|tree| tree.rename(dir, name, new_dir, new_name, flags))
    }

    fn set_attr(&self, at: At<'_>, set: &SetAttr) -> Res<()> {
        self.change(|tree| {
            let node = tree.get_mut(tree.at(at)?)?;
            if set.uid.is_some() || set.gid.is_some() {
                if set.uid == Some(u32::MAX) || set.gid == Some(u32::MAX) {
                    return Err(Errno::EINVAL);
                }
                node.uid = set.uid.unwrap_or(node.uid);
                node.gid = set.gid.unwrap_or(node.gid);
                if node.kind == FileKind::File {
                    node.mode &= if node.mode & 0o010 != 0 { !0o6000 } else { !0o4000 };
                }
            }
            node.mode = set.mode.map_or(node.mode, |m| m & 0o7777);
            if let Some(size) = set.size {
                if node.kind != FileKind::File {
                    return Err(Errno::EINVAL);
                }
                let size = usize::try_from(size).map_err(|_| Errno::EFBIG)?;
                Arc::make_mut(&mut node.data).resize(size, 0);
                node.mtime = node.ctime;
            }
            node.atime = set.atime.unwrap_or(node.atime);
            node.mtime = set.mtime.unwrap_or(node.mtime);
            Ok(())
        })
    }

    fn get_xattr(&self, at: At<'_>, name: &[u8]) -> Res<Vec<u8>> {
        let state = self.lock();
        state.tree.get(state.tree.at(at)?)?.xattrs.get(name).cloned().ok_or(Errno::ENODATA)
    }

    fn list_xattr(&self, at: At<'_>) -> Res<Vec<Vec<u8>>> {
        let state = self.lock();
        Ok(state.tree.get(state.tree.at(at)?)?.xattrs.keys().cloned().collect())
    }

    fn set_xattr(&self, at: At<'_>, name: &[u8], value: &[u8], flags: u32) -> Res<()> {
        self.change(|tree| {
            let node = tree.get_mut(tree.at(at)?)?;
            match (flags, node.xattrs.contains_key(name)) {
                (1, true) => return Err(Errno::EEXIST),
                (2, false) => return Err(Errno::ENODATA),
                _ => {}
            }
            node.xattrs.insert(name.to_vec(), value.to_vec());
            Ok(())
        })
    }

    fn remove_xattr(&self, at: At<'_>, name: &[u8]) -> Res<()> {
        self.change(|tree| tree.get_mut(tree.at(at)?)?.xattrs.remove(name).map(drop).ok_or(Errno::ENODATA))
    }

    fn read(&self, file: &Handle, offset: u64, buf: &mut [u8]) -> Res<usize> {
        let state = self.lock();
        let data = &state.tree.get(number(file)?)?.data;
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(data.len());
        let n = buf.len().min(data.len() - start);
        buf[..n].copy_from_slice(&data[start..start + n]);
        Ok(n)
    }

    fn read_telling(&self, file: &Handle, offset: u64, buf: &mut [u8]) -> Res<(usize, bool)> {
        let waited = self.memory().cold.remove(&number(file)?);
        self.read(file, offset, buf).map(|n| (n, waited))
    }

    fn fetches(&self) -> bool {
        true
    }

    fn fetch(&self, at: At<'_>, _bytes: u64) -> Res<Fetched> {
        let At::Name(_, name) = at else { return Err(Errno::EINVAL) };
        let ino = self.lock().tree.at(at)?;
        let mut memory = self.memory();
        if !memory.cold.remove(&ino) {
            return Ok(Fetched::InMemory);
        }
        memory.fetched.push(name.to_vec());
        Ok(Fetched::Asked)
    }

    fn write(&self, file: &Handle, offset: u64, data: &[u8]) -> Res<()> {
        let mut state = self.lock();
        let node = state.tree.get_mut(number(file)?)?;
        let start = usize::try_from(offset).map_err(|_| Errno::EFBIG)?;
        let content = Arc::make_mut(&mut node.data);
        if content.len() < start + data.len() {
            content.resize(start + data.len(), 0);
        }
        content[start..start + data.len()].copy_from_slice(data);
        node.mtime = node.ctime;
        Ok(())
    }

    fn fallocate(&self, file: &Handle, offset: u64, len: u64, mode: u32) -> Res<()> {
        let end = offset.checked_add(len).ok_or(Errno::EFBIG)?;
        if !matches!(mode, 0 | FALLOC_KEEP_SIZE | 3 | FALLOC_ZERO_RANGE | 17) {
            return Err(Errno::EOPNOTSUPP);
        }
        if mode & (FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE) != 0 {
            let mut state = self.lock();
            let node = state.tree.get_mut(number(file)?)?;
            let content = Arc::make_mut(&mut node.data);
            let at = |n: u64| usize::try_from(n).unwrap_or(usize::MAX).min(content.len());
            let range = at(offset)..at(end);
            content[range].fill(0);
            node.mtime = node.ctime;
        }
        if mode & FALLOC_KEEP_SIZE != 0 {
            return Ok(());
        }
        let size = self.stat(At::Open(file))?.size.max(end);
        self.set_attr(At::Open(file), &SetAttr { size: Some(size), ..SetAttr::default() })
    }

    fn lseek(&self, file: &Handle, offset: u64, whence: u32) -> Res<u64> {
        let size = self.stat(At::Open(file))?.size;
        match whence {
            _ if offset >= size => Err(Errno::ENXIO),
            SEEK_DATA => Ok(offset),
            super::SEEK_HOLE => Ok(size),
            _ => Err(Errno::EINVAL),
        }
    }

    fn fsync(&self, file: &Handle, _data_only: bool) -> Res<()> {
        let ino = number(file)?;
        self.change(|tree| {
            let node = tree.nodes.get_mut(&ino).map(Arc::make_mut).ok_or(Errno::ESTALE)?;
            node.synced = Arc::clone(&node.data);
            Ok(())
        })
    }

    fn sync_all(&self) -> Res<()> {
        self.change(|tree| {
            tree.sync_all();
            Ok(())
        })
    }

    fn statfs(&self) -> Res<StatFs> {
        Ok(StatFs {
            blocks: 1 << 20,
            bfree: 1 << 19,
            bavail: 1 << 19,
            files: 1 << 20,
            ffree: 1 << 19,
            bsize: 4096,
            frsize: 4096,
            namelen: 255,
        })
    }

    fn claim(&self, _dir: &Handle) -> Res<bool> {
        Ok(true)
    }
}
