//! A `brickraft dev` in a network namespace of its own, its mount visible here.

use super::{BRICKRAFT, Daemon, Netns, Unmount, command, output, run, text};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// How long the cluster may take to be ready on a busy machine.
const READY: Duration = Duration::from_secs(90);

pub struct Dev {
    // Dropped in this order: the daemon unmounts, then what is left is unmounted, then the directories go.
    pub daemon: Daemon,
    _unmount: Unmount,
    pub netns: Netns,
    pub dir: tempfile::TempDir,
}

impl Dev {
    pub fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("brickraft-dev-").tempdir().expect("temporary directory");
        let netns = Netns::new();
        let daemon = Self::spawn(&netns, &dir);
        Self { _unmount: Unmount(dir.path().join("data/mnt")), daemon, netns, dir }
    }

    fn spawn(netns: &Netns, dir: &tempfile::TempDir) -> Daemon {
        let log = dir.path().join("log");
        let _ = std::fs::remove_file(&log);
        // Only the network is the namespace's: a mount made under `ip netns exec` would not be seen here.
        let mut c = enter(netns, [BRICKRAFT, "dev", "--dir"]);
        c.arg(dir.path().join("data"));
        let mut daemon = Daemon::spawn(c, &log);
        daemon.wait_line("ready", READY);
        daemon
    }

    /// Stops it as Ctrl-C does; it must end well.
    #[track_caller]
    pub fn stop(&mut self) {
        self.daemon.signal("INT");
        assert!(self.daemon.ended_well(Duration::from_secs(30)), "dev did not stop well:\n{}", self.daemon.log());
    }

    /// Starts it again on the same data.
    pub fn start_again(&mut self) {
        self.daemon = Self::spawn(&self.netns, &self.dir);
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn mnt(&self) -> PathBuf {
        self.data().join("mnt")
    }

    pub fn brick(&self, n: usize) -> PathBuf {
        self.data().join(format!("brick-{n}"))
    }

    /// A command in the cluster's network.
    pub fn command(&self, words: impl IntoIterator<Item = impl AsRef<std::ffi::OsStr>>) -> Command {
        enter(&self.netns, words)
    }

    /// `brickraft WORDS...`; its standard output.
    #[track_caller]
    pub fn brickraft(&self, words: &[&str]) -> String {
        let mut c = self.command([BRICKRAFT]);
        run(c.args(words))
    }

    /// `etcdctl WORDS...` against all members.
    pub fn etcdctl(&self, words: &[&str]) -> Command {
        self.etcdctl_at("127.0.0.1:2379,127.0.0.2:2379,127.0.0.3:2379", words)
    }

    pub fn etcdctl_at(&self, endpoints: &str, words: &[&str]) -> Command {
        let mut c = self.command(["etcdctl"]);
        c.env("ETCDCTL_API", "3").arg(format!("--endpoints={endpoints}")).args(words);
        c
    }

    /// Waits until both bricks are in sync, then compares them: names, contents, owners, modes, times, links.
    #[track_caller]
    pub fn assert_bricks_equal(&self) {
        super::wait_for("both bricks in sync", Duration::from_secs(60), || {
            let status = self.brickraft(&["volume", "status", "dev"]);
            (status.contains("primary") && status.contains("in sync")).then_some(())
        });
        let rsync = output(&mut command(["rsync", "-naHAXc", "--delete", "--itemize-changes", "--exclude=/.brickraft", "--filter=-x trusted.brickraft.*", &format!("{}/", self.brick(1).display()), &format!("{}/", self.brick(2).display())]));
        assert!(rsync.status.success(), "{}", text(&rsync.stderr));
        let differ: String = text(&rsync.stdout);
        assert_eq!(differ, "", "the bricks differ");
    }
}

/// A command with the network of `netns` and everything else of ours.
pub fn enter(netns: &Netns, words: impl IntoIterator<Item = impl AsRef<std::ffi::OsStr>>) -> Command {
    let mut c = command(["nsenter", &format!("--net=/run/netns/{}", netns.name)]);
    c.args(words);
    c
}
