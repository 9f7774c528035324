//! The simulated cluster.

use crate::io::sim::{SimDisk, SimIo};
use crate::kv::Store;
use crate::kv::types::{Command, Keyspace, PutRequest, RangeRequest};
use crate::member::identity::{InitialMember, bootstrap, member_id};
use crate::member::job::StoreJob;
use crate::member::{MemberConfig, MemberCore, MemberError, MemberEvent, MemberOutput, MemberReply, MemberRequest, PeerMessage, Start};
use crate::types::{NodeId, Revision, Time};
use crate::wal::WalConfig;
use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The store's disk: what is not synced is lost in a power cut.
#[derive(Clone, Debug, Default)]
pub struct Backend(Arc<Mutex<(Vec<u8>, Vec<u8>)>>);

impl redb::StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().0.len() as u64)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let disk = self.0.lock().unwrap();
        let from = offset as usize;
        out.copy_from_slice(disk.0.get(from..from + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.lock().unwrap().0.resize(len as usize, 0);
        Ok(())
    }
    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.1 = disk.0.clone();
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        let from = offset as usize;
        disk.0.get_mut(from..from + data.len()).ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(data);
        Ok(())
    }
}

impl Backend {
    fn after_power_cut(&self) -> Self {
        let durable = self.0.lock().unwrap().1.clone();
        Self(Arc::new(Mutex::new((durable.clone(), durable))))
    }
}

pub struct Node {
    pub disk: SimDisk,
    /// The store's tables, and its history.
    backends: [Backend; 2],
    start: Start,
    pub core: Option<MemberCore<SimIo>>,
    disk_at: Option<Time>,
    job: Option<(Time, StoreJob)>,
    pub fatal: Option<String>,
    pub stopped: bool,
}

pub type Outcome = Result<MemberReply, MemberError>;

pub struct Cluster {
    pub now: Time,
    pub rng: SmallRng,
    pub nodes: BTreeMap<NodeId, Node>,
    net: BTreeMap<(Time, u64), (NodeId, NodeId, PeerMessage)>,
    sequence: u64,
    /// Links that lose everything.
    pub cut: BTreeSet<(NodeId, NodeId)>,
    /// Share of messages that are lost, and that come twice.
    pub loss: f64,
    pub twice: f64,
    next_request: u64,
    pub outcomes: BTreeMap<u64, Outcome>,
    pub config: MemberConfig,
    /// A digest of everything that happened.
    pub trace: u64,
}

pub fn config() -> MemberConfig {
    MemberConfig {
        checkpoint_bytes: 8 << 10,
        checkpoint_interval: Duration::from_secs(5),
        tail_entries: 20,
        snapshot_window_max: 2,
        wal: WalConfig { segment_bytes: 256 << 10, log_id: 7, ..WalConfig::default() },
        ..MemberConfig::default()
    }
}

pub fn put(key: &str, value: &str) -> Command {
    let (key, value) = (Bytes::from(key.to_owned()), Bytes::from(value.to_owned()));
    Command::Put(Keyspace::User, PutRequest { key, value, ..PutRequest::default() })
}

impl Cluster {
    pub fn new(members: usize, seed: u64) -> Self {
        let list: Vec<_> =
            (1..=members).map(|i| InitialMember { name: format!("m{i}"), peer_urls: vec![format!("http://127.0.0.1:{i}")] }).collect();
        let (cluster_id, founders) = bootstrap(&list, "test");
        let mut cluster = Self {
            now: Time(1_000_000),
            rng: SmallRng::seed_from_u64(seed),
            nodes: BTreeMap::new(),
            net: BTreeMap::new(),
            sequence: 0,
            cut: BTreeSet::new(),
            loss: 0.0,
            twice: 0.0,
            next_request: 1,
            outcomes: BTreeMap::new(),
            config: MemberConfig { cluster_id, ..config() },
            trace: 0,
        };
        for id in founders.ids() {
            cluster.add_node(id, Start::Founder(founders.clone()));
        }
        cluster
    }

    pub fn joiner(&mut self, number: usize) -> NodeId {
        let id = member_id(&[format!("http://127.0.0.1:{number}")], "test", 99);
        self.add_node(id, Start::Joiner);
        id
    }

    fn add_node(&mut self, id: NodeId, start: Start) {
        let disk = SimDisk::new(self.rng.random());
        let node = Node { disk, backends: Default::default(), start, core: None, disk_at: None, job: None, fatal: None, stopped: false };
        self.nodes.insert(id, node);
        self.start(id);
    }

    pub fn ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    pub fn start(&mut self, id: NodeId) {
        let seed = self.rng.random();
        let config = MemberConfig { id, ..self.config.clone() };
        let node = self.nodes.get_mut(&id).unwrap();
        assert!(node.core.is_none(), "runs already");
        node.disk.set_manual(false);
        let [tables, history] = node.backends.clone();
        let store = Arc::new(Store::with_backend(tables, history, 4 << 20).expect("open the store"));
        let core = MemberCore::open(config, node.start.clone(), node.disk.open(), store, self.now, seed).expect("open the member");
        node.disk.set_manual(true);
        node.core = Some(core);
        (node.fatal, node.stopped, node.disk_at) = (None, false, None);
        self.settle(id);
    }

    /// Takes the power from a member; its disks keep what was durable, and some of the rest.
    pub fn power_cut(&mut self, id: NodeId) {
        let seed = self.rng.random();
        let node = self.nodes.get_mut(&id).unwrap();
        // The old store must not write to the disk that the next one will open.
        node.backends = node.backends.each_ref().map(Backend::after_power_cut);
        node.core = None;
        node.job = None;
        node.disk_at = None;
        node.disk.power_cut(seed);
    }

    pub fn alive(&self, id: NodeId) -> bool {
        self.nodes[&id].core.is_some()
    }

    /// A member by lot; `None` when it does not run.
    pub fn any_alive(&mut self) -> Option<NodeId> {
        let ids = self.ids();
        Some(ids[self.rng.random_range(0..ids.len())]).filter(|id| self.alive(*id))
    }

    pub fn core(&self, id: NodeId) -> &MemberCore<SimIo> {
        self.nodes[&id].core.as_ref().expect("runs")
    }

    pub fn handle(&mut self, id: NodeId, event: MemberEvent) {
        let now = self.now;
        if let Some(core) = self.nodes.get_mut(&id).and_then(|n| n.core.as_mut()) {
            core.handle(now, event);
        }
        self.settle(id);
    }

    pub fn request(&mut self, id: NodeId, req: MemberRequest) -> u64 {
        let number = self.next_request;
        self.next_request += 1;
        self.handle(id, MemberEvent::Request { id: number, req });
        number
    }

    fn settle(&mut self, id: NodeId) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let Some(core) = node.core.as_mut() else { return };
        let mut sends = Vec::new();
        core.advance(now);
        while let Some(output) = core.poll_output() {
            self.trace =
                self.trace.wrapping_mul(31).wrapping_add(xxhash_rust::xxh3::xxh3_64(format!("{now:?}{id:?}{output:?}").as_bytes()));
            match output {
                MemberOutput::Send { to, msg } => sends.push((to, msg)),
                MemberOutput::Reply { id, result } => {
                    assert!(self.outcomes.insert(id, result).is_none(), "request {id} was answered twice");
                }
                MemberOutput::Job(job) => {
                    assert!(node.job.is_none(), "one job at a time");
                    node.job = Some((now.after(Duration::from_micros(self.rng.random_range(100..200_000))), job));
                }
                MemberOutput::Fatal(cause) => node.fatal = Some(cause),
                MemberOutput::Stopped => node.stopped = true,
                MemberOutput::RoleChanged(_) | MemberOutput::MembershipChanged(_) => {}
            }
        }
        if node.disk_at.is_none() && node.disk.in_flight() > 0 {
            node.disk_at = Some(now.after(Duration::from_micros(self.rng.random_range(50..3_000))));
        }
        for (to, msg) in sends {
            self.post(id, to, msg);
        }
    }

    fn post(&mut self, from: NodeId, to: NodeId, msg: PeerMessage) {
        // What the other side sees went over a wire.
        let msg = PeerMessage::decode(&msg.encode().expect("encode")).expect("decode");
        if self.loss > 0.0 && self.rng.random_bool(self.loss) {
            return;
        }
        let copies = if self.twice > 0.0 && self.rng.random_bool(self.twice) { 2 } else { 1 };
        for _ in 0..copies {
            let at = self.now.after(Duration::from_micros(self.rng.random_range(100..2_000)));
            self.sequence += 1;
            self.net.insert((at, self.sequence), (from, to, msg.clone()));
        }
    }

    fn next_event(&self) -> Time {
        let mut next = self.net.first_key_value().map_or(Time(u64::MAX), |((at, _), _)| *at);
        for node in self.nodes.values() {
            let Some(core) = &node.core else { continue };
            next = next.min(core.next_timeout());
            next = next.min(node.disk_at.unwrap_or(Time(u64::MAX)));
            next = next.min(node.job.as_ref().map_or(Time(u64::MAX), |(at, _)| *at));
        }
        // With nobody alive, time passes all the same.
        if next == Time(u64::MAX) { self.now.after(Duration::from_millis(10)) } else { next.max(self.now) }
    }

    /// One event.
    pub fn step(&mut self) {
        self.now = self.next_event().max(Time(self.now.0 + 1));
        while let Some(entry) = self.net.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            let (from, to, msg) = entry.remove();
            if !self.cut.contains(&(from, to)) {
                self.handle(to, MemberEvent::Peer { from, msg });
            }
        }
        for id in self.ids() {
            let now = self.now;
            let node = self.nodes.get_mut(&id).unwrap();
            if node.core.is_none() {
                continue;
            }
            let mut events = vec![MemberEvent::Timer];
            if node.disk_at.take_if(|at| *at <= now).is_some() {
                node.disk.complete(self.rng.random_range(1..=node.disk.in_flight().max(1)));
                events.push(MemberEvent::IoReady);
            }
            if let Some((_, job)) = node.job.take_if(|(at, _)| *at <= now) {
                let store = node.core.as_ref().unwrap().store().clone();
                events.push(MemberEvent::JobDone(job.run(&store, &|_, _| Duration::ZERO)));
            }
            for event in events {
                self.handle(id, event);
            }
        }
    }

    pub fn run(&mut self, time: Duration) {
        let end = self.now.after(time);
        while self.next_event() < end {
            self.step();
        }
        self.now = end;
    }

    /// Steps until `done`; fails after a simulated minute.
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let end = self.now.after(Duration::from_secs(60));
        while !done(self) {
            assert!(self.now < end, "waited a minute for: {what}");
            self.step();
        }
    }

    pub fn outcome(&mut self, request: u64) -> Outcome {
        self.until("an outcome", |c| c.outcomes.contains_key(&request));
        self.outcomes[&request].clone()
    }

    pub fn ask(&mut self, id: NodeId, req: MemberRequest) -> Outcome {
        let request = self.request(id, req);
        self.outcome(request)
    }

    pub fn put(&mut self, id: NodeId, key: &str, value: &str) -> Outcome {
        self.ask(id, MemberRequest::Propose(put(key, value)))
    }

    pub fn leader(&self) -> Option<NodeId> {
        self.ids()
            .into_iter()
            .filter(|id| self.alive(*id))
            .filter(|id| self.core(*id).leader_since().is_some())
            .max_by_key(|id| self.core(*id).raft().term())
    }

    pub fn wait_leader(&mut self) -> NodeId {
        self.until("a leader", |c| c.leader().is_some());
        self.leader().unwrap()
    }

    pub fn isolate(&mut self, id: NodeId) {
        for other in self.ids() {
            self.cut.insert((id, other));
            self.cut.insert((other, id));
        }
    }

    pub fn get(&self, id: NodeId, key: &str) -> Option<(String, u64)> {
        let request = RangeRequest { key: Bytes::from(key.to_owned()), ..RangeRequest::default() };
        let (found, _) = self.core(id).store().range(Keyspace::User, &request).expect("range");
        found.kvs.first().map(|kv| (String::from_utf8_lossy(&kv.value).into_owned(), kv.version))
    }

    pub fn revision(&self, id: NodeId) -> Revision {
        self.core(id).store().revision(Keyspace::User)
    }

    /// Heals everything and waits until all members have applied the same.
    pub fn converge(&mut self) {
        self.cut.clear();
        (self.loss, self.twice) = (0.0, 0.0);
        for id in self.ids() {
            if !self.alive(id) {
                self.start(id);
            }
        }
        let leader = self.wait_leader();
        let mut last = self.put(leader, "converged", "yes");
        for _ in 0..5 {
            if last.is_ok() {
                break;
            }
            let leader = self.wait_leader();
            last = self.put(leader, "converged", "yes");
        }
        last.expect("a healed cluster takes writes");
        self.until("convergence", |c| {
            let states: BTreeSet<_> =
                c.nodes.values().map(|n| n.core.as_ref().unwrap().status()).map(|s| (s.applied, s.committed)).collect();
            states.len() == 1 && states.first().is_some_and(|(a, c)| a == c)
        });
        let hashes: BTreeSet<_> =
            self.nodes.values().map(|n| n.core.as_ref().unwrap().store().hash_kv(Keyspace::User, Revision(0)).expect("hash")).collect();
        assert_eq!(hashes.len(), 1, "the stores differ");
    }
}
