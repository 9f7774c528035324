//! The `brickraft` binary. Called as `mount.brickraft` or `mount.aufs` it is mount(8)'s helper, and called as `etcd` it is etcd.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let called = args.first().and_then(|a| Path::new(a).file_name()).and_then(|n| n.to_str()).unwrap_or_default().to_owned();
    match called.as_str() {
        "mount.brickraft" => brickraft::cli::run(brickraft::cli::mount_helper(args)),
        name if brickraft::cli::is_union_helper(name) => match brickraft::cli::union_helper(args) {
            Ok(args) => brickraft::cli::run(args),
            Err(e) => {
                eprintln!("{name}: {e:#}");
                ExitCode::from(1)
            }
        },
        "etcd" => brickraft::cli::run_as_etcd(args),
        _ => brickraft::cli::run(args),
    }
}
