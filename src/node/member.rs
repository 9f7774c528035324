//! The thread that runs this server's member of the coordination store: consensus, log, store, and the sockets of
//! peers and etcd clients, so that a request never changes threads.

use super::config::ServerConfig;
use super::join::{self, JoinFile};
use super::removal;
use super::url::Url;
use anyhow::{Context, Result, anyhow};
use brickraft_engine::io::disk::DiskIo;
use brickraft_engine::kv::Store;
use brickraft_engine::kv::types::Command;
use brickraft_engine::member::identity::{Identity, InitialMember, bootstrap, member_id};
use brickraft_engine::member::stats::SharedStats;
use brickraft_engine::member::{Clock, MemberConfig, MemberCore, MemberHandle, MemberStatus, Start, driver};
use brickraft_engine::raft::{Membership, Role};
use brickraft_engine::types::NodeId;
use brickraft_net::etcd::{Limits, Metrics, Port, Settings};
use brickraft_net::peers::{self, Addresses, PeerAddress, PeerPort, PeerTls, Who};
use brickraft_net::stream::Listener;
use brickraft_net::traffic::Traffic;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{JoinError, spawn_local};

/// The key-value store's cache, in bytes.
const CACHE_BYTES: usize = 64 << 20;

/// What the rest of the server needs to know of its member.
#[derive(Clone)]
pub struct Started {
    /// The way to it.
    pub handle: MemberHandle,
    /// Who it is.
    pub id: NodeId,
    /// Its cluster.
    pub cluster_id: u64,
}

/// Who this member is and how it begins.
struct Plan {
    identity: Identity,
    start: Start,
    /// Peers by the latest we were told before the log is read.
    addresses: Addresses,
}

/// Runs until the member is stopped through its handle or fails. Tells `started` once the ports are bound and the
/// log is open, or why not.
///
/// # Errors
/// What ended it.
pub fn run(config: &ServerConfig, clock: Clock, started: &SyncSender<Result<Started>>, mut stop: watch::Receiver<bool>) -> Result<()> {
    let runtime = super::local_runtime().context("start the member's runtime")?;
    // Whatever is still connected when it ends is cut off.
    runtime.block_on(async {
        let (run, handle) = open(config, clock, started).await?;
        // A task of its own: to wake what `block_on` itself waits for takes a system call.
        let mut run = spawn_local(run);
        tokio::select! {
            ended = &mut run => return unless_panicked(ended),
            _ = stop.wait_for(|&stop| stop) => {}
        }
        handle.stop().await;
        unless_panicked(run.await)
    })
}

fn unless_panicked(ended: Result<Result<()>, JoinError>) -> Result<()> {
    ended.unwrap_or_else(|e| match e.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(e) => Err(e).context("the member's task"),
    })
}

async fn open(
    config: &ServerConfig,
    clock: Clock,
    started: &SyncSender<Result<Started>>,
) -> Result<(impl Future<Output = Result<()>> + use<>, MemberHandle)> {
    removal::check(&config.data_dir)?;
    let peer_tls = config.peer_tls.for_peers(&config.listen_peer, &config.data_dir, config.self_signed_years, &config.tls_policy)?;
    let plan = plan(config, peer_tls.as_ref()).await?;
    let id = plan.identity.member_id;
    let cluster_id = plan.identity.cluster_id;
    let dir = join::member_dir(&config.data_dir);
    let (peer_ports, client_ports) = bind(config).await?;
    let stats = SharedStats::default();
    let store = Store::open(&dir.join(join::STORE), CACHE_BYTES).map_err(|e| anyhow!("{e}"))?;
    let store = Arc::new(store);
    let io = DiskIo::open(&dir.join(join::LOG)).with_context(|| format!("open the log's directory {}", dir.join(join::LOG).display()))?;
    let member_config = MemberConfig {
        id,
        cluster_id,
        heartbeat: config.heartbeat,
        election_timeout: config.election_timeout,
        lease_reads: config.lease_reads,
        spool_dir: Some(dir.clone()),
        request_bytes_max: config.request_bytes_max,
        force_new_cluster: config.force_new_cluster,
        stats: stats.clone(),
        ..MemberConfig::default()
    };
    let core = MemberCore::open(member_config, plan.start, io, store.clone(), clock.now(), rand::random())?;
    let (handle, inbox) = MemberHandle::new(store, core.status(), clock);
    let who = Who { cluster_id, id, kind: config.kind() };
    let (addresses, addresses_rx) = watch::channel(plan.addresses);
    let traffic = Arc::new(Traffic::default());
    let transport = peers::start(who, peer_ports, peer_tls.clone(), addresses_rx, handle.status_watch(), traffic.clone());
    spawn_local(follow_membership(handle.clone(), addresses));
    spawn_local(introduce(handle.clone(), config.clone()));
    spawn_local(super::compactor::run(handle.clone(), config.auto_compaction));
    let (closing, closed) = watch::channel(false);
    let settings = settings(config, stats, traffic);
    for port in client_ports {
        let mut closed = closed.clone();
        let serve = brickraft_net::etcd::serve_with(port, handle.clone(), settings.clone(), async move {
            let _ = closed.wait_for(|&c| c).await;
        });
        spawn_local(serve);
    }
    let _ = started.send(Ok(Started { handle: handle.clone(), id, cluster_id }));
    let removed = removal::watch(handle.clone(), who, config.data_dir.clone(), peer_tls);
    let client_urls = config.listen_client.iter().chain(&config.listen_metrics);
    let sockets: Vec<String> = client_urls.filter(|url| url.scheme.is_unix()).map(|url| url.address.clone()).collect();
    let run = async move {
        let result = tokio::select! {
            result = driver::run(core, inbox, transport) => result.map_err(Into::into),
            removed = removed => Err(removed),
        };
        let _ = closing.send(true);
        for socket in sockets {
            if let Err(e) = std::fs::remove_file(&socket) {
                tracing::warn!(%socket, %e, "remove the socket");
            }
        }
        result
    };
    Ok((run, handle))
}

/// How the client ports behave.
fn settings(config: &ServerConfig, stats: SharedStats, traffic: Arc<Traffic>) -> Settings {
    Settings {
        limits: Limits { txn_ops_max: config.txn_ops_max, request_bytes_max: config.request_bytes_max },
        quota_bytes: config.quota_bytes,
        no_leader_grace: 3 * config.election_timeout,
        watch_progress_interval: config.watch_progress_interval,
        gateway: config.gateway,
        client_cert_auth: config.client_tls.cert_auth,
        auth: config.auth.clone(),
        metrics: Arc::new(Metrics::new(stats, traffic, super::process::metrics)),
        ..Settings::default()
    }
}

/// From what lies in the data directory, then from the flags.
async fn plan(config: &ServerConfig, tls: Option<&PeerTls>) -> Result<Plan> {
    let dir = join::member_dir(&config.data_dir);
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    if let Some(file) = join::read(&config.data_dir)? {
        return joined(config, &file);
    }
    match Identity::load(&dir)? {
        Some(identity) if join::is_member(&config.data_dir) => return returning(config, identity),
        Some(_) => Identity::give_up(&dir)?,
        None => {}
    }
    config.check_beginning()?;
    if config.join_existing {
        let file = JoinFile { request: join::find_self(config, tls).await? };
        join::write(&config.data_dir, &file)?;
        return joined(config, &file);
    }
    let members = if config.initial_cluster.is_empty() { vec![lone(config)] } else { config.initial_cluster.clone() };
    let salted = config.initial_cluster.is_empty();
    let (cluster_id, membership) = if salted {
        // Two lone servers with the same flags must not be the same cluster.
        let id = member_id(&members[0].peer_urls, &config.token, rand::random());
        (rand::random::<u64>().max(1), Membership { voters: BTreeMap::from([(id, info(config, &members[0]))]), learners: BTreeMap::new() })
    } else {
        bootstrap(&members, &config.token)
    };
    let me = membership.voters.iter().find(|(_, info)| info.name == config.name).map(|(id, _)| *id);
    let me = me.with_context(|| format!("--initial-cluster does not name {:?}", config.name))?;
    let identity = Identity { cluster_id, member_id: me, name: config.name.clone() };
    identity.claim(&dir)?;
    Ok(Plan { identity, addresses: addresses(&membership), start: Start::Founder(membership) })
}

/// A member that has been here before: what it is, and what its cluster became since, is in its data. As in etcd, the flags about
/// the cluster's beginning count only where that beginning was interrupted, and then only if they are those that it began with.
fn returning(config: &ServerConfig, identity: Identity) -> Result<Plan> {
    // One of several founders, whose number comes from a list, is no lone one when the list is left out.
    let is_listed = identity.member_id == member_id(&lone(config).peer_urls, &config.token, 0);
    let lone_founder = config.initial_cluster.is_empty() && !config.join_existing && !is_listed;
    let founders = if lone_founder {
        Membership { voters: BTreeMap::from([(identity.member_id, info(config, &lone(config)))]), learners: BTreeMap::new() }
    } else {
        let (cluster_id, founders) = bootstrap(&config.initial_cluster, &config.token);
        if cluster_id != identity.cluster_id {
            return Ok(Plan { identity, addresses: Addresses::new(), start: Start::Joiner });
        }
        founders
    };
    let addresses = addresses(&founders);
    let start = match founders.info(identity.member_id) {
        Some(found) if !lone_founder && found.name != config.name => {
            // Another founder's directory: two servers would pass for one.
            let me = founders.voters.iter().find(|(_, info)| info.name == config.name).map_or(NodeId(0), |(id, _)| *id);
            let dir = join::member_dir(&config.data_dir);
            Identity { member_id: me, name: config.name.clone(), ..identity.clone() }.claim(&dir)?;
            Start::Joiner
        }
        Some(_) => Start::Founder(founders),
        // Restored from a backup: nothing is founded with these.
        None => Start::Joiner,
    };
    Ok(Plan { identity, addresses, start })
}

fn joined(config: &ServerConfig, file: &JoinFile) -> Result<Plan> {
    let dir = join::member_dir(&config.data_dir);
    let request = &file.request;
    let identity = Identity { cluster_id: request.cluster_id, member_id: request.member_id, name: config.name.clone() };
    match Identity::load(&dir)? {
        Some(found) if found.cluster_id == identity.cluster_id && found.member_id == identity.member_id => {}
        found => {
            if found.is_some() {
                // The empty cluster of one that this server was before it was probed.
                std::fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
                std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
            }
            identity.claim(&dir)?;
        }
    }
    let mut known: Addresses = Addresses::new();
    for (id, urls) in &request.members {
        if let Some(address) = peer_address(urls) {
            known.insert(*id, address);
        }
    }
    Ok(Plan { identity, addresses: known, start: Start::Joiner })
}

fn lone(config: &ServerConfig) -> InitialMember {
    let peer_urls = if config.advertise_peer_urls.is_empty() {
        config.listen_peer.iter().map(ToString::to_string).collect()
    } else {
        config.advertise_peer_urls.clone()
    };
    InitialMember { name: config.name.clone(), peer_urls }
}

fn info(config: &ServerConfig, member: &InitialMember) -> brickraft_engine::raft::MemberInfo {
    brickraft_engine::raft::MemberInfo { name: config.name.clone(), peer_urls: member.peer_urls.clone(), client_urls: Vec::new() }
}

/// The first URL that a member can be reached by.
pub(super) fn peer_address(urls: &[String]) -> Option<PeerAddress> {
    let usable = urls.iter().filter_map(|u| u.parse::<Url>().ok()).find(|u| !u.scheme.is_unix())?;
    Some(PeerAddress { tls: usable.scheme.is_tls(), address: usable.address })
}

fn addresses(membership: &Membership) -> Addresses {
    membership.ids().filter_map(|id| peer_address(&membership.info(id)?.peer_urls).map(|a| (id, a))).collect()
}

async fn bind(config: &ServerConfig) -> Result<(Vec<PeerPort>, Vec<Port>)> {
    let urls: Vec<Url> = config.listen_client.iter().chain(&config.listen_metrics).cloned().collect();
    let tls = config.client_tls.for_clients(&urls, &config.data_dir, config.self_signed_years, &config.tls_policy)?;
    let mut peers = Vec::new();
    for url in &config.listen_peer {
        let listener = bind_tcp(&url.address).await.with_context(|| format!("listen on {url} for peers (--listen-peer-urls)"))?;
        peers.push(PeerPort { listener, tls: url.scheme.is_tls() });
    }
    let mut clients = Vec::new();
    for (urls, flag, pages_only) in
        [(&config.listen_client, "--listen-client-urls", false), (&config.listen_metrics, "--listen-metrics-urls", true)]
    {
        for url in urls {
            let listener = bind_url(url).await.with_context(|| format!("listen on {url} for clients ({flag})"))?;
            clients.push(Port { listener, tls: tls.clone().filter(|_| url.scheme.is_tls()), pages_only });
        }
    }
    Ok((peers, clients))
}

/// A host name may have several addresses; as etcd does, an IPv4 one is taken where there is one.
async fn bind_tcp(address: &str) -> Result<TcpListener> {
    let mut found: Vec<_> = tokio::net::lookup_host(address).await.with_context(|| format!("look up {address}"))?.collect();
    found.sort_by_key(std::net::SocketAddr::is_ipv6);
    let first = *found.first().with_context(|| format!("{address} has no address"))?;
    Ok(TcpListener::bind(first).await?)
}

async fn bind_url(url: &Url) -> Result<Listener> {
    if !url.scheme.is_unix() {
        return Ok(bind_tcp(&url.address).await?.into());
    }
    // A socket that an earlier process left behind; one that somebody listens on stays.
    if UnixStream::connect(&url.address).await.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused) {
        std::fs::remove_file(&url.address).with_context(|| format!("remove the old socket {}", url.address))?;
    }
    Ok(UnixListener::bind(&url.address)?.into())
}

/// Keeps the transport's addresses in step with the membership.
async fn follow_membership(handle: MemberHandle, addresses_tx: watch::Sender<Addresses>) {
    let mut status = handle.status_watch();
    status.mark_changed();
    while status.changed().await.is_ok() {
        let membership = status.borrow_and_update().membership.clone();
        // A member that is just joining knows only what it was told.
        if membership.ids().next().is_some() {
            let new = addresses(&membership);
            addresses_tx.send_if_modified(|old| {
                let changed = *old != new;
                *old = new;
                changed
            });
        }
    }
}

/// Tells the cluster this member's name and client URLs, as etcd's members do once they run.
async fn introduce(handle: MemberHandle, config: ServerConfig) {
    let told = |status: &MemberStatus| status.membership.info(status.id).cloned();
    let client_urls = if config.advertise_client_urls.is_empty() {
        config.listen_client.iter().filter(|u| !u.is_wildcard()).map(ToString::to_string).collect()
    } else {
        config.advertise_client_urls.clone()
    };
    loop {
        let status = handle.last_status();
        if status.stopped.is_some() {
            return;
        }
        if let Some(info) = told(&status) {
            let keep = client_urls.is_empty();
            let wanted = if keep { info.client_urls.clone() } else { client_urls.clone() };
            if info.name == config.name && info.client_urls == wanted {
                return;
            }
            if status.role == Role::Leader || status.leader.is_some() {
                let command = Command::MemberAttributes { id: status.id, name: config.name.clone(), client_urls: wanted };
                if handle.propose(command).await.is_ok() {
                    return;
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
