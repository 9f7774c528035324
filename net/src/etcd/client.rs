//! A client of any etcd v3 server, for our own command line: snapshots and members.

use super::pb::etcdserverpb as pb;
use std::io;
use std::time::Duration;
use thiserror::Error;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status};

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a command did not succeed.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The endpoint is no URL, or nobody answers there.
    #[error("{endpoint}: {why}")]
    Connect {
        /// What was given.
        endpoint: String,
        /// Why not.
        why: String,
    },
    /// The server refused. The text is the server's.
    #[error("{}", .0.message())]
    Refused(Box<Status>),
    /// What arrived could not be written, or is not whole.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<Status> for ClientError {
    fn from(status: Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

impl ClientError {
    /// Whether the server said exactly this.
    #[must_use]
    pub fn says(&self, text: &str) -> bool {
        matches!(self, Self::Refused(status) if status.message() == text)
    }
}

/// A member as the cluster lists it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "etcd's own field names")]
pub struct Member {
    pub id: u64,
    pub name: String,
    pub peer_urls: Vec<String>,
    pub client_urls: Vec<String>,
    pub is_learner: bool,
}

/// What a change of members left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// The cluster.
    pub cluster_id: u64,
    /// The member that was added, 0 otherwise.
    pub added: u64,
    /// All of them.
    pub members: Vec<Member>,
}

/// A connection to one endpoint.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
    token: Option<AsciiMetadataValue>,
}

fn members(header: Option<pb::ResponseHeader>, added: u64, members: Vec<pb::Member>) -> Members {
    let members = members.into_iter().map(|m| Member {
        id: m.id,
        name: m.name,
        peer_urls: m.peer_ur_ls,
        client_urls: m.client_ur_ls,
        is_learner: m.is_learner,
    });
    Members { cluster_id: header.map_or(0, |h| h.cluster_id), added, members: members.collect() }
}

impl Client {
    /// Connects to `http://HOST:PORT` or `HOST:PORT`.
    ///
    /// # Errors
    /// When the endpoint cannot be reached.
    pub async fn connect(endpoint: &str) -> Result<Self, ClientError> {
        let failed = |why: String| ClientError::Connect { endpoint: endpoint.to_owned(), why };
        let url = match endpoint.split_once("://") {
            Some(("http", _)) => endpoint.to_owned(),
            Some((scheme, _)) => return Err(failed(format!("scheme {scheme}:// is not supported yet"))),
            None => format!("http://{endpoint}"),
        };
        let channel = Channel::from_shared(url).map_err(|e| failed(e.to_string()))?.connect_timeout(CONNECT_TIMEOUT);
        match channel.connect().await {
            Ok(channel) => Ok(Self { channel, token: None }),
            Err(e) => {
                let cause = std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string);
                Err(failed(format!("cannot be reached: {cause}")))
            }
        }
    }

    /// Authenticates; later requests carry the token.
    ///
    /// # Errors
    /// What the server says.
    pub async fn login(&mut self, name: &str, password: &str) -> Result<(), ClientError> {
        let request = pb::AuthenticateRequest { name: name.to_owned(), password: password.to_owned() };
        let answer = pb::auth_client::AuthClient::new(self.channel.clone()).authenticate(request).await?;
        self.token = answer.into_inner().token.parse().ok();
        Ok(())
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.clone());
        }
        request
    }

    /// Has the server's state sent, portion by portion; the number of bytes.
    ///
    /// # Errors
    /// What the server or `take` says, and a stream that ends early.
    pub async fn snapshot(&self, take: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<u64, ClientError> {
        let mut client = pb::maintenance_client::MaintenanceClient::new(self.channel.clone()).max_decoding_message_size(usize::MAX);
        let mut stream = client.snapshot(self.request(pb::SnapshotRequest {})).await?.into_inner();
        let (mut bytes, mut left) = (0, None);
        while let Some(portion) = stream.message().await? {
            take(&portion.blob)?;
            bytes += portion.blob.len() as u64;
            left = Some(portion.remaining_bytes);
        }
        match left {
            Some(0) => Ok(bytes),
            left => {
                let why = format!("the snapshot breaks off after {bytes} bytes, {} are missing", left.unwrap_or(0));
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, why).into())
            }
        }
    }

    fn cluster(&self) -> pb::cluster_client::ClusterClient<Channel> {
        pb::cluster_client::ClusterClient::new(self.channel.clone())
    }

    /// The members, as a majority knows them.
    ///
    /// # Errors
    /// What the server says.
    pub async fn member_list(&self) -> Result<Members, ClientError> {
        let answer = self.cluster().member_list(self.request(pb::MemberListRequest { linearizable: true })).await?.into_inner();
        Ok(members(answer.header, 0, answer.members))
    }

    /// Adds a member.
    ///
    /// # Errors
    /// What the server says.
    pub async fn member_add(&self, peer_urls: Vec<String>, is_learner: bool) -> Result<Members, ClientError> {
        let request = self.request(pb::MemberAddRequest { peer_ur_ls: peer_urls, is_learner });
        let answer = self.cluster().member_add(request).await?.into_inner();
        Ok(members(answer.header, answer.member.map_or(0, |m| m.id), answer.members))
    }

    /// Removes a member.
    ///
    /// # Errors
    /// What the server says.
    pub async fn member_remove(&self, id: u64) -> Result<Members, ClientError> {
        let answer = self.cluster().member_remove(self.request(pb::MemberRemoveRequest { id })).await?.into_inner();
        Ok(members(answer.header, 0, answer.members))
    }

    /// Gives a member other peer URLs.
    ///
    /// # Errors
    /// What the server says.
    pub async fn member_update(&self, id: u64, peer_urls: Vec<String>) -> Result<Members, ClientError> {
        let request = self.request(pb::MemberUpdateRequest { id, peer_ur_ls: peer_urls });
        let answer = self.cluster().member_update(request).await?.into_inner();
        Ok(members(answer.header, 0, answer.members))
    }

    /// Makes a learner a voter.
    ///
    /// # Errors
    /// What the server says.
    pub async fn member_promote(&self, id: u64) -> Result<Members, ClientError> {
        let answer = self.cluster().member_promote(self.request(pb::MemberPromoteRequest { id })).await?.into_inner();
        Ok(members(answer.header, 0, answer.members))
    }

    /// Whether the member behind this connection answers and knows a leader.
    ///
    /// # Errors
    /// What the server says.
    pub async fn is_alive(&self) -> Result<bool, ClientError> {
        let mut client = pb::maintenance_client::MaintenanceClient::new(self.channel.clone());
        let status = client.status(self.request(pb::StatusRequest {})).await?.into_inner();
        Ok(status.leader != 0)
    }
}
