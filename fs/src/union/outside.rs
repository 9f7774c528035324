//! What others change in the branches: how long what the union says may be believed, and what to look at again.

use super::core::Union;
use super::names::{OPAQUE, WHITEOUT_PREFIX, is_private};
use super::node::lock;
use super::watch::{Change, Watcher};
use crate::fop::{Attr, FileKind};
use std::io;
use std::sync::Arc;

/// What a change in a branch means for the union.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stale {
    /// A directory, by number.
    pub dir: u64,
    /// A name in it that may be something else now, or nothing; `None` when the directory's own attributes changed, and no name.
    pub name: Option<Vec<u8>>,
    /// Whether names came or went, so that listings of the directory are old.
    pub names: bool,
    /// Whether data of what has the name may have changed.
    pub data: bool,
}

impl Union {
    /// Starts watching the local branches. Called before anything is looked up.
    ///
    /// # Errors
    /// Where the kernel or the rights of this process do not allow it.
    pub fn watch(&self, loud: bool) -> io::Result<Arc<Watcher>> {
        let _changing = lock(&self.changing);
        let watcher = Arc::new(Watcher::new(loud)?);
        let watcher = Arc::clone(self.watcher.get_or_init(|| watcher));
        // The roots, and what they say of themselves, anew.
        self.set_slots(self.view().slots.clone()).map_err(io::Error::other)?;
        Ok(watcher)
    }

    /// Rises when others have changed something in a watched directory: see [`Self::lasts`].
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.watcher.get().map_or(0, |w| w.seen())
    }

    /// Whether all that was found in a directory is good until [`Watcher::read`] says otherwise: each of its layers is watched. If [`Self::seen`] is
    /// the same after this call as it was before the finding.
    #[must_use]
    pub fn lasts(&self, dir: u64) -> bool {
        if self.watcher.get().is_none_or(|w| w.is_stopped()) {
            return false;
        }
        let Some(node) = self.table.find(dir) else { return false };
        let Ok(state) = node.dir() else { return false };
        state.layers.iter().all(|l| l.watch.as_ref().inspect(|w| w.belongs_to(dir)).is_some())
    }

    /// The same of an object's attributes. Of a file with several names only the one that is used would tell.
    #[must_use]
    pub fn attr_lasts(&self, ino: u64, attr: &Attr) -> bool {
        if attr.kind == FileKind::Dir {
            return self.lasts(ino);
        }
        if attr.nlink != 1 || lock(&self.links).contains_key(&ino) {
            return false;
        }
        let names = self.table.find(ino).map_or_else(Vec::new, |node| node.names());
        !names.is_empty() && names.iter().all(|(parent, _)| self.lasts(parent.ino))
    }

    /// A directory was found to be made of other layers than it was, and no change of the branches explains it: nothing that is known below it can be
    /// believed, names that were not there least of all.
    pub(super) fn note_reshaped(&self) {
        if let Some(watcher) = self.watcher.get() {
            watcher.note_reshaped();
        }
    }

    /// How many directories of branches are watched.
    #[must_use]
    pub fn watched(&self) -> usize {
        self.watcher.get().map_or(0, |w| w.watched())
    }

    /// No listing that is kept is good any more.
    pub fn forget_listings(&self) {
        for node in self.table.live() {
            if let Ok(mut state) = node.dir_mut() {
                state.changed();
            }
        }
    }

    /// What a change in a branch means for the union.
    #[must_use]
    pub fn stale(&self, change: &Change) -> Vec<Stale> {
        let mut out = Vec::new();
        for dir in &change.dirs {
            let stale = |dir, name: &[u8]| Stale { dir, name: Some(name.to_vec()), names: change.names, data: change.data };
            let name = &change.name[..];
            if !is_private(name) && name != b"." {
                out.push(stale(*dir, name));
                continue;
            }
            match name.strip_prefix(WHITEOUT_PREFIX) {
                Some(hidden) if !is_private(hidden) => out.push(stale(*dir, hidden)),
                _ => out.push(Stale { dir: *dir, name: None, names: false, data: false }),
            }
            if name == OPAQUE
                && let Some((parent, name)) = self.table.find(*dir).and_then(|node| node.place())
            {
                // What a directory is made of is found where it is looked up.
                out.push(stale(parent.ino, &name));
            }
        }
        out
    }

    /// Looks at a name again that somebody may have changed, and forgets how its directory was listed. The number of what is there.
    #[must_use]
    pub fn look_again(&self, dir: u64, name: &[u8]) -> Option<u64> {
        let node = self.table.find(dir)?;
        if let Ok(mut state) = node.dir_mut() {
            state.changed();
        }
        self.find(&node, name).ok().map(|(found, _)| found.ino)
    }
}
