//! Measures the store by itself: `cargo run --release -p brickraft-engine --example kv_apply [PUTS] [DIR]`.
//!
//! Over 100,000 and 1,000,000 keys with 256-byte values: fills the store, then puts random keys (a tenth of them
//! new) in batches of 1, 10, 100 and 1000, with checkpoints as a member takes them (on another thread, after 64 MiB
//! of log or of memory), then reads. All figures are CPU time of the whole process for each put, checkpoints
//! and what they do in the kernel included, since the clock tells more about the machine's other work. At the end
//! the store is opened again and a log tail of 64 MiB is applied, as after a crash.

use brickraft_engine::kv::types::{Command, Keyspace, PutRequest, RangeRequest};
use brickraft_engine::kv::{ApplyEntry, Store, Wanted, WatchConfig, WatchHub, WatchRequest};
use brickraft_engine::types::{Index, Term};
use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::time::{ClockId, clock_gettime};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// As `src/node/member.rs` has it.
const CACHE_BYTES: usize = 64 << 20;
/// As the member's settings have it.
const CHECKPOINT_BYTES: u64 = 64 << 20;
const RECENT_BYTES_CHECKPOINT: usize = 48 << 20;
const RECENT_BYTES_MAX: usize = 192 << 20;
/// Bytes of one put in the log, about.
const ENTRY_BYTES: u64 = 340;

fn clock(id: ClockId) -> Duration {
    let t = clock_gettime(id);
    Duration::new(t.tv_sec.cast_unsigned(), u32::try_from(t.tv_nsec).unwrap_or(0))
}

/// The CPU time of this thread.
fn thread_cpu() -> Duration {
    clock(ClockId::ThreadCPUTime)
}

/// The CPU time of all threads.
fn cpu() -> Duration {
    clock(ClockId::ProcessCPUTime)
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024
}

struct Bench {
    store: Arc<Store>,
    rng: SmallRng,
    index: u64,
    since_checkpoint: u64,
    checkpoint: Option<JoinHandle<()>>,
    checkpoints: u32,
}

impl Bench {
    fn open(path: &Path) -> Self {
        let store = Arc::new(Store::open(path, CACHE_BYTES).expect("open"));
        let index = store.applied().0.0;
        Self { store, rng: SmallRng::seed_from_u64(1), index, since_checkpoint: 0, checkpoint: None, checkpoints: 0 }
    }

    fn batch(&mut self, len: u64, mut key: impl FnMut(&mut SmallRng, u64) -> u64) -> Vec<ApplyEntry> {
        let entry = |_| {
            self.index += 1;
            let key = Bytes::from(format!("/registry/pods/{:08}", key(&mut self.rng, self.index)));
            let put = PutRequest { key, value: Bytes::from(vec![7; 256]), ..PutRequest::default() };
            let command = Some(Command::Put(Keyspace::User, put));
            ApplyEntry { index: Index(self.index), term: Term(1), command, membership: None }
        };
        (0..len).map(entry).collect()
    }

    /// Begins a checkpoint as a member would.
    fn maintain(&mut self, len: u64) {
        self.since_checkpoint += len * ENTRY_BYTES;
        let due = self.since_checkpoint >= CHECKPOINT_BYTES || self.store.recent_bytes() >= RECENT_BYTES_CHECKPOINT;
        let running = self.checkpoint.as_ref().is_some_and(|thread| !thread.is_finished());
        if running && self.store.recent_bytes() > RECENT_BYTES_MAX {
            self.wait();
        } else if due && !running {
            self.since_checkpoint = 0;
            self.checkpoints += 1;
            let store = Arc::clone(&self.store);
            self.checkpoint = Some(std::thread::spawn(move || assert!(store.checkpoint().is_ok(), "checkpoint")));
        }
    }

    fn wait(&mut self) {
        if let Some(thread) = self.checkpoint.take() {
            thread.join().expect("join");
        }
    }

    fn fill(&mut self, keys: u64) {
        for first in (0..keys).step_by(1000) {
            let base = self.index;
            let batch = self.batch(1000, |_, index| first + index - base - 1);
            self.store.apply_with(&batch, &|_, _| Wanted::Nothing).expect("apply");
            self.maintain(1000);
        }
        self.wait();
        self.store.checkpoint().expect("checkpoint");
    }

    fn puts(&mut self, puts: u64, batch_len: u64, keys: u64) {
        let mut hub = WatchHub::new(WatchConfig::default(), &self.store);
        for i in 0..10_000 {
            let key = Bytes::from(format!("/registry/unwatched/{i:08}"));
            hub.create(Keyspace::User, WatchRequest { key, prev_kv: true, ..WatchRequest::default() });
        }
        let (mut making, mut applying, mut watching, mut done) = (Duration::ZERO, Duration::ZERO, Duration::ZERO, 0);
        let (start, start_clock) = (cpu(), Instant::now());
        self.checkpoints = 0;
        while done < puts {
            let at = thread_cpu();
            let batch = self
                .batch(batch_len, |rng, _| if rng.random_ratio(1, 10) { rng.random_range(0..1 << 30) } else { rng.random_range(0..keys) });
            making += thread_cpu() - at;
            let at = thread_cpu();
            let outcomes = self.store.apply_with(&batch, &|ks, key| hub.wants(ks, key)).expect("apply");
            applying += thread_cpu() - at;
            let at = thread_cpu();
            for outcome in &outcomes {
                hub.on_events(outcome.keyspace, outcome.applied.revision, &outcome.events);
            }
            watching += thread_cpu() - at;
            let at = thread_cpu();
            drop((batch, outcomes));
            making += thread_cpu() - at;
            self.maintain(batch_len);
            done += batch_len;
        }
        self.wait();
        if self.since_checkpoint > 0 {
            self.since_checkpoint = 0;
            self.checkpoints += 1;
            self.store.checkpoint().expect("checkpoint");
        }
        let total = cpu() - start;
        let each = |time: Duration| time.as_secs_f64() * 1e6 / done as f64;
        println!(
            "{keys} keys, batches of {batch_len}: {:.2} us a put = {:.2} apply + {:.2} {} checkpoints; besides: watch hub {:.2}; \
             {:.0} puts/s by the clock; {} MiB resident",
            each(total - making - watching),
            each(applying),
            each(total - making - watching - applying),
            self.checkpoints,
            each(watching),
            done as f64 / start_clock.elapsed().as_secs_f64(),
            resident_mib(),
        );
    }

    fn reads(&mut self, keys: u64) {
        let single = |rng: &mut SmallRng| {
            let key = Bytes::from(format!("/registry/pods/{:08}", rng.random_range(0..keys)));
            RangeRequest { key, ..RangeRequest::default() }
        };
        let requests: Vec<_> = (0..100_000).map(|_| single(&mut self.rng)).collect();
        let start = thread_cpu();
        for request in &requests {
            self.store.range(Keyspace::User, request).expect("range");
        }
        let random = (thread_cpu() - start) / 100_000;
        let start = thread_cpu();
        for _ in 0..100_000 {
            self.store.range(Keyspace::User, &requests[0]).expect("range");
        }
        let same = (thread_cpu() - start) / 100_000;
        let start = thread_cpu();
        for i in 0..100 {
            let key = Bytes::from(format!("/registry/pods/{:08}", keys / 100 * i));
            let range_end = Bytes::from(format!("/registry/pods/{:08}", keys / 100 * i + 500));
            self.store.range(Keyspace::User, &RangeRequest { key, range_end, ..RangeRequest::default() }).expect("range");
        }
        println!(
            "{keys} keys: read of one random key {random:?}, of the same key {same:?}; of 500 keys {:?}",
            (thread_cpu() - start) / 100
        );
    }
}

fn main() {
    let puts = std::env::args().nth(1).map_or(400_000, |arg| arg.parse::<u64>().expect("a number"));
    let dir = std::env::args().nth(2).map_or_else(std::env::temp_dir, Into::into).join(format!("kv_apply.{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("make the directory");
    for keys in [100_000, 1_000_000] {
        let path = dir.join(keys.to_string());
        let mut bench = Bench::open(&path);
        let start = cpu();
        bench.fill(keys);
        println!("{keys} keys: filled, {:.2} us of CPU each; {:?}", (cpu() - start).as_secs_f64() * 1e6 / keys as f64, bench.store.sizes());
        for batch_len in [1, 10, 100, 1000] {
            bench.puts(puts, batch_len, keys);
        }
        bench.reads(keys);
        println!("{keys} keys: {:?}, {} MiB resident", bench.store.sizes(), resident_mib());
        drop(bench);
        let start = Instant::now();
        let mut bench = Bench::open(&path);
        let opened = start.elapsed();
        let mut tail = Duration::ZERO;
        for _ in 0..CHECKPOINT_BYTES / ENTRY_BYTES / 1000 {
            let batch = bench.batch(1000, |rng, _| rng.random_range(0..keys));
            let start = Instant::now();
            bench.store.apply_with(&batch, &|_, _| Wanted::Nothing).expect("apply");
            tail += start.elapsed();
        }
        println!("{keys} keys: opened in {opened:?}, 64 MiB of log applied in {tail:?}");
    }
    std::fs::remove_dir_all(&dir).expect("clean up");
}
