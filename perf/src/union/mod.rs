//! Union mounts beside the kernel's overlayfs and the FUSE unions.

mod disk;
mod lower;
mod report;
mod systems;
mod work;

use crate::circumstances::{Circumstances, load_average};
use crate::kv::{build, root};
use anyhow::{Context, Result, ensure};
use clap::Args;
use disk::Disk;
use lower::Lower;
use report::Table;
use std::path::PathBuf;
use systems::System;
use work::WORKS;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Rounds of each system, in turns
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Only these works (see --list)
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only these systems: overlayfs, fuse-overlayfs, mergerfs, unionfs-fuse, brickraft, brickraft-none
    #[arg(long, value_delimiter = ',')]
    systems: Vec<String>,
    /// Lists the works and ends
    #[arg(long)]
    list: bool,
    /// The tree that is copied to be the read-only branch
    #[arg(long, default_value = "/usr/share")]
    tree: PathBuf,
    /// Size of the large file, MiB
    #[arg(long, default_value_t = 1024)]
    large: u64,
    /// This brickraft program instead of one built now
    #[arg(long)]
    brickraft: Option<PathBuf>,
    /// More options for ours, as after `-o`
    #[arg(long)]
    with: Option<String>,
    /// Where the branches lie, instead of on an ext4 of their own in an image
    #[arg(long)]
    data: Option<PathBuf>,
    /// Name of the files in perf/results
    #[arg(long, default_value = "union")]
    name: String,
    /// Writes no files
    #[arg(long)]
    discard: bool,
}

/// Compares the systems as `options` say.
pub(crate) fn run(options: &Options) -> Result<()> {
    if options.list {
        WORKS.iter().for_each(|w| println!("{:16} {}", w.name, w.text));
        return Ok(());
    }
    for name in &options.only {
        ensure!(WORKS.iter().any(|w| w.name == name), "--only {name}: no such work; see --list");
    }
    ensure!(rustix::process::geteuid().is_root(), "mounts need root");
    let wanted = |name: &str, list: &[String]| list.is_empty() || list.iter().any(|n| n == name);
    let systems: Vec<System> = System::all().filter(|s| wanted(s.name(), &options.systems)).collect();
    ensure!(!systems.is_empty(), "--systems: none of them is known");
    let target = root().join("target");
    let brickraft = match &options.brickraft {
        Some(path) => path.canonicalize().with_context(|| format!("{}", path.display()))?,
        None => build(&target)?,
    };
    systems::install(&systems)?;
    let disk = if options.data.is_some() { None } else { Some(Disk::mount(&target.join("perf-data"))?) };
    let data = options.data.as_deref().or(disk.as_ref().map(|d| &*d.dir)).context("nowhere to lie")?;
    let lower = Lower::make(&data.join("union-lower"), &options.tree, options.large << 20, &target)?;
    let before = load_average();
    let mut table = Table::new(&systems);
    for round in 0..options.rounds {
        for system in &systems {
            let mut at = systems::Place::new(*system, &lower, data, &brickraft, options.with.as_deref())?;
            for work in WORKS.iter().filter(|w| wanted(w.name, &options.only)) {
                match (work.run)(&mut at) {
                    Ok(Some(seconds)) => {
                        eprintln!("round {round} {:14} {:16} {seconds:.3} s", system.name(), work.name);
                        table.add(work, *system, seconds);
                    }
                    Ok(None) => {}
                    Err(e) => {
                        eprintln!("round {round} {:14} {:16} {e:#}", system.name(), work.name);
                        table.failed(work, *system, &e);
                    }
                }
            }
            at.end()?;
        }
    }
    let mut circumstances = Circumstances::now(before)?;
    circumstances.ended();
    let setting = report::Setting {
        circumstances,
        lower: lower.described.clone(),
        versions: systems.iter().map(|s| s.version(&brickraft)).collect(),
        rounds: options.rounds,
    };
    println!("\n{}", table.text());
    if !options.discard {
        table.keep(&root().join("perf/results"), &options.name, &setting)?;
    }
    ensure!(table.failures() == 0, "{} works failed", table.failures());
    Ok(())
}
