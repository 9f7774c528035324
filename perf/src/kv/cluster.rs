//! Three members of one system on loopback, in a temporary directory.

use super::grpc::{CallError, Connection};
use crate::proc;
use anyhow::{Context, Result, bail, ensure};
use brickraft_net::etcd::pb::etcdserverpb as pb;
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Members of each cluster.
pub(crate) const MEMBERS: usize = 3;
/// How long a cluster may take to answer.
const START_MAX: Duration = Duration::from_secs(60);
/// How long one question of ours may take before it is asked anew.
const ASK_MAX: Duration = Duration::from_secs(3);
/// How long a member may take to end after SIGTERM.
const STOP_MAX: Duration = Duration::from_secs(20);

/// Whose servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum System {
    /// etcd, or another build of ours.
    Peer,
    Ours,
}

impl System {
    pub(crate) const BOTH: [Self; 2] = [Self::Peer, Self::Ours];
}

/// Where the programs are, and where data may lie.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) peer: PathBuf,
    pub(crate) peer_is_etcd: bool,
    pub(crate) brickraft: PathBuf,
    pub(crate) data: PathBuf,
}

impl Programs {
    /// What the table calls a system.
    pub(crate) fn name(&self, system: System) -> &'static str {
        match system {
            System::Peer if self.peer_is_etcd => "etcd",
            System::Peer => "before",
            System::Ours => "brickraft",
        }
    }
}

struct Ports {
    client: u16,
    peer: u16,
    brick: u16,
}

/// Three running servers; dropping kills them and removes their data.
pub(crate) struct Cluster {
    name: &'static str,
    is_etcd: bool,
    program: PathBuf,
    dir: TempDir,
    ports: Vec<Ports>,
    children: Vec<Option<Child>>,
}

fn free_ports(count: usize) -> Result<Vec<u16>> {
    // All are held until all are known, so that they differ.
    let held: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>().context("find free ports")?;
    held.iter().map(|l| Ok(l.local_addr()?.port())).collect()
}

impl Cluster {
    /// Starts three members and waits until all answer. Must be called inside a `LocalSet`.
    pub(crate) async fn start(system: System, programs: &Programs) -> Result<Self> {
        std::fs::create_dir_all(&programs.data).with_context(|| format!("create {}", programs.data.display()))?;
        let dir = tempfile::Builder::new().prefix(programs.name(system)).tempdir_in(&programs.data).context("make a data directory")?;
        let ports = free_ports(3 * MEMBERS)?.chunks(3).map(|p| Ports { client: p[0], peer: p[1], brick: p[2] }).collect();
        let program = match system {
            System::Peer => programs.peer.clone(),
            System::Ours => programs.brickraft.clone(),
        };
        let is_etcd = system == System::Peer && programs.peer_is_etcd;
        let children = (0..MEMBERS).map(|_| None).collect();
        let mut cluster = Self { name: programs.name(system), is_etcd, program, dir, ports, children };
        for member in 0..MEMBERS {
            cluster.launch(member)?;
        }
        cluster.ready().await?;
        Ok(cluster)
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where clients reach a member.
    pub(crate) fn address(&self, member: usize) -> String {
        format!("127.0.0.1:{}", self.ports[member].client)
    }

    fn log_path(&self, member: usize) -> PathBuf {
        self.dir.path().join(format!("m{member}.log"))
    }

    /// Starts the process of one member.
    pub(crate) fn launch(&mut self, member: usize) -> Result<()> {
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let ports = &self.ports[member];
        let initial: Vec<String> = self.ports.iter().enumerate().map(|(i, p)| format!("m{i}={}", url(p.peer))).collect();
        let log = File::options().create(true).append(true).open(self.log_path(member)).context("open a server's log")?;
        let mut command = Command::new(&self.program);
        if !self.is_etcd {
            command.args(["server", "--listen-brick-addr", &format!("127.0.0.1:{}", ports.brick)]);
        }
        command
            .args(["--name", &format!("m{member}")])
            .arg("--data-dir")
            .arg(self.dir.path().join(format!("m{member}")))
            .args(["--listen-client-urls", &url(ports.client), "--advertise-client-urls", &url(ports.client)])
            .args(["--listen-peer-urls", &url(ports.peer), "--initial-advertise-peer-urls", &url(ports.peer)])
            .args(["--initial-cluster", &initial.join(","), "--initial-cluster-token", "perf"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("open a server's log")?)
            .stderr(log);
        // Default settings, whatever the caller's environment says.
        for (name, _) in std::env::vars().filter(|(n, _)| n.starts_with("ETCD_") || n.starts_with("BRICKRAFT_")) {
            command.env_remove(name);
        }
        self.children[member] = Some(command.spawn().with_context(|| format!("start {}", self.program.display()))?);
        Ok(())
    }

    /// Waits until every member answers a linearizable read, and all name one leader.
    pub(crate) async fn ready(&mut self) -> Result<()> {
        for member in 0..MEMBERS {
            self.answers(member).await?;
        }
        self.leader().await.map(|_| ())
    }

    /// Waits until a member answers a linearizable read.
    pub(crate) async fn answers(&mut self, member: usize) -> Result<()> {
        let started = Instant::now();
        let mut last = String::new();
        while started.elapsed() < START_MAX {
            if let Some(child) = &mut self.children[member]
                && let Some(status) = child.try_wait().context("look after a server")?
            {
                let log = std::fs::read_to_string(self.log_path(member)).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(5).collect();
                bail!("{} m{member} ended ({status}): {}", self.name, tail.into_iter().rev().collect::<Vec<_>>().join(" | "));
            }
            match tokio::time::timeout(ASK_MAX, read_one(&self.address(member))).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(e)) => last = e.to_string(),
                Err(_) => last = "no answer".into(),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bail!("{} m{member} does not answer: {last}", self.name)
    }

    /// The member that leads, and its term.
    pub(crate) async fn leader(&self) -> Result<(usize, u64)> {
        let started = Instant::now();
        while started.elapsed() < START_MAX {
            for member in 0..MEMBERS {
                let answer = tokio::time::timeout(ASK_MAX, status(&self.address(member))).await;
                if let Ok(Ok(status)) = answer
                    && status.leader != 0
                    && status.header.as_ref().is_some_and(|h| h.member_id == status.leader)
                {
                    return Ok((member, status.raft_term));
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("{}: no leader", self.name)
    }

    /// The processes that run.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.children.iter().flatten().map(Child::id).collect()
    }

    pub(crate) fn cpu_us(&self) -> Result<u64> {
        proc::cpu_us(&self.pids())
    }

    pub(crate) fn memory(&self) -> Result<proc::Memory> {
        proc::memory(&self.pids())
    }

    /// Ends a member at once, as kill -9 does.
    pub(crate) fn kill(&mut self, member: usize) -> Result<()> {
        if let Some(mut child) = self.children[member].take() {
            child.kill().context("kill a server")?;
            child.wait().context("wait for a killed server")?;
        }
        Ok(())
    }

    /// Ends a member in good order.
    pub(crate) async fn terminate(&mut self, member: usize) -> Result<()> {
        let Some(mut child) = self.children[member].take() else { return Ok(()) };
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).context("stop a server")?;
        let started = Instant::now();
        while child.try_wait().context("wait for a server")?.is_none() {
            if started.elapsed() > STOP_MAX {
                child.kill().context("kill a server")?;
                child.wait().context("wait for a killed server")?;
                bail!("{} m{member} did not end within {} s of SIGTERM", self.name, STOP_MAX.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// A connection to each of `count` places: all to the leader where there is one only, else to all members in turn.
    pub(crate) async fn connect(&self, count: usize) -> Result<Vec<Connection>> {
        let first = if count == 1 { self.leader().await?.0 } else { 0 };
        let mut connections = Vec::with_capacity(count);
        for i in 0..count {
            let address = self.address((first + i) % MEMBERS);
            connections.push(Connection::open(&address).await.with_context(|| format!("connect to {address}"))?);
        }
        ensure!(!connections.is_empty(), "no connections asked for");
        Ok(connections)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.children.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

async fn read_one(address: &str) -> Result<(), CallError> {
    let mut connection = Connection::open(address).await?;
    let endpoint = connection.method("/etcdserverpb.KV/Range");
    let request = pb::RangeRequest { key: "probe".into(), ..Default::default() };
    connection.unary::<_, pb::RangeResponse>(&endpoint, &request).await.map(|_| ())
}

async fn status(address: &str) -> Result<pb::StatusResponse, CallError> {
    let mut connection = Connection::open(address).await?;
    let endpoint = connection.method("/etcdserverpb.Maintenance/Status");
    connection.unary(&endpoint, &pb::StatusRequest::default()).await
}
