//! Runs a member on a tokio current-thread runtime.
//!
//! One task owns the core. A turn takes everything that waits in the channels before it lets the core advance, so that
//! the proposals of many clients make one log write and one append to each follower.

use super::apply::RECENT_BYTES_HURRY;
use super::core::MemberCore;
use super::handle::{Call, Clock, Control, Inbox, ReplyTo};
use super::job::{StoreDone, StoreJob};
use super::stats::SharedStats;
use super::types::{MemberError, MemberEvent, MemberOutput, PeerMessage};
use super::watches::WatchSink;
use crate::io::Io;
use crate::io::uring::Readiness;
use crate::kv::WatchId;
use crate::types::{NodeId, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Sleep;

/// Events that one turn takes from each channel.
const BATCH_MAX: usize = 1024;
/// What a checkpoint sleeps before it looks whether it has become urgent.
const REST_MAX: Duration = Duration::from_millis(10);
/// And for less than this it does not sleep: waking up has its price.
const REST_MIN: Duration = Duration::from_millis(2);
/// Entries that a turn longer than this applied are slow (etcd `--experimental-warning-apply-duration`).
const SLOW_APPLY: Duration = Duration::from_millis(100);
/// Events of one watcher in one update.
const WATCH_EVENTS_MAX: usize = 1000;

/// How a member reaches its peers: channels whose other ends somebody with sockets holds.
pub struct Transport {
    /// To send. Messages are dropped while it is full: everything that matters is sent again.
    pub outgoing: mpsc::Sender<(NodeId, PeerMessage)>,
    /// What came, and from whom.
    pub incoming: mpsc::Receiver<(NodeId, PeerMessage)>,
    /// Peers to which messages are lost at present; optional, it speeds up the leader's probing.
    pub unreachable: mpsc::Receiver<NodeId>,
}

/// Why a member stopped by itself.
#[derive(Debug, Error)]
pub enum DriverError {
    /// Log or store failed; reopen them to recover.
    #[error("the member stopped: {0}")]
    Fatal(String),
    /// The log's descriptor cannot be waited for.
    #[error("wait for the log: {0}")]
    Readiness(#[source] std::io::Error),
}

/// The runtime's timer, set anew only for an earlier time: that costs the runtime a system call, even from its own thread.
/// One that fires too early makes a turn in which nothing is due.
struct Alarm {
    sleep: Pin<Box<Sleep>>,
    /// When it fires; `None`: it has.
    at: Option<Time>,
}

impl Alarm {
    fn new() -> Self {
        Self { sleep: Box::pin(tokio::time::sleep(Duration::ZERO)), at: None }
    }

    /// Returns at `time` or before.
    async fn wait(&mut self, clock: &Clock, time: Time) {
        if self.at.is_none_or(|at| time < at) {
            self.sleep.as_mut().reset(tokio::time::Instant::from_std(clock.instant(time)));
            self.at = Some(time);
        }
        self.sleep.as_mut().await;
        self.at = None;
    }
}

struct Watcher {
    sink: WatchSink,
    /// The stream was full; it tells when it has room.
    waiting: bool,
}

struct Driver<I: Io> {
    core: MemberCore<I>,
    inbox: Inbox,
    transport: Transport,
    replies: BTreeMap<u64, ReplyTo>,
    next_request: u64,
    watchers: BTreeMap<WatchId, Watcher>,
    /// Watchers whose stream has room again.
    roomy: BTreeSet<WatchId>,
    alarm: Alarm,
    /// Tells a running checkpoint not to rest: somebody waits for the end.
    hurry: Arc<AtomicBool>,
    job: Option<JoinHandle<StoreDone>>,
    stop_replies: Vec<oneshot::Sender<()>>,
    ended: Option<Result<(), DriverError>>,
    shown: Option<(crate::raft::Role, crate::types::Term, Option<NodeId>)>,
    dropped: u64,
    stats: SharedStats,
}

/// Sleeps until `due` has passed since `begun`, unless it becomes urgent to go on; says for how long.
fn rest(begun: Instant, due: Duration, urgent: &dyn Fn() -> bool) -> Duration {
    let start = begun.elapsed();
    let mut now = start;
    if due < start + REST_MIN {
        return Duration::ZERO;
    }
    while now < due && !urgent() {
        std::thread::sleep(REST_MAX.min(due - now));
        now = begun.elapsed();
    }
    now - start
}

/// What woke the driver.
enum Woken {
    Calls(Vec<Call>),
    Control(Option<Control>),
    Peers(Vec<(NodeId, PeerMessage)>),
    Unreachable(NodeId),
    Job(StoreDone),
    /// Timer, or the log's descriptor.
    Other,
}

/// Runs `core` until it is stopped through its handle ([`Ok`]), all handles are gone, or it fails.
///
/// # Errors
/// The cause, after which the process should exit: the log is not usable any more.
pub async fn run<I: Io>(core: MemberCore<I>, inbox: Inbox, transport: Transport) -> Result<(), DriverError> {
    let fd = match core.io().readiness() {
        Some(fd) => Some(Readiness::new(&fd).map_err(DriverError::Readiness)?),
        None => None,
    };
    let mut driver = Driver {
        stats: core.stats().clone(),
        core,
        inbox,
        transport,
        replies: BTreeMap::new(),
        next_request: 1,
        watchers: BTreeMap::new(),
        roomy: BTreeSet::new(),
        alarm: Alarm::new(),
        hurry: Arc::default(),
        job: None,
        stop_replies: Vec::new(),
        ended: None,
        shown: None,
        dropped: 0,
    };
    let result = loop {
        driver.turn();
        if let Some(result) = driver.ended.take() {
            break result;
        }
        let woken = driver.wait(fd.as_ref()).await;
        driver.take(woken);
        driver.drain();
    };
    driver.finish(result).await
}

impl<I: Io> Driver<I> {
    fn now(&self) -> Time {
        self.inbox.clock.now()
    }

    fn turn(&mut self) {
        let now = self.now();
        let before = self.core.applied();
        self.core.advance(now);
        let applied = self.core.applied().0.saturating_sub(before.0);
        if applied > 0 && self.now().since(now) > SLOW_APPLY {
            self.stats.slow_applies.fetch_add(applied, Ordering::Relaxed);
        }
        while let Some(output) = self.core.poll_output() {
            self.output(output);
        }
        self.feed_watchers();
        self.core.show_figures();
        self.show();
    }

    fn output(&mut self, output: MemberOutput) {
        match output {
            MemberOutput::Send { to, msg } => {
                if let Err(TrySendError::Full(_)) = self.transport.outgoing.try_send((to, msg)) {
                    self.dropped += 1;
                    if self.dropped.is_power_of_two() {
                        tracing::warn!(dropped = self.dropped, "member: the way to the peers is congested");
                    }
                }
            }
            MemberOutput::Reply { id, result } => {
                if let Some(reply) = self.replies.remove(&id) {
                    let _ = reply.send(result);
                }
            }
            MemberOutput::RoleChanged(change) => {
                let leader = change.leader.map(|l| format!("{:016x}", l.0));
                tracing::info!(role = ?change.role, term = change.term.0, leader, "member: role");
            }
            MemberOutput::MembershipChanged(members) => {
                tracing::info!(voters = members.voters.len(), learners = members.learners.len(), "member: membership");
                self.shown = None;
            }
            MemberOutput::Job(job) => self.spawn(job),
            MemberOutput::Stopped => self.ended = Some(Ok(())),
            MemberOutput::Fatal(cause) => self.ended = Some(Err(DriverError::Fatal(cause))),
        }
    }

    fn spawn(&mut self, job: StoreJob) {
        let (store, hurry) = (self.core.store().clone(), self.hurry.clone());
        self.job = Some(tokio::task::spawn_blocking(move || {
            let begun = Instant::now();
            let urgent = || hurry.load(Ordering::Relaxed) || store.recent_bytes() > RECENT_BYTES_HURRY;
            job.run(&store, &|over, done| rest(begun, over.mul_f64(done.clamp(0.0, 1.0)), &urgent))
        }));
    }

    /// Shows the status where it changed in something that others act on.
    fn show(&mut self) {
        let raft = self.core.raft();
        let key = (raft.role(), raft.term(), raft.leader());
        if self.shown != Some(key) || self.ended.is_some() {
            self.shown = Some(key);
            self.inbox.status.send_replace(self.core.status());
        }
    }

    async fn wait(&mut self, fd: Option<&Readiness>) -> Woken {
        let timeout = self.core.next_timeout();
        if timeout == Time(0) {
            // More to do at once; let the runtime's other tasks have a turn.
            tokio::task::yield_now().await;
            return Woken::Other;
        }
        let clock = self.inbox.clock;
        let mut calls = Vec::new();
        let mut peers = Vec::new();
        let readable = async {
            match fd {
                Some(fd) => {
                    // It fails only when the runtime shuts down, and this task with it.
                    if fd.ready().await.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
                None => std::future::pending().await,
            }
        };
        let job = async {
            match &mut self.job {
                Some(job) => job.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            control = self.inbox.control.recv() => Woken::Control(control),
            () = readable => Woken::Other,
            n = self.transport.incoming.recv_many(&mut peers, BATCH_MAX), if !self.transport.incoming.is_closed() => {
                if n == 0 { Woken::Other } else { Woken::Peers(peers) }
            }
            n = self.inbox.calls.recv_many(&mut calls, BATCH_MAX), if !self.inbox.calls.is_closed() => {
                if n == 0 { Woken::Other } else { Woken::Calls(calls) }
            }
            Some(peer) = self.transport.unreachable.recv() => Woken::Unreachable(peer),
            done = job => match done {
                Ok(done) => Woken::Job(done),
                Err(e) => {
                    self.ended = Some(Err(DriverError::Fatal(format!("store job: {e}"))));
                    Woken::Other
                }
            },
            () = self.alarm.wait(&clock, timeout) => Woken::Other,
        }
    }

    fn take(&mut self, woken: Woken) {
        let now = self.now();
        match woken {
            Woken::Calls(calls) => calls.into_iter().for_each(|c| self.call(now, c)),
            Woken::Control(Some(control)) => self.control(now, control),
            // Nobody holds a handle any more.
            Woken::Control(None) => self.core.handle(now, MemberEvent::Stop),
            Woken::Peers(messages) => {
                for (from, msg) in messages {
                    self.core.handle(now, MemberEvent::Peer { from, msg });
                }
            }
            Woken::Unreachable(peer) => self.core.handle(now, MemberEvent::PeerUnreachable(peer)),
            Woken::Job(done) => {
                self.job = None;
                self.core.handle(now, MemberEvent::JobDone(done));
            }
            Woken::Other => {}
        }
    }

    /// Takes what else waits, so that it shares the turn.
    fn drain(&mut self) {
        let now = self.now();
        for _ in 0..BATCH_MAX {
            let Ok((from, msg)) = self.transport.incoming.try_recv() else { break };
            self.core.handle(now, MemberEvent::Peer { from, msg });
        }
        for _ in 0..BATCH_MAX {
            let Ok(call) = self.inbox.calls.try_recv() else { break };
            self.call(now, call);
        }
        for _ in 0..BATCH_MAX {
            let Ok(control) = self.inbox.control.try_recv() else { break };
            self.control(now, control);
        }
    }

    fn call(&mut self, now: Time, call: Call) {
        match call {
            Call::Request { request, reply } => {
                let id = self.next_request;
                self.next_request += 1;
                self.replies.insert(id, reply);
                self.core.handle(now, MemberEvent::Request { id, req: request });
            }
            Call::Watch { keyspace, request, sink, reply } => {
                let id = self.core.watch_create(keyspace, request);
                if reply.send(Ok(id)).is_err() {
                    // The caller is gone, and with it the stream that would cancel.
                    self.core.watch_cancel(id);
                } else {
                    self.watchers.insert(id, Watcher { sink, waiting: false });
                    self.roomy.insert(id);
                }
            }
        }
    }

    fn control(&mut self, now: Time, control: Control) {
        match control {
            Control::CancelWatch(id) => {
                self.core.watch_cancel(id);
                self.watchers.remove(&id);
                self.roomy.remove(&id);
            }
            Control::WatchReady(id) => {
                if let Some(watcher) = self.watchers.get_mut(&id) {
                    watcher.waiting = false;
                    self.roomy.insert(id);
                }
            }
            Control::WatchProgress(id) => {
                self.core.watch_progress(id);
                self.roomy.insert(id);
            }
            Control::Stop(done) => {
                self.stop_replies.push(done);
                self.core.handle(now, MemberEvent::Stop);
            }
        }
    }

    fn feed_watchers(&mut self) {
        while let Some(id) = self.core.watch_ready() {
            self.roomy.insert(id);
        }
        while let Some(id) = self.roomy.pop_first() {
            self.feed(id);
        }
    }

    fn feed(&mut self, id: WatchId) {
        let Some(watcher) = self.watchers.get_mut(&id) else { return };
        while !watcher.waiting {
            let permit = match watcher.sink.updates.try_reserve() {
                Ok(permit) => permit,
                // Only those with output wait for room, so that each that is told of some uses it.
                Err(TrySendError::Full(())) if !self.core.watch_has_output(id) => {
                    self.core.watch_poll(id, 0);
                    return;
                }
                Err(TrySendError::Full(())) => {
                    watcher.waiting = watcher.sink.block(id);
                    continue;
                }
                Err(TrySendError::Closed(())) => {
                    self.core.watch_cancel(id);
                    break;
                }
            };
            match self.core.watch_poll(id, WATCH_EVENTS_MAX) {
                Some(update) => {
                    let last = matches!(update, crate::kv::WatchOutput::Compacted { .. });
                    permit.send(Box::new((id, update)));
                    if last {
                        break;
                    }
                }
                None => return,
            }
        }
        if !watcher.waiting {
            self.watchers.remove(&id);
        }
    }

    /// Waits for a running job, takes a last checkpoint after a clean stop, and tells everybody.
    async fn finish(mut self, result: Result<(), DriverError>) -> Result<(), DriverError> {
        self.hurry.store(true, Ordering::Relaxed);
        if let Some(job) = self.job.take() {
            let _ = job.await;
        }
        if result.is_ok() {
            let store = self.core.store().clone();
            if let Ok(Err(e)) = tokio::task::spawn_blocking(move || store.checkpoint()).await {
                tracing::warn!(error = %e, "member: last checkpoint; the next start replays the log");
            }
        }
        self.inbox.status.send_modify(|s| {
            s.leader = None;
            s.stopped = Some(result.as_ref().err().map_or_else(|| "stopped on request".into(), ToString::to_string));
        });
        for (_, reply) in std::mem::take(&mut self.replies) {
            let _ = reply.send(Err(MemberError::Stopped));
        }
        for done in self.stop_replies {
            let _ = done.send(());
        }
        result
    }
}
