//! SIGINT and SIGTERM as a flag.

use anyhow::{Context, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set once the process is asked to stop. A second signal ends it at once.
#[derive(Clone, Debug)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Starts listening.
    ///
    /// # Errors
    /// The handlers cannot be installed.
    pub fn install() -> Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        let seen = flag.clone();
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
                        if seen.swap(true, Ordering::AcqRel) {
                            std::process::exit(130);
                        }
                    }
                });
            })
            .context("start the signal thread")?;
        installed.recv().context("the signal thread ended")?.context("listen for signals")?;
        Ok(Self(flag))
    }

    /// True once the process was asked to stop.
    #[must_use]
    pub fn wanted(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}
