//! [`Slot`]: a branch in its place in the union, with what a writable one keeps at its root.

use super::branch::{At, Branch, Handle, LocalBranch, New, ObjectId, Open, Stat, VolumeBranch};
use super::lazy::sweep_bitmaps;
use super::names::{PLINKS, VOLATILE, WHITEOUT_BASE, WORK};
use super::watch::{Watched, Watcher};
use super::whiteout::leftovers;
use super::{BranchConfig, BranchSource, Layout, Perm, Res, UnionConfig, UnionError};
use crate::fop::{Errno, FileKind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

/// A branch in its place.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) source: BranchSource,
    pub(super) branch: Arc<dyn Branch>,
    pub(super) root: Handle,
    /// The file system of its root, as [`super::branch::Stat::dev`] says it.
    pub(super) dev: u64,
    perm: RwLock<Perm>,
    rank: AtomicUsize,
    gone: AtomicBool,
    own: RwLock<Option<Arc<Own>>>,
    watcher: OnceLock<Arc<Watcher>>,
    /// Files are made without a name here, but get none.
    named_only: AtomicBool,
}

/// What a writable branch keeps at its root.
#[derive(Debug)]
pub(super) struct Own {
    /// Where this union makes objects before they get their place. Nobody else's.
    pub(super) work: Handle,
    instance: Vec<u8>,
    seq: AtomicU64,
    /// `.wh..wh.plnk`, where hard links are kept together.
    pub(super) plinks: Option<Handle>,
    pub(super) any_plinks: AtomicBool,
}

impl Own {
    /// A name that is free in the work directory.
    pub(super) fn temp_name(&self) -> Vec<u8> {
        format!("{:x}", self.seq.fetch_add(1, Ordering::Relaxed)).into_bytes()
    }
}

pub(super) const OURS: New<'static> = New { kind: FileKind::Dir, mode: 0o700, rdev: 0, target: b"", uid: 0, gid: 0 };

impl Slot {
    /// Opens a branch; [`Slot::prepare`] makes it writable.
    pub(super) fn open(config: &BranchConfig) -> Result<Arc<Self>, UnionError> {
        let failed = |doing| {
            let branch = config.source.label();
            move |source| UnionError::Branch { branch, doing, source }
        };
        let branch: Arc<dyn Branch> = match &config.source {
            BranchSource::Dir(path) => Arc::new(LocalBranch::open(path).map_err(failed("open the directory"))?),
            BranchSource::Volume { label, volume, subdir } => {
                let opened = VolumeBranch::open(label, Arc::clone(volume), subdir);
                Arc::new(opened.map_err(failed("open the directory of the volume"))?)
            }
            BranchSource::Other { branch, .. } => Arc::clone(branch),
        };
        let root = branch.root();
        let stat = branch.stat(At::Open(&root)).map_err(failed("stat the root"))?;
        Ok(Arc::new(Self {
            source: config.source.clone(),
            branch,
            root,
            dev: stat.dev,
            perm: RwLock::new(config.perm),
            rank: AtomicUsize::new(usize::MAX),
            gone: AtomicBool::new(false),
            own: RwLock::new(None),
            watcher: OnceLock::new(),
            named_only: AtomicBool::new(false),
        }))
    }

    /// Opens a branch of this union, and makes it ready for writing if that is wanted.
    pub(super) fn ready(branch: &BranchConfig, config: &UnionConfig, instance: u64) -> Result<Arc<Self>, UnionError> {
        let slot = Self::open(branch)?;
        if branch.perm.writable() {
            slot.prepare(config, instance)?;
        }
        Ok(slot)
    }

    /// What an error of the branch is to the union.
    pub(super) fn failed(&self, doing: &'static str) -> impl Fn(Errno) -> UnionError + '_ {
        move |source| UnionError::Branch { branch: self.source.label(), doing, source }
    }

    /// Directories of the branch are watched from now on.
    pub(super) fn watch_by(&self, watcher: Option<&Arc<Watcher>>) {
        if let Some(watcher) = watcher {
            self.watcher.get_or_init(|| Arc::clone(watcher));
        }
    }

    /// Watches a directory, where that is wanted and possible; whether it was not watched before.
    pub(super) fn watch(&self, dir: &Handle, id: ObjectId) -> (Option<Arc<Watched>>, bool) {
        let Some(watcher) = self.watcher.get() else { return (None, false) };
        let Some(open) = self.branch.descriptor(dir) else {
            watcher.cannot(&format_args!("{} is no directory of this machine", self.source.label()));
            return (None, false);
        };
        watcher.add(&open, id).map_or((None, false), |(watched, fresh)| (Some(watched), fresh))
    }

    /// Its position: 0 is the top.
    pub(super) fn rank(&self) -> usize {
        self.rank.load(Ordering::Acquire)
    }

    pub(super) fn set_rank(&self, rank: usize) {
        self.rank.store(rank, Ordering::Release);
    }

    pub(super) fn perm(&self) -> Perm {
        *self.perm.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_perm(&self, perm: Perm) {
        *self.perm.write().unwrap_or_else(PoisonError::into_inner) = perm;
    }

    pub(super) fn writable(&self) -> bool {
        self.perm().writable() && !self.is_gone()
    }

    /// Makes a file without a name, where it can have one later.
    pub(super) fn make_unnamed(&self, dir: &Handle, new: &New<'_>) -> Res<Option<(Stat, Handle)>> {
        if self.named_only.load(Ordering::Relaxed) { Ok(None) } else { self.branch.make_unnamed(dir, new) }
    }

    /// From now on all files are made by name.
    pub(super) fn make_by_name(&self, why: Errno) {
        tracing::info!(branch = self.source.label(), %why, "a file that was made without a name could not be given one; copies are made by name from now on");
        self.named_only.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    pub(super) fn set_gone(&self) {
        self.gone.store(true, Ordering::Release);
    }

    pub(super) fn config(&self) -> BranchConfig {
        BranchConfig { source: self.source.clone(), perm: self.perm() }
    }

    /// What a writable branch keeps at its root.
    pub(super) fn own(&self) -> Res<Arc<Own>> {
        self.own.read().unwrap_or_else(PoisonError::into_inner).clone().ok_or(Errno::EROFS)
    }

    /// Makes ready for writing: bookkeeping at the root, a work directory, leftovers of dead unions swept.
    pub(super) fn prepare(&self, config: &UnionConfig, instance: u64) -> Result<(), UnionError> {
        let layout = config.layout;
        if layout == Layout::Overlay && !self.branch.can_hold_overlay() {
            return Err(UnionError::NotSupportedYet("overlayfs's layout on a volume"));
        }
        // Else the mark is the union's own: the branch was writable before, and read-only in between.
        let first = self.own().is_err();
        if first {
            self.check_not_marked()?;
        }
        let own = self.make_own(layout, config.plink, instance).map_err(self.failed("make the bookkeeping of a writable branch"))?;
        if first && config.volatile {
            self.mark_volatile()?;
        }
        *self.own.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(own));
        Ok(())
    }

    /// Refuses what was left half synced.
    fn check_not_marked(&self) -> Result<(), UnionError> {
        match self.branch.stat(At::Name(&self.root, VOLATILE)) {
            Ok(_) => Err(UnionError::Volatile { branch: self.source.label() }),
            Err(Errno::ENOENT) => Ok(()),
            Err(e) => Err(self.failed("look for the mark of volatile")(e)),
        }
    }

    /// Leaves the mark, on the disk before anything that it warns of.
    fn mark_volatile(&self) -> Result<(), UnionError> {
        if matches!(self.source, BranchSource::Volume { .. }) {
            return Err(UnionError::NotSupportedYet("volatile with a writable branch on a volume"));
        }
        let marked = self.branch.make(&self.root, VOLATILE, &OURS).and_then(|_| {
            let synced = self.branch.fsync(&self.root, false);
            synced.inspect_err(|_| leftovers(self.branch.rmdir(&self.root, VOLATILE)))
        });
        marked.map_err(self.failed("leave the mark of volatile"))
    }

    /// Makes what was written durable, and takes the mark away.
    fn end_volatile(&self) {
        let ended = self
            .branch
            .sync_all()
            .and_then(|()| self.branch.rmdir(&self.root, VOLATILE))
            .and_then(|()| self.branch.fsync(&self.root, false));
        if let Err(e) = ended {
            tracing::error!(branch = self.source.label(), %e, "what was written with volatile is not certain to be on the disk; the branch keeps its mark");
        }
    }

    fn make_own(&self, layout: Layout, plink: bool, instance: u64) -> Res<Own> {
        let instance = format!("{instance:016x}").into_bytes();
        let work_root = self.directory(&self.root, WORK)?;
        let work = self.directory(&work_root, &instance)?;
        self.branch.claim(&work)?;
        self.sweep(&work_root, &instance)?;
        if layout == Layout::Aufs {
            self.make_base()?;
        }
        let plinks = if plink { Some(self.directory(&self.root, PLINKS)?) } else { None };
        let mut any = false;
        if let Some(dir) = &plinks {
            self.branch.list(dir, &mut |_| any = true)?;
        }
        Ok(Own { work, instance, seq: AtomicU64::new(0), plinks, any_plinks: AtomicBool::new(any) })
    }

    pub(super) fn directory(&self, dir: &Handle, name: &[u8]) -> Res<Handle> {
        match self.branch.make(dir, name, &OURS) {
            Ok(_) | Err(Errno::EEXIST) => self.branch.open(At::Name(dir, name), Open::Path),
            Err(e) => Err(e),
        }
    }

    fn make_base(&self) -> Res<()> {
        match self.branch.make(&self.root, WHITEOUT_BASE, &New { kind: FileKind::File, mode: 0o444, ..OURS }) {
            Ok(_) | Err(Errno::EEXIST) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Removes the work directories whose unions are dead.
    fn sweep(&self, work_root: &Handle, instance: &[u8]) -> Res<()> {
        for name in self.names(work_root)? {
            if name == instance {
                continue;
            }
            let dead = match self.branch.open(At::Name(work_root, &name), Open::Path) {
                Ok(dir) => self.branch.claim(&dir)?,
                Err(Errno::ENOENT) => continue,
                Err(e) => return Err(e),
            };
            if dead {
                if let Ok(dir) = self.branch.open(At::Name(work_root, &name), Open::Path) {
                    sweep_bitmaps(self, &dir)?;
                }
                self.delete_tree(work_root, &name)?;
            }
        }
        Ok(())
    }

    /// Leaves nothing of this union behind but what the layout is made of.
    pub(super) fn close(&self, config: &UnionConfig) {
        let Some(own) = self.own.write().unwrap_or_else(PoisonError::into_inner).take() else { return };
        // What is left there is what could not be removed before.
        let _ = sweep_bitmaps(self, &own.work);
        if let Ok(work_root) = self.branch.open(At::Name(&self.root, WORK), Open::Path) {
            let _ = self.delete_tree(&work_root, &own.instance);
        }
        if config.layout == Layout::Overlay {
            // Only where nothing else is in them: overlayfs would show them.
            let _ = self.branch.rmdir(&self.root, WORK);
            let _ = self.branch.rmdir(&self.root, PLINKS);
        }
        if config.volatile {
            self.end_volatile();
        }
    }

    pub(super) fn names(&self, dir: &Handle) -> Res<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        self.branch.list(dir, &mut |e| names.push(e.name.to_vec()))?;
        Ok(names)
    }

    /// Removes an object with all that is in it.
    pub(super) fn delete_tree(&self, dir: &Handle, name: &[u8]) -> Res<()> {
        let unlinked = self.branch.unlink(dir, name);
        if !matches!(unlinked, Err(Errno::EISDIR | Errno::EPERM)) {
            return unlinked.or_else(|e| if e == Errno::ENOENT { Ok(()) } else { Err(e) });
        }
        let inner = self.branch.open(At::Name(dir, name), Open::Path)?;
        for child in self.names(&inner)? {
            self.delete_tree(&inner, &child)?;
        }
        self.branch.rmdir(dir, name)
    }

    /// A new file for whiteouts to be hard links of: the old one has as many as it can have.
    pub(super) fn renew_base(&self) -> Res<()> {
        let own = self.own()?;
        let temp = own.temp_name();
        self.branch.make(&own.work, &temp, &New { kind: FileKind::File, mode: 0o444, ..OURS })?;
        self.branch.rename(&own.work, &temp, &self.root, WHITEOUT_BASE, 0)
    }
}
