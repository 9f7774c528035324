//! How lazy copies come and go, with their bitmaps.

use super::super::branch::{At, Handle, New, Open, Stat};
use super::super::core::Union;
use super::super::names::{LAZY, XATTR_LAZY, is_private};
use super::super::node::{Name, Node, Spot};
use super::super::slot::{OURS, Slot};
use super::super::whiteout::leftovers;
use super::super::{Layout, Res};
use super::bits::bytes_for;
use super::flush::{drop_bitmap, is_no_room};
use super::lower::{lies_at, walk};
use super::mark::Mark;
use super::{Lazy, LazyFile};
use crate::fop::{Errno, FileKind, SetAttr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Which data a copy-up copies.
pub(in crate::union) enum How {
    /// All of it.
    Whole,
    /// None: the lower file lies under this path of its branch.
    Lazily(Vec<u8>),
    /// All of it, of a file that is a lazy copy itself, held here.
    Through(Arc<Lazy>, Handle),
}

/// Whether there may be no room among a file's extended attributes.
pub(in crate::union) fn lacks_xattr_room(e: Errno) -> bool {
    // The last is what some file systems say to a large attribute.
    matches!(e, Errno::ENOSPC | Errno::ERANGE | Errno::E2BIG)
}

impl Union {
    /// Decides how a file's data is copied up. `place`: where its name is.
    pub(in crate::union) fn how_to_copy(
        &self,
        node: &Node,
        place: Option<(&Arc<Node>, &Name)>,
        from: (&Arc<Slot>, &Spot, &Stat),
        target: &Arc<Slot>,
        keep: u64,
    ) -> Res<How> {
        let (slot, spot, stat) = from;
        if stat.kind != FileKind::File {
            return Ok(How::Whole);
        }
        if let Some(lazy) = node.file()?.lazy.clone().filter(|lazy| !lazy.is_done()) {
            return Ok(How::Through(lazy, slot.branch.open(spot.at(), Open::ReadQuietly)?));
        }
        let size = stat.size.min(keep);
        let wanted = size > 0 && size >= self.lazy.bytes_min.load(Ordering::Acquire);
        // What is written below would show above.
        let steady = stat.nlink == 1 && !slot.writable() && !slot.is_gone();
        let (Some((parent, name)), true) = (place, wanted && steady && self.config.layout == Layout::Aufs) else {
            return Ok(How::Whole);
        };
        let path = self.path_below(parent, name, target)?.split_off(1);
        // Where a branch between the two redirects, it lies elsewhere.
        Ok(if lies_at(slot, &path, stat) { How::Lazily(path) } else { How::Whole })
    }

    /// Makes a new file in the work directory, open, a lazy copy; `None` where the target cannot hold what says so.
    pub(in crate::union) fn begin_lazily(
        &self,
        source: &Slot,
        lower: &Stat,
        path: &[u8],
        target: &Arc<Slot>,
        copy: (&Handle, &Stat),
        size: u64,
    ) -> Res<Option<Arc<Lazy>>> {
        let (handle, made) = copy;
        let mark = Mark {
            own: made.ino,
            id: rand::random(),
            block: self.lazy.block_bytes(lower.size),
            limit: size,
            ino: lower.ino,
            size: lower.size,
            mtime: lower.mtime,
            blocks: lower.blocks,
            branch: source.source.label().into_bytes(),
            path: path.to_vec(),
        };
        let branch = &target.branch;
        // The mark first: whoever sweeps the work directory finds the bitmap by it.
        let marked = branch.set_xattr(At::Open(handle), XATTR_LAZY, &mark.to_bytes(), 0).and_then(|()| make_bitmap(target, &mark));
        match marked {
            Ok(()) => {}
            Err(e) if lacks_xattr_room(e) || matches!(e, Errno::EOPNOTSUPP | Errno::ENAMETOOLONG) => {
                leftovers(drop_bitmap(target, &mark));
                return match branch.remove_xattr(At::Open(handle), XATTR_LAZY) {
                    Ok(()) | Err(Errno::ENODATA | Errno::EOPNOTSUPP) => Ok(None),
                    Err(e) => Err(e),
                };
            }
            Err(e) => {
                leftovers(drop_bitmap(target, &mark));
                return Err(e);
            }
        }
        let sized = branch.set_attr(At::Open(handle), &SetAttr { size: Some(size), ..SetAttr::default() });
        if let Err(e) = sized {
            leftovers(drop_bitmap(target, &mark));
            return Err(e);
        }
        Ok(Some(self.lazy.keep(Lazy::new(target, &Stat { size, ..made.clone() }, mark, None))))
    }

    /// A lazy copy gets no place.
    pub(in crate::union) fn discard_lazy(&self, lazy: &Lazy) {
        self.lazy.forget(lazy);
        leftovers(drop_bitmap(&lazy.slot, &lazy.mark));
    }

    /// Takes a name away by `remove`, and the bitmap if the name was a lazy copy's last one.
    pub(in crate::union) fn removing(
        &self,
        slot: &Arc<Slot>,
        dir: &Handle,
        name: &[u8],
        lazy: Option<&Arc<Lazy>>,
        remove: impl FnOnce() -> Res<()>,
    ) -> Res<()> {
        let Some(lazy) = lazy.filter(|lazy| !lazy.is_done() && Arc::ptr_eq(&lazy.slot, slot)) else { return remove() };
        let _removing = self.lazy.removing();
        let (own, branch) = (slot.own()?, &slot.branch);
        let only = branch.stat(At::Name(dir, name))?.nlink == 1;
        // Who has it open goes on, and who does not is not kept from removing it by a bitmap that cannot be read.
        if only && let Err(e) = lazy.remember() {
            tracing::warn!(error = %e, "the bitmap of a file of which not all was copied up cannot be read, and the file is removed");
        }
        let kept = own.temp_name();
        let held = match branch.link(At::Name(dir, name), &own.work, &kept) {
            Ok(()) => true,
            // Who removes a file may do so to make room. A cut right after it leaves a bitmap that nobody needs.
            Err(e) if is_no_room(e) || e == Errno::EMLINK => false,
            Err(e) => return Err(e),
        };
        let removed = remove();
        let last = if held { branch.stat(At::Name(&own.work, &kept)).is_ok_and(|stat| stat.nlink == 1) } else { only };
        if removed.is_ok() && last {
            self.lazy.forget(lazy);
            if lazy.broken.is_none() {
                leftovers(drop_bitmap(slot, &lazy.mark));
            }
        }
        if held {
            leftovers(branch.unlink(&own.work, &kept));
        }
        removed
    }

    /// How many files need a branch, since not all was copied up from it, and what one of them is called there.
    pub(in crate::union) fn needed(&self, needed: &Arc<Slot>) -> Res<Option<(usize, String)>> {
        let mut found = Vec::new();
        let needs = |copy: &Arc<Slot>, mark: &Mark| -> Res<bool> {
            Ok(self.lower_slot(copy, mark)?.is_some_and(|(slot, ..)| Arc::ptr_eq(&slot, needed)))
        };
        let mut live = self.lazy.live();
        live.retain(|lazy| !lazy.is_done() && !lazy.slot.is_gone());
        for slot in self.view().slots.iter().filter(|s| !Arc::ptr_eq(s, needed)) {
            let mut unseen = Vec::new();
            for mark in bitmaps(slot)? {
                if !needs(slot, &mark)? {
                    continue;
                }
                let in_use = live.iter().any(|l| l.mark.id == mark.id && Arc::ptr_eq(&l.slot, slot) && has_name(l));
                let at_its_place = || walk(slot, &mark.path).is_ok_and(|(dir, name, _)| carries(slot, At::Name(&dir, &name), &mark));
                if in_use || at_its_place() { found.push(mark) } else { unseen.push(mark) }
            }
            // Somebody moves them while they are looked for, or removed them, and not through a union.
            for _ in 0..2 {
                if !unseen.is_empty() {
                    look_for(slot, &slot.root, &mut unseen, &mut found)?;
                }
            }
        }
        // Of what is open without a name there is no bitmap.
        for lazy in live.iter().filter(|lazy| lazy.removed.load(Ordering::Acquire)) {
            if needs(&lazy.slot, &lazy.mark)? {
                found.push(lazy.mark.clone());
            }
        }
        Ok(found.first().map(|mark| (found.len(), String::from_utf8_lossy(&mark.path).into_owned())))
    }
}

/// Whether a lazy copy that is known was not removed behind the union's back.
fn has_name(lazy: &Lazy) -> bool {
    // While it has data that is not on the disk it is open.
    lazy.state().copy.as_ref().is_some_and(|copy| lazy.branch().stat(At::Open(copy)).is_ok_and(|stat| stat.nlink > 0))
}

/// Whether this is the lazy copy that a bitmap is for.
fn carries(slot: &Slot, at: At<'_>, mark: &Mark) -> bool {
    let there = slot.branch.get_xattr(at, XATTR_LAZY).ok().and_then(|value| Mark::parse(&value));
    there.is_some_and(|m| m.id == mark.id && m.own == mark.own && m.limit > 0)
}

/// Moves the marks whose copies lie below a directory from `unseen` to `found`.
fn look_for(slot: &Slot, dir: &Handle, unseen: &mut Vec<Mark>, found: &mut Vec<Mark>) -> Res<()> {
    let (mut dirs, mut files) = (Vec::new(), Vec::new());
    slot.branch.list(dir, &mut |e| match e.kind {
        FileKind::Dir if !is_private(e.name) => dirs.push(e.name.to_vec()),
        FileKind::File if unseen.iter().any(|mark| mark.own == e.ino) => files.push(e.name.to_vec()),
        _ => {}
    })?;
    for name in files {
        let at = At::Name(dir, &name);
        if let Some(i) = unseen.iter().position(|mark| carries(slot, at, mark)) {
            found.push(unseen.swap_remove(i));
        }
    }
    for name in dirs {
        if unseen.is_empty() {
            break;
        }
        match slot.branch.open(At::Name(dir, &name), Open::Path) {
            Ok(inner) => look_for(slot, &inner, unseen, found)?,
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn make_bitmap(target: &Slot, mark: &Mark) -> Res<()> {
    let branch = &target.branch;
    let (dir, name) = (target.directory(&target.root, LAZY)?, mark.bitmap());
    branch.make(&dir, &name, &New { kind: FileKind::File, mode: 0o600, ..OURS })?;
    let file = branch.open(At::Name(&dir, &name), Open::Write)?;
    let size = bytes_for(mark.size.div_ceil(mark.block));
    // With its space: a disk that is full later shall not lose what was written.
    match branch.fallocate(&file, 0, size, 0) {
        Err(Errno::EOPNOTSUPP) => branch.set_attr(At::Open(&file), &SetAttr { size: Some(size), ..SetAttr::default() })?,
        other => other?,
    }
    // By it `del:` finds out who needs a branch.
    branch.set_xattr(At::Open(&file), XATTR_LAZY, &mark.to_bytes(), 0)?;
    branch.fsync(&file, false)
}

/// The marks of all lazy copies of a branch.
fn bitmaps(slot: &Slot) -> Res<Vec<Mark>> {
    let dir = match slot.branch.open(At::Name(&slot.root, LAZY), Open::Path) {
        Ok(dir) => dir,
        Err(Errno::ENOENT) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut out = Vec::new();
    for name in slot.names(&dir)? {
        match slot.branch.get_xattr(At::Name(&dir, &name), XATTR_LAZY) {
            Ok(value) => out.extend(Mark::parse(&value)),
            Err(Errno::ENODATA | Errno::ENOENT | Errno::EOPNOTSUPP) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(out)
}

/// Removes the bitmaps of lazy copies that have a name in this work directory alone.
pub(in crate::union) fn sweep_bitmaps(slot: &Slot, work: &Handle) -> Res<()> {
    for name in slot.names(work)? {
        let at = At::Name(work, &name);
        let Ok(stat) = slot.branch.stat(at) else { continue };
        if stat.kind != FileKind::File || stat.nlink != 1 {
            continue;
        }
        if let Some(mark) = slot.branch.get_xattr(at, XATTR_LAZY).ok().and_then(|v| Mark::parse(&v)).filter(|m| m.own == stat.ino) {
            drop_bitmap(slot, &mark)?;
        }
    }
    Ok(())
}

impl How {
    /// The lazy copy that it is copied from.
    pub(in crate::union) fn through<'a>(&'a self, node: &'a Node) -> Option<LazyFile<'a>> {
        match self {
            Self::Through(lazy, copy) => Some(LazyFile { node, lazy, copy }),
            _ => None,
        }
    }
}
