//! The binary under the name `etcd`, and three members of it on the ports that suites expect.

use crate::support::dev::enter;
use crate::support::{BRICKRAFT, Daemon, Netns, run, wait_for};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The suites, where `cargo xtask setup` puts them.
pub fn suites() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/suites")
}

/// A directory that holds `etcd`, to be put into PATH.
pub fn etcd_in(dir: &Path) -> PathBuf {
    let bin = dir.join("bin");
    std::fs::create_dir_all(&bin).expect("directory");
    std::os::unix::fs::symlink(BRICKRAFT, bin.join("etcd")).expect("link");
    bin
}

/// Three members; clients find the first where etcd's defaults are.
pub struct Members {
    // Dropped in this order.
    _daemons: Vec<Daemon>,
    pub netns: Netns,
    _dir: tempfile::TempDir,
}

const PORTS: [u16; 3] = [2379, 22379, 32379];

impl Members {
    pub fn start(more: &[&str]) -> Self {
        let (netns, dir) = (Netns::new(), tempfile::tempdir().expect("temporary directory"));
        let etcd = etcd_in(dir.path()).join("etcd");
        let cluster: Vec<String> = PORTS.iter().map(|p| format!("m{p}=http://127.0.0.1:{}", p + 1)).collect();
        let mut daemons: Vec<Daemon> = PORTS
            .iter()
            .map(|port| {
                let mut c = enter(&netns, [etcd.as_os_str()]);
                let client = format!("http://127.0.0.1:{port}");
                let peer = format!("http://127.0.0.1:{}", port + 1);
                c.args(["-name", &format!("m{port}"), "--data-dir"]).arg(dir.path().join(port.to_string()));
                c.args(["--listen-client-urls", &client, &format!("--advertise-client-urls={client}")]);
                c.args(["--listen-peer-urls", &peer, "-initial-advertise-peer-urls", &peer]);
                c.args(["--initial-cluster", &cluster.join(","), "--initial-cluster-token=suites"]).args(more);
                Daemon::spawn(c, &dir.path().join(format!("log{port}")))
            })
            .collect();
        for daemon in &mut daemons {
            daemon.wait_line("ready to serve client requests", Duration::from_secs(60));
        }
        Self { _daemons: daemons, netns, _dir: dir }
    }

    fn etcdctl(&self, words: &[&str]) -> String {
        run(enter(&self.netns, ["etcdctl"]).env("ETCDCTL_API", "3").args(words))
    }

    /// Makes the first member lead: one test asks it to hand leadership over, which only a leader can.
    pub fn let_the_first_lead(&self) {
        wait_for("the first member to lead", Duration::from_secs(20), || {
            let status = self.etcdctl(&["--endpoints=127.0.0.1:2379", "endpoint", "status", "--write-out=json"]);
            let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
            let (id, leader) = (status[0]["Status"]["header"]["member_id"].as_u64()?, status[0]["Status"]["leader"].as_u64()?);
            if id == leader {
                return Some(());
            }
            let all = PORTS.map(|p| format!("127.0.0.1:{p}")).join(",");
            self.etcdctl(&[&format!("--endpoints={all}"), "move-leader", &format!("{id:x}")]);
            None
        });
    }
}

/// Compares what failed with what is known to fail, and why. Something known that passes is told and no failure: the
/// list is then to be shortened.
#[track_caller]
pub fn judge(suite: &str, passed: usize, passed_min: usize, failed: &[String], known: &[(&str, &str)], said: &str) {
    let unknown: Vec<&String> = failed.iter().filter(|f| !known.iter().any(|(name, _)| name == f)).collect();
    for (name, why) in known {
        let word = if failed.iter().any(|f| f == name) { "fails, as known" } else { "passes now, take it off the list" };
        println!("{suite}: {name} {word} ({why})");
    }
    println!("{suite}: {passed} passed, {} failed", failed.len());
    assert!(unknown.is_empty(), "{suite}: {unknown:?} failed\n{said}");
    assert!(passed >= passed_min, "{suite}: only {passed} passed\n{said}");
}
