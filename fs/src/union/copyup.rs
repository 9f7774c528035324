//! Copy-up: an object of a branch that cannot be written is copied to one above that can, and becomes it.
//!
//! The copy is made with everything that belongs to it, where nobody sees it: without a name where the branch can do that (one directory less to
//! be written), else in the target's work directory. Its data is synced, and one link or rename puts it in its place.
//! Parents come first. Nobody waits for a copy but who wants to change the same file.

use super::Res;
use super::branch::{At, Handle, New, Open, Stat};
use super::core::{ATTEMPTS_MAX, OpenFile, Union, plain_layer};
use super::lazy::{How, Lazy, lacks_xattr_room};
use super::names::{XATTR_DEVICE, is_private_xattr};
use super::node::{DirState, Marks, Name, Node, Spot, lock};
use super::policy::Candidate;
use super::search::{Found, plink_name};
use super::slot::{Own, Slot};
use super::whiteout::{keeping_times, leftovers, mark_layer_impure};
use crate::fop::{Errno, FileKind, SetAttr};
use crate::roam;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A copy that waits for its place.
struct Copy {
    waits: Waits,
    stat: Stat,
    /// Of a file with data: open for both.
    data: Option<Handle>,
    /// Its data is yet to come.
    lazy: Option<Arc<Lazy>>,
}

/// Where nobody sees it.
enum Waits {
    /// In the target's work directory.
    InWork(Vec<u8>),
    Unnamed(Handle),
}

impl Waits {
    fn at<'a>(&'a self, own: &'a Own) -> At<'a> {
        match self {
            Self::InWork(name) => At::Name(&own.work, name),
            Self::Unnamed(handle) => At::Open(handle),
        }
    }

    /// Puts it in its place. An unnamed one takes nobody else's: `EEXIST`.
    fn end(&self, target: &Slot, own: &Own, dir: &Handle, name: &[u8]) -> Res<()> {
        match self {
            Self::InWork(temp) => target.branch.rename(&own.work, temp, dir, name, 0),
            Self::Unnamed(handle) => target.branch.link(At::Open(handle), dir, name),
        }
    }

    fn discard(&self, target: &Slot, own: &Own) {
        if let Self::InWork(name) = self {
            leftovers(target.delete_tree(&own.work, name));
        }
    }
}

/// What a copy shall have.
struct Wanted<'a> {
    /// So many bytes of data are worth keeping.
    keep: u64,
    /// What it shall go by.
    number: Option<u64>,
    /// Of a file: its node, and how its data is copied.
    data: Option<(&'a Node, &'a How)>,
}

impl Union {
    /// The writable branches above `bound` where something in this directory can be put, top-down.
    pub(super) fn candidates(&self, dir: &DirState, bound: usize) -> Vec<Candidate> {
        let top = dir.layers.first().map_or(usize::MAX, |l| l.slot.rank());
        let writable = |slot: &&Arc<Slot>| slot.rank() < bound && slot.writable();
        self.view()
            .slots
            .iter()
            .filter(writable)
            .filter_map(|slot| {
                let has_parent = dir.layer(slot).is_some();
                let possible = has_parent || slot.rank() < dir.limit;
                possible.then(|| Candidate { slot: Arc::clone(slot), has_parent, above: slot.rank() < top })
            })
            .collect()
    }

    /// Sees to it that the directory exists in `slot`.
    pub(super) fn ensure_layer(&self, node: &Arc<Node>, slot: &Arc<Slot>) -> Res<()> {
        self.refresh(node)?;
        if node.dir()?.layer(slot).is_some() {
            return Ok(());
        }
        for _ in 0..ATTEMPTS_MAX {
            let (parent, name) = node.place().ok_or(Errno::ESTALE)?;
            self.ensure_layer(&parent, slot)?;
            let mut above = parent.dir_mut()?;
            let mut dir = node.dir_mut()?;
            if dir.layer(slot).is_some() {
                return Ok(());
            }
            if dir.dead || above.dead {
                return Err(Errno::ENOENT);
            }
            // Somebody moved it meanwhile.
            if !node.place().is_some_and(|(p, n)| p.ino == parent.ino && n == name) {
                continue;
            }
            if slot.rank() >= dir.limit {
                return Err(Errno::EROFS);
            }
            return self.copy_directory(node.ino, &mut above, &mut dir, &name, slot);
        }
        Err(Errno::EBUSY)
    }

    fn copy_directory(&self, ino: u64, above: &mut DirState, dir: &mut DirState, name: &Name, slot: &Arc<Slot>) -> Res<()> {
        let top = dir.layers.first().ok_or(Errno::ESTALE)?;
        let from = At::Open(&top.dir);
        let stat = top.slot.branch.stat(from)?;
        let source = Arc::clone(&top.slot);
        let becomes_top = slot.rank() < source.rank();
        let copy = self.copy_to_work(&source, from, &stat, slot, &Wanted { keep: 0, number: becomes_top.then_some(ino), data: None })?;
        let (own, branch) = (slot.own()?, &slot.branch);
        let place = above.layers.iter_mut().find(|l| Arc::ptr_eq(&l.slot, slot)).ok_or(Errno::ESTALE)?;
        if becomes_top {
            mark_layer_impure(place)?;
        }
        let placed = keeping_times(slot, &place.dir, || copy.waits.end(slot, &own, &place.dir, name));
        if let Err(e) = placed {
            copy.waits.discard(slot, &own);
            return Err(e);
        }
        let handle = branch.open(At::Name(&place.dir, name), Open::Path)?;
        let marks = Marks { number: becomes_top.then_some(ino), ..Marks::default() };
        dir.layers.push(plain_layer(slot, handle, copy.stat.id, marks));
        dir.layers.sort_by_key(|l| l.slot.rank());
        dir.changed();
        Ok(())
    }

    /// Sees to it that an object lies where it can be changed. Of a file, `keep` bytes of data are worth keeping.
    pub(super) fn make_writable(&self, node: &Arc<Node>, keep: u64) -> Res<()> {
        if !node.is_dir() {
            return if node.file()?.slot.writable() { Ok(()) } else { self.copy_up(node, None, keep) };
        }
        self.refresh(node)?;
        let target = {
            let dir = node.dir()?;
            let top = dir.layers.first().ok_or(Errno::ESTALE)?;
            if top.slot.writable() {
                return Ok(());
            }
            let Some((parent, _)) = node.place() else { return Err(Errno::EROFS) };
            let bound = top.slot.rank();
            drop(dir);
            let above = parent.dir()?;
            self.policies.copyup(&self.candidates(&above, bound)).ok_or(Errno::EROFS)?
        };
        self.ensure_layer(node, &target)
    }

    /// Copies a file up, to `to` or where the policy says.
    pub(super) fn copy_up(&self, node: &Arc<Node>, to: Option<&Arc<Slot>>, keep: u64) -> Res<()> {
        let _moves = node.moves();
        for _ in 0..ATTEMPTS_MAX {
            let (slot, spot, id) = {
                let file = node.file()?;
                (Arc::clone(&file.slot), file.spot.clone(), file.id)
            };
            if to.map_or_else(|| slot.writable(), |to| slot.rank() <= to.rank()) {
                return Ok(());
            }
            let stat = slot.branch.stat(spot.at())?;
            if stat.id != id {
                return Err(Errno::ESTALE);
            }
            let names = node.names();
            let Some((parent, name)) = names.first() else { return self.copy_up_nameless(node, to, (&slot, &spot, &stat), keep) };
            self.refresh(parent)?;
            let target = match to {
                Some(to) => Arc::clone(to),
                None => {
                    let dir = parent.dir()?;
                    self.policies.copyup(&self.candidates(&dir, slot.rank())).ok_or(Errno::EROFS)?
                }
            };
            self.ensure_layer(parent, &target)?;
            let together = stat.nlink > 1;
            let keeps_number = !together || self.config.plink;
            let mut coming = Some(self.lazy.coming());
            let how = self.how_to_copy(node, Some((parent, name)), (&slot, &spot, &stat), &target, keep)?;
            let lazily = matches!(how, How::Lazily(_));
            let copy = |how| {
                let wanted = Wanted { keep, number: keeps_number.then_some(node.ino), data: Some((node, how)) };
                self.copy_to_work(&slot, spot.at(), &stat, &target, &wanted)
            };
            if !lazily {
                coming = None;
            }
            let mut copied = copy(&how);
            // The mark may leave no room for the file's own attributes.
            if lazily && copied.as_ref().is_err_and(|e| lacks_xattr_room(*e)) {
                coming = None;
                copied = copy(&How::Whole);
            }
            let copy = copied?;
            let placed = self.place_copy(node, parent, name, &stat, &target, &copy);
            drop(coming);
            if let Ok(true) = placed {
                return Ok(());
            }
            if let Some(lazy) = &copy.lazy {
                self.discard_lazy(lazy);
            }
            copy.waits.discard(&target, &*target.own()?);
            placed?;
        }
        Err(Errno::EBUSY)
    }

    /// Puts a copy in its place; false when the name is another object's by now.
    fn place_copy(&self, node: &Arc<Node>, parent: &Arc<Node>, name: &Name, lower: &Stat, target: &Arc<Slot>, copy: &Copy) -> Res<bool> {
        let mut dir = parent.dir_mut()?;
        let current = if dir.dead { Found::Nothing(None) } else { self.search(&dir.layers, dir.limit, name)? };
        if !matches!(&current, Found::File(f) if f.stat.id == lower.id) {
            node.drop_name(parent, name);
            return Ok(false);
        }
        self.mark_impure(&mut dir, target)?;
        let Some(place) = dir.layer(target).map(|l| l.dir.clone()) else { return Ok(false) };
        let (own, branch) = (target.own()?, &target.branch);
        let mut file = node.file_mut()?;
        let kept = match &own.plinks {
            Some(plinks) if lower.nlink > 1 => {
                let kept = plink_name(node.ino, lower);
                branch.link(copy.waits.at(&own), plinks, &kept)?;
                Some((plinks, kept))
            }
            _ => None,
        };
        if let Err(e) = keeping_times(target, &place, || copy.waits.end(target, &own, &place, name)) {
            // It would be taken for the copy.
            if let Some((plinks, kept)) = &kept {
                leftovers(branch.unlink(plinks, kept));
            }
            return match (e, &copy.waits) {
                // Made behind our back since the search.
                (Errno::EEXIST, _) => Ok(false),
                (e @ (Errno::ENOSPC | Errno::EDQUOT | Errno::EIO | Errno::EROFS), _) | (e, Waits::InWork(_)) => Err(e),
                (e, Waits::Unnamed(_)) => {
                    target.make_by_name(e);
                    Ok(false)
                }
            };
        }
        if kept.is_some() {
            own.any_plinks.store(true, Ordering::Release);
            lock(&self.links).entry(node.ino).or_insert(lower.nlink);
        }
        file.slot = Arc::clone(target);
        file.id = copy.stat.id;
        file.spot = Spot::Name(place, Arc::clone(name));
        file.lazy.clone_from(&copy.lazy);
        let mut files = lock(&self.files);
        match &copy.data {
            // Whoever wanted the copy will most likely write to it.
            Some(handle) => files.put(node.ino, OpenFile::new(target, handle.clone(), true, copy.lazy.as_ref())),
            None => files.remove(node.ino),
        }
        drop(files);
        Ok(true)
    }

    /// Of what was unlinked and is still referenced, or has no name yet.
    fn copy_up_nameless(&self, node: &Arc<Node>, to: Option<&Arc<Slot>>, source: (&Arc<Slot>, &Spot, &Stat), keep: u64) -> Res<()> {
        let (slot, spot, stat) = source;
        let view = self.view();
        let above = || view.slots.iter().rfind(|s| s.rank() < slot.rank() && s.writable());
        let target = to.or_else(above).ok_or(Errno::EROFS)?;
        let how = self.how_to_copy(node, None, (slot, spot, stat), target, keep)?;
        let copy = self.copy_to_work(slot, spot.at(), stat, target, &Wanted { keep, number: Some(node.ino), data: Some((node, &how)) })?;
        let own = target.own()?;
        let how = if stat.kind == FileKind::File { Open::Write } else { Open::Path };
        let held = match &copy.waits {
            Waits::Unnamed(handle) => Ok(handle.clone()),
            Waits::InWork(name) => target.branch.open(At::Name(&own.work, name), how),
        };
        copy.waits.discard(target, &own);
        let mut file = node.file_mut()?;
        file.spot = Spot::Open(held?);
        file.slot = Arc::clone(target);
        file.id = copy.stat.id;
        file.lazy = None;
        lock(&self.files).remove(node.ino);
        Ok(())
    }

    /// Makes the copy, with all that belongs to it.
    fn copy_to_work(&self, source: &Slot, from: At<'_>, stat: &Stat, target: &Arc<Slot>, wanted: &Wanted<'_>) -> Res<Copy> {
        let (own, branch) = (target.own()?, &target.branch);
        let link = if stat.kind == FileKind::Symlink { source.branch.readlink(from)? } else { Vec::new() };
        let new = New { kind: stat.kind, mode: stat.mode, rdev: stat.rdev, target: &link, uid: stat.uid, gid: stat.gid };
        let size = if stat.kind == FileKind::File { stat.size.min(wanted.keep) } else { 0 };
        let lazily = matches!(wanted.data, Some((_, How::Lazily(_))));
        // O_TMPFILE's: link(2) takes no file that had a name and lost it.
        let nameless = stat.kind == FileKind::File && stat.nlink == 0;
        let unnamed = if (size > 0 || nameless) && !lazily { target.make_unnamed(&own.work, &new)? } else { None };
        let (waits, made) = match unnamed {
            Some((made, handle)) => (Waits::Unnamed(handle), made),
            None => {
                let name = own.temp_name();
                let made = branch.make(&own.work, &name, &new)?;
                (Waits::InWork(name), made)
            }
        };
        let mut lazy = None;
        let mut make = || {
            // By descriptor everything is cheaper than by name.
            let data = if size > 0 {
                let output = match &waits {
                    Waits::Unnamed(handle) => handle.clone(),
                    Waits::InWork(name) => branch.open(At::Name(&own.work, name), Open::Write)?,
                };
                if let Some((_, How::Lazily(path))) = wanted.data {
                    lazy = self.begin_lazily(source, stat, path, target, (&output, &made), size)?;
                }
                let input = if lazy.is_none() { Some(self.copy_data(source, from, target, &output, size, wanted)?) } else { None };
                Some((input, output))
            } else {
                None
            };
            let (from, at) = match &data {
                Some((Some(input), output)) => (At::Open(input), At::Open(output)),
                Some((None, output)) => (from, At::Open(output)),
                None => (from, waits.at(&own)),
            };
            // After the data: a write takes file capabilities away.
            copy_xattrs(source, from, target, at)?;
            if stat.kind == FileKind::CharDevice && stat.rdev == 0 {
                branch.set_xattr(at, XATTR_DEVICE, b"y", 0)?;
            }
            if let Some(number) = wanted.number {
                self.numbers.carry(&**branch, at, &made, number, lazy.is_some())?;
            }
            let times = SetAttr { atime: Some(stat.atime), mtime: Some(stat.mtime), ..SetAttr::default() };
            branch.set_attr(at, &times)?;
            let data = data.map(|(_, output)| output);
            if let Some(data) = data.as_ref().filter(|_| !self.config.volatile) {
                branch.fsync(data, false)?;
            }
            Ok(data)
        };
        let copied = if size > 0 { roam::wait(make) } else { make() };
        match copied {
            Ok(data) => Ok(Copy { waits, stat: made, data, lazy }),
            Err(e) => {
                if let Some(lazy) = &lazy {
                    self.discard_lazy(lazy);
                }
                waits.discard(target, &own);
                Err(e)
            }
        }
    }

    /// Copies `size` bytes; the source, open.
    fn copy_data(&self, source: &Slot, from: At<'_>, target: &Slot, output: &Handle, size: u64, wanted: &Wanted<'_>) -> Res<Handle> {
        if let Some(file) = wanted.data.and_then(|(node, how)| how.through(node)) {
            self.copy_through(file, &*target.branch, output, size)?;
            return Ok(file.copy.clone());
        }
        let input = source.branch.open(from, Open::ReadQuietly)?;
        target.branch.copy_from(output, &*source.branch, &input, size)?;
        Ok(input)
    }

    /// A place for what is made in the work directory first.
    pub(super) fn make_in_work(&self, slot: &Slot, new: &New<'_>) -> Res<(Vec<u8>, Stat)> {
        let own = slot.own()?;
        let name = own.temp_name();
        let stat = slot.branch.make(&own.work, &name, new)?;
        Ok((name, stat))
    }
}

/// All but bookkeeping. What the target cannot hold is left out, unless it says who may do what.
fn copy_xattrs(source: &Slot, from: At<'_>, target: &Slot, at: At<'_>) -> Res<()> {
    for name in source.branch.list_xattr(from)? {
        if is_private_xattr(&name) {
            continue;
        }
        let value = match source.branch.get_xattr(from, &name) {
            Ok(value) => value,
            Err(Errno::ENODATA) => continue,
            Err(e) => return Err(e),
        };
        match target.branch.set_xattr(at, &name, &value, 0) {
            Err(Errno::EOPNOTSUPP) if !name.starts_with(b"system.posix_acl_") => {}
            other => other?,
        }
    }
    Ok(())
}
