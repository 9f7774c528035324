//! What the whole-system tests share: network namespaces, daemons and clean-up that happens also when a test fails.

#![allow(dead_code, missing_docs, reason = "each test binary uses its own part")]

pub mod dev;

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The binary under test.
pub const BRICKRAFT: &str = env!("CARGO_BIN_EXE_brickraft");

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A name that no other test of this run uses, short enough for a network interface.
pub fn unique(prefix: &str) -> String {
    format!("{prefix}{:x}x{}", std::process::id() & 0xf_ffff, NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Runs a command to its end; panics with everything it said when it fails.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = output(command);
    assert!(output.status.success(), "{command:?} failed: {}\n{}\n{}", output.status, text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// Runs a command to its end, whatever it is.
#[track_caller]
pub fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A command from words.
pub fn command(words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut words = words.into_iter();
    let mut command = Command::new(words.next().expect("a program"));
    command.args(words);
    command
}

/// Waits until `probe` gives something; panics with `what` after `timeout`.
#[track_caller]
pub fn wait_for<T>(what: &str, timeout: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(t) = probe() {
            return t;
        }
        assert!(started.elapsed() < timeout, "{what}: not within {timeout:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A network namespace with its loopback up: the ports of tests that run side by side do not collide.
pub struct Netns {
    pub name: String,
}

impl Netns {
    pub fn new() -> Self {
        let name = unique("br");
        run(&mut command(["ip", "netns", "add", &name]));
        run(&mut command(["ip", "-n", &name, "link", "set", "lo", "up"]));
        Self { name }
    }

    /// A command that runs inside.
    pub fn command(&self, words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
        let mut c = command(["ip", "netns", "exec", &self.name]);
        c.args(words);
        c
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = output(&mut command(["ip", "netns", "del", &self.name]));
    }
}

/// A daemon that ends with the test. `ip netns exec` replaces itself, so the pid is the daemon's own.
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts it with all it says going to `log`.
    #[track_caller]
    pub fn spawn(mut c: Command, log: &Path) -> Self {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(log).expect("open the daemon's log");
        c.stdin(Stdio::null()).stdout(file.try_clone().expect("duplicate")).stderr(file);
        let child = c.spawn().unwrap_or_else(|e| panic!("{c:?}: {e}"));
        Self { child, log: log.into() }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until its log has a line that starts with `start`.
    #[track_caller]
    pub fn wait_line(&mut self, start: &str, timeout: Duration) -> String {
        let log = self.log.clone();
        wait_for(&format!("{start:?} in {}:\n{}", log.display(), tail(&log)), timeout, || {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("the daemon ended ({status}):\n{}", tail(&log));
            }
            let file = std::fs::File::open(&log).ok()?;
            BufReader::new(file).lines().map_while(Result::ok).find(|l| l.starts_with(start))
        })
    }

    /// kill -9.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn signal(&self, signal: &str) {
        let _ = output(&mut command(["kill", &format!("-{signal}"), &self.pid().to_string()]));
    }

    /// SIGTERM, then waits for the end; true when the daemon ended well.
    pub fn stop(&mut self, timeout: Duration) -> bool {
        self.signal("TERM");
        self.ended_well(timeout)
    }

    /// Waits for the end; true when the daemon ended well. Kills it when it does not end.
    pub fn ended_well(&mut self, timeout: Duration) -> bool {
        let started = Instant::now();
        while started.elapsed() < timeout {
            if let Ok(Some(status)) = self.child.try_wait() {
                return status.success();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.kill();
        false
    }

    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|b| text(&b)).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.log.display(), tail(&self.log));
        }
        if self.child.try_wait().ok().flatten().is_none() && !self.stop(Duration::from_secs(10)) {
            eprintln!("{}: had to be killed", self.log.display());
        }
    }
}

fn tail(path: &Path) -> String {
    let all = std::fs::read(path).map(|b| text(&b)).unwrap_or_default();
    let lines: Vec<&str> = all.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

/// Lets fsx (the crate, installed by `cargo xtask setup`) loose on `file`, for `seconds` or BRICKRAFT_FSX_SECONDS; fails with its
/// words when it finds a mismatch. Its reports go to `artifacts`.
#[track_caller]
pub fn fsx(file: &Path, artifacts: &Path, seconds: u64) {
    let fsx = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin/fsx");
    assert!(fsx.exists(), "{} is missing: run `cargo xtask setup`", fsx.display());
    let seconds = std::env::var("BRICKRAFT_FSX_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(seconds);
    let seed = std::process::id().to_string();
    let mut c = command(["timeout", &seconds.to_string()]);
    c.arg(&fsx).args(["-q", "-S", &seed, "-P"]).arg(artifacts).arg(file);
    let ended = output(&mut c);
    // timeout(1) says 124 when fsx was still content at the end.
    assert_eq!(ended.status.code(), Some(124), "fsx -S {seed}: {}\n{}{}", ended.status, text(&ended.stdout), text(&ended.stderr));
}

/// Unmounts when dropped, whatever became of the test.
pub struct Unmount(pub PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        for _ in 0..50 {
            let mounts = std::fs::read_to_string("/proc/thread-self/mounts").unwrap_or_default();
            if !mounts.lines().any(|l| l.split(' ').nth(1) == self.0.to_str()) {
                return;
            }
            let _ = output(&mut command(["umount", "-l", self.0.to_str().expect("plain path")]));
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
