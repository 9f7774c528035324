//! Load generators, and runs side by side with the peers. `perf/README.md` says what is measured and how.

mod circumstances;
mod kv;
mod proc;
mod union;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "brickraft-perf", about = "Runs brickraft and a peer in turn, on the same work, and prints one table")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The coordination store beside etcd: three members of each, on this machine
    Kv(kv::Options),
    /// Union mounts beside the kernel's overlayfs and the FUSE unions
    Union(union::Options),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Kv(options) => kv::run(&options),
        Command::Union(options) => union::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("brickraft-perf: {e:#}");
            ExitCode::from(1)
        }
    }
}
