//! Where a scout is in the tree: depth first, each directory in the order of its listing.

use super::super::branch::{At, Fetched, Handle};
use super::super::core::Union;
use super::super::listing::Listing;
use super::super::names::XATTR_LAZY;
use super::super::node::{DirState, Name, Node, lock};
use super::super::slot::Slot;
use crate::fop::FileKind;
use std::sync::Arc;

/// Directories that are held at once; beyond that, the outermost is found again when it is its turn.
const DEPTH_MAX: usize = 16;
/// Directories gone through in search of one file, after which a walk ends.
const DIRS_MAX: usize = 256;

/// A directory that is being scouted.
#[derive(Debug)]
struct Level {
    node: Arc<Node>,
    listing: Arc<Listing>,
    /// The next entry.
    next: usize,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Front {
    /// The innermost one is the last; empty: `start` says where to begin.
    levels: Vec<Level>,
    start: Option<(Arc<Node>, Name)>,
}

/// A file to fetch.
pub(super) struct Target {
    pub(super) ino: u64,
    /// The union's directory.
    pub(super) dir: u64,
    slot: Arc<Slot>,
    holder: Handle,
    name: Box<[u8]>,
}

enum Next {
    File(Target),
    Dir(Level),
    /// Nothing to fetch.
    Other,
    /// It is not what it was.
    Gone,
}

impl Front {
    /// Begins after `name` in `dir`.
    pub(super) fn after(dir: Arc<Node>, name: Name) -> Self {
        Self { levels: Vec::new(), start: Some((dir, name)) }
    }
}

impl Target {
    /// Has the file's start fetched.
    pub(super) fn fetch(&self, bytes: u64) -> Fetched {
        self.slot.branch.fetch(At::Name(&self.holder, &self.name), bytes).unwrap_or(Fetched::InMemory)
    }
}

/// Whether all of a directory can be scouted: no volume has a part in it.
fn is_near(dir: &DirState) -> bool {
    dir.layers.iter().all(|l| l.slot.branch.fetches())
}

impl Union {
    /// The next file; `None` at the end.
    pub(super) fn next_ahead(&self, front: &mut Front) -> Option<Target> {
        if let Some((dir, name)) = front.start.take() {
            front.levels.push(self.level_after(dir, &name)?);
        }
        let mut dirs = 0;
        while dirs < DIRS_MAX {
            let level = front.levels.last_mut()?;
            let Some(next) = self.step(level) else {
                dirs += 1;
                let done = front.levels.pop()?;
                if front.levels.is_empty() {
                    let (parent, name) = done.node.place()?;
                    front.levels.push(self.level_after(parent, &name)?);
                }
                continue;
            };
            match next {
                Next::File(target) => return Some(target),
                Next::Dir(inner) => {
                    if front.levels.len() >= DEPTH_MAX {
                        front.levels.remove(0);
                    }
                    front.levels.push(inner);
                }
                Next::Other => {}
                Next::Gone => return None,
            }
        }
        None
    }

    /// A directory, after one of its names. Only one that somebody has listed: nobody else walks.
    fn level_after(&self, node: Arc<Node>, name: &[u8]) -> Option<Level> {
        let kept = lock(&node.dir().ok()?.listing).clone();
        let listing = kept.or_else(|| self.scout.kept(node.ino))?;
        let next = listing.after(name);
        Some(Level { node, listing, next })
    }

    /// What is next in a directory; `None` at its end.
    fn step(&self, level: &mut Level) -> Option<Next> {
        let e = level.listing.entry(level.next)?;
        level.next += 1;
        match e.kind {
            FileKind::File => {
                let Ok(dir) = level.node.dir() else { return Some(Next::Gone) };
                if dir.dead || !level.listing.is_of(dir.epoch) {
                    return Some(Next::Gone);
                }
                let Some(layer) = dir.layers.iter().find(|l| l.slot.rank() == e.rank) else { return Some(Next::Other) };
                if !layer.slot.branch.fetches() {
                    return Some(Next::Other);
                }
                // Of a lazy copy the data lies elsewhere; each carries a number.
                let at = At::Name(&layer.dir, e.name);
                if layer.marks.impure && layer.slot.branch.get_xattr(at, XATTR_LAZY).is_ok() {
                    return Some(Next::Other);
                }
                let (slot, holder) = (Arc::clone(&layer.slot), layer.dir.clone());
                Some(Next::File(Target { ino: e.ino, dir: level.node.ino, slot, holder, name: e.name.into() }))
            }
            FileKind::Dir => Some(self.inner(level, e.ino, e.name).map_or(Next::Other, Next::Dir)),
            _ => Some(Next::Other),
        }
    }

    /// A directory in the one that is being scouted, from its start.
    fn inner(&self, level: &Level, ino: u64, name: &[u8]) -> Option<Level> {
        if !is_near(&*level.node.dir().ok()?) {
            return None;
        }
        let known = self.table.find(ino).filter(|n| n.is_dir() && n.place().is_some_and(|(p, at)| p.ino == level.node.ino && *at == *name));
        let node = match known {
            Some(node) => node,
            None => self.find(&level.node, name).ok()?.0,
        };
        if !is_near(&*node.dir().ok()?) {
            return None;
        }
        self.refresh(&node).ok()?;
        let listing = self.listing(&node, false).ok()?;
        Some(Level { node, listing, next: 0 })
    }
}
