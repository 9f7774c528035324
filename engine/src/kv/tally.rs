//! How often what was done with the user's keys and leases since the store was opened, counted as etcd counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts; what is applied again after a restart counts again. A writer fills a plain one and adds it once for each batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally<N = u64> {
    /// Reads of a key or a range: clients' own, a transaction's, its comparisons, and for the pairs before a change.
    pub ranges: N,
    /// Puts.
    pub puts: N,
    /// Requests to delete, however many keys they met; and keys that went with their lease.
    pub deletes: N,
    /// Commands that did more than one of these. The comparisons of one that may write are a transaction of their own.
    pub txns: N,
    /// Leases granted.
    pub leases_granted: N,
    /// Leases revoked, those that ran out among them.
    pub leases_revoked: N,
}

impl Tally {
    pub(super) fn ops(&self) -> u64 {
        self.ranges + self.puts + self.deletes
    }
}

impl Tally<AtomicU64> {
    pub(super) fn add(&self, more: &Tally) {
        let pairs = [
            (&self.ranges, more.ranges),
            (&self.puts, more.puts),
            (&self.deletes, more.deletes),
            (&self.txns, more.txns),
            (&self.leases_granted, more.leases_granted),
            (&self.leases_revoked, more.leases_revoked),
        ];
        for (count, more) in pairs.into_iter().filter(|(_, more)| *more != 0) {
            count.fetch_add(more, Ordering::Relaxed);
        }
    }

    pub(super) fn view(&self) -> Tally {
        let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
        Tally {
            ranges: load(&self.ranges),
            puts: load(&self.puts),
            deletes: load(&self.deletes),
            txns: load(&self.txns),
            leases_granted: load(&self.leases_granted),
            leases_revoked: load(&self.leases_revoked),
        }
    }
}
