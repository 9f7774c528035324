//! The management protocol: JSON questions and answers over one connection each (FORMAT.md, "management").

use crate::records::{NodeRecord, VolumeRecord};
use brickraft_engine::types::NodeId;
use brickraft_fs::replica::{AdminRequest, BrickId, GroupConfig, GroupInfo};
use brickraft_net::client::Connection;
use brickraft_net::frame::{Preface, encode};
use brickraft_net::server::greet_back;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// The port for management, bricks and mounts; GlusterFS's own management port.
pub const BRICK_PORT: u16 = 24007;
/// How long connecting to a server may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a question may go unanswered.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// A question to a server.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the names are the commands'")]
pub enum Ask {
    // The operator's.
    PeerProbe {
        host: String,
    },
    PeerDetach {
        host: String,
        force: bool,
    },
    PeerStatus,
    PoolList,
    VolumeCreate {
        name: String,
        replica: usize,
        bricks: Vec<String>,
        force: bool,
    },
    VolumeStart {
        name: String,
    },
    VolumeStop {
        name: String,
    },
    VolumeDelete {
        name: String,
    },
    VolumeList,
    VolumeInfo {
        name: Option<String>,
    },
    VolumeStatus {
        name: Option<String>,
    },
    VolumeHeal {
        name: String,
        full: bool,
    },
    VolumeHealInfo {
        name: String,
    },
    VolumeScrub {
        name: String,
    },
    // A mount's.
    VolumeView {
        name: String,
    },
    // Between servers.
    /// Who are you?
    Whoami,
    /// Become a member of my cluster.
    Join(JoinRequest),
    /// Check a directory and make it a brick.
    BrickPrepare {
        volume: String,
        brick: BrickId,
        path: String,
        force: bool,
    },
    /// Undo a `BrickPrepare` whose volume did not come into being, or free the bricks of a deleted volume.
    BrickRelease {
        volume: String,
        brick: BrickId,
        path: String,
    },
    /// Ask the brick itself.
    BrickAdmin {
        brick: BrickId,
        request: AdminRequest,
    },
    /// Which bricks run?
    BrickStatus,
}

/// What a server that is to join must know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The cluster.
    pub cluster_id: u64,
    /// The id that the server gets.
    pub member_id: NodeId,
    /// The address that it was probed by.
    pub host: String,
    /// Where its peers will reach it.
    pub peer_urls: Vec<String>,
    /// Where clients will reach it.
    pub client_urls: Vec<String>,
    /// The members so far and their peer URLs. No map: inside a tagged enum serde reads no map with numbers for keys.
    pub members: Vec<(NodeId, Vec<String>)>,
}

/// The answer to [`Ask::Whoami`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Whoami {
    /// The server's member id.
    pub member_id: NodeId,
    /// Its cluster.
    pub cluster_id: u64,
    /// Members of its cluster.
    pub members: usize,
    /// It holds nothing that would be lost if it joined another cluster.
    pub empty: bool,
    /// The ports that it listens on for peers and clients.
    pub peer_port: u16,
    /// See `peer_port`.
    pub client_port: u16,
    /// The addresses that it tells to others, where it was told any.
    pub peer_urls: Vec<String>,
    /// See `peer_urls`.
    pub client_urls: Vec<String>,
}

/// The answer to [`Ask::PeerStatus`] and [`Ask::PoolList`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeerStatus {
    /// The server.
    pub node: NodeRecord,
    /// It is the one that answers.
    pub local: bool,
    /// It answers.
    pub connected: bool,
    /// It votes (a server that is just joining does not yet).
    pub voter: bool,
    /// It leads the coordination store.
    pub leader: bool,
}

/// Names one brick.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BrickName {
    /// Its id.
    pub id: BrickId,
    /// `HOST:/DIR`.
    pub name: String,
}

/// The answer to [`Ask::VolumeInfo`], one for each volume.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// The record.
    pub volume: VolumeRecord,
    /// Its bricks in order.
    pub bricks: Vec<BrickName>,
}

/// What a server tells of a brick that it runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunningBrick {
    /// The brick.
    pub id: BrickId,
    /// The incarnation that it runs under; 0 when it does not run.
    pub incarnation: u64,
    /// Why it does not run, when it should.
    pub error: Option<String>,
    /// The server's process.
    pub pid: u32,
    /// The server's port.
    pub port: u16,
}

/// One line of `volume status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BrickStatus {
    /// `HOST:/DIR`.
    pub name: String,
    /// Its id.
    pub id: BrickId,
    /// Its server answers and runs it.
    pub online: bool,
    /// `primary`, `in sync`, `healing`, `out of sync`.
    pub state: String,
    /// The server's process.
    pub pid: Option<u32>,
    /// The server's port.
    pub port: Option<u16>,
    /// Why it does not run, when it should.
    pub error: Option<String>,
}

/// The answer to [`Ask::VolumeStatus`], one for each volume.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VolumeStatusReport {
    /// The volume.
    pub name: String,
    /// The bricks in order.
    pub bricks: Vec<BrickStatus>,
    /// The group's epochs in order.
    pub epochs: Vec<u64>,
}

/// The answer to [`Ask::VolumeHeal`], [`Ask::VolumeHealInfo`] and [`Ask::VolumeScrub`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HealReport {
    /// The volume.
    pub name: String,
    /// Its bricks, for the ids in `groups`.
    pub bricks: Vec<BrickName>,
    /// What the primary of each group says.
    pub groups: Vec<GroupInfo>,
}

/// The answer to [`Ask::VolumeView`]: all that a mount must know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VolumeView {
    /// The volume.
    pub volume: VolumeRecord,
    /// The configuration of each group.
    pub groups: Vec<GroupConfig>,
    /// Where each brick answers.
    pub bricks: BTreeMap<BrickId, String>,
    /// All servers, to ask when this one is gone.
    pub servers: Vec<String>,
}

/// Why a question got no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The server says no; its text is for the user.
    #[error("{0}")]
    Refused(String),
    /// The server cannot be reached.
    #[error("{address}: {what} (is `brickraft server` running there? another server can be named with --server)")]
    Unreachable {
        /// The server.
        address: String,
        /// What happened.
        what: String,
    },
}

fn unreachable(address: &str) -> impl Fn(std::io::Error) -> AskError + '_ {
    move |e| AskError::Unreachable { address: address.into(), what: e.to_string() }
}

fn decode<T: DeserializeOwned>(address: &str, answer: &[u8]) -> Result<T, AskError> {
    let result: Result<Result<T, String>, _> = serde_json::from_slice(answer);
    result
        .map_err(|e| AskError::Unreachable { address: address.into(), what: format!("answer cannot be read: {e}") })?
        .map_err(AskError::Refused)
}

/// Asks from a thread that may block.
///
/// # Errors
/// The server's refusal, or that it cannot be reached.
pub fn ask<T: DeserializeOwned>(address: &str, ask: &Ask, timeout: Duration) -> Result<T, AskError> {
    let question = serde_json::to_vec(ask).expect("plain data");
    let mut c = Connection::open(address, Preface::Management, &[], CONNECT_TIMEOUT.min(timeout)).map_err(unreachable(address))?;
    let (answer, _) = c.call(&question, &[], &mut |waited| waited < timeout).map_err(unreachable(address))?;
    decode(address, &answer)
}

/// Asks from a task.
///
/// # Errors
/// The server's refusal, or that it cannot be reached.
pub async fn ask_async<T: DeserializeOwned>(address: &str, ask: &Ask, timeout: Duration) -> Result<T, AskError> {
    let question = serde_json::to_vec(ask).expect("plain data");
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(&Preface::Management.bytes()).await?;
        stream.write_all(&encode(0, &[], 0)).await?;
        stream.write_all(&encode(1, &question, 0)).await?;
        greet_back(stream).await
    };
    match tokio::time::timeout(timeout, exchange).await {
        Ok(Ok(frame)) => decode(address, &frame.head),
        Ok(Err(e)) => Err(unreachable(address)(e)),
        Err(_) => Err(unreachable(address)(std::io::ErrorKind::TimedOut.into())),
    }
}

/// The same to the same address, which adds the port where it is missing.
#[must_use]
pub fn with_port(address: &str) -> String {
    let has_port = match address.rsplit_once(':') {
        Some((host, port)) => port.parse::<u16>().is_ok() && (!host.contains(':') || host.starts_with('[')),
        None => false,
    };
    if has_port { address.to_owned() } else { format!("{address}:{BRICK_PORT}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_survives_the_wire() {
        let request = JoinRequest {
            cluster_id: u64::MAX,
            member_id: NodeId(7),
            host: "h2".into(),
            peer_urls: vec!["http://h2:2380".into()],
            client_urls: Vec::new(),
            members: vec![(NodeId(u64::MAX), vec!["http://h1:2380".into()])],
        };
        let text = serde_json::to_vec(&Ask::Join(request.clone())).expect("encode");
        let Ok(Ask::Join(back)) = serde_json::from_slice(&text) else { panic!("{}", String::from_utf8_lossy(&text)) };
        assert_eq!(back.members, request.members);
    }

    #[test]
    fn ports_are_added_where_missing() {
        assert_eq!(with_port("host"), "host:24007");
        assert_eq!(with_port("10.0.0.1:7"), "10.0.0.1:7");
        assert_eq!(with_port("[::1]:7"), "[::1]:7");
        assert_eq!(with_port("[::1]"), "[::1]:24007");
    }
}
