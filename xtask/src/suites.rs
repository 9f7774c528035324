//! Other people's test suites: fetched through cargo and pip, built under target/, never part of this repository.

use crate::{cargo, run};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where they are put.
const DIR: &str = "target/suites";
/// The crate whose integration tests are run.
const ETCD_CLIENT_VERSION: &str = "0.21.1";
/// The Python client whose tests are run.
const ETCD3_VERSION: &str = "0.12.0";
/// What its tests need; its generated code wants an old protobuf.
const PYTHON_PACKAGES: &[&str] = &[
    "grpcio==1.85.3",
    "protobuf==3.20.3",
    "six==1.17.0",
    "tenacity==6.3.1",
    "pytest==9.2.0",
    "hypothesis==5.37.5",
    "mock==5.2.0",
    "pifpaf==3.4.0",
];

/// Brings what is missing.
pub(crate) fn setup() -> Result<()> {
    etcd_client().context("the etcd-client crate's tests")?;
    etcd3().context("Python's etcd3 tests")
}

/// A project that depends on the crate lets cargo fetch its source, which has the tests in it; a copy of that is built.
fn etcd_client() -> Result<()> {
    let dir = Path::new(DIR).join("etcd-client");
    let list = dir.join("binaries");
    if fs::read_to_string(&list).is_ok_and(|l| !l.is_empty() && l.lines().all(|b| Path::new(b).exists())) {
        return Ok(());
    }
    eprintln!("xtask: building the tests of etcd-client {ETCD_CLIENT_VERSION}");
    let fetch = dir.join("fetch");
    fs::create_dir_all(fetch.join("src"))?;
    fs::write(fetch.join("src/lib.rs"), "")?;
    let manifest = format!(
        "[package]\nname = \"fetch\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[workspace]\n[dependencies]\netcd-client = \"={ETCD_CLIENT_VERSION}\"\n"
    );
    fs::write(fetch.join("Cargo.toml"), manifest)?;
    let metadata = Command::new(cargo())
        .args(["metadata", "--format-version=1", "--manifest-path"])
        .arg(fetch.join("Cargo.toml"))
        .stderr(Stdio::inherit())
        .output()
        .context("run cargo metadata")?;
    ensure!(metadata.status.success(), "cargo metadata failed");
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout).context("cargo metadata's JSON")?;
    let found = metadata["packages"].as_array().into_iter().flatten().find(|p| p["name"] == "etcd-client");
    let source = found.and_then(|p| p["manifest_path"].as_str()).map(PathBuf::from).context("etcd-client's source")?;
    let copy = dir.join("source");
    let _ = fs::remove_dir_all(&copy);
    run(Command::new("cp").arg("-r").arg(source.parent().context("a directory")?).arg(&copy))?;
    // Not a member of the workspace around it.
    let manifest = fs::read_to_string(copy.join("Cargo.toml"))?;
    fs::write(copy.join("Cargo.toml"), format!("{manifest}\n[workspace]\n"))?;
    let built = Command::new(cargo())
        .args(["test", "--no-run", "--tests", "--message-format=json", "--quiet", "--manifest-path"])
        .arg(copy.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(dir.join("target"))
        .stderr(Stdio::inherit())
        .output()
        .context("build its tests")?;
    ensure!(built.status.success(), "its tests cannot be built");
    let messages = String::from_utf8_lossy(&built.stdout).into_owned();
    let binaries: Vec<String> = messages
        .lines()
        .filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok())
        .filter(|m| m["target"]["kind"][0] == "test")
        .filter_map(|m| m["executable"].as_str().map(str::to_owned))
        .collect();
    ensure!(!binaries.is_empty(), "no tests were built");
    fs::write(&list, binaries.join("\n") + "\n")?;
    Ok(())
}

/// The source distribution, which has the tests in it, and an environment to run them in.
fn etcd3() -> Result<()> {
    let dir = Path::new(DIR);
    let (python, tests) = (dir.join("python"), dir.join("etcd3"));
    if python.join("bin/pifpaf").exists() && tests.join("tests").exists() {
        return Ok(());
    }
    eprintln!("xtask: installing Python's etcd3 {ETCD3_VERSION} and its tests");
    fs::create_dir_all(dir)?;
    let _ = fs::remove_dir_all(&python);
    run(Command::new("python3").args(["-m", "venv"]).arg(&python))?;
    let pip = python.join("bin/pip");
    run(Command::new(&pip).args(["install", "--quiet", "--disable-pip-version-check"]).args(PYTHON_PACKAGES))?;
    let wanted = format!("etcd3=={ETCD3_VERSION}");
    let args = ["download", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-binary=:all:", "--dest"];
    run(Command::new(&pip).args(["install", "--quiet", "--disable-pip-version-check", "setuptools==80.9.0", "wheel"]))?;
    run(Command::new(&pip).args(args).arg(dir).arg(wanted))?;
    let unpacked = dir.join(format!("etcd3-{ETCD3_VERSION}"));
    run(Command::new("tar").arg("-xzf").arg(dir.join(format!("etcd3-{ETCD3_VERSION}.tar.gz"))).arg("-C").arg(dir))?;
    let _ = fs::remove_dir_all(&tests);
    fs::rename(&unpacked, &tests).with_context(|| format!("rename {}", unpacked.display()))
}
