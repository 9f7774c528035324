//! KV's calls, taken from HTTP and answered without tonic's layers: they are what nearly all requests are, and those layers
//! cost each some microseconds.
//!
//! What is seldom goes the ordinary way (compressed messages). Everything else is as tonic does it: one message in, one
//! message and `grpc-status` out; a refusal is all header.

use super::Api;
use super::auth::Caller;
use super::peer_name::ClientCertName;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::TryFutureExt as _;
use http_body::{Frame, SizeHint};
use prost::Message;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::Sleep;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, HeaderValue, Request, Response, header};
use tonic::codegen::{Body as HttpBody, StdError};
use tonic::{Code, Status};

/// Before each message: whether it is compressed, and its length in four bytes.
pub(super) const PREFIX_LEN: usize = 5;
const SERVICE: &str = "/etcdserverpb.KV/";
const STATUS: header::HeaderName = header::HeaderName::from_static("grpc-status");
const ENCODING: &str = "grpc-encoding";

/// A method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Range,
    Put,
    DeleteRange,
    Txn,
    Compact,
}

impl Call {
    /// The method that a request is for, if it can be served here.
    pub(super) fn of<B>(request: &Request<B>) -> Option<Self> {
        let call = match request.uri().path().strip_prefix(SERVICE)? {
            "Range" => Self::Range,
            "Put" => Self::Put,
            "DeleteRange" => Self::DeleteRange,
            "Txn" => Self::Txn,
            "Compact" => Self::Compact,
            _ => return None,
        };
        (!request.headers().contains_key(ENCODING)).then_some(call)
    }
}

type Answer = Pin<Box<dyn Future<Output = Result<Bytes, Status>> + Send>>;

/// A call that is under way; yields the encoded answer.
pub(super) struct Unary<B> {
    state: State<B>,
    /// How long the client waits.
    deadline: Option<Pin<Box<Sleep>>>,
}

enum State<B> {
    Reading(Reading<B>),
    /// With the request's body, which has nothing more to say.
    Answering(Answer, #[allow(dead_code, reason = "the stream is not to be reset for want of a reader")] B),
    Begun,
}

/// A request whose message is not there yet.
struct Reading<B> {
    caller: Caller,
    call: Call,
    body: B,
    /// What came of a message that comes in pieces.
    pieces: BytesMut,
}

impl<B> Unary<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
{
    pub(super) fn new(api: &Api, call: Call, cert: Option<ClientCertName>, most: Option<Duration>, request: Request<B>) -> Self {
        let (parts, body) = request.into_parts();
        let caller = Caller::new(api.clone(), &parts.headers, cert);
        let reading = Reading { caller, call, body, pieces: BytesMut::new() };
        Self { state: State::Reading(reading), deadline: most.map(|most| Box::pin(tokio::time::sleep(most))) }
    }

    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, Status>> {
        if let State::Reading(reading) = &mut self.state {
            let message = ready!(reading.poll_message(cx))?;
            if let State::Reading(Reading { caller, call, body, .. }) = std::mem::replace(&mut self.state, State::Begun) {
                self.state = State::Answering(answer(caller, call, message)?, body);
            }
        }
        match &mut self.state {
            State::Answering(answer, _) => answer.as_mut().poll(cx),
            State::Reading(_) | State::Begun => Poll::Pending,
        }
    }
}

impl<B> Future for Unary<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
{
    type Output = Result<Bytes, Status>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if let Poll::Ready(answer) = this.poll_answer(cx) {
            return Poll::Ready(answer);
        }
        match &mut this.deadline {
            Some(deadline) => deadline.as_mut().poll(cx).map(|()| Err(timed_out())),
            None => Poll::Pending,
        }
    }
}

impl<B> Reading<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
{
    /// The message. A slice of what was read from the connection where it came in one piece, as nearly all do.
    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, Status>> {
        let bytes_max = self.caller.settings().limits.message_bytes_max();
        loop {
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(e)) => return Poll::Ready(Err(Status::from_error(e.into()))),
                None if self.pieces.is_empty() => return Poll::Ready(Err(Status::internal("Missing request message."))),
                None => return Poll::Ready(Err(Status::internal("Unexpected EOF decoding stream."))),
            };
            let Ok(data) = frame.into_data() else { continue };
            if self.pieces.is_empty()
                && let Some(length) = message_length(&data, bytes_max)?
                && let Some(end) = length.checked_add(PREFIX_LEN).filter(|end| *end <= data.len())
            {
                return Poll::Ready(Ok(data.slice(PREFIX_LEN..end)));
            }
            self.pieces.extend_from_slice(&data);
            if let Some(length) = message_length(&self.pieces, bytes_max)?
                && self.pieces.len() - PREFIX_LEN >= length
            {
                return Poll::Ready(Ok(self.pieces.split_to(PREFIX_LEN + length).freeze().slice(PREFIX_LEN..)));
            }
        }
    }
}

fn answer(caller: Caller, call: Call, message: Bytes) -> Result<Answer, Status> {
    match call {
        Call::Range => begin(caller, message, Caller::kv_range),
        Call::Put => begin(caller, message, Caller::kv_put),
        Call::DeleteRange => begin(caller, message, Caller::kv_delete_range),
        Call::Txn => begin(caller, message, Caller::kv_txn),
        Call::Compact => begin(caller, message, Caller::kv_compact),
    }
}

/// To whoever has waited for as long as he wanted to.
pub(super) fn timed_out() -> Status {
    Status::cancelled("Timeout expired")
}

/// Decodes the request and begins the call, in a box of its own size.
fn begin<Q, A, F>(caller: Caller, message: Bytes, call: impl FnOnce(Caller, Q) -> F) -> Result<Answer, Status>
where
    Q: Message + Default,
    A: Message,
    F: Future<Output = Result<A, Status>> + Send + 'static,
{
    Ok(Box::pin(call(caller, decode(message)?).map_ok(|answer| encode(&answer))))
}

/// The length of the message that begins here; `None`: that is not there yet.
fn message_length(data: &[u8], bytes_max: usize) -> Result<Option<usize>, Status> {
    let Some(&[flag, a, b, c, d]) = data.first_chunk::<PREFIX_LEN>() else { return Ok(None) };
    match flag {
        0 => {}
        1 => {
            let text = "protocol error: received message with compressed-flag but no grpc-encoding was specified";
            return Err(Status::internal(text));
        }
        flag => {
            let text = format!("protocol error: received message with invalid compression flag: {flag} (valid flags are 0 and 1)");
            return Err(Status::internal(text));
        }
    }
    let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    if length > bytes_max {
        return Err(Status::resource_exhausted(format!("grpc: received message larger than max ({length} vs. {bytes_max})")));
    }
    Ok(Some(length))
}

fn decode<M: Message + Default>(message: Bytes) -> Result<M, Status> {
    M::decode(message).map_err(|e| Status::internal(e.to_string()))
}

fn encode(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX_LEN + length);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    message.encode_raw(&mut bytes);
    bytes.freeze()
}

/// What is sent back.
pub(super) enum Reply {
    /// One message, then that all went well.
    One(Option<Bytes>, Trailers),
    Other(Body),
}

/// The end of [`Reply::One`].
pub(super) enum Trailers {
    Due,
    Sent,
}

/// The response to a call, and its code.
pub(super) fn response(answer: Result<Bytes, Status>) -> (Response<Reply>, Code) {
    match answer {
        Ok(message) => {
            let mut response = Response::new(Reply::One(Some(message), Trailers::Due));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            (response, Code::Ok)
        }
        Err(status) => {
            let code = status.code();
            (status.into_http::<Body>().map(Reply::Other), code)
        }
    }
}

impl HttpBody for Reply {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.get_mut() {
            Self::Other(body) => Pin::new(body).poll_frame(cx),
            Self::One(message, trailers) => Poll::Ready(match (message.take(), &trailers) {
                (Some(message), _) => Some(Ok(Frame::data(message))),
                (None, Trailers::Due) => {
                    *trailers = Trailers::Sent;
                    let mut map = HeaderMap::with_capacity(1);
                    map.insert(STATUS, HeaderValue::from_static("0"));
                    Some(Ok(Frame::trailers(map)))
                }
                (None, Trailers::Sent) => None,
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Other(body) => body.is_end_stream(),
            Self::One(message, trailers) => message.is_none() && matches!(trailers, Trailers::Sent),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Other(body) => body.size_hint(),
            // gRPC has no use for a length.
            Self::One(..) => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::pb::etcdserverpb::PutRequest;

    #[test]
    fn a_messages_length_is_known_once_its_prefix_is_there() {
        assert_eq!(message_length(&[0, 0, 0, 1], 1000).unwrap(), None);
        assert_eq!(message_length(&[0, 0, 0, 1, 2], 1000).unwrap(), Some(258));
        assert_eq!(message_length(&[0, 0, 0, 1, 2], 257).unwrap_err().code(), Code::ResourceExhausted);
        assert_eq!(message_length(&[0, 255, 255, 255, 255], 257).unwrap_err().code(), Code::ResourceExhausted);
        assert_eq!(message_length(&[1, 0, 0, 1, 2], 1000).unwrap_err().code(), Code::Internal);
        assert_eq!(message_length(&[2, 0, 0, 1, 2], 1000).unwrap_err().code(), Code::Internal);
    }

    #[test]
    fn an_answer_is_a_message_and_then_a_status() {
        let put = PutRequest { key: Bytes::from_static(b"k"), ..PutRequest::default() };
        let bytes = encode(&put);
        assert_eq!(message_length(&bytes, 1000).unwrap(), Some(bytes.len() - PREFIX_LEN));
        assert_eq!(decode::<PutRequest>(bytes.slice(PREFIX_LEN..)).unwrap(), put);
        let (response, code) = response(Ok(bytes.clone()));
        assert_eq!(code, Code::Ok);
        let mut body = response.into_body();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut next = || match Pin::new(&mut body).poll_frame(&mut cx) {
            Poll::Ready(frame) => frame.transpose().unwrap(),
            Poll::Pending => unreachable!("it never waits"),
        };
        assert_eq!(next().unwrap().into_data().unwrap(), bytes);
        assert_eq!(next().unwrap().into_trailers().unwrap()[STATUS], "0");
        assert!(next().is_none());
        assert!(body.is_end_stream());
    }
}
