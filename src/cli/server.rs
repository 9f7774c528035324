//! `brickraft server`: etcd's flags, and a few of our own. `etcd` (see `etcd.rs`) takes the same.

use super::auth_flags::AuthArgs;
use super::etcd_flags::Unused;
use super::tls_flags::TlsArgs;
use crate::node::config::{AutoCompaction, DEFAULT_TOKEN, initial_cluster, url_address};
use crate::node::join::is_member;
use crate::node::url::Url;
use crate::node::{Ended, Node, ServerConfig};
use anyhow::{Context, Result, bail};
use brickraft_engine::member::MemberStatus;
use brickraft_net::duration::go_duration;
use brickraft_net::etcd::WATCH_PROGRESS_INTERVAL;
use clap::Args;
use clap::builder::BoolishValueParser;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
    /// Human-readable name for this member
    #[arg(long, env = "ETCD_NAME", default_value = "default")]
    pub(super) name: String,
    /// Path to the data directory
    #[arg(long, env = "ETCD_DATA_DIR", default_value = "/var/lib/brickraft")]
    pub(super) data_dir: PathBuf,
    /// Comma-separated URLs to listen on for client traffic
    #[arg(long, env = "ETCD_LISTEN_CLIENT_URLS", default_value = "http://0.0.0.0:2379")]
    listen_client_urls: String,
    /// Comma-separated client URLs to advertise
    #[arg(long, env = "ETCD_ADVERTISE_CLIENT_URLS", default_value = "")]
    advertise_client_urls: String,
    /// Comma-separated URLs to listen on for peer traffic
    #[arg(long, env = "ETCD_LISTEN_PEER_URLS", default_value = "http://0.0.0.0:2380")]
    listen_peer_urls: String,
    /// Comma-separated URLs to listen on for /metrics and the health pages alone
    #[arg(long, env = "ETCD_LISTEN_METRICS_URLS", default_value = "")]
    listen_metrics_urls: String,
    /// Comma-separated peer URLs to advertise to the rest of the cluster
    #[arg(long, env = "ETCD_INITIAL_ADVERTISE_PEER_URLS", default_value = "")]
    pub(super) initial_advertise_peer_urls: String,
    /// Members of a new cluster: name=url,name=url; without it, a cluster of one that others probe or that probes others
    #[arg(long, env = "ETCD_INITIAL_CLUSTER", default_value = "")]
    pub(super) initial_cluster: String,
    /// "new" or "existing"
    #[arg(long, env = "ETCD_INITIAL_CLUSTER_STATE", default_value = "new", value_parser = ["new", "existing"])]
    initial_cluster_state: String,
    /// Token that tells clusters with the same members apart
    #[arg(long, env = "ETCD_INITIAL_CLUSTER_TOKEN", default_value = DEFAULT_TOKEN)]
    initial_cluster_token: String,
    /// Heartbeat interval, in milliseconds
    #[arg(long, env = "ETCD_HEARTBEAT_INTERVAL", default_value_t = 100)]
    heartbeat_interval: u64,
    /// Election time-out, in milliseconds
    #[arg(long, env = "ETCD_ELECTION_TIMEOUT", default_value_t = 1000)]
    election_timeout: u64,
    /// Answer linearizable reads from the leader's lease, without asking a majority each time: right only while no two
    /// members' clocks run more than 10 % apart; set it on all members
    #[arg(long, env = "BRICKRAFT_LEASE_READS")]
    lease_reads: bool,
    /// Become a cluster of one with all that this member knows, when the others are lost for good
    #[arg(long, env = "ETCD_FORCE_NEW_CLUSTER", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = BoolishValueParser::new())]
    force_new_cluster: bool,
    /// Raise NOSPACE and refuse writes when the store uses more than so many bytes; 0: no limit
    #[arg(long, env = "ETCD_QUOTA_BACKEND_BYTES", default_value_t = 0, allow_negative_numbers = true)]
    quota_backend_bytes: i64,
    /// Largest client request, in bytes
    #[arg(long, env = "ETCD_MAX_REQUEST_BYTES", default_value_t = crate::node::config::REQUEST_BYTES_MAX)]
    max_request_bytes: usize,
    /// Most operations in one transaction
    #[arg(long, env = "ETCD_MAX_TXN_OPS", default_value_t = crate::node::config::TXN_OPS_MAX)]
    max_txn_ops: usize,
    /// "periodic" or "revision"
    #[arg(long, env = "ETCD_AUTO_COMPACTION_MODE", default_value = "periodic")]
    auto_compaction_mode: String,
    /// How much history is kept: hours or a duration (periodic), or a number (revision); 0: all
    #[arg(long, env = "ETCD_AUTO_COMPACTION_RETENTION", default_value = "0")]
    auto_compaction_retention: String,
    /// How often a watch that asked for progress hears of it when nothing happens: a duration of at least 100ms; 0: 10m
    #[arg(long, env = "ETCD_WATCH_PROGRESS_NOTIFY_INTERVAL", default_value = "0s")]
    watch_progress_notify_interval: String,
    /// The same under the name that etcd 3.5 gives it
    #[arg(long, env = "ETCD_EXPERIMENTAL_WATCH_PROGRESS_NOTIFY_INTERVAL", default_value = "0s")]
    experimental_watch_progress_notify_interval: String,
    /// What is logged: debug, info, warn, error, panic or fatal; the variable BRICKRAFT_LOG says it in more detail
    #[arg(long, env = "ETCD_LOG_LEVEL", default_value = "info", value_parser = ["debug", "info", "warn", "error", "panic", "fatal"])]
    log_level: String,
    /// Serve the JSON gateway under /v3/
    #[arg(
        long, env = "ETCD_ENABLE_GRPC_GATEWAY", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
        default_value = "true", default_missing_value = "true", value_parser = BoolishValueParser::new()
    )]
    enable_grpc_gateway: bool,
    /// HOST:PORT for bricks, mounts and management
    #[arg(long, env = "BRICKRAFT_LISTEN_BRICK_ADDR", default_value = "0.0.0.0:24007")]
    listen_brick_addr: String,
    /// Started as `etcd`: a member of the coordination store and nothing else.
    #[arg(skip)]
    pub(super) store_only: bool,
    #[command(flatten)]
    auth: AuthArgs,
    #[command(flatten)]
    tls: TlsArgs,
    // Last: what stands above is not "unused".
    #[command(flatten)]
    unused: Unused,
}

/// A start waits so long for its URLs to be known.
const INTRODUCTION: Duration = Duration::from_secs(5);

fn urls(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|u| !u.is_empty()).map(str::to_owned).collect()
}

fn listen(flag: &str, text: &str) -> Result<Vec<Url>> {
    urls(text).iter().map(|u| u.parse()).collect::<Result<_>>().with_context(|| flag.to_owned())
}

impl ServerArgs {
    fn config(&self) -> Result<ServerConfig> {
        self.unused.check()?;
        for url in urls(&self.initial_advertise_peer_urls) {
            url_address(&url).context("--initial-advertise-peer-urls")?;
        }
        listen("--advertise-client-urls", &self.advertise_client_urls)?;
        if !crate::management::with_port(&self.listen_brick_addr).eq(&self.listen_brick_addr) {
            bail!("--listen-brick-addr: {} is not HOST:PORT", self.listen_brick_addr);
        }
        // Once it is a member, nobody asks how the cluster began: as in etcd.
        let cluster = initial_cluster(&self.initial_cluster);
        Ok(ServerConfig {
            name: self.name.clone(),
            data_dir: self.data_dir.clone(),
            listen_client: listen("--listen-client-urls", &self.listen_client_urls)?,
            advertise_client_urls: urls(&self.advertise_client_urls),
            listen_peer: listen("--listen-peer-urls", &self.listen_peer_urls)?,
            listen_metrics: listen("--listen-metrics-urls", &self.listen_metrics_urls)?,
            advertise_peer_urls: urls(&self.initial_advertise_peer_urls),
            join_existing: self.initial_cluster_state == "existing" || cluster.is_err(),
            initial_cluster: cluster.or_else(|e| if is_member(&self.data_dir) { Ok(Vec::new()) } else { Err(e) })?,
            token: self.initial_cluster_token.clone(),
            heartbeat: Duration::from_millis(self.heartbeat_interval),
            election_timeout: Duration::from_millis(self.election_timeout),
            lease_reads: self.lease_reads,
            listen_brick: (!self.store_only).then(|| self.listen_brick_addr.clone()),
            force_new_cluster: self.force_new_cluster,
            quota_bytes: u64::try_from(self.quota_backend_bytes).unwrap_or(0),
            auto_compaction: AutoCompaction::parse(&self.auto_compaction_mode, &self.auto_compaction_retention)?,
            host: None,
            client_tls: self.tls.client(),
            peer_tls: self.tls.peer(),
            tls_policy: self.tls.policy(),
            self_signed_years: self.tls.validity_years(),
            gateway: self.enable_grpc_gateway,
            txn_ops_max: self.max_txn_ops,
            request_bytes_max: self.max_request_bytes,
            watch_progress_interval: self.watch_progress_interval()?,
            auth: self.auth.settings()?,
        })
    }

    fn watch_progress_interval(&self) -> Result<Duration> {
        let read = |flag: &str, text: &str| go_duration(text).with_context(|| format!("--{flag}={text}: a duration such as 10m is wanted"));
        let new = read("watch-progress-notify-interval", &self.watch_progress_notify_interval)?;
        let old = read("experimental-watch-progress-notify-interval", &self.experimental_watch_progress_notify_interval)?;
        let chosen = if new.is_zero() { old } else { new };
        // etcd's bounds.
        Ok(if chosen.is_zero() { WATCH_PROGRESS_INTERVAL } else { chosen.max(Duration::from_millis(100)) })
    }

    /// The log's level in tracing's words.
    pub(super) fn log_filter(&self) -> &str {
        match self.log_level.as_str() {
            "panic" | "fatal" => "error",
            level => level,
        }
    }
}

pub(crate) fn run(args: &ServerArgs) -> Result<()> {
    let config = args.config()?;
    for (flag, why) in args.unused.given() {
        tracing::warn!("--{flag} has no effect: {why}");
    }
    let signals = crate::signals::Stop::install()?;
    let node = Node::start(&config)?;
    let status = node.member().last_status();
    tracing::info!(name = %config.name, member = format_args!("{:016x}", status.id.0), cluster = format_args!("{:016x}", status.cluster_id), "serving");
    let clients = config.listen_client.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    if let Some(bricks) = &config.listen_brick {
        println!("ready: member {:016x} of cluster {:016x}, clients {clients}, bricks {bricks}", status.id.0, status.cluster_id);
    }
    let started = Instant::now();
    let mut told = false;
    loop {
        if signals.wanted() {
            tracing::info!("told to stop");
            node.stop();
            return Ok(());
        }
        if !told && serves(&config, &node.member().last_status(), started) {
            told = true;
            tell_service_manager();
            if config.listen_brick.is_none() {
                // Scripts wait for these words of etcd's.
                eprintln!("ready to serve client requests: {clients}");
            }
        }
        let pause = if told || started.elapsed() > Duration::from_secs(30) { 100 } else { 10 };
        match node.wait(Duration::from_millis(pause)) {
            None => {}
            Some(Ended::Restart) => {
                node.stop();
                return restart();
            }
            Some(Ended::Stopped) => return Ok(()),
            Some(Ended::Failed(why)) => bail!("{why}"),
        }
    }
}

/// Whether clients can be told to come: somebody leads, and (within a bound) the others know this member's client URLs, as
/// whoever asks etcd for its members right after its start finds them.
fn serves(config: &ServerConfig, status: &MemberStatus, started: Instant) -> bool {
    let told = status.membership.info(status.id).is_some_and(|info| !info.client_urls.is_empty());
    let nothing_to_tell = config.advertise_client_urls.is_empty() && config.listen_client.iter().all(Url::is_wildcard);
    status.leader.is_some() && (told || nothing_to_tell || started.elapsed() > INTRODUCTION)
}

/// systemd's `Type=notify`, as etcd has it: the variable names a datagram socket, `@` standing for an abstract one.
fn tell_service_manager() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    let Ok(name) = std::env::var("NOTIFY_SOCKET") else { return };
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&name),
    };
    let sent = address.and_then(|a| UnixDatagram::unbound()?.send_to_addr(b"READY=1", &a));
    if let Err(e) = sent {
        tracing::warn!(%e, "tell the service manager (NOTIFY_SOCKET={name})");
    }
}

/// The same process anew: with the same flags, as the member that it was told to become.
fn restart() -> Result<()> {
    let program = std::env::current_exe().context("find this program's file")?;
    let mut args = std::env::args_os();
    let mut command = std::process::Command::new(program);
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    Err(command.args(args).exec()).context("start anew")
}
