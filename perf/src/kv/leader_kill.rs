//! kill -9 of the leader under load: how long until clients of each member have a success again?

use super::cluster::{Cluster, MEMBERS, Programs, System};
use super::grpc::{CallError, Connection};
use super::load::{PUT_KEYS, Source, key};
use anyhow::{Context, Result, bail};
use brickraft_net::etcd::pb::etcdserverpb as pb;
use rand::Rng as _;
use serde::Serialize;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Clients of each member; they share a connection.
const CLIENTS: usize = 10;
/// Load before the kill, at least, in milliseconds, and how much longer it may be.
const BEFORE_MS: (u64, u64) = (1000, 2000);
/// How long all clients may be without success.
const OUTAGE_MAX: Duration = Duration::from_secs(30);
/// A client that was refused asks again after so long.
const RETRY: Duration = Duration::from_millis(20);

/// When clients of each member had their first success, in milliseconds after the kill.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Trial {
    /// Those of the two that live on, in the order of the members.
    survivors_ms: [f64; MEMBERS - 1],
    /// Those of the one killed, which go on to the next member.
    killed_ms: f64,
}

impl Trial {
    /// The last of all clients' groups.
    pub(crate) fn worst_ms(&self) -> f64 {
        self.survivors_ms.iter().copied().fold(self.killed_ms, f64::max)
    }
}

struct Shared {
    addresses: Vec<String>,
    source: Rc<Source>,
    /// When the leader was killed, and the term that it led.
    killed: Cell<Option<(Instant, u64)>>,
    first: RefCell<[Option<Duration>; MEMBERS]>,
    done: Cell<bool>,
}

/// Puts without end through member `home`, or the next one when it does not answer.
async fn client(shared: Rc<Shared>, home: usize) {
    let mut at = home;
    'connect: while !shared.done.get() {
        let Ok(mut connection) = Connection::open(&shared.addresses[at]).await else {
            at = (at + 1) % MEMBERS;
            tokio::time::sleep(RETRY).await;
            continue;
        };
        let endpoint = connection.method("/etcdserverpb.KV/Put");
        while !shared.done.get() {
            let number = rand::rng().random_range(0..PUT_KEYS);
            match connection.unary::<_, pb::PutResponse>(&endpoint, &shared.source.put(key("p", number))).await {
                Ok(answer) => note(&shared, home, answer.header.map_or(0, |h| h.raft_term)),
                Err(CallError::Status { .. }) => tokio::time::sleep(RETRY).await,
                Err(CallError::Connection(_)) => {
                    at = (at + 1) % MEMBERS;
                    continue 'connect;
                }
            }
        }
    }
}

/// A success of a later term than the killed leader's is one of the new leader's.
fn note(shared: &Shared, home: usize, term: u64) {
    if let Some((killed, old)) = shared.killed.get()
        && term > old
    {
        shared.first.borrow_mut()[home].get_or_insert_with(|| killed.elapsed());
    }
}

async fn trial(cluster: &mut Cluster) -> Result<Trial> {
    cluster.ready().await?;
    let shared = Rc::new(Shared {
        addresses: (0..MEMBERS).map(|m| cluster.address(m)).collect(),
        source: Source::new(),
        killed: Cell::default(),
        first: RefCell::default(),
        done: Cell::default(),
    });
    let mut tasks = JoinSet::new();
    for i in 0..MEMBERS * CLIENTS {
        tasks.spawn_local(client(shared.clone(), i % MEMBERS));
    }
    let before = BEFORE_MS.0 + rand::rng().random_range(0..BEFORE_MS.1);
    tokio::time::sleep(Duration::from_millis(before)).await;
    let (leader, term) = cluster.leader().await?;
    cluster.kill(leader)?;
    let killed = Instant::now();
    shared.killed.set(Some((killed, term)));
    let all = || shared.first.borrow().iter().all(Option::is_some);
    while !all() {
        if killed.elapsed() > OUTAGE_MAX {
            bail!("no success within {} s of the leader's end: {:?}", OUTAGE_MAX.as_secs(), shared.first.borrow());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    shared.done.set(true);
    tasks.abort_all();
    while tasks.join_next().await.is_some() {}
    let ms: Vec<f64> = shared.first.borrow().iter().flatten().map(|d| d.as_secs_f64() * 1e3).collect();
    let survivors: Vec<f64> = (0..MEMBERS).filter(|m| *m != leader).map(|m| ms[m]).collect();
    cluster.launch(leader)?;
    Ok(Trial { survivors_ms: [survivors[0], survivors[1]], killed_ms: ms[leader] })
}

/// Kills the leader of a cluster so many times.
pub(crate) async fn run(system: System, programs: &Programs, trials: u32) -> Result<Vec<Trial>> {
    let mut cluster = Cluster::start(system, programs).await?;
    let mut results = Vec::new();
    for n in 0..trials {
        let result = trial(&mut cluster).await.with_context(|| format!("{}: trial {n}", programs.name(system)))?;
        eprintln!(
            "  {} trial {n}: survivors' clients {:.0} and {:.0} ms, the killed one's {:.0} ms",
            programs.name(system),
            result.survivors_ms[0],
            result.survivors_ms[1],
            result.killed_ms
        );
        results.push(result);
    }
    Ok(results)
}
