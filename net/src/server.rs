//! The accepting side of our TCP protocols.

use crate::frame::{Frame, FrameReader, Preface, encode, write_all};
use bytes::Bytes;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

/// How long a new connection may take to say what it is.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(5);
/// Frames that one write may carry.
const BATCH_FRAMES_MAX: usize = 64;

/// An accepted connection that has said what it is.
#[derive(Debug)]
pub struct Accepted {
    /// What it is for.
    pub preface: Preface,
    /// Its first message.
    pub hello: Frame,
    /// What it says from now on.
    pub frames: FrameReader<OwnedReadHalf>,
    /// The way back.
    pub write: OwnedWriteHalf,
}

/// Reads preface and hello of a fresh connection.
///
/// # Errors
/// The connection's own, `TimedOut`, or `InvalidData` when somebody else's protocol is spoken.
pub async fn greet(stream: TcpStream) -> io::Result<Accepted> {
    stream.set_nodelay(true)?;
    let (read, write) = stream.into_split();
    let (preface, hello, frames) = greeting(read).await?;
    Ok(Accepted { preface, hello, frames, write })
}

/// The same for a connection on which only the other side speaks.
///
/// # Errors
/// As [`greet`].
pub async fn greeting<R: AsyncRead + Unpin>(mut read: R) -> io::Result<(Preface, Frame, FrameReader<R>)> {
    let greeting = async {
        let mut preface = [0; 8];
        read.read_exact(&mut preface).await?;
        let preface = Preface::parse(preface)?;
        let mut frames = FrameReader::new(read);
        let hello = frames.next().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok((preface, hello, frames))
    };
    tokio::time::timeout(PREFACE_TIMEOUT, greeting).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Sends queued frames until the queue's senders are gone or the connection breaks. Answers are few
/// where requests are bounded, so the queue needs no bound of its own.
///
/// # Errors
/// The connection's own.
pub async fn answer(mut write: OwnedWriteHalf, mut frames: mpsc::UnboundedReceiver<Frame>) -> io::Result<()> {
    let mut batch = Vec::with_capacity(BATCH_FRAMES_MAX);
    let mut parts: Vec<Bytes> = Vec::with_capacity(2 * BATCH_FRAMES_MAX);
    while frames.recv_many(&mut batch, BATCH_FRAMES_MAX).await > 0 {
        parts.clear();
        for frame in batch.drain(..) {
            parts.push(encode(frame.id, &frame.head, frame.payload.len()));
            if !frame.payload.is_empty() {
                parts.push(frame.payload);
            }
        }
        write_all(&mut write, &mut parts).await?;
    }
    Ok(())
}

/// The asking side's counterpart: waits for the one answer on a connection.
///
/// # Errors
/// The connection's own.
pub async fn greet_back(stream: impl AsyncRead + Unpin) -> io::Result<Frame> {
    FrameReader::new(stream).next().await?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}
