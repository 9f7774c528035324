//! What a client port does with a request: gRPC to the services, counted; the plain pages; the JSON gateway.

use super::gateway::Gateway;
use super::metrics::Method;
use super::{Api, pages};
use http_body::Frame;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use tonic::codegen::{Bytes, Service};
use tonic::service::Routes;
use tonic::{Code, Status};

/// One port's service.
#[derive(Clone)]
pub(super) struct Front {
    api: Api,
    /// `None` on a port that has the pages alone.
    services: Option<Routes>,
    gateway: Option<Gateway>,
}

impl Front {
    pub(super) fn new(api: Api, services: Option<Routes>) -> Self {
        let settings = api.settings();
        let gateway = services.clone().filter(|_| settings.gateway).map(|s| Gateway::new(s, settings.limits.request_bytes_max));
        Self { api, services, gateway }
    }
}

type RoutesFuture = <Routes as Service<Request<Body>>>::Future;

/// Whose answer is waited for.
#[expect(clippy::large_enum_variant, reason = "the large one is the usual one, and is not to cost an allocation")]
pub(super) enum FrontFuture {
    Grpc(RoutesFuture, Option<Arc<Method>>),
    Plain(Pin<Box<dyn Future<Output = Response<Body>> + Send>>),
    Lost,
}

impl Service<Request<Body>> for Front {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = FrontFuture;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // The services are always ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> FrontFuture {
        let path = request.uri().path();
        if let Some(services) = &mut self.services
            && let Some(method) = self.api.settings().metrics.method(path)
        {
            method.started();
            let method = method.clone();
            return FrontFuture::Grpc(services.call(request), Some(method));
        }
        if pages::is_page(path) {
            let api = self.api.clone();
            return FrontFuture::Plain(Box::pin(async move { allow_any_origin(pages::serve(api, request).await) }));
        }
        if path.starts_with("/v3/")
            && let Some(gateway) = self.gateway.clone()
        {
            return FrontFuture::Plain(Box::pin(async move { allow_any_origin(gateway.serve(request).await) }));
        }
        match &mut self.services {
            Some(services) if is_grpc(request.headers()) => FrontFuture::Grpc(services.call(request), None),
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

impl Future for FrontFuture {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Plain(page) => page.as_mut().poll(cx).map(Ok),
            Self::Lost => Poll::Ready(Ok(pages::response(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "404 page not found\n"))),
            Self::Grpc(answer, method) => {
                let Ok(response) = ready!(Pin::new(answer).poll(cx));
                let Some(method) = method.take() else { return Poll::Ready(Ok(response)) };
                match code(response.headers()) {
                    // A refusal is all header.
                    Some(code) => method.handled(code as usize),
                    None if method.streams() => {
                        let counted = |body| Body::new(Counted { body, method: Some(method), code: Code::Cancelled });
                        return Poll::Ready(Ok(response.map(counted)));
                    }
                    None => method.handled(Code::Ok as usize),
                }
                Poll::Ready(Ok(response))
            }
        }
    }
}

/// A stream's body; its outcome is counted at its end, or when the client goes away before.
struct Counted {
    body: Body,
    method: Option<Arc<Method>>,
    code: Code,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            None => self.code = Code::Ok,
            Some(Err(status)) => self.code = status.code(),
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    self.code = code(trailers).unwrap_or(Code::Ok);
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
