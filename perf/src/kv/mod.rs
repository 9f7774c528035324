//! The coordination store beside etcd.

mod cluster;
mod etcd;
mod grpc;
mod leader_kill;
mod load;
pub(crate) mod report;
mod reserve;
mod rest;
mod watchers;
mod work;

use crate::circumstances::{Circumstances, load_average};
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use cluster::{Cluster, Programs, System};
use report::{Figures, Outcome, Setting};
use reserve::Reserve;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tokio::task::LocalSet;
use work::{Kind, WORKS, Work};

/// A whole run of one work may take this and its seconds; then it counts as failed.
const WORK_MAX: Duration = Duration::from_secs(600);
/// A cluster mostly serves within this time, warm-up included.
const START_MAX: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Seconds of each round that are counted
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Rounds of each system, in turns
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Only these works (see --list)
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Lists the works and ends
    #[arg(long)]
    list: bool,
    /// "leader-kill": kill -9 of the leader under load, instead of the table
    #[arg(long, value_parser = ["leader-kill"])]
    trial: Option<String>,
    /// How often the leader is killed
    #[arg(long, default_value_t = 10)]
    trials: u32,
    /// Requests a second, in open loop, for the works that are closed loops by themselves
    #[arg(long)]
    rate: Option<u32>,
    /// Keys of the work "rest"
    #[arg(long, default_value_t = 1_000_000)]
    keys: u32,
    /// This brickraft program instead of one built now
    #[arg(long)]
    brickraft: Option<PathBuf>,
    /// This etcd program instead of Debian's
    #[arg(long)]
    etcd: Option<PathBuf>,
    /// Another build of brickraft in etcd's place: what did a change bring?
    #[arg(long, conflicts_with = "etcd")]
    against: Option<PathBuf>,
    /// Only ours
    #[arg(long)]
    alone: bool,
    /// GiB of memory that are touched before each system's turn, and freed in the course of it: a virtual machine's host may have taken
    /// back what was free, and whoever gets it first waits for it
    #[arg(long, default_value_t = 0)]
    touch: usize,
    /// Where the servers' data lies, for the time of the run
    #[arg(long)]
    data: Option<PathBuf>,
    /// Name of the files in perf/results
    #[arg(long)]
    name: Option<String>,
    /// Writes no files
    #[arg(long)]
    discard: bool,
}

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the repository")
}

/// Compares both systems as `options` say.
pub(crate) fn run(options: &Options) -> Result<()> {
    if options.list {
        WORKS.iter().for_each(|w| println!("{:20} {}", w.name, w.text));
        return Ok(());
    }
    let works = works(options)?;
    let target = root().join("target");
    let brickraft = match &options.brickraft {
        Some(path) => path.clone(),
        None => build(&target)?,
    };
    let (peer, described) = match &options.against {
        Some(path) => (path.clone(), format!("{} (brickraft)", path.display())),
        None => {
            let (path, version) = etcd::program(options.etcd.as_deref(), &target.join("etcd"))?;
            if version != etcd::VERSION {
                eprintln!("etcd: this is {version}; the targets are against {}", etcd::VERSION);
            }
            (path, format!("etcd {version}"))
        }
    };
    let data = options.data.clone().unwrap_or_else(|| target.join("perf-data"));
    let programs = Programs { peer, peer_is_etcd: options.against.is_none(), brickraft, data };
    let mut setting = setting(options, described)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let local = LocalSet::new();
    let results = root().join("perf/results");
    if options.trial.is_some() {
        let mut all = Vec::new();
        for system in systems(options) {
            let trials = local.block_on(&runtime, leader_kill::run(system, &programs, options.trials))?;
            all.push((programs.name(system), trials));
        }
        let table = report::kill_table(&setting.peer_name, &all);
        println!("\n{table}");
        setting.circumstances.ended();
        return keep(options, &results, "kv-leader-kill", &setting, &table, &all);
    }
    let mut outcomes = Vec::new();
    for work in &works {
        outcomes.push(local.block_on(&runtime, compare(work, options, &programs)));
    }
    let table = report::table(&outcomes, &setting.peer_name);
    println!("\n{table}");
    setting.circumstances.ended();
    keep(options, &results, "kv", &setting, &table, &outcomes)?;
    let failed: usize = outcomes.iter().map(|o| o.failed.len()).sum();
    ensure!(failed == 0, "{failed} runs failed");
    Ok(())
}

fn keep<T: serde::Serialize>(options: &Options, dir: &Path, name: &str, setting: &Setting, table: &str, results: &T) -> Result<()> {
    if options.discard {
        return Ok(());
    }
    report::keep(dir, options.name.as_deref().unwrap_or(name), setting, table, results)
}

fn works(options: &Options) -> Result<Vec<Work>> {
    for name in &options.only {
        ensure!(WORKS.iter().any(|w| w.name == name), "--only {name}: no such work; see --list");
    }
    ensure!(options.seconds > 0.0 && options.rounds > 0 && options.rate != Some(0), "--seconds, --rounds and --rate must be above 0");
    let wanted = |w: &&Work| options.only.is_empty() || options.only.iter().any(|n| n == w.name);
    let mut works: Vec<Work> = WORKS.iter().filter(wanted).cloned().collect();
    for work in &mut works {
        match &mut work.kind {
            Kind::Load(load) if options.rate.is_some() => load.rate = options.rate,
            Kind::Rest { keys } => *keys = options.keys,
            _ => {}
        }
    }
    Ok(works)
}

fn systems(options: &Options) -> Vec<System> {
    System::BOTH.into_iter().filter(|s| !options.alone || *s == System::Ours).collect()
}

async fn compare(work: &Work, options: &Options, programs: &Programs) -> Outcome {
    // What lies at rest does not scatter, and takes long to make.
    let rounds = if matches!(work.kind, Kind::Rest { .. }) { 1 } else { options.rounds };
    let (mut peer, mut ours, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        for system in systems(options) {
            let name = programs.name(system);
            let seconds = Duration::from_secs_f64(options.seconds);
            let reserve = Reserve::new(options.touch, START_MAX + seconds);
            let limit = WORK_MAX + seconds;
            let result = match tokio::time::timeout(limit, once(work, system, programs, options.seconds)).await {
                Ok(result) => result,
                Err(_) => Err(anyhow::anyhow!("not done after {} s", limit.as_secs())),
            };
            drop(reserve);
            match result {
                Ok(figures) => {
                    eprintln!(
                        "{} round {round} {name}: {:.0} op/s, p99 {:.2} ms, {:.1} us of CPU for each",
                        work.name,
                        figures.ops_per_s.unwrap_or_default(),
                        figures.p99_us.unwrap_or_default() / 1e3,
                        figures.server_cpu_us.unwrap_or_default()
                    );
                    if system == System::Peer { peer.push(figures) } else { ours.push(figures) }
                }
                Err(e) => {
                    eprintln!("{} round {round} {name}: {e:#}", work.name);
                    failed.push(format!("round {round}, {name}: {e:#}"));
                }
            }
        }
    }
    Outcome::new(work, peer, ours, failed)
}

async fn once(work: &Work, system: System, programs: &Programs, seconds: f64) -> Result<Figures> {
    let mut cluster = Cluster::start(system, programs).await?;
    match work.kind {
        Kind::Load(load) => load::run(&cluster, load, Duration::from_secs_f64(seconds)).await,
        Kind::Watchers { watchers, per_stream } => watchers::run(&cluster, watchers, per_stream).await,
        Kind::Rest { keys } => rest::run(&mut cluster, keys).await,
    }
}

/// The release binary, as the repository is now.
pub(crate) fn build(target: &Path) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--release", "--package", "brickraft", "--target-dir"])
        .arg(target)
        .current_dir(root())
        .status()
        .context("run cargo")?;
    if !status.success() {
        bail!("building brickraft failed ({status})");
    }
    Ok(target.join("release/brickraft"))
}

fn setting(options: &Options, peer: String) -> Result<Setting> {
    Ok(Setting {
        circumstances: Circumstances::now(load_average())?,
        peer,
        peer_name: if options.against.is_some() { "before".into() } else { "etcd".into() },
        seconds: options.seconds,
        rounds: options.rounds,
    })
}
