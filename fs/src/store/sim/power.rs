//! What is durable, and the ways to lose what is not; damage behind the store's back.

use super::SimStore;
use super::node::{Content, Node, PAGE_BYTES, SECTOR_BYTES};
use super::tree::Tree;
use crate::fop::{Errno, Gfid};
use crate::store::DataOp;
use rand::Rng;
use rand::rngs::SmallRng;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Changes that are not written back at the latest when there are this many.
const JOURNAL_MAX: usize = 4096;

type Nodes = BTreeMap<Gfid, Arc<Node>>;
/// What one change left of the objects that it touched.
type Images = Vec<(Gfid, Option<Arc<Node>>)>;

/// The durable state, and the changes since, in order.
#[derive(Clone)]
pub(super) struct Journal {
    base: Nodes,
    /// How many changes `base` holds.
    base_at: u64,
    changes: VecDeque<Images>,
    /// This many changes are certainly durable.
    floor: u64,
    /// Files synced since `base`: their content is durable as it was then.
    synced: BTreeMap<Gfid, (u64, Arc<Node>)>,
}

fn apply(nodes: &mut Nodes, images: &Images) {
    for (gfid, image) in images {
        match image {
            Some(node) => nodes.insert(*gfid, Arc::clone(node)),
            None => nodes.remove(gfid),
        };
    }
}

impl Journal {
    pub(super) fn new(tree: &Tree) -> Self {
        Self { base: tree.nodes.clone(), base_at: 0, changes: VecDeque::new(), floor: 0, synced: BTreeMap::new() }
    }

    /// How many changes there were.
    pub(super) fn len(&self) -> u64 {
        self.base_at + self.changes.len() as u64
    }

    /// Appends what `tree` touched.
    pub(super) fn write(&mut self, tree: &mut Tree) {
        let touched = std::mem::take(&mut tree.touched);
        self.changes.push_back(touched.into_iter().map(|g| (g, tree.nodes.get(&g).cloned())).collect());
        if self.changes.len() > JOURNAL_MAX {
            self.write_back(self.base_at + JOURNAL_MAX as u64 / 2);
        }
    }

    /// An fsync of what was there at `at` ended.
    pub(super) fn synced(&mut self, at: u64, image: Option<(Gfid, Arc<Node>)>) {
        self.floor = self.floor.max(at);
        if let Some((gfid, image)) = image
            && at > self.base_at
            && self.synced.get(&gfid).is_none_or(|(old, _)| *old <= at)
        {
            self.synced.insert(gfid, (at, image));
        }
    }

    /// A sync of everything that was there at `at` ended.
    pub(super) fn synced_all(&mut self, at: u64) {
        self.floor = self.floor.max(at);
        self.write_back(at);
    }

    fn write_back(&mut self, at: u64) {
        while self.base_at < at {
            let Some(images) = self.changes.pop_front() else { break };
            apply(&mut self.base, &images);
            self.base_at += 1;
        }
        self.floor = self.floor.max(self.base_at);
        self.synced.retain(|_, (synced_at, _)| *synced_at > at);
    }

    /// The state after a power cut: some prefix of the changes, and of each file's data what happened to be written.
    fn cut(&self, rng: &mut SmallRng) -> Nodes {
        let keep = rng.random_range(self.floor..=self.len()) - self.base_at;
        let mut nodes = self.base.clone();
        for images in self.changes.iter().take(keep as usize) {
            apply(&mut nodes, images);
        }
        for (gfid, node) in &mut nodes {
            let synced = self.synced.get(gfid).map(|(_, n)| n).or_else(|| self.base.get(gfid));
            let durable = synced.map(|n| n.content.clone()).unwrap_or_default();
            if !same(&durable, &node.content) {
                let mixed = mix(&durable, &node.content, rng);
                Arc::make_mut(node).content = mixed;
            }
        }
        nodes
    }
}

fn same(a: &Content, b: &Content) -> bool {
    a.size == b.size && a.pages.len() == b.pages.len() && a.pages.iter().zip(&b.pages).all(|(x, y)| x.0 == y.0 && Arc::ptr_eq(x.1, y.1))
}

/// Each sector old or new; the size old or new.
fn mix(old: &Content, new: &Content, rng: &mut SmallRng) -> Content {
    const ZEROS: [u8; PAGE_BYTES as usize] = [0; PAGE_BYTES as usize];
    let mut out = old.clone();
    let pages: std::collections::BTreeSet<u64> = old.pages.keys().chain(new.pages.keys()).copied().collect();
    for p in pages {
        let (before, after) = (old.pages.get(&p), new.pages.get(&p));
        if rng.random_bool(0.3) {
            continue;
        }
        let whole = rng.random_bool(0.7);
        match after {
            None if whole => {
                out.pages.remove(&p);
            }
            _ => {
                let after = after.map_or(&ZEROS, |a| &**a);
                let mut page = before.map_or(ZEROS, |b| **b);
                for at in (0..page.len()).step_by(SECTOR_BYTES) {
                    if whole || rng.random_bool(0.5) {
                        page[at..at + SECTOR_BYTES].copy_from_slice(&after[at..at + SECTOR_BYTES]);
                    }
                }
                out.pages.insert(p, Arc::new(page));
            }
        }
    }
    let size = if rng.random_bool(0.7) { new.size } else { old.size };
    out.size = u64::MAX;
    out.truncate(size);
    out
}

impl SimStore {
    /// The machine loses power and the brick is opened again: what was not durable may be lost or torn.
    pub fn power_cut(&mut self, rng: &mut SmallRng) {
        self.tree.nodes = self.journal.cut(rng);
        self.restart();
    }

    /// The brick's process is killed and the brick is opened again: nothing that was applied is lost; writes under way
    /// may or may not have happened.
    pub fn process_killed(&mut self, rng: &mut SmallRng) {
        for p in std::mem::take(&mut self.pending) {
            if matches!(p.op, DataOp::Write { .. }) && rng.random_bool(0.5) {
                self.finish(p);
            }
        }
        self.restart();
    }

    fn restart(&mut self) {
        self.pending.clear();
        self.done.clear();
        self.writing.clear();
        self.latched = false;
        self.tree.touched.clear();
        self.tree.sweep();
        self.tree.touched.clear();
        self.journal = Journal::new(&self.tree);
    }

    /// Somebody removes a name in the brick's directory (of a directory, all below it). The index keeps its links.
    ///
    /// # Errors
    /// `ENOENT`.
    pub fn damage_remove(&mut self, parent: Gfid, name: &[u8]) -> Result<(), Errno> {
        let gfid = self.tree.entry(parent, name)?.map(|(g, _)| g).ok_or(Errno::ENOENT)?;
        let below: Vec<_> = self.tree.get(gfid)?.entries.keys().cloned().collect();
        for child in below {
            self.damage_remove(gfid, &child)?;
        }
        self.tree.leave(parent, name)?;
        if self.tree.get(gfid)?.is_dir() {
            self.tree.drop_node(gfid);
        }
        self.journal.write(&mut self.tree);
        Ok(())
    }

    /// A bit of a file's content rots.
    ///
    /// # Errors
    /// `ENOENT` when there is no data at `offset`.
    pub fn damage_flip(&mut self, gfid: Gfid, offset: u64, bit: u8) -> Result<(), Errno> {
        let content = &mut self.tree.get_mut(gfid)?.content;
        let page = content.pages.get_mut(&(offset / PAGE_BYTES)).ok_or(Errno::ENOENT)?;
        Arc::make_mut(page)[(offset % PAGE_BYTES) as usize] ^= 1 << (bit % 8);
        self.journal.write(&mut self.tree);
        Ok(())
    }

    /// Somebody empties the brick's directory. Everything fails until the brick is made anew.
    pub fn wipe(&mut self) {
        self.tree = Tree::new();
        self.journal = Journal::new(&self.tree);
        self.pending.clear();
        self.intact = false;
    }
}
