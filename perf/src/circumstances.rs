//! What a run's figures are worth nothing without.

use crate::kv::root;
use anyhow::{Context, Result};
use serde::Serialize;
use std::process::Command;

/// What was run, where, and on what.
#[derive(Debug, Serialize)]
pub(crate) struct Circumstances {
    command: String,
    date: String,
    commit: String,
    kernel: String,
    processors: usize,
    load_average_before: String,
    load_average_after: String,
}

impl Circumstances {
    /// As they are now; the load average before the run is the caller's to have asked for, that after it is [`Self::ended`]'s.
    pub(crate) fn now(load_average_before: String) -> Result<Self> {
        let args: Vec<String> = std::env::args().skip(1).collect();
        Ok(Self {
            command: format!("cargo run --release -p brickraft-perf -- {}", args.join(" ")),
            date: output("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
            commit: output("git", &["describe", "--always", "--dirty"]),
            kernel: format!("Linux {}", output("uname", &["-r"])),
            processors: std::thread::available_parallelism().context("count processors")?.get(),
            load_average_before,
            load_average_after: String::new(),
        })
    }

    /// The run is over.
    pub(crate) fn ended(&mut self) {
        self.load_average_after = load_average();
    }

    /// The beginning of a sentence.
    pub(crate) fn text(&self) -> String {
        let Self { command, date, commit, kernel, processors, load_average_before, load_average_after } = self;
        format!(
            "`{command}`, {date}, commit {commit}, {kernel}, {processors} processors, load average {load_average_before} before and {load_average_after} after"
        )
    }
}

pub(crate) fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().unwrap_or("?").into()
}

fn output(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).current_dir(root()).output();
    out.ok().map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).filter(|s| !s.is_empty()).unwrap_or_else(|| "unknown".into())
}
