//! New objects: mknod, mkdir, symlink, link.

use super::branch::{At, Handle, New, Open, Stat};
use super::core::{ATTEMPTS_MAX, OpenFile, Union};
use super::names::XATTR_DEVICE;
use super::node::{DirState, Node, Spot, lock};
use super::search::{Found, FoundFile, Whiteout, makeable};
use super::slot::Slot;
use super::whiteout::leftovers;
use super::{Caller, Entry, Layout, Res};
use crate::fop::{Attr, Errno, FileKind, RENAME_EXCHANGE, RENAME_NOREPLACE};
use std::sync::Arc;

/// The default ACL of a directory.
const XATTR_DEFAULT_ACL: &[u8] = b"system.posix_acl_default";
/// The ACL of an object.
const XATTR_ACL: &[u8] = b"system.posix_acl_access";

/// A longer symbolic link is none.
const TARGET_BYTES_MAX: usize = 4095;

/// Where something new goes.
pub(super) struct Site {
    pub(super) slot: Arc<Slot>,
    /// The parent there.
    pub(super) dir: Handle,
    /// What hid the name there until now; whether it lies under the name itself.
    whiteout: Option<bool>,
    /// Lower branches show a directory of that name.
    over_dir: bool,
}

impl Union {
    /// mknod(2), and creat(2) with [`FileKind::File`]; counts one reference.
    ///
    /// # Errors
    /// `EEXIST` when the name is there; `EPERM` for AUFS's own names; `EROFS` where no branch can take it.
    pub fn mknod(&self, parent: u64, name: &[u8], kind: FileKind, mode: u32, rdev: u64, caller: &Caller) -> Res<Entry> {
        if kind == FileKind::Dir || kind == FileKind::Symlink {
            return Err(Errno::EINVAL);
        }
        if kind == FileKind::CharDevice && rdev == 0 && self.config.layout == Layout::Overlay {
            // overlayfs would take it for a whiteout.
            return Err(Errno::EPERM);
        }
        self.make(parent, name, New { kind, mode, rdev, target: b"", uid: caller.uid, gid: caller.gid }, caller.umask)
    }

    /// mkdir(2); counts one reference.
    ///
    /// # Errors
    /// As `mknod`.
    pub fn mkdir(&self, parent: u64, name: &[u8], mode: u32, caller: &Caller) -> Res<Entry> {
        self.make(parent, name, New { kind: FileKind::Dir, mode, rdev: 0, target: b"", uid: caller.uid, gid: caller.gid }, caller.umask)
    }

    /// symlink(2); counts one reference.
    ///
    /// # Errors
    /// As `mknod`.
    pub fn symlink(&self, parent: u64, name: &[u8], target: &[u8], caller: &Caller) -> Res<Entry> {
        if target.is_empty() || target.contains(&0) {
            return Err(Errno::ENOENT);
        }
        if target.len() > TARGET_BYTES_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        self.make(parent, name, New { kind: FileKind::Symlink, mode: 0o777, rdev: 0, target, uid: caller.uid, gid: caller.gid }, 0)
    }

    /// open(2) with `O_TMPFILE`: a file without a name, to which [`Self::link`] may give one; counts one reference.
    ///
    /// # Errors
    /// As `mknod`; `EOPNOTSUPP` where the branch has no such files.
    pub fn tmpfile(&self, parent: u64, mode: u32, caller: &Caller) -> Res<Entry> {
        let new = New { kind: FileKind::File, mode, rdev: 0, target: &[], uid: caller.uid, gid: caller.gid };
        let parent = self.directory(parent)?;
        self.at_site(&parent, None, None, |_, site| {
            let inherited = self.inherit(site, new, caller.umask)?;
            let (slot, branch, own) = (&site.slot, &site.slot.branch, site.slot.own()?);
            let (mut stat, handle) = slot.make_unnamed(&own.work, &inherited.new)?.ok_or(Errno::EOPNOTSUPP)?;
            if let Some(acl) = &inherited.acl {
                branch.set_xattr(At::Open(&handle), XATTR_ACL, acl, 0)?;
                stat = branch.stat(At::Open(&handle))?;
            }
            let (number, spot) = (self.numbers.of(&stat), Spot::Open(handle.clone()));
            let found = FoundFile { name_slot: Arc::clone(slot), slot: Arc::clone(slot), spot, stat, number, lazy: None };
            let node = self.node_of_file(&found)?;
            lock(&self.files).put(node.ino, OpenFile::new(slot, handle, true, None));
            self.table.refer(&node);
            Ok(Entry { ino: node.ino, generation: 0, attr: self.file_attr(node.ino, &found.stat) })
        })
    }

    fn make(&self, parent: u64, name: &[u8], new: New<'_>, umask: u32) -> Res<Entry> {
        makeable(name)?;
        let parent = self.directory(parent)?;
        self.at_site(&parent, Some(name), None, |dir, site| {
            let inherited = self.inherit(site, new, umask)?;
            let (stat, open) = self.make_at(site, name, &inherited)?;
            dir.changed();
            let (node, attr) = self.new_node(&parent, name, dir, site, &stat)?;
            if let Some(handle) = open {
                // Whoever made it will most likely write to it.
                lock(&self.files).put(node.ino, OpenFile::new(&site.slot, handle, true, None));
            }
            self.table.refer(&node);
            Ok(Entry { ino: node.ino, generation: 0, attr })
        })
    }

    /// Locks the parent and runs `f` with the place for a new name, or for what has none yet; `within`: only in that branch.
    pub(super) fn at_site<T>(
        &self,
        parent: &Arc<Node>,
        name: Option<&[u8]>,
        within: Option<&Arc<Slot>>,
        f: impl FnOnce(&mut DirState, &Site) -> Res<T>,
    ) -> Res<T> {
        let mut chosen: Option<Arc<Slot>> = within.cloned();
        for _ in 0..ATTEMPTS_MAX {
            let mut dir = parent.dir_mut()?;
            let whiteout = match name {
                Some(name) => self.free_name(&dir, name)?,
                None if dir.dead => return Err(Errno::ENOENT),
                None => None,
            };
            let slot = match chosen.take() {
                // It was good a moment ago.
                Some(slot) if whiteout.as_ref().is_none_or(|w| slot.rank() <= w.rank) => slot,
                _ => self.create_slot(&dir, whiteout.as_ref(), within)?,
            };
            let Some(layer) = dir.layer(&slot) else {
                drop(dir);
                self.ensure_layer(parent, &slot)?;
                chosen = Some(slot);
                continue;
            };
            // The search ended at the whiteout; what it hides is still there.
            let over_dir = match name.filter(|_| whiteout.is_some()) {
                Some(name) => self.shows_below(dir.below(slot.rank()), name)? == Some(FileKind::Dir),
                None => false,
            };
            let here = whiteout.filter(|w| w.rank == slot.rank()).map(|w| w.in_place);
            let site = Site { slot: Arc::clone(&slot), dir: layer.dir.clone(), whiteout: here, over_dir };
            return f(&mut dir, &site);
        }
        Err(Errno::EBUSY)
    }

    /// What hides a name that is free.
    fn free_name(&self, dir: &DirState, name: &[u8]) -> Res<Option<Whiteout>> {
        if dir.dead {
            return Err(Errno::ENOENT);
        }
        match self.search(&dir.layers, dir.limit, name)? {
            Found::Nothing(whiteout) => Ok(whiteout),
            _ => Err(Errno::EEXIST),
        }
    }

    fn create_slot(&self, dir: &DirState, whiteout: Option<&Whiteout>, within: Option<&Arc<Slot>>) -> Res<Arc<Slot>> {
        let bound = whiteout.map_or(usize::MAX, |w| w.rank + 1);
        if let Some(within) = within {
            return if within.rank() < bound { Ok(Arc::clone(within)) } else { Err(Errno::EXDEV) };
        }
        let candidates = self.candidates(dir, bound);
        self.policies.create(&candidates).ok_or(Errno::EROFS)
    }

    /// Group, mode and ACL of a new object: a set-group-id directory hands its group down, a default ACL takes the umask's place.
    fn inherit<'a>(&self, site: &Site, new: New<'a>, umask: u32) -> Res<Inherited<'a>> {
        let (branch, at) = (&site.slot.branch, At::Open(&site.dir));
        let parent = branch.stat(at)?;
        let mut new = New { mode: new.mode & 0o7777, ..new };
        if parent.mode & 0o2000 != 0 {
            new.gid = parent.gid;
            if new.kind == FileKind::Dir {
                new.mode |= 0o2000;
            }
        }
        let default = match branch.get_xattr(at, XATTR_DEFAULT_ACL) {
            Ok(acl) if new.kind != FileKind::Symlink => Some(acl),
            Ok(_) | Err(Errno::ENODATA | Errno::EOPNOTSUPP) => None,
            Err(e) => return Err(e),
        };
        let acl = default.as_deref().and_then(|acl| crate::store::acl::inherit(acl, new.mode));
        match &acl {
            Some((_, mode)) => new.mode = *mode,
            None if new.kind != FileKind::Symlink => new.mode &= !umask,
            None => {}
        }
        let default = default.filter(|_| new.kind == FileKind::Dir);
        Ok(Inherited { has_acl: acl.is_some(), acl: acl.and_then(|(acl, _)| acl), default, new })
    }

    /// Makes the object in its place, in one step. A file may be open then.
    fn make_at(&self, site: &Site, name: &[u8], inherited: &Inherited<'_>) -> Res<(Stat, Option<Handle>)> {
        let (slot, new) = (&site.slot, &inherited.new);
        let is_dir = new.kind == FileKind::Dir;
        let opaque = is_dir && site.over_dir;
        let in_place = site.whiteout == Some(true);
        // What the file system makes with one call needs no detour. It makes objects as root.
        let zero = new.kind == FileKind::CharDevice && new.rdev == 0;
        let plain = !zero && new.uid == 0 && new.gid == 0 && new.mode & 0o7000 == 0 && !inherited.has_acl;
        let made = if plain && !opaque && !in_place {
            match new.kind {
                FileKind::File => slot.branch.make_open(&site.dir, name, new)?,
                _ => (slot.branch.make(&site.dir, name, new)?, None),
            }
        } else {
            let (temp, mut stat) = self.make_in_work(slot, new)?;
            let own = slot.own()?;
            let done = self.finish_in_work(slot, &temp, inherited, opaque).and_then(|()| {
                // Another host may have made it meanwhile.
                let flags = if !in_place {
                    RENAME_NOREPLACE
                } else if is_dir {
                    RENAME_EXCHANGE
                } else {
                    0
                };
                slot.branch.rename(&own.work, &temp, &site.dir, name, flags)
            });
            if done.is_err() || (in_place && is_dir) {
                leftovers(slot.delete_tree(&own.work, &temp));
            }
            done?;
            if inherited.has_acl {
                stat = slot.branch.stat(At::Name(&site.dir, name))?;
            }
            (stat, None)
        };
        if site.whiteout == Some(false) {
            leftovers(self.drop_whiteout(slot, &site.dir, name));
        }
        Ok(made)
    }

    fn finish_in_work(&self, slot: &Slot, temp: &[u8], inherited: &Inherited<'_>, opaque: bool) -> Res<()> {
        let own = slot.own()?;
        let at = At::Name(&own.work, temp);
        for (name, acl) in [(XATTR_ACL, &inherited.acl), (XATTR_DEFAULT_ACL, &inherited.default)] {
            if let Some(acl) = acl {
                slot.branch.set_xattr(at, name, acl, 0)?;
            }
        }
        if inherited.new.kind == FileKind::CharDevice && inherited.new.rdev == 0 {
            slot.branch.set_xattr(at, XATTR_DEVICE, b"y", 0)?;
        }
        if opaque {
            self.make_opaque(slot, &slot.branch.open(at, Open::Path)?)?;
        }
        Ok(())
    }

    /// The node of what was just made.
    fn new_node(&self, parent: &Arc<Node>, name: &[u8], dir: &DirState, site: &Site, stat: &Stat) -> Res<(Arc<Node>, Attr)> {
        let found = if stat.kind == FileKind::Dir {
            self.search(&dir.layers, dir.limit, name)?
        } else {
            let spot = Spot::Name(site.dir.clone(), name.into());
            let (slot, name_slot) = (Arc::clone(&site.slot), Arc::clone(&site.slot));
            Found::File(FoundFile { name_slot, slot, spot, stat: stat.clone(), number: self.numbers.of(stat), lazy: None })
        };
        self.node_of(parent, name, found, dir.epoch)
    }

    /// link(2); counts one reference.
    ///
    /// # Errors
    /// As `mknod`; `EXDEV` when the name is hidden above the branch that the object must stay in.
    pub fn link(&self, ino: u64, parent: u64, name: &[u8]) -> Res<Entry> {
        makeable(name)?;
        let node = self.table.get(ino)?;
        let parent = self.directory(parent)?;
        if node.is_dir() {
            return self.free_name(&*parent.dir()?, name).and(Err(Errno::EPERM));
        }
        self.make_writable(&node, u64::MAX)?;
        let mut slot = Arc::clone(&node.file()?.slot);
        let above = {
            let dir = parent.dir()?;
            // A link must be in the object's branch, and nothing above may hide it there.
            let hidden = self.free_name(&dir, name)?.is_some_and(|w| w.rank < slot.rank());
            let possible = dir.layer(&slot).is_some() || slot.rank() < dir.limit;
            if hidden || !possible { Some(self.policies.create(&self.candidates(&dir, slot.rank())).ok_or(Errno::EXDEV)?) } else { None }
        };
        if let Some(above) = above {
            self.copy_up(&node, Some(&above), u64::MAX)?;
            slot = Arc::clone(&node.file()?.slot);
        }
        self.at_site(&parent, Some(name), Some(&slot), |dir, site| {
            let mut file = node.file_mut()?;
            let branch = &site.slot.branch;
            if file.lazy.is_some() || self.numbers.of(&branch.stat(file.spot.at())?) != node.ino {
                self.mark_impure(dir, &slot)?;
            }
            if site.whiteout == Some(true) {
                let own = slot.own()?;
                let temp = own.temp_name();
                branch.link(file.spot.at(), &own.work, &temp)?;
                branch.rename(&own.work, &temp, &site.dir, name, 0)?;
            } else {
                branch.link(file.spot.at(), &site.dir, name)?;
            }
            if site.whiteout == Some(false) {
                leftovers(self.drop_whiteout(&slot, &site.dir, name));
            }
            let mut stat = branch.stat(file.spot.at())?;
            if let Some(lazy) = &file.lazy {
                stat.blocks = lazy.blocks(&stat);
            }
            if matches!(file.spot, Spot::Open(_)) {
                // It had no name.
                file.spot = Spot::Name(site.dir.clone(), name.into());
            }
            self.gained_name(node.ino);
            drop(file);
            node.add_name(&parent, name);
            dir.changed();
            self.table.refer(&node);
            Ok(Entry { ino: node.ino, generation: 0, attr: self.file_attr(node.ino, &stat) })
        })
    }
}

/// A new object with what it has from its parent.
pub(super) struct Inherited<'a> {
    new: New<'a>,
    has_acl: bool,
    acl: Option<Vec<u8>>,
    default: Option<Vec<u8>>,
}
