//! The client port: gRPC, and two plain pages on the same socket.

use super::authority::ClientStream;
use super::pb::etcdserverpb::{
    auth_server::AuthServer, cluster_server::ClusterServer, kv_server::KvServer, lease_server::LeaseServer,
    maintenance_server::MaintenanceServer, watch_server::WatchServer,
};
use super::pb::health::health_server::HealthServer;
use super::pb::v3electionpb::election_server::ElectionServer;
use super::pb::v3lockpb::lock_server::LockServer;
use super::{Api, Settings};
use brickraft_engine::member::MemberHandle;
use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::task::{Context, Poll};
use std::time::Duration;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::StreamExt as _;
use tonic::codegen::{Service, http};
use tonic::service::{AxumBody, Routes};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

/// A silent connection is probed after so long (etcd `--grpc-keepalive-interval`).
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(2 * 3600);
/// And closed when no answer comes for so long (etcd `--grpc-keepalive-timeout`).
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Requests and streams open on one connection; those who wait for a lock count too.
const STREAMS_MAX: u32 = 100_000;
/// What a message may be larger than a request: etcd's overhead, so that "request is too large" is said by us.
const MESSAGE_OVERHEAD_BYTES: usize = 512 * 1024;
/// Requests that run when the server is told to stop have so long to end.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// Why the client port does not serve any more.
#[derive(Debug, Error)]
#[error("serve etcd clients: {0}")]
pub struct ServeError(#[from] tonic::transport::Error);

/// Serves etcd clients with default settings until `shutdown`. Needs a tokio runtime, which may be a current-thread
/// one.
///
/// # Errors
/// When the transport fails.
pub async fn serve(listener: TcpListener, handle: MemberHandle, shutdown: impl Future<Output = ()>) -> Result<(), ServeError> {
    serve_with(listener, handle, Settings::default(), shutdown).await
}

/// As [`serve`]. At the shutdown streams end with `etcdserver: server stopped`, on which clients go elsewhere.
///
/// # Errors
/// When the transport fails.
pub async fn serve_with(
    listener: TcpListener,
    handle: MemberHandle,
    settings: Settings,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let (closing, closing_rx) = watch::channel(false);
    let api = Api::new(handle, settings, closing_rx);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true)).map(|stream| stream.map(ClientStream::new));
    let told = async {
        shutdown.await;
        closing.send_replace(true);
    };
    let server = Server::builder()
        .accept_http1(true)
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .max_concurrent_streams(STREAMS_MAX)
        .add_routes(routes(&api))
        .serve_with_incoming_shutdown(incoming, told);
    let mut closing_rx = closing.subscribe();
    let overdue = async {
        let _ = closing_rx.wait_for(|closing| *closing).await;
        tokio::time::sleep(SHUTDOWN_GRACE).await;
    };
    tokio::select! {
        result = server => Ok(result?),
        () = overdue => Ok(()),
    }
}

fn routes(api: &Api) -> Routes {
    let bytes_max = api.settings().limits.request_bytes_max + MESSAGE_OVERHEAD_BYTES;
    let grpc = Routes::new(KvServer::new(api.clone()).max_decoding_message_size(bytes_max))
        .add_service(WatchServer::new(api.clone()).max_decoding_message_size(bytes_max))
        .add_service(LeaseServer::new(api.clone()).max_decoding_message_size(bytes_max))
        .add_service(ClusterServer::new(api.clone()).max_decoding_message_size(bytes_max))
        .add_service(MaintenanceServer::new(api.clone()).max_decoding_message_size(bytes_max))
        .add_service(AuthServer::new(api.clone()).max_decoding_message_size(bytes_max))
        .add_service(LockServer::new(api.clone()).max_decoding_message_size(bytes_max))
        .add_service(ElectionServer::new(api.clone()).max_decoding_message_size(bytes_max))
        .add_service(HealthServer::new(api.clone()).max_decoding_message_size(bytes_max));
    let pages = grpc
        .into_axum_router()
        .route_service("/version", Page { api: api.clone(), render: version })
        .route_service("/health", Page { api: api.clone(), render: health });
    Routes::from(pages).prepare()
}

/// A page that is made anew for each request.
#[derive(Clone)]
struct Page {
    api: Api,
    render: fn(&Api) -> (http::StatusCode, String),
}

impl Service<http::Request<AxumBody>> for Page {
    type Response = http::Response<AxumBody>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _request: http::Request<AxumBody>) -> Self::Future {
        let (status, text) = (self.render)(&self.api);
        let mut response = http::Response::new(AxumBody::from(text));
        *response.status_mut() = status;
        response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
        ready(Ok(response))
    }
}

fn version(api: &Api) -> (http::StatusCode, String) {
    let version = &api.settings().version;
    // The cluster's version is its members' up to the minor number.
    let cluster = version.rsplit_once('.').map_or(version.as_str(), |(minor, _)| minor);
    (http::StatusCode::OK, format!("{{\"etcdserver\":\"{version}\",\"etcdcluster\":\"{cluster}.0\"}}\n"))
}

fn health(api: &Api) -> (http::StatusCode, String) {
    if api.has_leader() {
        (http::StatusCode::OK, "{\"health\":\"true\",\"reason\":\"\"}\n".into())
    } else {
        (http::StatusCode::SERVICE_UNAVAILABLE, "{\"health\":\"false\",\"reason\":\"RAFT NO LEADER\"}\n".into())
    }
}
