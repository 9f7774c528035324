//! The JSON gateway: `POST /v3/...` with a request's JSON is answered with the response's.
//!
//! It writes a gRPC request and hands it to the very services that gRPC clients reach, in the same process; so checks,
//! permissions, limits and error texts are theirs. A streaming method's answers are lines of `{"result": ...}`; a method
//! that takes a stream reads JSON values for as long as the request's body goes on.

mod json;
mod routes;

use super::{front, pages};
use bytes::{Bytes, BytesMut};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use json::Next;
use prost_reflect::MethodDescriptor;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use tonic::service::Routes;
use tonic::{Code, Status};

const JSON: &str = "application/json";
/// Base64 and the names in JSON take more room than the request they stand for.
const JSON_OVERHEAD: usize = 2;
/// Pieces on their way from or to a streaming client.
const PIECES_MAX: usize = 4;

/// The gateway of one port.
#[derive(Clone)]
pub(super) struct Gateway {
    services: Routes,
    /// JSON of one request.
    bytes_max: usize,
}

/// The HTTP status that grpc-gateway gives a code.
fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::Cancelled => StatusCode::REQUEST_TIMEOUT,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn refusal(status: &Status) -> Response<Body> {
    let text = json!({ "error": status.message(), "code": status.code() as i32, "message": status.message() });
    pages::response(http_status(status.code()), JSON, text.to_string())
}

/// A stream that has begun ends with this line.
fn error_line(status: &Status) -> Bytes {
    let http = http_status(status.code());
    let error = json!({
        "grpc_code": status.code() as i32,
        "http_code": http.as_u16(),
        "message": status.message(),
        "http_status": http.canonical_reason().unwrap_or_default(),
    });
    (json!({ "error": error }).to_string() + "\n").into()
}

/// What goes on to the services: the token, and headers with grpc-gateway's prefix.
fn metadata(from: &HeaderMap) -> HeaderMap {
    let mut to = HeaderMap::new();
    for (name, value) in from {
        if name == header::AUTHORIZATION {
            let token = value.as_bytes().strip_prefix(b"Bearer ").unwrap_or(value.as_bytes());
            if let Ok(token) = HeaderValue::from_bytes(token) {
                to.insert(HeaderName::from_static("token"), token);
            }
        } else if let Some(plain) = name.as_str().strip_prefix("grpc-metadata-").and_then(|n| HeaderName::try_from(n).ok()) {
            to.append(plain, value.clone());
        }
    }
    to.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    to.insert(header::TE, HeaderValue::from_static("trailers"));
    to
}

fn descriptor(path: &str) -> Option<MethodDescriptor> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    super::pb::descriptors().get_service_by_name(service)?.methods().find(|m| m.name() == method)
}

impl Gateway {
    pub(super) fn new(services: Routes, request_bytes_max: usize) -> Self {
        Self { services, bytes_max: request_bytes_max * JSON_OVERHEAD }
    }

    pub(super) async fn serve(self, request: Request<Body>) -> Response<Body> {
        if request.method() == Method::OPTIONS {
            return Response::new(Body::empty());
        }
        let found = routes::method_path(request.uri().path()).and_then(|path| Some((path, descriptor(path)?)));
        let Some((path, method)) = found else {
            return pages::response(
                StatusCode::NOT_FOUND,
                JSON,
                json!({ "error": "Not Found", "code": 5, "message": "Not Found" }).to_string(),
            );
        };
        if request.method() != Method::POST {
            let text = json!({ "error": "Method Not Allowed", "code": 12, "message": "Method Not Allowed" });
            return pages::response(StatusCode::METHOD_NOT_ALLOWED, JSON, text.to_string());
        }
        let most = front::time_left(request.headers());
        if most.is_none()
            && let Some(nonsense) = request.headers().get(front::TIMEOUT)
        {
            let text = format!("invalid grpc-timeout: {}", String::from_utf8_lossy(nonsense.as_bytes()));
            return refusal(&Status::invalid_argument(text));
        }
        let late = || Err(Status::deadline_exceeded("context deadline exceeded"));
        front::within(most, self.call(path, method, request), late).await.unwrap_or_else(|status| refusal(&status))
    }

    async fn call(mut self, path: &'static str, method: MethodDescriptor, request: Request<Body>) -> Result<Response<Body>, Status> {
        let (parts, mut body) = request.into_parts();
        let mut buffer = BytesMut::new();
        let streams = method.is_client_streaming();
        let first = self.first_value(&mut body, &mut buffer, streams).await?;
        let first = json::to_frame(&method.input(), first).map_err(Status::invalid_argument)?;
        let body = if streams { self.follow(first, body, buffer, method.clone()) } else { Body::new(http_body_util::Full::new(first)) };
        let mut inner = Request::new(body);
        *inner.method_mut() = Method::POST;
        *inner.uri_mut() = path.parse().map_err(|_| Status::internal("a method's path"))?;
        *inner.headers_mut() = metadata(&parts.headers);
        // Who the connection belongs to.
        *inner.extensions_mut() = parts.extensions;
        let answer = match self.services.call(inner).await {
            Ok(answer) => answer,
            Err(never) => match never {},
        };
        if let Some(status) = Status::from_header_map(answer.headers()).filter(|s| s.code() != Code::Ok) {
            return Err(status);
        }
        if method.is_server_streaming() { Ok(lines(answer.into_body(), method)) } else { whole(answer.into_body(), &method).await }
    }

    /// Reads the body up to the end of its first value; all of it where there can be only one.
    async fn first_value(&self, body: &mut Body, buffer: &mut BytesMut, streams: bool) -> Result<Value, Status> {
        loop {
            let ended = !read_more(body, buffer, self.bytes_max).await?;
            if !ended && !streams {
                continue;
            }
            match json::take_value(buffer) {
                Next::Value(value) => return Ok(value),
                Next::More if !ended => {}
                // No body asks for the defaults.
                Next::More if buffer.iter().all(u8::is_ascii_whitespace) => return Ok(json!({})),
                Next::More => return Err(Status::invalid_argument("unexpected EOF")),
                Next::Malformed(why) => return Err(Status::invalid_argument(why)),
            }
        }
    }

    /// A body of gRPC frames that goes on for as long as JSON values come.
    fn follow(&self, first: Bytes, mut body: Body, mut buffer: BytesMut, method: MethodDescriptor) -> Body {
        let (pieces, stream) = mpsc::channel::<Result<Frame<Bytes>, Status>>(PIECES_MAX);
        let bytes_max = self.bytes_max;
        tokio::spawn(async move {
            if pieces.send(Ok(Frame::data(first))).await.is_err() {
                return;
            }
            loop {
                let piece = match json::take_value(&mut buffer) {
                    Next::Value(value) => json::to_frame(&method.input(), value).map_err(Status::invalid_argument),
                    Next::Malformed(why) => Err(Status::invalid_argument(why)),
                    Next::More => {
                        let more = tokio::select! {
                            more = read_more(&mut body, &mut buffer, bytes_max) => more,
                            () = pieces.closed() => return,
                        };
                        match more {
                            Ok(true) => continue,
                            Ok(false) => return,
                            Err(e) => Err(e),
                        }
                    }
                };
                let failed = piece.is_err();
                if pieces.send(piece.map(Frame::data)).await.is_err() || failed {
                    return;
                }
            }
        });
        Body::new(StreamBody::new(ReceiverStream::new(stream)))
    }
}

/// Adds the next piece of a body; false at its end.
async fn read_more(body: &mut Body, buffer: &mut BytesMut, bytes_max: usize) -> Result<bool, Status> {
    match body.frame().await {
        None => Ok(false),
        Some(Err(e)) => Err(e),
        Some(Ok(frame)) => {
            if let Some(data) = frame.data_ref() {
                buffer.extend_from_slice(data);
            }
            if buffer.len() > bytes_max {
                return Err(Status::invalid_argument("etcdserver: request is too large"));
            }
            Ok(true)
        }
    }
}

/// The one answer of a method that does not stream.
async fn whole(mut body: Body, method: &MethodDescriptor) -> Result<Response<Body>, Status> {
    let mut buffer = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame?;
        if let Some(data) = frame.data_ref() {
            buffer.extend_from_slice(data);
        } else if let Some(status) = frame.trailers_ref().and_then(Status::from_header_map).filter(|s| s.code() != Code::Ok) {
            return Err(status);
        }
    }
    let message = json::take_message(&mut buffer).ok_or_else(|| Status::internal("no answer"))?;
    let shown = json::from_message(&method.output(), message).map_err(Status::internal)?;
    let mut response = pages::response(StatusCode::OK, JSON, shown.to_string());
    response.headers_mut().insert("grpc-metadata-content-type", HeaderValue::from_static("application/grpc"));
    Ok(response)
}

/// A line for each answer of a method that streams.
fn lines(mut body: Body, method: MethodDescriptor) -> Response<Body> {
    let (out, stream) = mpsc::channel::<Result<Frame<Bytes>, Status>>(PIECES_MAX);
    tokio::spawn(async move {
        let mut buffer = BytesMut::new();
        loop {
            // Dropping the body when the client goes tells the service.
            let frame = tokio::select! {
                frame = body.frame() => frame,
                () = out.closed() => return,
            };
            let Some(frame) = frame else { return };
            let mut pieces = Vec::new();
            match frame {
                Err(status) => pieces.push(error_line(&status)),
                Ok(frame) => {
                    if let Some(data) = frame.data_ref() {
                        buffer.extend_from_slice(data);
                    } else if let Some(status) = frame.trailers_ref().and_then(Status::from_header_map).filter(|s| s.code() != Code::Ok) {
                        pieces.push(error_line(&status));
                    }
                    while let Some(message) = json::take_message(&mut buffer) {
                        pieces.push(match json::from_message(&method.output(), message) {
                            Ok(result) => (json!({ "result": result }).to_string() + "\n").into(),
                            Err(e) => error_line(&Status::internal(e)),
                        });
                    }
                }
            }
            for piece in pieces {
                if out.send(Ok(Frame::data(piece))).await.is_err() {
                    return;
                }
            }
        }
    });
    let mut response = Response::new(Body::new(StreamBody::new(ReceiverStream::new(stream))));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(JSON));
    response.headers_mut().insert("grpc-metadata-content-type", HeaderValue::from_static("application/grpc"));
    response
}
