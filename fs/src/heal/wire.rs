//! How a heal, written as straight-line code, stays without sockets, clock and thread: its `async fn`s are polled by
//! hand, and every `await` is a call to one of the two bricks or waits for another part of the same heal.
//!
//! [`Wire`] holds the calls that wait to go out and the answers that came. There is no waker: after every answer
//! the whole heal is polled, in a fixed order, which is what makes it deterministic. At most [`WINDOW_MAX`] parts run
//! at a time, so polling all of them costs little.

use super::calls::{HealCall, HealResult, HealReturn};
use crate::fop::Errno;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

/// Most calls under way to both bricks.
pub const WINDOW_MAX: usize = 32;
/// How far the numbers of calls under way are apart at most: a brick that answers repeated calls from memory needs no more of it.
pub const SPREAD_MAX: u64 = 128;

/// One of the two bricks of a heal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// Where the heal runs.
    Local,
    /// At the other end of the messages.
    Remote,
}

#[derive(Default)]
struct Queues {
    next_id: u64,
    local: VecDeque<(u64, HealCall)>,
    remote: VecDeque<(u64, HealCall)>,
    /// Calls without an answer.
    open: BTreeSet<u64>,
    returned: BTreeMap<u64, HealResult>,
    locked: bool,
    progress: bool,
}

/// The two bricks as the heal's code sees them. Cloning gives another handle to the same.
#[derive(Clone, Default)]
pub(super) struct Wire(Arc<Mutex<Queues>>);

impl Wire {
    // One thread uses it; the lock is only there so that the heal may move between threads.
    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks a brick and waits for its answer.
    pub async fn call(&self, side: Side, call: HealCall) -> HealResult {
        std::future::poll_fn(|_| {
            let q = self.queues();
            let close = q.open.first().is_none_or(|oldest| q.next_id - oldest < SPREAD_MAX);
            if q.open.len() < WINDOW_MAX && close { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        let id = {
            let mut q = self.queues();
            q.next_id += 1;
            q.progress = true;
            let id = q.next_id;
            q.open.insert(id);
            match side {
                Side::Local => q.local.push_back((id, call)),
                Side::Remote => q.remote.push_back((id, call)),
            }
            id
        };
        std::future::poll_fn(|_| {
            let mut q = self.queues();
            let Some(result) = q.returned.remove(&id) else { return Poll::Pending };
            q.progress = true;
            Poll::Ready(result)
        })
        .await
    }

    /// Runs `work` while no other part of the heal runs under this lock.
    pub async fn exclusively<T>(&self, work: impl Future<Output = T>) -> T {
        std::future::poll_fn(|_| {
            let mut q = self.queues();
            if q.locked {
                return Poll::Pending;
            }
            q.locked = true;
            Poll::Ready(())
        })
        .await;
        let result = work.await;
        let mut q = self.queues();
        q.locked = false;
        q.progress = true;
        result
    }

    pub fn pop(&self, side: Side) -> Option<(u64, HealCall)> {
        let mut q = self.queues();
        match side {
            Side::Local => q.local.pop_front(),
            Side::Remote => q.remote.pop_front(),
        }
    }

    pub fn has_local(&self) -> bool {
        !self.queues().local.is_empty()
    }

    pub fn put_return(&self, id: u64, result: HealResult) {
        let mut q = self.queues();
        // From now on it holds up nobody, also if the part that asked is not polled, or is gone.
        q.open.remove(&id);
        q.returned.insert(id, result);
        q.progress = true;
    }

    /// Whether anything happened since it was last asked.
    pub fn take_progress(&self) -> bool {
        std::mem::take(&mut self.queues().progress)
    }
}

pub(super) type Part<'a> = Pin<Box<dyn Future<Output = Result<(), Errno>> + Send + 'a>>;

/// Parts of a heal that run side by side, at most `max` of them.
pub(super) struct Window<'a> {
    parts: Vec<Part<'a>>,
    max: usize,
}

impl<'a> Window<'a> {
    pub const fn new(max: usize) -> Self {
        Self { parts: Vec::new(), max }
    }

    /// Adds a part once there is room.
    pub async fn push(&mut self, part: impl Future<Output = Result<(), Errno>> + Send + 'a) -> Result<(), Errno> {
        self.until(self.max - 1).await?;
        self.parts.push(Box::pin(part));
        Ok(())
    }

    /// Waits until all parts have ended.
    pub async fn drain(&mut self) -> Result<(), Errno> {
        self.until(0).await
    }

    async fn until(&mut self, left: usize) -> Result<(), Errno> {
        std::future::poll_fn(|cx: &mut Context<'_>| {
            let mut at = 0;
            while at < self.parts.len() {
                match self.parts[at].as_mut().poll(cx) {
                    Poll::Pending => at += 1,
                    Poll::Ready(Ok(())) => drop(self.parts.remove(at)),
                    Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                }
            }
            if self.parts.len() <= left { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
        .await
    }
}

/// An answer of the wrong kind: the other brick does not speak our language.
pub(super) const PROTOCOL: Errno = Errno::EIO;

type Objects = (Vec<(crate::fop::Gfid, Option<super::ObjectInfo>)>, Option<crate::fop::Gfid>);

macro_rules! expect {
    ($name:ident, $pattern:pat => $value:expr, $type:ty) => {
        pub(super) fn $name(r: HealReturn) -> Result<$type, Errno> {
            match r {
                $pattern => Ok($value),
                _ => Err(PROTOCOL),
            }
        }
    };
}

expect!(done, HealReturn::Done => (), ());
expect!(objects, HealReturn::Objects { objects, after } => (objects, after), Objects);
expect!(stats, HealReturn::Stats(s) => s, Vec<Option<super::ObjectInfo>>);
expect!(entries, HealReturn::Entries { entries, next } => (entries, next), (Vec<super::NameEntry>, u64));
expect!(entry, HealReturn::Entry(e) => e, Option<super::NameEntry>);
expect!(moved, HealReturn::Moved(p) => p, Option<super::Place>);
expect!(xattrs, HealReturn::Xattrs(x) => x, Vec<(bytes::Bytes, bytes::Bytes)>);
expect!(sums, HealReturn::Sums { chunks, next } => (chunks, next), (Vec<(u64, u128)>, Option<u64>));
expect!(data, HealReturn::Data { extents } => extents, Vec<(u64, bytes::Bytes)>);
expect!(gfids, HealReturn::Gfids(g) => g, Vec<crate::fop::Gfid>);
expect!(signature, HealReturn::Signature(s) => s, Option<super::Signature>);
