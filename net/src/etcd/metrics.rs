//! What is counted, and the page that shows it, under etcd's names, so that its dashboards and alerts work on.
//!
//! Counting is a relaxed addition; everything else is done when somebody asks for the page.

use super::{Api, pb};
use brickraft_engine::kv::types::Keyspace;
use brickraft_engine::member::stats::{HistogramView, SharedStats};
use std::collections::HashMap;
use std::fmt::{Display, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// gRPC's codes by number.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// One method's counts.
#[derive(Debug)]
pub(super) struct Method {
    service: &'static str,
    name: &'static str,
    kind: &'static str,
    started: AtomicU64,
    handled: [AtomicU64; CODES.len()],
}

impl Method {
    pub(super) fn started(&self) {
        self.started.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an outcome by its code.
    pub(super) fn handled(&self, code: usize) {
        if let Some(count) = self.handled.get(code) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// True when the outcome stands at the end of a stream.
    pub(super) fn streams(&self) -> bool {
        self.kind != "unary"
    }
}

/// What the client ports of one server count together.
#[derive(Debug)]
pub struct Metrics {
    methods: HashMap<String, Arc<Method>>,
    pub(super) proposals_pending: AtomicU64,
    pub(super) proposals_failed: AtomicU64,
    /// Bytes from and to clients, TLS excluded.
    pub(super) received_bytes: AtomicU64,
    pub(super) sent_bytes: AtomicU64,
    /// The member's own.
    pub(super) member: SharedStats,
    /// The process's figures in Prometheus' text format, from whoever may read files.
    pub(super) process: fn() -> String,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new(SharedStats::default(), String::new)
    }
}

impl Metrics {
    /// Counts of nothing yet. `process` yields the process's own figures.
    #[must_use]
    pub fn new(member: SharedStats, process: fn() -> String) -> Self {
        let mut methods = HashMap::new();
        for (service, name, client_streams, server_streams) in pb::METHODS {
            let kind = match (client_streams, server_streams) {
                (false, false) => "unary",
                (false, true) => "server_stream",
                (true, false) => "client_stream",
                (true, true) => "bidi_stream",
            };
            let counts = Method { service, name, kind, started: AtomicU64::new(0), handled: Default::default() };
            methods.insert(format!("/{service}/{name}"), Arc::new(counts));
        }
        Self {
            methods,
            proposals_pending: AtomicU64::new(0),
            proposals_failed: AtomicU64::new(0),
            received_bytes: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
            member,
            process,
        }
    }

    /// The counts of the method at `path`, as in a request's URL.
    pub(super) fn method(&self, path: &str) -> Option<&Arc<Method>> {
        self.methods.get(path)
    }
}

/// Writes Prometheus' text format.
struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.head(name, kind, help);
        let _ = writeln!(self.0, "{name} {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.one(name, "gauge", help, value);
    }

    fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.one(name, "counter", help, value);
    }

    fn labelled(&mut self, name: &str, help: &str, label: &str, value: impl Display) {
        self.head(name, "gauge", help);
        let _ = writeln!(self.0, "{name}{{{label}=\"{value}\"}} 1");
    }

    fn histogram(&mut self, name: &str, help: &str, view: &HistogramView) {
        self.head(name, "histogram", help);
        for (bound, count) in &view.buckets {
            let _ = writeln!(self.0, "{name}_bucket{{le=\"{bound}\"}} {count}");
        }
        let _ = writeln!(self.0, "{name}_bucket{{le=\"+Inf\"}} {}\n{name}_sum {}\n{name}_count {}", view.count, view.sum_s, view.count);
    }
}

/// The page.
pub(super) fn page(api: &Api) -> String {
    let mut page = Page(String::with_capacity(32 * 1024));
    let metrics = &api.settings().metrics;
    server(&mut page, api, metrics);
    store(&mut page, api);
    page.histogram(
        "etcd_disk_wal_fsync_duration_seconds",
        "From handing a batch to the log until it is durable.",
        &metrics.member.log_write.view(),
    );
    page.histogram(
        "etcd_disk_backend_commit_duration_seconds",
        "Checkpoints of the store; they hold no request up.",
        &metrics.member.checkpoint.view(),
    );
    let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
    page.counter("etcd_network_client_grpc_received_bytes_total", "Bytes received from clients.", load(&metrics.received_bytes));
    page.counter("etcd_network_client_grpc_sent_bytes_total", "Bytes sent to clients.", load(&metrics.sent_bytes));
    calls(&mut page, metrics);
    page.0.push_str(&(metrics.process)());
    page.0
}

fn server(page: &mut Page, api: &Api, metrics: &Metrics) {
    let status = api.0.status.borrow().clone();
    let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
    page.gauge("etcd_server_has_leader", "Whether a leader is known. 1 is known, 0 is not.", u8::from(status.leader.is_some()));
    page.gauge("etcd_server_is_leader", "Whether this member leads. 1 if it does, 0 otherwise.", u8::from(status.is_leader()));
    page.gauge("etcd_server_is_learner", "Whether this member is a learner. 1 if it is, 0 otherwise.", u8::from(status.is_learner));
    page.counter("etcd_server_leader_changes_seen_total", "Changes of leader that this member saw.", load(&metrics.member.leader_changes));
    page.gauge("etcd_server_proposals_committed_total", "The log's index up to which it is committed.", status.committed.0);
    page.gauge("etcd_server_proposals_applied_total", "The log's index up to which it is applied.", status.applied.0);
    page.gauge("etcd_server_proposals_pending", "Proposals of this member's clients without an outcome.", load(&metrics.proposals_pending));
    page.counter("etcd_server_proposals_failed_total", "Proposals that failed or ran out of time.", load(&metrics.proposals_failed));
    page.labelled("etcd_server_id", "This member's id, in hexadecimal.", "server_id", format_args!("{:x}", status.id.0));
    page.labelled("etcd_server_version", "The version of etcd that the API is equal to.", "server_version", &api.settings().version);
    page.labelled("etcd_cluster_version", "The same, without the patch level.", "cluster_version", api.settings().minor_version());
}

fn store(page: &mut Page, api: &Api) {
    let store = api.handle().store();
    let sizes = store.sizes();
    page.gauge("etcd_mvcc_db_total_size_in_bytes", "The store's file.", sizes.file_bytes);
    page.gauge("etcd_debugging_mvcc_db_total_size_in_bytes", "The store's file.", sizes.file_bytes);
    page.gauge("etcd_mvcc_db_total_size_in_use_in_bytes", "The part of the store's file that is in use.", sizes.in_use_bytes);
    page.gauge("etcd_debugging_mvcc_current_revision", "The current revision.", store.revision(Keyspace::User).0);
    page.gauge("etcd_debugging_mvcc_compact_revision", "The revision of the last compaction.", store.compact_revision(Keyspace::User).0);
}

fn calls(page: &mut Page, metrics: &Metrics) {
    let mut methods: Vec<&Arc<Method>> = metrics.methods.values().collect();
    methods.sort_by(|a, b| (&a.service, &a.name).cmp(&(&b.service, &b.name)));
    let labels = |m: &Method| format!("grpc_method=\"{}\",grpc_service=\"{}\",grpc_type=\"{}\"", m.name, m.service, m.kind);
    page.head("grpc_server_started_total", "counter", "Calls begun on the server.");
    for m in &methods {
        let _ = writeln!(page.0, "grpc_server_started_total{{{}}} {}", labels(m), m.started.load(Ordering::Relaxed));
    }
    page.head("grpc_server_handled_total", "counter", "Calls completed on the server, whatever came of them.");
    for m in &methods {
        for (code, count) in CODES.iter().zip(&m.handled) {
            let count = count.load(Ordering::Relaxed);
            // What never happened is shown for OK alone: all codes of all methods are a long page.
            if count > 0 || *code == "OK" {
                let _ = writeln!(page.0, "grpc_server_handled_total{{grpc_code=\"{code}\",{}}} {count}", labels(m));
            }
        }
    }
}
