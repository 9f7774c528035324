//! The command line: GlusterFS's words for peers and volumes, etcd's flags for the server.

mod auth_flags;
mod endpoint;
mod etcd;
mod etcd_flags;
mod member;
mod mount;
mod peer;
mod print;
mod server;
mod snapshot;
mod tls_flags;
mod union;
mod volume;

use crate::management::{ANSWER_TIMEOUT, Ask, AskError, BRICK_PORT, ask, with_port};
use anyhow::{Context, Result};
use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use print::Printer;
use serde::de::DeserializeOwned;
use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

pub use etcd::run as run_as_etcd;
pub use mount::helper as mount_helper;
pub use union::{helper as union_helper, is_helper as is_union_helper};

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
    /// Members of the coordination store
    #[command(subcommand)]
    Member(member::Member),
    /// Backups of the coordination store
    #[command(subcommand)]
    Snapshot(snapshot::Snapshot),
    /// Mount a volume: HOST:VOLUME DIRECTORY
    Mount(mount::MountArgs),
    /// Mount a union of directories and volumes, AUFS style: -o br=TOP:BELOW DIRECTORY
    Union(union::UnionArgs),
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

/// A usage error as one line: what is wrong, and the usage where clap tells it.
fn one_line(rendered: &str) -> String {
    let parts = rendered.split("\n\n").map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "));
    let told = parts.filter(|p| !p.is_empty() && !p.starts_with("tip:") && !p.starts_with("For more information"));
    let line = told.collect::<Vec<_>>().join("; ");
    line.strip_prefix("error: ").unwrap_or(&line).replacen("; Usage:", "; usage:", 1)
}

/// Standard error, for as long as somebody reads it: a mount's process outlives the one that started it, and a log line
/// that nobody can read must not end it.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let _ = std::io::stderr().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Starts the log, on standard error. BRICKRAFT_LOG overrides `level`.
fn log(level: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("BRICKRAFT_LOG").unwrap_or_else(|_| level.into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| Stderr).with_ansi(false).init();
}

/// Runs the command line; the process's exit code.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(e) if !e.use_stderr() || e.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = e.print();
            return if e.use_stderr() { ExitCode::from(1) } else { ExitCode::SUCCESS };
        }
        Err(e) => {
            Printer { json: args.iter().any(|a| a == "--json") }.error(&anyhow::Error::msg(one_line(&e.to_string())));
            return ExitCode::from(1);
        }
    };
    // A server's log tells what it does; a person at a terminal wants to hear of trouble only.
    log(if let Command::Server(args) = &cli.command { args.log_filter() } else { "warn" });
    let print = Printer { json: cli.json };
    let context = Context_ { server: with_port(&cli.server), print, ask_back: cli.mode.as_deref() != Some("script") && !cli.json };
    let result = match cli.command {
        Command::Dev(args) => crate::dev::run(&args, print.json),
        Command::Server(args) => server::run(&args),
        Command::Peer(command) => peer::run(&context, &command),
        Command::Pool(command) => peer::pool(&context, &command),
        Command::Volume(command) => volume::run(&context, &command),
        Command::Member(command) => member::run(&command),
        Command::Snapshot(command) => snapshot::run(&command),
        Command::Mount(args) => mount::run(&args, print),
        Command::Union(args) => union::run(&args, print),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            print.error(&e);
            ExitCode::from(1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_usage_error_is_one_line() {
        let said = |words: &str| one_line(&Cli::try_parse_from(words.split(' ')).expect_err(words).to_string());
        let text = said("brickraft volume create -x replica 2 a:/b");
        assert!(text.starts_with("unexpected argument '-x' found; usage: brickraft volume create") && !text.contains('\n'), "{text}");
        let text = said("brickraft volume create");
        assert!(text.starts_with("the following required arguments were not provided: <NAME>") && !text.contains('\n'), "{text}");
    }
}
