//! Durable appends of 256-byte entries: our log beside raft-engine, on the same work in the same run.
//!
//! The work: each of N waiters owns a Raft group (a region) and appends one entry at a time, waiting until it is
//! durable; every 1,024 entries it compacts its group. Waiters are tasks on one thread for ours and threads for
//! raft-engine, which knows no others. One criterion iteration is one append by each waiter.
//!
//! `BRICKRAFT_BENCH_DIR` chooses the file system, `BRICKRAFT_BENCH_SECONDS` the time for each figure (3).

use brickraft_engine::io::Io;
use brickraft_engine::io::disk::DiskIo;
use brickraft_engine::io::std_io::StdIo;
use brickraft_engine::types::{Entry, EntryKind, GroupId, Index, Term};
use brickraft_engine::wal::{AsyncWal, LogBatch, SnapshotMark, Wal, WalConfig};
use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput};
use protobuf::well_known_types::BytesValue;
use raft_engine::{Command, Config, Engine, LogBatch as PeerBatch, MessageExt, ReadableSize};
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

const ENTRY_BYTES: usize = 256;
const COMPACT_EVERY: u64 = 1024;
const WAITERS: [usize; 4] = [1, 16, 256, 4096];

/// CPU time of the process, all threads.
fn cpu() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
}

/// An engine under test. `run` makes each waiter append `rounds` entries; returns wall and CPU time.
trait Subject {
    fn run(&mut self, rounds: u64) -> (Duration, Duration);
}

struct Ours<I: Io> {
    runtime: tokio::runtime::Runtime,
    wal: AsyncWal<I>,
    waiters: usize,
    next: u64,
}

impl<I: Io + Send + 'static> Ours<I>
where
    I::File: Send,
{
    fn open(io: I, waiters: usize) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("runtime");
        let (wal, _) = Wal::recover(io, WalConfig::default()).expect("recover");
        let wal = AsyncWal::new(wal);
        let driver = wal.clone();
        runtime.spawn(async move { driver.drive().await });
        Self { runtime, wal, waiters, next: 1 }
    }
}

impl<I: Io + Send + 'static> Subject for Ours<I>
where
    I::File: Send,
{
    fn run(&mut self, rounds: u64) -> (Duration, Duration) {
        let data = Bytes::from(vec![7; ENTRY_BYTES]);
        let (first, last) = (self.next, self.next + rounds);
        self.next = last;
        let (wall, before) = (Instant::now(), cpu());
        self.runtime.block_on(async {
            let tasks: Vec<_> = (1..=self.waiters as u64)
                .map(|group| {
                    let (wal, data) = (self.wal.clone(), data.clone());
                    tokio::spawn(async move {
                        for index in first..last {
                            let entry = Entry { term: Term(1), index: Index(index), kind: EntryKind::Normal, data: data.clone() };
                            let compact = index % COMPACT_EVERY == 0;
                            let snapshot = compact.then(|| SnapshotMark { index: Index(index - 1), term: Term(1) });
                            wal.append(GroupId(group), LogBatch { hard_state: None, entries: &[entry], snapshot }).await.expect("append");
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await.expect("task");
            }
        });
        (wall.elapsed(), cpu() - before)
    }
}

/// raft-engine wants protobuf messages; the index is in the first eight bytes.
#[derive(Clone)]
struct PeerEntry;

impl MessageExt for PeerEntry {
    type Entry = BytesValue;

    fn index(e: &BytesValue) -> u64 {
        u64::from_le_bytes(e.get_value()[..8].try_into().expect("eight bytes"))
    }
}

struct Peer {
    engine: Arc<Engine>,
    waiters: usize,
    next: u64,
    stop: Arc<AtomicBool>,
    purger: Option<std::thread::JoinHandle<()>>,
}

impl Peer {
    fn open(dir: &Path, waiters: usize, prefill: bool) -> Self {
        let mut config = Config { dir: dir.to_string_lossy().into_owned(), ..Config::default() };
        if prefill {
            config.enable_log_recycle = true;
            config.prefill_for_recycle = true;
            config.purge_threshold = ReadableSize::gb(1);
        }
        let engine = Arc::new(Engine::open(config).expect("open raft-engine"));
        let stop = Arc::new(AtomicBool::new(false));
        let purger = std::thread::spawn({
            let (engine, stop) = (engine.clone(), stop.clone());
            move || {
                while !stop.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(200));
                    engine.purge_expired_files().expect("purge");
                }
            }
        });
        Self { engine, waiters, next: 1, stop, purger: Some(purger) }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(purger) = self.purger.take() {
            let _ = purger.join();
        }
    }
}

impl Subject for Peer {
    fn run(&mut self, rounds: u64) -> (Duration, Duration) {
        let (first, last) = (self.next, self.next + rounds);
        self.next = last;
        let barrier = Arc::new(Barrier::new(self.waiters + 1));
        let threads: Vec<_> = (1..=self.waiters as u64)
            .map(|region| {
                let (engine, barrier) = (self.engine.clone(), barrier.clone());
                std::thread::Builder::new()
                    .stack_size(128 << 10)
                    .spawn(move || {
                        let mut batch = PeerBatch::with_capacity(1);
                        barrier.wait();
                        for index in first..last {
                            let mut value = vec![7; ENTRY_BYTES];
                            value[..8].copy_from_slice(&index.to_le_bytes());
                            let mut entry = BytesValue::new();
                            entry.set_value(value);
                            batch.add_entries::<PeerEntry>(region, &[entry]).expect("add");
                            if index % COMPACT_EVERY == 0 {
                                batch.add_command(region, Command::Compact { index });
                            }
                            engine.write(&mut batch, true).expect("write");
                        }
                    })
                    .expect("thread")
            })
            .collect();
        // Making the threads is not the engine's work.
        let (wall, before) = (Instant::now(), cpu());
        barrier.wait();
        for thread in threads {
            thread.join().expect("join");
        }
        (wall.elapsed(), cpu() - before)
    }
}

/// One line of the table: the median of the samples.
struct Line {
    engine: &'static str,
    waiters: usize,
    appends_per_s: f64,
    cpu_us: f64,
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

fn measure(c: &mut Criterion, lines: &mut Vec<Line>, engine: &'static str, waiters: usize, mut open: impl FnMut(&Path) -> Box<dyn Subject>) {
    let base = std::env::var_os("BRICKRAFT_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::Builder::new().prefix("log_append").tempdir_in(base).expect("directory");
    let subject = RefCell::new(None);
    let samples = RefCell::new(Vec::new());
    let mut group = c.benchmark_group("log_append");
    group.throughput(Throughput::Elements(waiters as u64));
    group.bench_function(BenchmarkId::new(engine, waiters), |b| {
        b.iter_custom(|rounds| {
            let mut subject = subject.borrow_mut();
            let subject = subject.get_or_insert_with(|| open(dir.path()));
            let (wall, cpu) = subject.run(rounds);
            samples.borrow_mut().push((rounds, wall, cpu));
            wall
        });
    });
    group.finish();
    // Warm-up rounds are shorter than those that are measured: keep those at least half as long as the longest.
    let samples = samples.into_inner();
    let longest = samples.iter().map(|(rounds, ..)| *rounds).max().unwrap_or(0);
    let kept: Vec<_> = samples.iter().filter(|(rounds, ..)| rounds * 2 >= longest).collect();
    if kept.is_empty() {
        return;
    }
    let appends = |rounds: u64| rounds as f64 * waiters as f64;
    lines.push(Line {
        engine,
        waiters,
        appends_per_s: median(kept.iter().map(|(r, wall, _)| appends(*r) / wall.as_secs_f64()).collect()),
        cpu_us: median(kept.iter().map(|(r, _, cpu)| cpu.as_secs_f64() * 1e6 / appends(*r)).collect()),
    });
}

fn main() {
    let seconds = std::env::var("BRICKRAFT_BENCH_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(3);
    let mut c = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(seconds))
        .sample_size(10)
        .configure_from_args();
    let mut lines = Vec::new();
    for waiters in WAITERS {
        let c = &mut c;
        measure(c, &mut lines, "brickraft", waiters, |dir| Box::new(Ours::open(DiskIo::open(dir).expect("open"), waiters)));
        measure(c, &mut lines, "brickraft-std", waiters, |dir| Box::new(Ours::open(StdIo::open(dir).expect("open"), waiters)));
        measure(c, &mut lines, "raft-engine", waiters, |dir| Box::new(Peer::open(dir, waiters, false)));
        measure(c, &mut lines, "raft-engine-prefill", waiters, |dir| Box::new(Peer::open(dir, waiters, true)));
    }
    c.final_summary();
    println!("\n| waiters | engine | appends/s | CPU us/append | appends/s, brickraft = 1 | CPU, brickraft = 1 |\n|---|---|---|---|---|---|");
    for line in &lines {
        let ours = lines.iter().find(|l| l.waiters == line.waiters).unwrap_or(line);
        println!(
            "| {} | {} | {:.0} | {:.2} | {:.2} | {:.2} |",
            line.waiters,
            line.engine,
            line.appends_per_s,
            line.cpu_us,
            line.appends_per_s / ours.appends_per_s,
            line.cpu_us / ours.cpu_us
        );
    }
}
