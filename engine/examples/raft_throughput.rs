//! Entries per second through three cores in memory, in one thread: consensus alone, with no disk and no
//! network. Run with `--release`; arguments: entries, batch, payload bytes.
//!
//! Every message is delivered and every write is durable at once, so that this is what the cores cost.

use brickraft_engine::raft::*;
use brickraft_engine::types::*;
use bytes::Bytes;
use std::collections::VecDeque;
use std::time::Instant;

struct Cluster {
    cores: Vec<RaftCore>,
    inbox: VecDeque<(NodeId, NodeId, Message)>,
    applied: [u64; 3],
}

impl Cluster {
    fn new() -> Self {
        let voters = (1..=3).map(|n| (NodeId(n), MemberInfo::default())).collect();
        let membership = Membership { voters, ..Membership::default() };
        let snapshot = SnapshotMeta { membership, ..SnapshotMeta::default() };
        let start = |n| {
            let initial = Initial { snapshot: snapshot.clone(), ..Initial::default() };
            RaftCore::new(RaftConfig::new(NodeId(n)), initial, Time(0), n).expect("an empty disk")
        };
        let mut cluster = Self { cores: (1..=3).map(start).collect(), inbox: VecDeque::new(), applied: [0; 3] };
        let due = cluster.cores[0].next_timeout();
        cluster.cores[0].handle_timeout(due);
        cluster.settle();
        assert_eq!(cluster.cores[0].role(), Role::Leader);
        cluster
    }

    fn pump(&mut self, at: usize) {
        let (core, from) = (&mut self.cores[at], NodeId(at as u64 + 1));
        loop {
            let output = core.take_output();
            if output.is_empty() {
                return;
            }
            self.inbox.extend(output.messages.into_iter().map(|(to, msg)| (from, to, msg)));
            if let Some(last) = output.committed.last() {
                self.applied[at] += output.committed.len() as u64;
                core.on_applied(last.index);
                core.compact(Index(last.index.0.saturating_sub(1_000)));
            }
            if let Some(persist) = output.persist {
                core.on_persisted(Time(0), persist.seq);
            }
        }
    }

    fn settle(&mut self) {
        for at in 0..3 {
            self.pump(at);
        }
        while let Some((from, to, msg)) = self.inbox.pop_front() {
            let at = to.0 as usize - 1;
            self.cores[at].step(Time(0), from, msg);
            self.pump(at);
        }
    }

    fn run(&mut self, entries: u64, batch: u64, data: &Bytes) -> f64 {
        let start = Instant::now();
        let before = self.applied;
        let mut done = 0;
        while done < entries {
            let count = batch.min(entries - done);
            for _ in 0..count {
                self.cores[0].propose(Time(0), data.clone()).expect("the leader takes it");
            }
            done += count;
            self.settle();
        }
        assert!((0..3).all(|at| self.applied[at] - before[at] == entries), "all three have applied everything");
        entries as f64 / start.elapsed().as_secs_f64()
    }
}

fn main() {
    let args: Vec<u64> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let entries = args.first().copied().unwrap_or(1_000_000);
    let data = Bytes::from(vec![7; args.get(2).copied().unwrap_or(64) as usize]);
    let batches = args.get(1).map_or(vec![1, 16, 128, 1_024], |b| vec![*b]);
    for batch in batches {
        let mut cluster = Cluster::new();
        let rate = cluster.run(entries, batch, &data);
        println!("batches of {batch:>5}: {rate:>10.0} entries/s");
    }
}
