//! The plain pages and the JSON gateway, over HTTP/1.1 as curl speaks it.

use super::watch::Watching;
use super::*;
use crate::etcd::pb::etcdserverpb::watch_request::RequestUnion;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

async fn ask(s: &Server, method: &str, path: &str, more: &str, body: &str) -> TcpStream {
    let mut socket = TcpStream::connect(s.address.trim_start_matches("http://")).await.expect("connect");
    let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{more}Content-Length: {}\r\n\r\n{body}", body.len());
    socket.write_all(request.as_bytes()).await.expect("ask");
    socket
}

/// A whole exchange: status and body.
async fn http(s: &Server, method: &str, path: &str, body: &str) -> (u16, String) {
    http_with(s, method, path, "", body).await
}

async fn http_with(s: &Server, method: &str, path: &str, more: &str, body: &str) -> (u16, String) {
    let mut answer = String::new();
    ask(s, method, path, more, body).await.read_to_string(&mut answer).await.expect("read");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|n| n.parse().ok()).expect("a status");
    (status, body.to_owned())
}

async fn post(s: &Server, path: &str, body: Value) -> (u16, Value) {
    let (status, answer) = http(s, "POST", path, &body.to_string()).await;
    (status, serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{path}: {e}: {answer}")))
}

/// The same with a token.
async fn post_by(s: &Server, token: &str, path: &str, body: Value) -> (u16, Value) {
    let (status, answer) = http_with(s, "POST", path, &format!("Authorization: {token}\r\n"), &body.to_string()).await;
    (status, serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{path}: {e}: {answer}")))
}

/// What a streaming answer says, line by line; the lengths of its chunks are passed over.
struct Lines(BufReader<TcpStream>);

impl Lines {
    async fn next(&mut self) -> Value {
        loop {
            let mut line = String::new();
            assert!(self.0.read_line(&mut line).await.expect("read") > 0, "the stream has ended");
            if line.starts_with('{') {
                return serde_json::from_str(&line).expect("JSON");
            }
        }
    }
}

#[test]
fn pages() {
    with_server(|s| async move {
        let (status, version) = http(&s, "GET", "/version", "").await;
        assert_eq!((status, version.as_str()), (200, "{\"etcdserver\":\"3.5.21\",\"etcdcluster\":\"3.5.0\"}"));
        for path in ["/health", "/health?serializable=true", "/health?exclude=NOSPACE&exclude=X"] {
            let (status, health) = http(&s, "GET", path, "").await;
            assert_eq!((status, serde_json::from_str::<Value>(&health).expect(path)), (200, json!({ "health": "true", "reason": "" })));
        }
        assert_eq!(http(&s, "GET", "/livez", "").await, (200, "ok\n".into()));
        assert_eq!(http(&s, "GET", "/readyz/linearizable_read", "").await, (200, "ok\n".into()));
        let verbose = "[+]data_corruption ok\n[+]serializable_read ok\nreadyz check passed\n";
        assert_eq!(http(&s, "GET", "/readyz?verbose&exclude=linearizable_read", "").await, (200, verbose.into()));
        assert_eq!(http(&s, "GET", "/readyz/nonsense", "").await.0, 404);
        assert_eq!(http(&s, "POST", "/health", "").await.0, 405);
        assert_eq!(http(&s, "GET", "/", "").await.0, 404);
    });
}

#[test]
fn without_a_leader_checks_fail() {
    with_server(|s| async move {
        s.handle.stop().await;
        let (status, health) = http(&s, "GET", "/health", "").await;
        let health: Value = serde_json::from_str(&health).expect("JSON");
        assert_eq!((status, &health["health"], &health["reason"]), (503, &json!("false"), &json!("RAFT NO LEADER")));
        let (status, ready) = http(&s, "GET", "/readyz", "").await;
        assert!(status == 503 && ready.contains("[-]linearizable_read failed") && ready.ends_with("readyz check failed\n"), "{ready}");
    });
}

/// A figure of the page of metrics, by name and labels.
fn figure(page: &str, name: &str) -> f64 {
    let line = page.lines().find(|l| l.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
    let line = line.unwrap_or_else(|| panic!("{name} is not on the page\n{page}"));
    line.rsplit_once(' ').expect("a value").1.parse().expect("a number")
}

/// Asks until the figure has this value.
async fn wait_figure(s: &Server, name: &str, expected: f64) {
    while figure(&http(s, "GET", "/metrics", "").await.1, name) != expected {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn metrics_follow_what_is_done() {
    with_server(|s| async move {
        let before = http(&s, "GET", "/metrics", "").await.1;
        let after = async |expected: &[(&str, f64)]| {
            let page = http(&s, "GET", "/metrics", "").await.1;
            for (name, more) in expected {
                assert_eq!(figure(&page, name) - figure(&before, name), *more, "{name}");
            }
            page
        };
        s.put("a", "1").await;
        s.put("a", "2").await;
        s.delete("a").await;
        s.count("a").await;
        let lease = s.grant(60).await;
        let renewals = tokio_stream::iter([pb::LeaseKeepAliveRequest { id: lease }; 3]);
        let mut renewed = s.lease().lease_keep_alive(renewals).await.expect("keep alive").into_inner();
        while let Some(renewal) = renewed.message().await.expect("an end") {
            assert_eq!(renewal.ttl, 60);
        }
        s.lease().lease_revoke(pb::LeaseRevokeRequest { id: lease }).await.expect("revoke");
        assert_eq!(http(&s, "GET", "/health", "").await.0, 200);
        assert_eq!(http(&s, "GET", "/health?serializable=true", "").await.0, 200);
        let keep_alive = "{grpc_method=\"LeaseKeepAlive\",grpc_service=\"etcdserverpb.Lease\",grpc_type=\"bidi_stream\"}";
        let put = "{grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"}";
        let page = after(&[
            ("etcd_mvcc_put_total", 2.0),
            ("etcd_debugging_mvcc_put_total", 2.0),
            ("etcd_mvcc_delete_total", 1.0),
            // The count, and what the two looks at /health read.
            ("etcd_mvcc_range_total", 3.0),
            ("etcd_mvcc_txn_total", 0.0),
            ("etcd_debugging_lease_granted_total", 1.0),
            ("etcd_debugging_lease_renewed_total", 3.0),
            ("etcd_debugging_lease_revoked_total", 1.0),
            ("etcd_server_health_success", 2.0),
            ("etcd_server_health_failures", 0.0),
            ("etcd_server_slow_read_indexes_total", 0.0),
            ("etcd_server_read_indexes_failed_total", 0.0),
            ("etcd_server_heartbeat_send_failures_total", 0.0),
            // Three writes to keys, two to leases.
            ("etcd_server_proposals_applied_total", 5.0),
            (&format!("grpc_server_msg_received_total{put}"), 2.0),
            (&format!("grpc_server_msg_sent_total{put}"), 2.0),
            (&format!("grpc_server_msg_received_total{keep_alive}"), 3.0),
            (&format!("grpc_server_msg_sent_total{keep_alive}"), 3.0),
        ])
        .await;
        assert!(figure(&page, "etcd_disk_wal_write_bytes_total") > figure(&before, "etcd_disk_wal_write_bytes_total"));
        assert_eq!(figure(&page, "etcd_server_quota_backend_bytes"), QUOTA_BYTES as f64);
        assert!(!page.contains("etcd_network_active_peers"), "it is alone");

        s.handle.stop().await;
        assert_eq!(http(&s, "GET", "/health", "").await.0, 503);
        after(&[("etcd_server_health_success", 2.0), ("etcd_server_health_failures", 1.0)]).await;
    });
}

#[test]
fn metrics_follow_watches() {
    with_settings(
        |settings| Settings { quota_bytes: 0, ..settings },
        |s| async move {
            let mut w = Watching::start(&s).await;
            for key in ["a", "b", "b"] {
                w.create(pb::WatchCreateRequest { key: key.into(), ..Default::default() }).await;
            }
            s.put("a", "1").await;
            s.put("b", "1").await;
            let mut events = 0;
            while events < 3 {
                events += w.next().await.events.len();
            }
            let page = http(&s, "GET", "/metrics", "").await.1;
            let watch = "{grpc_method=\"Watch\",grpc_service=\"etcdserverpb.Watch\",grpc_type=\"bidi_stream\"}";
            for (name, expected) in [
                ("etcd_debugging_mvcc_watch_stream_total", 1.0),
                ("etcd_debugging_mvcc_watcher_total", 3.0),
                ("etcd_debugging_mvcc_slow_watcher_total", 0.0),
                ("etcd_debugging_mvcc_pending_events_total", 0.0),
                ("etcd_debugging_mvcc_events_total", 3.0),
                (&format!("grpc_server_msg_received_total{watch}"), 3.0),
                (&format!("grpc_server_msg_sent_total{watch}"), 6.0),
                ("etcd_server_quota_backend_bytes", f64::INFINITY),
            ] {
                assert_eq!(figure(&page, name), expected, "{name}");
            }
            w.ask(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 0 })).await;
            wait_figure(&s, "etcd_debugging_mvcc_watcher_total", 2.0).await;
            drop(w);
            wait_figure(&s, "etcd_debugging_mvcc_watch_stream_total", 0.0).await;
            wait_figure(&s, "etcd_debugging_mvcc_watcher_total", 0.0).await;
        },
    );
}

#[test]
fn metrics_count() {
    with_server(|s| async move {
        s.put("a", "1").await;
        let refused = s.kv().put(pb::PutRequest::default()).await;
        assert_refused(refused, Code::InvalidArgument, "etcdserver: key is not provided");
        let (status, page) = http(&s, "GET", "/metrics", "").await;
        assert_eq!(status, 200);
        let value = |name: &str| figure(&page, name);
        assert_eq!(value("etcd_server_has_leader"), 1.0);
        assert_eq!(value("etcd_server_is_leader"), 1.0);
        assert_eq!(value("etcd_server_leader_changes_seen_total"), 1.0);
        assert!(value("etcd_server_proposals_committed_total") >= 2.0);
        assert!(value("etcd_server_proposals_applied_total") >= 2.0);
        assert_eq!(value("etcd_server_proposals_pending"), 0.0);
        assert_eq!(value("etcd_server_proposals_failed_total"), 0.0);
        assert_eq!(value("etcd_debugging_mvcc_current_revision"), 2.0);
        assert!(value("etcd_mvcc_db_total_size_in_bytes") > 0.0);
        assert!(value("etcd_disk_wal_fsync_duration_seconds_count") >= 1.0);
        assert!(value("etcd_network_client_grpc_received_bytes_total") > 0.0);
        let put = "grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"}";
        assert_eq!(value(&format!("grpc_server_started_total{{{put}")), 2.0);
        assert_eq!(value(&format!("grpc_server_handled_total{{grpc_code=\"OK\",{put}")), 1.0);
        assert_eq!(value(&format!("grpc_server_handled_total{{grpc_code=\"InvalidArgument\",{put}")), 1.0);
        // Every family is announced before its first line, as parsers want it.
        let mut announced = std::collections::BTreeSet::new();
        for line in page.lines() {
            match line.strip_prefix("# TYPE ") {
                Some(rest) => assert!(announced.insert(rest.split(' ').next().expect("a name")), "{line} twice"),
                None if line.starts_with('#') => {}
                None => {
                    let name = line.split(['{', ' ']).next().expect("a name");
                    let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
                    assert!(announced.contains(name) || announced.contains(family), "{line} is not announced");
                }
            }
        }
    });
}

#[test]
fn requests_as_json() {
    with_server(|s| async move {
        let (status, put) = post(&s, "/v3/kv/put", json!({ "key": "Zm9v", "value": "YmFy" })).await;
        assert_eq!((status, &put["header"]["revision"]), (200, &json!("2")));
        let (_, got) = post(&s, "/v3/kv/range", json!({ "key": "Zm9v" })).await;
        let pair = json!({ "key": "Zm9v", "value": "YmFy", "create_revision": "2", "mod_revision": "2", "version": "1" });
        assert_eq!((&got["kvs"], &got["count"], got.get("more")), (&json!([pair]), &json!("1"), None));
        let txn = json!({
            "compare": [{ "key": "Zm9v", "target": "VALUE", "result": "EQUAL", "value": "YmFy" }],
            "success": [{ "request_put": { "key": "Zm9v", "value": "YmF6" } }, { "requestRange": { "key": "Zm9v" } }],
        });
        let (status, done) = post(&s, "/v3/kv/txn", txn).await;
        assert_eq!((status, &done["succeeded"]), (200, &json!(true)));
        assert_eq!(done["responses"][1]["response_range"]["kvs"][0]["value"], "YmF6");
        let (_, lease) = post(&s, "/v3/lease/grant", json!({ "TTL": 60, "ID": "77" })).await;
        assert_eq!((&lease["ID"], &lease["TTL"]), (&json!("77"), &json!("60")));
        let (_, left) = post(&s, "/v3/kv/lease/timetolive", json!({ "ID": 77, "keys": true })).await;
        assert_eq!(left["grantedTTL"], "60");
        let (_, members) = post(&s, "/v3/cluster/member/list", json!({})).await;
        assert_eq!(members["members"][0]["peerURLs"], json!(["http://127.0.0.1:1"]));
        let (_, status) = post(&s, "/v3/maintenance/status", json!({})).await;
        assert_eq!(status["version"], "3.5.21");
        let (_, lock) = post(&s, "/v3/lock/lock", json!({ "name": "bQ==" })).await;
        // "m/", and the first bits of the lease's first digit: 8 for a number, 9 for a letter.
        assert!(lock["key"].as_str().is_some_and(|k| k.starts_with("bS8") || k.starts_with("bS9")), "{lock}");
        let (status, _) = post(&s, "/v3/kv/compaction", json!({ "revision": "3" })).await;
        assert_eq!(status, 200);
        // No body is an empty request.
        assert_eq!(http(&s, "POST", "/v3/maintenance/status", "").await.0, 200);
    });
}

#[test]
fn refusals_as_json() {
    with_server(|s| async move {
        let (status, refused) = post(&s, "/v3/kv/put", json!({ "value": "YmFy" })).await;
        let text = "etcdserver: key is not provided";
        assert_eq!((status, refused), (400, json!({ "error": text, "code": 3, "message": text })));
        let (status, refused) = post(&s, "/v3/lease/revoke", json!({ "ID": 5 })).await;
        assert_eq!((status, &refused["code"], &refused["error"]), (404, &json!(5), &json!("etcdserver: requested lease not found")));
        let (status, refused) = post(&s, "/v3/kv/range", json!({ "key": "Zm9v", "revision": 99 })).await;
        assert_eq!((status, &refused["code"]), (400, &json!(11)));
        for body in ["{\"key\":", "{\"key\":7}", "[]", "nonsense"] {
            let (status, refused) = http(&s, "POST", "/v3/kv/range", body).await;
            assert!(status == 400 && refused.contains("\"code\":3"), "{body}: {status} {refused}");
        }
        let typed = json!({ "compare": [{ "key": "Zm9v", "target": "VALU", "value": "" }] });
        let (status, refused) = post(&s, "/v3/kv/txn", typed).await;
        assert_eq!((status, &refused["error"]), (400, &json!("unknown value \"VALU\" for enum etcdserverpb.Compare_CompareTarget")));
        assert_eq!(http(&s, "GET", "/v3/kv/range", "").await.0, 405);
        assert_eq!(http(&s, "POST", "/v3/kv/nonsense", "{}").await.0, 404);
        assert_eq!(http(&s, "POST", "/v2/keys/x", "{}").await.0, 404);
        let large = json!({ "key": "Zm9v", "value": "QUFB".repeat(600_000) });
        let (status, refused) = post(&s, "/v3/kv/put", large).await;
        assert_eq!((status, &refused["error"]), (400, &json!("etcdserver: request is too large")));
        assert_eq!(http(&s, "OPTIONS", "/v3/kv/range", "").await.0, 200);
    });
}

#[test]
fn who_gives_a_time_waits_no_longer() {
    with_server(|s| async move {
        for lease in ["1", "2"] {
            assert_eq!(post(&s, "/v3/lease/grant", json!({ "ID": lease, "TTL": 60 })).await.0, 200);
        }
        assert_eq!(post(&s, "/v3/lock/lock", json!({ "name": "bA==", "lease": "1" })).await.0, 200);
        let other = json!({ "name": "bA==", "lease": "2" }).to_string();
        let (status, late) = http_with(&s, "POST", "/v3/lock/lock", "Grpc-Timeout: 100m\r\n", &other).await;
        assert!(status == 504 && late.contains("\"code\":4") && late.contains("context deadline exceeded"), "{status} {late}");
        let (status, nonsense) = http_with(&s, "POST", "/v3/lock/lock", "Grpc-Timeout: zz\r\n", &other).await;
        assert!(status == 400 && nonsense.contains("invalid grpc-timeout: zz"), "{status} {nonsense}");
    });
}

#[test]
fn streams_as_lines() {
    with_server(|s| async move {
        let created = json!({ "create_request": { "key": "dw==", "prev_kv": true } });
        let mut watch = Lines(BufReader::new(ask(&s, "POST", "/v3/watch", "", &created.to_string()).await));
        assert_eq!(watch.next().await["result"]["created"], true);
        s.put("w", "1").await;
        let first = watch.next().await;
        let event = json!({ "kv": { "key": "dw==", "value": "MQ==", "create_revision": "2", "mod_revision": "2", "version": "1" } });
        assert_eq!(first["result"]["events"], json!([event]));
        s.delete("w").await;
        let second = watch.next().await;
        assert_eq!(second["result"]["events"][0]["type"], "DELETE");
        assert_eq!(second["result"]["events"][0]["prev_kv"]["value"], "MQ==");
        drop(watch);

        let id = s.grant(60).await;
        let mut kept =
            Lines(BufReader::new(ask(&s, "POST", "/v3/lease/keepalive", "", &json!({ "ID": id.to_string() }).to_string()).await));
        assert_eq!(kept.next().await["result"]["TTL"], "60");

        // Several requests in one body, and an end that the stream tells.
        let two = format!(
            "{}\n{}",
            json!({ "create_request": { "key": "eA==", "watch_id": "7" } }),
            json!({ "cancel_request": { "watch_id": "7" } })
        );
        let mut watch = Lines(BufReader::new(ask(&s, "POST", "/v3/watch", "", &two).await));
        assert_eq!(watch.next().await["result"]["watch_id"], "7");
        assert_eq!(watch.next().await["result"]["canceled"], true);
        s.closing.notify_one();
        let end = watch.next().await;
        assert_eq!((&end["error"]["grpc_code"], &end["error"]["http_code"]), (&json!(14), &json!(503)), "{end}");
    });
}

#[test]
fn a_token_opens_the_gateway() {
    with_server(|s| async move {
        super::auth::closed(&s).await;
        let put = json!({ "key": "Yi8x", "value": "MQ==" });
        let (status, refused) = post(&s, "/v3/kv/put", put.clone()).await;
        let text = "etcdserver: user name is empty";
        assert_eq!((status, refused), (400, json!({ "error": text, "code": 3, "message": text })));
        let (status, refused) = post(&s, "/v3/auth/authenticate", json!({ "name": "writer", "password": "wrong" })).await;
        let text = "etcdserver: authentication failed, invalid user ID or password";
        assert_eq!((status, &refused["code"], &refused["error"]), (400, &json!(3), &json!(text)));

        let token = |answer: Value| answer["token"].as_str().expect("a token").to_owned();
        let (status, answer) = post(&s, "/v3/auth/authenticate", json!({ "name": "writer", "password": "writer" })).await;
        assert_eq!(status, 200);
        let writer = token(answer);
        assert_eq!(post_by(&s, &writer, "/v3/kv/put", put.clone()).await.0, 200);
        // Who the token stands for counts, and a token that nobody gave out is none.
        let (status, refused) = post_by(&s, &writer, "/v3/kv/range", json!({ "key": "Yi8x" })).await;
        assert_eq!((status, &refused["code"], &refused["error"]), (403, &json!(7), &json!("etcdserver: permission denied")));
        let (status, refused) = post_by(&s, "nonsense.1", "/v3/kv/put", put).await;
        assert_eq!((status, &refused["code"], &refused["error"]), (401, &json!(16), &json!("etcdserver: invalid auth token")));
        let (_, answer) = post(&s, "/v3/auth/authenticate", json!({ "name": "root", "password": "rootpw" })).await;
        let root = token(answer);
        let (status, users) = post_by(&s, &root, "/v3/auth/user/list", json!({})).await;
        assert_eq!((status, &users["users"]), (200, &json!(["reader", "root", "writer"])));

        // Streams too.
        let created = json!({ "create_request": { "key": "Yi8x" } }).to_string();
        let header = format!("Authorization: {root}\r\n");
        let mut watch = Lines(BufReader::new(ask(&s, "POST", "/v3/watch", &header, &created).await));
        let first = watch.next().await;
        assert_eq!((&first["result"]["created"], first["result"].get("canceled")), (&json!(true), None));
        let mut watch = Lines(BufReader::new(ask(&s, "POST", "/v3/watch", "", &created).await));
        let first = watch.next().await;
        assert_eq!(first["result"]["canceled"], true, "{first}");
    });
}
