//! What the leader knows of one follower.

use crate::types::{Index, Time};
use std::collections::VecDeque;
use std::time::Duration;

/// How entries go to a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgressState {
    /// Where the logs part is not known: one append at a time.
    Probe,
    /// The logs agree up to `matched`: appends are sent ahead of the answers.
    Replicate,
    /// The entries it needs are gone: the driver streams a snapshot.
    Snapshot,
}

/// A follower as the leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The highest index known to be durable there and equal to the leader's.
    pub matched: Index,
    /// The next index to send. Invariant: `matched < next`.
    pub next: Index,
    /// It answered within the last election time-out.
    pub recent_active: bool,
    /// How entries go there.
    pub state: ProgressState,
    /// Others are quicker, and enough of them for a majority: entries come to it later, and more at a time.
    pub spare: bool,
}

/// [`Progress`] with the leader's book-keeping.
#[derive(Debug)]
pub(super) struct Peer {
    pub matched: Index,
    pub next: Index,
    pub state: ProgressState,
    /// When it last answered.
    pub heard: Option<Time>,
    /// Probe: an append is out and not answered.
    pub probing: bool,
    /// When heartbeat replies last made us probe again.
    pub probed_at: Time,
    /// Replicate: the last index of each append that is not acknowledged.
    pub inflight: VecDeque<Index>,
    /// The commit index that the peer was last told.
    pub commit_sent: Index,
    /// When it is told of a later one, if no append does before. Replicate only.
    pub commit_due: Option<Time>,
    /// It has clients that wait for this to be committed.
    pub awaits: Index,
    /// See [`Progress::spare`].
    pub spare: bool,
    /// Since when there are entries that it has not been sent because it is spare.
    pub behind_since: Option<Time>,
    /// The first of the latest entries that came to it late, because it was spare.
    pub waited: Index,
    /// The latest ReadIndex round that it answered.
    pub round: u64,
    /// The round and the time of a heartbeat whose answer will be timed.
    pub ping: Option<(u64, Time)>,
    /// The index of the change that removed it; it is served until it knows.
    pub leaving: Option<Index>,
}

impl Peer {
    pub fn new(next: Index, now: Time) -> Self {
        Self {
            matched: Index(0),
            next,
            state: ProgressState::Probe,
            heard: None,
            probing: false,
            probed_at: now,
            inflight: VecDeque::new(),
            commit_sent: Index(0),
            commit_due: None,
            awaits: Index(0),
            spare: false,
            behind_since: None,
            waited: Index(0),
            round: 0,
            ping: None,
            leaving: None,
        }
    }

    /// Whether it answered within `timeout` before `now`.
    pub fn is_active(&self, now: Time, timeout: Duration) -> bool {
        self.heard.is_some_and(|at| now < at.after(timeout))
    }

    pub fn view(&self, now: Time, timeout: Duration) -> Progress {
        let recent_active = self.is_active(now, timeout);
        Progress { matched: self.matched, next: self.next, recent_active, state: self.state, spare: self.spare }
    }

    /// The peer's log is durable and equal up to `matched`. True when that is news.
    pub fn advance(&mut self, matched: Index) -> bool {
        while self.inflight.front().is_some_and(|last| *last <= matched) {
            self.inflight.pop_front();
        }
        self.next = self.next.max(matched.next());
        let news = matched > self.matched;
        self.matched = self.matched.max(matched);
        assert!(self.matched < self.next, "matched {} < next {}", self.matched, self.next);
        news
    }

    pub fn become_probe(&mut self, next: Index) {
        self.state = ProgressState::Probe;
        self.commit_due = None;
        self.behind_since = None;
        self.probing = false;
        self.inflight.clear();
        self.next = next.max(self.matched.next());
    }

    pub fn become_replicate(&mut self) {
        self.state = ProgressState::Replicate;
        self.probing = false;
        self.inflight.clear();
        self.next = self.matched.next();
    }

    pub fn become_snapshot(&mut self) {
        self.state = ProgressState::Snapshot;
        self.commit_due = None;
        self.behind_since = None;
        self.probing = false;
        self.inflight.clear();
    }
}
