//! The log for tasks of a tokio current-thread runtime: an append is a future that resolves when durable.

use super::log::Wal;
use super::types::{LogBatch, Lsn, WalError};
use crate::io::Io;
use crate::io::uring::Readiness;
use crate::types::GroupId;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// A log shared by the tasks of one thread. Cloning gives another handle.
///
/// A mutex that is never contended keeps the handle `Send`, as handlers of network requests must be.
pub struct AsyncWal<I: Io>(Arc<Mutex<Shared<I>>>);

struct Shared<I: Io> {
    wal: Wal<I>,
    /// Those who wait, by LSN, which is the order in which they came.
    waiters: VecDeque<(Lsn, Waker)>,
    /// Wakes the driver when there is something to submit; taken when it is woken.
    driver: Option<Waker>,
    closed: bool,
}

impl<I: Io> Clone for AsyncWal<I> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<I: Io> AsyncWal<I> {
    /// Wraps `wal`; nothing moves until [`Self::drive`] runs.
    #[must_use]
    pub fn new(wal: Wal<I>) -> Self {
        Self(Arc::new(Mutex::new(Shared { wal, waiters: VecDeque::new(), driver: None, closed: false })))
    }

    fn lock(&self) -> MutexGuard<'_, Shared<I>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues at once; the future resolves when the addition is durable. Dropping it does not take the addition back.
    ///
    /// # Errors
    /// As [`Wal::append`] and [`Wal::poll`].
    pub fn append(&self, group: GroupId, batch: LogBatch<'_>) -> impl Future<Output = Result<Lsn, WalError>> + use<I> {
        let queued = {
            let mut shared = self.lock();
            let queued = shared.wal.append(group, batch);
            if let Some(driver) = shared.driver.take() {
                driver.wake();
            }
            queued
        };
        let this = self.clone();
        let mut registered = false;
        poll_fn(move |cx| match &queued {
            Err(e) => Poll::Ready(Err(e.clone())),
            Ok(lsn) => this.poll_durable(*lsn, &mut registered, cx),
        })
    }

    fn poll_durable(&self, lsn: Lsn, registered: &mut bool, cx: &mut Context<'_>) -> Poll<Result<Lsn, WalError>> {
        let mut shared = self.lock();
        if shared.wal.durable() >= lsn {
            return Poll::Ready(Ok(lsn));
        }
        if let Some(e) = shared.wal.latched() {
            return Poll::Ready(Err(e.clone()));
        }
        let at = shared.waiters.partition_point(|(l, _)| *l < lsn);
        if *registered && shared.waiters.get(at).is_some_and(|(l, _)| *l == lsn) {
            shared.waiters[at].1.clone_from(cx.waker());
        } else {
            shared.waiters.insert(at, (lsn, cx.waker().clone()));
            *registered = true;
        }
        Poll::Pending
    }

    /// Moves the log until [`Self::close`] is called or the log latches: spawn it once, on the same runtime.
    ///
    /// # Errors
    /// The error that latched the log; everyone who waits gets it too.
    pub async fn drive(&self) -> Result<(), WalError> {
        let readiness = {
            let shared = self.lock();
            let fd = shared.wal.io().readiness();
            fd.map(|fd| Readiness::new(&fd)).transpose().map_err(WalError::io("watch the ring"))?
        };
        // Two rounds through the scheduler's queue: the first lets the tasks that were just woken run and append, so
        // that they share one batch instead of the first of them going alone.
        let mut yielded = false;
        poll_fn(|cx| {
            if let Some(readiness) = &readiness {
                while let Poll::Ready(ready) = readiness.poll_ready(cx) {
                    if ready.is_err() {
                        return Poll::Ready(Ok(()));
                    }
                    yielded &= !self.take_completions()?;
                }
            }
            if !yielded {
                yielded = true;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let mut shared = self.lock();
            let before = shared.wal.durable();
            let polled = shared.wal.poll();
            shared.wake_durable();
            polled?;
            let again = shared.wal.durable() > before || (readiness.is_none() && shared.wal.has_pending());
            yielded = false;
            if shared.closed && !shared.wal.has_pending() {
                return Poll::Ready(Ok(()));
            }
            if again {
                cx.waker().wake_by_ref();
            } else {
                shared.driver = Some(cx.waker().clone());
                yielded = false;
            }
            Poll::Pending
        })
        .await
    }

    /// Takes in what is done, and wakes those who waited for it; whether there was anyone.
    fn take_completions(&self) -> Result<bool, WalError> {
        let mut shared = self.lock();
        let taken = shared.wal.take_completions();
        let woke = shared.wake_durable();
        taken.map(|_| woke)
    }

    /// Lets [`Self::drive`] end once everything appended is durable.
    pub fn close(&self) {
        let mut shared = self.lock();
        shared.closed = true;
        if let Some(driver) = shared.driver.take() {
            driver.wake();
        }
    }
}

impl<I: Io> Shared<I> {
    /// Wakes whose turn it is; everyone when the log is latched.
    fn wake_durable(&mut self) -> bool {
        let durable = if self.wal.latched().is_some() { Lsn(u64::MAX) } else { self.wal.durable() };
        let mut any = false;
        while self.waiters.front().is_some_and(|(lsn, _)| *lsn <= durable) {
            if let Some((_, waker)) = self.waiters.pop_front() {
                waker.wake();
                any = true;
            }
        }
        any
    }
}

#[cfg(test)]
mod tests {
    use super::super::types::WalConfig;
    use super::*;
    use crate::io::disk::DiskIo;
    use crate::io::std_io::StdIo;
    use crate::types::{Entry, EntryKind, Index, Term};

    async fn many_waiters<I: Io + Send + 'static>(io: I) -> usize
    where
        I::File: Send,
    {
        let config = WalConfig { segment_bytes: 1 << 20, ..WalConfig::default() };
        let (wal, _) = Wal::recover(io, config).unwrap();
        let wal = AsyncWal::new(wal);
        let driver = tokio::spawn({
            let wal = wal.clone();
            async move { wal.drive().await }
        });
        let tasks: Vec<_> = (1..=50_u64)
            .map(|group| {
                let wal = wal.clone();
                tokio::spawn(async move {
                    for index in 1..=20 {
                        let entry = Entry { term: Term(1), index: Index(index), kind: EntryKind::Normal, data: vec![7; 100].into() };
                        wal.append(GroupId(group), LogBatch { entries: &[entry], ..LogBatch::default() }).await.unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        wal.close();
        driver.await.unwrap().unwrap();
        1000
    }

    #[tokio::test]
    async fn every_waiter_gets_its_answer() {
        let dir = tempfile::tempdir().unwrap();
        many_waiters(DiskIo::open(dir.path()).unwrap()).await;
        let (_, recovered) = Wal::recover(DiskIo::open(dir.path()).unwrap(), WalConfig::default()).unwrap();
        assert_eq!(recovered.groups.values().map(|g| g.entries.len()).sum::<usize>(), 1000);
    }

    #[tokio::test]
    async fn without_a_ring_too() {
        let dir = tempfile::tempdir().unwrap();
        many_waiters(StdIo::open(dir.path()).unwrap()).await;
        let (_, recovered) = Wal::recover(StdIo::open(dir.path()).unwrap(), WalConfig::default()).unwrap();
        assert_eq!(recovered.groups.values().map(|g| g.entries.len()).sum::<usize>(), 1000);
    }
}
