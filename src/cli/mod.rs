//! The command line: GlusterFS's words for peers and volumes, etcd's flags for the server.

mod mount;
mod peer;
mod print;
mod server;
mod volume;

use crate::management::{ANSWER_TIMEOUT, Ask, AskError, BRICK_PORT, ask, with_port};
use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use print::Printer;
use serde::de::DeserializeOwned;
use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

pub use mount::helper as mount_helper;

/// A coordination store, a distributed file system and union mounts on one io_uring engine.
#[derive(Debug, Parser)]
#[command(name = "brickraft", version, disable_help_subcommand = true)]
pub struct Cli {
    /// The server to ask, HOST or HOST:PORT
    #[arg(long, global = true, env = "BRICKRAFT_SERVER", default_value_t = format!("127.0.0.1:{BRICK_PORT}"))]
    server: String,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    /// "script" never asks back
    #[arg(long, global = true, value_parser = ["script", "interactive"])]
    mode: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a three-member cluster with a replicated volume on this machine, mounted, until Ctrl-C
    Dev(crate::dev::DevArgs),
    /// Run a server
    Server(Box<server::ServerArgs>),
    /// Servers of the trusted pool
    #[command(subcommand)]
    Peer(peer::Peer),
    /// The trusted pool, this server included
    #[command(subcommand)]
    Pool(peer::Pool),
    /// Volumes
    #[command(subcommand)]
    Volume(volume::Volume),
    /// Mount a volume: HOST:VOLUME DIRECTORY
    Mount(mount::MountArgs),
}

/// What a command works with.
pub(crate) struct Context_ {
    server: String,
    print: Printer,
    ask_back: bool,
}

impl Context_ {
    fn ask<T: DeserializeOwned>(&self, question: &Ask) -> Result<T, AskError> {
        ask(&self.server, question, ANSWER_TIMEOUT)
    }

    /// Asks y/n before something is lost, as gluster does; yes where nobody can answer.
    fn confirm(&self, question: &str) -> Result<bool> {
        if !self.ask_back || !std::io::stdin().is_terminal() {
            return Ok(true);
        }
        print!("{question} (y/n) ");
        std::io::stdout().flush()?;
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).context("read the answer")?;
        Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
    }
}

/// Runs the command line; the process's exit code.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return if e.use_stderr() { ExitCode::from(1) } else { ExitCode::SUCCESS };
        }
    };
    let print = Printer { json: cli.json };
    let context = Context_ { server: with_port(&cli.server), print, ask_back: cli.mode.as_deref() != Some("script") && !cli.json };
    let result = match cli.command {
        Command::Dev(args) => crate::dev::run(&args, print.json),
        Command::Server(args) => server::run(&args),
        Command::Peer(command) => peer::run(&context, &command),
        Command::Pool(command) => peer::pool(&context, &command),
        Command::Volume(command) => volume::run(&context, &command),
        Command::Mount(args) => mount::run(&args, print),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            print.error(&e);
            ExitCode::from(1)
        }
    }
}
