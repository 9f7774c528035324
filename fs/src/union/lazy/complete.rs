//! Copying the rest of a lazy copy.

use super::super::Res;
use super::super::branch::{At, SEEK_DATA};
use super::super::core::Union;
use super::LazyFile;
use crate::fop::{Errno, FileKind, SetAttr};

/// Bytes that are copied while nobody else can use the file.
const HELD_BYTES_MAX: u64 = 4 << 20;

/// A file's capabilities: the kernel takes them away at each write, but nobody has written here.
const CAPABILITY: &[u8] = b"security.capability";

impl Union {
    /// Copies up to `bytes` of what a file still has in its lower branch alone; whether nothing is left to copy.
    ///
    /// # Errors
    /// `EROFS` where it cannot be written; `EIO` when its lower file is not what it was.
    pub fn complete(&self, ino: u64, bytes: u64) -> Res<bool> {
        let node = self.table.get(ino)?;
        if node.kind != FileKind::File || node.file()?.lazy.as_ref().is_none_or(|lazy| lazy.is_done()) {
            return Ok(true);
        }
        let file = self.opened(&node, true)?;
        match file.lazy() {
            Some(lazy) => self.complete_some(LazyFile { node: &node, lazy, copy: &file.handle }, bytes),
            None => Ok(true),
        }
    }

    pub(super) fn complete_some(&self, file: LazyFile<'_>, bytes: u64) -> Res<bool> {
        let mut left = bytes;
        loop {
            let step = self.complete_step(file, left.min(HELD_BYTES_MAX))?;
            left = left.saturating_sub(step.bytes);
            if step.full {
                self.lazy.flush(file.lazy, None, true)?;
            }
            if step.whole {
                return self.lazy.flush(file.lazy, Some(file.copy), true).map(|()| true);
            }
            if left == 0 {
                return Ok(false);
            }
        }
    }

    /// Copies some blocks; its times and capabilities stay.
    fn complete_step(&self, file: LazyFile<'_>, bytes: u64) -> Res<Step> {
        let (block, branch) = (file.lazy.mark.block, file.branch());
        let mut state = file.state_mut()?;
        let before = branch.stat(At::Open(file.copy))?;
        let capability = branch.get_xattr(At::Open(file.copy), CAPABILITY).ok();
        let mut done = 0;
        let mut at = 0;
        let filled = loop {
            let last = state.limit.div_ceil(block);
            let Some(maps) = state.maps.as_ref().filter(|_| done < bytes.max(1)) else { break Ok(()) };
            let k = maps.ours.next(false, at, last);
            if k >= last {
                break Ok(());
            }
            let (start, end) = (k * block, (k + 1).saturating_mul(block).min(state.limit));
            if let Err(e) = self.fill_unless_hole(file, start, end) {
                break Err(e);
            }
            state.took(start, end, block);
            (done, at) = (done + (end - start), k + 1);
        };
        if done > 0 || filled.is_err() {
            if let Some(value) = capability {
                branch.set_xattr(At::Open(file.copy), CAPABILITY, &value, 0)?;
            }
            let times = SetAttr { atime: Some(before.atime), mtime: Some(before.mtime), ..SetAttr::default() };
            branch.set_attr(At::Open(file.copy), &times)?;
        }
        let full = self.note_dirty(file, &mut state);
        filled.map(|()| Step { bytes: done.max(1), full, whole: state.is_whole() })
    }

    /// What is a hole below stays one.
    fn fill_unless_hole(&self, file: LazyFile<'_>, start: u64, end: u64) -> Res<()> {
        let below = self.seek_lower(file.node, file.lazy, start, end, SEEK_DATA)?;
        // What reached the copy before its bit did may be anything.
        let here = match file.branch().lseek(file.copy, start, SEEK_DATA) {
            Ok(found) => found.min(end),
            Err(Errno::ENXIO) => end,
            Err(_) => start,
        };
        self.fill(file, start.max(below.min(here)), end)
    }
}

struct Step {
    bytes: u64,
    /// Enough bits are gathered.
    full: bool,
    whole: bool,
}
