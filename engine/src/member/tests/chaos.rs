//! Power cuts, partitions, lost and doubled messages at random moments, under writes and reads at every member.
//!
//! What is checked: an acknowledged write is there at the end, on every member; no write is there twice; a write
//! that failed for certain is not there; a linearizable read sees every write acknowledged before it was asked for.

use super::cluster::{Cluster, put};
use crate::kv::types::Applied;
use crate::member::{MemberError, MemberReply, MemberRequest};
use crate::types::{NodeId, Revision};
use rand::Rng as _;
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Default)]
struct Load {
    writes: BTreeMap<u64, (NodeId, String)>,
    reads: BTreeMap<u64, (NodeId, Revision)>,
    acknowledged: Revision,
    next_key: u64,
}

impl Load {
    fn issue(&mut self, c: &mut Cluster) {
        let Some(id) = c.any_alive() else { return };
        if c.rng.random_bool(0.3) {
            let seen = self.acknowledged;
            let request = c.request(id, MemberRequest::ReadIndex);
            self.reads.insert(request, (id, seen));
        } else {
            self.next_key += 1;
            let key = format!("key{:06}", self.next_key);
            let value = "x".repeat(c.rng.random_range(1..400));
            let request = c.request(id, MemberRequest::Propose(put(&key, &value)));
            self.writes.insert(request, (id, key));
        }
        self.check(c);
    }

    /// Looks at the answers that came since the last call; must run after every step, while stores are as they were.
    fn check(&mut self, c: &Cluster) {
        let done: Vec<u64> = self.reads.keys().copied().filter(|r| c.outcomes.contains_key(r)).collect();
        for request in done {
            let Some((id, seen)) = self.reads.remove(&request) else { continue };
            if let (Ok(MemberReply::ReadIndex(_)), true) = (&c.outcomes[&request], c.alive(id)) {
                assert!(c.revision(id) >= seen, "a read at revision {} after {seen} was acknowledged", c.revision(id));
            }
        }
        for request in self.writes.keys() {
            if let Some(Ok(MemberReply::Applied(Applied { revision, .. }))) = c.outcomes.get(request) {
                self.acknowledged = self.acknowledged.max(*revision);
            }
        }
    }

    fn verify(&self, c: &Cluster) -> (usize, usize) {
        let (mut acknowledged, mut open) = (0, 0);
        for (request, (_, key)) in &self.writes {
            for id in c.ids() {
                let found = c.get(id, key);
                if let Some((_, version)) = &found {
                    assert_eq!(*version, 1, "{key} was applied {version} times");
                }
                match c.outcomes.get(request) {
                    Some(Ok(_)) => assert!(found.is_some(), "{key} was acknowledged and is gone at {id}"),
                    Some(Err(MemberError::Timeout | MemberError::TimeoutLeaderFail | MemberError::Stopped)) | None => {}
                    Some(Err(e)) => assert!(found.is_none(), "{key} failed with {e} and is there"),
                }
            }
            match c.outcomes.get(request) {
                Some(Ok(_)) => acknowledged += 1,
                _ => open += 1,
            }
        }
        (acknowledged, open)
    }
}

fn trouble(c: &mut Cluster) {
    let ids = c.ids();
    let id = ids[c.rng.random_range(0..ids.len())];
    match c.rng.random_range(0..10) {
        0..=2 if c.alive(id) => c.power_cut(id),
        3 => c.isolate(id),
        4 => {
            let other = ids[c.rng.random_range(0..ids.len())];
            c.cut.insert((id, other));
        }
        5 => c.cut.clear(),
        6 => c.loss = c.rng.random_range(0.0..0.2),
        7 => c.twice = c.rng.random_range(0.0..0.2),
        _ if !c.alive(id) => c.start(id),
        _ => {}
    }
}

fn run(seed: u64) -> (u64, usize, usize) {
    let mut c = Cluster::new(3, seed);
    let mut load = Load::default();
    c.wait_leader();
    for _ in 0..120 {
        for _ in 0..c.rng.random_range(0..8) {
            load.issue(&mut c);
        }
        let steps = c.rng.random_range(1..120);
        for _ in 0..steps {
            c.step();
            load.check(&c);
        }
        if c.rng.random_bool(0.3) {
            trouble(&mut c);
        }
    }
    c.converge();
    c.run(Duration::from_secs(8));
    let (acknowledged, open) = load.verify(&c);
    (c.trace, acknowledged, open)
}

#[test]
fn acknowledged_writes_survive_whatever_happens() {
    let seeds = std::env::var("BRICKRAFT_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(100);
    let first: u64 = std::env::var("BRICKRAFT_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1000);
    let mut total = (0, 0);
    for seed in first..first + seeds {
        eprintln!("seed {seed}");
        let (_, acknowledged, open) = run(seed);
        total = (total.0 + acknowledged, total.1 + open);
    }
    eprintln!("acknowledged {}, without success {}", total.0, total.1);
    assert!(total.0 > total.1, "most writes should go through: {total:?}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    assert_eq!(run(5), run(5));
}
