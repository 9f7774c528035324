//! SIGINT and SIGTERM as a flag, and as something to wait for.

use anyhow::{Context, Result};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Set once the process is asked to stop. A second signal ends it at once.
#[derive(Clone, Debug)]
pub struct Stop(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    wanted: Mutex<bool>,
    told: Condvar,
}

impl Shared {
    fn wanted(&self) -> MutexGuard<'_, bool> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stop {
    /// Starts listening.
    ///
    /// # Errors
    /// The handlers cannot be installed.
    pub fn install() -> Result<Self> {
        let shared = Arc::<Shared>::default();
        let seen = shared.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the signal thread's runtime")?;
        let (ready, installed) = std::sync::mpsc::channel();
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                runtime.block_on(async move {
                    use tokio::signal::unix::{SignalKind, signal};
                    let (mut interrupt, mut terminate) = match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
                        (Ok(i), Ok(t)) => (i, t),
                        (Err(e), _) | (_, Err(e)) => return drop(ready.send(Err(e))),
                    };
                    let _ = ready.send(Ok(()));
                    loop {
                        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
                        if std::mem::replace(&mut *seen.wanted(), true) {
                            std::process::exit(130);
                        }
                        seen.told.notify_all();
                    }
                });
            })
            .context("start the signal thread")?;
        installed.recv().context("the signal thread ended")?.context("listen for signals")?;
        Ok(Self(shared))
    }

    /// True once the process was asked to stop.
    #[must_use]
    pub fn wanted(&self) -> bool {
        *self.0.wanted()
    }

    /// Returns once the process was asked to stop.
    pub fn wait(&self) {
        let wanted = self.0.wanted();
        drop(self.0.told.wait_while(wanted, |wanted| !*wanted).unwrap_or_else(PoisonError::into_inner));
    }
}
