//! Where etcd comes from: Debian's package, unpacked beside the build, so that no service is installed or started.

use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The version that the targets are against.
pub(crate) const VERSION: &str = "3.4.23";

fn version_of(program: &Path) -> Option<String> {
    let out = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    text.lines().find_map(|l| l.strip_prefix("etcd Version: ")).map(str::to_owned)
}

fn run(command: &mut Command) -> Result<()> {
    let out = command.output().with_context(|| format!("run {command:?}"))?;
    ensure!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr).trim());
    Ok(())
}

/// The program to run: `given`, or Debian's, fetched into `cache` unless it is there.
pub(crate) fn program(given: Option<&Path>, cache: &Path) -> Result<(PathBuf, String)> {
    if let Some(given) = given {
        let version = version_of(given).with_context(|| format!("{} is not etcd", given.display()))?;
        return Ok((given.to_owned(), version));
    }
    let program = cache.join("usr/bin/etcd");
    if !program.exists() {
        eprintln!("etcd: fetching Debian's etcd-server into {}", cache.display());
        std::fs::create_dir_all(cache).with_context(|| format!("create {}", cache.display()))?;
        let fetch = || run(Command::new("apt-get").args(["download", "etcd-server"]).current_dir(cache));
        if fetch().is_err() {
            run(Command::new("apt-get").arg("update"))?;
            fetch().context("download etcd-server (or pass --etcd PATH)")?;
        }
        let package = std::fs::read_dir(cache)?.filter_map(|e| Some(e.ok()?.path())).find(|p| p.extension().is_some_and(|e| e == "deb"));
        let package = package.context("apt-get brought no package")?;
        run(Command::new("dpkg").arg("-x").arg(&package).arg(cache))?;
    }
    match version_of(&program) {
        Some(version) => Ok((program, version)),
        None => bail!("{} does not run", program.display()),
    }
}
