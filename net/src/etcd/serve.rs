//! The client port: gRPC, the plain pages and the JSON gateway on the same socket.

use super::authority::ClientStream;
use super::front::Front;
use super::pb::etcdserverpb::{
    auth_server::AuthServer, cluster_server::ClusterServer, kv_server::KvServer, lease_server::LeaseServer,
    maintenance_server::MaintenanceServer, watch_server::WatchServer,
};
use super::pb::health::health_server::HealthServer;
use super::pb::v3electionpb::election_server::ElectionServer;
use super::pb::v3lockpb::lock_server::LockServer;
use super::streams::Streams;
use super::{Api, Settings};
use crate::stream::Listener;
use crate::tls::Acceptor;
use brickraft_engine::member::MemberHandle;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tonic::service::Routes;

/// A silent connection is probed after so long (etcd `--grpc-keepalive-interval`).
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(2 * 3600);
/// And closed when no answer comes for so long (etcd `--grpc-keepalive-timeout`).
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Requests and streams open on one connection; those who wait for a lock count too.
const STREAMS_MAX: u32 = 100_000;
/// Requests that run when the server is told to stop have so long to end.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// Connections that wait to be served.
const ACCEPTED_MAX: usize = 64;
/// TLS handshakes that go on at once.
const HANDSHAKES_MAX: usize = 1024;
/// After a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Where to serve, and what.
#[derive(Debug)]
pub struct Port {
    /// Where.
    pub listener: Listener,
    /// For TLS.
    pub tls: Option<Acceptor>,
    /// `/metrics` and the health pages, and nothing else.
    pub pages_only: bool,
}

impl From<TcpListener> for Port {
    fn from(listener: TcpListener) -> Self {
        Self { listener: listener.into(), tls: None, pages_only: false }
    }
}

/// Serves etcd clients with default settings until `shutdown`. Needs a tokio runtime, which may be a current-thread
/// one.
pub async fn serve(port: impl Into<Port>, handle: MemberHandle, shutdown: impl Future<Output = ()>) {
    serve_with(port, handle, Settings::default(), shutdown).await;
}

/// As [`serve`]. At the shutdown streams end with `etcdserver: server stopped`, on which clients go elsewhere.
pub async fn serve_with(port: impl Into<Port>, handle: MemberHandle, settings: Settings, shutdown: impl Future<Output = ()>) {
    let (closing, closing_rx) = watch::channel(false);
    let Port { listener, tls, pages_only } = port.into();
    let api = Api::new(handle, settings, closing_rx);
    let front = Front::new(api.clone(), (!pages_only).then(|| services(&api)));
    let (accepted, mut incoming) = mpsc::channel(ACCEPTED_MAX);
    let accept = AbortOnDrop(tokio::spawn(accept(listener, tls, api, accepted)));
    let connections = GracefulShutdown::new();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            stream = incoming.recv() => {
                let Some(stream) = stream else { break };
                // Straight on hyper: tonic's own server puts half a dozen layers between it and us, all of them for each request.
                let service = TowerToHyperService::new(front.of(stream.name()));
                let streams = Streams::default();
                let connection = http(streams.clone()).serve_connection(TokioIo::new(stream), service).into_owned();
                let connection = connections.watch(connection);
                tokio::spawn(async move {
                    if let Err(e) = streams.run(connection).await {
                        tracing::debug!(%e, "client connection");
                    }
                });
            }
        }
    }
    drop((accept, incoming));
    closing.send_replace(true);
    let _ = tokio::time::timeout(SHUTDOWN_GRACE, connections.shutdown()).await;
}

/// How HTTP is spoken.
fn http(streams: Streams) -> auto::Builder<Streams> {
    let mut http = auto::Builder::new(streams);
    http.http1().timer(TokioTimer::new());
    http.http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(KEEP_ALIVE_INTERVAL))
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .max_concurrent_streams(STREAMS_MAX)
        // gRPC has no use for it.
        .auto_date_header(false);
    http
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Takes connections in until nobody wants them any more. Handshakes go on side by side: a client that does not shake
/// hands holds up nobody else.
async fn accept(listener: Listener, tls: Option<Acceptor>, api: Api, accepted: mpsc::Sender<ClientStream>) {
    let hands = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            // Too many open files, or a connection that was given up meanwhile.
            Err(e) => {
                tracing::debug!(%e, "accept on the client port");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(tls) = tls.clone() else {
            if accepted.send(ClientStream::new(stream, &api)).await.is_err() {
                return;
            }
            continue;
        };
        let Ok(turn) = hands.clone().acquire_owned().await else { return };
        let (api, accepted) = (api.clone(), accepted.clone());
        tokio::spawn(async move {
            let shaken = tls.accept(stream).await;
            drop(turn);
            match shaken {
                Ok(stream) => drop(accepted.send(ClientStream::new(stream, &api)).await),
                Err(e) => tracing::debug!(%e, "rejected connection on client endpoint"),
            }
        });
    }
}

fn services(api: &Api) -> Routes {
    let bytes_max = api.settings().limits.message_bytes_max();
    Routes::new(KvServer::new(api.clone()).max_decoding_message_size(bytes_max))
        .add_service(WatchServer::new(api.clone()).max_decoding_message_size(bytes_max))
        .add_service(LeaseServer::new(api.clone()).max_decoding_message_size(bytes_max))
        .add_service(ClusterServer::new(api.clone()).max_decoding_message_size(bytes_max))
        .add_service(MaintenanceServer::new(api.clone()).max_decoding_message_size(bytes_max))
        .add_service(AuthServer::new(api.clone()).max_decoding_message_size(bytes_max))
        .add_service(LockServer::new(api.clone()).max_decoding_message_size(bytes_max))
        .add_service(ElectionServer::new(api.clone()).max_decoding_message_size(bytes_max))
        .add_service(HealthServer::new(api.clone()).max_decoding_message_size(bytes_max))
        .prepare()
}
