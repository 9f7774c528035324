//! Plain gRPC on h2: what a load generator needs of it, at the least cost to the processors that it shares with the
//! servers.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::header::{CONTENT_TYPE, HeaderValue, TE};
use http::{HeaderMap, Method, Request, Uri, Version};
use prost::Message;
use std::fmt;
use tokio::net::TcpStream;

/// Flow-control windows: larger than all that is under way, so that they never matter.
const WINDOW_BYTES: u32 = 16 << 20;
/// gRPC puts a flag and a length in front of each message.
const PREFIX_BYTES: usize = 5;

/// Why a call failed.
#[derive(Clone, Debug)]
pub(crate) enum CallError {
    /// The server's word.
    Status {
        /// The gRPC code.
        code: i32,
        /// Its text.
        message: String,
    },
    /// The connection broke, or what came was no gRPC.
    Connection(String),
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status { code, message } => write!(f, "code {code}: {message}"),
            Self::Connection(why) => write!(f, "connection: {why}"),
        }
    }
}

impl std::error::Error for CallError {}

impl From<h2::Error> for CallError {
    fn from(e: h2::Error) -> Self {
        Self::Connection(e.to_string())
    }
}

/// One HTTP/2 connection; clones share it.
#[derive(Clone)]
pub(crate) struct Connection {
    send: SendRequest<Bytes>,
    base: String,
}

/// Where a method is, made once for many calls.
#[derive(Clone)]
pub(crate) struct Endpoint(Uri);

impl Connection {
    /// Connects to `address` (`host:port`). Must be called inside a `LocalSet`.
    pub(crate) async fn open(address: &str) -> Result<Self, CallError> {
        let io = |e: std::io::Error| CallError::Connection(e.to_string());
        let stream = TcpStream::connect(address).await.map_err(io)?;
        stream.set_nodelay(true).map_err(io)?;
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES).enable_push(false);
        let (send, connection) = builder.handshake::<_, Bytes>(stream).await?;
        tokio::task::spawn_local(async move {
            let _ = connection.await;
        });
        Ok(Self { send, base: format!("http://{address}") })
    }

    /// `path` as in `/etcdserverpb.KV/Put`.
    pub(crate) fn method(&self, path: &str) -> Endpoint {
        Endpoint(format!("{}{path}", self.base).parse().expect("an address and a path make a URI"))
    }

    async fn start(&mut self, method: &Endpoint) -> Result<(ResponseFuture, SendStream<Bytes>), CallError> {
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = method.0.clone();
        *request.version_mut() = Version::HTTP_2;
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
        std::future::poll_fn(|cx| self.send.poll_ready(cx)).await?;
        Ok(self.send.send_request(request, false)?)
    }

    /// One question, one answer.
    pub(crate) async fn unary<M: Message, R: Message + Default>(&mut self, method: &Endpoint, message: &M) -> Result<R, CallError> {
        let (response, mut send) = self.start(method).await?;
        send.send_data(frame(message), true)?;
        let mut incoming = Incoming { head: Some(response), body: None, buffer: BytesMut::new() };
        let answer = incoming.next().await?;
        // The status stands in the trailers, behind the message.
        match (answer, incoming.end().await) {
            (_, Err(e)) => Err(e),
            (Some(answer), Ok(())) => Ok(answer),
            (None, Ok(())) => Err(CallError::Connection("no answer and no error".into())),
        }
    }

    /// A call with messages both ways.
    pub(crate) async fn stream(&mut self, method: &Endpoint) -> Result<Stream, CallError> {
        let (response, send) = self.start(method).await?;
        Ok(Stream { send, incoming: Incoming { head: Some(response), body: None, buffer: BytesMut::new() } })
    }
}

fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut out = BytesMut::with_capacity(PREFIX_BYTES + length);
    out.put_u8(0);
    out.put_u32(u32::try_from(length).expect("messages are small"));
    message.encode(&mut out).expect("the buffer grows");
    out.freeze()
}

/// A call with messages both ways; dropping it ends it.
pub(crate) struct Stream {
    send: SendStream<Bytes>,
    incoming: Incoming,
}

impl Stream {
    /// Sends a message.
    pub(crate) fn send(&mut self, message: &impl Message) -> Result<(), CallError> {
        Ok(self.send.send_data(frame(message), false)?)
    }

    /// The next message; an end of the stream is an error too, as no stream that we open ends by itself.
    pub(crate) async fn next<R: Message + Default>(&mut self) -> Result<R, CallError> {
        match self.incoming.next().await? {
            Some(message) => Ok(message),
            None => {
                self.incoming.end().await?;
                Err(CallError::Connection("the stream ended".into()))
            }
        }
    }
}

struct Incoming {
    head: Option<ResponseFuture>,
    body: Option<RecvStream>,
    buffer: BytesMut,
}

fn status(headers: &HeaderMap) -> Result<(), CallError> {
    let code = headers.get("grpc-status").and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    match code {
        None | Some(0) => Ok(()),
        Some(code) => {
            let message = headers.get("grpc-message").map(|m| String::from_utf8_lossy(m.as_bytes()).into_owned());
            Err(CallError::Status { code, message: message.unwrap_or_default() })
        }
    }
}

impl Incoming {
    /// The next message, or `None` at the end of the body.
    async fn next<R: Message + Default>(&mut self) -> Result<Option<R>, CallError> {
        if let Some(head) = self.head.take() {
            let (parts, body) = head.await?.into_parts();
            status(&parts.headers)?;
            self.body = Some(body);
        }
        let Some(body) = &mut self.body else { return Ok(None) };
        loop {
            if let Some(prefix) = self.buffer.first_chunk::<PREFIX_BYTES>() {
                let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
                if self.buffer.len() >= PREFIX_BYTES + length {
                    self.buffer.advance(PREFIX_BYTES);
                    let message = R::decode(self.buffer.split_to(length));
                    return message.map(Some).map_err(|e| CallError::Connection(e.to_string()));
                }
            }
            let Some(data) = body.data().await else { return Ok(None) };
            let data = data?;
            body.flow_control().release_capacity(data.len())?;
            self.buffer.extend_from_slice(&data);
        }
    }

    /// Reads to the end of the body, and the status.
    async fn end(&mut self) -> Result<(), CallError> {
        let Some(body) = &mut self.body else { return Ok(()) };
        while let Some(data) = body.data().await {
            body.flow_control().release_capacity(data?.len())?;
        }
        body.trailers().await?.map_or(Ok(()), |t| status(&t))
    }
}
