//! The plain HTTP pages: `/metrics`, `/version`, and the health checks of etcd and of Kubernetes' kubelet.

use super::{Api, metrics};
use brickraft_engine::kv::types::{Keyspace, RangeRequest};
use bytes::Bytes;
use http_body_util::Full;
use std::time::Duration;
use tonic::body::Body;
use tonic::codegen::http::{HeaderValue, Method, Request, Response, StatusCode, header};

/// A health check that takes longer has failed.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);
const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

/// What a page says.
struct Page {
    status: StatusCode,
    kind: &'static str,
    text: String,
}

pub(super) fn response(status: StatusCode, kind: &'static str, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(text.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// True for what [`serve`] knows.
pub(super) fn is_page(path: &str) -> bool {
    let first = path.strip_prefix('/').unwrap_or(path).split('/').next().unwrap_or_default();
    matches!(first, "metrics" | "version" | "health" | "livez" | "readyz")
}

pub(super) async fn serve(api: Api, request: Request<Body>) -> Response<Body> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused = response(StatusCode::METHOD_NOT_ALLOWED, TEXT, "Method Not Allowed\n");
        refused.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
        return refused;
    }
    let query = Query(request.uri().query().unwrap_or_default());
    let page = match request.uri().path() {
        "/metrics" => Page { status: StatusCode::OK, kind: "text/plain; version=0.0.4; charset=utf-8", text: metrics::page(&api) },
        "/version" => Page { status: StatusCode::OK, kind: JSON, text: version(&api) },
        "/health" => health(&api, &query).await,
        path => match checks(path) {
            Some(wanted) => probe(&api, &query, path, &wanted).await,
            None => Page { status: StatusCode::NOT_FOUND, kind: TEXT, text: "404 page not found\n".into() },
        },
    };
    response(page.status, page.kind, page.text)
}

/// A URL's query, `name=value&name=value`; what we look for needs no escapes.
struct Query<'a>(&'a str);

impl<'a> Query<'a> {
    fn all(&self, name: &'a str) -> impl Iterator<Item = &'a str> + use<'a> {
        self.0.split('&').filter_map(move |pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (key == name).then_some(value)
        })
    }

    fn has(&self, name: &'a str) -> bool {
        self.all(name).next().is_some()
    }
}

fn version(api: &Api) -> String {
    format!("{{\"etcdserver\":\"{}\",\"etcdcluster\":\"{}\"}}", api.settings().version, api.settings().cluster_version())
}

/// One check, by the name that it has in `/readyz?verbose`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    DataCorruption,
    SerializableRead,
    LinearizableRead,
}

impl Check {
    fn name(self) -> &'static str {
        match self {
            Self::DataCorruption => "data_corruption",
            Self::SerializableRead => "serializable_read",
            Self::LinearizableRead => "linearizable_read",
        }
    }

    async fn run(self, api: &Api) -> Result<(), String> {
        match self {
            Self::DataCorruption => match api.alarms().iter().find(|a| **a == "CORRUPT") {
                Some(alarm) => Err(format!("alarm activated: {alarm}")),
                None => Ok(()),
            },
            Self::SerializableRead => read(api, true).await,
            Self::LinearizableRead => read(api, false).await,
        }
    }
}

/// Reads a key that nobody has.
async fn read(api: &Api, serializable: bool) -> Result<(), String> {
    if api.0.status.borrow().stopped.is_some() {
        return Err("server is stopping".into());
    }
    let request = RangeRequest { key: Bytes::from_static(b"\0health"), limit: 1, ..Default::default() };
    let read = api.handle().range(Keyspace::User, &request, serializable);
    match tokio::time::timeout(CHECK_TIMEOUT, read).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(e)) => Err(format!("range error: {e}")),
        Err(_) => Err("range error: request timed out".into()),
    }
}

async fn health(api: &Api, query: &Query<'_>) -> Page {
    let alarms = api.alarms();
    let alarm = alarms.iter().find(|alarm| !query.all("exclude").any(|e| e == **alarm));
    let serializable = query.all("serializable").any(|v| v == "true");
    let reason = match alarm {
        Some(alarm) => format!("ALARM {alarm}"),
        None if !serializable && !api.has_leader() => "RAFT NO LEADER".into(),
        None => match read(api, serializable).await {
            Ok(()) => String::new(),
            Err(e) => e.replacen("range error", "RANGE ERROR", 1),
        },
    };
    let status = if reason.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let health = if reason.is_empty() { "true" } else { "false" };
    api.settings().metrics.health_checked(reason.is_empty());
    Page { status, kind: JSON, text: serde_json::json!({ "health": health, "reason": reason }).to_string() }
}

/// The checks behind a path.
fn checks(path: &str) -> Option<Vec<Check>> {
    let all: &[Check] = match path.get(..6)? {
        "/livez" => &[Check::SerializableRead],
        "/ready" => &[Check::DataCorruption, Check::SerializableRead, Check::LinearizableRead],
        _ => return None,
    };
    let rest = path.strip_prefix("/livez").or_else(|| path.strip_prefix("/readyz"))?;
    match rest {
        "" | "/" => Some(all.to_vec()),
        one => all.iter().find(|c| one.strip_prefix('/') == Some(c.name())).map(|c| vec![*c]),
    }
}

async fn probe(api: &Api, query: &Query<'_>, path: &str, wanted: &[Check]) -> Page {
    let mut lines = String::new();
    let mut failed = false;
    for check in wanted {
        let listed = query.has("allowlist").then(|| query.all("allowlist").any(|a| a == check.name()));
        if listed == Some(false) || query.all("exclude").any(|e| e == check.name()) {
            continue;
        }
        match check.run(api).await {
            Ok(()) => lines += &format!("[+]{} ok\n", check.name()),
            Err(e) => {
                failed = true;
                lines += &format!("[-]{} failed: {e}\n", check.name());
            }
        }
    }
    let name = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    if failed {
        return Page { status: StatusCode::SERVICE_UNAVAILABLE, kind: TEXT, text: format!("{lines}{name} check failed\n") };
    }
    let text = if query.has("verbose") { format!("{lines}{name} check passed\n") } else { "ok\n".into() };
    Page { status: StatusCode::OK, kind: TEXT, text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_checks() {
        assert!(["/metrics", "/health", "/livez", "/readyz/data_corruption"].iter().all(|p| is_page(p)));
        assert!(!is_page("/etcdserverpb.KV/Range") && !is_page("/v3/kv/range") && !is_page("/"));
        assert_eq!(checks("/livez"), Some(vec![Check::SerializableRead]));
        assert_eq!(checks("/readyz/").map(|c| c.len()), Some(3));
        assert_eq!(checks("/readyz/linearizable_read"), Some(vec![Check::LinearizableRead]));
        assert!(["/livez/linearizable_read", "/livezz", "/x", "/readyz/x"].iter().all(|p| checks(p).is_none()));
    }

    #[test]
    fn queries_are_read() {
        let query = Query("serializable=true&exclude=NOSPACE&exclude=X&verbose");
        assert_eq!(query.all("exclude").collect::<Vec<_>>(), ["NOSPACE", "X"]);
        assert!(query.has("verbose") && !query.has("verb"));
    }
}
