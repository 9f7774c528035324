//! A stream of answers that one async function makes: neither a task nor a channel lies between it and the connection.
//!
//! The function goes on when the connection asks for the next answer. So a client that does not read keeps it waiting, and one that goes
//! away drops it, at its await.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use tokio_stream::Stream;

/// The answer that is to be taken next.
struct Slot<T>(Arc<Mutex<Option<T>>>);

impl<T> Slot<T> {
    fn lock(&self) -> MutexGuard<'_, Option<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the function puts its answers.
pub(super) struct Outlet<T>(Slot<T>);

impl<T> Outlet<T> {
    /// Returns once all answers before this one are taken. To be awaited by the stream's own function alone.
    pub(super) async fn send(&self, answer: T) {
        let mut answer = Some(answer);
        std::future::poll_fn(|_| {
            let mut next = self.0.lock();
            if next.is_some() {
                // Nobody need be woken: whoever takes it polls the function again.
                return Poll::Pending;
            }
            *next = answer.take();
            Poll::Ready(())
        })
        .await;
    }
}

/// What the function sends; ends with it.
pub struct Answers<T> {
    next: Slot<T>,
    /// `None` once it has returned.
    function: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl<T> Answers<T> {
    pub(super) fn of<F: Future<Output = ()> + Send + 'static>(function: impl FnOnce(Outlet<T>) -> F) -> Self {
        let next = Arc::default();
        let function = function(Outlet(Slot(Arc::clone(&next))));
        Self { next: Slot(next), function: Some(Box::pin(function)) }
    }
}

impl<T> Stream for Answers<T> {
    type Item = T;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let this = self.get_mut();
        if let Some(function) = &mut this.function
            && function.as_mut().poll(cx).is_ready()
        {
            this.function = None;
        }
        match this.next.lock().take() {
            None if this.function.is_some() => Poll::Pending,
            next => Poll::Ready(next),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;
    use tokio_stream::StreamExt as _;

    #[tokio::test]
    async fn answers_come_in_order_and_the_last_one_too() {
        let answers = Answers::of(|out| async move {
            for n in 0..3 {
                out.send(n).await;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
            out.send(3).await;
            out.send(4).await;
        });
        assert_eq!(answers.collect::<Vec<_>>().await, [0, 1, 2, 3, 4]);
        assert_eq!(Answers::<u8>::of(|_| async {}).next().await, None);
    }

    #[tokio::test]
    async fn nobody_runs_ahead_of_who_reads() {
        let (made, ended) = (Arc::new(AtomicU32::new(0)), Arc::new(()));
        let mut answers = Answers::of({
            let (made, ended) = (made.clone(), ended.clone());
            |out| async move {
                let _ended = ended;
                loop {
                    let n = made.fetch_add(1, Ordering::Relaxed);
                    out.send(n).await;
                }
            }
        });
        for n in 0..3 {
            assert_eq!(answers.next().await, Some(n));
            assert_eq!(made.load(Ordering::Relaxed), n + 2, "one is made and waits");
        }
        drop(answers);
        assert_eq!(Arc::strong_count(&ended), 1, "who goes away ends it");
    }
}
