//! The load: clients that share connections, in closed loop (each asks again once answered) or open loop (requests
//! start at fixed times, whatever is still unanswered, and latency counts from the time that was meant).

use super::cluster::Cluster;
use super::grpc::{CallError, Connection, Endpoint, Stream};
use super::report::Figures;
use crate::proc;
use anyhow::{Context, Result, ensure};
use brickraft_net::etcd::pb::etcdserverpb as pb;
use bytes::Bytes;
use hdrhistogram::Histogram;
use rand::rngs::SmallRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use tokio::task::{JoinSet, spawn_local};
use tokio::time::Instant;

/// Bytes of each value.
pub(crate) const VALUE_BYTES: usize = 256;
/// Keys that puts choose from.
pub(crate) const PUT_KEYS: u32 = 100_000;
/// Keys that ranges read, one at a time.
pub(crate) const RANGE_KEYS: u32 = 10_000;
/// Puts in one transaction where keys are made ahead of the measurement.
pub(crate) const FILL_PUTS: u32 = 100;
/// Clients that make keys ahead of the measurement.
const FILL_CLIENTS: u32 = 16;
/// Not counted, before each measurement.
pub(crate) const WARM_UP: Duration = Duration::from_secs(1);
/// How long requests that are out may take once the measurement is over.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// How often the open loop starts what is due.
const PACE: Duration = Duration::from_millis(1);
/// Requests under way in open loop at most; later ones wait, and their latency with them.
const OUTSTANDING_MAX: usize = 20_000;
/// A lease that lives through any run.
const LEASE_TTL_S: i64 = 3600;

/// What one request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// One of so many keys.
    Put { prefix: &'static str, keys: u32 },
    /// One key.
    Range { serializable: bool },
    /// So many puts of different keys.
    Txn { puts: u32 },
    /// One message on a stream of each client's own.
    KeepAlive,
}

/// How the load is applied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) op: Op,
    pub(crate) clients: usize,
    pub(crate) connections: usize,
    /// Requests a second, in open loop; closed loop without.
    pub(crate) rate: Option<u32>,
}

/// A key: 16 bytes, as the number says.
pub(crate) fn key(prefix: &str, number: u32) -> Bytes {
    Bytes::from(format!("{prefix}{number:015}"))
}

/// What several clients of one thread share.
pub(crate) struct Source {
    rng: RefCell<SmallRng>,
    values: Vec<Bytes>,
}

impl Source {
    pub(crate) fn new() -> Rc<Self> {
        let mut rng = SmallRng::seed_from_u64(7);
        let mut value = || {
            let mut bytes = vec![0; VALUE_BYTES];
            rng.fill_bytes(&mut bytes);
            Bytes::from(bytes)
        };
        let values = (0..64).map(|_| value()).collect();
        Rc::new(Self { rng: RefCell::new(rng), values })
    }

    fn below(&self, bound: u32) -> u32 {
        self.rng.borrow_mut().random_range(0..bound)
    }

    pub(crate) fn value(&self) -> Bytes {
        self.values[self.below(self.values.len() as u32) as usize].clone()
    }

    pub(crate) fn put(&self, key: Bytes) -> pb::PutRequest {
        pb::PutRequest { key, value: self.value(), ..Default::default() }
    }
}

fn put_op(put: pb::PutRequest) -> pb::RequestOp {
    pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) }
}

/// Makes keys `from..to` in transactions.
pub(crate) async fn fill(cluster: &Cluster, prefix: &'static str, count: u32) -> Result<()> {
    let source = Source::new();
    let next = Rc::new(Cell::new(0_u32));
    let mut tasks = JoinSet::new();
    for mut connection in cluster.connect(FILL_CLIENTS as usize).await? {
        let (source, next) = (source.clone(), next.clone());
        tasks.spawn_local(async move {
            let endpoint = connection.method("/etcdserverpb.KV/Txn");
            loop {
                let first = next.get();
                if first >= count {
                    return Ok::<_, CallError>(());
                }
                let last = (first + FILL_PUTS).min(count);
                next.set(last);
                let success = (first..last).map(|n| put_op(source.put(key(prefix, n)))).collect();
                let request = pb::TxnRequest { success, ..Default::default() };
                // Back-pressure is an answer to be obeyed.
                while let Err(e) = connection.unary::<_, pb::TxnResponse>(&endpoint, &request).await {
                    match e {
                        CallError::Status { .. } => tokio::time::sleep(Duration::from_millis(50)).await,
                        CallError::Connection(_) => return Err(e),
                    }
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.context("a filling client")?.context("fill in keys")?;
    }
    Ok(())
}

/// One client's way to do its operation.
pub(crate) struct Client {
    connection: Connection,
    endpoint: Endpoint,
    op: Op,
    source: Rc<Source>,
    keep_alive: Option<(Stream, i64)>,
}

impl Client {
    pub(crate) async fn new(mut connection: Connection, op: Op, source: Rc<Source>) -> Result<Self, CallError> {
        let path = match op {
            Op::Put { .. } => "/etcdserverpb.KV/Put",
            Op::Range { .. } => "/etcdserverpb.KV/Range",
            Op::Txn { .. } => "/etcdserverpb.KV/Txn",
            Op::KeepAlive => "/etcdserverpb.Lease/LeaseKeepAlive",
        };
        let endpoint = connection.method(path);
        let mut keep_alive = None;
        if op == Op::KeepAlive {
            let grant = connection.method("/etcdserverpb.Lease/LeaseGrant");
            let granted: pb::LeaseGrantResponse =
                connection.unary(&grant, &pb::LeaseGrantRequest { ttl: LEASE_TTL_S, ..Default::default() }).await?;
            keep_alive = Some((connection.stream(&endpoint).await?, granted.id));
        }
        Ok(Self { connection, endpoint, op, source, keep_alive })
    }

    pub(crate) async fn go(&mut self) -> Result<Option<pb::ResponseHeader>, CallError> {
        let s = &self.source;
        let (c, e) = (&mut self.connection, &self.endpoint);
        match self.op {
            Op::Put { prefix, keys } => {
                let request = s.put(key(prefix, s.below(keys)));
                Ok(c.unary::<_, pb::PutResponse>(e, &request).await?.header)
            }
            Op::Range { serializable } => {
                let request = pb::RangeRequest { key: key("r", s.below(RANGE_KEYS)), serializable, ..Default::default() };
                let answer: pb::RangeResponse = c.unary(e, &request).await?;
                match answer.kvs.as_slice() {
                    [pair] if pair.value.len() == VALUE_BYTES => Ok(answer.header),
                    _ => Err(CallError::Connection("a range without its key".into())),
                }
            }
            Op::Txn { puts } => {
                // Different keys: etcd refuses the same key twice.
                let first = s.below(PUT_KEYS - puts);
                let success = (first..first + puts).map(|n| put_op(s.put(key("p", n)))).collect();
                let answer: pb::TxnResponse = c.unary(e, &pb::TxnRequest { success, ..Default::default() }).await?;
                if answer.succeeded { Ok(answer.header) } else { Err(CallError::Connection("a transaction without its puts".into())) }
            }
            Op::KeepAlive => {
                let Some((stream, id)) = &mut self.keep_alive else { return Err(CallError::Connection("no stream".into())) };
                stream.send(&pb::LeaseKeepAliveRequest { id: *id })?;
                let answer: pb::LeaseKeepAliveResponse = stream.next().await?;
                if answer.ttl > 0 { Ok(answer.header) } else { Err(CallError::Connection("the lease is gone".into())) }
            }
        }
    }
}

/// What is counted: completions between two points in time.
struct Window {
    start: Instant,
    end: Instant,
    latency: RefCell<Histogram<u64>>,
    errors: Cell<u64>,
    first_error: RefCell<Option<String>>,
    outstanding: Cell<usize>,
}

impl Window {
    fn new(duration: Duration) -> Rc<Self> {
        let start = Instant::now() + WARM_UP;
        let latency = Histogram::new_with_bounds(1, 60_000_000, 3).expect("sound bounds");
        Rc::new(Self {
            start,
            end: start + duration,
            latency: RefCell::new(latency),
            errors: Cell::new(0),
            first_error: RefCell::new(None),
            outstanding: Cell::new(0),
        })
    }

    fn count(&self, since: Instant, result: Result<Option<pb::ResponseHeader>, CallError>) {
        let now = Instant::now();
        if now < self.start || now > self.end {
            return;
        }
        match result {
            Ok(_) => self.latency.borrow_mut().saturating_record((now - since).as_micros().max(1) as u64),
            Err(e) => {
                self.errors.set(self.errors.get() + 1);
                self.first_error.borrow_mut().get_or_insert_with(|| e.to_string());
            }
        }
    }
}

async fn closed(mut client: Client, window: Rc<Window>) {
    loop {
        let since = Instant::now();
        if since >= window.end {
            return;
        }
        let result = client.go().await;
        let failed = result.is_err();
        window.count(since, result);
        if failed {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Starts each request when it is due, on an idle client where there is one; an unbounded number would make of a
/// slow server a full memory.
async fn open(clients: Vec<Client>, rate: u32, window: Rc<Window>) {
    let idle = Rc::new(RefCell::new(clients));
    let began = Instant::now();
    let gap = Duration::from_secs(1) / rate;
    let mut due = began;
    while due < window.end {
        while due <= Instant::now() && window.outstanding.get() < OUTSTANDING_MAX {
            let since = due;
            due += gap;
            let Some(mut client) = take(&idle) else { return };
            let (idle, window) = (idle.clone(), window.clone());
            window.outstanding.set(window.outstanding.get() + 1);
            spawn_local(async move {
                let result = client.go().await;
                window.count(since, result);
                window.outstanding.set(window.outstanding.get() - 1);
                idle.borrow_mut().push(client);
            });
        }
        tokio::time::sleep(PACE).await;
    }
    let overdue = Instant::now() + DRAIN_MAX;
    while window.outstanding.get() > 0 && Instant::now() < overdue {
        tokio::time::sleep(PACE).await;
    }
}

/// An idle client, or a new one that shares a random idle one's connection. The last one stays as the model.
fn take(idle: &RefCell<Vec<Client>>) -> Option<Client> {
    let mut idle = idle.borrow_mut();
    if idle.len() > 1 {
        let at = rand::rng().random_range(1..idle.len());
        return Some(idle.swap_remove(at));
    }
    let model = idle.first()?;
    Some(Client {
        connection: model.connection.clone(),
        endpoint: model.endpoint.clone(),
        op: model.op,
        source: model.source.clone(),
        keep_alive: None,
    })
}

/// Runs a load for `duration` and counts.
pub(crate) async fn run(cluster: &Cluster, load: Load, duration: Duration) -> Result<Figures> {
    ensure!(load.rate.is_none() || load.op != Op::KeepAlive, "keep-alives have streams, which go in closed loop only");
    if matches!(load.op, Op::Range { .. }) {
        fill(cluster, "r", RANGE_KEYS).await?;
    }
    let source = Source::new();
    let connections = cluster.connect(load.connections).await?;
    let mut clients = Vec::with_capacity(load.clients);
    for i in 0..load.clients {
        clients.push(Client::new(connections[i % connections.len()].clone(), load.op, source.clone()).await.context("start a client")?);
    }
    drop(connections);
    let window = Window::new(duration);
    let mut tasks = JoinSet::new();
    match load.rate {
        None => clients.into_iter().for_each(|c| {
            tasks.spawn_local(closed(c, window.clone()));
        }),
        Some(rate) => {
            tasks.spawn_local(open(clients, rate, window.clone()));
        }
    }
    tokio::time::sleep_until(window.start).await;
    let me = [std::process::id()];
    let before = (cluster.cpu_us()?, proc::cpu_us(&me)?, Instant::now());
    tokio::time::sleep_until(window.end).await;
    let after = (cluster.cpu_us()?, proc::cpu_us(&me)?, Instant::now());
    let memory = cluster.memory()?;
    let drained = async { while tasks.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(DRAIN_MAX, drained).await;
    let latency = window.latency.borrow();
    let ops = latency.len();
    ensure!(ops > 0, "no request succeeded: {}", window.first_error.borrow().as_deref().unwrap_or("no answer at all"));
    let mut figures = Figures::of(ops, after.2 - before.2, &latency, after.0 - before.0, after.1 - before.1);
    figures.memory(memory);
    figures.errors = window.errors.get();
    if let Some(e) = window.first_error.borrow().as_deref() {
        eprintln!("  {} errors, the first: {e}", figures.errors);
    }
    Ok(figures)
}
