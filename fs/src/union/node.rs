//! What the front end holds references to: directories with their layers, and everything else with the place where it lies.

use super::branch::{At, Handle, ObjectId};
use super::core::Standing;
use super::lazy::Lazy;
use super::listing::Listing;
use super::slot::Slot;
use super::watch::Watched;
use super::{ROOT_INO, Res};
use crate::fop::{Errno, FileKind};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

/// A name.
pub(super) type Name = Arc<[u8]>;

/// One object of the union.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) ino: u64,
    pub(super) kind: FileKind,
    body: Body,
    /// The names by which it was found: of a directory one, of the root none, of a file perhaps not all.
    names: Mutex<Vec<(Arc<Node>, Name)>>,
    /// Held for writing while it is copied up, for reading by who changes it where it is: what is written to an object while it is being copied
    /// might be in neither.
    place: RwLock<()>,
}

#[derive(Debug)]
enum Body {
    Dir(RwLock<DirState>),
    File(RwLock<FileState>),
}

/// What a directory's layer says of itself.
#[derive(Clone, Debug, Default)]
pub(super) struct Marks {
    pub(super) opaque: bool,
    /// Where the layers below lie, when not under the same name.
    pub(super) redirect: Option<Vec<u8>>,
    /// Objects in it may carry numbers.
    pub(super) impure: bool,
    /// overlayfs copied something up into it.
    pub(super) overlay_impure: bool,
    /// Whiteouts in it may be empty files with an attribute.
    pub(super) attribute_whiteouts: bool,
    /// The number that it goes by.
    pub(super) number: Option<u64>,
}

/// A directory as it lies in one branch.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub(super) slot: Arc<Slot>,
    pub(super) dir: Handle,
    pub(super) id: ObjectId,
    pub(super) marks: Arc<Marks>,
    /// Where the kernel tells what others change in it.
    pub(super) watch: Option<Arc<Watched>>,
}

/// A directory. Its lock is the lock of the names in it: taken for reading by lookups, for writing by changes; a parent's before its child's, and
/// a directory's before a file's.
#[derive(Debug)]
pub(super) struct DirState {
    /// Top-down; never empty.
    pub(super) layers: Vec<Layer>,
    /// No layer can be added at this rank or below: an opaque directory, a whiteout or a redirect ends the merge above it.
    pub(super) limit: usize,
    /// Removed, and only still referenced.
    pub(super) dead: bool,
    /// The generation of the set of branches that `layers` was made for.
    pub(super) epoch: u64,
    /// Rises with every change of the names.
    pub(super) version: u64,
    pub(super) listing: Mutex<Option<Arc<Listing>>>,
}

/// Where an object lies in its branch.
#[derive(Clone, Debug)]
pub(super) enum Spot {
    /// Under a name.
    Name(Handle, Name),
    /// It is held: it has no name any more, or none that we know.
    Open(Handle),
}

impl Spot {
    /// Whether both are the same name in the same directory.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Name(a, a_name), Self::Name(b, b_name)) => a_name == b_name && a.is_same(b),
            _ => false,
        }
    }

    pub(super) fn at(&self) -> At<'_> {
        match self {
            Self::Name(dir, name) => At::Name(dir, name),
            Self::Open(held) => At::Open(held),
        }
    }
}

/// Anything but a directory.
#[derive(Debug)]
pub(super) struct FileState {
    pub(super) slot: Arc<Slot>,
    pub(super) id: ObjectId,
    pub(super) spot: Spot,
    /// Not all of it was copied up, or was not once.
    pub(super) lazy: Option<Arc<Lazy>>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    pub(super) fn directory(ino: u64, state: DirState, at: Option<(Arc<Node>, Name)>) -> Arc<Self> {
        Arc::new(Self {
            ino,
            kind: FileKind::Dir,
            body: Body::Dir(RwLock::new(state)),
            names: Mutex::new(at.into_iter().collect()),
            place: RwLock::new(()),
        })
    }

    pub(super) fn other(ino: u64, kind: FileKind, state: FileState) -> Arc<Self> {
        Arc::new(Self { ino, kind, body: Body::File(RwLock::new(state)), names: Mutex::default(), place: RwLock::new(()) })
    }

    pub(super) fn is_dir(&self) -> bool {
        self.kind == FileKind::Dir
    }

    fn dir_lock(&self) -> Res<&RwLock<DirState>> {
        match &self.body {
            Body::Dir(dir) => Ok(dir),
            Body::File(_) => Err(Errno::ENOTDIR),
        }
    }

    fn file_lock(&self) -> Res<&RwLock<FileState>> {
        match &self.body {
            Body::File(file) => Ok(file),
            Body::Dir(_) => Err(Errno::EISDIR),
        }
    }

    /// It is not copied up as long as this is held.
    pub(super) fn stays(&self) -> RwLockReadGuard<'_, ()> {
        self.place.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody else copies or changes it as long as this is held.
    pub(super) fn moves(&self) -> RwLockWriteGuard<'_, ()> {
        self.place.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn dir(&self) -> Res<RwLockReadGuard<'_, DirState>> {
        Ok(self.dir_lock()?.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn dir_mut(&self) -> Res<RwLockWriteGuard<'_, DirState>> {
        Ok(self.dir_lock()?.write().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn file(&self) -> Res<RwLockReadGuard<'_, FileState>> {
        Ok(self.file_lock()?.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn file_mut(&self) -> Res<RwLockWriteGuard<'_, FileState>> {
        Ok(self.file_lock()?.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// How it stands; `None` where that would have to be waited for, or a change of the names in it (`renaming`).
    pub(super) fn standing(&self, renaming: bool) -> Option<Standing> {
        let _stays = self.place.try_read().ok()?;
        let writable = match &self.body {
            Body::Dir(dir) => {
                if renaming {
                    drop(dir.try_write().ok()?);
                }
                dir.try_read().ok()?.layers.first().is_some_and(|top| top.slot.writable())
            }
            Body::File(file) => {
                let file = file.try_read().ok()?;
                if file.lazy.as_ref().is_some_and(|lazy| !lazy.is_done()) {
                    return None;
                }
                file.slot.writable()
            }
        };
        Some(Standing::Settled { writable })
    }

    /// The names that are known.
    pub(super) fn names(&self) -> Vec<(Arc<Node>, Name)> {
        lock(&self.names).clone()
    }

    /// Whether no name is known.
    pub(super) fn is_nameless(&self) -> bool {
        lock(&self.names).is_empty()
    }

    /// Of a directory: where it is; `None` for the root.
    pub(super) fn place(&self) -> Option<(Arc<Node>, Name)> {
        lock(&self.names).first().cloned()
    }

    pub(super) fn add_name(&self, parent: &Arc<Node>, name: &[u8]) {
        let mut names = lock(&self.names);
        if names.iter().any(|(p, n)| p.ino == parent.ino && **n == *name) {
            return;
        }
        if self.is_dir() {
            if self.ino == ROOT_INO {
                return;
            }
            names.clear();
        }
        names.push((Arc::clone(parent), name.into()));
    }

    /// Takes a name away; whether another one is known.
    pub(super) fn drop_name(&self, parent: &Node, name: &[u8]) -> bool {
        let mut names = lock(&self.names);
        names.retain(|(p, n)| p.ino != parent.ino || **n != *name);
        !names.is_empty()
    }

    /// Whether `other` is this directory or lies in it.
    pub(super) fn contains(&self, other: &Arc<Node>) -> bool {
        let mut at = Arc::clone(other);
        loop {
            if at.ino == self.ino {
                return true;
            }
            match at.place() {
                Some((parent, _)) => at = parent,
                None => return false,
            }
        }
    }
}

impl DirState {
    pub(super) fn layer(&self, slot: &Arc<Slot>) -> Option<&Layer> {
        self.layers.iter().find(|l| Arc::ptr_eq(&l.slot, slot))
    }

    /// The layers of branches below `rank`.
    pub(super) fn below(&self, rank: usize) -> &[Layer] {
        let start = self.layers.partition_point(|l| l.slot.rank() <= rank);
        &self.layers[start..]
    }

    /// Notes a change of the names.
    pub(super) fn changed(&mut self) {
        self.version += 1;
    }
}

#[derive(Debug)]
struct Held {
    weak: Weak<Node>,
    /// While the front end has references.
    strong: Option<Arc<Node>>,
    references: u64,
}

/// All nodes, by number.
#[derive(Debug, Default)]
pub(super) struct Table {
    nodes: Mutex<(HashMap<u64, Held>, usize)>,
}

impl Table {
    /// What the front end names.
    pub(super) fn get(&self, ino: u64) -> Res<Arc<Node>> {
        self.find(ino).ok_or(Errno::ESTALE)
    }

    /// The node of a number, if there is one.
    pub(super) fn find(&self, ino: u64) -> Option<Arc<Node>> {
        lock(&self.nodes).0.get(&ino).and_then(|h| h.weak.upgrade())
    }

    pub(super) fn get_or_insert(&self, ino: u64, make: impl FnOnce() -> Arc<Node>) -> Arc<Node> {
        let mut nodes = lock(&self.nodes);
        if let Some(node) = nodes.0.get(&ino).and_then(|h| h.weak.upgrade()) {
            return node;
        }
        if nodes.0.len() >= nodes.1 {
            nodes.0.retain(|_, h| h.weak.strong_count() > 0);
            nodes.1 = (nodes.0.len() * 2).max(1024);
        }
        let node = make();
        nodes.0.insert(ino, Held { weak: Arc::downgrade(&node), strong: None, references: 0 });
        node
    }

    /// Counts a reference of the front end's.
    pub(super) fn refer(&self, node: &Arc<Node>) {
        let mut nodes = lock(&self.nodes);
        let held = nodes.0.entry(node.ino).or_insert_with(|| Held { weak: Arc::downgrade(node), strong: None, references: 0 });
        held.references += 1;
        held.strong.get_or_insert_with(|| Arc::clone(node));
    }

    /// Drops references; the node when it was the last one.
    pub(super) fn forget(&self, ino: u64, count: u64) -> Option<Arc<Node>> {
        let mut nodes = lock(&self.nodes);
        let held = nodes.0.get_mut(&ino)?;
        held.references = held.references.saturating_sub(count);
        if held.references > 0 || ino == ROOT_INO {
            return None;
        }
        held.strong.take()
    }

    pub(super) fn is_referred(&self, ino: u64) -> bool {
        lock(&self.nodes).0.get(&ino).is_some_and(|h| h.references > 0)
    }

    pub(super) fn live(&self) -> Vec<Arc<Node>> {
        lock(&self.nodes).0.values().filter_map(|h| h.weak.upgrade()).collect()
    }
}
