//! Open directories: what one answer of the servers held beyond what the kernel's buffer took.

use crate::fop::DirEntry;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

/// The kernel's offset of `.`; servers' cookies never reach it (ext4 ends one below 2^63).
pub(super) const DOT: u64 = i64::MAX as u64 - 3;
/// The offset after `.` and before the first real name.
pub(super) const DOTDOT: u64 = i64::MAX as u64 - 2;

/// A position in a listing with the entries already fetched behind it.
#[derive(Debug, Default)]
pub(super) struct DirStream {
    /// The cookie that the kernel will come back with if it goes on where it stopped.
    pub(super) position: u64,
    pub(super) ahead: VecDeque<DirEntry>,
    pub(super) end: bool,
    pub(super) plus: bool,
}

#[derive(Debug, Default)]
pub(super) struct Dirs {
    open: Mutex<(u64, HashMap<u64, Arc<Mutex<DirStream>>>)>,
}

impl Dirs {
    pub(super) fn open(&self) -> u64 {
        let mut open = self.open.lock().expect("no panic holds it");
        open.0 += 1;
        let handle = open.0;
        open.1.insert(handle, Arc::default());
        handle
    }

    pub(super) fn get(&self, handle: u64) -> Option<Arc<Mutex<DirStream>>> {
        self.open.lock().expect("no panic holds it").1.get(&handle).cloned()
    }

    pub(super) fn close(&self, handle: u64) {
        self.open.lock().expect("no panic holds it").1.remove(&handle);
    }
}
