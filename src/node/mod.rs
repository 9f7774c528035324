//! A server: a member of the coordination store on one thread, the bricks and the management port on another.

mod admin;
pub mod bricks;
mod clients;
pub mod cluster;
mod compactor;
pub mod config;
pub(crate) mod join;
pub mod keeper;
mod member;
mod peers;
mod process;
mod removal;
pub mod restore;
pub mod tls;
pub mod url;
mod volumes;

pub use config::ServerConfig;

use admin::Admin;
use anyhow::{Context, Result, anyhow, bail};
use brickraft_engine::member::{Clock, MemberHandle};
use bricks::Bricks;
use cluster::Cluster;
use member::Started;
use std::fs::File;
use std::path::Path;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::{LocalOptions, LocalRuntime};
use tokio::sync::{Notify, watch};

/// How long bricks may take to leave their groups at a stop.
const LEAVE: Duration = Duration::from_secs(3);

/// Why a server ended by itself.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// It has to start anew, as a member of the cluster that probed it.
    Restart,
    /// It was told to stop.
    Stopped,
    /// It cannot go on.
    Failed(String),
}

/// A running server.
pub struct Node {
    started: Started,
    stop_bricks: watch::Sender<bool>,
    stop_member: watch::Sender<bool>,
    ended: mpsc::Receiver<Ended>,
    threads: Vec<JoinHandle<()>>,
    _lock: File,
}

impl Node {
    /// Starts a server; returns once its ports answer.
    ///
    /// # Errors
    /// What keeps it from starting: a port in use, a data directory of somebody else, a damaged log, ...
    pub fn start(config: &ServerConfig) -> Result<Self> {
        config.check()?;
        let lock = lock(&config.data_dir)?;
        let (ended_tx, ended) = mpsc::channel();
        let (stop_member, stop_member_rx) = watch::channel(false);
        let (stop_bricks, stop_bricks_rx) = watch::channel(false);
        let mut threads = Vec::new();

        let (tx, rx) = mpsc::sync_channel(1);
        let (member_config, ended_member) = (config.clone(), ended_tx.clone());
        threads.push(spawn(&config.name, "member", move || {
            let result = member::run(&member_config, Clock::start(), &tx, stop_member_rx);
            if let Err(e) = result {
                // Before the start is told, the starter gets it; after, whoever waits.
                let text = format!("{e:#}");
                let _ = tx.send(Err(e));
                let _ = ended_member.send(Ended::Failed(text));
            }
        })?);
        let started = rx.recv().unwrap_or_else(|_| Err(anyhow!("the member's thread ended")))?;

        let mut node = Self { started, stop_bricks, stop_member, ended, threads, _lock: lock };
        if let Some(address) = config.listen_brick.clone() {
            node.start_bricks(config, address, stop_bricks_rx, ended_tx)?;
        }
        Ok(node)
    }

    fn start_bricks(
        &mut self,
        config: &ServerConfig,
        address: String,
        stop: watch::Receiver<bool>,
        ended: mpsc::Sender<Ended>,
    ) -> Result<()> {
        let (tx, rx) = mpsc::sync_channel(1);
        let (config, member) = (config.clone(), self.started.clone());
        let name = config.name.clone();
        self.threads.push(spawn(&name, "bricks", move || {
            if let Err(e) = run_bricks(&config, &address, member, &tx, stop, &ended) {
                let text = format!("{e:#}");
                let _ = tx.send(Err(e));
                let _ = ended.send(Ended::Failed(text));
            }
        })?);
        let started = rx.recv().unwrap_or_else(|_| Err(anyhow!("the bricks' thread ended")));
        if started.is_err() {
            self.halt();
        }
        started
    }

    /// The member of the coordination store.
    #[must_use]
    pub fn member(&self) -> &MemberHandle {
        &self.started.handle
    }

    /// Waits until the server ends by itself.
    #[must_use]
    pub fn wait(&self, timeout: Duration) -> Option<Ended> {
        match self.ended.recv_timeout(timeout) {
            Ok(ended) => Some(ended),
            Err(mpsc::RecvTimeoutError::Timeout) => None,
            Err(mpsc::RecvTimeoutError::Disconnected) => Some(Ended::Stopped),
        }
    }

    /// Stops in good order: bricks leave their groups, leadership moves, the store is checkpointed.
    pub fn stop(mut self) {
        self.halt();
    }

    /// As [`Node::stop`], in two steps for several servers in one process: the bricks of all must be out of
    /// their groups before the first member goes.
    pub fn stop_bricks(&mut self) {
        let _ = self.stop_bricks.send(true);
        if self.threads.len() > 1
            && let Some(thread) = self.threads.pop()
        {
            let _ = thread.join();
        }
    }

    fn halt(&mut self) {
        self.stop_bricks();
        let _ = self.stop_member.send(true);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.halt();
    }
}

fn spawn(name: &str, role: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new().name(format!("{role}-{name}")).spawn(body).with_context(|| format!("start the {role} thread"))
}

/// Two servers on one data directory would destroy each other's log.
fn lock(data_dir: &Path) -> Result<File> {
    std::fs::create_dir_all(data_dir).with_context(|| format!("create the data directory {} (--data-dir)", data_dir.display()))?;
    let path = data_dir.join("lock");
    let file = File::create(&path).with_context(|| format!("open {}", path.display()))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => bail!("{}: another server uses this data directory (--data-dir)", data_dir.display()),
        Err(e) => Err(e).with_context(|| format!("lock {}", path.display())),
    }
}

/// A thread's runtime. Its tasks need not be `Send`, and are the runtime's own: those of a `LocalSet` are woken by way of the
/// future that the runtime blocks on, which is a system call for each socket that becomes ready.
fn local_runtime() -> std::io::Result<LocalRuntime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build_local(LocalOptions::default())
}

fn run_bricks(
    config: &ServerConfig,
    address: &str,
    member: Started,
    started: &mpsc::SyncSender<Result<()>>,
    mut stop: watch::Receiver<bool>,
    ended: &mpsc::Sender<Ended>,
) -> Result<()> {
    let runtime = local_runtime().context("start the bricks' runtime")?;
    runtime.block_on(async {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("listen on {address} for bricks and management (--listen-brick-addr)"))?;
        let cluster = Cluster::follow(member.handle.clone());
        let bricks = Bricks::start(member.id, cluster.clone());
        let restart = Rc::new(Notify::new());
        let admin = Rc::new(Admin {
            config: config.clone(),
            node: member.id,
            cluster_id: member.cluster_id,
            cluster: cluster.clone(),
            bricks: bricks.clone(),
            restart: restart.clone(),
            one_at_a_time: tokio::sync::Mutex::new(()),
        });
        let serve = clients::serve(listener, bricks.clone(), admin);
        let keep = keeper::run(config.clone(), member.id, cluster, bricks.clone());
        let _ = started.send(Ok(()));
        tokio::select! {
            () = serve => {}
            () = keep => {}
            () = restart.notified() => {
                let _ = ended.send(Ended::Restart);
                return Ok(());
            }
            _ = stop.wait_for(|&stop| stop) => {}
        }
        // Other bricks and mounts must still get answers while the bricks leave; the tasks of open connections do that.
        bricks.stop(LEAVE).await;
        Ok(())
    })
}
