//! `brickraft server`: etcd's flag names.

use crate::node::config::{AutoCompaction, DEFAULT_TOKEN, initial_cluster, url_address};
use crate::node::{Ended, Node, ServerConfig};
use anyhow::{Context, Result, bail};
use clap::Args;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
    /// Human-readable name for this member
    #[arg(long, env = "ETCD_NAME", default_value = "default")]
    name: String,
    /// Path to the data directory
    #[arg(long, env = "ETCD_DATA_DIR", default_value = "/var/lib/brickraft")]
    data_dir: PathBuf,
    /// Comma-separated URLs to listen on for client traffic
    #[arg(long, env = "ETCD_LISTEN_CLIENT_URLS", default_value = "http://0.0.0.0:2379")]
    listen_client_urls: String,
    /// Comma-separated client URLs to advertise
    #[arg(long, env = "ETCD_ADVERTISE_CLIENT_URLS", default_value = "")]
    advertise_client_urls: String,
    /// Comma-separated URLs to listen on for peer traffic
    #[arg(long, env = "ETCD_LISTEN_PEER_URLS", default_value = "http://0.0.0.0:2380")]
    listen_peer_urls: String,
    /// Comma-separated peer URLs to advertise to the rest of the cluster
    #[arg(long, env = "ETCD_INITIAL_ADVERTISE_PEER_URLS", default_value = "")]
    initial_advertise_peer_urls: String,
    /// Members of a new cluster: name=url,name=url; without it, a cluster of one that others probe or that probes others
    #[arg(long, env = "ETCD_INITIAL_CLUSTER", default_value = "")]
    initial_cluster: String,
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
    #[arg(long, env = "ETCD_FORCE_NEW_CLUSTER", num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
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
    /// Taken for etcd's sake: checkpoints go by bytes and time
    #[arg(long, env = "ETCD_SNAPSHOT_COUNT", default_value_t = 100_000)]
    snapshot_count: u64,
    /// Taken for etcd's sake: no snapshot files are kept
    #[arg(long, env = "ETCD_MAX_SNAPSHOTS", default_value_t = 5)]
    max_snapshots: u64,
    /// Taken for etcd's sake: log segments go when nothing in them is needed
    #[arg(long, env = "ETCD_MAX_WALS", default_value_t = 5)]
    max_wals: u64,
    /// HOST:PORT for bricks, mounts and management
    #[arg(long, env = "BRICKRAFT_LISTEN_BRICK_ADDR", default_value = "0.0.0.0:24007")]
    listen_brick_addr: String,
}

fn urls(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|u| !u.is_empty()).map(str::to_owned).collect()
}

fn addresses(flag: &str, text: &str) -> Result<Vec<String>> {
    urls(text).iter().map(|u| url_address(u)).collect::<Result<_>>().with_context(|| flag.to_owned())
}

impl ServerArgs {
    fn config(&self) -> Result<ServerConfig> {
        for (flag, text) in
            [("--advertise-client-urls", &self.advertise_client_urls), ("--initial-advertise-peer-urls", &self.initial_advertise_peer_urls)]
        {
            addresses(flag, text)?;
        }
        if !crate::management::with_port(&self.listen_brick_addr).eq(&self.listen_brick_addr) {
            bail!("--listen-brick-addr: {} is not HOST:PORT", self.listen_brick_addr);
        }
        Ok(ServerConfig {
            name: self.name.clone(),
            data_dir: self.data_dir.clone(),
            listen_client: addresses("--listen-client-urls", &self.listen_client_urls)?,
            advertise_client_urls: urls(&self.advertise_client_urls),
            listen_peer: addresses("--listen-peer-urls", &self.listen_peer_urls)?,
            advertise_peer_urls: urls(&self.initial_advertise_peer_urls),
            initial_cluster: initial_cluster(&self.initial_cluster)?,
            join_existing: self.initial_cluster_state == "existing",
            token: self.initial_cluster_token.clone(),
            heartbeat: Duration::from_millis(self.heartbeat_interval),
            election_timeout: Duration::from_millis(self.election_timeout),
            lease_reads: self.lease_reads,
            listen_brick: self.listen_brick_addr.clone(),
            force_new_cluster: self.force_new_cluster,
            quota_bytes: u64::try_from(self.quota_backend_bytes).unwrap_or(0),
            request_bytes_max: self.max_request_bytes,
            txn_ops_max: self.max_txn_ops,
            auto_compaction: AutoCompaction::parse(&self.auto_compaction_mode, &self.auto_compaction_retention)?,
            host: None,
        })
    }
}

pub(crate) fn run(args: &ServerArgs) -> Result<()> {
    let config = args.config()?;
    let signals = crate::signals::Stop::install()?;
    let node = Node::start(&config)?;
    let status = node.member().last_status();
    tracing::info!(name = %config.name, member = format_args!("{:016x}", status.id.0), cluster = format_args!("{:016x}", status.cluster_id), "serving");
    println!(
        "ready: member {:016x} of cluster {:016x}, clients {}, bricks {}",
        status.id.0,
        status.cluster_id,
        config.listen_client.join(","),
        config.listen_brick
    );
    loop {
        if signals.wanted() {
            tracing::info!("told to stop");
            node.stop();
            return Ok(());
        }
        match node.wait(Duration::from_millis(100)) {
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

/// The same process anew: with the same flags, as the member that it was told to become.
fn restart() -> Result<()> {
    let program = std::env::current_exe().context("find this program's file")?;
    let error = std::process::Command::new(program).args(std::env::args_os().skip(1)).exec();
    Err(error).context("start anew")
}
