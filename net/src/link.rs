//! A one-way connection to a peer that is opened again whenever it breaks.
//!
//! Messages go out in order; what was queued or under way when it broke is lost, and the owner is told so.

use crate::frame::{Frame, HEADER_BYTES, Preface, encode, seal, write_all};
use crate::stream::Stream;
use crate::tls::Connector;
use crate::traffic::PeerTraffic;
use bytes::Bytes;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// The bound of a link's queue, in frames; what comes on top of it is dropped, as a network would.
pub const LINK_QUEUE_MAX: usize = 8192;
/// Frames that one write may carry.
const BATCH_FRAMES_MAX: usize = 64;
/// Waits between two attempts to connect: from the first to the last, doubling.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// How long one attempt to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// What happens to a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// Open, or open again.
    Up,
    /// Broken; the peer may live.
    Down,
    /// The peer's host answers and has nobody listening: the process is not there.
    Refused,
}

/// A frame as it is written: header and head, and the payload.
type Parts = (Bytes, Bytes);

/// The sending end; dropping it closes the connection.
#[derive(Debug)]
pub struct Link {
    queue: mpsc::Sender<Parts>,
    task: AbortHandle,
}

impl Link {
    /// Starts connecting to `address` (`host:port`, looked up anew each time). Must be called inside a
    /// [`tokio::task::LocalSet`] or a `LocalRuntime`. Each connection begins with `preface` and `hello`.
    pub fn start(address: String, preface: Preface, hello: Bytes, on_event: impl Fn(LinkEvent) + 'static) -> Self {
        Self::start_with(address, None, preface, hello, Arc::default(), on_event)
    }

    /// The same, over TLS where there is a connector; what is sent is counted in `traffic`.
    pub fn start_with(
        address: String,
        tls: Option<Connector>,
        preface: Preface,
        hello: Bytes,
        traffic: Arc<PeerTraffic>,
        on_event: impl Fn(LinkEvent) + 'static,
    ) -> Self {
        let (queue, frames) = mpsc::channel(LINK_QUEUE_MAX);
        let far = Far { address, tls, preface, hello, traffic };
        let task = tokio::task::spawn_local(run(far, frames, on_event)).abort_handle();
        Self { queue, task }
    }

    /// Queues a frame; false when the queue is full and the frame is lost.
    pub fn send(&self, frame: Frame) -> bool {
        self.push((encode(frame.id, &frame.head, frame.payload.len()), frame.payload))
    }

    /// The same for a message that stands behind [`HEADER_BYTES`] of room, with neither number nor payload.
    pub fn send_message(&self, room_and_head: Vec<u8>) -> bool {
        debug_assert!(room_and_head.len() >= HEADER_BYTES);
        self.push((seal(0, room_and_head, 0), Bytes::new()))
    }

    fn push(&self, parts: Parts) -> bool {
        self.queue.try_send(parts).is_ok()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whom a link goes to, and what is said first.
struct Far {
    address: String,
    tls: Option<Connector>,
    preface: Preface,
    hello: Bytes,
    traffic: Arc<PeerTraffic>,
}

async fn run(far: Far, mut frames: mpsc::Receiver<Parts>, on_event: impl Fn(LinkEvent)) {
    let address = &far.address;
    let mut wait = RETRY.0;
    loop {
        match connect(&far).await {
            Ok(stream) => {
                wait = RETRY.0;
                while frames.try_recv().is_ok() {}
                on_event(LinkEvent::Up);
                let why = pump(stream, &mut frames, &far.traffic).await;
                tracing::debug!(%address, ?why, "link closed");
                on_event(LinkEvent::Down);
                if frames.is_closed() {
                    return;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => on_event(LinkEvent::Refused),
            Err(e) => tracing::trace!(%address, %e, "link: connect"),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(RETRY.1);
    }
}

async fn connect(far: &Far) -> io::Result<Stream> {
    let attempt = async {
        let stream = TcpStream::connect(&far.address).await?;
        stream.set_nodelay(true)?;
        let mut stream = Stream::Tcp(stream);
        if let Some(tls) = &far.tls {
            stream = tls.connect(&far.address, stream).await?;
        }
        stream.write_all(&far.preface.bytes()).await?;
        stream.write_all(&encode(0, &far.hello, 0)).await?;
        stream.flush().await?;
        Ok(stream)
    };
    tokio::time::timeout(CONNECT_TIMEOUT, attempt).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Sends until the connection breaks or the owner is gone.
async fn pump(stream: Stream, frames: &mut mpsc::Receiver<Parts>, traffic: &PeerTraffic) -> io::Result<()> {
    let (mut read, mut write) = tokio::io::split(stream);
    let mut batch = Vec::with_capacity(BATCH_FRAMES_MAX);
    let mut parts = Vec::with_capacity(2 * BATCH_FRAMES_MAX);
    let mut byte = [0];
    loop {
        tokio::select! {
            // The other side never speaks; what can be read is the end.
            end = read.read(&mut byte) => return end.map(|_| ()),
            n = frames.recv_many(&mut batch, BATCH_FRAMES_MAX) => {
                if n == 0 {
                    return Ok(());
                }
                parts.clear();
                for (head, payload) in batch.drain(..) {
                    parts.push(head);
                    if !payload.is_empty() {
                        parts.push(payload);
                    }
                }
                let bytes = parts.iter().map(Bytes::len).sum();
                write_all(&mut write, &mut parts).await?;
                traffic.sent(bytes);
                // TLS keeps what the socket had no room for.
                write.flush().await?;
            }
        }
    }
}
