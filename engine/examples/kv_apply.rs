//! Measures puts through `Store::apply`: `cargo run --release -p brickraft-engine --example kv_apply [PUTS] [KEYS]`.
//!
//! Random keys out of KEYS with 256-byte values, in batches of 100, 500 and 1000, a checkpoint every 20,000
//! puts (its time is told apart), in a file under the temporary directory. Rates are by this thread's CPU time
//! as well as by the clock: on a busy machine only the first tells about the store.

use brickraft_engine::kv::types::{Command, Keyspace, PutRequest, RangeRequest};
use brickraft_engine::kv::{ApplyEntry, Store, WatchConfig, WatchHub, WatchRequest};
use brickraft_engine::types::{Index, Term};
use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::time::{ClockId, clock_gettime};
use std::time::{Duration, Instant};

/// The CPU time of this thread.
fn cpu() -> Duration {
    let t = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(t.tv_sec.cast_unsigned(), u32::try_from(t.tv_nsec).unwrap_or(0))
}

fn main() {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<u64>().expect("a number"));
    let (puts, keys) = (args.next().unwrap_or(300_000), args.next().unwrap_or(100_000));
    let dir = std::env::temp_dir().join(format!("kv_apply.{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("make the directory");
    let mut rng = SmallRng::seed_from_u64(1);
    for batch_len in [100, 500, 1000] {
        let path = dir.join(batch_len.to_string());
        let store = Store::open(&path, 256 << 20).expect("open");
        let mut hub = WatchHub::new(WatchConfig::default(), &store);
        for i in 0..10_000 {
            let key = Bytes::from(format!("/registry/unwatched/{i:08}"));
            hub.create(Keyspace::User, WatchRequest { key, ..WatchRequest::default() });
        }
        let (mut index, mut applying, mut applying_cpu, mut watching) = (0, Duration::ZERO, Duration::ZERO, Duration::ZERO);
        let (mut syncing, mut longest, mut next_checkpoint) = (Duration::ZERO, Duration::ZERO, 20_000);
        while index < puts {
            let batch: Vec<ApplyEntry> = (0..batch_len)
                .map(|_| {
                    index += 1;
                    let key = Bytes::from(format!("/registry/pods/{:08}", rng.random_range(0..keys)));
                    let put = PutRequest { key, value: Bytes::from(vec![7; 256]), ..PutRequest::default() };
                    let command = Some(Command::Put(Keyspace::User, put));
                    ApplyEntry { index: Index(index), term: Term(1), command, membership: None }
                })
                .collect();
            let (start, start_cpu) = (Instant::now(), cpu());
            let outcomes = store.apply(&batch).expect("apply");
            applying += start.elapsed();
            applying_cpu += cpu() - start_cpu;
            let start = cpu();
            for outcome in &outcomes {
                hub.on_events(outcome.keyspace, outcome.applied.revision, &outcome.events);
            }
            watching += cpu() - start;
            if index >= next_checkpoint {
                next_checkpoint += 20_000;
                let start = Instant::now();
                store.checkpoint().expect("checkpoint");
                syncing += start.elapsed();
                longest = longest.max(start.elapsed());
            }
        }
        let rate = |time: Duration| index as f64 / time.as_secs_f64();
        println!(
            "batches of {batch_len}: {:.0} puts a CPU second ({:.0} by the clock); watch hub {:.0} ns a put with 10,000 watchers; \
             checkpoints {syncing:?}, longest {longest:?}; {:?}",
            rate(applying_cpu),
            rate(applying),
            watching.as_nanos() as f64 / index as f64,
            store.sizes()
        );
        let start = Instant::now();
        let range = RangeRequest { key: "/".into(), range_end: "0".into(), limit: 500, ..RangeRequest::default() };
        let (found, _) = store.range(Keyspace::User, &range).expect("range");
        println!("  range with limit 500 and exact count of {}: {:?}", found.count, start.elapsed());
        let single = RangeRequest { key: found.kvs[7].key.clone(), ..RangeRequest::default() };
        let start = cpu();
        for _ in 0..100_000 {
            store.range(Keyspace::User, &single).expect("range");
        }
        println!("  single-key range: {:?} of CPU", (cpu() - start) / 100_000);
    }
    std::fs::remove_dir_all(&dir).expect("clean up");
}
