//! The brick port: mounts, other bricks and management questions come in here.

use super::admin::Admin;
use super::bricks::Bricks;
use crate::wire::{BrickHello, ClientHello, ClientMessage, ServerMessage};
use brickraft_fs::replica::{BrickId, ClientRequest, PeerMsg, ReplicaError, ReplicaEvent};
use brickraft_net::frame::{Frame, Preface};
use brickraft_net::server::{Accepted, answer, greet};
use bytes::Bytes;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::spawn_local;

/// A session without a connection for so long is over: what it had open is released.
const SESSION_GRACE: Duration = Duration::from_secs(60);

/// Connections of each session to each brick.
#[derive(Default)]
struct Sessions {
    connections: RefCell<BTreeMap<(BrickId, u64), usize>>,
}

/// Serves the port until the listener fails for good.
pub async fn serve(listener: TcpListener, bricks: Rc<Bricks>, admin: Rc<Admin>) {
    let sessions = Rc::new(Sessions::default());
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                let (bricks, admin, sessions) = (bricks.clone(), admin.clone(), sessions.clone());
                spawn_local(async move {
                    if let Err(e) = connection(stream, &bricks, &admin, &sessions).await {
                        tracing::debug!(%from, %e, "connection ended");
                    }
                });
            }
            Err(e) => {
                tracing::warn!(%e, "accept on the brick port");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

async fn connection(stream: TcpStream, bricks: &Rc<Bricks>, admin: &Rc<Admin>, sessions: &Rc<Sessions>) -> io::Result<()> {
    let accepted = greet(stream).await?;
    match accepted.preface {
        Preface::Client => client(accepted, bricks, sessions).await,
        Preface::Brick => brick(accepted, bricks).await,
        Preface::Management => management(accepted, admin).await,
        Preface::Member | Preface::Members => Err(invalid("members meet at the peer port")),
    }
}

async fn client(mut peer: Accepted, bricks: &Rc<Bricks>, sessions: &Rc<Sessions>) -> io::Result<()> {
    let hello: ClientHello = postcard::from_bytes(&peer.hello.head).map_err(|e| invalid(format!("client's greeting: {e}")))?;
    let key = (hello.brick, hello.session);
    *sessions.connections.borrow_mut().entry(key).or_default() += 1;
    let (frames, queue) = mpsc::unbounded_channel();
    let conn = bricks.connected(frames.clone());
    let writer = spawn_local(answer(peer.write, queue));
    let result = requests(&mut peer.frames, &hello, conn, bricks, &frames).await;
    bricks.disconnected(conn);
    writer.abort();
    let last = {
        let mut connections = sessions.connections.borrow_mut();
        let count = connections.entry(key).or_insert(1);
        *count -= 1;
        let last = *count == 0;
        if last {
            connections.remove(&key);
        }
        last
    };
    if last && !matches!(result, Ok(true)) {
        let (bricks, sessions) = (bricks.clone(), sessions.clone());
        spawn_local(async move {
            tokio::time::sleep(SESSION_GRACE).await;
            if !sessions.connections.borrow().contains_key(&key) {
                bricks.deliver(hello.brick, ReplicaEvent::SessionGone(hello.session));
            }
        });
    }
    result.map(|_| ())
}

/// Takes requests until the end; true when the session said goodbye.
async fn requests(
    incoming: &mut brickraft_net::frame::FrameReader<tokio::net::tcp::OwnedReadHalf>,
    hello: &ClientHello,
    conn: u64,
    bricks: &Rc<Bricks>,
    frames: &mpsc::UnboundedSender<Frame>,
) -> io::Result<bool> {
    while let Some(frame) = incoming.next().await? {
        let message: ClientMessage = postcard::from_bytes(&frame.head).map_err(|e| invalid(format!("client's message: {e}")))?;
        match message {
            ClientMessage::Op { op, acked, retry, epoch, fence, fop } => {
                let request =
                    ClientRequest { conn, request: frame.id, session: hello.session, op, acked, retry, epoch, fence, fop, payload: frame.payload };
                if !bricks.deliver(hello.brick, ReplicaEvent::Client(request)) {
                    let refusal: ServerMessage = Err(ReplicaError::Busy);
                    let head = Bytes::from(postcard::to_allocvec(&refusal).expect("plain data"));
                    let _ = frames.send(Frame { id: frame.id, head, payload: Bytes::new() });
                }
            }
            ClientMessage::Goodbye => {
                bricks.deliver(hello.brick, ReplicaEvent::SessionGone(hello.session));
                return Ok(true);
            }
        }
    }
    Ok(false)
}

async fn brick(mut peer: Accepted, bricks: &Rc<Bricks>) -> io::Result<()> {
    let hello: BrickHello = postcard::from_bytes(&peer.hello.head).map_err(|e| invalid(format!("brick's greeting: {e}")))?;
    let known = |view: &crate::records::ClusterView| {
        let group = |id| view.bricks.get(&id).map(|b| (b.volume.clone(), b.group));
        group(hello.from).is_some() && group(hello.from) == group(hello.to)
    };
    while let Some(frame) = peer.frames.next().await? {
        if !known(&bricks.view()) {
            return Err(invalid(format!("brick {:016x} is not of the same group as brick {:016x}", hello.from, hello.to)));
        }
        let msg: PeerMsg = postcard::from_bytes(&frame.head).map_err(|e| invalid(format!("brick's message: {e}")))?;
        if !bricks.deliver(hello.to, ReplicaEvent::Peer { from: hello.from, msg, payload: frame.payload }) {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("brick {:016x} does not run here", hello.to)));
        }
    }
    Ok(())
}

async fn management(mut peer: Accepted, admin: &Rc<Admin>) -> io::Result<()> {
    let (frames, queue) = mpsc::unbounded_channel();
    let seen_by = peer.write.local_addr()?;
    let writer = spawn_local(answer(peer.write, queue));
    while let Some(frame) = peer.frames.next().await? {
        let result = match serde_json::from_slice(&frame.head) {
            Ok(ask) => admin.answer(ask, seen_by).await,
            Err(e) => Err(format!("the question cannot be read (is it from another version of brickraft?): {e}")),
        };
        let head = Bytes::from(serde_json::to_vec(&result).expect("plain data"));
        let _ = frames.send(Frame { id: frame.id, head, payload: Bytes::new() });
    }
    drop(frames);
    let _ = writer.await;
    Ok(())
}
