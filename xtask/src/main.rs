//! The project's own chores.
//!
//! `cargo xtask test [FILTER...]` installs what the tests need from Debian (as root), then runs every test of the
//! workspace. `cargo xtask setup` does only the first half.

use anyhow::{Context, Result, bail, ensure};
use std::path::Path;
use std::process::{Command, ExitCode};

/// What the tests drive, by a program that each package brings.
const PACKAGES: &[(&str, &str)] = &[
    ("etcdctl", "etcd-client"),
    ("fusermount3", "fuse3"),
    ("ip", "iproute2"),
    ("rsync", "rsync"),
    ("dbench", "dbench"),
    ("sqlite3", "sqlite3"),
    ("git", "git"),
    ("getfattr", "attr"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("cc", "gcc"),
    ("mount", "mount"),
    ("python3", "python3"),
    ("nsenter", "util-linux"),
];

/// The file system exerciser that the mount is tested with.
const FSX_VERSION: &str = "0.3.2";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let result = match args.first().map(String::as_str) {
        Some("test") => test(&args[1..]),
        Some("setup") => setup(),
        _ => Err(anyhow::anyhow!("usage: cargo xtask test [FILTER...] | setup")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("xtask: {e:#}");
            ExitCode::from(1)
        }
    }
}

fn found(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/sbin", "/sbin"].map(std::path::PathBuf::from);
    std::env::split_paths(&path).chain(extra).any(|dir| dir.join(program).is_file())
}

/// Installs missing Debian packages; without root, says how.
fn setup() -> Result<()> {
    let missing: Vec<&str> = PACKAGES.iter().filter(|(program, _)| !found(program)).map(|(_, package)| *package).collect();
    let root = rustix::process::geteuid().is_root();
    if !missing.is_empty() {
        let line = format!("apt-get update && apt-get install -y --no-install-recommends {}", missing.join(" "));
        ensure!(root, "these tests need Debian packages; run: sudo sh -c '{line}'");
        eprintln!("xtask: {line}");
        let status = Command::new("sh")
            .args(["-c", &line])
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdout(std::process::Stdio::null())
            .status()
            .context("run apt-get")?;
        ensure!(status.success(), "apt-get failed ({status}); the line was: {line}");
    }
    ensure!(
        root,
        "the tests mount file systems and make network namespaces, so they need root; run: sudo -E env PATH=\"$PATH\" cargo xtask test"
    );
    install_fsx()?;
    if !Path::new("/dev/fuse").exists() {
        let made = Command::new("mknod").args(["/dev/fuse", "c", "10", "229"]).status().context("make /dev/fuse")?;
        ensure!(made.success(), "/dev/fuse is missing and cannot be made");
    }
    Ok(())
}

/// Installs fsx from its crate, into the project's own target directory.
fn install_fsx() -> Result<()> {
    if Path::new("target/tools/bin/fsx").exists() {
        return Ok(());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let args = ["install", "--quiet", "--locked", "--version", FSX_VERSION, "--root", "target/tools", "fsx"];
    let installed = Command::new(cargo).args(args).status().context("install fsx")?;
    ensure!(installed.success(), "`cargo install fsx` failed ({installed})");
    Ok(())
}

/// Cargo's own runner, so that nothing but the toolchain is needed; its closing lines end the output.
fn test(filters: &[String]) -> Result<()> {
    setup()?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status =
        Command::new(&cargo).args(["test", "--no-fail-fast", "--"]).args(filters).status().context("run cargo test")?;
    if !status.success() {
        bail!("tests failed");
    }
    Ok(())
}
