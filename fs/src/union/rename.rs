//! rename. Whatever several steps it takes, one call of the branch's makes the difference: what comes before it is invisible (a redirect to where
//! a directory already merges, a whiteout beside the object that wins over it), and what comes after it is too.

use super::branch::{At, RENAME_WHITEOUT, Stat};
use super::core::{ATTEMPTS_MAX, Union, name_of};
use super::names::{XATTR_OVERLAY_REDIRECT, XATTR_REDIRECT};
use super::node::{DirState, FileState, Layer, Marks, Node, Spot, lock};
use super::search::{Found, Whiteout, makeable, visible};
use super::slot::Slot;
use super::whiteout::{keeping_times, leftovers};
use super::{Layout, Res};
use crate::fop::{Errno, FileKind, RENAME_EXCHANGE, RENAME_NOREPLACE};
use std::sync::{Arc, RwLockWriteGuard};

/// One side of a rename.
struct Side<'a> {
    parent: &'a Arc<Node>,
    name: &'a [u8],
}

/// How an attempt ended.
enum Attempt {
    Done,
    /// Something changed between looking and locking.
    Again,
    /// It concerns directories.
    NeedsMoving,
}

/// Both parents, locked.
struct Parents<'a> {
    old: RwLockWriteGuard<'a, DirState>,
    /// `None`: the same.
    new: Option<RwLockWriteGuard<'a, DirState>>,
}

impl Parents<'_> {
    fn to(&self) -> &DirState {
        self.new.as_deref().unwrap_or(&self.old)
    }

    fn to_mut(&mut self) -> &mut DirState {
        self.new.as_deref_mut().unwrap_or(&mut self.old)
    }
}

impl Union {
    /// renameat2(2); `flags`: [`RENAME_NOREPLACE`], [`RENAME_EXCHANGE`].
    ///
    /// # Errors
    /// As renameat2(2). `EXDEV` for a directory of several branches where it cannot be redirected: by option, or because its file system has no
    /// extended attributes.
    pub fn rename(&self, parent: u64, name: &[u8], new_parent: u64, new_name: &[u8], flags: u32) -> Res<()> {
        if !matches!(flags, 0 | RENAME_NOREPLACE | RENAME_EXCHANGE) {
            return Err(Errno::EINVAL);
        }
        visible(name)?;
        makeable(new_name)?;
        let (p1, p2) = (self.directory(parent)?, self.directory(new_parent)?);
        let (old, new) = (Side { parent: &p1, name }, Side { parent: &p2, name: new_name });
        // Within one directory, what is no directory changes nobody's ancestors.
        let mut moving = (p1.ino != p2.ino).then(|| lock(&self.moving));
        for _ in 0..ATTEMPTS_MAX {
            match self.try_rename(&old, &new, flags, moving.is_some())? {
                Attempt::Done => return Ok(()),
                Attempt::Again => {}
                Attempt::NeedsMoving => moving = Some(lock(&self.moving)),
            }
        }
        Err(Errno::EBUSY)
    }

    fn try_rename(&self, old: &Side<'_>, new: &Side<'_>, flags: u32, moving: bool) -> Res<Attempt> {
        let (source, _) = self.find(old.parent, old.name)?;
        let target = match self.find(new.parent, new.name) {
            Ok((node, _)) => Some(node),
            Err(Errno::ENOENT) => None,
            Err(e) => return Err(e),
        };
        if !moving && (source.is_dir() || target.as_ref().is_some_and(|t| t.is_dir())) {
            return Ok(Attempt::NeedsMoving);
        }
        check(&source, target.as_ref(), old, new, flags)?;
        if target.as_ref().is_some_and(|t| t.ino == source.ino) {
            return Ok(Attempt::Done);
        }
        let exchange = flags == RENAME_EXCHANGE;
        let slot = self.rename_slot(&source, target.as_ref().filter(|_| exchange), old, new)?;
        for side in [old, new] {
            self.ensure_layer(side.parent, &slot)?;
        }
        self.bring_up(&source, &slot)?;
        if let Some(target) = target.as_ref().filter(|_| exchange) {
            self.bring_up(target, &slot)?;
        }
        let path = self.path_below(old.parent, old.name, &slot)?;
        let new_path = self.path_below(new.parent, new.name, &slot)?;
        let mut parents = lock_parents(old.parent, new.parent)?;
        let found = self.search(&parents.old.layers, parents.old.limit, old.name)?;
        let there = self.search(&parents.to().layers, parents.to().limit, new.name)?;
        if !self.is(&found, &source)? || !self.is_or_nothing(&there, target.as_ref())? || parents.old.dead || parents.to().dead {
            return Ok(Attempt::Again);
        }
        // Something came in above the branch that was chosen.
        let above = there.slot().map(|s| s.rank()).or(whiteout_of(&there).map(|w| w.rank)).is_some_and(|rank| rank < slot.rank());
        if above || parents.old.layer(&slot).is_none() || parents.to().layer(&slot).is_none() {
            return Ok(Attempt::Again);
        }
        let mut ends = Ends { slot: &slot, old, new, source: &source, found, there };
        if exchange {
            let target = target.ok_or(Errno::ENOENT)?;
            return self.exchange(&mut parents, &mut ends, &target, &path, &new_path).map(|()| Attempt::Done);
        }
        self.replace(&mut parents, &mut ends, target.as_ref(), &path).map(|()| Attempt::Done)
    }

    /// The branch where both names can change: not below anything that either name has now.
    fn rename_slot(&self, source: &Arc<Node>, swapped: Option<&Arc<Node>>, old: &Side<'_>, new: &Side<'_>) -> Res<Arc<Slot>> {
        let mut bound = usize::MAX;
        for (side, node) in [(old, Some(source)), (new, swapped)] {
            let dir = side.parent.dir()?;
            let found = self.search(&dir.layers, dir.limit, side.name)?;
            let rank = found.slot().map(|s| s.rank()).or(whiteout_of(&found).map(|w| w.rank));
            bound = bound.min(rank.unwrap_or(usize::MAX));
            drop(dir);
            if node.is_some_and(|n| n.is_dir()) {
                bound = bound.min(self.redirected_above(side.parent)?);
            }
        }
        // One lock at a time: their order is not known here.
        let fits_old: Vec<_> = self.candidates(&*old.parent.dir()?, bound.saturating_add(1)).into_iter().map(|c| c.slot.rank()).collect();
        let mut candidates = self.candidates(&*new.parent.dir()?, bound.saturating_add(1));
        candidates.retain(|c| fits_old.contains(&c.slot.rank()));
        if let Some(here) = candidates.last().filter(|c| c.slot.rank() == bound) {
            return Ok(Arc::clone(&here.slot));
        }
        self.policies.copyup(&candidates).ok_or(Errno::EROFS)
    }

    /// The highest branch in which this directory, or one that it lies in, is redirected.
    fn redirected_above(&self, dir: &Arc<Node>) -> Res<usize> {
        let mut rank = usize::MAX;
        let mut at = Some(Arc::clone(dir));
        while let Some(node) = at {
            for layer in node.dir()?.layers.iter().filter(|l| l.marks.redirect.is_some()) {
                rank = rank.min(layer.slot.rank());
            }
            at = node.place().map(|(parent, _)| parent);
        }
        Ok(rank)
    }

    /// Sees to it that an object lies in `slot`.
    fn bring_up(&self, node: &Arc<Node>, slot: &Arc<Slot>) -> Res<()> {
        if node.is_dir() { self.ensure_layer(node, slot) } else { self.copy_up(node, Some(slot), u64::MAX) }
    }

    /// The path of a name in the union of the branches below `slot`: what a redirect in `slot` says.
    pub(super) fn path_below(&self, parent: &Arc<Node>, name: &[u8], slot: &Arc<Slot>) -> Res<Vec<u8>> {
        let mut components = vec![name.to_vec()];
        let mut at = Arc::clone(parent);
        loop {
            let redirect = at.dir()?.layer(slot).and_then(|l| l.marks.redirect.clone());
            let place = at.place();
            match (redirect, place) {
                (Some(path), _) if path.starts_with(b"/") => {
                    components.push(path[1..].to_vec());
                    break;
                }
                (Some(name), Some((above, _))) => {
                    components.push(name);
                    at = above;
                }
                (None, Some((above, name))) => {
                    components.push(name.to_vec());
                    at = above;
                }
                (_, None) => break,
            }
        }
        components.reverse();
        Ok([b"/", &components.join(&b'/')[..]].concat())
    }

    /// Whether what was found is this node, lying where a rename can take it.
    fn is(&self, found: &Found, node: &Arc<Node>) -> Res<bool> {
        Ok(match found {
            Found::Nothing(_) => false,
            Found::File(f) => !node.is_dir() && node.file()?.id == f.stat.id,
            Found::Dir(d) => node.is_dir() && node.dir()?.layers.first().is_some_and(|l| l.id == d.stat.id),
        })
    }

    fn is_or_nothing(&self, found: &Found, node: Option<&Arc<Node>>) -> Res<bool> {
        match node {
            Some(node) => self.is(found, node),
            None => Ok(matches!(found, Found::Nothing(_))),
        }
    }

    fn replace(&self, parents: &mut Parents<'_>, ends: &mut Ends<'_>, target: Option<&Arc<Node>>, path: &[u8]) -> Res<()> {
        let (slot, old, new) = (ends.slot, ends.old, ends.new);
        let branch = &slot.branch;
        let hide = self.config.always_whiteout || self.shows_below(parents.old.below(slot.rank()), old.name)?.is_some();
        let lower = self.shows_below(parents.to().below(slot.rank()), new.name)?;
        let mut source_dir = if ends.source.is_dir() { Some(ends.source.dir_mut()?) } else { None };
        let mut target_dir = target.filter(|t| t.is_dir()).map(|t| t.dir_mut()).transpose()?;
        if let Found::Dir(d) = &ends.there
            && !self.is_empty(&d.layers)?
        {
            return Err(Errno::ENOTEMPTY);
        }
        self.prepare_source(parents, ends, source_dir.as_deref_mut(), lower, path)?;
        if let Found::Dir(d) = &ends.there
            && let Some(layer) = d.layers.iter().find(|l| Arc::ptr_eq(&l.slot, slot))
        {
            self.make_bare(slot, &layer.dir, lower.is_some() || d.layers.len() > 1)?;
        }
        let in_place = whiteout_of(&ends.there).is_some_and(|w| w.in_place && w.rank == slot.rank());
        let swap = in_place && ends.source.is_dir();
        let (from, to) = places(parents, slot)?;
        let mut flags = if swap { RENAME_EXCHANGE } else { 0 };
        if hide && !swap {
            match self.config.layout {
                Layout::Aufs => self.make_whiteout(slot, &from, old.name)?,
                Layout::Overlay => flags |= RENAME_WHITEOUT,
            }
        }
        let victim = match (&ends.there, target) {
            (Found::File(f), Some(node)) => Some((f, node)),
            _ => None,
        };
        // What has its name elsewhere is only hidden.
        let lazy = victim.filter(|(f, _)| Arc::ptr_eq(&f.name_slot, slot)).and_then(|(f, _)| f.lazy.as_ref());
        let moved = || self.removing(slot, &to, new.name, lazy, || branch.rename(&from, old.name, &to, new.name, flags));
        let (mut source_file, target_file) = lock_files(ends.source, victim.map(|(_, node)| node))?;
        match (victim, target_file) {
            (Some((f, node)), Some(mut file)) => self.unnaming(node, &mut file, new.parent, new.name, f, moved)?,
            _ => moved()?,
        }
        if let Some((f, node)) = victim {
            self.lost_name(node.ino, &f.stat, Arc::ptr_eq(&f.name_slot, slot));
        }
        if swap && !hide {
            leftovers(branch.unlink(&from, old.name));
        }
        leftovers(self.drop_whiteout(slot, &to, new.name));
        if let Some(file) = &mut source_file {
            file.spot = Spot::Name(to, name_of(new.name));
        }
        if let Some(dead) = &mut target_dir {
            dead.dead = true;
            dead.changed();
        }
        renamed(parents, ends.source, old, new);
        Ok(())
    }

    /// What must be so before the source is moved, and does not show.
    fn prepare_source(
        &self,
        parents: &mut Parents<'_>,
        ends: &Ends<'_>,
        dir: Option<&mut DirState>,
        lower: Option<FileKind>,
        path: &[u8],
    ) -> Res<()> {
        let slot = ends.slot;
        match (&ends.found, dir) {
            (Found::Dir(_), Some(dir)) => self.detach(slot, dir, lower == Some(FileKind::Dir), path)?,
            (Found::File(f), _) if !Arc::ptr_eq(&f.name_slot, slot) => {
                // A hard link of what was copied up under another name.
                let from = places(parents, slot)?.0;
                keeping_times(slot, &from, || slot.branch.link(f.spot.at(), &from, ends.old.name))?;
            }
            _ => {}
        }
        if carries_mark(&ends.found) || self.carries_number(&ends.found, ends.source.ino) {
            self.mark_impure(parents.to_mut(), slot)?;
        }
        Ok(())
    }

    fn carries_number(&self, found: &Found, ino: u64) -> bool {
        let stat: Option<&Stat> = match found {
            Found::File(f) => Some(&f.stat),
            Found::Dir(d) => Some(&d.stat),
            Found::Nothing(_) => None,
        };
        stat.is_some_and(|s| self.numbers.of(s) != ino)
    }

    /// Makes a directory independent of its name: it merges with what it merges with now, wherever it goes.
    fn detach(&self, slot: &Arc<Slot>, dir: &mut DirState, over_dir: bool, path: &[u8]) -> Res<()> {
        let merged = !dir.below(slot.rank()).is_empty();
        let rank = slot.rank();
        let layer = dir.layers.iter_mut().find(|l| Arc::ptr_eq(&l.slot, slot)).ok_or(Errno::ESTALE)?;
        if merged && !self.config.dirren {
            return Err(Errno::EXDEV);
        }
        let redirected = layer.marks.redirect.as_ref().is_some_and(|r| r.starts_with(b"/"));
        if merged && !redirected {
            self.redirect(layer, path)?;
        } else if !merged && over_dir {
            self.make_opaque(slot, &layer.dir)?;
            layer.marks = Arc::new(Marks { opaque: true, ..Marks::clone(&layer.marks) });
        } else {
            return Ok(());
        }
        dir.limit = dir.limit.min(rank + 1);
        Ok(())
    }

    fn redirect(&self, layer: &mut Layer, path: &[u8]) -> Res<()> {
        // One whose redirect was relative goes by its absolute form from now on.
        let path = match &layer.marks.redirect {
            Some(name) => [&path[..=path.iter().rposition(|b| *b == b'/').unwrap_or(0)], name].concat(),
            None => path.to_vec(),
        };
        let xattr = match self.config.layout {
            Layout::Aufs => XATTR_REDIRECT,
            Layout::Overlay => XATTR_OVERLAY_REDIRECT,
        };
        match layer.slot.branch.set_xattr(At::Open(&layer.dir), xattr, &path, 0) {
            Err(Errno::EOPNOTSUPP | Errno::ERANGE | Errno::ENOSPC) => return Err(Errno::EXDEV),
            other => other?,
        }
        layer.marks = Arc::new(Marks { redirect: Some(path), ..Marks::clone(&layer.marks) });
        Ok(())
    }

    fn exchange(&self, parents: &mut Parents<'_>, ends: &mut Ends<'_>, target: &Arc<Node>, path: &[u8], new_path: &[u8]) -> Res<()> {
        let (slot, old, new) = (ends.slot, ends.old, ends.new);
        let lower_old = self.shows_below(parents.old.below(slot.rank()), old.name)?;
        let lower_new = self.shows_below(parents.to().below(slot.rank()), new.name)?;
        let (from, to) = places(parents, slot)?;
        for (node, found, over, path, place, name) in
            [(ends.source, &ends.found, lower_new, path, &from, old.name), (target, &ends.there, lower_old, new_path, &to, new.name)]
        {
            match found {
                Found::Dir(_) => self.detach(slot, &mut *node.dir_mut()?, over == Some(FileKind::Dir), path)?,
                Found::File(f) if !Arc::ptr_eq(&f.name_slot, slot) => {
                    keeping_times(slot, place, || slot.branch.link(f.spot.at(), place, name))?;
                }
                _ => {}
            }
        }
        if carries_mark(&ends.found) || self.carries_number(&ends.found, ends.source.ino) {
            self.mark_impure(parents.to_mut(), slot)?;
        }
        if carries_mark(&ends.there) || self.carries_number(&ends.there, target.ino) {
            self.mark_impure(&mut parents.old, slot)?;
        }
        let (source_file, target_file) = lock_files(ends.source, Some(target))?;
        slot.branch.rename(&from, old.name, &to, new.name, RENAME_EXCHANGE)?;
        for (file, place, name) in [(source_file, to, new.name), (target_file, from, old.name)] {
            if let Some(mut file) = file {
                file.spot = Spot::Name(place, name_of(name));
            }
        }
        renamed(parents, ends.source, old, new);
        renamed(parents, target, new, old);
        Ok(())
    }
}

/// What a rename is about.
struct Ends<'a> {
    slot: &'a Arc<Slot>,
    old: &'a Side<'a>,
    new: &'a Side<'a>,
    source: &'a Arc<Node>,
    found: Found,
    there: Found,
}

/// Whether it is a lazy copy, which is looked for in impure directories only.
fn carries_mark(found: &Found) -> bool {
    matches!(found, Found::File(f) if f.lazy.is_some())
}

fn whiteout_of(found: &Found) -> Option<&Whiteout> {
    match found {
        Found::Nothing(whiteout) => whiteout.as_ref(),
        _ => None,
    }
}

fn renamed(parents: &mut Parents<'_>, node: &Arc<Node>, old: &Side<'_>, new: &Side<'_>) {
    node.drop_name(old.parent, old.name);
    node.add_name(new.parent, new.name);
    parents.old.changed();
    parents.to_mut().changed();
}

fn places(parents: &Parents<'_>, slot: &Arc<Slot>) -> Res<(super::branch::Handle, super::branch::Handle)> {
    let place = |dir: &DirState| dir.layer(slot).map(|l| l.dir.clone()).ok_or(Errno::ESTALE);
    Ok((place(&parents.old)?, place(parents.to())?))
}

/// An ancestor before what lies in it, else by number.
fn lock_parents<'a>(old: &'a Arc<Node>, new: &'a Arc<Node>) -> Res<Parents<'a>> {
    if old.ino == new.ino {
        return Ok(Parents { old: old.dir_mut()?, new: None });
    }
    let old_first = old.contains(new) || (!new.contains(old) && old.ino < new.ino);
    if old_first {
        let old = old.dir_mut()?;
        return Ok(Parents { old, new: Some(new.dir_mut()?) });
    }
    let new = new.dir_mut()?;
    Ok(Parents { old: old.dir_mut()?, new: Some(new) })
}

type FileGuard<'a> = Option<RwLockWriteGuard<'a, FileState>>;

/// Locks both files, in the order of their numbers; directories have no such lock.
fn lock_files<'a>(a: &'a Arc<Node>, b: Option<&'a Arc<Node>>) -> Res<(FileGuard<'a>, FileGuard<'a>)> {
    let lock = |node: &'a Arc<Node>| if node.is_dir() { Ok(None) } else { node.file_mut().map(Some) };
    let Some(b) = b else { return Ok((lock(a)?, None)) };
    if a.ino < b.ino {
        let a = lock(a)?;
        return Ok((a, lock(b)?));
    }
    let b = lock(b)?;
    Ok((lock(a)?, b))
}

/// What renameat2(2) refuses, in its order.
fn check(source: &Arc<Node>, target: Option<&Arc<Node>>, old: &Side<'_>, new: &Side<'_>, flags: u32) -> Res<()> {
    match target {
        None if flags == RENAME_EXCHANGE => return Err(Errno::ENOENT),
        Some(_) if flags == RENAME_NOREPLACE => return Err(Errno::EEXIST),
        _ => {}
    }
    if source.is_dir() && source.contains(new.parent) {
        return Err(Errno::EINVAL);
    }
    let Some(target) = target else { return Ok(()) };
    if target.is_dir() && target.contains(old.parent) {
        return Err(if flags == RENAME_EXCHANGE { Errno::EINVAL } else { Errno::ENOTEMPTY });
    }
    match (source.is_dir(), target.is_dir()) {
        _ if flags == RENAME_EXCHANGE => Ok(()),
        (true, false) => Err(Errno::ENOTDIR),
        (false, true) => Err(Errno::EISDIR),
        _ => Ok(()),
    }
}
