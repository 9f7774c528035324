//! The `brickraft` binary. Called as `mount.brickraft` it is mount(8)'s helper.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    // A server's log tells what it does; a person at a terminal wants to hear of trouble only.
    let default = if args.iter().any(|a| a == "server") { "info" } else { "warn" };
    let filter = tracing_subscriber::EnvFilter::try_from_env("BRICKRAFT_LOG").unwrap_or_else(|_| default.into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let called = args.first().and_then(|a| Path::new(a).file_name()).and_then(|n| n.to_str()).unwrap_or_default().to_owned();
    match called.as_str() {
        "mount.brickraft" => brickraft::cli::run(brickraft::cli::mount_helper(args)),
        _ => brickraft::cli::run(args),
    }
}
