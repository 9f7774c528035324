//! Watches as the rest of the node holds them: many share one bounded queue, so that an idle one costs little memory.

use super::handle::{Call, Control, MemberHandle};
use super::types::MemberError;
use crate::kv::types::Keyspace;
use crate::kv::{WatchId, WatchOutput, WatchRequest};
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{mpsc, oneshot};

/// Updates that wait in one queue at most; then its watches catch up from the store's history.
pub const WATCH_UPDATES_MAX: usize = 64;

/// What a watch has. In a box: a channel takes room for 32 at once.
pub(super) type Update = Box<(WatchId, WatchOutput)>;

/// The driver's end of a queue.
#[derive(Clone)]
pub(super) struct WatchSink {
    pub(super) updates: mpsc::Sender<Update>,
    /// Watches with output that found no room, each once.
    blocked: Arc<Mutex<VecDeque<WatchId>>>,
}

impl WatchSink {
    fn blocked(&self) -> MutexGuard<'_, VecDeque<WatchId>> {
        self.blocked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A watch found no room. True: it will be told when there is ([`Control::WatchReady`]); false: there is some by now.
    pub(super) fn block(&self, id: WatchId) -> bool {
        let mut blocked = self.blocked();
        // The consumer takes updates before it looks here: if the queue is full now, it will look.
        let full = self.updates.capacity() == 0;
        if full {
            blocked.push_back(id);
        }
        full
    }
}

/// Watches whose updates come in one queue. They end by being dropped.
pub struct Watches {
    handle: MemberHandle,
    sink: WatchSink,
    updates: mpsc::Receiver<Update>,
    open: BTreeSet<WatchId>,
}

/// A watch that is asked for. Whoever gives up waiting has it cancelled: it may have begun, and nobody else knows its number.
struct Asked<'h> {
    handle: &'h MemberHandle,
    answer: oneshot::Receiver<Result<WatchId, MemberError>>,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.answer.close();
        if let Ok(Ok(id)) = self.answer.try_recv() {
            self.handle.control(Control::CancelWatch(id));
        }
    }
}

impl Watches {
    pub(super) fn new(handle: MemberHandle) -> Self {
        let (sender, updates) = mpsc::channel(WATCH_UPDATES_MAX);
        Self { handle, sink: WatchSink { updates: sender, blocked: Arc::default() }, updates, open: BTreeSet::new() }
    }

    /// Starts a watch; returns the member's number for it, unique in this process. Cancel safe: then there is none.
    ///
    /// # Errors
    /// When the member is gone or has too many requests waiting.
    pub async fn create(&mut self, keyspace: Keyspace, request: WatchRequest) -> Result<WatchId, MemberError> {
        let (reply, answer) = oneshot::channel();
        self.handle.call(Call::Watch { keyspace, request, sink: self.sink.clone(), reply })?;
        let mut asked = Asked { handle: &self.handle, answer };
        let id = (&mut asked.answer).await.unwrap_or(Err(MemberError::Stopped))?;
        drop(asked);
        self.open.insert(id);
        Ok(id)
    }

    /// Ends a watch: nothing more comes from it.
    pub fn cancel(&mut self, id: WatchId) {
        if self.open.remove(&id) {
            self.handle.control(Control::CancelWatch(id));
        }
    }

    /// Asks for a [`WatchOutput::Progress`], in order with the watch's events.
    pub fn request_progress(&self, id: WatchId) {
        self.handle.control(Control::WatchProgress(id));
    }

    /// The next update; after `Compacted` nothing more comes from that watch. `None` after the end of the member. Cancel safe.
    pub async fn next(&mut self) -> Option<(WatchId, WatchOutput)> {
        loop {
            let update = match self.updates.try_recv() {
                Ok(update) => {
                    self.wake(self.sink.updates.capacity());
                    update
                }
                Err(_) => {
                    // Nothing comes by itself any more, whatever became of those who were told before.
                    self.wake(usize::MAX);
                    tokio::select! {
                        biased;
                        update = self.updates.recv() => update?,
                        () = self.handle.gone() => return None,
                    }
                }
            };
            let (id, output) = *update;
            let known = if matches!(output, WatchOutput::Compacted { .. }) { self.open.remove(&id) } else { self.open.contains(&id) };
            if known {
                return Some((id, output));
            }
        }
    }

    /// Tells some of the watches that wait for room.
    fn wake(&self, most: usize) {
        let mut blocked = self.sink.blocked();
        let most = most.min(blocked.len());
        for id in blocked.drain(..most) {
            self.handle.control(Control::WatchReady(id));
        }
    }
}

impl Drop for Watches {
    fn drop(&mut self) {
        for id in std::mem::take(&mut self.open) {
            self.handle.control(Control::CancelWatch(id));
        }
    }
}

/// One watch. It ends by being dropped.
pub struct WatchStream(Watches);

impl WatchStream {
    pub(super) async fn start(handle: MemberHandle, keyspace: Keyspace, request: WatchRequest) -> Result<Self, MemberError> {
        let mut watches = Watches::new(handle);
        watches.create(keyspace, request).await?;
        Ok(Self(watches))
    }

    /// The next update; `None` after `Compacted` or the end of the member. Cancel safe.
    pub async fn next(&mut self) -> Option<WatchOutput> {
        if self.0.open.is_empty() {
            return None;
        }
        self.0.next().await.map(|(_, output)| output)
    }

    /// Asks for a [`WatchOutput::Progress`], in order with the events.
    pub fn request_progress(&self) {
        self.0.open.iter().for_each(|id| self.0.request_progress(*id));
    }
}
