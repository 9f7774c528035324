//! How bits get to the disk, and how a file becomes an ordinary one. The order is argued for in the module's text.

use super::super::Res;
use super::super::branch::{At, Handle, Open};
use super::super::core::Union;
use super::super::names::{LAZY, XATTR_LAZY};
use super::super::node::lock;
use super::super::numbers;
use super::super::slot::Slot;
use super::bits::Ranges;
use super::data::LazyFile;
use super::mark::Mark;
use super::{DIRTY_FILES_MAX, Lazy, LazyFiles, PENDING_BLOCKS_MAX, STEP_BYTES_MAX, State};
use crate::fop::Errno;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Bytes of the bitmap between two that changed, up to which they are written at once.
const GAP_BYTES_MAX: usize = 512;

impl LazyFile<'_> {
    /// Lets the mark say what the limit is. Nothing may make the copy longer before that.
    pub(super) fn lower_mark(self, state: &mut State) -> Res<()> {
        let lazy = self.lazy;
        if state.marked <= state.limit || lazy.broken.is_some() || lazy.removed.load(Ordering::Acquire) {
            return Ok(());
        }
        // What the mark does not say yet, the size does.
        self.branch().fsync(self.copy, false)?;
        lazy.write_mark(self.copy, state.limit)?;
        state.marked = state.limit;
        Ok(())
    }
}

/// Why bits did not reach the disk.
enum Unflushed {
    /// A sync failed: what the disk has is not known.
    ForGood(Errno),
    /// They are pending again.
    YetTo(Errno),
}

/// A full disk, or one's share of it.
pub(super) fn is_no_room(e: Errno) -> bool {
    matches!(e, Errno::ENOSPC | Errno::EDQUOT)
}

impl Lazy {
    fn write_mark(&self, copy: &Handle, limit: u64) -> Res<()> {
        let mark = Mark { limit, ..self.mark.clone() };
        self.branch().set_xattr(At::Open(copy), XATTR_LAZY, &mark.to_bytes(), 0)
    }

    /// The bytes that hold these blocks' bits, in stretches.
    fn stretches(blocks: &Ranges) -> Vec<Range<usize>> {
        let mut out: Vec<Range<usize>> = Vec::new();
        for range in blocks.iter() {
            let (Ok(start), Ok(end)) = (usize::try_from(range.start / 8), usize::try_from(range.end.div_ceil(8))) else { continue };
            match out.last_mut() {
                Some(last) if start < last.end + GAP_BYTES_MAX => last.end = last.end.max(end),
                _ => out.push(start..end),
            }
        }
        out
    }

    /// Writes the bits of blocks whose data is synced.
    fn write_bits(&self, blocks: &Ranges) -> Res<()> {
        let parts: Vec<(u64, Vec<u8>)> = {
            let mut state = self.state_mut();
            let Some(maps) = &mut state.maps else { return Ok(()) };
            for range in blocks.iter() {
                maps.durable.add(range);
            }
            Self::stretches(blocks).into_iter().map(|r| (r.start as u64, maps.durable.bytes(r).to_vec())).collect()
        };
        let branch = self.branch();
        let dir = branch.open(At::Name(&self.slot.root, LAZY), Open::Path)?;
        let file = branch.open(At::Name(&dir, &self.mark.bitmap()), Open::Write)?;
        let step = usize::try_from(STEP_BYTES_MAX).expect("a step");
        for (at, bytes) in &parts {
            for (i, part) in bytes.chunks(step).enumerate() {
                branch.write(&file, at + (i * step) as u64, part)?;
            }
        }
        branch.fsync(&file, true).map_err(|e| if is_no_room(e) { Errno::EIO } else { e })
    }

    /// One round; whether another one is worth it.
    fn flush_round(&self, copy: Option<&Handle>, data_only: bool) -> Result<bool, Unflushed> {
        let (blocks, kept) = {
            let mut state = self.state_mut();
            (std::mem::take(&mut state.pending), state.copy.take())
        };
        let Some(copy) = copy.or(kept.as_ref()) else { return Ok(false) };
        self.branch().fsync(copy, data_only).map_err(Unflushed::ForGood)?;
        if !blocks.is_empty() && !self.removed.load(Ordering::Acquire) {
            match self.write_bits(&blocks) {
                // It was removed meanwhile, or cut to nothing.
                Err(Errno::ENOENT) if self.removed.load(Ordering::Acquire) || self.is_done() => {}
                // Their data is synced all the same, and there may be room later.
                Err(e) if is_no_room(e) => {
                    let mut state = self.state_mut();
                    blocks.iter().for_each(|range| state.pending.add(range));
                    state.copy.get_or_insert_with(|| copy.clone());
                    return Err(Unflushed::YetTo(e));
                }
                other => other.map_err(Unflushed::ForGood)?,
            }
        }
        let mut state = self.state_mut();
        if !state.is_whole() || self.is_done() || !self.slot.writable() {
            return Ok(false);
        }
        if state.pending.is_empty() {
            self.become_ordinary(&mut state, copy);
        }
        Ok(!state.pending.is_empty())
    }

    /// It has no bytes of the lower file any more: all blocks below the limit, and their bits, are synced, or the limit is 0.
    pub(super) fn become_ordinary(&self, state: &mut State, copy: &Handle) {
        let removed = self.removed.load(Ordering::Acquire);
        if !removed
            && self.broken.is_none()
            && let Err(e) = self.write_mark(copy, 0)
        {
            tracing::warn!(error = %e, "a file that is whole keeps its mark of being copied up lazily");
            return;
        }
        (state.limit, state.marked, state.maps, state.copy) = (0, 0, None, None);
        state.pending.clear();
        self.done.store(true, Ordering::Release);
        if self.broken.is_some() {
            super::super::whiteout::leftovers(self.branch().remove_xattr(At::Open(copy), XATTR_LAZY));
        } else if !removed {
            tidy(&self.slot, At::Open(copy), &self.mark, self.mark.own);
        }
    }
}

/// Takes away what an ordinary file does not need.
pub(super) fn tidy(slot: &Slot, copy: At<'_>, mark: &Mark, own: u64) {
    if !slot.writable() {
        return;
    }
    let drop_all = || {
        if mark.own == own {
            drop_bitmap(slot, mark)?;
        }
        match slot.branch.remove_xattr(copy, XATTR_LAZY) {
            Err(Errno::ENODATA) => {}
            other => other?,
        }
        // From now on nobody need ask.
        numbers::carry_plainly(&*slot.branch, copy, own)
    };
    if let Err(e) = drop_all() {
        tracing::warn!(error = %e, "the bitmap of a file that is whole stays");
    }
}

/// Removes a bitmap, if there is one.
pub(super) fn drop_bitmap(slot: &Slot, mark: &Mark) -> Res<()> {
    let dropped = slot.branch.open(At::Name(&slot.root, LAZY), Open::Path).and_then(|dir| slot.branch.unlink(&dir, &mark.bitmap()));
    if dropped == Err(Errno::ENOENT) { Ok(()) } else { dropped }
}

impl LazyFiles {
    /// Syncs a copy's data, and the bits of all that was written before. `copy`: to be synced in any case.
    pub(in crate::union) fn flush(&self, lazy: &Arc<Lazy>, copy: Option<&Handle>, data_only: bool) -> Res<()> {
        let _one = lock(&lazy.flushing);
        // Before the blocks are taken: who writes more meanwhile notes it again.
        lock(&self.dirty).files.remove(&lazy.id);
        if lazy.failed.load(Ordering::Acquire) {
            return Err(Errno::EIO);
        }
        loop {
            match lazy.flush_round(copy, data_only) {
                Ok(false) => {
                    if lazy.is_done() {
                        self.close_lower(lazy);
                    }
                    return Ok(());
                }
                Ok(true) => {}
                Err(Unflushed::YetTo(e)) => {
                    tracing::warn!(error = %e, branch = lazy.slot.source.label(), inode = lazy.id.1, "what was written to a file of which not \
                        all was copied up is not safe yet; it is tried again");
                    lock(&self.dirty).files.insert(lazy.id, Arc::clone(lazy));
                    return Err(e);
                }
                Err(Unflushed::ForGood(e)) => {
                    lazy.failed.store(true, Ordering::Release);
                    tracing::error!(error = %e, branch = lazy.slot.source.label(), inode = lazy.id.1, "what was written to a file of which \
                        not all was copied up could not be synced; the next mount will not show it");
                    return Err(e);
                }
            }
        }
    }

    /// Syncs all that is dirty.
    pub(in crate::union) fn flush_all(&self) {
        let dirty: Vec<_> = lock(&self.dirty).files.values().cloned().collect();
        for lazy in dirty {
            // It latches, or is tried again, and is logged.
            let _ = self.flush(&lazy, None, true);
        }
    }

    /// A file has bits that are not on the disk; whether that are as many files as there may be.
    fn note_dirty(self: &Arc<Self>, lazy: &Arc<Lazy>) -> bool {
        let mut dirty = lock(&self.dirty);
        dirty.files.insert(lazy.id, Arc::clone(lazy));
        if !dirty.flushed
            && let Some(after) = self.config.flush_after
        {
            let files = Arc::clone(self);
            let started = std::thread::Builder::new().name("union-lazy".into()).spawn(move || files.flush_now_and_then(after));
            dirty.flushed = started.is_ok();
        }
        dirty.files.len() > DIRTY_FILES_MAX
    }

    /// A thread's life: it ends when nothing is dirty.
    fn flush_now_and_then(&self, after: Duration) {
        loop {
            std::thread::sleep(after);
            self.flush_all();
            let mut dirty = lock(&self.dirty);
            if dirty.files.is_empty() {
                dirty.flushed = false;
                return;
            }
        }
    }

    /// Who still needs it opens it again.
    fn close_lower(&self, lazy: &Lazy) {
        lock(&self.lowers).remove((lazy.id, lazy.mark.id));
    }

    /// A file's last name is gone: no bit of it matters to anybody else.
    pub(super) fn forget(&self, lazy: &Lazy) {
        lazy.removed.store(true, Ordering::Release);
        lock(&self.dirty).files.remove(&lazy.id);
        self.close_lower(lazy);
        let mut state = lazy.state_mut();
        state.pending.clear();
        state.copy = None;
    }
}

impl Union {
    /// Notes what [`State::took`] left to do; whether it should be done now.
    pub(super) fn note_dirty(&self, file: LazyFile<'_>, state: &mut State) -> bool {
        if file.lazy.removed.load(Ordering::Acquire) || file.lazy.failed.load(Ordering::Acquire) {
            state.pending.clear();
            return false;
        }
        if state.pending.is_empty() && !state.is_whole() {
            return false;
        }
        state.copy.get_or_insert_with(|| file.copy.clone());
        self.lazy.note_dirty(file.lazy) || state.pending.blocks() >= PENDING_BLOCKS_MAX
    }
}
