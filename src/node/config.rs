//! What a server is told at its start: etcd's flags, and a few of our own.

use super::tls::TlsFiles;
use super::url::Url;
use crate::management::BRICK_PORT;
use anyhow::{Context, Result, bail, ensure};
use brickraft_engine::member::identity::InitialMember;
use brickraft_net::duration::go_duration;
use brickraft_net::etcd::{AuthSettings, WATCH_PROGRESS_INTERVAL};
use brickraft_net::peers::Kind;
use brickraft_net::tls::Policy;
use std::path::PathBuf;
use std::time::Duration;

/// etcd's default cluster token.
pub const DEFAULT_TOKEN: &str = "etcd-cluster";

/// etcd's default of `--max-request-bytes`.
pub const REQUEST_BYTES_MAX: usize = 1_572_864;
/// etcd's default of `--max-txn-ops`.
pub const TXN_OPS_MAX: usize = 128;
/// A request must fit into a Raft append, and that into a frame between members.
const REQUEST_BYTES_LIMIT: usize = 10 << 20;

/// Which history is compacted without being asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoCompaction {
    /// None.
    Off,
    /// What is older than this.
    Periodic(Duration),
    /// All but so many revisions.
    Revision(u64),
}

impl AutoCompaction {
    /// From the two flags: `periodic` takes hours, or a duration such as `10m` or `1h30m`; `revision` takes a number.
    ///
    /// # Errors
    /// What cannot be read.
    pub fn parse(mode: &str, retention: &str) -> Result<Self> {
        match mode {
            "periodic" | "" => {
                let time = match retention.parse::<u64>() {
                    Ok(hours) => Duration::from_secs(hours.saturating_mul(3600)),
                    Err(_) => go_duration(retention)
                        .with_context(|| format!("--auto-compaction-retention {retention:?}: neither hours nor a duration such as 10m"))?,
                };
                Ok(if time.is_zero() { Self::Off } else { Self::Periodic(time) })
            }
            "revision" => {
                let kept = retention
                    .parse()
                    .ok()
                    .with_context(|| format!("--auto-compaction-retention {retention:?}: not a number of revisions"))?;
                Ok(if kept == 0 { Self::Off } else { Self::Revision(kept) })
            }
            other => bail!("--auto-compaction-mode {other:?}: it must be periodic or revision"),
        }
    }
}

/// See the module's text.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// `--name`.
    pub name: String,
    /// `--data-dir`.
    pub data_dir: PathBuf,
    /// `--listen-client-urls`.
    pub listen_client: Vec<Url>,
    /// `--listen-metrics-urls`: `/metrics` and the health pages, and nothing else.
    pub listen_metrics: Vec<Url>,
    /// `--advertise-client-urls`, as URLs; empty: by what others see.
    pub advertise_client_urls: Vec<String>,
    /// `--listen-peer-urls`.
    pub listen_peer: Vec<Url>,
    /// `--initial-advertise-peer-urls`, as URLs; empty: by what others see.
    pub advertise_peer_urls: Vec<String>,
    /// `--initial-cluster`; empty: a cluster of one.
    pub initial_cluster: Vec<InitialMember>,
    /// `--initial-cluster-state existing`.
    pub join_existing: bool,
    /// `--initial-cluster-token`.
    pub token: String,
    /// `--heartbeat-interval`.
    pub heartbeat: Duration,
    /// `--election-timeout`.
    pub election_timeout: Duration,
    /// Linearizable reads may be answered from the leader's lease.
    pub lease_reads: bool,
    /// `--listen-brick-addr`; `None`: a member of the coordination store and nothing else.
    pub listen_brick: Option<String>,
    /// `--force-new-cluster`.
    pub force_new_cluster: bool,
    /// `--quota-backend-bytes`; 0: no limit.
    pub quota_bytes: u64,
    /// `--auto-compaction-mode` and `--auto-compaction-retention`.
    pub auto_compaction: AutoCompaction,
    /// The name by which other servers call this one, where it is known.
    pub host: Option<String>,
    /// `--cert-file` and its family.
    pub client_tls: TlsFiles,
    /// `--peer-cert-file` and its family.
    pub peer_tls: TlsFiles,
    /// `--tls-min-version`, `--tls-max-version`, `--cipher-suites`.
    pub tls_policy: Policy,
    /// `--self-signed-cert-validity`, in years.
    pub self_signed_years: u32,
    /// `--enable-grpc-gateway`.
    pub gateway: bool,
    /// `--max-txn-ops`.
    pub txn_ops_max: usize,
    /// `--max-request-bytes`.
    pub request_bytes_max: usize,
    /// `--watch-progress-notify-interval`.
    pub watch_progress_interval: Duration,
    /// `--auth-token` and its like.
    pub auth: AuthSettings,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            name: "default".into(),
            data_dir: "/var/lib/brickraft".into(),
            listen_client: vec![Url::http("0.0.0.0:2379")],
            listen_metrics: Vec::new(),
            advertise_client_urls: Vec::new(),
            listen_peer: vec![Url::http("0.0.0.0:2380")],
            advertise_peer_urls: Vec::new(),
            initial_cluster: Vec::new(),
            join_existing: false,
            token: DEFAULT_TOKEN.into(),
            heartbeat: Duration::from_millis(100),
            election_timeout: Duration::from_millis(1000),
            lease_reads: false,
            listen_brick: Some(format!("0.0.0.0:{BRICK_PORT}")),
            force_new_cluster: false,
            quota_bytes: 0,
            auto_compaction: AutoCompaction::Off,
            host: None,
            client_tls: TlsFiles::default(),
            peer_tls: TlsFiles::default(),
            tls_policy: Policy::default(),
            self_signed_years: 1,
            gateway: true,
            txn_ops_max: TXN_OPS_MAX,
            request_bytes_max: REQUEST_BYTES_MAX,
            watch_progress_interval: WATCH_PROGRESS_INTERVAL,
            auth: AuthSettings::default(),
        }
    }
}

impl ServerConfig {
    /// What this server's member is part of.
    #[must_use]
    pub fn kind(&self) -> Kind {
        if self.listen_brick.is_some() { Kind::Bricks } else { Kind::Store }
    }

    /// Checks what the flags' types cannot.
    ///
    /// # Errors
    /// What is wrong, and with which flag.
    pub fn check(&self) -> Result<()> {
        ensure!(!self.name.is_empty(), "--name must not be empty");
        ensure!(!self.heartbeat.is_zero(), "--heartbeat-interval must be at least 1 (milliseconds)");
        // etcd's own rule.
        ensure!(
            self.election_timeout >= 5 * self.heartbeat,
            "--election-timeout[{}ms] should be at least as 5 times as --heartbeat-interval[{}ms]",
            self.election_timeout.as_millis(),
            self.heartbeat.as_millis()
        );
        ensure!(
            self.election_timeout <= Duration::from_secs(50),
            "--election-timeout[{}ms] is too long, and should be set less than 50000ms",
            self.election_timeout.as_millis()
        );
        ensure!(
            !self.listen_client.is_empty() && !self.listen_peer.is_empty(),
            "--listen-client-urls and --listen-peer-urls must not be empty"
        );
        for url in &self.listen_peer {
            ensure!(!url.scheme.is_unix(), "--listen-peer-urls: {url}: Unix sockets between members are not supported");
        }
        ensure!(
            (1..=REQUEST_BYTES_LIMIT).contains(&self.request_bytes_max),
            "--max-request-bytes={} must be at least 1 and at most {REQUEST_BYTES_LIMIT}",
            self.request_bytes_max
        );
        ensure!(self.txn_ops_max > 0, "--max-txn-ops must be at least 1");
        Ok(())
    }

    /// Checks what says how the cluster begins, or where it is: of no matter once this server is a member.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn check_beginning(&self) -> Result<()> {
        ensure!(
            !self.join_existing || self.initial_cluster.len() > 1,
            "--initial-cluster-state existing needs --initial-cluster with this member and at least one that runs"
        );
        if !self.initial_cluster.is_empty() {
            let me = self.initial_cluster.iter().find(|m| m.name == self.name);
            let me = me.with_context(|| {
                format!("couldn't find local name {:?} in the initial cluster configuration (--initial-cluster)", self.name)
            })?;
            if !self.advertise_peer_urls.is_empty() {
                let (mut a, mut b) = (me.peer_urls.clone(), self.advertise_peer_urls.clone());
                a.sort();
                b.sort();
                ensure!(a == b, "--initial-cluster has {a:?} for {:?} but --initial-advertise-peer-urls is {b:?}", self.name);
            }
        }
        Ok(())
    }
}

/// `host:port` of a URL that names a host.
///
/// # Errors
/// A Unix socket, an unknown scheme, or no port.
pub fn url_address(url: &str) -> Result<String> {
    let parsed: Url = url.parse()?;
    ensure!(!parsed.scheme.is_unix(), "{url}: a Unix socket is nothing that other hosts can reach");
    Ok(parsed.address)
}

/// The port of `host:port`.
#[must_use]
pub fn port_of(address: &str) -> u16 {
    address.rsplit_once(':').and_then(|(_, p)| p.parse().ok()).unwrap_or(0)
}

/// True when others cannot use `address` to reach us.
#[must_use]
pub fn is_wildcard(address: &str) -> bool {
    matches!(address.rsplit_once(':').map(|(h, _)| h), Some("0.0.0.0" | "[::]" | "" | "*"))
}

/// Parses `--initial-cluster`: `name=url,name=url`.
///
/// # Errors
/// What cannot be read.
pub fn initial_cluster(text: &str) -> Result<Vec<InitialMember>> {
    let mut members: Vec<InitialMember> = Vec::new();
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (name, url) = part.split_once('=').with_context(|| format!("--initial-cluster: {part:?} is not name=url"))?;
        url_address(url).context("--initial-cluster")?;
        match members.iter_mut().find(|m| m.name == name) {
            Some(m) => m.peer_urls.push(url.to_owned()),
            None => members.push(InitialMember { name: name.to_owned(), peer_urls: vec![url.to_owned()] }),
        }
    }
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_give_addresses() {
        assert_eq!(url_address("http://10.0.0.1:2379").expect("plain"), "10.0.0.1:2379");
        assert_eq!(url_address("http://localhost:2379/").expect("slash"), "localhost:2379");
        for bad in ["10.0.0.1:2379", "http://host", "unix://a", "ftp://a:1", "http://a:99999"] {
            assert!(url_address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn initial_clusters_are_read() {
        let m = initial_cluster("a=http://1.1.1.1:1,b=http://2.2.2.2:2,a=http://3.3.3.3:3").expect("good");
        assert_eq!(m.len(), 2);
        assert_eq!(m[0].peer_urls.len(), 2);
        assert!(initial_cluster("a").is_err());
    }

    #[test]
    fn auto_compaction_is_read_as_etcd_reads_it() {
        let parse = |mode, retention| AutoCompaction::parse(mode, retention).expect(retention);
        assert_eq!(parse("periodic", "0"), AutoCompaction::Off);
        assert_eq!(parse("periodic", "2"), AutoCompaction::Periodic(Duration::from_secs(7200)));
        assert_eq!(parse("periodic", "1h30m"), AutoCompaction::Periodic(Duration::from_secs(5400)));
        assert_eq!(parse("periodic", "500ms"), AutoCompaction::Periodic(Duration::from_millis(500)));
        assert_eq!(parse("revision", "1000"), AutoCompaction::Revision(1000));
        for (mode, retention) in [("revision", "1h"), ("periodic", "x"), ("periodic", ""), ("periodic", "10y"), ("often", "1")] {
            assert!(AutoCompaction::parse(mode, retention).is_err(), "{mode} {retention}");
        }
    }

    #[test]
    fn election_needs_five_heartbeats() {
        let config = ServerConfig { election_timeout: Duration::from_millis(300), ..ServerConfig::default() };
        assert!(config.check().is_err());
        ServerConfig::default().check().expect("the defaults");
    }
}
