//! Many watches that mostly wait, then a few puts: is every event delivered, to the right watch, and at what cost in
//! memory?

use super::cluster::Cluster;
use super::grpc::{CallError, Connection, Stream};
use super::load::{Source, key};
use super::report::Figures;
use crate::proc;
use anyhow::{Context, Result, ensure};
use brickraft_net::etcd::pb::etcdserverpb as pb;
use hdrhistogram::Histogram;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Connections that the streams share.
const CONNECTIONS: u32 = 100;
/// Keys put once all watch, each watched by one watcher.
const PUTS: u32 = 1000;
/// Clients that put.
const PUT_CLIENTS: u32 = 10;
/// How long the last events may take.
const DELIVERY_MAX: Duration = Duration::from_secs(20);
/// Rest before memory is looked at.
const SETTLE: Duration = Duration::from_secs(2);

/// Events by the number of the key.
type Seen = Rc<RefCell<BTreeMap<u32, u32>>>;

async fn watch_stream(connection: &mut Connection, first: u32, count: u32) -> Result<Stream, CallError> {
    let endpoint = connection.method("/etcdserverpb.Watch/Watch");
    let mut stream = connection.stream(&endpoint).await?;
    for n in first..first + count {
        let create = pb::WatchCreateRequest { key: key("w", n), ..Default::default() };
        stream.send(&pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) })?;
    }
    for _ in 0..count {
        let answer: pb::WatchResponse = stream.next().await?;
        if !answer.created || answer.canceled {
            return Err(CallError::Connection(format!("a watch was not created: {answer:?}")));
        }
    }
    Ok(stream)
}

/// Takes events until the stream breaks.
async fn follow(mut stream: Stream, seen: Seen) {
    while let Ok(answer) = stream.next::<pb::WatchResponse>().await {
        for pair in answer.events.iter().filter_map(|e| e.kv.as_ref()) {
            let number = std::str::from_utf8(&pair.key[1..]).ok().and_then(|n| n.parse().ok());
            *seen.borrow_mut().entry(number.unwrap_or(u32::MAX)).or_default() += 1;
        }
    }
}

async fn put_all(cluster: &Cluster, step: u32) -> Result<Histogram<u64>> {
    let source = Source::new();
    let latency = Rc::new(RefCell::new(Histogram::new_with_bounds(1, 60_000_000, 3).expect("sound bounds")));
    let mut tasks = JoinSet::new();
    for (i, mut connection) in cluster.connect(PUT_CLIENTS as usize).await?.into_iter().enumerate() {
        let (source, latency) = (source.clone(), latency.clone());
        tasks.spawn_local(async move {
            let endpoint = connection.method("/etcdserverpb.KV/Put");
            for n in (i as u32..PUTS).step_by(PUT_CLIENTS as usize) {
                let since = Instant::now();
                connection.unary::<_, pb::PutResponse>(&endpoint, &source.put(key("w", n * step))).await?;
                latency.borrow_mut().saturating_record(since.elapsed().as_micros().max(1) as u64);
            }
            Ok::<_, CallError>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.context("a putting client")?.context("put")?;
    }
    let latency = latency.borrow().clone();
    Ok(latency)
}

/// Opens the watches, puts, and counts.
pub(crate) async fn run(cluster: &Cluster, watchers: u32, per_stream: u32) -> Result<Figures> {
    let bare = cluster.memory()?;
    let mut connections = cluster.connect(CONNECTIONS as usize).await?;
    let seen: Seen = Rc::default();
    let mut tasks = JoinSet::new();
    for (i, first) in (0..watchers).step_by(per_stream as usize).enumerate() {
        let connection = &mut connections[i % CONNECTIONS as usize];
        let stream = watch_stream(connection, first, per_stream.min(watchers - first)).await.context("open a watch")?;
        tasks.spawn_local(follow(stream, seen.clone()));
    }
    tokio::time::sleep(SETTLE).await;
    let idle = cluster.memory()?;
    let me = [std::process::id()];
    let before = (cluster.cpu_us()?, proc::cpu_us(&me)?, Instant::now());
    let latency = put_all(cluster, watchers / PUTS).await?;
    let took = before.2.elapsed();
    let delivered = || seen.borrow().values().map(|n| u64::from(*n)).sum::<u64>();
    while delivered() < u64::from(PUTS) && before.2.elapsed() < DELIVERY_MAX {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let after = (cluster.cpu_us()?, proc::cpu_us(&me)?);
    tokio::time::sleep(Duration::from_millis(500)).await;
    ensure!(!tasks.is_empty() && tasks.try_join_next().is_none(), "a watch stream ended");
    let right = seen.borrow().iter().all(|(n, count)| n % (watchers / PUTS) == 0 && *count == 1);
    ensure!(delivered() == u64::from(PUTS) && right, "{} events were delivered of {PUTS}, each once: {right}", delivered());
    let mut figures = Figures::of(u64::from(PUTS), took, &latency, after.0 - before.0, after.1 - before.1);
    figures.memory(cluster.memory()?);
    figures.extra("events_delivered", delivered() as f64);
    figures.extra("pss_bytes_each_watcher", (idle - bare).pss as f64 / f64::from(watchers));
    Ok(figures)
}
