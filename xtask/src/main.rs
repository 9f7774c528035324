//! The project's own chores.
//!
//! `cargo xtask test [FILTER...]` installs what the tests need from Debian (as root), then runs every test of the
//! workspace. `cargo xtask setup` does only the first half. `cargo xtask suites [etcd-client|etcd3]` runs other people's
//! test suites alone.

mod suites;

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
    ("protoc", "protobuf-compiler"),
    ("tar", "tar"),
    ("curl", "curl"),
];

/// The file system exerciser that the mount is tested with.
const FSX_VERSION: &str = "0.3.2";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let result = match args.first().map(String::as_str) {
        Some("test") => test(&args[1..]),
        Some("setup") => setup(),
        Some("suites") => run_suites(&args[1..]),
        _ => Err(anyhow::anyhow!("usage: cargo xtask test [FILTER...] | setup | suites [etcd-client|etcd3]")),
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
    let mut missing: Vec<&str> = PACKAGES.iter().filter(|(program, _)| !found(program)).map(|(_, package)| *package).collect();
    // protoc's own definitions are a package apart.
    if !Path::new("/usr/include/google/protobuf/descriptor.proto").exists() {
        missing.push("libprotobuf-dev");
    }
    // No program tells whether Debian's part of Python that makes environments is there.
    let venv = Command::new("python3").args(["-c", "import venv, ensurepip"]).stderr(std::process::Stdio::null()).status();
    if !venv.is_ok_and(|s| s.success()) {
        missing.push("python3-venv");
    }
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
    suites::setup()?;
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
    let args = ["install", "--quiet", "--locked", "--version", FSX_VERSION, "--root", "target/tools", "fsx"];
    let installed = Command::new(cargo()).args(args).status().context("install fsx")?;
    ensure!(installed.success(), "`cargo install fsx` failed ({installed})");
    Ok(())
}

fn cargo() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Runs a command to its end; its failure is ours.
fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("{command:?}"))?;
    ensure!(status.success(), "{command:?} failed ({status})");
    Ok(())
}

fn run_suites(names: &[String]) -> Result<()> {
    setup()?;
    let filter = match names.first().map(String::as_str) {
        None => "",
        Some("etcd-client") => "etcd_client",
        Some("etcd3") => "python",
        Some(other) => bail!("{other:?} is no suite; there are etcd-client and etcd3"),
    };
    run(Command::new(cargo()).args(["test", "--package", "brickraft", "--test", "suites", "--", "--nocapture", filter]))
}

/// Cargo's own runner, so that nothing but the toolchain is needed; its closing lines end the output.
fn test(filters: &[String]) -> Result<()> {
    setup()?;
    let status = Command::new(cargo()).args(["test", "--no-fail-fast", "--"]).args(filters).status().context("run cargo test")?;
    if !status.success() {
        bail!("tests failed");
    }
    Ok(())
}
