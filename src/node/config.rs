//! What a server is told at its start: etcd's flags, and a few of our own.

use crate::management::BRICK_PORT;
use anyhow::{Context, Result, bail, ensure};
use brickraft_engine::member::identity::InitialMember;
use std::path::PathBuf;
use std::time::Duration;

/// etcd's default cluster token.
pub const DEFAULT_TOKEN: &str = "etcd-cluster";

/// See the module's text. Addresses are `host:port`, without a scheme.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// `--name`.
    pub name: String,
    /// `--data-dir`.
    pub data_dir: PathBuf,
    /// `--listen-client-urls`.
    pub listen_client: Vec<String>,
    /// `--advertise-client-urls`, as URLs; empty: by what others see.
    pub advertise_client_urls: Vec<String>,
    /// `--listen-peer-urls`.
    pub listen_peer: Vec<String>,
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
    /// `--listen-brick-addr`.
    pub listen_brick: String,
    /// The name by which other servers call this one, where it is known.
    pub host: Option<String>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            name: "default".into(),
            data_dir: "/var/lib/brickraft".into(),
            listen_client: vec!["0.0.0.0:2379".into()],
            advertise_client_urls: Vec::new(),
            listen_peer: vec!["0.0.0.0:2380".into()],
            advertise_peer_urls: Vec::new(),
            initial_cluster: Vec::new(),
            join_existing: false,
            token: DEFAULT_TOKEN.into(),
            heartbeat: Duration::from_millis(100),
            election_timeout: Duration::from_millis(1000),
            lease_reads: false,
            listen_brick: format!("0.0.0.0:{BRICK_PORT}"),
            host: None,
        }
    }
}

impl ServerConfig {
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
        if self.join_existing {
            bail!(
                "--initial-cluster-state existing is not supported yet: start the server alone, then run `brickraft peer probe` on a member"
            );
        }
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

/// `host:port` of an etcd URL.
///
/// # Errors
/// A scheme that is not supported, or no port.
pub fn url_address(url: &str) -> Result<String> {
    let rest = match url.split_once("://") {
        Some(("http", rest)) => rest,
        Some((scheme @ ("https" | "unix" | "unixs"), _)) => bail!("{url}: scheme {scheme}:// is not supported yet"),
        Some((scheme, _)) => bail!("{url}: unknown scheme {scheme}://"),
        None => bail!("{url}: URL scheme must be http, https, unix, or unixs"),
    };
    let rest = rest.trim_end_matches('/');
    let port = rest.rsplit_once(':').and_then(|(_, p)| p.parse::<u16>().ok());
    ensure!(port.is_some(), "{url}: URL address does not have the form \"host:port\"");
    Ok(rest.to_owned())
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
        for bad in ["10.0.0.1:2379", "http://host", "https://a:1", "ftp://a:1", "http://a:99999"] {
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
    fn election_needs_five_heartbeats() {
        let config = ServerConfig { election_timeout: Duration::from_millis(300), ..ServerConfig::default() };
        assert!(config.check().is_err());
        ServerConfig::default().check().expect("the defaults");
    }
}
