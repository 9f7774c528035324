//! Servers as processes in one network namespace, each at a loopback address of its own, with flags as a test wants.

use crate::support::dev::enter;
use crate::support::{BRICKRAFT, Daemon, Netns, output, run, text, wait_for};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// How long a machine that does other things may take for anything.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Servers {
    // Dropped first.
    pub daemons: BTreeMap<usize, Daemon>,
    pub netns: Netns,
    pub dir: tempfile::TempDir,
}

pub fn host(i: usize) -> String {
    format!("127.0.0.{}", i + 1)
}

pub fn client(i: usize) -> String {
    format!("http://{}:2379", host(i))
}

pub fn peer(i: usize) -> String {
    format!("http://{}:2380", host(i))
}

/// `m0=http://...,m1=http://...`
pub fn cluster(members: &[usize]) -> String {
    members.iter().map(|&i| format!("m{i}={}", peer(i))).collect::<Vec<_>>().join(",")
}

impl Servers {
    pub fn new() -> Self {
        Self { daemons: BTreeMap::new(), netns: Netns::new(), dir: tempfile::tempdir().expect("temporary directory") }
    }

    /// A new cluster of so many.
    pub fn cluster(count: usize) -> Self {
        let mut s = Self::new();
        let members: Vec<usize> = (0..count).collect();
        for &i in &members {
            s.start(i, &["--initial-cluster", &cluster(&members)]);
        }
        s.wait_leader(&members);
        s
    }

    pub fn data(&self, i: usize) -> PathBuf {
        self.dir.path().join(format!("m{i}"))
    }

    /// The command that runs server `i`.
    pub fn server(&self, i: usize, flags: &[&str]) -> Command {
        let mut c = enter(&self.netns, [BRICKRAFT, "server", "--name", &format!("m{i}"), "--data-dir"]);
        c.arg(self.data(i));
        c.args(["--listen-client-urls", &client(i), "--advertise-client-urls", &client(i)]);
        c.args(["--listen-peer-urls", &peer(i), "--initial-advertise-peer-urls", &peer(i)]);
        c.args(["--listen-brick-addr", &format!("{}:24007", host(i))]).args(flags);
        c
    }

    /// The same, called as `etcd`.
    pub fn etcd(&self, i: usize, flags: &[&str]) -> Command {
        let link = self.dir.path().join("etcd");
        let _ = std::os::unix::fs::symlink(BRICKRAFT, &link);
        let mut c = enter(&self.netns, [link.as_os_str()]);
        c.args(["--name", &format!("m{i}"), "--data-dir"]).arg(self.data(i));
        c.args(["--listen-client-urls", &client(i), "--advertise-client-urls", &client(i)]);
        c.args(["--listen-peer-urls", &peer(i), "--initial-advertise-peer-urls", &peer(i)]).args(flags);
        c
    }

    pub fn start_etcd(&mut self, i: usize, flags: &[&str]) {
        let daemon = Daemon::spawn(self.etcd(i, flags), &self.dir.path().join(format!("log{i}")));
        self.daemons.insert(i, daemon);
    }

    pub fn start(&mut self, i: usize, flags: &[&str]) {
        let daemon = Daemon::spawn(self.server(i, flags), &self.dir.path().join(format!("log{i}")));
        self.daemons.insert(i, daemon);
    }

    pub fn kill(&mut self, i: usize) {
        if let Some(mut daemon) = self.daemons.remove(&i) {
            daemon.kill();
        }
    }

    pub fn stop(&mut self, i: usize) {
        let mut daemon = self.daemons.remove(&i).expect("it runs");
        assert!(daemon.stop(Duration::from_secs(30)), "{}", daemon.log());
    }

    pub fn etcdctl(&self, i: usize, words: &[&str]) -> Command {
        let mut c = enter(&self.netns, ["etcdctl", "--command-timeout=10s", &format!("--endpoints={}", client(i))]);
        c.env("ETCDCTL_API", "3").args(words);
        c
    }

    /// An etcdctl command that must succeed.
    #[track_caller]
    pub fn ctl(&self, i: usize, words: &[&str]) -> String {
        run(&mut self.etcdctl(i, words))
    }

    /// An etcdctl command that succeeds sooner or later.
    #[track_caller]
    pub fn ctl_in_time(&self, i: usize, words: &[&str]) -> String {
        wait_for(&format!("{words:?} at m{i}"), PATIENCE, || {
            let said = output(&mut self.etcdctl(i, words));
            said.status.success().then(|| text(&said.stdout))
        })
    }

    /// An etcdctl command that must be refused with this text.
    #[track_caller]
    pub fn ctl_refused(&self, i: usize, words: &[&str], expect: &str) {
        let said = output(&mut self.etcdctl(i, words));
        let all = text(&said.stdout) + &text(&said.stderr);
        assert!(!said.status.success() && all.contains(expect), "{words:?}: expected {expect:?}: {all}");
    }

    pub fn brickraft(&self, words: &[&str]) -> Command {
        let mut c = enter(&self.netns, [BRICKRAFT]);
        c.args(words);
        c
    }

    #[track_caller]
    pub fn brickraft_refused(&self, words: &[&str], expect: &str) {
        let said = output(&mut self.brickraft(words));
        let all = text(&said.stdout) + &text(&said.stderr);
        assert!(!said.status.success() && all.contains(expect) && !all.contains("panicked"), "{words:?}: expected {expect:?}: {all}");
    }

    pub fn status(&self, i: usize) -> Value {
        let said = output(&mut self.etcdctl(i, &["--command-timeout=1s", "endpoint", "status", "--write-out=json"]));
        let json: Value = serde_json::from_slice(&said.stdout).unwrap_or_default();
        json[0]["Status"].clone()
    }

    #[track_caller]
    pub fn wait_leader(&self, among: &[usize]) -> usize {
        wait_for("a leader", PATIENCE, || {
            among.iter().copied().find(|&i| {
                let status = self.status(i);
                status["leader"].as_u64().is_some_and(|l| l != 0 && Some(l) == status["header"]["member_id"].as_u64())
            })
        })
    }

    pub fn members(&self, i: usize) -> Vec<Value> {
        let json: Value = serde_json::from_str(&self.ctl_in_time(i, &["member", "list", "--write-out=json"])).expect("json");
        json["members"].as_array().cloned().unwrap_or_default()
    }

    /// The id of the member of that name, as etcdctl wants it.
    pub fn id(&self, via: usize, name: &str) -> String {
        let members = self.members(via);
        let found =
            members.iter().find(|m| m["name"].as_str().unwrap_or_default() == name).unwrap_or_else(|| panic!("{name} in {members:?}"));
        format!("{:x}", found["ID"].as_u64().expect("an id"))
    }

    /// The values under `prefix` as member `i` itself has them, once there are `count`.
    #[track_caller]
    pub fn wait_keys(&self, i: usize, prefix: &str, count: usize) {
        wait_for(&format!("{count} keys at m{i}"), PATIENCE, || {
            let said = output(&mut self.etcdctl(i, &["get", "--prefix", prefix, "--keys-only", "--consistency=s"]));
            (text(&said.stdout).lines().filter(|l| !l.is_empty()).count() == count).then_some(())
        });
    }
}
