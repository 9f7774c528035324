//! FUSE over io_uring: the threads that serve a connection's rings.

use crate::fop::Errno;
use brickraft_engine::io::uring::fuse::{FuseEntry, FuseRequest, FuseReturns, FuseRing, never_preempt};
use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// The kernel's switch, for all of FUSE: `Y` or `N`.
const SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";
/// The kernel's `FUSE_OVER_IO_URING`, which fuser has no name for.
pub(super) const CAPABILITY: u64 = 1 << 41;
/// What a request takes that waits for nothing.
const SHORT: Duration = Duration::from_micros(200);
/// What takes longer has been held up, and whatever else changes something may be.
const STALL: Duration = Duration::from_millis(20);
/// Changes are left to helpers then, for this many times what it took.
const CAREFUL: u32 = 20;
/// What a request answers that would have to wait, in a thread that may not ([`may_wait`]): another one tries again. No error of the kernel's.
pub(super) const ELSEWHERE: Errno = Errno(i32::MAX);
/// Entries of a queue besides those that helpers may be working on.
const OWN_ENTRIES: usize = 4;

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
            Self::Auto => Ok(is_on() && FuseRing::probe().is_ok()),
            Self::Ring => {
                let failed = |e: io::Error| io::Error::new(e.kind(), format!("FUSE over io_uring (Linux 6.14): {SWITCH}: {e}"));
                if !is_on() {
                    std::fs::write(SWITCH, "Y").map_err(failed)?;
                }
                FuseRing::probe().map_err(|e| io::Error::new(e.kind(), format!("io_uring_setup: {e}")))?;
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

/// What answers requests.
pub(super) trait Service: Send + Sync + 'static {
    /// The error number, 0 for none, and the bytes of the answer, which lie at the payload's start. With an error the payload is as it was, as far as
    /// the request is in it.
    fn serve(&self, request: FuseRequest<'_>) -> (i32, usize);

    /// How long a request may take, by its head and its operation's own part.
    fn length(&self, header: &[u8; 40], op: &[u8; 128]) -> Length;
}

/// How long a request may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    /// A look at a disk, if that.
    Look,
    /// As short, unless the disk has to make room for the change first.
    Change,
    /// A file may have to be copied, or brought to the disk.
    Long,
}

/// How a connection is served.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// What a request has room for: as negotiated, and whole pages.
    pub(super) payload_bytes: usize,
    /// About as many requests are worked on at once.
    pub(super) threads: usize,
    /// A thread for each queue, which takes all of its requests, does the short ones, and lets others go on first when it is woken
    /// ([`never_preempt`]): who opens and closes files in turn then has a RELEASE, which nobody waits for, and the next OPEN served in one go.
    /// For connections on which most requests are short.
    pub(super) gathers: bool,
}

/// The threads of a connection.
#[derive(Debug)]
pub(super) struct Ring(Vec<JoinHandle<()>>);

impl Ring {
    /// Starts the threads that fetch requests, evenly over the queues, each on its queue's processor: an application that waits for its answer
    /// has just left it. They end with the connection.
    ///
    /// # Errors
    /// When threads or rings cannot be made. The mount must go then: the kernel waits for the missing ones.
    pub(super) fn start<S: Service>(device: &Arc<OwnedFd>, plan: Plan, service: &Arc<S>) -> io::Result<Self> {
        let queues = possible_cpus();
        let each = plan.threads.div_ceil(queues).max(1);
        let mut threads = Vec::new();
        let rings = if plan.gathers { 1 } else { each };
        let (tell, told) = std::sync::mpsc::channel();
        for n in 0..queues * rings {
            let queue = n % queues;
            let helpers = plan.gathers.then(|| Helpers::start(each, queue, service, &mut threads)).transpose()?;
            let (device, service, tell) = (Arc::clone(device), Arc::clone(service), tell.clone());
            let run = move || {
                crate::roam::bind(queue);
                let mut entries = 1;
                if helpers.is_some() {
                    entries = each + OWN_ENTRIES;
                    // Where this fails, requests that nobody waits for cost two switches more.
                    let _ = never_preempt();
                }
                let queue = u16::try_from(queue).expect("the kernel counts queues in 16 bits");
                let ring = match FuseRing::new(&device, queue, entries, plan.payload_bytes) {
                    Ok(ring) => ring,
                    Err(e) => return drop(tell.send(Err(e))),
                };
                let _ = tell.send(Ok(()));
                drop(tell);
                if let Err(e) = serve(ring, &*service, helpers.as_ref()) {
                    tracing::warn!(%e, "the kernel takes no entry of a FUSE ring; requests come by the device");
                }
            };
            threads.push(Builder::new().name(format!("fuse-ring-{queue}")).spawn(run)?);
        }
        // Each thread tells once, when it has its ring, or none.
        drop(tell);
        told.iter().take(queues * rings).collect::<io::Result<()>>()?;
        Ok(Self(threads))
    }

    /// Waits for the end of the connection.
    pub(super) fn join(self) {
        for thread in self.0 {
            let _ = thread.join();
        }
    }
}

thread_local! {
    static GATHERS: Cell<bool> = const { Cell::new(false) };
}

/// Whether a request may wait in this thread, for others to give something back: not in one that has all of a processor's to do.
pub(super) fn may_wait() -> bool {
    !GATHERS.get()
}

fn answered<S: Service>(service: &S, mut entry: FuseEntry) -> FuseEntry {
    entry.answer(|request| Some(service.serve(request)));
    entry
}

/// Answers a ring's requests, by itself or with helpers.
fn serve<S: Service>(ring: FuseRing, service: &S, helpers: Option<&Helpers>) -> io::Result<()> {
    let Some(helpers) = helpers else { return ring.serve(|entry, _| Some(answered(service, entry))) };
    GATHERS.set(true);
    let returns = ring.returns();
    // The last request took so long that others have come meanwhile, and wait for their turn: each of them may take as long.
    let mut waited = false;
    let mut careful_until = None;
    ring.serve(|mut entry, more| {
        if !entry.is_awaited() {
            return Some(answered(service, entry));
        }
        let started = Instant::now();
        let length = service.length(entry.header(), entry.op());
        let short = match length {
            Length::Look => true,
            Length::Change => careful_until.is_none_or(|until| started >= until),
            Length::Long => false,
        };
        let spread = waited && more > 0 && helpers.any_idle();
        let here = |request: FuseRequest<'_>| Some(service.serve(request)).filter(|(error, _)| *error != ELSEWHERE.0);
        if !short || spread || !entry.answer(here) {
            helpers.take(entry, &returns);
            return None;
        }
        let took = started.elapsed();
        waited = took > SHORT;
        if length == Length::Change && took > STALL {
            careful_until = Some(started + took * CAREFUL);
        }
        Some(entry)
    })
}

/// A request, and where its answer goes.
type Job = (FuseEntry, Arc<FuseReturns>);

#[derive(Debug, Default)]
struct Jobs {
    waiting: VecDeque<Job>,
    /// Threads that wait for one.
    idle: usize,
    ended: bool,
}

/// Threads on a queue's processor that work on those of its requests which may take long. They end when this is dropped.
#[derive(Debug)]
struct Helpers(Arc<(Mutex<Jobs>, Condvar)>);

impl Helpers {
    fn start<S: Service>(count: usize, queue: usize, service: &Arc<S>, threads: &mut Vec<JoinHandle<()>>) -> io::Result<Self> {
        let helpers = Self(Arc::default());
        for _ in 0..count {
            let (shared, service) = (Arc::clone(&helpers.0), Arc::clone(service));
            let run = move || {
                crate::roam::bind(queue);
                while let Some((entry, returns)) = Self::next(&shared) {
                    returns.give(answered(&*service, entry));
                }
            };
            threads.push(Builder::new().name(format!("fuse-help-{queue}")).spawn(run)?);
        }
        Ok(helpers)
    }

    /// The next request; `None` at the end.
    fn next((jobs, work): &(Mutex<Jobs>, Condvar)) -> Option<Job> {
        let mut jobs = jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.idle += 1;
        let nothing = |jobs: &mut Jobs| jobs.waiting.is_empty() && !jobs.ended;
        let mut jobs = work.wait_while(jobs, nothing).unwrap_or_else(PoisonError::into_inner);
        jobs.idle -= 1;
        jobs.waiting.pop_front()
    }

    /// Whether a thread would begin with another request now.
    fn any_idle(&self) -> bool {
        let jobs = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.idle > jobs.waiting.len()
    }

    fn take(&self, entry: FuseEntry, returns: &Arc<FuseReturns>) {
        let (jobs, work) = &*self.0;
        jobs.lock().unwrap_or_else(PoisonError::into_inner).waiting.push_back((entry, Arc::clone(returns)));
        work.notify_one();
    }
}

impl Drop for Helpers {
    fn drop(&mut self) {
        let (jobs, work) = &*self.0;
        jobs.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
        work.notify_all();
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
