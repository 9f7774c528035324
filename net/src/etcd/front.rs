//! What a client port does with a request: gRPC to the services, counted; the plain pages; the JSON gateway.

use super::gateway::Gateway;
use super::metrics::Method;
use super::unary::{self, Call, Reply, Unary};
use super::{Api, ClientCertName, pages};
use http_body::Frame;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use tonic::codegen::{Body as HttpBody, BoxFuture, Bytes, Service, StdError};
use tonic::service::Routes;
use tonic::{Code, Status};

/// How long a client waits.
pub(super) const TIMEOUT: header::HeaderName = header::HeaderName::from_static("grpc-timeout");

/// One connection's service. Made anew for each request, so that this must cost little.
#[derive(Clone)]
pub(super) struct Front {
    port: Arc<Port>,
    /// Whom the connection's certificate names, if anybody.
    name: Option<ClientCertName>,
}

struct Port {
    api: Api,
    /// `None` on a port that has the pages alone.
    services: Option<Routes>,
    gateway: Option<Gateway>,
}

impl Front {
    pub(super) fn new(api: Api, services: Option<Routes>) -> Self {
        let settings = api.settings();
        let bytes_max = settings.limits.request_bytes_max;
        let gateway = services.as_ref().filter(|_| settings.gateway).map(|s| Gateway::new(s.clone(), bytes_max));
        Self { port: Arc::new(Port { api, services, gateway }), name: None }
    }

    /// The service of a connection whose certificate names somebody, or nobody where the name is empty.
    pub(super) fn of(&self, name: ClientCertName) -> Self {
        Self { port: self.port.clone(), name: Some(name).filter(|name| !name.0.is_empty()) }
    }
}

type Answer = BoxFuture<Response<Body>, Infallible>;

/// By tonic's services.
fn call<B>(services: &Routes, request: Request<B>) -> Answer
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    let most = time_left(request.headers());
    let answer = services.clone().call(request.map(Body::new));
    Box::pin(within(most, answer, || Ok(unary::timed_out().into_http())))
}

/// An answer, or what `late` gives to whoever has waited for as long as he wanted to.
pub(super) async fn within<T>(most: Option<Duration>, answer: impl Future<Output = T>, late: impl FnOnce() -> T) -> T {
    match most {
        None => answer.await,
        Some(most) => tokio::time::timeout(most, answer).await.unwrap_or_else(|_| late()),
    }
}

/// How long the client waits, where it says so and says it well: up to eight digits and a unit.
pub(super) fn time_left(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(TIMEOUT)?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = number.parse().ok().filter(|_| number.len() <= 8 && number.bytes().all(|b| b.is_ascii_digit()))?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// Whose answer is waited for.
pub(super) enum FrontFuture<B> {
    Kv(Unary<B>, Arc<Method>),
    Grpc(Answer, Option<Arc<Method>>),
    Plain(Pin<Box<dyn Future<Output = Response<Body>> + Send>>),
    Lost,
}

impl<B> Service<Request<B>> for Front
where
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = Response<Reply>;
    type Error = Infallible;
    type Future = FrontFuture<B>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        // The services are always ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<B>) -> FrontFuture<B> {
        let Port { api, services, gateway } = &*self.port;
        let method = services.as_ref().and_then(|_| api.settings().metrics.method(request.uri().path()).cloned());
        if let Some(method) = &method {
            method.started();
            if let Some(kv) = Call::of(&request) {
                let most = time_left(request.headers());
                return FrontFuture::Kv(Unary::new(api, kv, self.name.clone(), most, request), method.clone());
            }
        }
        if let Some(name) = &self.name {
            request.extensions_mut().insert(name.clone());
        }
        if let (Some(services), Some(method)) = (services, method) {
            let answer = if method.streams() {
                call(services, request.map(|body| Received { body, messages: Messages::default(), method: method.clone() }))
            } else {
                call(services, request)
            };
            return FrontFuture::Grpc(answer, Some(method));
        }
        let path = request.uri().path();
        if pages::is_page(path) {
            let (api, request) = (api.clone(), request.map(Body::new));
            return FrontFuture::Plain(Box::pin(async move { allow_any_origin(pages::serve(api, request).await) }));
        }
        if path.starts_with("/v3/")
            && let Some(gateway) = gateway.clone()
        {
            let request = request.map(Body::new);
            return FrontFuture::Plain(Box::pin(async move { allow_any_origin(gateway.serve(request).await) }));
        }
        match services {
            Some(services) if is_grpc(request.headers()) => FrontFuture::Grpc(call(services, request), None),
            _ => FrontFuture::Lost,
        }
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(b"application/grpc"))
}

/// etcd's `--cors` is `*` unless told otherwise, and it cannot be told otherwise here.
fn allow_any_origin(mut response: Response<Body>) -> Response<Body> {
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("POST, GET, OPTIONS, PUT, DELETE"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("accept, content-type, authorization"));
    response
}

fn code(headers: &HeaderMap) -> Option<Code> {
    Status::from_header_map(headers).map(|s| s.code())
}

impl<B> Future for FrontFuture<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
{
    type Output = Result<Response<Reply>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let lost = || pages::response(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "404 page not found\n");
        match self.get_mut() {
            Self::Kv(unary, method) => {
                let (response, code) = unary::response(ready!(Pin::new(unary).poll(cx)));
                method.handled(code as usize);
                Poll::Ready(Ok(response))
            }
            Self::Plain(page) => page.as_mut().poll(cx).map(|page| Ok(page.map(Reply::Other))),
            Self::Lost => Poll::Ready(Ok(lost().map(Reply::Other))),
            Self::Grpc(answer, method) => {
                let response = ready!(answer.as_mut().poll(cx))?.map(Reply::Other);
                let Some(method) = method.take() else { return Poll::Ready(Ok(response)) };
                match code(response.headers()) {
                    // A refusal is all header.
                    Some(code) => method.handled(code as usize),
                    None if method.streams() => {
                        let counted = |body| {
                            Reply::Other(Body::new(Counted {
                                body,
                                method: Some(method),
                                code: Code::Cancelled,
                                messages: Messages::default(),
                            }))
                        };
                        return Poll::Ready(Ok(response.map(counted)));
                    }
                    None => method.handled(Code::Ok as usize),
                }
                Poll::Ready(Ok(response))
            }
        }
    }
}

/// Finds messages in what goes by, by the prefix that each has.
#[derive(Default)]
struct Messages {
    prefix: [u8; unary::PREFIX_LEN],
    /// What has been seen of the prefix.
    known: usize,
    /// What is left of the message.
    left: usize,
}

impl Messages {
    /// How many messages begin here.
    fn pass(&mut self, mut data: &[u8]) -> u64 {
        let mut begun = 0;
        while !data.is_empty() {
            let in_message = self.left > 0;
            let most = if in_message { self.left } else { self.prefix.len() - self.known };
            let (now, rest) = data.split_at(most.min(data.len()));
            data = rest;
            if in_message {
                self.left -= now.len();
                continue;
            }
            self.prefix[self.known..self.known + now.len()].copy_from_slice(now);
            self.known += now.len();
            if self.known == self.prefix.len() {
                let [_, a, b, c, d] = self.prefix;
                self.left = u32::from_be_bytes([a, b, c, d]) as usize;
                self.known = 0;
                begun += 1;
            }
        }
        begun
    }
}

/// What a client sends on a stream.
struct Received<B> {
    body: B,
    messages: Messages,
    method: Arc<Method>,
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for Received<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()).and_then(Frame::data_ref) {
            let begun = self.messages.pass(data);
            self.method.received(begun);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

/// A stream's body; its outcome is counted at its end, or when the client goes away before.
struct Counted {
    body: Reply,
    method: Option<Arc<Method>>,
    code: Code,
    messages: Messages,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Self { body, messages, method, code: end } = &mut *self;
        let frame = ready!(Pin::new(body).poll_frame(cx));
        match &frame {
            None => *end = Code::Ok,
            Some(Err(status)) => *end = status.code(),
            Some(Ok(frame)) => {
                if let (Some(data), Some(method)) = (frame.data_ref(), method) {
                    method.sent(messages.pass(data));
                }
                if let Some(trailers) = frame.trailers_ref() {
                    *end = code(trailers).unwrap_or(Code::Ok);
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(method) = self.method.take() {
            method.handled(self.code as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_however_they_are_cut() {
        let bytes = [&[0, 0, 0, 0, 3, 1, 2, 3][..], &[0, 0, 0, 0, 0], &[1, 0, 0, 1, 1], &[7; 257]].concat();
        for step in [1, 2, 5, 7, 100, bytes.len()] {
            let mut messages = Messages::default();
            assert_eq!(bytes.chunks(step).map(|piece| messages.pass(piece)).sum::<u64>(), 3, "{step}");
            assert_eq!((messages.known, messages.left), (0, 0));
        }
    }

    #[test]
    fn the_time_that_a_client_waits() {
        let left = |text: &'static str| time_left(&HeaderMap::from_iter([(TIMEOUT, HeaderValue::from_static(text))]));
        assert_eq!(left("5S"), Some(Duration::from_secs(5)));
        assert_eq!(left("100m"), Some(Duration::from_millis(100)));
        assert_eq!(left("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(left("7u"), Some(Duration::from_micros(7)));
        for nonsense in ["", "S", "5", "5x", "-5S", "+5S", "123456789n", "5 S"] {
            assert_eq!(left(nonsense), None, "{nonsense}");
        }
        assert_eq!(time_left(&HeaderMap::new()), None);
    }
}
