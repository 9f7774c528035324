//! A program that writes, syncs, and remembers what it was told is safe.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What became of one step.
#[derive(Debug)]
pub struct Step {
    pub number: usize,
    pub began: Instant,
    pub ended: Instant,
    /// Acknowledged, or the error.
    pub result: io::Result<()>,
}

/// Numbered files, each written and synced; every third is renamed after, and every one leaves a line in a log that is synced too.
pub struct Writer {
    dir: PathBuf,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    thread: Option<JoinHandle<Vec<Step>>>,
}

pub fn content(number: usize) -> Vec<u8> {
    let line = format!("{number} what is acknowledged stays\n");
    line.as_bytes().iter().copied().cycle().take(100 + number % 7 * 9001).collect()
}

fn name(number: usize) -> String {
    if number.is_multiple_of(3) { format!("renamed-{number}") } else { format!("file-{number}") }
}

fn step(dir: &Path, number: usize) -> io::Result<()> {
    let new = dir.join(format!("file-{number}"));
    let mut file = fs::File::create(&new)?;
    file.write_all(&content(number))?;
    file.sync_all()?;
    drop(file);
    if number.is_multiple_of(3) {
        fs::rename(new, dir.join(name(number)))?;
    }
    let mut log = fs::OpenOptions::new().create(true).append(true).open(dir.join("log"))?;
    log.write_all(format!("{number}\n").as_bytes())?;
    log.sync_all()
}

impl Writer {
    /// Starts writing to a new directory `dir`.
    pub fn start(dir: PathBuf) -> Self {
        fs::create_dir(&dir).expect("make the writer's directory");
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (to, until, count) = (dir.clone(), stop.clone(), acknowledged.clone());
        let thread = std::thread::spawn(move || {
            let mut steps = Vec::new();
            while !until.load(Ordering::Relaxed) {
                let (number, began) = (steps.len(), Instant::now());
                let result = step(&to, number);
                if result.is_ok() {
                    count.fetch_add(1, Ordering::Relaxed);
                }
                steps.push(Step { number, began, ended: Instant::now(), result });
            }
            steps
        });
        Self { dir, stop, acknowledged, thread: Some(thread) }
    }

    /// Waits until `more` further steps are acknowledged.
    #[track_caller]
    pub fn goes_on(&self, more: usize) {
        let from = self.acknowledged.load(Ordering::Relaxed);
        crate::support::wait_for("writes go on", Duration::from_secs(60), || {
            (self.acknowledged.load(Ordering::Relaxed) >= from + more).then_some(())
        });
    }

    pub fn finish(mut self) -> Written {
        self.stop.store(true, Ordering::Relaxed);
        let steps = self.thread.take().expect("once").join().expect("the writer");
        Written { dir: self.dir.file_name().expect("a name").into(), steps }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// What a writer left.
pub struct Written {
    dir: PathBuf,
    pub steps: Vec<Step>,
}

impl Written {
    /// The longest time that passed without an acknowledgement.
    pub fn stall(&self) -> Duration {
        self.steps.iter().map(|s| s.ended - s.began).max().unwrap_or_default()
    }

    #[track_caller]
    pub fn assert_no_error(&self) {
        let failed: Vec<_> = self.steps.iter().filter(|s| s.result.is_err()).take(5).collect();
        assert!(failed.is_empty(), "of {} steps some failed: {failed:?}", self.steps.len());
    }

    /// All that was acknowledged is there, below the mount (or brick) `root`, as it was written.
    #[track_caller]
    pub fn assert_kept(&self, root: &Path) {
        let dir = root.join(&self.dir);
        let log = fs::read_to_string(dir.join("log")).expect("the log");
        let logged: Vec<&str> = log.lines().collect();
        for s in self.steps.iter().filter(|s| s.result.is_ok()) {
            let path = dir.join(name(s.number));
            let got = fs::read(&path).unwrap_or_else(|e| panic!("{} was acknowledged: {e}", path.display()));
            assert!(got == content(s.number), "{} has {} bytes that are not what was acknowledged", path.display(), got.len());
            let times = logged.iter().filter(|l| **l == s.number.to_string()).count();
            assert_eq!(times, 1, "line {} of the log is there {times} times", s.number);
        }
    }
}
