//! The members' connections to each other: a link to each peer, and the connections that peers open to us.

use crate::frame::{HEADER_BYTES, Preface, encode};
use crate::link::{Link, LinkEvent};
use crate::server::{greet_back, greeting};
use crate::stream::Stream;
use crate::tls::{Acceptor, Connector};
use crate::traffic::{PeerTraffic, Traffic};
use brickraft_engine::member::driver::Transport;
use brickraft_engine::member::{MemberStatus, PeerMessage};
use brickraft_engine::raft::Membership;
use brickraft_engine::types::{Index, NodeId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// Messages that wait between the sockets and the member at most, in either direction.
const MESSAGES_MAX: usize = 4096;

/// What a member is part of. The leader of a cluster with bricks looks after everybody's bricks, and a member of the
/// store alone cannot; so members of both kinds do not let each other in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Started as `etcd`.
    Store,
    /// Started as `brickraft server`.
    Bricks,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Store => "`etcd`",
            Self::Bricks => "`brickraft server`",
        })
    }
}

/// What there is to say when two kinds meet.
#[must_use]
pub fn mixed(cluster_id: u64, theirs: Kind, ours: Kind) -> String {
    format!(
        "cluster {cluster_id:016x} runs as {theirs}, and this member was started as {ours}: members of both kinds in one cluster are \
         refused, because a leader without bricks could not look after those of the others"
    )
}

/// Who a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Who {
    /// Its cluster.
    pub cluster_id: u64,
    /// Its id there.
    pub id: NodeId,
    /// What it is part of.
    pub kind: Kind,
}

/// The first message of a connection between members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberHello {
    /// The cluster that the speaker belongs to.
    pub cluster_id: u64,
    /// Who speaks.
    pub from: NodeId,
    /// Whom to.
    pub to: NodeId,
    /// What the speaker is part of.
    pub kind: Kind,
}

/// What a member knows of its cluster: the answer to a connection with [`Preface::Members`], which anybody may open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembersAnswer {
    /// The cluster.
    pub cluster_id: u64,
    /// The last entry that the member has applied.
    pub applied: Index,
    /// The members as of that entry.
    pub membership: Membership,
    /// What the member is part of.
    pub kind: Kind,
    /// Whether it knows a leader.
    pub has_leader: bool,
}

/// How long a member may take to say who belongs to its cluster.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// How a member is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAddress {
    /// `host:port`.
    pub address: String,
    /// Its URL is https.
    pub tls: bool,
}

/// The members' addresses.
pub type Addresses = BTreeMap<NodeId, PeerAddress>;

/// A port for peers.
#[derive(Debug)]
pub struct PeerPort {
    /// Where.
    pub listener: TcpListener,
    /// Its URL is https.
    pub tls: bool,
}

/// TLS between members, both ways.
#[derive(Clone, Debug)]
pub struct PeerTls {
    /// For those who come.
    pub acceptor: Acceptor,
    /// For those we go to.
    pub connector: Connector,
}

/// Connects to a member.
async fn connect(address: &PeerAddress, tls: Option<&PeerTls>) -> io::Result<Stream> {
    let stream = TcpStream::connect(&address.address).await?;
    stream.set_nodelay(true)?;
    match tls {
        _ if !address.tls => Ok(Stream::Tcp(stream)),
        Some(tls) => tls.connector.connect(&address.address, Stream::Tcp(stream)).await,
        None => Err(io::Error::new(io::ErrorKind::InvalidInput, "the URL is https, and there is no certificate to speak TLS with")),
    }
}

/// Asks the member at `address` who belongs to its cluster.
///
/// # Errors
/// The connection's own; `InvalidData` when somebody else answers.
pub async fn ask_members(address: &PeerAddress, tls: Option<&PeerTls>) -> io::Result<MembersAnswer> {
    let ask = async {
        let mut stream = connect(address, tls).await?;
        stream.write_all(&Preface::Members.bytes()).await?;
        stream.write_all(&encode(0, &[], 0)).await?;
        stream.flush().await?;
        let answer = greet_back(stream).await?;
        postcard::from_bytes(&answer.head).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    };
    tokio::time::timeout(ASK_TIMEOUT, ask).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn answer_members(me: &Me, mut write: impl AsyncWrite + Unpin) -> io::Result<()> {
    let answer = {
        let status = me.status.borrow();
        MembersAnswer {
            cluster_id: me.who.cluster_id,
            applied: status.applied,
            membership: status.membership.clone(),
            kind: me.who.kind,
            has_leader: status.leader.is_some(),
        }
    };
    let head = postcard::to_allocvec(&answer).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    write.write_all(&encode(0, &head, 0)).await?;
    write.shutdown().await
}

/// Makes the transport of member `who` and the tasks that serve it. Must be called inside a
/// [`tokio::task::LocalSet`] or a `LocalRuntime`. `addresses` changes with the membership; peers that are not in it are not let in. Ports and
/// addresses that ask for TLS are of no use without `tls`.
///
/// `status` is what strangers are told who ask for the members; what goes and comes is counted in `traffic`.
pub fn start(
    who: Who,
    ports: Vec<PeerPort>,
    tls: Option<PeerTls>,
    addresses: tokio::sync::watch::Receiver<Addresses>,
    status: tokio::sync::watch::Receiver<MemberStatus>,
    traffic: Arc<Traffic>,
) -> Transport {
    let (outgoing, to_send) = mpsc::channel(MESSAGES_MAX);
    let (received, incoming) = mpsc::channel(MESSAGES_MAX);
    let (lost, unreachable) = mpsc::channel(MESSAGES_MAX);
    let me = Rc::new(Me { who, addresses, tls, status, traffic, others: RefCell::default() });
    tokio::task::spawn_local(send(me.clone(), to_send, lost));
    for port in ports {
        tokio::task::spawn_local(accept(me.clone(), port, received.clone()));
    }
    Transport { outgoing, incoming, unreachable }
}

struct Me {
    who: Who,
    addresses: tokio::sync::watch::Receiver<Addresses>,
    status: tokio::sync::watch::Receiver<MemberStatus>,
    tls: Option<PeerTls>,
    traffic: Arc<Traffic>,
    /// Members of the other kind, which the log has been told of.
    others: RefCell<BTreeSet<NodeId>>,
}

async fn send(me: Rc<Me>, mut messages: mpsc::Receiver<(NodeId, PeerMessage)>, lost: mpsc::Sender<NodeId>) {
    let mut links: BTreeMap<NodeId, (PeerAddress, Link, Arc<PeerTraffic>)> = BTreeMap::new();
    let mut addresses = me.addresses.clone();
    addresses.mark_changed();
    loop {
        tokio::select! {
            changed = addresses.changed() => if changed.is_err() { return },
            message = messages.recv() => {
                let Some((to, message)) = message else { return };
                let Some((_, link, traffic)) = links.get(&to) else { continue };
                let Ok(message) = message.encode_behind(HEADER_BYTES) else { continue };
                if !traffic.connected.load(Ordering::Relaxed) {
                    let _ = lost.try_send(to);
                }
                if !link.send_message(message) {
                    tracing::debug!(%to, "queue to the peer is full, message dropped");
                }
                continue;
            }
        }
        let wanted = addresses.borrow_and_update().clone();
        links.retain(|id, (address, ..)| wanted.get(id) == Some(address));
        me.traffic.retain(|id| wanted.contains_key(&id));
        for (peer, address) in wanted {
            if peer == me.who.id || links.contains_key(&peer) {
                continue;
            }
            let hello = MemberHello { cluster_id: me.who.cluster_id, from: me.who.id, to: peer, kind: me.who.kind };
            let hello = Bytes::from(postcard::to_allocvec(&hello).expect("plain data"));
            let (traffic, lost) = (me.traffic.of(peer), lost.clone());
            traffic.connected.store(false, Ordering::Relaxed);
            let counted = traffic.clone();
            let connector = me.tls.as_ref().filter(|_| address.tls).map(|tls| tls.connector.clone());
            if address.tls && connector.is_none() {
                tracing::error!(%peer, "the peer's URL is https, and there is no certificate to speak TLS with (--peer-cert-file)");
                continue;
            }
            let link = Link::start_with(address.address.clone(), connector, Preface::Member, hello, traffic.clone(), move |event| {
                counted.connected.store(event == LinkEvent::Up, Ordering::Relaxed);
                if event != LinkEvent::Up {
                    let _ = lost.try_send(peer);
                }
            });
            links.insert(peer, (address, link, traffic));
        }
    }
}

async fn accept(me: Rc<Me>, port: PeerPort, received: mpsc::Sender<(NodeId, PeerMessage)>) {
    loop {
        match port.listener.accept().await {
            Ok((stream, from)) => {
                let (me, received, tls) = (me.clone(), received.clone(), port.tls);
                tokio::task::spawn_local(async move {
                    let result = receive(&me, stream, tls, &received).await;
                    if let Err(e) = result {
                        tracing::debug!(%from, %e, "peer connection ended");
                    }
                });
            }
            Err(e) => {
                tracing::warn!(%e, "accept on the peer port");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
        if received.is_closed() {
            return;
        }
    }
}

async fn receive(me: &Me, stream: TcpStream, tls: bool, received: &mpsc::Sender<(NodeId, PeerMessage)>) -> std::io::Result<()> {
    let refuse = |why: String| Err(std::io::Error::new(std::io::ErrorKind::PermissionDenied, why));
    stream.set_nodelay(true)?;
    let stream = match (&me.tls, tls) {
        (Some(ours), true) => ours.acceptor.accept(Stream::Tcp(stream)).await?,
        (None, true) => return refuse("there is no certificate to speak TLS with".into()),
        (_, false) => Stream::Tcp(stream),
    };
    let (read, write) = tokio::io::split(stream);
    let (preface, hello, mut frames) = greeting(read).await?;
    if preface == Preface::Members {
        return answer_members(me, write).await;
    }
    let hello: MemberHello = match postcard::from_bytes(&hello.head) {
        Ok(hello) if preface == Preface::Member => hello,
        _ => return refuse("no member's greeting".into()),
    };
    if hello.cluster_id != me.who.cluster_id || hello.to != me.who.id {
        return refuse(format!("greeting of member {:016x} of cluster {:016x} to {:016x}", hello.from.0, hello.cluster_id, hello.to.0));
    }
    if hello.kind != me.who.kind {
        if me.others.borrow_mut().insert(hello.from) {
            let (peer, theirs, ours) = (format_args!("{:016x}", hello.from.0), hello.kind, me.who.kind);
            tracing::error!(%peer, "a member that was started as {theirs} is not let in, because this one was started as {ours}");
        }
        return refuse(format!("{:016x} was started as {}", hello.from.0, hello.kind));
    }
    me.others.borrow_mut().remove(&hello.from);
    let mut traffic = None;
    while let Some(frame) = frames.next().await? {
        if !me.addresses.borrow().contains_key(&hello.from) {
            return refuse(format!("{:016x} is not a member", hello.from.0));
        }
        let traffic = traffic.get_or_insert_with(|| me.traffic.of(hello.from));
        traffic.received(HEADER_BYTES + frame.head.len() + frame.payload.len());
        match PeerMessage::decode(&frame.head) {
            Ok(message) => {
                if received.send((hello.from, message)).await.is_err() {
                    return Ok(());
                }
            }
            Err(e) => return refuse(e.to_string()),
        }
    }
    Ok(())
}
