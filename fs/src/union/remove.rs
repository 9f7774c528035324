//! unlink and rmdir.

use super::Res;
use super::branch::{At, Handle, Open};
use super::core::{ATTEMPTS_MAX, Union};
use super::node::{DirState, FileState, Node, Spot, lock};
use super::search::{Found, FoundDir, FoundFile, visible};
use super::slot::Slot;
use crate::fop::{Errno, FileKind};
use std::sync::Arc;

impl Union {
    /// unlink(2).
    ///
    /// # Errors
    /// As unlink(2); `EROFS` where no branch can take a whiteout.
    pub fn unlink(&self, parent: u64, name: &[u8]) -> Res<()> {
        visible(name)?;
        let parent = self.directory(parent)?;
        self.with_removable(&parent, name, |dir, slot, place, found| {
            let Found::File(f) = found else { return Err(Errno::EISDIR) };
            let hide = self.must_hide(dir, slot, &f.name_slot, name)?;
            let node = self.node_with(f.number, &f);
            let removed = || match Arc::ptr_eq(&f.name_slot, slot) {
                true => self.removing(slot, place, name, f.lazy.as_ref(), || self.remove_object(slot, place, name, f.stat.kind, hide)),
                false => self.hide(slot, place, name),
            };
            match &node {
                Some(node) => self.unnaming(node, &mut *node.file_mut()?, &parent, name, &f, removed),
                None => removed(),
            }?;
            self.lost_name(node.as_ref().map_or(f.number, |n| n.ino), &f.stat, Arc::ptr_eq(&f.name_slot, slot));
            dir.changed();
            Ok(())
        })
    }

    /// rmdir(2).
    ///
    /// # Errors
    /// As rmdir(2); `EROFS` where no branch can take a whiteout.
    pub fn rmdir(&self, parent: u64, name: &[u8]) -> Res<()> {
        visible(name)?;
        let parent = self.directory(parent)?;
        self.with_removable(&parent, name, |dir, slot, place, found| {
            let Found::Dir(d) = found else { return Err(Errno::ENOTDIR) };
            let node = self.dir_node_with(&d);
            let mut state = node.as_ref().map(|n| n.dir_mut()).transpose()?;
            if !self.is_empty(&d.layers)? {
                return Err(Errno::ENOTEMPTY);
            }
            let top = &d.layers[0].slot;
            let hide = self.must_hide(dir, slot, top, name)?;
            if Arc::ptr_eq(top, slot) {
                self.remove_object(slot, place, name, FileKind::Dir, hide)?;
            } else {
                self.hide(slot, place, name)?;
            }
            if let Some(state) = &mut state {
                state.dead = true;
                state.changed();
            }
            dir.changed();
            Ok(())
        })
    }

    /// Locks the parent and runs `f` with the branch, and the parent in it, where the name is taken away or hidden.
    fn with_removable<T>(
        &self,
        parent: &Arc<Node>,
        name: &[u8],
        f: impl FnOnce(&mut DirState, &Arc<Slot>, &Handle, Found) -> Res<T>,
    ) -> Res<T> {
        for _ in 0..ATTEMPTS_MAX {
            let mut dir = parent.dir_mut()?;
            let found = self.visible_in(&dir, name)?;
            let slot = self.removal_slot(&dir, &found)?;
            let Some(place) = dir.layer(&slot).map(|l| l.dir.clone()) else {
                drop(dir);
                self.ensure_layer(parent, &slot)?;
                continue;
            };
            return f(&mut dir, &slot, &place, found);
        }
        Err(Errno::EBUSY)
    }

    pub(super) fn visible_in(&self, dir: &DirState, name: &[u8]) -> Res<Found> {
        if dir.dead {
            return Err(Errno::ENOENT);
        }
        match self.search(&dir.layers, dir.limit, name)? {
            Found::Nothing(_) => Err(Errno::ENOENT),
            found => Ok(found),
        }
    }

    fn removal_slot(&self, dir: &DirState, found: &Found) -> Res<Arc<Slot>> {
        let at = found.slot().ok_or(Errno::ENOENT)?;
        if at.writable() {
            return Ok(Arc::clone(at));
        }
        self.policies.copyup(&self.candidates(dir, at.rank())).ok_or(Errno::EROFS)
    }

    /// Whether a removal in `slot` of what lies in `at` must leave a whiteout.
    fn must_hide(&self, dir: &DirState, slot: &Arc<Slot>, at: &Arc<Slot>, name: &[u8]) -> Res<bool> {
        Ok(!Arc::ptr_eq(slot, at) || self.config.always_whiteout || self.shows_below(dir.below(slot.rank()), name)?.is_some())
    }

    /// The live node of a file that was found.
    pub(super) fn node_with(&self, number: u64, f: &FoundFile) -> Option<Arc<Node>> {
        [Some(number), self.numbers.made_up_already(f.stat.id)]
            .into_iter()
            .flatten()
            .find_map(|n| self.table.find(n).filter(|node| node.file().is_ok_and(|file| file.id == f.stat.id)))
    }

    /// The live node of a directory that was found.
    pub(super) fn dir_node_with(&self, d: &FoundDir) -> Option<Arc<Node>> {
        let same = |node: &Arc<Node>| node.dir().is_ok_and(|s| !s.dead && s.layers.first().is_some_and(|l| l.id == d.stat.id));
        [Some(d.number), self.numbers.made_up_already(d.stat.id)].into_iter().flatten().find_map(|n| self.table.find(n).filter(&same))
    }

    /// Takes a name of a live file, locked, away by `remove`. What the front end still refers to is held, so that it stays readable and writable.
    pub(super) fn unnaming(
        &self,
        node: &Arc<Node>,
        file: &mut FileState,
        parent: &Arc<Node>,
        name: &[u8],
        f: &FoundFile,
        remove: impl FnOnce() -> Res<()>,
    ) -> Res<()> {
        let names_it = match &file.spot {
            Spot::Name(_, known) => **known == *name && Arc::ptr_eq(&f.name_slot, &file.slot),
            Spot::Open(_) => false,
        };
        let before = file.spot.clone();
        let referred = self.table.is_referred(node.ino);
        if names_it && referred {
            file.spot = Spot::Open(hold(&file.slot, before.at(), f.stat.kind)?);
        }
        match remove() {
            Ok(()) => {
                node.drop_name(parent, name);
                if !referred {
                    lock(&self.files).remove(node.ino);
                }
                Ok(())
            }
            Err(e) => {
                file.spot = before;
                Err(e)
            }
        }
    }
}

impl Found {
    /// Where the name lies.
    pub(super) fn slot(&self) -> Option<&Arc<Slot>> {
        match self {
            Found::Nothing(_) => None,
            Found::File(f) => Some(&f.name_slot),
            Found::Dir(d) => d.layers.first().map(|l| &l.slot),
        }
    }
}

/// Holds a file for reading and writing if possible.
fn hold(slot: &Slot, at: At<'_>, kind: FileKind) -> Res<Handle> {
    if kind == FileKind::File {
        let how = if slot.writable() { Open::Write } else { Open::ReadQuietly };
        if let Ok(handle) = slot.branch.open(at, how) {
            return Ok(handle);
        }
    }
    slot.branch.open(at, Open::Path)
}
