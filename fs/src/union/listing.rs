//! Listings. A name's cookie is a hash of it, and a directory is listed in the order of the cookies: so every reader, whenever it started, and
//! after a remount too, finds its place again; each name comes once; and what changes meanwhile neither moves nor doubles the others.

use super::branch::{At, Listed};
use super::core::Union;
use super::names::{WHITEOUT_PREFIX, is_private};
use super::node::{Layer, Node, lock};
use super::{DirEntry, Entry, ROOT_INO, Res};
use crate::fop::{Errno, FileKind};
use std::collections::HashSet;
use std::sync::Arc;

/// The cookie after `.`.
const AFTER_DOT: u64 = 1;
/// The cookie after `..`.
const AFTER_DOT_DOT: u64 = 2;
const HASH_BITS: u32 = 62;
/// A longer listing is not kept once somebody has read it to its end.
const KEPT_ENTRIES_MAX: usize = 20_000;
/// Names of one hash that a scout looks through.
const SAME_HASH_MAX: u64 = 8;

/// A directory's names as they were at one time.
#[derive(Debug)]
pub(super) struct Listing {
    version: u64,
    epoch: u64,
    entries: Vec<ListedName>,
}

/// Names that a layer hides in lower ones.
type Hidden = Vec<Box<[u8]>>;

#[derive(Debug)]
struct ListedName {
    cookie: u64,
    ino: u64,
    kind: FileKind,
    /// The branch where it was found; none above it hides it.
    rank: usize,
    name: Box<[u8]>,
}

/// What a scout needs to know of a listed name.
pub(super) struct Ahead<'a> {
    pub(super) ino: u64,
    pub(super) kind: FileKind,
    pub(super) rank: usize,
    pub(super) name: &'a [u8],
}

impl Listing {
    /// The position after a name, whether it is there or not.
    pub(super) fn after(&self, name: &[u8]) -> usize {
        let from = cookie(name);
        let at = self.entries.partition_point(|e| e.cookie < from);
        // Of names with one hash the later ones have the next cookies.
        let found = self.entries[at..].iter().take_while(|e| e.cookie - from <= SAME_HASH_MAX).position(|e| *e.name == *name);
        found.map_or(at, |i| at + i + 1)
    }

    pub(super) fn entry(&self, at: usize) -> Option<Ahead<'_>> {
        self.entries.get(at).map(|e| Ahead { ino: e.ino, kind: e.kind, rank: e.rank, name: &e.name })
    }

    /// Whether it is of that generation of the branches.
    pub(super) fn is_of(&self, epoch: u64) -> bool {
        self.epoch == epoch
    }
}

fn cookie(name: &[u8]) -> u64 {
    (xxhash_rust::xxh3::xxh3_64(name) >> (64 - HASH_BITS)).max(AFTER_DOT_DOT + 1)
}

impl Union {
    /// Feeds the entries after `position` (0: from the start) to `add` until it says that the buffer is full; the refused entry's reference
    /// is not counted.
    ///
    /// # Errors
    /// As getdents(2).
    pub fn readdir(&self, ino: u64, position: u64, plus: bool, add: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Res<()> {
        let node = self.table.get(ino)?;
        self.refresh(&node)?;
        let parent = node.place().map_or(ROOT_INO, |(parent, _)| parent.ino);
        for (at, next, name, ino) in [(0, AFTER_DOT, &b"."[..], node.ino), (AFTER_DOT, AFTER_DOT_DOT, b"..", parent)] {
            let due = position == at || (position == 0 && at == AFTER_DOT);
            if due && add(DirEntry { cookie: next, name, ino, kind: FileKind::Dir, entry: None }) {
                return Ok(());
            }
        }
        let position = position.max(AFTER_DOT_DOT);
        let listing = self.listing(&node, position == AFTER_DOT_DOT)?;
        let start = listing.entries.partition_point(|e| e.cookie <= position);
        let mut fed = false;
        for e in &listing.entries[start..] {
            let entry = match plus.then(|| self.enter(&node, &listing, e)) {
                Some(Ok(entry)) => Some(entry),
                // Nothing may be missing from a listing for want of descriptors: the next call goes on here.
                Some(Err(e @ (Errno::EMFILE | Errno::ENFILE))) => return if fed { Ok(()) } else { Err(e) },
                // Gone since, or not to be looked at.
                Some(Err(_)) | None => None,
            };
            let (ino, kind) = entry.as_ref().map_or((e.ino, e.kind), |e| (e.ino, e.attr.kind));
            let referred = entry.is_some();
            if plus && !referred {
                continue;
            }
            if add(DirEntry { cookie: e.cookie, name: &e.name, ino, kind, entry }) {
                if referred {
                    self.forget(ino, 1);
                }
                return Ok(());
            }
            fed = true;
        }
        if listing.entries.len() > KEPT_ENTRIES_MAX {
            self.scout.keep(node.ino, &listing);
            *lock(&node.dir()?.listing) = None;
        }
        Ok(())
    }

    /// Looks up what a listing shows; counts one reference. As long as the directory is as it was listed, only the branches from the one
    /// that has it down are asked.
    fn enter(&self, node: &Arc<Node>, listing: &Listing, e: &ListedName) -> Res<Entry> {
        let dir = node.dir()?;
        if dir.dead || dir.version != listing.version || dir.epoch != listing.epoch {
            drop(dir);
            return self.lookup(node.ino, &e.name);
        }
        let start = dir.layers.partition_point(|l| l.slot.rank() < e.rank);
        let found = self.search(&dir.layers[start..], dir.limit, &e.name)?;
        let (child, attr) = self.node_of(node, &e.name, found, dir.epoch)?;
        self.table.refer(&child);
        Ok(Entry { ino: child.ino, generation: 0, attr })
    }

    /// The kept listing, or a new one; `anew`: it must not be older than the directory's last change.
    pub(super) fn listing(&self, node: &Arc<Node>, anew: bool) -> Res<Arc<Listing>> {
        let dir = node.dir()?;
        if let Some(kept) = &*lock(&dir.listing) {
            let current = kept.version == dir.version && kept.epoch == dir.epoch && !self.sees_outside_changes();
            if !anew || current {
                return Ok(Arc::clone(kept));
            }
        }
        let entries = if dir.dead { Vec::new() } else { self.merge(&dir.layers)? };
        let listing = Arc::new(Listing { version: dir.version, epoch: dir.epoch, entries });
        *lock(&dir.listing) = Some(Arc::clone(&listing));
        Ok(listing)
    }

    /// Every visible name once, by cookie.
    fn merge(&self, layers: &[Layer]) -> Res<Vec<ListedName>> {
        let mut entries: Vec<ListedName> = Vec::new();
        let mut seen: HashSet<Box<[u8]>> = HashSet::new();
        for (i, layer) in layers.iter().enumerate() {
            let below = i + 1 < layers.len();
            let (mut fresh, hidden) = self.list_layer(layer)?;
            if i > 0 {
                fresh.retain(|e| !seen.contains(&e.name));
            }
            if below {
                seen.extend(fresh.iter().map(|e| e.name.clone()));
                seen.extend(hidden);
            }
            entries.append(&mut fresh);
        }
        entries.sort_unstable_by(|a, b| a.cookie.cmp(&b.cookie).then_with(|| a.name.cmp(&b.name)));
        for i in 1..entries.len() {
            // Two names with one hash: the later one gets the next cookie.
            if entries[i].cookie <= entries[i - 1].cookie {
                entries[i].cookie = entries[i - 1].cookie + 1;
            }
        }
        Ok(entries)
    }

    /// One layer's names, and those that it hides in lower ones.
    fn list_layer(&self, layer: &Layer) -> Res<(Vec<ListedName>, Hidden)> {
        let (mut fresh, mut hidden, mut suspects) = (Vec::new(), Vec::new(), Vec::new());
        let branch = &layer.slot.branch;
        let honours = layer.slot.perm().honours_whiteouts();
        branch.list(&layer.dir, &mut |e: Listed<'_>| {
            if is_private(e.name) {
                let name = &e.name[WHITEOUT_PREFIX.len()..];
                if honours && !is_private(name) {
                    hidden.push(name.into());
                }
                return;
            }
            let suspect = e.kind == FileKind::CharDevice || (layer.marks.attribute_whiteouts && e.kind == FileKind::File);
            if suspect || layer.marks.impure {
                suspects.push(fresh.len());
            }
            let id = super::branch::ObjectId(layer.slot.dev, e.ino);
            fresh.push(ListedName {
                cookie: cookie(e.name),
                ino: self.numbers.plain(layer.slot.dev, e.ino, id),
                kind: e.kind,
                rank: layer.slot.rank(),
                name: e.name.into(),
            });
        })?;
        for i in suspects.into_iter().rev() {
            let at = At::Name(&layer.dir, &fresh[i].name);
            let Ok(stat) = branch.stat(at) else { continue };
            if self.is_overlay_whiteout(layer, at, &stat)? {
                hidden.push(fresh.swap_remove(i).name);
            } else if let Ok(Some(number)) = self.numbers.carried(&**branch, at, stat.ino, stat.id).map(|c| c.and_then(|c| c.number)) {
                fresh[i].ino = number;
            }
        }
        Ok((fresh, hidden))
    }

    /// Whether a directory is empty as seen through the union.
    pub(super) fn is_empty(&self, layers: &[Layer]) -> Res<bool> {
        Ok(self.merge(layers)?.is_empty())
    }
}
