//! Several threads use one lazy copy at once: each has its own bytes of every block.

use super::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::sync::mpsc;
use std::time::Duration;

const THREADS: usize = 4;
const SIZE: usize = 4000;

/// A byte that a thread wrote in its round.
fn byte(thread: usize, round: u8) -> u8 {
    (thread as u8) << 6 | (round & 0x3f)
}

/// Writes and reads the bytes of every place whose number is this thread's.
fn use_it(union: &Union, ino: u64, thread: usize) {
    let mut rng = SmallRng::seed_from_u64(thread as u64);
    let mut mine = vec![None; SIZE / THREADS];
    for round in 0..1500_u32 {
        let at = rng.random_range(0..mine.len());
        let place = at * THREADS + thread;
        let value = byte(thread, round as u8);
        union.write(ino, place as u64, &[value], false).expect("write");
        mine[at] = Some(value);
        let look = rng.random_range(0..mine.len());
        let mut seen = [0];
        let place = look * THREADS + thread;
        assert_eq!(union.read(ino, place as u64, &mut seen), Ok(1));
        assert_eq!(seen[0], mine[look].unwrap_or(text(SIZE)[place]), "thread {thread}, round {round}, byte {place}");
        match rng.random_range(0..60) {
            0 => union.fsync(ino, true).expect("fsync"),
            1 if round > 700 => drop(union.complete(ino, 20).expect("complete")),
            _ => {}
        }
    }
    for (at, value) in mine.iter().enumerate() {
        let mut seen = [0];
        let place = at * THREADS + thread;
        assert_eq!(union.read(ino, place as u64, &mut seen), Ok(1));
        assert_eq!(seen[0], value.unwrap_or(text(SIZE)[place]));
    }
}

#[test]
fn threads_lose_nothing_of_each_other_s() {
    for run in 0..6 {
        let [upper, lower] = [1, 2].map(|dev| Arc::new(SimBranch::new(dev)));
        super::super::put(&*lower, "/f", FileKind::File, &text(SIZE));
        let mut config = lazily(vec![sim_branch("upper", &upper, Perm::RW), sim_branch("lower", &lower, Perm::RO)]);
        config.lazy.flush_after = Some(Duration::from_millis(1));
        let union = Arc::new(Union::open(config.clone()).expect("open"));
        let ino = walk(&union, "f").expect("walk");
        let (done, waiting) = mpsc::channel();
        for thread in 0..THREADS {
            let (union, done) = (Arc::clone(&union), done.clone());
            std::thread::spawn(move || {
                use_it(&union, ino, thread);
                done.send(()).expect("somebody waits");
            });
        }
        for _ in 0..THREADS {
            waiting.recv_timeout(Duration::from_secs(60)).expect("a thread waits for ever, or died");
        }
        let live = content(&union, ino).expect("read");
        union.close();
        // What was flushed is there after a power cut, and becomes whole.
        let cut = Arc::new(upper.cut(upper.steps(), false));
        config.branches[0] = sim_branch("upper", &cut, Perm::RW);
        let again = Union::open(config).expect("open again");
        let ino = walk(&again, "f").expect("walk");
        while !again.complete(ino, 100).expect("complete") {}
        assert_eq!(content(&again, ino).map(|c| c.len()), Ok(live.len()));
        assert_eq!(on_disk(&*cut), (vec![], vec![]), "run {run}");
    }
}
