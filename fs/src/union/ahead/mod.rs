//! A scout: who walks a tree that is not in memory (`tar`, `cp -r`, `grep -r`) waits for the disk once a file. The order in which it will come is
//! known, since it goes by our listings; so files ahead of it are fetched into the page cache of their local branches meanwhile, several at once.
//!
//! It begins where a read had to wait for the disk, in a directory that somebody has listed, and goes on depth first: into directories, and after the
//! last name on in the parent. It is a guess, and treated as one: the first is one file, each that is then read doubles the
//! way ahead ([`window`]). Nothing depends on it; errors end a walk. What lies in memory is left alone, and a walk that finds nothing else ends.

mod front;
#[cfg(test)]
mod tests;
mod window;

use super::Union;
use super::branch::Fetched;
use super::listing::Listing;
use super::node::{Node, lock};
use front::Front;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::Duration;
use window::Window;

/// Walkers at one time.
const WALKS_MAX: usize = 4;
/// Threads: as many files are waited for at once, but for what the kernel reads on its own.
const THREADS: usize = 2;
/// Bytes fetched of a file: after that the kernel's own read-ahead knows better.
const FILE_BYTES_MAX: u64 = 128 << 10;
/// So many files in a row that were in memory already end a walk.
const IN_MEMORY_MAX: usize = 256;
/// Each thread that has nothing to do looks so often for walks whose walkers are silent.
const IDLE: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 1000 });
/// A walk that so many looks found silent is let go of, with the directories that it holds.
const SILENT_MAX: usize = 2 * THREADS;

/// One walker, as far as it is understood.
#[derive(Debug)]
struct Walk {
    window: Mutex<Window>,
    /// Where the scout is; `None` at the end.
    front: Mutex<Option<Front>>,
    /// The directory where it read last.
    dir: AtomicU64,
    /// There is something to do.
    hungry: AtomicBool,
    /// Looks since the walker was last heard of.
    silent: AtomicUsize,
    over: AtomicBool,
    /// Files in a row that were in memory.
    in_memory: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    /// The last one is the last that was heard of.
    walks: Vec<Arc<Walk>>,
    /// A listing too long to be kept with its directory.
    long: Option<(u64, Arc<Listing>)>,
    /// Threads run.
    running: bool,
    ended: bool,
}

/// What the threads share.
#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
    /// There are walks.
    any: AtomicBool,
    /// Files that were fetched.
    scouted: AtomicU64,
}

/// The scout of a union. Threads end with it.
#[derive(Debug, Default)]
pub(super) struct Scout(Arc<Shared>);

impl Drop for Scout {
    fn drop(&mut self) {
        self.end();
    }
}

impl Scout {
    /// Somebody reads the start of a file; `waited`: for the disk.
    pub(super) fn reads(&self, node: &Node, waited: bool) {
        if !waited && !self.0.any.load(Ordering::Relaxed) {
            return;
        }
        let mut state = lock(&self.0.state);
        if !state.running || state.ended {
            return;
        }
        for i in (0..state.walks.len()).rev() {
            let Some(hungry) = lock(&state.walks[i].window).read(node.ino) else { continue };
            let walk = state.walks.remove(i);
            walk.silent.store(0, Ordering::Relaxed);
            if waited {
                walk.in_memory.store(0, Ordering::Relaxed);
            }
            if hungry && !walk.hungry.swap(true, Ordering::AcqRel) {
                self.0.work.notify_all();
            }
            state.walks.push(walk);
            return;
        }
        if !waited {
            return;
        }
        let Some((dir, name)) = node.place() else { return };
        // The walker was faster, or went another way: it is the same one all the same.
        let same = state.walks.iter().position(|w| w.dir.load(Ordering::Relaxed) == dir.ino);
        let old = match same {
            Some(i) => Some(state.walks.remove(i)),
            None if state.walks.len() >= WALKS_MAX => Some(state.walks.remove(0)),
            None => None,
        };
        let ahead = if same.is_some() { old.as_ref().map_or(1, |w| lock(&w.window).ahead_max() / 2) } else { 1 };
        state.walks.push(Arc::new(Walk {
            window: Mutex::new(Window::new(ahead)),
            dir: AtomicU64::new(dir.ino),
            front: Mutex::new(Some(Front::after(dir, name))),
            hungry: AtomicBool::new(true),
            silent: AtomicUsize::new(0),
            over: AtomicBool::new(false),
            in_memory: AtomicUsize::new(0),
        }));
        self.0.any.store(true, Ordering::Relaxed);
        self.0.work.notify_all();
        drop(state);
        // Not under the lock: it may hold the last references to directories.
        if let Some(old) = old {
            old.over.store(true, Ordering::Relaxed);
        }
    }

    /// Somebody has read a long listing to its end; its directory does not keep it.
    pub(super) fn keep(&self, ino: u64, listing: &Arc<Listing>) {
        let mut state = lock(&self.0.state);
        if state.running && !state.ended {
            state.long = Some((ino, Arc::clone(listing)));
            // Somebody must look whether it is still wanted.
            self.0.work.notify_one();
        }
    }

    fn kept(&self, ino: u64) -> Option<Arc<Listing>> {
        lock(&self.0.state).long.as_ref().filter(|(of, _)| *of == ino).map(|(_, listing)| Arc::clone(listing))
    }

    /// Lets go of all that is held.
    pub(super) fn clear(&self) {
        self.0.clear();
    }

    /// The threads end soon.
    pub(super) fn end(&self) {
        lock(&self.0.state).ended = true;
        self.0.clear();
        self.0.work.notify_all();
    }
}

impl Shared {
    fn clear(&self) {
        let mut state = lock(&self.state);
        let (walks, long) = (std::mem::take(&mut state.walks), state.long.take());
        self.any.store(false, Ordering::Relaxed);
        drop(state);
        walks.iter().for_each(|w| w.over.store(true, Ordering::Relaxed));
        drop((walks, long));
    }

    /// Waits for a walk to go on with; `None` at the end.
    fn next(&self) -> Option<Arc<Walk>> {
        let mut state = lock(&self.state);
        loop {
            if state.ended {
                return None;
            }
            if let Some(walk) = state.walks.iter().rev().find(|w| w.hungry.load(Ordering::Acquire)) {
                return Some(Arc::clone(walk));
            }
            if state.walks.is_empty() && state.long.is_none() {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let (woken, waited) = self.work.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = woken;
            if waited.timed_out() {
                let (walks, idle): (Vec<_>, Vec<_>) =
                    state.walks.drain(..).partition(|w| w.silent.fetch_add(1, Ordering::Relaxed) < SILENT_MAX);
                state.walks = walks;
                self.any.store(!state.walks.is_empty(), Ordering::Relaxed);
                let long = if state.walks.is_empty() { state.long.take() } else { None };
                drop(state);
                drop((idle, long));
                state = lock(&self.state);
            }
        }
    }

    fn remove(&self, walk: &Arc<Walk>) {
        walk.over.store(true, Ordering::Relaxed);
        let mut state = lock(&self.state);
        state.walks.retain(|w| !Arc::ptr_eq(w, walk));
        self.any.store(!state.walks.is_empty(), Ordering::Relaxed);
    }
}

impl Union {
    /// Starts the scout's threads, which end with the union.
    ///
    /// # Errors
    /// Where there can be no more threads.
    pub fn start_scout(self: &Arc<Self>) -> std::io::Result<()> {
        lock(&self.scout.0.state).running = true;
        for _ in 0..THREADS {
            let (union, shared) = (Arc::downgrade(self), Arc::clone(&self.scout.0));
            std::thread::Builder::new().name("union-scout".into()).spawn(move || live(&union, &shared))?;
        }
        Ok(())
    }

    /// Files that were fetched ahead of somebody who walks a tree.
    #[must_use]
    pub fn scouted(&self) -> u64 {
        self.scout.0.scouted.load(Ordering::Relaxed)
    }

    /// Goes on with a walk until it is far enough ahead.
    fn scout(&self, shared: &Shared, walk: &Arc<Walk>) {
        while !walk.over.load(Ordering::Relaxed) {
            let mut front = lock(&walk.front);
            if !lock(&walk.window).wants() {
                walk.hungry.store(false, Ordering::Release);
                // Its walker may have gone on in between.
                if !lock(&walk.window).wants() {
                    return;
                }
            }
            let Some(target) = front.as_mut().and_then(|f| self.next_ahead(f)) else {
                *front = None;
                walk.hungry.store(false, Ordering::Release);
                return;
            };
            walk.dir.store(target.dir, Ordering::Relaxed);
            lock(&walk.window).scout(target.ino);
            drop(front);
            match target.fetch(FILE_BYTES_MAX) {
                Fetched::Asked => {
                    shared.scouted.fetch_add(1, Ordering::Relaxed);
                    walk.in_memory.store(0, Ordering::Relaxed);
                }
                Fetched::InMemory if walk.in_memory.fetch_add(1, Ordering::Relaxed) >= IN_MEMORY_MAX => return shared.remove(walk),
                Fetched::InMemory => {}
            }
        }
    }
}

/// A thread's life.
fn live(union: &Weak<Union>, shared: &Shared) {
    while let Some(walk) = shared.next() {
        let Some(union) = union.upgrade() else { return };
        union.scout(shared, &walk);
    }
}
