//! The lower file of a lazy copy: how it is found again, and read.

use super::super::Res;
use super::super::branch::{At, Handle, Open, SEEK_DATA, Stat};
use super::super::config::Access;
use super::super::core::Union;
use super::super::node::{Node, lock};
use super::super::slot::Slot;
use super::Lazy;
use super::mark::Mark;
use crate::fop::Errno;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A lower file, open.
#[derive(Clone, Debug)]
pub(super) struct Lower {
    pub(super) slot: Arc<Slot>,
    pub(super) handle: Handle,
}

/// Holds what lies under a path of a branch.
pub(super) fn walk(slot: &Slot, path: &[u8]) -> Res<(Handle, Vec<u8>, Stat)> {
    let mut dir = slot.root.clone();
    let mut components = path.split(|b| *b == b'/').filter(|c| !c.is_empty()).peekable();
    while let Some(name) = components.next() {
        if components.peek().is_none() {
            let stat = slot.branch.stat(At::Name(&dir, name))?;
            return Ok((dir, name.to_vec(), stat));
        }
        dir = slot.branch.open(At::Name(&dir, name), Open::Path)?;
    }
    Err(Errno::ENOENT)
}

/// What lies under a path of a branch, if it is what it should be.
pub(super) fn lies_at(slot: &Slot, path: &[u8], stat: &Stat) -> bool {
    walk(slot, path).is_ok_and(|(_, _, there)| there.id == stat.id)
}

impl Union {
    /// Where the lower file of a mark lies; `None`: nowhere. In the branch that the mark names, or in another one: branches go by other names elsewhere.
    pub(super) fn lower_slot(&self, copy: &Arc<Slot>, mark: &Mark) -> Res<Option<(Arc<Slot>, Handle, Vec<u8>)>> {
        let view = self.view();
        let (named, others): (Vec<_>, Vec<_>) =
            view.slots.iter().filter(|slot| !Arc::ptr_eq(slot, copy)).partition(|slot| slot.source.label().as_bytes() == mark.branch);
        for slot in named.into_iter().chain(others) {
            match walk(slot, &mark.path) {
                Ok((dir, name, stat)) if mark.is_of(&stat) => return Ok(Some((Arc::clone(slot), dir, name))),
                Ok(_) | Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                // It may well be there.
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }

    /// The lower file, open.
    fn lower(&self, node: &Node, lazy: &Lazy) -> Res<Lower> {
        if let Some(known) = lock(&self.lazy.lowers).get((lazy.id, lazy.mark.id))
            && !known.slot.is_gone()
        {
            return Ok(known);
        }
        let Some((slot, dir, name)) = self.lower_slot(&lazy.slot, &lazy.mark)? else {
            return Err(complain(node, lazy, "is not there, or was changed"));
        };
        let handle = slot.branch.open(At::Name(&dir, &name), Open::ReadQuietly)?;
        if !lazy.mark.is_of(&slot.branch.stat(At::Open(&handle))?) {
            return Err(complain(node, lazy, "was changed"));
        }
        let lower = Lower { slot, handle };
        lock(&self.lazy.lowers).put((lazy.id, lazy.mark.id), lower.clone());
        Ok(lower)
    }

    /// Reads all of `buf` from the lower file.
    pub(super) fn read_lower(&self, node: &Node, lazy: &Lazy, at: u64, buf: &mut [u8]) -> Res<()> {
        let lower = self.lower(node, lazy)?;
        let branch = &lower.slot.branch;
        let got = branch.read(&lower.handle, at, buf)?;
        if got < buf.len() {
            return Err(complain(node, lazy, "was changed"));
        }
        self.unchanged(node, lazy, &lower)
    }

    /// Whether what was just read is what was there at the copy-up: whoever changes the file changes its time first.
    fn unchanged(&self, node: &Node, lazy: &Lazy, lower: &Lower) -> Res<()> {
        let same = lower.slot.perm().access == Access::Rr || lazy.mark.is_of(&lower.slot.branch.stat(At::Open(&lower.handle))?);
        if same {
            return Ok(());
        }
        lock(&self.lazy.lowers).remove((lazy.id, lazy.mark.id));
        Err(complain(node, lazy, "was changed"))
    }

    /// lseek(2) in the lower file; `end` where there is nothing more, and where it does not know its holes.
    pub(super) fn seek_lower(&self, node: &Node, lazy: &Lazy, at: u64, end: u64, whence: u32) -> Res<u64> {
        let lower = self.lower(node, lazy)?;
        let found = lower.slot.branch.lseek(&lower.handle, at, whence);
        self.unchanged(node, lazy, &lower)?;
        match found {
            Ok(found) => Ok(found.min(end)),
            Err(Errno::ENXIO) => Ok(end),
            // No file system is bound to know its holes.
            Err(_) => Ok(if whence == SEEK_DATA { at } else { end }),
        }
    }

    /// Why a mark cannot be used, as the log has it.
    pub(super) fn usable(node: &Node, lazy: &Lazy) -> Res<()> {
        match lazy.broken {
            None => Ok(()),
            Some(why) => {
                if !lazy.told.swap(true, Ordering::Relaxed) {
                    let copy = shown(node, lazy);
                    tracing::error!(
                        copy,
                        "the mark of a file of which not all was copied up cannot be used: {why}; its data cannot be told"
                    );
                }
                Err(Errno::EIO)
            }
        }
    }
}

/// The copy's path in its branch, as far as it is known.
fn shown(node: &Node, lazy: &Lazy) -> String {
    let mut path = Vec::new();
    let mut at = node.names().into_iter().next();
    while let Some((parent, name)) = at {
        path.push(String::from_utf8_lossy(&name).into_owned());
        at = parent.place();
    }
    path.reverse();
    let path = if path.is_empty() { format!("inode {}", lazy.id.1) } else { path.join("/") };
    format!("{}/{path}", lazy.slot.source.label())
}

fn complain(node: &Node, lazy: &Lazy, what: &str) -> Errno {
    if !lazy.told.swap(true, Ordering::Relaxed) {
        let (mark, copy) = (&lazy.mark, shown(node, lazy));
        let lower = format!("{}/{}", String::from_utf8_lossy(&mark.branch), String::from_utf8_lossy(&mark.path));
        tracing::error!(
            copy,
            lower,
            "the lower file {what}, and of the copy not all was copied up: what is missing cannot be read (EIO). It has to be {} bytes, \
             inode {}, last changed {}.{:09}",
            mark.size,
            mark.ino,
            mark.mtime.sec,
            mark.mtime.nsec
        );
    }
    Errno::EIO
}

/// The bitmap is not as it was written.
pub(super) fn lost_bitmap(node: &Node, lazy: &Lazy, why: &str) -> Errno {
    if !lazy.told.swap(true, Ordering::Relaxed) {
        let copy = shown(node, lazy);
        let bitmap = format!(".wh..wh.lazy/{:016x}", lazy.mark.id);
        tracing::error!(copy, bitmap, "the bitmap of a file of which not all was copied up {why}: its data cannot be told (EIO)");
    }
    Errno::EIO
}
