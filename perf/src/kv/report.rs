//! Figures, their table, and the files they are kept in.

use super::leader_kill::Trial;
use super::work::{Target, Work};
use crate::circumstances::Circumstances;
use crate::proc::Memory;
use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

/// The targets of the issue for kill -9 of the leader: the median and the worst of all trials.
const KILL_MEDIAN_MS: f64 = 1500.0;
const KILL_WORST_MS: f64 = 2000.0;

/// What a target can be about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Metric {
    Throughput,
    P50,
    P99,
    ServerCpu,
    Rss,
    Pss,
}

/// What one run of one work on one system gave.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Figures {
    pub(crate) ops_per_s: Option<f64>,
    pub(crate) p50_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
    pub(crate) p999_us: Option<f64>,
    /// Processor time of all three servers for each operation.
    pub(crate) server_cpu_us: Option<f64>,
    pub(crate) generator_cpu_us: Option<f64>,
    /// Sums over the three servers.
    pub(crate) rss_bytes: Option<f64>,
    pub(crate) pss_bytes: Option<f64>,
    pub(crate) errors: u64,
    /// What only this work has.
    pub(crate) extras: BTreeMap<String, f64>,
}

impl Figures {
    /// What all works have: `ops` that took `took`, their latencies in us, and the processor time, in us, of servers and generator.
    pub(crate) fn of(ops: u64, took: Duration, latency: &Histogram<u64>, servers_us: u64, generator_us: u64) -> Self {
        let quantile = |q| Some(latency.value_at_quantile(q) as f64);
        let each = |us: u64| Some(us as f64 / ops as f64);
        Self {
            ops_per_s: Some(ops as f64 / took.as_secs_f64()),
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
            p999_us: quantile(0.999),
            server_cpu_us: each(servers_us),
            generator_cpu_us: each(generator_us),
            ..Self::default()
        }
    }

    pub(crate) fn memory(&mut self, memory: Memory) {
        self.rss_bytes = Some(memory.rss as f64);
        self.pss_bytes = Some(memory.pss as f64);
    }

    pub(crate) fn extra(&mut self, name: &str, value: f64) {
        self.extras.insert(name.into(), value);
    }

    fn get(&self, metric: Metric) -> Option<f64> {
        match metric {
            Metric::Throughput => self.ops_per_s,
            Metric::P50 => self.p50_us,
            Metric::P99 => self.p99_us,
            Metric::ServerCpu => self.server_cpu_us,
            Metric::Rss => self.rss_bytes,
            Metric::Pss => self.pss_bytes,
        }
    }
}

/// The middle one, or the mean of the two in the middle.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    (n > 0).then(|| (values[(n - 1) / 2] + values[n / 2]) / 2.0)
}

/// Each figure's median over the rounds; errors add up.
pub(crate) fn medians(rounds: &[Figures]) -> Figures {
    let of = |field: fn(&Figures) -> Option<f64>| median(rounds.iter().filter_map(field).collect());
    let names = rounds.iter().flat_map(|r| r.extras.keys().cloned());
    Figures {
        ops_per_s: of(|r| r.ops_per_s),
        p50_us: of(|r| r.p50_us),
        p99_us: of(|r| r.p99_us),
        p999_us: of(|r| r.p999_us),
        server_cpu_us: of(|r| r.server_cpu_us),
        generator_cpu_us: of(|r| r.generator_cpu_us),
        rss_bytes: of(|r| r.rss_bytes),
        pss_bytes: of(|r| r.pss_bytes),
        errors: rounds.iter().map(|r| r.errors).sum(),
        extras: names
            .filter_map(|n| Some((n.clone(), median(rounds.iter().filter_map(|r| r.extras.get(&n).copied()).collect())?)))
            .collect(),
    }
}

/// A work's outcome on both systems; a side without rounds failed, and `failed` says why.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    pub(crate) name: &'static str,
    pub(crate) text: &'static str,
    #[serde(skip)]
    pub(crate) targets: &'static [Target],
    pub(crate) peer: Figures,
    pub(crate) ours: Figures,
    pub(crate) peer_rounds: Vec<Figures>,
    pub(crate) ours_rounds: Vec<Figures>,
    pub(crate) failed: Vec<String>,
}

impl Outcome {
    pub(crate) fn new(work: &Work, peer_rounds: Vec<Figures>, ours_rounds: Vec<Figures>, failed: Vec<String>) -> Self {
        let (peer, ours) = (medians(&peer_rounds), medians(&ours_rounds));
        Self { name: work.name, text: work.text, targets: work.targets, peer, ours, peer_rounds, ours_rounds, failed }
    }

    fn ratio(&self, of: impl Fn(&Figures) -> Option<f64>) -> Option<f64> {
        let (ours, peer) = (of(&self.ours)?, of(&self.peer)?);
        (peer > 0.0).then(|| ours / peer)
    }

    /// Each target in words, with what came of it.
    fn verdicts(&self) -> Vec<String> {
        let verdict = |t: &Target| {
            let (name, least) = match t.metric {
                Metric::Throughput => ("op/s", true),
                Metric::P50 => ("p50", false),
                Metric::P99 => ("p99", false),
                Metric::ServerCpu => ("CPU", false),
                Metric::Rss => ("RSS", false),
                Metric::Pss => ("PSS", false),
            };
            let word = match self.ratio(|f| f.get(t.metric)) {
                None => "not measured",
                Some(r) if (least && r >= t.ratio) || (!least && r <= t.ratio) => "met",
                Some(_) => "MISSED",
            };
            format!("{name} {} {}x: {word}", if least { ">=" } else { "<=" }, t.ratio)
        };
        self.targets.iter().map(verdict).collect()
    }
}

/// What was run, where, and on what.
#[derive(Debug, Serialize)]
pub(crate) struct Setting {
    #[serde(flatten)]
    pub(crate) circumstances: Circumstances,
    pub(crate) peer: String,
    pub(crate) peer_name: String,
    pub(crate) seconds: f64,
    pub(crate) rounds: u32,
}

impl Setting {
    fn text(&self) -> String {
        format!(
            "{}; against {}. \
             {} rounds of {} s in turns, medians. Three members of each on loopback, one system at a time; nobody is pinned to a \
             processor; the load generator is one thread. CPU is that of all three server processes.\n\n",
            self.circumstances.text(),
            self.peer,
            self.rounds,
            self.seconds
        )
    }
}

const HEADINGS: [&str; 11] =
    ["work", "system", "op/s", "p50 ms", "p99 ms", "p99.9 ms", "CPU us/op", "generator us/op", "RSS MiB", "PSS MiB", "target"];

fn number(value: Option<f64>, divisor: f64, digits: usize) -> String {
    value.map_or_else(|| "-".into(), |v| format!("{:.digits$}", v / divisor))
}

fn row(first: &str, system: &str, f: &Figures, last: String) -> [String; 11] {
    let mib = f64::from(1 << 20);
    [
        first.into(),
        system.into(),
        number(f.ops_per_s, 1.0, 0),
        number(f.p50_us, 1e3, 2),
        number(f.p99_us, 1e3, 2),
        number(f.p999_us, 1e3, 2),
        number(f.server_cpu_us, 1.0, 1),
        number(f.generator_cpu_us, 1.0, 1),
        number(f.rss_bytes, mib, 0),
        number(f.pss_bytes, mib, 0),
        last,
    ]
}

fn ratio_row(o: &Outcome, peer: &str, targets: bool) -> [String; 11] {
    let ratio = |of: fn(&Figures) -> Option<f64>| o.ratio(of).map_or_else(|| "-".into(), |r| format!("{r:.2}x"));
    [
        String::new(),
        format!("ours / {peer}"),
        ratio(|f| f.ops_per_s),
        ratio(|f| f.p50_us),
        ratio(|f| f.p99_us),
        ratio(|f| f.p999_us),
        ratio(|f| f.server_cpu_us),
        ratio(|f| f.generator_cpu_us),
        ratio(|f| f.rss_bytes),
        ratio(|f| f.pss_bytes),
        if targets { o.verdicts().join("; ") } else { String::new() },
    ]
}

/// Markdown that is legible in a terminal too.
pub(crate) fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |c: usize| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for (i, row) in rows.iter().enumerate() {
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(out, "| {cell:width$} ");
        }
        out.push_str("|\n");
        if i == 0 {
            widths.iter().for_each(|w| {
                let _ = write!(out, "|{}", "-".repeat(w + 2));
            });
            out.push_str("|\n");
        }
    }
    out
}

/// The table of all works.
pub(crate) fn table(outcomes: &[Outcome], peer: &str) -> String {
    let mut rows = vec![HEADINGS.map(str::to_owned).to_vec()];
    for o in outcomes {
        let errors = |f: &Figures| if f.errors > 0 { format!("{} errors", f.errors) } else { String::new() };
        rows.push(row(o.text, peer, &o.peer, errors(&o.peer)).to_vec());
        rows.push(row("", "brickraft", &o.ours, errors(&o.ours)).to_vec());
        rows.push(ratio_row(o, peer, peer == "etcd").to_vec());
    }
    let mut out = aligned(&rows);
    let extras = extras(outcomes, peer);
    if extras.len() > 1 {
        let _ = write!(out, "\n{}", aligned(&extras));
    }
    for o in outcomes {
        for failed in &o.failed {
            let _ = write!(out, "\nFailed: {}: {failed}\n", o.name);
        }
    }
    out
}

fn extras(outcomes: &[Outcome], peer: &str) -> Vec<Vec<String>> {
    let mut rows = vec![["work", "besides", peer, "brickraft", "ratio"].map(str::to_owned).to_vec()];
    for o in outcomes {
        for name in o.ours.extras.keys().chain(o.peer.extras.keys().filter(|n| !o.ours.extras.contains_key(*n))) {
            let of = |f: &Figures| f.extras.get(name).copied();
            let ratio = o.ratio(of).map_or_else(|| "-".into(), |r| format!("{r:.2}x"));
            rows.push(vec![o.name.into(), name.clone(), number(of(&o.peer), 1.0, 1), number(of(&o.ours), 1.0, 1), ratio]);
        }
    }
    rows
}

/// The table of the leader's ends.
pub(crate) fn kill_table(peer: &str, trials: &[(&str, Vec<Trial>)]) -> String {
    let mut rows = vec![["system", "trials", "median s", "worst s", "best s", "target"].map(str::to_owned).to_vec()];
    for (name, trials) in trials {
        let worst: Vec<f64> = trials.iter().map(Trial::worst_ms).collect();
        let (median, most) = (median(worst.clone()), worst.iter().copied().reduce(f64::max));
        let verdict = match (median, most) {
            _ if *name == peer => String::new(),
            (Some(median), Some(most)) => {
                let word = |met: bool| if met { "met" } else { "MISSED" };
                format!("median <= 1.5 s: {}; worst <= 2 s: {}", word(median <= KILL_MEDIAN_MS), word(most <= KILL_WORST_MS))
            }
            _ => "not measured".into(),
        };
        rows.push(vec![
            (*name).to_owned(),
            trials.len().to_string(),
            number(median, 1e3, 2),
            number(most, 1e3, 2),
            number(worst.iter().copied().reduce(f64::min), 1e3, 2),
            verdict,
        ]);
    }
    aligned(&rows)
}

/// Writes `NAME.md` and `NAME.json`.
pub(crate) fn keep<T: Serialize>(dir: &Path, name: &str, setting: &Setting, table: &str, results: &T) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let markdown = dir.join(format!("{name}.md"));
    std::fs::write(&markdown, format!("{}{table}", setting.text())).with_context(|| format!("write {}", markdown.display()))?;
    let json = dir.join(format!("{name}.json"));
    let all = serde_json::json!({ "setting": setting, "results": results });
    std::fs::write(&json, serde_json::to_string_pretty(&all)? + "\n").with_context(|| format!("write {}", json.display()))?;
    println!("\nKept in {} and {}.", markdown.display(), json.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::work::WORKS;
    use super::*;

    fn figures(ops: f64, cpu: f64, p99: f64) -> Figures {
        Figures { ops_per_s: Some(ops), server_cpu_us: Some(cpu), p99_us: Some(p99), ..Figures::default() }
    }

    #[test]
    fn medians_of_odd_and_even_counts() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(Vec::new()), None);
        assert_eq!(medians(&[figures(1.0, 5.0, 1.0), figures(3.0, 1.0, 1.0)]).server_cpu_us, Some(3.0));
    }

    #[test]
    fn targets_are_judged_by_ratio() {
        let work = WORKS.iter().find(|w| w.name == "put-100").expect("listed");
        let peer = vec![figures(100.0, 100.0, 9.0)];
        let met = Outcome::new(work, peer.clone(), vec![figures(250.0, 20.0, 9.0)], Vec::new());
        assert_eq!(met.verdicts(), ["CPU <= 0.2x: met", "op/s >= 2.5x: met"]);
        let missed = Outcome::new(work, peer.clone(), vec![figures(249.0, 20.1, 9.0)], Vec::new());
        assert_eq!(missed.verdicts(), ["CPU <= 0.2x: MISSED", "op/s >= 2.5x: MISSED"]);
        let none = Outcome::new(work, peer, Vec::new(), Vec::new());
        assert_eq!(none.verdicts(), ["CPU <= 0.2x: not measured", "op/s >= 2.5x: not measured"]);
        assert!(table(&[missed], "etcd").contains("2.49x"));
    }
}
