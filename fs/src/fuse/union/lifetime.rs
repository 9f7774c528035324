//! How long the kernel may believe an answer.

use super::cache::{Caching, Kernel, REVAL};
use crate::fop::Attr;
use crate::union::Union;
use fuser::INodeNo;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// See the module's text. With `udba=notify`: as long as one likes where the directory is watched and nobody changed anything while the answer was being
/// found, else as with `udba=reval`.
#[derive(Debug)]
pub(super) struct Lifetimes {
    union: Arc<Union>,
    wanted: Duration,
    /// What comes of it with this kernel.
    names: OnceLock<Duration>,
    attributes: Duration,
    notify: bool,
}

impl Lifetimes {
    pub(super) fn new(union: Arc<Union>, caching: Caching) -> Self {
        Self { union, wanted: caching.names, names: OnceLock::new(), attributes: caching.attributes, notify: caching.notify }
    }

    /// What the kernel can do is known.
    pub(super) fn on(&self, kernel: &Kernel) {
        let names = kernel.names(self.wanted);
        // It could not be told to look again.
        let _ = self.names.set(if self.notify && !kernel.expires() { names.min(REVAL) } else { names });
    }

    fn names(&self) -> Duration {
        self.names.get().copied().unwrap_or(REVAL)
    }

    /// Called before the answer is looked for; what the others want to know.
    pub(super) fn seen(&self) -> u64 {
        if self.notify { self.union.seen() } else { 0 }
    }

    /// Of a name in `dir`, or of its absence.
    pub(super) fn name(&self, dir: INodeNo, seen: u64) -> Duration {
        // In this order: from the first on, events are its own.
        if self.notify && !(self.union.lasts(dir.0) && self.union.seen() == seen) { self.names().min(REVAL) } else { self.names() }
    }

    /// Of an object's attributes.
    pub(super) fn attr(&self, ino: u64, attr: &Attr, seen: u64) -> Duration {
        if self.notify && !(self.union.attr_lasts(ino, attr) && self.union.seen() == seen) {
            self.attributes.min(REVAL)
        } else {
            self.attributes
        }
    }
}
