//! Attributes, extended attributes, and what else one object says of itself.

use super::Res;
use super::branch::{At, Open};
use super::core::Union;
use super::lazy::{Lazy, LazyFile};
use super::names::is_private_xattr;
use super::node::{Node, lock};
use super::slot::Slot;
use crate::fop::{Attr, Errno, FileKind, SetAttr, StatFs};
use std::collections::HashSet;
use std::sync::Arc;

impl Union {
    /// chmod, chown, truncate, utimes. `kill_priv`: a truncation takes set-id bits away.
    ///
    /// # Errors
    /// As the system calls; `EROFS` where no branch can take a copy.
    pub fn setattr(&self, ino: u64, set: &SetAttr, kill_priv: bool) -> Res<Attr> {
        let node = self.table.get(ino)?;
        match node.kind {
            FileKind::Dir if set.size.is_some() => return Err(Errno::EISDIR),
            FileKind::Symlink if set.mode.is_some() => return Err(Errno::EOPNOTSUPP),
            FileKind::File => {}
            _ if set.size.is_some() => return Err(Errno::EINVAL),
            _ => {}
        }
        let [atime, mtime] = [set.atime, set.mtime];
        if [atime, mtime].into_iter().flatten().any(|t| t.nsec >= 1_000_000_000) {
            return Err(Errno::EINVAL);
        }
        // What is cut off need not be copied.
        self.make_writable(&node, set.size.unwrap_or(u64::MAX))?;
        let _stays = node.stays();
        self.with_still(&node, |slot, at, lazy| {
            let mut set = set.clone();
            if kill_priv && set.size.is_some() && set.mode.is_none() {
                set.mode = without_set_id(slot.branch.stat(at)?.mode);
            }
            match (lazy, set.size) {
                (Some(lazy), Some(size)) => {
                    let copy = slot.branch.open(at, Open::Write)?;
                    let file = LazyFile { node: &node, lazy, copy: &copy };
                    self.lazy_truncate(file, size, || slot.branch.set_attr(At::Open(&copy), &set))
                }
                (Some(lazy), None) => {
                    let _still = lazy.still();
                    slot.branch.set_attr(at, &set)
                }
                (None, _) => slot.branch.set_attr(at, &set),
            }
        })?;
        self.attr_of(&node)
    }

    /// readlink(2).
    ///
    /// # Errors
    /// `EINVAL` for what is no symbolic link.
    pub fn readlink(&self, ino: u64) -> Res<Vec<u8>> {
        let node = self.table.get(ino)?;
        if node.kind != FileKind::Symlink {
            return Err(Errno::EINVAL);
        }
        self.with_file(&node, |slot, at, _| slot.branch.readlink(at))
    }

    /// getxattr(2).
    ///
    /// # Errors
    /// `ENODATA`; `EOPNOTSUPP` where the branch has none.
    pub fn getxattr(&self, ino: u64, name: &[u8]) -> Res<Vec<u8>> {
        if is_private_xattr(name) {
            return Err(Errno::ENODATA);
        }
        let node = self.table.get(ino)?;
        // The kernel asks for the capabilities of each file before its first write. By descriptor it is cheaper than by name.
        let open = lock(&self.files).get(ino);
        if let Some(open) = open.filter(|open| !open.slot.is_gone()) {
            return open.slot.branch.get_xattr(At::Open(&open.handle), name);
        }
        self.with_object(&node, |slot, at| slot.branch.get_xattr(at, name))
    }

    /// listxattr(2): the names, each ended by NUL.
    ///
    /// # Errors
    /// What the branch says.
    pub fn listxattr(&self, ino: u64) -> Res<Vec<u8>> {
        let node = self.table.get(ino)?;
        let names = self.with_object(&node, |slot, at| slot.branch.list_xattr(at))?;
        let mut out = Vec::new();
        for name in names.iter().filter(|n| !is_private_xattr(n)) {
            out.extend_from_slice(name);
            out.push(0);
        }
        Ok(out)
    }

    /// setxattr(2).
    ///
    /// # Errors
    /// As setxattr(2); `EPERM` for bookkeeping's names.
    pub fn setxattr(&self, ino: u64, name: &[u8], value: &[u8], flags: u32) -> Res<()> {
        self.change_xattr(ino, name, |slot, at| slot.branch.set_xattr(at, name, value, flags))
    }

    /// removexattr(2).
    ///
    /// # Errors
    /// `ENODATA`; `EPERM` for bookkeeping's names.
    pub fn removexattr(&self, ino: u64, name: &[u8]) -> Res<()> {
        self.change_xattr(ino, name, |slot, at| slot.branch.remove_xattr(at, name))
    }

    fn change_xattr(&self, ino: u64, name: &[u8], change: impl FnOnce(&Slot, At<'_>) -> Res<()>) -> Res<()> {
        if is_private_xattr(name) {
            return Err(Errno::EPERM);
        }
        let node = self.table.get(ino)?;
        self.make_writable(&node, u64::MAX)?;
        let _stays = node.stays();
        self.with_still(&node, |slot, at, lazy| {
            let _still = lazy.map(|lazy| lazy.still());
            change(slot, at)
        })
    }

    /// Runs `f` on any object where it lies, with what is to be known of it there if it is a lazy copy: whose completion puts attributes back.
    fn with_still<T>(&self, node: &Arc<Node>, f: impl FnOnce(&Slot, At<'_>, Option<&Arc<Lazy>>) -> Res<T>) -> Res<T> {
        if node.is_dir() {
            return self.with_object(node, |slot, at| f(slot, at, None));
        }
        let file = node.file()?;
        if file.slot.is_gone() {
            return Err(Errno::ESTALE);
        }
        f(&file.slot, file.spot.at(), file.lazy.as_ref().filter(|lazy| !lazy.is_done()))
    }

    /// statfs(2): of the first branch, or of all file systems together (`sum`).
    ///
    /// # Errors
    /// What the branch says.
    pub fn statfs(&self) -> Res<StatFs> {
        let view = self.view();
        let first = view.slots.first().ok_or(Errno::EIO)?;
        let mut sum = first.branch.statfs()?;
        if !self.config.sum {
            return Ok(sum);
        }
        let unit = u64::from(sum.frsize.max(1));
        let mut counted = HashSet::from([first.dev]);
        for slot in view.slots.iter().filter(|s| counted.insert(s.dev)) {
            let s = slot.branch.statfs()?;
            let scale = |n: u64| n.saturating_mul(u64::from(s.frsize)) / unit;
            sum.blocks += scale(s.blocks);
            sum.bfree += scale(s.bfree);
            sum.bavail += scale(s.bavail);
            sum.files += s.files;
            sum.ffree += s.ffree;
            sum.namelen = sum.namelen.min(s.namelen);
        }
        Ok(sum)
    }
}

/// The mode after a change of content by somebody without privileges; `None`: as it was.
pub(super) fn without_set_id(mode: u32) -> Option<u32> {
    let mut new = mode & !0o4000;
    if mode & 0o0010 != 0 {
        new &= !0o2000;
    }
    (new != mode).then_some(new)
}
