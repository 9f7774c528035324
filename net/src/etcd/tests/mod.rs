//! The services against a real member on a real disk, through real sockets.

mod auth;
mod cluster;
mod etcdctl;
mod http;
mod kubernetes;
mod kv;
mod lease;
mod locks;
mod maintenance;
mod unary;
mod watch;

use super::pb::etcdserverpb::{self as pb, kv_client::KvClient, lease_client::LeaseClient};
use super::{Metrics, Settings, serve_with};
use brickraft_engine::io::std_io::StdIo;
use brickraft_engine::kv::Store;
use brickraft_engine::member::driver::{self, Transport};
use brickraft_engine::member::identity::{InitialMember, bootstrap};
use brickraft_engine::member::stats::SharedStats;
use brickraft_engine::member::{Clock, MemberConfig, MemberCore, MemberHandle, Start};
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tonic::transport::Channel;
use tonic::{Code, Status};

/// What one test fills up.
const QUOTA_BYTES: u64 = 8 << 20;
/// Nothing in these tests takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

struct Server {
    address: String,
    channel: Channel,
    handle: MemberHandle,
    closing: Arc<Notify>,
}

impl Server {
    fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone())
    }

    fn lease(&self) -> LeaseClient<Channel> {
        LeaseClient::new(self.channel.clone())
    }

    async fn put(&self, key: &'static str, value: &'static str) -> pb::PutResponse {
        let request = pb::PutRequest { key: key.into(), value: value.into(), ..Default::default() };
        self.kv().put(request).await.expect("put").into_inner()
    }

    async fn delete(&self, key: impl Into<bytes::Bytes>) {
        let request = pb::DeleteRangeRequest { key: key.into(), ..Default::default() };
        self.kv().delete_range(request).await.expect("delete");
    }

    /// The number of keys that start with `prefix`, which must not end in 0xff.
    async fn count(&self, prefix: &str) -> i64 {
        let mut end = prefix.as_bytes().to_vec();
        *end.last_mut().expect("a prefix") += 1;
        let request = pb::RangeRequest { key: prefix.to_owned().into(), range_end: end.into(), count_only: true, ..Default::default() };
        self.kv().range(request).await.expect("count").into_inner().count
    }

    async fn grant(&self, ttl: i64) -> i64 {
        self.lease().lease_grant(pb::LeaseGrantRequest { ttl, id: 0 }).await.expect("grant").into_inner().id
    }
}

/// Runs `test` against a cluster of one member, on one thread.
fn with_server<F: Future<Output = ()>>(test: impl FnOnce(Rc<Server>) -> F) {
    with_settings(|settings| settings, test);
}

/// The same with settings of the test's own.
fn with_settings<F: Future<Output = ()>>(change: impl FnOnce(Settings) -> Settings, test: impl FnOnce(Rc<Server>) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let dir = tempfile::tempdir().expect("tempdir");
    let log = dir.path().join("log");
    std::fs::create_dir(&log).expect("log directory");
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = format!("http://{}", listener.local_addr().expect("address"));
        let store = Arc::new(Store::open(&dir.path().join("store"), 16 << 20).expect("open the store"));
        let (cluster_id, membership) =
            bootstrap(&[InitialMember { name: "one".into(), peer_urls: vec!["http://127.0.0.1:1".into()] }], "test");
        let id = *membership.voters.keys().next().expect("a voter");
        let stats = SharedStats::default();
        let config = MemberConfig {
            id,
            cluster_id,
            heartbeat: Duration::from_millis(20),
            election_timeout: Duration::from_millis(100),
            stats: stats.clone(),
            ..Default::default()
        };
        let clock = Clock::start();
        let io = StdIo::open(&log).expect("open the log directory");
        let core = MemberCore::open(config, Start::Founder(membership), io, store.clone(), clock.now(), 1).expect("open the member");
        let (handle, inbox) = MemberHandle::new(store, core.status(), clock);
        let (outgoing, _outgoing) = mpsc::channel(16);
        let (_incoming, incoming) = mpsc::channel(16);
        let (_unreachable, unreachable) = mpsc::channel(1);
        let member = tokio::task::spawn_local(driver::run(core, inbox, Transport { outgoing, incoming, unreachable }));
        handle.status_watch().wait_for(|s| s.leader.is_some()).await.expect("a leader");
        let closing = Arc::new(Notify::new());
        let told = closing.clone();
        let shutdown = async move { told.notified().await };
        let metrics = Arc::new(Metrics::new(stats, Arc::default(), String::new));
        // Passwords need not be safe here.
        let auth = super::AuthSettings { bcrypt_cost: 4, ..Default::default() };
        let settings =
            Settings { no_leader_grace: Duration::from_millis(300), quota_bytes: QUOTA_BYTES, metrics, auth, ..Default::default() };
        let settings = change(settings);
        let service = tokio::task::spawn_local(serve_with(listener, handle.clone(), settings, shutdown));
        let channel = Channel::from_shared(address.clone()).expect("address").connect().await.expect("connect");
        let server = Rc::new(Server { address, channel, handle: handle.clone(), closing: closing.clone() });
        tokio::time::timeout(PATIENCE, test(server)).await.expect("the test to end");
        closing.notify_one();
        tokio::time::timeout(PATIENCE, service).await.expect("an end of service").expect("no panic");
        handle.stop().await;
        member.await.expect("no panic").expect("member");
    });
}

/// The code and text that a refusal must have.
fn assert_refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, text: &str) {
    let status = result.expect_err(text);
    assert_eq!((status.code(), status.message()), (code, text));
}
