//! Resolution: what a name is in a stack of directories. Top-down; a whiteout or an opaque directory ends the search; directories merge,
//! anything else hides what is below.

use super::Res;
use super::branch::{At, Handle, Open, Stat};
use super::core::Union;
use super::lazy::{self, Lazy};
use super::names::{OPAQUE, XATTR_DEVICE, XATTR_IMPURE, XATTR_NUMBER, XATTR_REDIRECT, is_private, overlay_word, whiteout};
use super::node::{Layer, Marks, Spot};
use super::numbers;
use super::slot::Slot;
use crate::fop::{Errno, FileKind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What a name is.
#[derive(Debug)]
pub(super) enum Found {
    /// Nothing; a whiteout ended the search there.
    Nothing(Option<Whiteout>),
    File(FoundFile),
    Dir(FoundDir),
}

/// What hides a name.
#[derive(Clone, Debug)]
pub(super) struct Whiteout {
    pub(super) rank: usize,
    /// It lies under the name itself (overlayfs's), not under `.wh.NAME`.
    pub(super) in_place: bool,
}

#[derive(Debug)]
pub(super) struct FoundFile {
    /// Where the name lies.
    pub(super) name_slot: Arc<Slot>,
    /// Where the object lies: another one than `name_slot` when a hard link of it was copied up.
    pub(super) slot: Arc<Slot>,
    pub(super) spot: Spot,
    pub(super) stat: Stat,
    pub(super) number: u64,
    /// Not all of it was copied up.
    pub(super) lazy: Option<Arc<Lazy>>,
}

#[derive(Debug)]
pub(super) struct FoundDir {
    pub(super) layers: Vec<Layer>,
    pub(super) limit: usize,
    /// Of the topmost layer.
    pub(super) stat: Stat,
    pub(super) number: u64,
}

/// A search under way, as far as directories were found.
struct Stack {
    layers: Vec<Layer>,
    stat: Option<Stat>,
    limit: usize,
}

impl Stack {
    fn found(self, numbers: &numbers::Numbers, whiteout: Option<Whiteout>) -> Found {
        match (self.stat, self.layers.first()) {
            (Some(stat), Some(top)) => {
                let number = top.marks.number.unwrap_or_else(|| numbers.of(&stat));
                Found::Dir(FoundDir { number, limit: self.limit, stat, layers: self.layers })
            }
            _ => Found::Nothing(whiteout),
        }
    }

    fn end(&mut self, limit: usize) {
        self.limit = self.limit.min(limit);
    }
}

impl Union {
    /// Looks `name` up in `layers`, a directory's from some branch down. `limit` is the directory's.
    pub(super) fn search(&self, layers: &[Layer], limit: usize, name: &[u8]) -> Res<Found> {
        let mut stack = Stack { layers: Vec::new(), stat: None, limit };
        let hiding = self.search_into(&mut stack, layers, name, 0)?;
        match hiding {
            End::File(file) => Ok(Found::File(file)),
            End::Whiteout(w) => Ok(stack.found(&self.numbers, Some(w))),
            End::Nothing => Ok(stack.found(&self.numbers, None)),
        }
    }

    fn search_into(&self, stack: &mut Stack, layers: &[Layer], name: &[u8], depth: usize) -> Res<End> {
        for (i, layer) in layers.iter().enumerate() {
            let (branch, rank) = (&layer.slot.branch, layer.slot.rank());
            let at = At::Name(&layer.dir, name);
            let stat = match branch.stat(at) {
                Ok(stat) => stat,
                Err(Errno::ENOENT) => {
                    // With nothing below it, it hides nothing.
                    let last = i + 1 == layers.len();
                    if !last && layer.slot.perm().honours_whiteouts() && self.has_whiteout(layer, name)? {
                        stack.end(rank);
                        return Ok(End::Whiteout(Whiteout { rank, in_place: false }));
                    }
                    continue;
                }
                Err(e) => return Err(e),
            };
            if self.is_overlay_whiteout(layer, at, &stat)? {
                stack.end(rank);
                return Ok(End::Whiteout(Whiteout { rank, in_place: true }));
            }
            if stat.kind != FileKind::Dir {
                stack.end(rank);
                return if stack.layers.is_empty() { self.file(layer, name, stat).map(End::File) } else { Ok(End::Nothing) };
            }
            let dir = match branch.open(at, Open::Path) {
                Ok(dir) => dir,
                Err(Errno::ENOENT) => continue,
                Err(e) => return Err(e),
            };
            let (watch, fresh) = layer.slot.watch(&dir, stat.id);
            // It is watched from here on; what was seen before that does not count.
            let stat = if fresh { branch.stat(At::Open(&dir))? } else { stat };
            let below = i + 1 < layers.len();
            let marks = self.marks(&layer.slot, &dir, stat.ino, below)?;
            let (opaque, redirect) = (marks.opaque, marks.redirect.clone());
            stack.layers.push(Layer { slot: Arc::clone(&layer.slot), dir, id: stat.id, marks: Arc::new(marks), watch });
            stack.stat.get_or_insert(stat);
            if opaque {
                stack.end(rank + 1);
                return Ok(End::Nothing);
            }
            if let Some(path) = redirect {
                stack.end(rank + 1);
                return self.follow(stack, layers, i, &path, depth);
            }
        }
        Ok(End::Nothing)
    }

    /// Goes on below a renamed directory, under the name that it had.
    fn follow(&self, stack: &mut Stack, layers: &[Layer], at: usize, path: &[u8], depth: usize) -> Res<End> {
        /// Redirects behind redirects; each goes at least one branch down.
        const DEPTH_MAX: usize = super::config::BRANCHES_MAX;
        if depth > DEPTH_MAX {
            return Err(Errno::EIO);
        }
        let Some(absolute) = path.strip_prefix(b"/") else {
            return self.search_into(stack, &layers[at + 1..], path, depth + 1);
        };
        let mut components: Vec<&[u8]> = absolute.split(|b| *b == b'/').filter(|c| !c.is_empty()).collect();
        let Some(last) = components.pop() else { return Ok(End::Nothing) };
        let rank = layers[at].slot.rank();
        let mut dirs: Vec<Layer> = self.roots().iter().filter(|l| l.slot.rank() > rank).cloned().collect();
        for component in components {
            match self.search(&dirs, usize::MAX, component)? {
                Found::Dir(found) => dirs = found.layers,
                _ => return Ok(End::Nothing),
            }
        }
        self.search_into(stack, &dirs, last, depth + 1)
    }

    /// Whether a name is hidden by a `.wh.` name in this layer.
    pub(super) fn has_whiteout(&self, layer: &Layer, name: &[u8]) -> Res<bool> {
        let hidden = whiteout(name);
        if hidden.len() > crate::fop::NAME_BYTES_MAX {
            return Ok(false);
        }
        match layer.slot.branch.stat(At::Name(&layer.dir, &hidden)) {
            Ok(_) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(e) => Err(e),
        }
    }

    pub(super) fn is_overlay_whiteout(&self, layer: &Layer, at: At<'_>, stat: &Stat) -> Res<bool> {
        if stat.kind == FileKind::CharDevice {
            return Ok(stat.rdev == 0 && matches!(layer.slot.branch.get_xattr(at, XATTR_DEVICE), Err(Errno::ENODATA | Errno::EOPNOTSUPP)));
        }
        if !layer.marks.attribute_whiteouts || stat.kind != FileKind::File || stat.size > 0 {
            return Ok(false);
        }
        Ok(layer.slot.branch.list_xattr(at)?.iter().any(|n| overlay_word(n) == Some(b"whiteout")))
    }

    fn file(&self, layer: &Layer, name: &[u8], mut stat: Stat) -> Res<FoundFile> {
        let slot = &layer.slot;
        let at = At::Name(&layer.dir, name);
        if layer.marks.overlay_impure
            && stat.kind == FileKind::File
            && slot.branch.list_xattr(at)?.iter().any(|n| overlay_word(n) == Some(b"metacopy"))
        {
            tracing::error!(branch = slot.source.label(), name = %String::from_utf8_lossy(name), "an overlayfs metacopy file: its data lies elsewhere, which is not supported yet");
            return Err(Errno::EOPNOTSUPP);
        }
        let carried = if layer.marks.impure { self.numbers.carried(&*slot.branch, at, stat.ino, stat.id)? } else { None };
        let number = carried.and_then(|c| c.number).unwrap_or_else(|| self.numbers.of(&stat));
        if stat.nlink > 1
            && let Some(plink) = self.plink(layer, &stat, number)?
        {
            return Ok(plink);
        }
        let spot = Spot::Name(layer.dir.clone(), name.into());
        // One that somebody moved into a directory that looks as if nothing was copied up into it.
        let moved = || -> Res<bool> {
            let ask = !layer.marks.impure && lazy::may_lack_data(&stat);
            Ok(ask && self.numbers.carried(&*slot.branch, at, stat.ino, stat.id)?.is_some_and(|c| c.lazily))
        };
        let lazy = if carried.is_some_and(|c| c.lazily) || moved()? { self.lazy_of(slot, at, &stat)? } else { None };
        if let Some(lazy) = &lazy {
            stat.blocks = lazy.blocks(&stat);
        }
        Ok(FoundFile { name_slot: Arc::clone(slot), slot: Arc::clone(slot), spot, stat, number, lazy })
    }

    /// The copy of a hard-linked file, where another name of it was copied up.
    fn plink(&self, layer: &Layer, stat: &Stat, number: u64) -> Res<Option<FoundFile>> {
        for slot in self.view().slots.iter().take_while(|s| s.rank() < layer.slot.rank()).filter(|s| s.writable()) {
            let own = slot.own()?;
            let Some(plinks) = own.plinks.as_ref().filter(|_| own.any_plinks.load(Ordering::Acquire)) else { continue };
            let name = plink_name(number, stat);
            match slot.branch.stat(At::Name(plinks, &name)) {
                Ok(stat) => {
                    let spot = Spot::Name(plinks.clone(), name[..].into());
                    return Ok(Some(FoundFile {
                        name_slot: Arc::clone(&layer.slot),
                        slot: Arc::clone(slot),
                        spot,
                        stat,
                        number,
                        lazy: None,
                    }));
                }
                Err(Errno::ENOENT) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }

    /// What a directory says of itself. `below`: whether it matters that it is opaque.
    pub(super) fn marks(&self, slot: &Slot, dir: &Handle, own: u64, below: bool) -> Res<Marks> {
        let at = At::Open(dir);
        let mut marks = Marks::default();
        for name in slot.branch.list_xattr(at)? {
            match &name[..] {
                XATTR_IMPURE => marks.impure = true,
                XATTR_REDIRECT => marks.redirect = Some(slot.branch.get_xattr(at, &name)?),
                XATTR_NUMBER => marks.number = numbers::parse(&slot.branch.get_xattr(at, &name)?, own),
                other => match overlay_word(other) {
                    Some(b"opaque") => match &slot.branch.get_xattr(at, &name)?[..] {
                        b"y" => marks.opaque = true,
                        b"x" => marks.attribute_whiteouts = true,
                        _ => {}
                    },
                    Some(b"redirect") if marks.redirect.is_none() => marks.redirect = Some(slot.branch.get_xattr(at, &name)?),
                    Some(b"impure" | b"origin") => marks.overlay_impure = true,
                    _ => {}
                },
            }
        }
        if !marks.opaque && below && slot.perm().honours_whiteouts() {
            marks.opaque = slot.branch.stat(At::Name(dir, OPAQUE)).is_ok();
        }
        Ok(marks)
    }

    /// Whether the branches below `rank` show `name` in a directory with these layers.
    pub(super) fn shows_below(&self, below: &[Layer], name: &[u8]) -> Res<Option<FileKind>> {
        if below.is_empty() {
            return Ok(None);
        }
        Ok(match self.search(below, usize::MAX, name)? {
            Found::Nothing(_) => None,
            Found::File(f) => Some(f.stat.kind),
            Found::Dir(_) => Some(FileKind::Dir),
        })
    }
}

enum End {
    Nothing,
    Whiteout(Whiteout),
    File(FoundFile),
}

/// The name that keeps hard links together.
pub(super) fn plink_name(number: u64, lower: &Stat) -> Vec<u8> {
    format!("{number}.{}", lower.ino).into_bytes()
}

/// Refuses names that cannot be looked up: `ENOENT` for ours.
pub(super) fn visible(name: &[u8]) -> Res<()> {
    if is_private(name) { Err(Errno::ENOENT) } else { well_formed(name) }
}

/// Refuses names that cannot be made.
pub(super) fn makeable(name: &[u8]) -> Res<()> {
    if is_private(name) { Err(Errno::EPERM) } else { well_formed(name) }
}

fn well_formed(name: &[u8]) -> Res<()> {
    if name.len() > crate::fop::NAME_BYTES_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    if matches!(name, b"" | b"." | b"..") || name.iter().any(|b| matches!(b, 0 | b'/')) {
        return Err(Errno::EINVAL);
    }
    Ok(())
}
