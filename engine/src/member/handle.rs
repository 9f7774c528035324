//! What the rest of the node holds of its member: a cheap handle, usable from any thread.

use super::types::{LeaseTtl, MemberError, MemberReply, MemberRequest, MemberStatus, NodeLeases};
use super::watches::{WatchSink, WatchStream, Watches};
use crate::kv::types::{Applied, Command, Keyspace, RangeRequest, RangeResponse};
use crate::kv::{Store, WatchId, WatchRequest};
use crate::raft::{ConfChange, Membership};
use crate::types::{Index, NodeId, Revision, Time};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{mpsc, oneshot, watch};

/// Requests that wait for the member's task at most; more are refused with `TooManyRequests`.
pub const CALLS_MAX: usize = 16 * 1024;

/// A monotonic clock whose microseconds count from one origin in the whole process, so that times that
/// the member reports can be compared with times that other tasks take.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// A clock that starts now, at 1 s, so that nothing lies before 0.
    #[must_use]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Time {
        Time(1_000_000).after(self.0.elapsed())
    }

    /// The instant at which [`Self::now`] says `time`.
    #[must_use]
    pub fn instant(&self, time: Time) -> Instant {
        // A deadline of "never" must not overflow what the platform can represent.
        let year = std::time::Duration::from_secs(365 * 24 * 3600);
        self.0 + time.since(Time(1_000_000)).min(year)
    }
}

pub(super) type ReplyTo = oneshot::Sender<Result<MemberReply, MemberError>>;

/// What the handle sends to the member's task.
pub(super) enum Call {
    Request { request: MemberRequest, reply: ReplyTo },
    Watch { keyspace: Keyspace, request: WatchRequest, sink: WatchSink, reply: oneshot::Sender<Result<WatchId, MemberError>> },
}

/// Calls that are never refused: their number is bounded by that of watches and handles.
pub(super) enum Control {
    CancelWatch(WatchId),
    /// The stream has room again.
    WatchReady(WatchId),
    WatchProgress(WatchId),
    Stop(oneshot::Sender<()>),
}

/// The driver's end of a handle.
pub struct Inbox {
    pub(super) calls: mpsc::Receiver<Call>,
    pub(super) control: mpsc::UnboundedReceiver<Control>,
    pub(super) status: watch::Sender<MemberStatus>,
    pub(super) clock: Clock,
}

/// A handle to a running member.
#[derive(Clone)]
pub struct MemberHandle {
    calls: mpsc::Sender<Call>,
    control: mpsc::UnboundedSender<Control>,
    status: watch::Receiver<MemberStatus>,
    store: Arc<Store>,
    clock: Clock,
}

impl MemberHandle {
    /// A handle and the end that [`super::driver::run`] takes. `status` is what is shown until the member runs.
    #[must_use]
    pub fn new(store: Arc<Store>, status: MemberStatus, clock: Clock) -> (Self, Inbox) {
        let (calls, calls_rx) = mpsc::channel(CALLS_MAX);
        let (control, control_rx) = mpsc::unbounded_channel();
        let (status_tx, status) = watch::channel(status);
        (Self { calls, control, status, store, clock }, Inbox { calls: calls_rx, control: control_rx, status: status_tx, clock })
    }

    /// Any request.
    ///
    /// # Errors
    /// Whatever the member answers; `TooManyRequests` when its queue is full, `Stopped` when it is gone.
    pub fn request(&self, request: MemberRequest) -> impl Future<Output = Result<MemberReply, MemberError>> + Send + use<> {
        // Sent at once, so that the future does not hold the request; there are thousands of them.
        let (reply, answer) = oneshot::channel();
        let sent = self.call(Call::Request { request, reply });
        async move {
            sent?;
            answer.await.unwrap_or(Err(MemberError::Stopped))
        }
    }

    pub(super) fn call(&self, call: Call) -> Result<(), MemberError> {
        self.calls.try_send(call).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => MemberError::TooManyRequests,
            mpsc::error::TrySendError::Closed(_) => MemberError::Stopped,
        })
    }

    /// Puts a command through the log; returns once it is committed and applied here.
    ///
    /// # Errors
    /// `Timeout` leaves open whether the command takes effect; every other error means that it does not.
    pub fn propose(&self, command: Command) -> impl Future<Output = Result<Applied, MemberError>> + Send + use<> {
        let request = self.request(MemberRequest::Propose(command));
        async move {
            match request.await? {
                MemberReply::Applied(applied) => Ok(applied),
                _ => Err(unexpected()),
            }
        }
    }

    /// Returns once reads of [`Self::store`] are linearizable: they see everything that was acknowledged
    /// anywhere before the call.
    ///
    /// # Errors
    /// Without a leader, or when the round takes too long.
    pub async fn read_index(&self) -> Result<Index, MemberError> {
        match self.request(MemberRequest::ReadIndex).await? {
            MemberReply::ReadIndex(index) => Ok(index),
            _ => Err(unexpected()),
        }
    }

    /// Reads a range; linearizable unless `serializable`. Returns the store's revision too.
    ///
    /// # Errors
    /// What [`Self::read_index`] says, and the store's refusals as `MemberError::Kv`.
    pub async fn range(
        &self,
        keyspace: Keyspace,
        request: &RangeRequest,
        serializable: bool,
    ) -> Result<(RangeResponse, Revision), MemberError> {
        if !serializable {
            self.read_index().await?;
        }
        self.store.range(keyspace, request).map_err(Into::into)
    }

    /// A queue for the updates of many watches.
    #[must_use]
    pub fn watches(&self) -> Watches {
        Watches::new(self.clone())
    }

    pub(super) fn control(&self, control: Control) {
        // A member that is gone has no watches.
        let _ = self.control.send(control);
    }

    /// Waits until the member's task has ended.
    pub(super) async fn gone(&self) {
        self.control.closed().await;
    }

    /// Starts a watch. The stream ends by being dropped.
    ///
    /// # Errors
    /// When the member is gone or has too many requests waiting.
    pub async fn watch(&self, keyspace: Keyspace, request: WatchRequest) -> Result<WatchStream, MemberError> {
        WatchStream::start(self.clone(), keyspace, request).await
    }

    /// Gives a lease its full time again; returns it in seconds.
    ///
    /// # Errors
    /// `Kv(LeaseNotFound)` when there is no such lease.
    pub async fn lease_keep_alive(&self, id: i64) -> Result<i64, MemberError> {
        match self.request(MemberRequest::LeaseKeepAlive(id)).await? {
            MemberReply::LeaseKeepAlive { ttl_s } => Ok(ttl_s),
            _ => Err(unexpected()),
        }
    }

    /// How long a lease has left.
    ///
    /// # Errors
    /// As [`Self::read_index`]. A lease that does not exist is no error: `remaining_s` is -1.
    pub async fn lease_ttl(&self, id: i64, keys: bool) -> Result<LeaseTtl, MemberError> {
        match self.request(MemberRequest::LeaseTimeToLive { id, keys }).await? {
            MemberReply::LeaseTtl(ttl) => Ok(ttl),
            _ => Err(unexpected()),
        }
    }

    /// Renews the node lease of `node`, which counts from the moment returned: the one before the request left.
    ///
    /// # Errors
    /// As [`Self::read_index`].
    pub async fn node_alive(&self, node: NodeId) -> Result<Time, MemberError> {
        let sent = self.clock.now();
        self.request(MemberRequest::NodeAlive { node }).await.map(|_| sent)
    }

    /// When which node was last heard of; `None` where this member does not lead.
    ///
    /// # Errors
    /// When the member is gone.
    pub async fn node_leases(&self) -> Result<Option<NodeLeases>, MemberError> {
        match self.request(MemberRequest::NodeLeases).await {
            Ok(MemberReply::NodeLeases(leases)) => Ok(Some(leases)),
            Ok(_) => Err(unexpected()),
            Err(MemberError::NotLeader) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Changes the membership; returns the new one.
    ///
    /// # Errors
    /// etcd's refusals.
    pub async fn conf_change(&self, change: ConfChange) -> Result<Membership, MemberError> {
        match self.request(MemberRequest::ConfChange(change)).await? {
            MemberReply::Members(membership) => Ok(membership),
            _ => Err(unexpected()),
        }
    }

    /// The members.
    ///
    /// # Errors
    /// As [`Self::read_index`] when `linearizable`.
    pub async fn members(&self, linearizable: bool) -> Result<Membership, MemberError> {
        match self.request(MemberRequest::MemberList { linearizable }).await? {
            MemberReply::Members(membership) => Ok(membership),
            _ => Err(unexpected()),
        }
    }

    /// Hands leadership to another voter.
    ///
    /// # Errors
    /// `NotLeader` where this member does not lead.
    pub async fn move_leader(&self, to: NodeId) -> Result<(), MemberError> {
        self.request(MemberRequest::MoveLeader(to)).await.map(|_| ())
    }

    /// What the member knows of itself, right now.
    ///
    /// # Errors
    /// When the member is gone.
    pub async fn status(&self) -> Result<MemberStatus, MemberError> {
        match self.request(MemberRequest::Status).await? {
            MemberReply::Status(status) => Ok(*status),
            _ => Err(unexpected()),
        }
    }

    /// What the member last showed of itself, without asking it: role, term, leader and membership are current to
    /// a batch of events; `applied`, `committed` and `revision` only as of the last change of those.
    #[must_use]
    pub fn last_status(&self) -> MemberStatus {
        self.status.borrow().clone()
    }

    /// Tells of changes of role, term, leader, membership, and of the end of the member.
    #[must_use]
    pub fn status_watch(&self) -> watch::Receiver<MemberStatus> {
        self.status.clone()
    }

    /// The store, for reads.
    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The clock that all times of this member are of.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Stops the member: hands leadership over first, then takes a checkpoint. Returns when it has stopped.
    pub async fn stop(&self) {
        let (done, wait) = oneshot::channel();
        if self.control.send(Control::Stop(done)).is_ok() {
            let _ = wait.await;
        }
    }
}

/// A reply of another request's kind would be a bug of the core; the caller sees an error, not a panic.
fn unexpected() -> MemberError {
    MemberError::Storage("reply of the wrong kind".into())
}
