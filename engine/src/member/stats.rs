//! Figures of a running member, for whoever watches it. Written by the member, read by anybody.

use crate::types::NodeId;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Upper bounds of the histograms' buckets: doubling, from 1 ms, as etcd's.
const BUCKETS: usize = 14;
const FIRST_BUCKET_US: u64 = 1000;
/// The same of round trips, which are shorter.
const ROUND_TRIP_BUCKETS: usize = 16;
const ROUND_TRIP_FIRST_BUCKET_US: u64 = 100;

/// How often something took how long.
#[derive(Debug)]
pub struct Histogram {
    first_bucket_us: u64,
    /// Those that took longer than a bucket's bound are in a later one; the last has no bound.
    buckets: Box<[AtomicU64]>,
    sum_us: AtomicU64,
}

/// A histogram's content at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct HistogramView {
    /// Upper bound in seconds, and how many took at most so long.
    pub buckets: Vec<(f64, u64)>,
    /// How many there were.
    pub count: u64,
    /// How long they took together, in seconds.
    pub sum_s: f64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new(FIRST_BUCKET_US, BUCKETS)
    }
}

impl Histogram {
    fn new(first_bucket_us: u64, bounds: usize) -> Self {
        Self { first_bucket_us, buckets: (0..=bounds).map(|_| AtomicU64::new(0)).collect(), sum_us: AtomicU64::new(0) }
    }

    /// Counts one.
    pub fn record(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        // The number of times that the first bound has to be doubled to reach `us`.
        let doublings = (us.saturating_sub(1) / self.first_bucket_us).checked_ilog2().map_or(0, |n| n as usize + 1);
        let bucket = doublings.min(self.buckets.len() - 1);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// What was counted so far.
    #[must_use]
    pub fn view(&self) -> HistogramView {
        let mut count = 0;
        let bounds = self.buckets.len() - 1;
        let mut buckets = Vec::with_capacity(bounds);
        for (i, bucket) in self.buckets.iter().enumerate() {
            count += bucket.load(Ordering::Relaxed);
            if i < bounds {
                let bound_us = self.first_bucket_us << i;
                buckets.push((bound_us as f64 / 1e6, count));
            }
        }
        HistogramView { buckets, count, sum_s: self.sum_us.load(Ordering::Relaxed) as f64 / 1e6 }
    }
}

/// How long heartbeats and their answers took, by peer. Behind a lock: there are some in a second.
#[derive(Debug, Default)]
pub struct RoundTrips(Mutex<BTreeMap<NodeId, Histogram>>);

impl RoundTrips {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Histogram>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one.
    pub fn record(&self, peer: NodeId, took: Duration) {
        self.lock().entry(peer).or_insert_with(|| Histogram::new(ROUND_TRIP_FIRST_BUCKET_US, ROUND_TRIP_BUCKETS)).record(took);
    }

    /// What was counted so far, by peer.
    #[must_use]
    pub fn views(&self) -> Vec<(NodeId, HistogramView)> {
        self.lock().iter().map(|(peer, histogram)| (*peer, histogram.view())).collect()
    }
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct Stats {
    /// From handing a batch to the log until it is durable.
    pub log_write: Histogram,
    /// Checkpoints of the store.
    pub checkpoint: Histogram,
    /// How often a leader came up or another one did.
    pub leader_changes: AtomicU64,
    /// Heartbeats as the leader: until the answer.
    pub round_trips: RoundTrips,
    /// Heartbeats as the leader, sent more than an interval late.
    pub late_heartbeats: AtomicU64,
    /// The log's index up to which it is committed.
    pub committed: AtomicU64,
    /// The same for applied.
    pub applied: AtomicU64,
    /// Entries applied in a turn of the member's that took long.
    pub slow_applies: AtomicU64,
    /// Bytes written to the log.
    pub log_bytes: AtomicU64,
    /// Linearizable reads of this member's clients that ran out of time.
    pub reads_late: AtomicU64,
    /// Those that failed otherwise.
    pub reads_failed: AtomicU64,
    /// Leases renewed as the leader.
    pub leases_renewed: AtomicU64,
    /// Watchers of the user's keys.
    pub watchers: AtomicU64,
    /// Those of them that lag behind.
    pub slow_watchers: AtomicU64,
    /// Events that wait for room on their streams.
    pub pending_events: AtomicU64,
}

/// Shared by the member and its readers.
pub type SharedStats = Arc<Stats>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_falls_into_the_bucket_that_bounds_it() {
        let histogram = Histogram::default();
        for us in [0, 1000, 1001, 2000, 2001, 4000, 8_192_000, 8_192_001] {
            histogram.record(Duration::from_micros(us));
        }
        let view = histogram.view();
        assert_eq!(view.buckets[..3], [(0.001, 2), (0.002, 4), (0.004, 6)]);
        assert_eq!(view.buckets[BUCKETS - 1], (8.192, 7));
        assert_eq!(view.count, 8);
        assert!((view.sum_s - 16.394_003).abs() < 1e-9, "{}", view.sum_s);
    }
}
