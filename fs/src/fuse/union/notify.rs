//! `udba=notify`: a thread that hears what others change in the branches, and makes the kernel forget it. It serves no requests, since the kernel holds a
//! directory while it looks a name up in it, and a notification about a name waits for the directory.

use super::cache::Invalidator;
use crate::union::{Change, READ_BYTES, Stale, Union, Watcher};
use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// After events that were our own alone, for so long nobody listens: each of our own writes would wake the thread.
const PAUSE: Duration = Duration::from_millis(20);
/// The same after somebody else's: he may be writing a large file, and tell at each step.
const BREATH: Duration = Duration::from_millis(2);
/// What is forgotten is forgotten once more after this. An answer on its way may have been found before the change, and reach the one who asked after the
/// notification: he may have had to wait for a processor.
const AGAIN: Duration = Duration::from_secs(1);
/// Names to forget once more; with more, everything is.
const AGAIN_MAX: usize = 4096;
/// Reads in a row, before what is due is done.
const READS_MAX: usize = 64;
/// Between two times that everything is forgotten.
const EVERYTHING: Duration = Duration::from_millis(100);

/// The thread; ends with this.
#[derive(Debug)]
pub(super) struct Notify {
    watcher: Arc<Watcher>,
    thread: Option<JoinHandle<()>>,
}

impl Notify {
    pub(super) fn start(watcher: Arc<Watcher>, union: Arc<Union>, invalidator: Arc<Invalidator>) -> io::Result<Self> {
        let listener = Listener { watcher: watcher.clone(), union, kernel: invalidator, again: Again::default() };
        let thread = std::thread::Builder::new().name("union-notify".into()).spawn(move || listener.run())?;
        Ok(Self { watcher, thread: Some(thread) })
    }

    /// Ends the thread, and waits for its end.
    pub(super) fn end(mut self) {
        self.watcher.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Notify {
    fn drop(&mut self) {
        self.watcher.stop();
    }
}

/// What is forgotten once more.
#[derive(Debug, Default)]
struct Again {
    due: Option<Instant>,
    names: HashSet<(u64, Box<[u8]>)>,
    everything: bool,
}

impl Again {
    fn note(&mut self, dir: u64, name: &[u8], now: Instant) {
        if self.names.len() < AGAIN_MAX {
            self.names.insert((dir, name.into()));
        } else {
            self.everything = true;
        }
        self.due.get_or_insert(now + AGAIN);
    }
}

struct Listener {
    watcher: Arc<Watcher>,
    union: Arc<Union>,
    kernel: Arc<Invalidator>,
    again: Again,
}

impl Listener {
    fn run(mut self) {
        let mut buf = vec![0; READ_BYTES];
        while !self.watcher.is_stopped() {
            if let Err(e) = self.turn(&mut buf) {
                tracing::error!(%e, "changes that others make in the branches are not seen any more");
                // What is cached must not be believed, and what comes is not to be: nothing is.
                self.watcher.give_up();
                self.everything();
                return;
            }
        }
    }

    fn turn(&mut self, buf: &mut [u8]) -> io::Result<()> {
        self.watcher.wait(self.again.due.map(|due| due.saturating_duration_since(Instant::now())))?;
        let (mut everything, mut own) = (false, true);
        for _ in 0..READS_MAX {
            let heard = self.watcher.read(buf)?;
            everything |= heard.everything;
            own &= heard.changes.is_empty() && !heard.everything;
            if !everything {
                self.forget(&heard.changes);
            }
            if !heard.more {
                break;
            }
        }
        if self.again.due.is_some_and(|due| due <= Instant::now()) {
            everything |= self.forget_again();
        } else if everything {
            self.again.everything = true;
            self.again.due.get_or_insert(Instant::now() + AGAIN);
        }
        if everything {
            self.everything();
            return self.watcher.pause(EVERYTHING);
        }
        self.watcher.pause(if own { PAUSE } else { BREATH })
    }

    /// Forgets once more what was forgotten; true where that is everything.
    fn forget_again(&mut self) -> bool {
        let again = std::mem::take(&mut self.again);
        if !again.everything {
            again.names.iter().for_each(|(dir, name)| self.kernel.name(*dir, name));
            let dirs: HashSet<u64> = again.names.iter().map(|(dir, _)| *dir).collect();
            dirs.into_iter().for_each(|dir| self.kernel.contents(dir));
        }
        again.everything
    }

    fn everything(&self) {
        self.union.forget_listings();
        self.kernel.everything(&self.union.live(), &self.union.live_names());
    }

    /// Makes the kernel forget what has changed.
    fn forget(&mut self, changes: &[Change]) {
        // Often a name is changed several times in a row.
        let mut names: HashMap<(u64, Vec<u8>), (bool, bool)> = HashMap::new();
        for Stale { dir, name, names: came_or_went, data } in changes.iter().flat_map(|c| self.union.stale(c)) {
            match name {
                None => self.kernel.attributes(dir),
                Some(name) => {
                    let known = names.entry((dir, name)).or_default();
                    *known = (known.0 | came_or_went, known.1 | data);
                }
            }
        }
        let now = Instant::now();
        let mut dirs = HashSet::new();
        for ((dir, name), (came_or_went, data)) in names {
            // It comes first, since it waits for lookups and listings of this directory that are under way.
            self.kernel.name(dir, &name);
            self.again.note(dir, &name, now);
            if let Some(ino) = self.union.look_again(dir, &name) {
                if data { self.kernel.contents(ino) } else { self.kernel.attributes(ino) }
            }
            if came_or_went {
                dirs.insert(dir);
            }
        }
        dirs.into_iter().for_each(|dir| self.kernel.contents(dir));
    }
}
