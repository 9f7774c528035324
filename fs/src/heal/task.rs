//! A piece of work that talks to two bricks: what drives [`Healer`](super::Healer) and [`Scrubber`](super::scrub::Scrubber).

use super::calls::{HealCall, HealResult};
use super::healer::Step;
use super::wire::{Side, Wire};
use crate::fop::Errno;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// Most local calls in one step.
const STEP_CALLS_MAX: usize = 16;

type Work = Pin<Box<dyn Future<Output = Result<(), Errno>> + Send>>;

pub(super) struct Task {
    wire: Wire,
    work: Option<Work>,
    outcome: Option<Result<(), Errno>>,
}

impl Task {
    pub fn new(wire: Wire, work: impl Future<Output = Result<(), Errno>> + Send + 'static) -> Self {
        Self { wire, work: Some(Box::pin(work)), outcome: None }
    }

    pub fn step(&mut self, local: &mut dyn FnMut(&HealCall) -> HealResult) -> Step {
        self.run();
        for _ in 0..STEP_CALLS_MAX {
            let Some((id, call)) = self.wire.pop(Side::Local) else { break };
            self.wire.put_return(id, local(&call));
            self.run();
        }
        match (&self.outcome, self.wire.has_local()) {
            (Some(_), _) => Step::Finished,
            (None, true) => Step::More,
            (None, false) => Step::Waiting,
        }
    }

    /// Polls until nothing moves any more.
    fn run(&mut self) {
        while let Some(work) = &mut self.work {
            self.wire.take_progress();
            if let Poll::Ready(outcome) = work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                self.outcome = Some(outcome);
                self.work = None;
            } else if !self.wire.take_progress() {
                return;
            }
        }
    }

    pub fn poll_call(&mut self) -> Option<(u64, HealCall)> {
        self.wire.pop(Side::Remote)
    }

    pub fn on_return(&mut self, id: u64, result: HealResult) {
        self.wire.put_return(id, result);
    }

    pub const fn finished(&self) -> Option<Result<(), Errno>> {
        self.outcome
    }
}
