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
    ("lxc-start", "lxc"),
    ("debootstrap", "debootstrap"),
    ("setpriv", "util-linux"),
    ("getfacl", "acl"),
];

/// What the containers of the union's tests are made of: unpacked, not installed.
const CONTAINER_PACKAGES: &[&str] = &[
    "busybox-static",
    "libc6",
    "zlib1g",
    "libexpat1",
    "libpython3.11-minimal",
    "python3.11-minimal",
    "python3-minimal",
];

/// The file system exercisers that the mounts are tested with.
const TOOLS: &[(&str, &str)] = &[("fsx", "0.3.2"), ("pjdfstest", "0.2.2")];

const USAGE: &str = "usage: cargo xtask test [FILTER...] | setup | suites [etcd-client|etcd3]";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|a| a == "--help" || a == "-h") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let result = match args.first().map(String::as_str) {
        Some("test") => test(&args[1..]),
        Some("setup") => setup(),
        Some("suites") => run_suites(&args[1..]),
        _ => Err(anyhow::anyhow!("{USAGE}")),
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
    // pjdfstest links with it.
    if !Path::new("/usr/include/sys/acl.h").exists() {
        missing.push("libacl1-dev");
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
    install_tools()?;
    container_packages()?;
    suites::setup()?;
    if !Path::new("/dev/fuse").exists() {
        let made = Command::new("mknod").args(["/dev/fuse", "c", "10", "229"]).status().context("make /dev/fuse")?;
        ensure!(made.success(), "/dev/fuse is missing and cannot be made");
    }
    Ok(())
}

/// Installs tools from their crates, into the project's own target directory.
fn install_tools() -> Result<()> {
    for (name, version) in TOOLS {
        if Path::new("target/tools/bin").join(name).exists() {
            continue;
        }
        let args = ["install", "--quiet", "--locked", "--version", version, "--root", "target/tools", name];
        let installed = Command::new(cargo()).args(args).status().with_context(|| format!("install {name}"))?;
        ensure!(installed.success(), "`cargo install {name}` failed ({installed})");
    }
    Ok(())
}

/// Fetches Debian's packages for the containers.
fn container_packages() -> Result<()> {
    let dir = Path::new("target/union/debs");
    let names: Vec<String> = std::fs::read_dir(dir).into_iter().flatten().flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
    if CONTAINER_PACKAGES.iter().all(|p| names.iter().any(|n| n.starts_with(&format!("{p}_")))) {
        return Ok(());
    }
    std::fs::create_dir_all(dir)?;
    let line = format!("apt-get update -qq && apt-get download -qq {}", CONTAINER_PACKAGES.join(" "));
    eprintln!("xtask: {line}");
    run(Command::new("sh").args(["-c", &line]).current_dir(dir).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()))
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
