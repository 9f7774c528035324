//! Answers management questions: the entry, and what concerns one server or its bricks.

use super::bricks::{Bricks, on_root_file_system};
use super::cluster::Cluster;
use super::config::{ServerConfig, port_of, url_address};
use super::url::Url;
use super::join::{self, JoinFile};
use crate::management::{Ask, RunningBrick, Whoami, ask_async};
use crate::records::ClusterView;
use anyhow::{Context, Result, anyhow, bail, ensure};
use brickraft_engine::kv::types::Keyspace;
use brickraft_engine::types::NodeId;
use brickraft_fs::replica::BrickId;
use brickraft_fs::store::{BrickMeta, DirStore, StoreError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::{Component, Path};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;

/// How long another server may take to answer a question that an operator waits for.
pub(super) const PEER_ANSWER: Duration = Duration::from_secs(10);
/// How long one may take to say that it is there.
pub(super) const PEER_ALIVE: Duration = Duration::from_millis(1500);

/// How long a brick that was told to stop may take to close; less than [`PEER_ANSWER`].
const BRICK_CLOSES: Duration = Duration::from_secs(5);

/// What the management port works with.
pub struct Admin {
    pub(super) config: ServerConfig,
    pub(super) node: NodeId,
    pub(super) cluster_id: u64,
    pub(super) cluster: Cluster,
    pub(super) bricks: Rc<Bricks>,
    /// Set when the server must start anew as a member of another cluster.
    pub(super) restart: Rc<Notify>,
    /// Peer and volume changes run one at a time on a server; across servers the store's transactions order them.
    pub(super) one_at_a_time: tokio::sync::Mutex<()>,
}

fn value(v: impl Serialize) -> Result<Value> {
    Ok(serde_json::to_value(v)?)
}

impl Admin {
    /// The answer, or the text of the refusal. `seen_by` is our address as the asker uses it.
    pub async fn answer(&self, ask: Ask, seen_by: SocketAddr) -> Result<Value, String> {
        let changes = matches!(
            ask,
            Ask::PeerProbe { .. }
                | Ask::PeerDetach { .. }
                | Ask::VolumeCreate { .. }
                | Ask::VolumeStart { .. }
                | Ask::VolumeStop { .. }
                | Ask::VolumeDelete { .. }
        );
        let _guard = if changes { Some(self.one_at_a_time.lock().await) } else { None };
        self.dispatch(ask, seen_by).await.map_err(|e| format!("{e:#}"))
    }

    async fn dispatch(&self, ask: Ask, seen_by: SocketAddr) -> Result<Value> {
        match ask {
            Ask::PeerProbe { host } => self.peer_probe(&host).await,
            Ask::PeerDetach { host, force } => self.peer_detach(&host, force).await,
            Ask::PeerStatus | Ask::PoolList => value(self.peers().await?),
            Ask::VolumeCreate { name, replica, bricks, force } => self.volume_create(&name, replica, &bricks, force).await,
            Ask::VolumeStart { name } => self.volume_start(&name).await,
            Ask::VolumeStop { name } => self.volume_stop(&name).await,
            Ask::VolumeDelete { name } => self.volume_delete(&name).await,
            Ask::VolumeList => value(self.cluster.read().await?.volumes.keys().collect::<Vec<_>>()),
            Ask::VolumeInfo { name } => value(self.volume_info(name.as_deref()).await?),
            Ask::VolumeStatus { name } => value(self.volume_status(name.as_deref()).await?),
            Ask::VolumeHeal { name, full } => value(self.volume_heal(&name, full).await?),
            Ask::VolumeHealInfo { name } => value(self.volume_heal_info(&name).await?),
            Ask::VolumeScrub { name } => value(self.volume_scrub(&name).await?),
            Ask::VolumeView { name } => value(self.volume_view(&name)?),
            Ask::Whoami => value(self.whoami().await?),
            Ask::Join(request) => self.join(&request, seen_by).await,
            Ask::BrickPrepare { volume, brick, path, force } => brick_prepare(&volume, brick, &path, force),
            Ask::BrickRelease { volume, brick, path } => brick_release(&volume, brick, &path).await,
            Ask::BrickAdmin { brick, request } => value(self.bricks.admin(brick, request).await.context("the brick does not run here")?),
            Ask::BrickStatus => {
                let port = self.config.listen_brick.as_deref().map_or(0, port_of);
                let bricks = self.bricks.status().into_iter().map(|(id, state)| RunningBrick {
                    id,
                    incarnation: *state.as_ref().unwrap_or(&0),
                    error: state.err(),
                    pid: std::process::id(),
                    port,
                });
                value(bricks.collect::<Vec<_>>())
            }
        }
    }

    /// Asks a server, without the network when it is this one.
    pub(super) async fn ask_node<T: DeserializeOwned>(&self, view: &ClusterView, node: NodeId, ask: Ask, timeout: Duration) -> Result<T> {
        if node == self.node {
            // Boxed: a question to ourselves is a question within a question.
            let answer = Box::pin(self.dispatch(ask, SocketAddr::from(([127, 0, 0, 1], 0)))).await?;
            return Ok(serde_json::from_value(answer)?);
        }
        let address = view.nodes.get(&node).map(|n| n.address.clone()).with_context(|| format!("server {:016x} is not known", node.0))?;
        Ok(ask_async(&address, &ask, timeout).await?)
    }

    async fn whoami(&self) -> Result<Whoami> {
        let members = self.cluster.member().last_status().membership;
        let store = self.cluster.member().store();
        let view = self.cluster.view();
        let empty = view.volumes.is_empty() && store.revision(Keyspace::User).0 <= 1 && members.ids().count() <= 1;
        let first = |urls: &[Url]| urls.first().map_or(0, Url::port);
        Ok(Whoami {
            member_id: self.node,
            cluster_id: self.cluster_id,
            members: members.ids().count(),
            empty,
            peer_port: first(&self.config.listen_peer),
            client_port: first(&self.config.listen_client),
            peer_urls: reachable_urls(&self.config.advertise_peer_urls, &self.config.listen_peer),
            client_urls: reachable_urls(&self.config.advertise_client_urls, &self.config.listen_client),
        })
    }

    async fn join(&self, request: &crate::management::JoinRequest, seen_by: SocketAddr) -> Result<Value> {
        let me = self.whoami().await?;
        ensure!(me.cluster_id != request.cluster_id, "already a member of this cluster");
        ensure!(me.members <= 1, "is a member of another cluster of {} servers", me.members);
        ensure!(me.empty, "holds volumes or keys of its own; it would lose them");
        tracing::info!(host = %request.host, cluster = format_args!("{:016x}", request.cluster_id), %seen_by, "joining a cluster; starting anew as its member");
        join::write(&self.config.data_dir, &JoinFile { request: request.clone() })?;
        let restart = self.restart.clone();
        // The answer must get out first.
        tokio::task::spawn_local(async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            restart.notify_one();
        });
        Ok(json!({}))
    }
}

/// The URLs that others can use: those told, else those listened on unless they name no one address.
fn reachable_urls(told: &[String], listened: &[Url]) -> Vec<String> {
    if !told.is_empty() {
        return told.to_vec();
    }
    listened.iter().filter(|u| !u.scheme.is_unix() && !u.is_wildcard()).map(ToString::to_string).collect()
}

/// The host of the first URL, for messages and for brick addresses.
pub(super) fn host_of_url(url: &str) -> Option<String> {
    url_address(url).ok().and_then(|a| a.rsplit_once(':').map(|(h, _)| h.to_owned()))
}

/// A brick's directory must be absolute and plain, so that the same directory has one name.
pub(super) fn check_brick_path(path: &str) -> Result<()> {
    let p = Path::new(path);
    ensure!(p.is_absolute(), "brick path {path} must be absolute (HOST:/DIRECTORY)");
    ensure!(p.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_))), "brick path {path} must not contain . or ..");
    ensure!(p.components().count() > 1, "the root directory cannot be a brick");
    ensure!(!path.chars().any(char::is_control) && path.len() < 4096, "brick path has characters that are not allowed");
    Ok(())
}

fn volume_id(volume: &str) -> Result<u128> {
    u128::from_str_radix(volume, 16).map_err(|_| anyhow!("{volume} is no volume id"))
}

fn brick_prepare(volume: &str, brick: BrickId, path: &str, force: bool) -> Result<Value> {
    check_brick_path(path)?;
    let dir = Path::new(path);
    let on_root = on_root_file_system(dir);
    if on_root && !force {
        bail!(
            "The brick {path} is being created in the root partition. It is recommended that you don't use the system's root partition for storage backend. \
             Or use 'force' at the end of the command if you want to override this behavior."
        );
    }
    if let Some(parent) = dir.parent().filter(|p| !p.is_dir()) {
        ensure!(force || !parent.exists(), "{} is not a directory", parent.display());
        std::fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    }
    let meta = BrickMeta { volume: volume_id(volume)?, brick, ..BrickMeta::default() };
    DirStore::create(dir, meta).map_err(|e| match e {
        StoreError::AlreadyBrick { .. } => anyhow!("{path} is already part of a volume"),
        e => anyhow!("{e}"),
    })?;
    Ok(json!({ "on_root": on_root }))
}

/// Takes the identity away from a brick of this volume; the files stay. A brick that was just stopped may take a moment
/// to close.
async fn brick_release(volume: &str, brick: BrickId, path: &str) -> Result<Value> {
    check_brick_path(path)?;
    let private = Path::new(path).join(".brickraft");
    let asked = tokio::time::Instant::now();
    let meta = loop {
        match DirStore::open(Path::new(path)) {
            Ok(store) => break brickraft_fs::store::BrickStore::meta(&store),
            Err(StoreError::Locked { .. }) if asked.elapsed() < BRICK_CLOSES => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(e) => bail!("{e}"),
        }
    };
    ensure!(meta.volume == volume_id(volume)? && meta.brick == brick, "{path} belongs to another volume");
    std::fs::remove_dir_all(&private).with_context(|| format!("remove {}", private.display()))?;
    Ok(json!({}))
}
