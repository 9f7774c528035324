//! Three servers as processes: the leader is killed under load, and all of them at once.

use crate::support::dev::enter;
use crate::support::{BRICKRAFT, Daemon, Netns, command, output, run, text, wait_for};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const HOSTS: [&str; 3] = ["127.0.0.1", "127.0.0.2", "127.0.0.3"];

struct Servers {
    daemons: Vec<Daemon>,
    netns: Netns,
    dir: tempfile::TempDir,
}

impl Servers {
    fn start() -> Self {
        let mut s = Self { daemons: Vec::new(), netns: Netns::new(), dir: tempfile::tempdir().expect("temporary directory") };
        for i in 0..HOSTS.len() {
            let daemon = s.spawn(i);
            s.daemons.push(daemon);
        }
        s.wait_leader(None);
        s
    }

    fn spawn(&self, i: usize) -> Daemon {
        let host = HOSTS[i];
        let cluster: Vec<String> = HOSTS.iter().enumerate().map(|(i, h)| format!("m{i}=http://{h}:2380")).collect();
        let mut c = enter(&self.netns, [BRICKRAFT, "server", "--name", &format!("m{i}"), "--data-dir"]);
        c.arg(self.dir.path().join(format!("m{i}")));
        c.args(["--listen-client-urls", &format!("http://{host}:2379"), "--advertise-client-urls", &format!("http://{host}:2379")]);
        c.args(["--listen-peer-urls", &format!("http://{host}:2380"), "--initial-advertise-peer-urls", &format!("http://{host}:2380")]);
        c.args(["--initial-cluster", &cluster.join(","), "--initial-cluster-state", "new", "--initial-cluster-token", "t"]);
        c.args(["--listen-brick-addr", &format!("{host}:24007")]);
        Daemon::spawn(c, &self.dir.path().join(format!("log{i}")))
    }

    fn etcdctl(&self, endpoint: &str, words: &[&str]) -> std::process::Command {
        let mut c = enter(&self.netns, ["etcdctl", "--command-timeout=10s", &format!("--endpoints={endpoint}")]);
        c.env("ETCDCTL_API", "3").args(words);
        c
    }

    fn leader(&self, among: &[usize]) -> Option<usize> {
        among.iter().copied().find(|&i| {
            let said = output(&mut self.etcdctl(&format!("{}:2379", HOSTS[i]), &["--command-timeout=1s", "endpoint", "status", "--write-out=json"]));
            let json: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap_or_default();
            let status = &json[0]["Status"];
            status["leader"].as_u64().is_some_and(|l| l != 0 && Some(l) == status["header"]["member_id"].as_u64())
        })
    }

    #[track_caller]
    fn wait_leader(&self, without: Option<usize>) -> usize {
        let among: Vec<usize> = (0..HOSTS.len()).filter(|&i| Some(i) != without).collect();
        wait_for("a leader", Duration::from_secs(30), || self.leader(&among))
    }
}

#[test]
fn a_killed_leader_is_replaced_and_nothing_acknowledged_is_lost() {
    let mut servers = Servers::start();
    let old = servers.wait_leader(None);
    let (acknowledged, stop) = (Mutex::new(Vec::new()), AtomicBool::new(false));
    let mut killed_at = Instant::now();
    let new_leader_after = std::thread::scope(|scope| {
        for host in HOSTS {
            let (servers, acknowledged, stop) = (&servers, &acknowledged, &stop);
            scope.spawn(move || {
                for n in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let key = format!("{host}/{n}");
                    if output(&mut servers.etcdctl(&format!("{host}:2379"), &["put", &key, &key])).status.success() {
                        acknowledged.lock().expect("no panic holds it").push((key, Instant::now()));
                    } else {
                        std::thread::sleep(Duration::from_millis(50));
                    }
                }
            });
        }
        wait_for("some load", Duration::from_secs(30), || (acknowledged.lock().expect("lock").len() > 30).then_some(()));
        let pid = servers.daemons[old].pid().to_string();
        run(&mut command(["kill", "-9", &pid]));
        killed_at = Instant::now();
        servers.wait_leader(Some(old));
        let after = killed_at.elapsed();
        std::thread::sleep(Duration::from_secs(1));
        stop.store(true, Ordering::Relaxed);
        after
    });
    let acknowledged = acknowledged.into_inner().expect("lock");
    let first = acknowledged.iter().map(|(_, at)| *at).filter(|at| *at > killed_at).min().expect("nothing was acknowledged after the kill");
    println!("new leader seen after {new_leader_after:?}, first success after {:?}", first - killed_at);
    // Election time-outs are 1 to 2 s and etcdctl's own start takes its time on a busy machine.
    assert!(new_leader_after < Duration::from_secs(4), "no new leader for {new_leader_after:?}");
    servers.daemons[old].kill();
    servers.daemons[old] = servers.spawn(old);
    check_all(&servers, &acknowledged.iter().map(|(k, _)| k.as_str()).collect::<Vec<_>>());
    // All at once, twice.
    for _ in 0..2 {
        for d in &mut servers.daemons {
            d.kill();
        }
        for i in 0..HOSTS.len() {
            servers.daemons[i] = servers.spawn(i);
        }
        servers.wait_leader(None);
        check_all(&servers, &acknowledged.iter().map(|(k, _)| k.as_str()).collect::<Vec<_>>());
    }
}

/// Every member has every key, by reads of its own.
#[track_caller]
fn check_all(servers: &Servers, keys: &[&str]) {
    for host in HOSTS {
        wait_for(&format!("all keys at {host}"), Duration::from_secs(30), || {
            let said = output(&mut servers.etcdctl(&format!("{host}:2379"), &["get", "--prefix", "127.", "--keys-only", "--consistency=s"]));
            let have = text(&said.stdout);
            let have: std::collections::BTreeSet<&str> = have.lines().collect();
            keys.iter().all(|k| have.contains(k)).then_some(())
        });
    }
}

#[test]
fn a_stopped_leader_hands_over_and_wrong_flags_are_refused() {
    let mut servers = Servers::start();
    let old = servers.wait_leader(None);
    assert!(servers.daemons[old].stop(Duration::from_secs(10)), "{}", servers.daemons[old].log());
    let other = format!("{}:2379", HOSTS[(old + 1) % 3]);
    run(&mut servers.etcdctl(&other, &["put", "after", "x"]));

    let refused = |args: &[&str], expect: &str| {
        let mut c = enter(&servers.netns, [BRICKRAFT, "server"]);
        let ended = output(c.args(args));
        let said = text(&ended.stderr);
        assert!(!ended.status.success() && said.contains(expect), "{args:?}: {said}");
        assert!(!said.contains("panicked"), "{said}");
    };
    let dir = servers.dir.path().join("x");
    let dir = dir.to_str().expect("plain path");
    let running = servers.dir.path().join(format!("m{}", (old + 1) % 3));
    refused(&["--data-dir", running.to_str().expect("plain path")], "another server uses this data directory");
    refused(&["--data-dir", dir, "--election-timeout", "300"], "should be at least as 5 times");
    refused(&["--data-dir", dir, "--listen-client-urls", "127.0.0.9:1"], "URL scheme must be");
    refused(&["--data-dir", dir, "--listen-client-urls", "https://127.0.0.9:1"], "must be provided for https://127.0.0.9:1 with HTTPS scheme");
    refused(&["--data-dir", dir, "--initial-cluster", "other=http://127.0.0.9:2380"], "couldn't find local name");
    refused(&["--data-dir", dir, "--listen-peer-urls", &format!("http://{}:2380", HOSTS[(old + 1) % 3])], "Address already in use");
}
