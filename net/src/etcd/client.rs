//! A client of any etcd v3 server, for our own command line: snapshots and members.

use super::pb::etcdserverpb as pb;
use crate::stream::Stream;
use crate::tls::Connector;
use hyper_util::rt::TokioIo;
use std::error::Error as _;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Uri};
use tonic::{Request, Status};

/// How endpoints are reached.
#[derive(Clone, Debug)]
pub struct Dial {
    /// What speaks TLS. `https://` and `unixs://` need it, an endpoint without a scheme uses it where it is there.
    pub tls: Option<Connector>,
    /// How long a connection may take to come about.
    pub connect_timeout: Duration,
    /// How long an answer may take, or the beginning of a stream; `None`: for ever.
    pub request_timeout: Option<Duration>,
}

impl Default for Dial {
    /// etcdctl's time-outs, without TLS.
    fn default() -> Self {
        Self { tls: None, connect_timeout: Duration::from_secs(2), request_timeout: Some(Duration::from_secs(5)) }
    }
}

/// An endpoint, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Target<'a> {
    unix: bool,
    /// `None`: as the flags have it.
    tls: Option<bool>,
    /// `host:port`, or a socket's path.
    address: &'a str,
}

impl<'a> Target<'a> {
    fn parse(endpoint: &'a str) -> Result<Self, String> {
        let (scheme, address) = endpoint.split_once("://").map_or((None, endpoint), |(s, a)| (Some(s), a));
        let (unix, tls) = match scheme {
            None => (false, None),
            Some("http") => (false, Some(false)),
            Some("https") => (false, Some(true)),
            Some("unix") => (true, Some(false)),
            Some("unixs") => (true, Some(true)),
            Some(other) => return Err(format!("scheme {other}:// is not http, https, unix or unixs")),
        };
        Ok(Self { unix, tls, address: if unix { address } else { address.trim_end_matches('/') } })
    }
}

/// Whether the endpoint's scheme asks for TLS; `None` where it has no scheme, or none that is known.
#[must_use]
pub fn endpoint_tls(endpoint: &str) -> Option<bool> {
    Target::parse(endpoint).ok().and_then(|target| target.tls)
}

/// Why a connection broke: a server that does not like a client's certificate says so only behind the handshake, and gRPC
/// tells of a connection that is closed, and no more.
#[derive(Clone, Debug, Default)]
struct Broken(Arc<Mutex<Option<String>>>);

impl Broken {
    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that notes why it breaks.
struct Noting {
    stream: Stream,
    broken: Broken,
}

impl Noting {
    /// When nothing can be sent any more, what the other side sent before it closed may say why: the sender is told once
    /// that is read, or the end.
    fn note_unsent<T>(&mut self, cx: &mut Context<'_>, result: io::Result<T>) -> Poll<io::Result<T>> {
        if let Err(e) = &result {
            let mut byte = [0];
            let said = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut ReadBuf::new(&mut byte)));
            self.broken.lock().get_or_insert_with(|| said.err().map_or_else(|| e.to_string(), |said| said.to_string()));
        }
        Poll::Ready(result)
    }
}

impl AsyncRead for Noting {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.stream).poll_read(cx, out));
        if let Err(e) = &result {
            self.broken.lock().get_or_insert_with(|| e.to_string());
        }
        Poll::Ready(result)
    }
}

impl AsyncWrite for Noting {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes));
        self.note_unsent(cx, result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.stream).poll_flush(cx));
        self.note_unsent(cx, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

async fn open(unix: bool, address: String, tls: Option<Connector>, broken: Broken) -> io::Result<TokioIo<Noting>> {
    let (stream, host) = if unix {
        (Stream::Unix(UnixStream::connect(&address).await?), "localhost:0")
    } else {
        let stream = TcpStream::connect(&address).await?;
        stream.set_nodelay(true)?;
        (Stream::Tcp(stream), address.as_str())
    };
    let stream = match tls {
        Some(tls) => tls.connect(host, stream).await?,
        None => stream,
    };
    Ok(TokioIo::new(Noting { stream, broken }))
}

/// What is at the bottom of an error: what stands above it says only that there was a transport.
fn cause(e: &(dyn std::error::Error + 'static)) -> String {
    let mut last = e;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

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
    /// The connection broke.
    #[error("{0}")]
    Broken(String),
    /// What arrived could not be written, or is not whole.
    #[error(transparent)]
    Io(#[from] io::Error),
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
    broken: Broken,
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
    /// Connects to `HOST:PORT`, `http://` or `https://` with that, or `unix://` or `unixs://` with a path.
    ///
    /// # Errors
    /// When the endpoint cannot be reached, or wants TLS and `dial` has none.
    pub async fn connect(endpoint: &str, dial: &Dial) -> Result<Self, ClientError> {
        let failed = |why: String| ClientError::Connect { endpoint: endpoint.to_owned(), why };
        let target = Target::parse(endpoint).map_err(failed)?;
        let tls = dial.tls.clone().filter(|_| target.tls != Some(false));
        if target.tls == Some(true) && tls.is_none() {
            return Err(failed("TLS is not set up".into()));
        }
        let scheme = if tls.is_some() { "https" } else { "http" };
        let authority = if target.unix { "localhost" } else { target.address };
        let origin: Uri = format!("{scheme}://{authority}").parse().map_err(|_| failed("it is no HOST:PORT".into()))?;
        // The connector below sees to TLS, so tonic must not ask for its own.
        let channel = Channel::from_shared(format!("http://{authority}")).map_err(|e| failed(e.to_string()))?.origin(origin);
        let channel = match dial.request_timeout {
            Some(timeout) => channel.timeout(timeout),
            None => channel,
        };
        let (unix, address, broken) = (target.unix, target.address.to_owned(), Broken::default());
        let note = broken.clone();
        let connector = tower::service_fn(move |_: Uri| open(unix, address.clone(), tls.clone(), note.clone()));
        match tokio::time::timeout(dial.connect_timeout, channel.connect_with_connector(connector)).await {
            Ok(Ok(channel)) => Ok(Self { channel, token: None, broken }),
            Ok(Err(e)) => Err(failed(format!("cannot be reached: {}", cause(&e)))),
            Err(_) => Err(failed(format!("cannot be reached within {:?}", dial.connect_timeout))),
        }
    }

    /// Authenticates; later requests carry the token.
    ///
    /// # Errors
    /// What the server says.
    pub async fn login(&mut self, name: &str, password: &str) -> Result<(), ClientError> {
        let request = pb::AuthenticateRequest { name: name.to_owned(), password: password.to_owned() };
        let answer = pb::auth_client::AuthClient::new(self.channel.clone()).authenticate(request).await.map_err(|s| self.failed(s))?;
        self.token = answer.into_inner().token.parse().ok();
        Ok(())
    }

    /// Why a request has no answer.
    fn failed(&self, status: Status) -> ClientError {
        match status.source() {
            // Made here, not by the server.
            Some(source) => ClientError::Broken(self.broken.lock().take().unwrap_or_else(|| cause(source))),
            None => ClientError::Refused(Box::new(status)),
        }
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
        let mut stream = client.snapshot(self.request(pb::SnapshotRequest {})).await.map_err(|s| self.failed(s))?.into_inner();
        let (mut bytes, mut left) = (0, None);
        while let Some(portion) = stream.message().await.map_err(|s| self.failed(s))? {
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
        let answer = self
            .cluster()
            .member_list(self.request(pb::MemberListRequest { linearizable: true }))
            .await
            .map_err(|s| self.failed(s))?
            .into_inner();
        Ok(members(answer.header, 0, answer.members))
    }

    /// Adds a member.
    ///
    /// # Errors
    /// What the server says.
    pub async fn member_add(&self, peer_urls: Vec<String>, is_learner: bool) -> Result<Members, ClientError> {
        let request = self.request(pb::MemberAddRequest { peer_ur_ls: peer_urls, is_learner });
        let answer = self.cluster().member_add(request).await.map_err(|s| self.failed(s))?.into_inner();
        Ok(members(answer.header, answer.member.map_or(0, |m| m.id), answer.members))
    }

    /// Removes a member.
    ///
    /// # Errors
    /// What the server says.
    pub async fn member_remove(&self, id: u64) -> Result<Members, ClientError> {
        let answer =
            self.cluster().member_remove(self.request(pb::MemberRemoveRequest { id })).await.map_err(|s| self.failed(s))?.into_inner();
        Ok(members(answer.header, 0, answer.members))
    }

    /// Gives a member other peer URLs.
    ///
    /// # Errors
    /// What the server says.
    pub async fn member_update(&self, id: u64, peer_urls: Vec<String>) -> Result<Members, ClientError> {
        let request = self.request(pb::MemberUpdateRequest { id, peer_ur_ls: peer_urls });
        let answer = self.cluster().member_update(request).await.map_err(|s| self.failed(s))?.into_inner();
        Ok(members(answer.header, 0, answer.members))
    }

    /// Makes a learner a voter.
    ///
    /// # Errors
    /// What the server says.
    pub async fn member_promote(&self, id: u64) -> Result<Members, ClientError> {
        let answer =
            self.cluster().member_promote(self.request(pb::MemberPromoteRequest { id })).await.map_err(|s| self.failed(s))?.into_inner();
        Ok(members(answer.header, 0, answer.members))
    }

    /// Whether the member behind this connection answers and knows a leader.
    ///
    /// # Errors
    /// What the server says.
    pub async fn is_alive(&self) -> Result<bool, ClientError> {
        let mut client = pb::maintenance_client::MaintenanceClient::new(self.channel.clone());
        let status = client.status(self.request(pb::StatusRequest {})).await.map_err(|s| self.failed(s))?.into_inner();
        Ok(status.leader != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_taken_apart() {
        let target = |unix, tls, address| Ok(Target { unix, tls, address });
        assert_eq!(Target::parse("h:1"), target(false, None, "h:1"));
        assert_eq!(Target::parse("http://h:1/"), target(false, Some(false), "h:1"));
        assert_eq!(Target::parse("https://[::1]:1"), target(false, Some(true), "[::1]:1"));
        assert_eq!(Target::parse("unix:///run/a/"), target(true, Some(false), "/run/a/"));
        assert_eq!(Target::parse("unixs://a"), target(true, Some(true), "a"));
        assert!(Target::parse("ftp://h:1").is_err());
        assert_eq!((endpoint_tls("https://h:1"), endpoint_tls("h:1"), endpoint_tls("ftp://h:1")), (Some(true), None, None));
    }
}
