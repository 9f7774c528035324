//! Lazy copies: a huge file is copied up block by block, as it is written to (`lazy-cpup=SIZE`).
//!
//! The copy that a copy-up makes is sparse: all that belongs to a file but the data. A *mark* on it (`mark`) says where the lower file is and how many
//! of its bytes still count, the *limit*. A *bitmap* (`bits`) says which blocks below the limit the copy has itself; holes could not, since zeros are
//! content too, and heal makes holes of them. Reads take what is missing from the lower file, writes fill the rest of a block before they
//! change a part of it (`data`). With no block missing the mark goes, and the file is an ordinary one (`flush`).
//!
//! # What a crash can show
//!
//! A block's bit in memory says that it was written since the mount, its bit in the bitmap that it lies on the disk. Bits go from one to the other in batches, at
//! fsync and every few seconds, in this order: the batch is taken, the copy's data is synced, the bits are written, the bitmap is synced. From this
//! follows, whichever of the writes that were not synced a power cut keeps:
//!
//! 1. *A bit that a crash leaves set is true.* It was written after a sync that began when the block was whole in the copy, and no bit is ever
//!    taken back. What is written to the block later goes the way of every file's data.
//! 2. *A block without its bit shows the lower file*, whatever of it reached the copy: the old content of a block that was never synced, since each fsync sets
//!    the bits of all that was written before it. Below the limit nobody sees parts of both, as bits decide by blocks.
//! 3. *The limit does not rise.* A truncation shortens the copy, syncs that, and lowers the mark's limit then. In between the copy's own size is a
//!    limit too, and nothing makes the copy longer before the mark is right. So no byte that was cut off comes back when the file grows again.
//! 4. *The file becomes an ordinary one in one step*: with all blocks and bits synced the mark's limit becomes 0. From there on it asks for neither the
//!    bitmap nor the lower file; removing both marks is tidying.
//! 5. *No bitmap is left without its file.* A copy is made, and its last name taken away, beside a name in the work directory; whoever sweeps that directory removes the
//!    bitmap of a marked file that has no other name (`place`). Where there is no room for that name a bitmap may be left; it does no harm.
//!
//! A failed sync latches, as everywhere: its bits, and all later ones of the file, never reach the disk.
//!
//! The lower file is found by path and recognised by inode number, size and time of change, again after each read. Where that fails there is `EIO`, and
//! the log names both files.

mod bits;
mod complete;
mod data;
mod flush;
mod lower;
mod mark;
mod place;

use super::branch::{At, Branch, Handle, ObjectId, Stat};
use super::core::Union;
use super::names::XATTR_LAZY;
use super::node::lock;
use super::slot::Slot;
use super::{LazyConfig, Res};
use crate::fop::{Errno, FileKind};
use crate::store::Lru;
use bits::{Bits, Ranges};
use lower::Lower;
use mark::Mark;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

pub(super) use data::LazyFile;
pub(super) use place::{How, lacks_xattr_room, sweep_bitmaps};

use flush::tidy;

/// Lower files that are kept open.
const LOWER_OPEN_MAX: usize = 256;
/// Blocks of one file whose bits are not on the disk yet; more are not gathered.
const PENDING_BLOCKS_MAX: u64 = 4096;
/// Files with such blocks.
const DIRTY_FILES_MAX: usize = 128;
/// The most blocks that a file is cut into: its bitmap has 16 MiB. Of larger files the blocks are larger.
const BLOCKS_MAX: u64 = 1 << 27;
/// Sparse files of this size are asked for a mark where no others are.
const ASKED_BYTES_MIN: u64 = 1 << 20;
/// Bytes of one step when a block is filled.
const STEP_BYTES_MAX: u64 = 1 << 20;

/// A file of which not all data was copied up.
#[derive(Debug)]
pub(super) struct Lazy {
    slot: Arc<Slot>,
    id: ObjectId,
    mark: Mark,
    /// Why the mark cannot be used.
    broken: Option<&'static str>,
    state: RwLock<State>,
    /// One flush at a time.
    flushing: Mutex<()>,
    /// A sync failed: no bit reaches the disk any more.
    failed: AtomicBool,
    /// It has no name any more, nor a bitmap: what was written is known in memory alone.
    removed: AtomicBool,
    /// It became an ordinary file.
    done: AtomicBool,
    /// The log says that its lower file is gone.
    told: AtomicBool,
}

#[derive(Debug)]
struct State {
    /// Bytes of the lower file that count. Never more than the copy's size.
    limit: u64,
    /// The same, as the mark on the disk says.
    marked: u64,
    maps: Option<Maps>,
    /// Blocks whose bits are not on the disk, and perhaps some whose bits are.
    pending: Ranges,
    /// The copy, open for writing, while there are such blocks.
    copy: Option<Handle>,
}

/// The bitmap; there when it was needed.
#[derive(Debug)]
struct Maps {
    /// What the copy has.
    ours: Bits,
    /// What the disk says that it has.
    durable: Bits,
    /// Blocks below the limit that it lacks.
    missing: u64,
}

/// See [`Lazy::still`].
pub(super) struct Still<'a>(#[allow(dead_code, reason = "it is held")] RwLockWriteGuard<'a, State>);

impl State {
    /// What has the byte at `at`: whether the copy does, and where that ends, at `end` at the latest.
    fn run(&self, at: u64, end: u64, block: u64) -> (bool, u64) {
        let Some(maps) = self.maps.as_ref().filter(|_| at < self.limit) else { return (true, end) };
        let ours = maps.ours.has(at / block);
        let (last, bound) = (self.limit.div_ceil(block), end.min(self.limit));
        let to = maps.ours.next(!ours, at / block, last).saturating_mul(block).min(bound);
        // What is beyond the limit is the copy's.
        if ours && to == self.limit { (true, end) } else { (ours, to) }
    }

    /// Whether the copy has all of it.
    fn has_all(&self, start: u64, end: u64, block: u64) -> bool {
        start >= end || self.run(start, end, block) == (true, end)
    }

    /// The copy has these blocks now.
    fn took(&mut self, start: u64, end: u64, block: u64) {
        let end = end.min(self.limit);
        let Some(maps) = self.maps.as_mut().filter(|_| start < end) else { return };
        let blocks = start / block..end.div_ceil(block);
        let fresh = maps.ours.add(blocks.clone());
        maps.missing -= fresh;
        if fresh > 0 {
            self.pending.add(blocks);
        }
    }

    /// Bytes from `size` on count no more.
    fn cut(&mut self, size: u64, block: u64) {
        self.limit = self.limit.min(size);
        let blocks = self.limit.div_ceil(block);
        self.pending.cut(blocks);
        if let Some(maps) = &mut self.maps {
            maps.missing = maps.ours.missing(blocks);
        }
    }

    /// Whether the lower file has nothing to say any more.
    fn is_whole(&self) -> bool {
        self.limit == 0 || self.maps.as_ref().is_some_and(|m| m.missing == 0)
    }
}

impl Lazy {
    fn new(slot: &Arc<Slot>, stat: &Stat, mark: Mark, broken: Option<&'static str>) -> Self {
        // A truncation that a crash overtook: the size is a limit too.
        let limit = if broken.is_some() { u64::MAX } else { mark.limit.min(stat.size) };
        let state = State { limit, marked: mark.limit, maps: None, pending: Ranges::default(), copy: None };
        Self {
            slot: Arc::clone(slot),
            id: stat.id,
            mark,
            broken,
            state: RwLock::new(state),
            flushing: Mutex::new(()),
            failed: AtomicBool::new(false),
            removed: AtomicBool::new(false),
            done: AtomicBool::new(false),
            told: AtomicBool::new(false),
        }
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it became an ordinary file.
    pub(super) fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    fn branch(&self) -> &dyn Branch {
        &*self.slot.branch
    }

    /// Nothing of it is copied or written while this lives: attributes that are put back after a copy are not others' then.
    pub(super) fn still(&self) -> Still<'_> {
        Still(self.state_mut())
    }

    /// The space that the file takes, in units of 512 bytes: of the copy and of the lower file together, as far as the size allows. None at all would tell
    /// others that it is one hole.
    pub(super) fn blocks(&self, stat: &Stat) -> u64 {
        /// Sectors of a page.
        const UNIT: u64 = 8;
        if self.is_done() {
            return stat.blocks;
        }
        let most = stat.size.div_ceil(UNIT * 512) * UNIT;
        stat.blocks.saturating_add(self.mark.blocks).min(most).max(stat.blocks)
    }
}

/// What a union knows of its lazy copies.
pub(super) struct LazyFiles {
    /// From how many bytes on files are copied up lazily; `u64::MAX`: none are.
    bytes_min: AtomicU64,
    config: LazyConfig,
    known: Mutex<(HashMap<ObjectId, Weak<Lazy>>, usize)>,
    /// Those with bits that are not on the disk.
    dirty: Mutex<Dirty>,
    /// By mark as well: numbers of files are given out again.
    lowers: Mutex<Lru<(ObjectId, u64), Lower>>,
    /// Held while last names are taken away.
    removing: Mutex<()>,
    /// Held while a file that nobody knows is made known, from reading its mark on.
    meeting: Mutex<()>,
    /// Held for reading from the decision to copy lazily until the copy is in its place, for writing while a branch that such copies may need goes.
    coming: RwLock<()>,
}

#[derive(Debug, Default)]
struct Dirty {
    files: HashMap<ObjectId, Arc<Lazy>>,
    /// A thread flushes them.
    flushed: bool,
}

impl LazyFiles {
    pub(super) fn new(config: &LazyConfig) -> Arc<Self> {
        Arc::new(Self {
            bytes_min: AtomicU64::new(config.cpup.unwrap_or(u64::MAX)),
            config: config.clone(),
            known: Mutex::default(),
            dirty: Mutex::default(),
            lowers: Mutex::new(Lru::new(LOWER_OPEN_MAX)),
            removing: Mutex::new(()),
            meeting: Mutex::new(()),
            coming: RwLock::new(()),
        })
    }

    /// How it is configured now.
    pub(super) fn config(&self) -> LazyConfig {
        let bytes_min = self.bytes_min.load(Ordering::Acquire);
        LazyConfig { cpup: (bytes_min != u64::MAX).then_some(bytes_min), ..self.config.clone() }
    }

    pub(super) fn set_cpup(&self, cpup: Option<u64>) {
        self.bytes_min.store(cpup.unwrap_or(u64::MAX), Ordering::Release);
    }

    /// Bytes of a block of a file of this size.
    fn block_bytes(&self, size: u64) -> u64 {
        let mut block = self.config.block_bytes.max(1);
        while size.div_ceil(block) > BLOCKS_MAX {
            block *= 2;
        }
        block
    }

    /// `slot`: one that came again is another one.
    fn known(&self, slot: &Arc<Slot>, id: ObjectId) -> Option<Arc<Lazy>> {
        lock(&self.known).0.get(&id).and_then(Weak::upgrade).filter(|lazy| !lazy.is_done() && Arc::ptr_eq(&lazy.slot, slot))
    }

    /// Everybody shall have this one from now on. What was known under its number is gone.
    fn keep(&self, lazy: Lazy) -> Arc<Lazy> {
        let lazy = Arc::new(lazy);
        let mut known = lock(&self.known);
        if known.0.len() >= known.1 {
            known.0.retain(|_, weak| weak.strong_count() > 0);
            known.1 = (known.0.len() * 2).max(64);
        }
        known.0.insert(lazy.id, Arc::downgrade(&lazy));
        lazy
    }

    /// Whether there may be any.
    pub(super) fn any(&self) -> bool {
        !lock(&self.known).0.is_empty()
    }

    fn live(&self) -> Vec<Arc<Lazy>> {
        lock(&self.known).0.values().filter_map(Weak::upgrade).collect()
    }

    fn removing(&self) -> MutexGuard<'_, ()> {
        lock(&self.removing)
    }

    /// Held until a lazy copy is in its place.
    pub(super) fn coming(&self) -> RwLockReadGuard<'_, ()> {
        self.coming.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Held while a branch goes or becomes writable: nothing begins to need it.
    pub(super) fn none_comes(&self) -> RwLockWriteGuard<'_, ()> {
        self.coming.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lower files that are kept open hold a branch.
    pub(super) fn close_lowers(&self) {
        lock(&self.lowers).clear();
    }
}

/// Whether a file is so large, and takes so little space, that it may well be a lazy copy. Few others are.
pub(super) fn may_lack_data(stat: &Stat) -> bool {
    stat.kind == FileKind::File && stat.size >= ASKED_BYTES_MIN && stat.blocks.saturating_mul(512) < stat.size
}

impl Union {
    /// What a file's mark says, if it has one.
    pub(super) fn lazy_of(&self, slot: &Arc<Slot>, at: At<'_>, stat: &Stat) -> Res<Option<Arc<Lazy>>> {
        if stat.kind != FileKind::File {
            return Ok(None);
        }
        if let Some(known) = self.lazy.known(slot, stat.id) {
            return Ok(Some(known));
        }
        // Between the reading of the mark and this file's becoming known nobody else may know it, change its mark, and forget it.
        let _meeting = lock(&self.lazy.meeting);
        if let Some(known) = self.lazy.known(slot, stat.id) {
            return Ok(Some(known));
        }
        let value = match slot.branch.get_xattr(at, XATTR_LAZY) {
            Ok(value) => value,
            Err(Errno::ENODATA | Errno::EOPNOTSUPP) => return Ok(None),
            Err(e) => return Err(e),
        };
        let (mark, broken) = match Mark::parse(&value) {
            Some(mark) if mark.limit == 0 => {
                tidy(slot, at, &mark, stat.ino);
                return Ok(None);
            }
            Some(mark) if mark.own == stat.ino => (mark, None),
            Some(mark) => (mark, Some("it is another file's mark: somebody copied the file, and not through a union")),
            None => (Mark { block: 1, ..Mark::default() }, Some("it is not readable by this version")),
        };
        // Its size counts too, and may be another one by now.
        let now = slot.branch.stat(at)?;
        if now.id != stat.id {
            return Err(Errno::ESTALE);
        }
        Ok(Some(self.lazy.keep(Lazy::new(slot, &now, mark, broken))))
    }
}
