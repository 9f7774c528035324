//! Figures of a running member, for whoever watches it. Written by the member, read by anybody.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the histograms' buckets: doubling, from 1 ms, as etcd's.
const BUCKETS: usize = 14;
const FIRST_BUCKET_US: u64 = 1000;

/// How often something took how long.
#[derive(Debug, Default)]
pub struct Histogram {
    /// Those that took longer than a bucket's bound are in a later one; the last has no bound.
    buckets: [AtomicU64; BUCKETS + 1],
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

impl Histogram {
    /// Counts one.
    pub fn record(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        // The number of times that the first bound has to be doubled to reach `us`.
        let bucket = (us.saturating_sub(1) / FIRST_BUCKET_US).checked_ilog2().map_or(0, |n| n as usize + 1).min(BUCKETS);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// What was counted so far.
    #[must_use]
    pub fn view(&self) -> HistogramView {
        let mut count = 0;
        let mut buckets = Vec::with_capacity(BUCKETS);
        for (i, bucket) in self.buckets.iter().enumerate() {
            count += bucket.load(Ordering::Relaxed);
            if i < BUCKETS {
                let bound_us = FIRST_BUCKET_US << i;
                buckets.push((bound_us as f64 / 1e6, count));
            }
        }
        HistogramView { buckets, count, sum_s: self.sum_us.load(Ordering::Relaxed) as f64 / 1e6 }
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
