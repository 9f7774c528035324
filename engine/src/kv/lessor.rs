//! The leader's clock on leases.
//!
//! Which leases exist is replicated state and lives in the store; how long each still has is known only to
//! the leader, in memory. A new leader gives every lease its full time again, so that no lease can run out
//! early because of an election (etcd does the same).

use super::store::LeaseInfo;
use crate::types::Time;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long after reporting an expired lease it is reported again, should the revocation have been lost.
const RETRY: Duration = Duration::from_secs(2);

#[derive(Debug)]
struct Lease {
    ttl_s: i64,
    /// When the lease runs out.
    expiry: Time,
    /// When it is next to be looked at: `expiry`, or later once it has been reported.
    due: Time,
}

/// Expiries of the leases at the leader; empty and passive at every other member.
#[derive(Debug, Default)]
pub struct Lessor {
    leader: bool,
    leases: BTreeMap<i64, Lease>,
    due: BTreeSet<(Time, i64)>,
}

fn ttl(ttl_s: i64) -> Duration {
    Duration::from_secs(u64::try_from(ttl_s).unwrap_or(0))
}

impl Lessor {
    /// A passive lessor.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// This member became leader (and has applied everything of earlier terms): every lease of the store
    /// gets its full time, plus `extend`.
    pub fn promote(&mut self, now: Time, leases: &[LeaseInfo], extend: Duration) {
        self.demote();
        self.leader = true;
        for lease in leases {
            self.insert(lease.id, lease.ttl_s, now.after(extend).after(ttl(lease.ttl_s)));
        }
    }

    /// This member is not leader any more: forgets all.
    pub fn demote(&mut self) {
        self.leader = false;
        self.leases.clear();
        self.due.clear();
    }

    /// Whether it is between `promote` and `demote`.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.leader
    }

    fn insert(&mut self, id: i64, ttl_s: i64, expiry: Time) {
        self.revoke(id);
        self.leases.insert(id, Lease { ttl_s, expiry, due: expiry });
        self.due.insert((expiry, id));
    }

    /// A grant was applied. Does nothing unless leader.
    pub fn grant(&mut self, now: Time, id: i64, ttl_s: i64) {
        if self.leader {
            self.insert(id, ttl_s, now.after(ttl(ttl_s)));
        }
    }

    /// A revocation was applied.
    pub fn revoke(&mut self, id: i64) {
        if let Some(lease) = self.leases.remove(&id) {
            self.due.remove(&(lease.due, id));
        }
    }

    /// Keeps a lease alive: its full time from `now`, in seconds. `None` when it is unknown, has run out
    /// already (its revocation may be under way), or this is not the leader.
    pub fn renew(&mut self, now: Time, id: i64) -> Option<i64> {
        let lease = self.leases.get(&id)?;
        if lease.expiry <= now {
            return None;
        }
        let ttl_s = lease.ttl_s;
        self.insert(id, ttl_s, now.after(ttl(ttl_s)));
        Some(ttl_s)
    }

    /// The time left and the granted time, in whole seconds. `None` as for [`Self::renew`].
    #[must_use]
    pub fn remaining(&self, now: Time, id: i64) -> Option<(i64, i64)> {
        let lease = self.leases.get(&id)?;
        if lease.expiry <= now {
            return None;
        }
        let left = lease.expiry.since(now).as_secs();
        Some((i64::try_from(left).unwrap_or(i64::MAX), lease.ttl_s))
    }

    /// At most `max` leases that ran out, for the caller to propose their revocation. Each is reported again
    /// some seconds later unless [`Self::revoke`] told that it went through.
    pub fn expired(&mut self, now: Time, max: usize) -> Vec<i64> {
        let ids: Vec<(Time, i64)> = self.due.range(..=(now, i64::MAX)).take(max).copied().collect();
        for &(due, id) in &ids {
            self.due.remove(&(due, id));
            if let Some(lease) = self.leases.get_mut(&id) {
                lease.due = now.after(RETRY);
                self.due.insert((lease.due, id));
            }
        }
        ids.into_iter().map(|(_, id)| id).collect()
    }

    /// When [`Self::expired`] has something next; `None` without leases.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        self.due.first().map(|&(due, _)| due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Time {
        Time(seconds * 1_000_000)
    }

    #[test]
    fn a_lease_runs_out_unless_renewed() {
        let mut lessor = Lessor::new();
        lessor.grant(s(0), 7, 5);
        assert_eq!(lessor.next_deadline(), None, "only the leader counts");
        lessor.promote(s(0), &[LeaseInfo { id: 1, ttl_s: 10 }], Duration::from_secs(1));
        lessor.grant(s(0), 7, 5);
        assert_eq!(lessor.remaining(s(1), 7), Some((4, 5)));
        assert_eq!(lessor.renew(s(4), 7), Some(5));
        assert!(lessor.expired(s(8), 10).is_empty());
        assert_eq!(lessor.next_deadline(), Some(s(9)));
        assert_eq!(lessor.renew(s(9), 7), None, "too late");
        assert_eq!(lessor.expired(s(9), 10), [7]);
        assert!(lessor.expired(s(9), 10).is_empty(), "reported once");
        assert_eq!(lessor.expired(s(11), 1), [1], "its own time came, bounded by max");
        assert_eq!(lessor.expired(s(11), 1), [7], "and a retry");
        lessor.revoke(7);
        lessor.revoke(1);
        assert_eq!(lessor.next_deadline(), None);
    }

    #[test]
    fn a_new_leader_gives_full_time_again() {
        let mut lessor = Lessor::new();
        let leases = [LeaseInfo { id: 1, ttl_s: 10 }];
        lessor.promote(s(0), &leases, Duration::ZERO);
        lessor.demote();
        assert_eq!(lessor.renew(s(1), 1), None);
        lessor.promote(s(100), &leases, Duration::ZERO);
        assert!(lessor.expired(s(109), 10).is_empty());
        assert_eq!(lessor.expired(s(110), 10), [1]);
    }
}
