//! The etcd v3 API over gRPC: the only place that knows it.
//!
//! Every service is a thin layer over [`MemberHandle`]: it checks, converts, asks the member, and puts etcd's
//! response header on the answer. No service holds state of its own beyond its open streams, so any member
//! serves any client. Only the user key space is reachable from here.

mod answers;
mod auth;
mod authority;
mod check;
pub mod client;
mod cluster;
mod codec;
mod concurrency;
mod convert;
mod election;
mod front;
mod gateway;
mod health;
mod kv;
mod lease;
mod lock;
mod maintenance;
mod metrics;
mod pages;
pub mod pb;
mod peer_name;
mod serve;
mod status;
mod streams;
mod unary;
mod watch;

#[cfg(test)]
mod tests;

pub use auth::{AuthSettings, BCRYPT_COST_DEFAULT, JwtKeys, TokenKind, TokenSpec, TokenSpecError};
pub use check::Limits;
pub use metrics::Metrics;
pub use peer_name::ClientCertName;
pub use serve::{Port, serve, serve_with};
pub use status::ApiError;

use brickraft_engine::kv::types::Keyspace;
use brickraft_engine::member::{MemberError, MemberHandle, MemberStatus};
use brickraft_engine::types::Revision;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::watch::Receiver;

/// The etcd version that this API is equal to. Kubernetes asks for watch progress on 3.5.13 and later.
pub const ETCD_VERSION: &str = "3.5.21";

/// etcd's default of `--watch-progress-notify-interval`.
pub const WATCH_PROGRESS_INTERVAL: Duration = Duration::from_secs(600);

/// How the services behave.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Bounds of requests.
    pub limits: Limits,
    /// A shorter lease is granted this much, in seconds: it must outlast an election.
    pub lease_ttl_s_min: i64,
    /// A stream that asked for `hasleader` ends after so long without a leader (etcd: three election time-outs).
    pub no_leader_grace: Duration,
    /// How often a watch that asked for it hears of the revision when nothing happens (etcd
    /// `--watch-progress-notify-interval`).
    pub watch_progress_interval: Duration,
    /// What the store may use before NOSPACE is raised, in bytes; 0: no limit.
    pub quota_bytes: u64,
    /// What is said to be the version.
    pub version: String,
    /// Whether the JSON gateway is served (etcd `--enable-grpc-gateway`).
    pub gateway: bool,
    /// Whether a client's verified certificate says who it is (etcd `--client-cert-auth`).
    pub client_cert_auth: bool,
    /// Where all ports of a server count.
    pub metrics: Arc<Metrics>,
    /// How clients prove who they are, where they must.
    pub auth: AuthSettings,
}

impl Settings {
    /// The version without its patch level.
    fn minor_version(&self) -> &str {
        self.version.rsplit_once('.').map_or(self.version.as_str(), |(minor, _)| minor)
    }

    /// The cluster's version.
    fn cluster_version(&self) -> String {
        cluster_version(&self.version)
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            lease_ttl_s_min: 2,
            no_leader_grace: Duration::from_secs(3),
            watch_progress_interval: WATCH_PROGRESS_INTERVAL,
            quota_bytes: 0,
            version: ETCD_VERSION.to_owned(),
            gateway: true,
            client_cert_auth: false,
            metrics: Arc::default(),
            auth: AuthSettings::default(),
        }
    }
}

/// The version of a cluster whose members have `version`: theirs up to the minor number.
fn cluster_version(version: &str) -> String {
    format!("{}.0", version.rsplit_once('.').map_or(version, |(minor, _)| minor))
}

/// What all services share. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Api(Arc<Shared>);

struct Shared {
    handle: MemberHandle,
    /// Behind a lock-free-for-readers cell: a header needs the term, not a copy of the membership.
    status: Receiver<MemberStatus>,
    cluster_id: u64,
    member_id: u64,
    settings: Settings,
    passwords: auth::Passwords,
    tokens: auth::Tokens,
    /// Turns true when the server is to stop.
    closing: Receiver<bool>,
}

impl Api {
    fn new(handle: MemberHandle, settings: Settings, closing: Receiver<bool>) -> Self {
        let status = handle.status_watch();
        let (cluster_id, member_id) = {
            let s = status.borrow();
            (s.cluster_id, s.id.0)
        };
        let passwords = auth::Passwords::new(settings.auth.cost());
        let tokens = auth::Tokens::new(settings.auth.tokens.clone());
        Self(Arc::new(Shared { handle, status, cluster_id, member_id, settings, passwords, tokens, closing }))
    }

    fn handle(&self) -> &MemberHandle {
        &self.0.handle
    }

    fn settings(&self) -> &Settings {
        &self.0.settings
    }

    fn header(&self, revision: Revision) -> pb::etcdserverpb::ResponseHeader {
        pb::etcdserverpb::ResponseHeader {
            cluster_id: self.0.cluster_id,
            member_id: self.0.member_id,
            revision: convert::signed(revision.0),
            raft_term: self.0.status.borrow().term.0,
        }
    }

    /// A header with the store's revision as it is now.
    fn header_now(&self) -> pb::etcdserverpb::ResponseHeader {
        self.header(self.revision())
    }

    fn revision(&self) -> Revision {
        self.handle().store().revision(Keyspace::User)
    }

    fn has_leader(&self) -> bool {
        let status = self.0.status.borrow();
        status.leader.is_some() && status.stopped.is_none()
    }

    /// The kinds of alarms that are raised, by name.
    fn alarms(&self) -> Vec<&'static str> {
        self.handle().store().alarms().into_iter().map(|alarm| alarm.kind.name()).collect()
    }

    /// Returns with the reason when a stream must end: the server or the member stops, or, for a stream that asked for
    /// it, there has been no leader for a while.
    async fn stream_end(&self, leader_required: bool) -> ApiError {
        let mut closing = self.0.closing.clone();
        tokio::select! {
            // The sender going away means the same.
            _ = closing.wait_for(|closing| *closing) => MemberError::Stopped.into(),
            e = self.member_end(leader_required) => e,
        }
    }

    async fn member_end(&self, leader_required: bool) -> ApiError {
        let mut status = self.0.status.clone();
        loop {
            let fits = |s: &MemberStatus| s.stopped.is_some() || (leader_required && s.leader.is_none());
            match status.wait_for(fits).await {
                Ok(s) if s.stopped.is_none() => {}
                _ => return MemberError::Stopped.into(),
            }
            let over = status.wait_for(|s| s.leader.is_some() || s.stopped.is_some());
            if tokio::time::timeout(self.settings().no_leader_grace, over).await.is_err() {
                return MemberError::NoLeader.into();
            }
        }
    }
}

/// A proposal without an outcome; the client may go away before there is one.
struct Pending(Api);

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.settings().metrics.proposals_pending.fetch_sub(1, Ordering::Relaxed);
    }
}
