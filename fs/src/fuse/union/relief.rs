//! When descriptors run out: every directory that the kernel remembers is held by one in each branch that has it. A thread of its own makes the
//! kernel forget what nobody uses, while the request that ran into it waits, for a bounded time.

use super::cache::Invalidator;
use crate::fop::Errno;
use crate::fuse::ring::{ELSEWHERE, may_wait};
use crate::union::Res;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Between two attempts.
const WAIT: Duration = Duration::from_millis(20);
/// Attempts, after which the error is told.
const ATTEMPTS_MAX: usize = 100;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Relief {
    ask: SyncSender<()>,
    asked: Mutex<Option<Receiver<()>>>,
}

impl Default for Relief {
    fn default() -> Self {
        let (ask, asked) = sync_channel(1);
        Self { ask, asked: Mutex::new(Some(asked)) }
    }
}

impl Relief {
    /// Starts the thread; it ends when the last `Relief` does.
    pub(super) fn start(&self, invalidator: Arc<Invalidator>) -> std::io::Result<()> {
        let Some(asked) = self.asked.lock().unwrap_or_else(PoisonError::into_inner).take() else { return Ok(()) };
        std::thread::Builder::new().name("union-relief".into()).spawn(move || {
            while asked.recv().is_ok() {
                invalidator.unused();
            }
        })?;
        Ok(())
    }

    /// Carries `f` out, again while descriptors are short; in a thread that may not wait, [`ELSEWHERE`].
    pub(super) fn patiently<T>(&self, mut f: impl FnMut() -> Res<T>) -> Res<T> {
        for _ in 0..ATTEMPTS_MAX {
            match f() {
                Err(Errno::EMFILE | Errno::ENFILE) if !may_wait() => return Err(ELSEWHERE),
                Err(Errno::EMFILE | Errno::ENFILE) => {}
                done => return done,
            }
            match self.ask.try_send(()) {
                Ok(()) | Err(TrySendError::Full(())) => {}
                Err(TrySendError::Disconnected(())) => break,
            }
            std::thread::sleep(WAIT);
        }
        f()
    }
}
