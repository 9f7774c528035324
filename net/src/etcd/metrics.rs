//! What is counted, and the page that shows it, under etcd's names, so that its dashboards and alerts work on.
//!
//! Counting is a relaxed addition; everything else is done when somebody asks for the page.

use super::{Api, pb};
use crate::traffic::{PeerTraffic, Traffic};
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
    /// Messages, of streams only.
    received: AtomicU64,
    sent: AtomicU64,
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

    /// Counts messages that came on a stream.
    pub(super) fn received(&self, messages: u64) {
        self.received.fetch_add(messages, Ordering::Relaxed);
    }

    /// Counts messages that went out on a stream.
    pub(super) fn sent(&self, messages: u64) {
        self.sent.fetch_add(messages, Ordering::Relaxed);
    }

    /// Messages that came and went. A call that is no stream has one request, and one answer if it went well.
    fn messages(&self) -> (u64, u64) {
        let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
        if self.streams() { (load(&self.received), load(&self.sent)) } else { (load(&self.started), load(&self.handled[0])) }
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
    /// Outcomes of `/health`.
    health_successes: AtomicU64,
    health_failures: AtomicU64,
    /// Open Watch streams, and events that were given to such.
    watch_streams: AtomicU64,
    pub(super) watch_events: AtomicU64,
    /// The members' connections to each other.
    traffic: Arc<Traffic>,
    /// The member's own.
    pub(super) member: SharedStats,
    /// The process's figures in Prometheus' text format, from whoever may read files.
    pub(super) process: fn() -> String,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new(SharedStats::default(), Arc::default(), String::new)
    }
}

impl Metrics {
    /// Counts of nothing yet. `process` yields the process's own figures.
    #[must_use]
    pub fn new(member: SharedStats, traffic: Arc<Traffic>, process: fn() -> String) -> Self {
        let mut methods = HashMap::new();
        for (service, name, client_streams, server_streams) in pb::METHODS {
            let kind = match (client_streams, server_streams) {
                (false, false) => "unary",
                (false, true) => "server_stream",
                (true, false) => "client_stream",
                (true, true) => "bidi_stream",
            };
            let counts = Method {
                service,
                name,
                kind,
                started: AtomicU64::new(0),
                handled: Default::default(),
                received: AtomicU64::new(0),
                sent: AtomicU64::new(0),
            };
            methods.insert(format!("/{service}/{name}"), Arc::new(counts));
        }
        Self {
            methods,
            proposals_pending: AtomicU64::new(0),
            proposals_failed: AtomicU64::new(0),
            received_bytes: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
            health_successes: AtomicU64::new(0),
            health_failures: AtomicU64::new(0),
            watch_streams: AtomicU64::new(0),
            watch_events: AtomicU64::new(0),
            traffic,
            member,
            process,
        }
    }

    /// Counts a look at `/health`.
    pub(super) fn health_checked(&self, well: bool) {
        let count = if well { &self.health_successes } else { &self.health_failures };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// The counts of the method at `path`, as in a request's URL.
    pub(super) fn method(&self, path: &str) -> Option<&Arc<Method>> {
        self.methods.get(path)
    }
}

/// A Watch stream, counted until it is dropped.
pub(super) struct OpenStream(Arc<Metrics>);

impl OpenStream {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        metrics.watch_streams.fetch_add(1, Ordering::Relaxed);
        Self(metrics)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.watch_streams.fetch_sub(1, Ordering::Relaxed);
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
        self.buckets(name, "", view);
    }

    /// A histogram's lines; `label` is empty or `name="value"`.
    fn buckets(&mut self, name: &str, label: &str, view: &HistogramView) {
        let (comma, braced) = if label.is_empty() { ("", String::new()) } else { (",", format!("{{{label}}}")) };
        for (bound, count) in &view.buckets {
            let _ = writeln!(self.0, "{name}_bucket{{{label}{comma}le=\"{bound}\"}} {count}");
        }
        let HistogramView { count, sum_s, .. } = view;
        let _ = writeln!(
            self.0,
            "{name}_bucket{{{label}{comma}le=\"+Inf\"}} {count}\n{name}_sum{braced} {sum_s}\n{name}_count{braced} {count}"
        );
    }

    /// One line for each, under one head; nothing where there are none.
    fn each(&mut self, name: &str, kind: &str, help: &str, lines: impl IntoIterator<Item = (String, u64)>) {
        for (i, (labels, value)) in lines.into_iter().enumerate() {
            if i == 0 {
                self.head(name, kind, help);
            }
            let _ = writeln!(self.0, "{name}{{{labels}}} {value}");
        }
    }
}

/// The page.
pub(super) fn page(api: &Api) -> String {
    let mut page = Page(String::with_capacity(32 * 1024));
    let metrics = &api.settings().metrics;
    server(&mut page, api, metrics);
    store(&mut page, api);
    watches(&mut page, metrics);
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
    // A gauge in etcd as well.
    page.gauge("etcd_disk_wal_write_bytes_total", "Bytes written to the log.", load(&metrics.member.log_bytes));
    peers(&mut page, api, metrics);
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
    // The status is shown when something else changes in it.
    let committed = load(&metrics.member.committed).max(status.committed.0);
    let applied = load(&metrics.member.applied).max(status.applied.0);
    page.gauge("etcd_server_proposals_committed_total", "The log's index up to which it is committed.", committed);
    page.gauge("etcd_server_proposals_applied_total", "The log's index up to which it is applied.", applied);
    page.gauge("etcd_server_proposals_pending", "Proposals of this member's clients without an outcome.", load(&metrics.proposals_pending));
    page.counter("etcd_server_proposals_failed_total", "Proposals that failed or ran out of time.", load(&metrics.proposals_failed));
    let figures = &metrics.member;
    page.counter(
        "etcd_server_heartbeat_send_failures_total",
        "Heartbeats that were sent more than an interval late, as the leader.",
        load(&figures.late_heartbeats),
    );
    page.counter("etcd_server_slow_apply_total", "Entries applied in a turn of more than 100 ms.", load(&figures.slow_applies));
    page.counter("etcd_server_slow_read_indexes_total", "Linearizable reads that ran out of time.", load(&figures.reads_late));
    page.counter("etcd_server_read_indexes_failed_total", "Linearizable reads that failed otherwise.", load(&figures.reads_failed));
    page.counter("etcd_server_health_success", "Looks at /health that found it well.", load(&metrics.health_successes));
    page.counter("etcd_server_health_failures", "Looks at /health that did not.", load(&metrics.health_failures));
    // 0 would be a quota that is always exceeded, for those who compare.
    let quota = Some(api.settings().quota_bytes).filter(|quota| *quota > 0).map_or("+Inf".into(), |quota| quota.to_string());
    page.gauge("etcd_server_quota_backend_bytes", "What the store may use; +Inf without a limit.", quota);
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
    let tally = store.tally();
    for (what, help, count) in [
        ("put", "Puts applied.", tally.puts),
        ("delete", "Requests to delete applied, and keys that went with their lease.", tally.deletes),
        ("range", "Ranges read, comparisons of transactions among them.", tally.ranges),
        ("txn", "Transactions of more than one operation.", tally.txns),
    ] {
        page.counter(&format!("etcd_mvcc_{what}_total"), help, count);
        page.counter(&format!("etcd_debugging_mvcc_{what}_total"), help, count);
    }
    page.counter("etcd_debugging_lease_granted_total", "Leases granted.", tally.leases_granted);
    page.counter("etcd_debugging_lease_revoked_total", "Leases revoked, or run out.", tally.leases_revoked);
    let renewed = api.settings().metrics.member.leases_renewed.load(Ordering::Relaxed);
    page.counter("etcd_debugging_lease_renewed_total", "Leases renewed while this member leads.", renewed);
    page.gauge("etcd_debugging_mvcc_current_revision", "The current revision.", store.revision(Keyspace::User).0);
    page.gauge("etcd_debugging_mvcc_compact_revision", "The revision of the last compaction.", store.compact_revision(Keyspace::User).0);
}

fn watches(page: &mut Page, metrics: &Metrics) {
    let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
    let member = &metrics.member;
    page.gauge("etcd_debugging_mvcc_watch_stream_total", "Open Watch streams.", load(&metrics.watch_streams));
    page.gauge("etcd_debugging_mvcc_watcher_total", "Watchers.", load(&member.watchers));
    page.gauge("etcd_debugging_mvcc_slow_watcher_total", "Watchers that lag behind.", load(&member.slow_watchers));
    page.gauge("etcd_debugging_mvcc_pending_events_total", "Events that wait for room on their streams.", load(&member.pending_events));
    page.counter("etcd_debugging_mvcc_events_total", "Events given to Watch streams.", load(&metrics.watch_events));
}

fn peers(page: &mut Page, api: &Api, metrics: &Metrics) {
    let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
    let peers = metrics.traffic.peers();
    let of = |label: &str, count: fn(&PeerTraffic) -> &AtomicU64| -> Vec<(String, u64)> {
        peers.iter().map(|(id, peer)| (format!("{label}=\"{:x}\"", id.0), load(count(peer)))).collect()
    };
    page.each("etcd_network_peer_sent_bytes_total", "counter", "Bytes sent to peers.", of("To", |peer| &peer.sent_bytes));
    page.each("etcd_network_peer_received_bytes_total", "counter", "Bytes received from peers.", of("From", |peer| &peer.received_bytes));
    let local = api.0.member_id;
    let active = peers
        .iter()
        .map(|(id, peer)| (format!("Local=\"{local:x}\",Remote=\"{:x}\"", id.0), u64::from(peer.connected.load(Ordering::Relaxed))));
    page.each("etcd_network_active_peers", "gauge", "Whether the connection to a peer stands.", active);
    let name = "etcd_network_peer_round_trip_time_seconds";
    let mut round_trips = metrics.member.round_trips.views();
    round_trips.retain(|(id, _)| peers.iter().any(|(peer, _)| peer == id));
    if !round_trips.is_empty() {
        page.head(name, "histogram", "From a heartbeat to its answer, measured while this member leads.");
    }
    for (id, view) in &round_trips {
        page.buckets(name, &format!("To=\"{:x}\"", id.0), view);
    }
}

fn calls(page: &mut Page, metrics: &Metrics) {
    let mut methods: Vec<&Arc<Method>> = metrics.methods.values().collect();
    methods.sort_by(|a, b| (&a.service, &a.name).cmp(&(&b.service, &b.name)));
    let labels = |m: &Method| format!("grpc_method=\"{}\",grpc_service=\"{}\",grpc_type=\"{}\"", m.name, m.service, m.kind);
    page.head("grpc_server_started_total", "counter", "Calls begun on the server.");
    for m in &methods {
        let _ = writeln!(page.0, "grpc_server_started_total{{{}}} {}", labels(m), m.started.load(Ordering::Relaxed));
    }
    let messages = |count: fn((u64, u64)) -> u64| methods.iter().map(move |m| (labels(m), count(m.messages())));
    page.each("grpc_server_msg_received_total", "counter", "Messages received from clients.", messages(|(received, _)| received));
    page.each("grpc_server_msg_sent_total", "counter", "Messages sent to clients.", messages(|(_, sent)| sent));
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
