//! The members' connections to each other: a link to each peer, and the connections that peers open to us.

use crate::frame::{Frame, Preface, encode};
use crate::link::{Link, LinkEvent};
use crate::server::{Accepted, greet, greet_back};
use brickraft_engine::member::driver::Transport;
use brickraft_engine::member::{MemberStatus, PeerMessage};
use brickraft_engine::raft::Membership;
use brickraft_engine::types::{Index, NodeId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// Messages that wait between the sockets and the member at most, in either direction.
const MESSAGES_MAX: usize = 4096;

/// The first message of a connection between members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberHello {
    /// The cluster that the speaker belongs to.
    pub cluster_id: u64,
    /// Who speaks.
    pub from: NodeId,
    /// Whom to.
    pub to: NodeId,
}

/// What a member knows of its cluster: the answer to a connection with [`Preface::Members`], which anybody may open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembersAnswer {
    /// The cluster.
    pub cluster_id: u64,
    /// The last entry that the member has applied.
    pub applied: Index,
    /// The members as of that entry.
    pub membership: Membership,
}

/// How long a member may take to say who belongs to its cluster.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// Asks the member at `address` who belongs to its cluster.
///
/// # Errors
/// The connection's own; `InvalidData` when somebody else answers.
pub async fn ask_members(address: &str) -> io::Result<MembersAnswer> {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(&Preface::Members.bytes()).await?;
        stream.write_all(&encode(0, &[], 0)).await?;
        let answer = greet_back(stream).await?;
        postcard::from_bytes(&answer.head).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    };
    tokio::time::timeout(ASK_TIMEOUT, ask).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn answer_members(me: &Me, accepted: Accepted) -> io::Result<()> {
    let answer = {
        let status = me.status.borrow();
        MembersAnswer { cluster_id: me.cluster_id, applied: status.applied, membership: status.membership.clone() }
    };
    let head = postcard::to_allocvec(&answer).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    let mut write = accepted.write;
    write.write_all(&encode(0, &head, 0)).await?;
    write.shutdown().await
}

/// The members' addresses as they are to be reached, `host:port`.
pub type Addresses = BTreeMap<NodeId, String>;

/// Makes the transport of member `id` and the tasks that serve it. Must be called inside a
/// [`tokio::task::LocalSet`]. `addresses` changes with the membership; peers that are not in it are not let in.
///
/// `status` is what strangers are told who ask for the members.
pub fn start(
    cluster_id: u64,
    id: NodeId,
    listener: TcpListener,
    addresses: tokio::sync::watch::Receiver<Addresses>,
    status: tokio::sync::watch::Receiver<MemberStatus>,
) -> Transport {
    let (outgoing, to_send) = mpsc::channel(MESSAGES_MAX);
    let (received, incoming) = mpsc::channel(MESSAGES_MAX);
    let (lost, unreachable) = mpsc::channel(MESSAGES_MAX);
    let me = Rc::new(Me { cluster_id, id, addresses, status });
    tokio::task::spawn_local(send(me.clone(), to_send, lost));
    tokio::task::spawn_local(accept(me, listener, received));
    Transport { outgoing, incoming, unreachable }
}

struct Me {
    cluster_id: u64,
    id: NodeId,
    addresses: tokio::sync::watch::Receiver<Addresses>,
    status: tokio::sync::watch::Receiver<MemberStatus>,
}

async fn send(me: Rc<Me>, mut messages: mpsc::Receiver<(NodeId, PeerMessage)>, lost: mpsc::Sender<NodeId>) {
    let mut links: BTreeMap<NodeId, (String, Link)> = BTreeMap::new();
    let up: Rc<RefCell<BTreeMap<NodeId, bool>>> = Rc::default();
    let mut addresses = me.addresses.clone();
    addresses.mark_changed();
    loop {
        tokio::select! {
            changed = addresses.changed() => if changed.is_err() { return },
            message = messages.recv() => {
                let Some((to, message)) = message else { return };
                let Some((_, link)) = links.get(&to) else { continue };
                let Ok(head) = message.encode() else { continue };
                if !up.borrow().get(&to).is_some_and(|&up| up) {
                    let _ = lost.try_send(to);
                }
                if !link.send(Frame { id: 0, head, payload: Bytes::new() }) {
                    tracing::debug!(%to, "queue to the peer is full, message dropped");
                }
                continue;
            }
        }
        let wanted = addresses.borrow_and_update().clone();
        links.retain(|id, (address, _)| wanted.get(id) == Some(address));
        for (peer, address) in wanted {
            if peer == me.id || links.contains_key(&peer) {
                continue;
            }
            let hello = MemberHello { cluster_id: me.cluster_id, from: me.id, to: peer };
            let hello = Bytes::from(postcard::to_allocvec(&hello).expect("plain data"));
            let (up, lost) = (up.clone(), lost.clone());
            let link = Link::start(address.clone(), Preface::Member, hello, move |event| {
                up.borrow_mut().insert(peer, event == LinkEvent::Up);
                if event != LinkEvent::Up {
                    let _ = lost.try_send(peer);
                }
            });
            links.insert(peer, (address, link));
        }
    }
}

async fn accept(me: Rc<Me>, listener: TcpListener, received: mpsc::Sender<(NodeId, PeerMessage)>) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                let (me, received) = (me.clone(), received.clone());
                tokio::task::spawn_local(async move {
                    let result = match greet(stream).await {
                        Ok(accepted) if accepted.preface == Preface::Members => answer_members(&me, accepted).await,
                        Ok(accepted) => receive(&me, accepted, &received).await,
                        Err(e) => Err(e),
                    };
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

async fn receive(me: &Me, mut peer: Accepted, received: &mpsc::Sender<(NodeId, PeerMessage)>) -> std::io::Result<()> {
    let refuse = |why: String| Err(std::io::Error::new(std::io::ErrorKind::PermissionDenied, why));
    let hello: MemberHello = match postcard::from_bytes(&peer.hello.head) {
        Ok(hello) if peer.preface == Preface::Member => hello,
        _ => return refuse("no member's greeting".into()),
    };
    if hello.cluster_id != me.cluster_id || hello.to != me.id {
        return refuse(format!("greeting of member {:016x} of cluster {:016x} to {:016x}", hello.from.0, hello.cluster_id, hello.to.0));
    }
    while let Some(frame) = peer.frames.next().await? {
        if !me.addresses.borrow().contains_key(&hello.from) {
            return refuse(format!("{:016x} is not a member", hello.from.0));
        }
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
