//! A connection's requests, run by the connection's own task.
//!
//! hyper hands each request of HTTP/2 to an executor as a future of its own. As a task of its own, each is allocated with the alignment of
//! a cache line, put into the runtime's queue and taken from it for every step. Here they live beside the connection: whoever answers a
//! request wakes the connection, which sends the answer in the same turn.

use futures_util::FutureExt as _;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use hyper::rt::Executor;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

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
        std::future::poll_fn(|cx| {
            loop {
                // Before the connection, so that it sends what they answer.
                while let Poll::Ready(Some(())) = running.poll_next_unpin(cx) {}
                if let Poll::Ready(end) = connection.as_mut().poll(cx) {
                    return Poll::Ready(end);
                }
                let come = std::mem::take(&mut *self.lock());
                if come.is_empty() {
                    return Poll::Pending;
                }
                running.extend(come);
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
}
