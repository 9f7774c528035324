//! Reading and changing the data of lazy copies.

use super::super::Res;
use super::super::branch::{At, Branch, Handle, Open, SEEK_DATA, SEEK_HOLE, copy_data};
use super::super::core::Union;
use super::super::names::LAZY;
use super::super::node::Node;
use super::bits::{Bits, bytes_for};
use super::lower::lost_bitmap;
use super::{Lazy, Maps, STEP_BYTES_MAX, State};
use crate::fop::{Errno, FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE};
use std::sync::{Arc, RwLockReadGuard, RwLockWriteGuard};

/// A lazy copy, open.
#[derive(Clone, Copy)]
pub(in crate::union) struct LazyFile<'a> {
    pub(in crate::union) node: &'a Node,
    pub(in crate::union) lazy: &'a Arc<Lazy>,
    pub(in crate::union) copy: &'a Handle,
}

impl<'a> LazyFile<'a> {
    pub(super) fn branch(self) -> &'a dyn Branch {
        self.lazy.branch()
    }

    /// Reads the bitmap, when it was not read yet.
    fn load(self, state: &mut State) -> Res<()> {
        if state.maps.is_some() || state.limit == 0 {
            return Ok(());
        }
        Union::usable(self.node, self.lazy)?;
        state.maps = Some(self.lazy.read_maps(state.limit)?.map_err(|why| lost_bitmap(self.node, self.lazy, why))?);
        Ok(())
    }

    pub(super) fn state(self) -> Res<RwLockReadGuard<'a, State>> {
        loop {
            let state = self.lazy.state();
            if state.maps.is_some() || state.limit == 0 {
                return Ok(state);
            }
            drop(state);
            drop(self.state_mut()?);
        }
    }

    pub(super) fn state_mut(self) -> Res<RwLockWriteGuard<'a, State>> {
        let mut state = self.lazy.state_mut();
        self.load(&mut state)?;
        Ok(state)
    }

    fn block(self) -> u64 {
        self.lazy.mark.block
    }
}

impl Lazy {
    /// Reads the bitmap; why it cannot be used.
    fn read_maps(&self, limit: u64) -> Res<Result<Maps, &'static str>> {
        let mut bytes = vec![0; usize::try_from(bytes_for(self.mark.size.div_ceil(self.mark.block))).map_err(|_| Errno::EFBIG)?];
        let branch = self.branch();
        let read = branch
            .open(At::Name(&self.slot.root, LAZY), Open::Path)
            .and_then(|dir| branch.open(At::Name(&dir, &self.mark.bitmap()), Open::Read))
            .and_then(|file| branch.read(&file, 0, &mut bytes));
        match read {
            Ok(n) if n == bytes.len() => {}
            Ok(_) => return Ok(Err("is too short")),
            Err(Errno::ENOENT) => return Ok(Err("is gone")),
            Err(e) => return Err(e),
        }
        let ours = Bits::new(bytes);
        let missing = ours.missing(limit.div_ceil(self.mark.block));
        Ok(Ok(Maps { durable: ours.clone(), ours, missing }))
    }

    /// Its bitmap is about to go: what it says is kept, for whoever has the file open.
    pub(super) fn remember(&self) -> Res<()> {
        let mut state = self.state_mut();
        if state.maps.is_none()
            && state.limit > 0
            && self.broken.is_none()
            && let Ok(maps) = self.read_maps(state.limit)?
        {
            state.maps = Some(maps);
        }
        Ok(())
    }
}

impl Union {
    /// pread(2).
    pub(in crate::union) fn lazy_read(&self, file: LazyFile<'_>, offset: u64, buf: &mut [u8]) -> Res<usize> {
        let end = offset.saturating_add(buf.len() as u64);
        let state = file.state()?;
        let first = state.run(offset, end, file.block());
        // Of what lies wholly in the lower file the copy has nothing to say.
        let n = if first == (false, end) { buf.len() } else { file.branch().read(file.copy, offset, buf)? };
        let (mut at, end) = (offset, offset + n as u64);
        while at < end {
            let (ours, to) = state.run(at, end, file.block());
            if !ours {
                let part = |at: u64| usize::try_from(at - offset).expect("within the buffer");
                self.read_lower(file.node, file.lazy, at, &mut buf[part(at)..part(to)])?;
            }
            at = to;
        }
        Ok(n)
    }

    /// pwrite(2).
    pub(in crate::union) fn lazy_write(&self, file: LazyFile<'_>, offset: u64, data: &[u8]) -> Res<()> {
        let end = offset.checked_add(data.len() as u64).ok_or(Errno::EFBIG)?;
        {
            let state = file.state()?;
            if state.marked <= state.limit && state.has_all(offset, end.min(state.limit), file.block()) {
                return file.branch().write(file.copy, offset, data);
            }
        }
        self.take_over(file, offset, end, |branch| branch.write(file.copy, offset, data))
    }

    /// Carries out a change of everything in a range, after which the copy has it.
    fn take_over(&self, file: LazyFile<'_>, start: u64, end: u64, change: impl FnOnce(&dyn Branch) -> Res<()>) -> Res<()> {
        let full = {
            let mut state = file.state_mut()?;
            file.lower_mark(&mut state)?;
            self.fill_edges(file, &state, start, end)?;
            change(file.branch())?;
            state.took(start, end, file.block());
            self.note_dirty(file, &mut state)
        };
        if full { self.lazy.flush(file.lazy, None, true) } else { Ok(()) }
    }

    /// Copies what the first and the last block of a range have outside of it.
    fn fill_edges(&self, file: LazyFile<'_>, state: &State, start: u64, end: u64) -> Res<()> {
        let (block, limit) = (file.block(), state.limit);
        if start >= limit || start >= end {
            return Ok(());
        }
        let head = start / block * block;
        if !state.run(start, limit, block).0 {
            self.fill(file, head, start)?;
        }
        let last = end - 1;
        if last < limit && !state.run(last, limit, block).0 {
            self.fill(file, end, (last / block * block).saturating_add(block).min(limit))?;
        }
        Ok(())
    }

    /// Copies a range, all of it below the limit, from the lower file. Zeros are written too where the copy has none.
    pub(super) fn fill(&self, file: LazyFile<'_>, start: u64, end: u64) -> Res<()> {
        let mut at = start;
        let mut buf = Vec::new();
        while at < end {
            let step = (end - at).min(STEP_BYTES_MAX);
            buf.resize(usize::try_from(step).expect("a step"), 0);
            self.read_lower(file.node, file.lazy, at, &mut buf)?;
            file.branch().write(file.copy, at, &buf)?;
            at += step;
        }
        Ok(())
    }

    /// fallocate(2).
    pub(in crate::union) fn lazy_fallocate(&self, file: LazyFile<'_>, offset: u64, len: u64, mode: u32) -> Res<()> {
        let end = offset.checked_add(len).ok_or(Errno::EFBIG)?;
        match mode & !FALLOC_KEEP_SIZE {
            // Space for what is not copied yet: no content changes.
            0 => {
                let mut state = file.state_mut()?;
                file.lower_mark(&mut state)?;
                file.branch().fallocate(file.copy, offset, len, mode)
            }
            FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE => {
                self.take_over(file, offset, end, |branch| branch.fallocate(file.copy, offset, len, mode))
            }
            // What moves data must have it.
            _ => {
                while !self.complete_some(file, u64::MAX)? {}
                file.branch().fallocate(file.copy, offset, len, mode)
            }
        }
    }

    /// lseek(2).
    pub(in crate::union) fn lazy_seek(&self, file: LazyFile<'_>, offset: u64, whence: u32) -> Res<u64> {
        let state = file.state()?;
        let size = file.branch().stat(At::Open(file.copy))?.size;
        if offset >= size || state.limit == 0 {
            return file.branch().lseek(file.copy, offset, whence);
        }
        let mut at = offset;
        while at < size {
            let (ours, to) = state.run(at, size, file.block());
            let found = if !ours {
                self.seek_lower(file.node, file.lazy, at, to, whence)?
            } else {
                match file.branch().lseek(file.copy, at, whence) {
                    Ok(found) => found.min(to),
                    Err(Errno::ENXIO) => to,
                    Err(e) => return Err(e),
                }
            };
            if found < to {
                return Ok(found);
            }
            at = to;
        }
        if whence == SEEK_DATA { Err(Errno::ENXIO) } else { Ok(size) }
    }

    /// A change of size, by `set` on the copy as it lies.
    pub(in crate::union) fn lazy_truncate(&self, file: LazyFile<'_>, size: u64, set: impl FnOnce() -> Res<()>) -> Res<()> {
        let mut state = file.lazy.state_mut();
        if size > 0 {
            Self::usable(file.node, file.lazy)?;
        }
        file.lower_mark(&mut state)?;
        let done = set();
        // It is several changes, and the size may have been one that succeeded.
        let size = match done {
            Ok(()) => size,
            Err(_) => file.branch().stat(At::Open(file.copy)).map_or(u64::MAX, |stat| stat.size),
        };
        if size >= state.limit {
            return done;
        }
        state.cut(size, file.block());
        done.and(file.lower_mark(&mut state))?;
        if size == 0 {
            file.lazy.become_ordinary(&mut state, file.copy);
        } else if state.is_whole() {
            // The next flush finds that nothing is missing.
            self.note_dirty(file, &mut state);
        }
        Ok(())
    }

    /// Copies all that a lazy file shows of its first `size` bytes into an empty one of any branch, holes kept.
    pub(in crate::union) fn copy_through(&self, file: LazyFile<'_>, to_branch: &dyn Branch, to: &Handle, size: u64) -> Res<()> {
        let mut seek = |at, whence| match self.lazy_seek(file, at, whence) {
            // What cannot be told is read.
            Err(_) if whence == SEEK_HOLE => Ok(size),
            other => other,
        };
        copy_data(to_branch, to, size, &mut seek, &mut |at, buf| self.lazy_read(file, at, buf))
    }
}
