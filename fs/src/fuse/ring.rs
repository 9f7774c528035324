//! FUSE over io_uring: the threads that serve a connection's rings.

use brickraft_engine::io::uring::fuse::{FuseEntry, FuseRequest, never_preempt};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

/// The kernel's switch, for all of FUSE: `Y` or `N`.
const SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";
/// The kernel's `FUSE_OVER_IO_URING`, which fuser has no name for.
pub(super) const CAPABILITY: u64 = 1 << 41;
/// The kernel answers the first request on the device, INIT, before it takes entries.
const INIT_WAIT: Duration = Duration::from_millis(1);
/// How often an entry tries to get in.
const INIT_ATTEMPTS_MAX: usize = 10_000;

/// Whether requests come over io_uring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// Where the kernel's switch is on.
    #[default]
    Auto,
    /// For certain; the switch is turned on.
    Ring,
    /// Never.
    Device,
}

impl Transport {
    /// Decides, before the mount: once both sides said yes, the kernel waits for the rings.
    ///
    /// # Errors
    /// With [`Transport::Ring`], what is in the way.
    pub(super) fn wants_ring(self) -> io::Result<bool> {
        let is_on = || std::fs::read_to_string(SWITCH).is_ok_and(|s| s.starts_with('Y'));
        match self {
            Self::Device => Ok(false),
            Self::Auto => Ok(is_on() && FuseEntry::probe().is_ok()),
            Self::Ring => {
                let failed = |e: io::Error| io::Error::new(e.kind(), format!("FUSE over io_uring (Linux 6.14): {SWITCH}: {e}"));
                if !is_on() {
                    std::fs::write(SWITCH, "Y").map_err(failed)?;
                }
                FuseEntry::probe().map_err(|e| io::Error::new(e.kind(), format!("io_uring_setup: {e}")))?;
                Ok(true)
            }
        }
    }
}

/// The processors that there may ever be: the kernel has a queue for each.
fn possible_cpus() -> usize {
    let list = std::fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
    let count = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(last.parse::<usize>().ok()? + 1 - first.parse::<usize>().ok()?)
    };
    list.trim().split(',').map(count).sum::<Option<usize>>().unwrap_or(1).max(1)
}

/// The threads of a connection.
#[derive(Debug)]
pub(super) struct Ring(Vec<JoinHandle<()>>);

impl Ring {
    /// Starts about `threads` threads, evenly over the queues, each on its queue's processor: an application that waits for its answer has just
    /// left it. They end with the connection. With `patient` a thread that is woken lets others go on first ([`never_preempt`]): for connections
    /// on which nobody waits for RELEASE, and little is read ahead.
    ///
    /// # Errors
    /// When threads or rings cannot be made. The mount must go then: the kernel waits for the missing ones.
    pub(super) fn start<F>(device: &Arc<OwnedFd>, payload_bytes: usize, threads: usize, patient: bool, serve: &Arc<F>) -> io::Result<Self>
    where
        F: Fn(FuseRequest<'_>) -> (i32, usize) + Send + Sync + 'static,
    {
        let queues = possible_cpus();
        let each = threads.div_ceil(queues).max(1);
        let mut started = Vec::with_capacity(queues * each);
        let (tell, told) = std::sync::mpsc::channel();
        for n in 0..queues * each {
            let queue = n % queues;
            let (device, serve, tell) = (Arc::clone(device), Arc::clone(serve), tell.clone());
            let run = move || {
                crate::roam::bind(queue);
                if patient {
                    // Where this fails, requests that nobody waits for cost two switches more.
                    let _ = never_preempt();
                }
                let queue = u16::try_from(queue).expect("the kernel counts queues in 16 bits");
                let mut entry = match FuseEntry::new(device, queue, payload_bytes) {
                    Ok(entry) => entry,
                    Err(e) => return drop(tell.send(Err(e))),
                };
                let _ = tell.send(Ok(()));
                let mut served = Ok(());
                for _ in 0..INIT_ATTEMPTS_MAX {
                    served = entry.serve(|request| serve(request));
                    if served.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock) {
                        std::thread::sleep(INIT_WAIT);
                    } else {
                        break;
                    }
                }
                if let Err(e) = served {
                    tracing::warn!(%e, "the kernel takes no entry of a FUSE ring; requests come by the device");
                }
            };
            started.push(Builder::new().name(format!("fuse-ring-{queue}")).spawn(run)?);
        }
        // Each thread tells once, when it has its ring, or none.
        drop(tell);
        told.iter().take(started.len()).collect::<io::Result<()>>()?;
        Ok(Self(started))
    }

    /// Waits for the end of the connection.
    pub(super) fn join(self) {
        for thread in self.0 {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_counted() {
        let now = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        assert!(possible_cpus() >= now);
    }
}
