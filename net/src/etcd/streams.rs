//! A connection's requests, run by the connection's own task.
//!
//! hyper hands each request of HTTP/2 to an executor as a future of its own. As a task of its own, each is allocated with the alignment of
//! a cache line, put into the runtime's queue and taken from it for every step. Here they live beside the connection: whoever answers a
//! request wakes the connection, which mostly sends the answer in the same turn.

use futures_util::FutureExt as _;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use hyper::rt::Executor;
use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

/// Requests that are begun in one turn. A connection can bring thousands at once, and the thread has other connections, and the member itself.
const BEGUN_MAX: usize = 128;

type Request = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Requests that have come and are not run yet.
#[derive(Clone, Default)]
pub(super) struct Streams(Arc<Mutex<Vec<Request>>>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, request: F) {
        // One that panics ends its own stream only, as a task of its own would.
        self.lock().push(Box::pin(AssertUnwindSafe(request).catch_unwind().map(drop)));
    }
}

impl Streams {
    fn lock(&self) -> MutexGuard<'_, Vec<Request>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a connection that has this executor. Requests that have no answer when it ends are dropped: there is nobody left to answer.
    pub(super) async fn run<C: Future>(self, connection: C) -> C::Output {
        let mut connection = pin!(connection);
        let mut running = FuturesUnordered::new();
        let mut come = VecDeque::new();
        std::future::poll_fn(|cx| {
            let mut left = BEGUN_MAX;
            loop {
                // Before the connection, so that it sends what they answer.
                while let Poll::Ready(Some(())) = running.poll_next_unpin(cx) {}
                let end = connection.as_mut().poll(cx);
                // Also at the end: each request has a clone of its executor, so that those left in there would keep each other for ever.
                come.extend(std::mem::take(&mut *self.lock()));
                if end.is_ready() {
                    return end;
                }
                if come.is_empty() {
                    return Poll::Pending;
                }
                if left == 0 {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                let now = left.min(come.len());
                left -= now;
                running.extend(come.drain(..now));
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn requests_run_until_the_connection_ends() {
        let streams = Streams::default();
        let (done, dropped) = (Arc::new(AtomicU32::new(0)), Arc::new(()));
        let (first, wait_first) = oneshot::channel();
        let (second, wait_second) = oneshot::channel();
        let connection = {
            let (streams, done, dropped) = (streams.clone(), done.clone(), dropped.clone());
            async move {
                streams.execute({
                    let done = done.clone();
                    async move {
                        first.send(()).unwrap();
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                });
                wait_first.await.unwrap();
                // One that panics, one that comes while another runs, and one that never ends.
                streams.execute(async { panic!("on purpose") });
                streams.execute(async move { second.send(()).unwrap() });
                streams.execute(async move {
                    let _dropped = dropped;
                    std::future::pending::<()>().await;
                });
                wait_second.await.unwrap();
                done.load(Ordering::Relaxed)
            }
        };
        assert_eq!(streams.run(connection).await, 1);
        assert_eq!(Arc::strong_count(&dropped), 1, "nothing outlives it");
    }

    /// hyper's requests have their executor in them.
    #[tokio::test]
    async fn what_comes_in_the_last_turn_is_dropped_too() {
        let streams = Streams::default();
        let kept = Arc::downgrade(&streams.0);
        let connection = {
            let streams = streams.clone();
            async move {
                let own = streams.clone();
                streams.execute(async move {
                    let _own = own;
                    std::future::pending::<()>().await;
                });
            }
        };
        streams.run(connection).await;
        assert_eq!(kept.strong_count(), 0);
    }

    #[tokio::test]
    async fn many_requests_are_begun_in_several_turns() {
        let streams = Streams::default();
        let begun = Arc::new(AtomicU32::new(0));
        let all = 3 * BEGUN_MAX as u32;
        let connection = {
            let (streams, begun) = (streams.clone(), begun.clone());
            async move {
                for _ in 0..all {
                    let begun = begun.clone();
                    streams.execute(async move {
                        begun.fetch_add(1, Ordering::Relaxed);
                    });
                }
                let (mut last, mut most) = (0, 0);
                std::future::poll_fn(|cx| {
                    let now = begun.load(Ordering::Relaxed);
                    most = most.max(now - last);
                    last = now;
                    cx.waker().wake_by_ref();
                    if now == all { Poll::Ready(most) } else { Poll::Pending }
                })
                .await
            }
        };
        assert_eq!(streams.run(connection).await, BEGUN_MAX as u32);
    }
}
