//! [`Union`]: how it is put together, and how objects are found.

use super::ahead::Scout;
use super::branch::{At, ObjectId, Stat};
use super::lazy::{Lazy, LazyFiles};
use super::node::{DirState, FileState, Layer, Marks, Name, Node, Table, lock};
use super::numbers::Numbers;
use super::policy::Policies;
use super::search::{Found, FoundDir, FoundFile, visible};
use super::slot::Slot;
use super::watch::Watcher;
use super::{BRANCHES_MAX, BranchInfo, BranchSource, Entry, ROOT_INO, Res, Udba, UnionConfig, UnionError};
use crate::fop::{Attr, Errno, FileKind, Gfid};
use crate::store::Lru;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

/// Open files of branches that are kept for the next read or write.
const OPEN_FILES_MAX: usize = 1024;
/// How often an operation starts anew because somebody else changed what it had looked at.
pub(super) const ATTEMPTS_MAX: usize = 64;

/// The branches as they are at one time.
#[derive(Debug)]
pub(super) struct View {
    /// Top-down.
    pub(super) slots: Vec<Arc<Slot>>,
    /// Rises with every change.
    pub(super) epoch: u64,
    /// Their roots.
    pub(super) roots: Vec<Layer>,
}

/// An open file of a branch.
#[derive(Clone, Debug)]
pub(super) struct OpenFile {
    pub(super) slot: Arc<Slot>,
    pub(super) handle: super::branch::Handle,
    pub(super) writable: bool,
    lazy: Option<Arc<Lazy>>,
}

impl OpenFile {
    pub(super) fn new(slot: &Arc<Slot>, handle: super::branch::Handle, writable: bool, lazy: Option<&Arc<Lazy>>) -> Self {
        Self { slot: Arc::clone(slot), handle, writable, lazy: lazy.cloned() }
    }

    /// What is to be known of it if not all of it was copied up.
    pub(super) fn lazy(&self) -> Option<&Arc<Lazy>> {
        self.lazy.as_ref().filter(|lazy| !lazy.is_done())
    }
}

/// What a request for an object will meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Somebody changes it just now, or not all of it was copied up: a request may have to wait.
    Busy,
    /// It stays as it is; it can be changed where it lies, or has to be copied up first.
    Settled {
        /// Where it lies.
        writable: bool,
    },
}

/// A union of branches. Called by several threads at once; calls may block.
pub struct Union {
    pub(super) config: UnionConfig,
    pub(super) instance: u64,
    view: RwLock<Arc<View>>,
    pub(super) table: Table,
    pub(super) numbers: Numbers,
    pub(super) policies: Policies,
    pub(super) files: Mutex<Lru<u64, OpenFile>>,
    /// How many names hard-linked files of lower branches have left, by number, once some of them were hidden or copied up.
    pub(super) links: Mutex<HashMap<u64, u32>>,
    /// Held by renames of directories and between directories, so that who is whose ancestor stays as it is.
    pub(super) moving: Mutex<()>,
    /// Held by changes of the set of branches.
    pub(super) changing: Mutex<()>,
    /// What was copied up in part.
    pub(super) lazy: Arc<LazyFiles>,
    /// Fetches what somebody who walks a tree will want next.
    pub(super) scout: Scout,
    /// Hears of what others change in the branches.
    pub(super) watcher: OnceLock<Arc<Watcher>>,
}

impl std::fmt::Debug for Union {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Union").field("branches", &self.branches()).finish_non_exhaustive()
    }
}

impl Union {
    /// Puts the branches together and sweeps what dead unions left in their work directories. Sets the process's umask to 0.
    ///
    /// # Errors
    /// Says which branch, and what to do.
    pub fn open(config: UnionConfig) -> Result<Self, UnionError> {
        if config.branches.is_empty() {
            return Err(UnionError::NoBranches);
        }
        if config.branches.len() > BRANCHES_MAX {
            return Err(UnionError::TooManyBranches);
        }
        config.check()?;
        rustix::process::umask(rustix::fs::Mode::empty());
        for (i, branch) in config.branches.iter().enumerate() {
            for other in &config.branches[..i] {
                check_apart(&branch.source, &other.source)?;
            }
        }
        let instance = rand::random();
        let mut slots: Vec<Arc<Slot>> = Vec::new();
        for branch in &config.branches {
            match Slot::ready(branch, &config, instance) {
                Ok(slot) => slots.push(slot),
                Err(e) => {
                    slots.iter().for_each(|slot| slot.close(&config));
                    return Err(e);
                }
            }
        }
        let policies = Policies::new(config.create, config.copyup);
        let union = Self {
            lazy: LazyFiles::new(&config.lazy),
            config,
            instance,
            view: RwLock::new(Arc::new(View { slots: Vec::new(), epoch: 0, roots: Vec::new() })),
            table: Table::default(),
            numbers: Numbers::default(),
            policies,
            files: Mutex::new(Lru::new(OPEN_FILES_MAX)),
            links: Mutex::default(),
            moving: Mutex::new(()),
            changing: Mutex::new(()),
            scout: Scout::default(),
            watcher: OnceLock::new(),
        };
        if let Err(e) = union.set_slots(slots.clone()) {
            slots.iter().for_each(|slot| slot.close(&union.config));
            return Err(e);
        }
        let root = Node::directory(ROOT_INO, union.root_state(), None);
        union.table.refer(&root);
        Ok(union)
    }

    /// Syncs what was copied up in part (with `volatile`, everything), and removes the work directories. Called at the end, when nobody changes
    /// anything any more.
    pub fn close(&self) {
        self.scout.end();
        self.lazy.flush_all();
        for slot in &self.view().slots {
            slot.close(&self.config);
        }
    }

    /// Makes these the branches, the topmost first.
    pub(super) fn set_slots(&self, slots: Vec<Arc<Slot>>) -> Result<(), UnionError> {
        for (rank, slot) in slots.iter().enumerate() {
            slot.set_rank(rank);
            self.numbers.index(slot.dev);
        }
        let mut roots = Vec::new();
        for slot in &slots {
            let fail = slot.failed("read the root");
            let stat = slot.branch.stat(At::Open(&slot.root)).map_err(&fail)?;
            slot.watch_by(self.watcher.get());
            let (watch, _) = slot.watch(&slot.root, stat.id);
            let mut marks = self.marks(slot, &slot.root, stat.ino, true).map_err(fail)?;
            // A root is at its place, whatever it was elsewhere.
            marks.redirect = None;
            roots.push(Layer { slot: Arc::clone(slot), dir: slot.root.clone(), id: stat.id, marks: Arc::new(marks), watch });
        }
        let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
        *view = Arc::new(View { slots, epoch: view.epoch + 1, roots });
        Ok(())
    }

    pub(super) fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The layers of the root directory, without regard to opaque ones.
    pub(super) fn roots(&self) -> Vec<Layer> {
        self.view().roots.clone()
    }

    pub(super) fn root_state(&self) -> DirState {
        let view = self.view();
        let mut layers = view.roots.clone();
        let mut limit = usize::MAX;
        if let Some(opaque) = layers.iter().position(|l| l.marks.opaque) {
            layers.truncate(opaque + 1);
            limit = opaque + 1;
        }
        dir_state(layers, limit, view.epoch)
    }

    /// Whether all branches lie on this host.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.view().roots.iter().all(|l| matches!(l.dir, super::branch::Handle::Local(_)))
    }

    /// Whether somebody else may change the branches.
    pub(super) fn sees_outside_changes(&self) -> bool {
        self.config.udba != Udba::None
    }

    /// The branch that a file lies in, by its label; `None` for directories and what nobody refers to.
    #[must_use]
    pub fn branch_of(&self, ino: u64) -> Option<String> {
        Some(self.table.find(ino)?.file().ok()?.slot.source.label())
    }

    /// The branches, the topmost first.
    #[must_use]
    pub fn branches(&self) -> Vec<BranchInfo> {
        self.view().slots.iter().map(|s| BranchInfo { label: s.source.label(), perm: s.perm() }).collect()
    }

    /// How it was configured, with the branches as they are now.
    #[must_use]
    pub fn config(&self) -> UnionConfig {
        let branches = self.view().slots.iter().map(|s| s.config()).collect();
        UnionConfig { branches, lazy: self.lazy.config(), ..self.config.clone() }
    }

    /// The numbers that the front end holds references to: what to invalidate after a change of branches.
    #[must_use]
    pub fn live(&self) -> Vec<u64> {
        self.table.live().iter().map(|n| n.ino).collect()
    }

    /// The names by which the front end may remember what it holds references to: the parent's number, and the name.
    #[must_use]
    pub fn live_names(&self) -> Vec<(u64, Box<[u8]>)> {
        let named = |node: Arc<Node>| node.names().into_iter().map(|(parent, name)| (parent.ino, name[..].into())).collect::<Vec<_>>();
        self.table.live().into_iter().flat_map(named).collect()
    }

    /// Finds a name; counts one reference.
    ///
    /// # Errors
    /// `ENOENT`, or what the branches say.
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Res<Entry> {
        let parent = self.table.get(parent)?;
        let (node, attr) = self.find(&parent, name)?;
        self.table.refer(&node);
        Ok(Entry { ino: node.ino, generation: 0, attr })
    }

    /// Drops `count` references; true if these were the last.
    pub fn forget(&self, ino: u64, count: u64) -> bool {
        let Some(node) = self.table.forget(ino, count) else { return false };
        lock(&self.files).remove(ino);
        drop(node);
        true
    }

    /// The node of a name, no reference counted.
    pub(super) fn find(&self, parent: &Arc<Node>, name: &[u8]) -> Res<(Arc<Node>, Attr)> {
        visible(name)?;
        self.refresh(parent)?;
        let dir = parent.dir()?;
        if dir.dead {
            return Err(Errno::ENOENT);
        }
        let found = self.search(&dir.layers, dir.limit, name)?;
        self.node_of(parent, name, found, dir.epoch)
    }

    /// The node of what was found. The parent's lock is held.
    pub(super) fn node_of(&self, parent: &Arc<Node>, name: &[u8], found: Found, epoch: u64) -> Res<(Arc<Node>, Attr)> {
        match found {
            Found::Nothing(_) => Err(Errno::ENOENT),
            Found::File(f) => self.file_node(parent, name, &f),
            Found::Dir(d) => self.dir_node(parent, name, d, epoch),
        }
    }

    fn file_node(&self, parent: &Arc<Node>, name: &[u8], f: &FoundFile) -> Res<(Arc<Node>, Attr)> {
        let node = self.node_of_file(f)?;
        node.add_name(parent, name);
        let attr = self.file_attr(node.ino, &f.stat);
        Ok((node, attr))
    }

    /// The node of a file, whatever its name, if it has one.
    pub(super) fn node_of_file(&self, f: &FoundFile) -> Res<Arc<Node>> {
        for number in [f.number, self.other_number(f.number, f.stat.id)] {
            let state = || FileState { slot: Arc::clone(&f.slot), id: f.stat.id, spot: f.spot.clone(), lazy: f.lazy.clone() };
            let node = self.table.get_or_insert(number, || Node::other(number, f.stat.kind, state()));
            let Ok(known) = node.file() else { continue };
            if known.id != f.stat.id || node.kind != f.stat.kind {
                continue;
            }
            // This name is good now; the one that was known may be gone behind our back.
            let moved = !known.spot.is_same(&f.spot);
            let marked = known.lazy.is_none() && f.lazy.is_some();
            // Its branch was taken away, and came again.
            let returned = known.slot.is_gone();
            drop(known);
            if moved || marked || returned {
                let mut known = node.file_mut()?;
                known.spot = f.spot.clone();
                if known.slot.is_gone() {
                    known.slot = Arc::clone(&f.slot);
                    known.lazy.clone_from(&f.lazy);
                }
                if marked || returned {
                    lock(&self.files).remove(number);
                }
                if known.lazy.is_none() && known.id == f.stat.id {
                    known.lazy.clone_from(&f.lazy);
                }
            }
            return Ok(node);
        }
        Err(Errno::ESTALE)
    }

    /// For an object whose number is another live object's.
    fn other_number(&self, number: u64, id: ObjectId) -> u64 {
        let other = self.numbers.made_up(id);
        if other == number { other ^ 1 << 40 } else { other }
    }

    fn dir_node(&self, parent: &Arc<Node>, name: &[u8], d: FoundDir, epoch: u64) -> Res<(Arc<Node>, Attr)> {
        let same = |a: &[Layer], b: &[Layer]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.id == b.id);
        for number in [d.number, self.other_number(d.number, d.stat.id)] {
            let state = || dir_state(d.layers.clone(), d.limit, epoch);
            let node = self.table.get_or_insert(number, || Node::directory(number, state(), Some((Arc::clone(parent), name.into()))));
            let Ok(known) = node.dir() else { continue };
            if known.dead || !known.layers.iter().any(|k| d.layers.iter().any(|l| l.id == k.id)) {
                continue;
            }
            let unchanged = same(&known.layers, &d.layers) && known.limit == d.limit && known.epoch == epoch;
            let reshaped = !unchanged && known.epoch == epoch;
            // Another union has copied something up into it.
            let purer = unchanged && known.layers.iter().zip(&d.layers).any(|(k, l)| l.marks.impure && !k.marks.impure);
            drop(known);
            if purer {
                let mut known = node.dir_mut()?;
                let there = |id| d.layers.iter().any(|l| l.id == id && l.marks.impure);
                for layer in known.layers.iter_mut().filter(|k| !k.marks.impure && there(k.id)) {
                    layer.marks = Arc::new(Marks { impure: true, ..Marks::clone(&layer.marks) });
                }
            }
            if reshaped {
                self.note_reshaped();
            }
            if !unchanged {
                let mut known = node.dir_mut()?;
                known.layers = d.layers.clone();
                known.limit = d.limit;
                known.epoch = epoch;
                known.changed();
            }
            node.add_name(parent, name);
            return Ok((node, attr(number, &d.stat, d.layers.len())));
        }
        Err(Errno::ESTALE)
    }

    /// Brings a directory's layers up to date after a change of the branches.
    pub(super) fn refresh(&self, node: &Arc<Node>) -> Res<()> {
        let epoch = self.view().epoch;
        if node.dir()?.epoch == epoch {
            return Ok(());
        }
        let Some((parent, name)) = node.place() else {
            let fresh = self.root_state();
            let mut dir = node.dir_mut()?;
            (dir.layers, dir.limit, dir.epoch) = (fresh.layers, fresh.limit, fresh.epoch);
            dir.changed();
            return Ok(());
        };
        self.refresh(&parent)?;
        let above = parent.dir()?;
        let found = self.search(&above.layers, above.limit, &name)?;
        let mut dir = node.dir_mut()?;
        if let Found::Dir(d) = found {
            (dir.layers, dir.limit) = (d.layers, d.limit);
        } else {
            dir.dead = true;
        }
        dir.epoch = above.epoch;
        dir.changed();
        Ok(())
    }

    /// The directory that an operation names, ready for use.
    pub(super) fn directory(&self, ino: u64) -> Res<Arc<Node>> {
        let node = self.table.get(ino)?;
        self.refresh(&node)?;
        Ok(node)
    }

    /// Runs `f` on a file where it lies; it does not move meanwhile.
    pub(super) fn with_file<T>(&self, node: &Node, f: impl FnOnce(&Slot, At<'_>, ObjectId) -> Res<T>) -> Res<T> {
        let file = node.file()?;
        if file.slot.is_gone() {
            return Err(Errno::ESTALE);
        }
        f(&file.slot, file.spot.at(), file.id)
    }

    /// Runs `f` on any object where it lies: of a directory, the topmost layer.
    pub(super) fn with_object<T>(&self, node: &Arc<Node>, f: impl FnOnce(&Slot, At<'_>) -> Res<T>) -> Res<T> {
        if !node.is_dir() {
            return self.with_file(node, |slot, at, _| f(slot, at));
        }
        self.refresh(node)?;
        let dir = node.dir()?;
        let top = dir.layers.first().ok_or(Errno::ESTALE)?;
        f(&top.slot, At::Open(&top.dir))
    }

    /// How an object stands, without waiting for anything; `renaming`: for a change of the names in it.
    #[must_use]
    pub fn standing(&self, ino: u64, renaming: bool) -> Standing {
        let Some(node) = self.table.find(ino) else { return Standing::Settled { writable: false } };
        node.standing(renaming).unwrap_or(Standing::Busy)
    }

    /// Whether there may be files of which not all was copied up.
    #[must_use]
    pub fn has_lazy_copies(&self) -> bool {
        self.lazy.any()
    }

    /// stat(2).
    ///
    /// # Errors
    /// `ESTALE` when somebody took the object away behind our back.
    pub fn getattr(&self, ino: u64) -> Res<Attr> {
        let node = self.table.get(ino)?;
        self.attr_of(&node)
    }

    pub(super) fn attr_of(&self, node: &Arc<Node>) -> Res<Attr> {
        if node.is_dir() {
            self.refresh(node)?;
            let dir = node.dir()?;
            let top = dir.layers.first().ok_or(Errno::ESTALE)?;
            let stat = top.slot.branch.stat(At::Open(&top.dir))?;
            return Ok(attr(node.ino, &stat, dir.layers.len()));
        }
        let lazy = node.file()?.lazy.clone();
        self.with_file(node, |slot, at, id| {
            let mut stat = slot.branch.stat(at).map_err(|e| if e == Errno::ENOENT { Errno::ESTALE } else { e })?;
            if stat.id != id {
                return Err(Errno::ESTALE);
            }
            if let Some(lazy) = lazy {
                stat.blocks = lazy.blocks(&stat);
            }
            let mut attr = self.file_attr(node.ino, &stat);
            // Only hidden: its branch still counts the name.
            if !slot.writable() && node.is_nameless() && stat.nlink == 1 {
                attr.nlink = attr.nlink.saturating_sub(1);
            }
            Ok(attr)
        })
    }
}

impl Union {
    /// What the front end sees of anything but a directory.
    pub(super) fn file_attr(&self, ino: u64, stat: &Stat) -> Attr {
        let mut attr = attr(ino, stat, 1);
        if let Some(links) = lock(&self.links).get(&ino) {
            attr.nlink = *links;
        }
        attr
    }

    /// A name of a file is gone; `here`: from the branch itself, which then counts it no more.
    pub(super) fn lost_name(&self, number: u64, stat: &Stat, here: bool) {
        let mut links = lock(&self.links);
        if let Some(links) = links.get_mut(&number) {
            *links = links.saturating_sub(1);
        } else if !here && stat.nlink > 1 {
            links.insert(number, stat.nlink - 1);
        }
    }

    /// A file has one name more.
    pub(super) fn gained_name(&self, number: u64) {
        if let Some(links) = lock(&self.links).get_mut(&number) {
            *links += 1;
        }
    }
}

/// Branches must not contain each other.
pub(super) fn check_apart(a: &BranchSource, b: &BranchSource) -> Result<(), UnionError> {
    let (label, other) = (a.label(), b.label());
    if let (BranchSource::Dir(a), BranchSource::Dir(b)) = (a, b) {
        let real = |path: &std::path::Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let (a, b) = (real(a), real(b));
        if a == b {
            return Err(UnionError::Twice { branch: label });
        }
        if a.starts_with(&b) {
            return Err(UnionError::Nested { branch: label, other });
        }
        if b.starts_with(&a) {
            return Err(UnionError::Nested { branch: other, other: label });
        }
        return Ok(());
    }
    if label == other { Err(UnionError::Twice { branch: label }) } else { Ok(()) }
}

pub(super) fn dir_state(layers: Vec<Layer>, limit: usize, epoch: u64) -> DirState {
    DirState { layers, limit, dead: false, epoch, version: 0, listing: Mutex::new(None) }
}

/// A new directory's layer, of which nothing is marked yet.
pub(super) fn plain_layer(slot: &Arc<Slot>, dir: super::branch::Handle, id: ObjectId, marks: Marks) -> Layer {
    let (watch, _) = slot.watch(&dir, id);
    Layer { slot: Arc::clone(slot), dir, id, marks: Arc::new(marks), watch }
}

/// What the front end sees of an object. `layers`: how many directories it merges.
pub(super) fn attr(ino: u64, stat: &Stat, layers: usize) -> Attr {
    let mut gfid = [0; 16];
    gfid[8..].copy_from_slice(&ino.to_be_bytes());
    Attr {
        gfid: Gfid(gfid),
        kind: stat.kind,
        mode: stat.mode,
        // Of a merged directory nobody counts the subdirectories: 1 says so, as overlayfs does.
        nlink: if stat.kind == FileKind::Dir && (layers > 1 || ino == ROOT_INO) { 1 } else { stat.nlink },
        uid: stat.uid,
        gid: stat.gid,
        rdev: stat.rdev,
        size: stat.size,
        blocks: stat.blocks,
        atime: stat.atime,
        mtime: stat.mtime,
        ctime: stat.ctime,
    }
}

/// A name to keep.
pub(super) fn name_of(name: &[u8]) -> Name {
    name.into()
}
