//! What happened, as a digest and as the last lines of text.

use brickraft_engine::types::Time;
use std::collections::VecDeque;
use std::fmt;

/// Lines that are kept for a failure's report.
const LINES_MAX: usize = 250;

/// See the module's text.
#[derive(Default)]
pub struct Trace {
    pub hash: u64,
    pub events: u64,
    lines: VecDeque<String>,
    loud: bool,
}

impl Trace {
    pub fn new() -> Self {
        Self { loud: std::env::var_os("SIM_TRACE").is_some(), ..Self::default() }
    }

    pub fn note(&mut self, now: Time, what: fmt::Arguments<'_>) {
        let line = format!("{:>10.6} {what}", now.0 as f64 / 1e6);
        if self.loud {
            eprintln!("{line}");
        }
        self.events += 1;
        self.hash = self.hash.rotate_left(7) ^ xxhash_rust::xxh3::xxh3_64_with_seed(line.as_bytes(), self.events);
        if self.lines.len() >= LINES_MAX {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    pub fn tail(&self) -> String {
        self.lines.iter().map(|l| format!("{l}\n")).collect()
    }
}
