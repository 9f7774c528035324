//! The world that the bricks run in: time, messages, leases, crashes.

use super::client::Client;
use crate::fop::{Attr, DirEntry, FileKind, Fop, Gfid, Reply, TimeSpec};
use crate::replica::controller::{Controller, ControllerConfig, ControllerInput};
use crate::replica::{
    BrickId, ClientRequest, ConfigProposal, GroupConfig, PeerMsg, ReplicaCore, ReplicaError, ReplicaEvent, ReplicaOutput, ReplicaTiming, Role,
};
use crate::store::{BrickMeta, BrickStore, DataDone, DataOp, SimStore};
use brickraft_engine::types::{NodeId, Time};
use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_64_with_seed;

pub const LEASE: Duration = Duration::from_millis(1500);

pub fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub type Answer = Result<Reply, ReplicaError>;

enum Event {
    Peer { to: BrickId, life: u64, from: BrickId, msg: PeerMsg, payload: Bytes },
    Commit { by: BrickId, proposal: ConfigProposal },
    Config { to: BrickId, config: GroupConfig },
    Outcome { to: BrickId, epoch: u64, committed: bool },
    Renew { brick: BrickId },
    Lease { to: BrickId, life: u64, until: Time },
    Control,
    Tick { brick: BrickId, life: u64 },
    Reap { brick: BrickId, life: u64 },
    Request { to: BrickId, life: u64, request: ClientRequest },
    Answer { client: usize, request: u64, answer: Answer, payload: Bytes },
    Wake { client: usize },
}

pub struct Node {
    pub core: Option<ReplicaCore<SimStore>>,
    /// The disk while no process runs on it.
    pub disk: Option<SimStore>,
    pub life: u64,
    /// A paused process hears and does nothing until then.
    pub paused: Time,
    ticking: Time,
    pub skew_s: i64,
    pub left: bool,
}

pub struct World {
    pub now: Time,
    pub rng: SmallRng,
    queue: BTreeMap<(Time, u64), Event>,
    events: u64,
    pub nodes: BTreeMap<BrickId, Node>,
    pub config: GroupConfig,
    controller: Controller,
    heard: BTreeMap<NodeId, Time>,
    /// Pairs of bricks that do not reach each other.
    pub cut: BTreeSet<(BrickId, BrickId)>,
    /// Bricks that do not reach the store.
    pub store_cut: BTreeSet<BrickId>,
    /// Clients that do not reach a brick.
    pub client_cut: BTreeSet<(usize, BrickId)>,
    pub loss: f64,
    pub duplication: f64,
    pub clients: Vec<Client>,
    /// A hash over everything that happened.
    pub trace: u64,
    pub verbose: bool,
    /// When a brick took the group after a restart: nobody remembers what clients were told.
    pub tables_lost: Vec<Time>,
    /// When power was cut.
    pub cuts: Vec<Time>,
    said: BTreeMap<BrickId, String>,
}

pub fn timing() -> ReplicaTiming {
    ReplicaTiming { checkpoint: Duration::from_secs(3), grace: Duration::from_secs(5), ..ReplicaTiming::default() }
}

impl World {
    pub fn new(seed: u64, bricks: u64) -> Self {
        let members: Vec<_> = (1..=bricks).collect();
        let mut w = Self {
            now: Time(1_000_000),
            rng: SmallRng::seed_from_u64(seed),
            queue: BTreeMap::new(),
            events: 0,
            nodes: BTreeMap::new(),
            config: GroupConfig::initial(&members, BTreeMap::new()),
            controller: Controller::new(ControllerConfig::default()),
            heard: BTreeMap::new(),
            cut: BTreeSet::new(),
            store_cut: BTreeSet::new(),
            client_cut: BTreeSet::new(),
            loss: 0.0,
            duplication: 0.0,
            clients: Vec::new(),
            trace: seed,
            tables_lost: Vec::new(),
            cuts: Vec::new(),
            said: BTreeMap::new(),
            verbose: std::env::var_os("BRICKRAFT_SIM_VERBOSE").is_some(),
        };
        for &brick in &members {
            let disk = SimStore::new(BrickMeta { volume: 7, brick, ..BrickMeta::default() });
            w.nodes.insert(brick, Node { core: None, disk: Some(disk), life: 0, paused: Time(0), ticking: Time(0), skew_s: 0, left: false });
            w.start(brick);
            w.post(ms(1), Event::Renew { brick });
        }
        w.post(ms(100), Event::Control);
        w
    }

    fn post(&mut self, delay: Duration, event: Event) {
        self.events += 1;
        self.queue.insert((self.now.after(delay), self.events), event);
    }

    fn jitter(&mut self) -> Duration {
        Duration::from_micros(self.rng.random_range(50..400))
    }

    pub fn wall(&self, brick: BrickId) -> TimeSpec {
        let skew = self.nodes.get(&brick).map_or(0, |n| n.skew_s);
        TimeSpec { sec: 1_700_000_000 + skew + (self.now.0 / 1_000_000) as i64, nsec: (self.now.0 % 1_000_000) as u32 * 1000 }
    }

    // ---- faults ----

    pub fn start(&mut self, brick: BrickId) {
        let seed = self.rng.random();
        let (now, config) = (self.now, self.config.clone());
        let node = self.nodes.get_mut(&brick).unwrap();
        if node.core.is_some() {
            return;
        }
        node.life += 1;
        node.left = false;
        node.paused = Time(0);
        let mut disk = node.disk.take().unwrap();
        disk.set_jitter(Some(seed));
        node.core = Some(ReplicaCore::with_timing(brick, disk, now, seed, timing()).unwrap());
        node.ticking = Time(0);
        self.post(ms(2), Event::Config { to: brick, config });
        let others: Vec<_> = self.nodes.iter().filter(|(b, n)| **b != brick && n.core.is_some()).map(|(b, _)| *b).collect();
        for other in others {
            if !self.is_cut(brick, other) {
                self.give(other, ReplicaEvent::PeerUp(brick));
                self.give(brick, ReplicaEvent::PeerUp(other));
            }
        }
    }

    /// The process dies; what it wrote survives.
    pub fn crash(&mut self, brick: BrickId) {
        let Some(core) = self.nodes.get_mut(&brick).unwrap().core.take() else { return };
        let incarnation = core.incarnation();
        let mut disk = core.into_store();
        disk.process_killed(&mut self.rng);
        self.nodes.get_mut(&brick).unwrap().disk = Some(disk);
        self.note(format!("crash {brick}"));
        for other in self.nodes.keys().copied().collect::<Vec<_>>() {
            if other != brick && !self.is_cut(brick, other) {
                self.give(other, ReplicaEvent::PeerDead(brick));
                self.controller.process_died(brick, incarnation);
            }
        }
    }

    /// The power goes; what was not synced may be lost. Nobody is told.
    pub fn power_cut(&mut self, brick: BrickId) {
        let node = self.nodes.get_mut(&brick).unwrap();
        let mut disk = match node.core.take() {
            Some(core) => core.into_store(),
            None => return,
        };
        disk.power_cut(&mut self.rng);
        node.disk = Some(disk);
        self.cuts.push(self.now);
        self.note(format!("power cut {brick}"));
    }

    pub fn cut(&mut self, a: BrickId, b: BrickId) {
        self.note(format!("cut {a} {b}"));
        self.cut.insert((a.min(b), a.max(b)));
        self.give(a, ReplicaEvent::PeerDown(b));
        self.give(b, ReplicaEvent::PeerDown(a));
    }

    pub fn mend(&mut self, a: BrickId, b: BrickId) {
        if self.cut.remove(&(a.min(b), a.max(b))) {
            self.note(format!("mend {a} {b}"));
            self.give(a, ReplicaEvent::PeerUp(b));
            self.give(b, ReplicaEvent::PeerUp(a));
        }
    }

    pub fn mend_all(&mut self) {
        for (a, b) in self.cut.clone() {
            self.mend(a, b);
        }
        self.store_cut.clear();
        self.client_cut.clear();
        (self.loss, self.duplication) = (0.0, 0.0);
        for node in self.nodes.values_mut() {
            node.paused = Time(0);
        }
        for brick in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.start(brick);
            self.give(brick, ReplicaEvent::Timer);
        }
    }

    fn is_cut(&self, a: BrickId, b: BrickId) -> bool {
        self.cut.contains(&(a.min(b), a.max(b)))
    }

    pub fn note(&mut self, what: String) {
        self.trace = xxh3_64_with_seed(what.as_bytes(), self.trace ^ self.now.0);
        if self.verbose {
            println!("{:>10.6} {what}", self.now.0 as f64 / 1e6);
        }
    }

    // ---- running ----

    pub fn give(&mut self, brick: BrickId, event: ReplicaEvent) {
        let (now, wall) = (self.now, self.wall(brick));
        let node = self.nodes.get_mut(&brick).unwrap();
        if now < node.paused {
            let (paused, life) = (node.paused, node.life);
            // Messages wait in the socket; the rest is lost on it.
            if let ReplicaEvent::Peer { from, msg, payload } = event {
                self.post(paused.since(now) + ms(1), Event::Peer { to: brick, life, from, msg, payload });
            } else if let ReplicaEvent::Client(request) = event {
                self.post(paused.since(now) + ms(1), Event::Request { to: brick, life, request });
            } else {
                self.post(paused.since(now) + ms(1), Event::Tick { brick, life });
            }
            return;
        }
        let Some(core) = &mut node.core else { return };
        core.handle(now, wall, event);
        if self.verbose {
            let info = core.info();
            let text = format!("{brick} {} {:?} {:?}", info.role, info.heals.iter().map(|h| (h.brick, &h.state, h.buckets_left)).collect::<Vec<_>>(), info.damage);
            if self.said.get(&brick) != Some(&text) {
                println!("{:>10.6} {text}", now.0 as f64 / 1e6);
                self.said.insert(brick, text);
            }
        }
        let mut outputs = Vec::new();
        while let Some(o) = core.poll_output() {
            outputs.push(o);
        }
        let (life, due, pending) = (node.life, core.next_timeout(), core.store().pending() > 0);
        if node.ticking <= now || due < node.ticking {
            node.ticking = due.max(now.after(Duration::from_micros(200)));
            let delay = node.ticking.since(now);
            self.post(delay, Event::Tick { brick, life });
        }
        if pending {
            let delay = Duration::from_micros(self.rng.random_range(20..500));
            self.post(delay, Event::Reap { brick, life });
        }
        for o in outputs {
            self.output(brick, o);
        }
    }

    fn output(&mut self, brick: BrickId, output: ReplicaOutput) {
        let delay = self.jitter();
        match output {
            ReplicaOutput::ToPeer { to, msg, payload } => {
                if self.verbose && !matches!(msg, PeerMsg::Complete { .. } | PeerMsg::Pong { .. } | PeerMsg::Heal(_) | PeerMsg::HealReturn(_)) {
                    let mut text = format!("{msg:?}");
                    text.truncate(300);
                    println!("{:>10.6} {brick}->{to} {text}", self.now.0 as f64 / 1e6);
                }
                if self.is_cut(brick, to) || self.rng.random_bool(self.loss) {
                    return;
                }
                let Some(node) = self.nodes.get(&to) else { return };
                let life = node.life;
                if self.rng.random_bool(self.duplication) {
                    let late = Duration::from_micros(self.rng.random_range(100..2_000_000));
                    self.post(late, Event::Peer { to, life, from: brick, msg: msg.clone(), payload: payload.clone() });
                }
                self.post(delay, Event::Peer { to, life, from: brick, msg, payload });
            }
            ReplicaOutput::Reply { conn, request, result, payload } => {
                let client = conn as usize;
                if !self.client_cut.contains(&(client, brick)) && !self.rng.random_bool(self.loss) {
                    self.post(delay, Event::Answer { client, request, answer: result, payload });
                }
            }
            ReplicaOutput::Propose(proposal) => {
                if !self.store_cut.contains(&brick) {
                    let delay = Duration::from_millis(self.rng.random_range(1..20));
                    self.post(delay, Event::Commit { by: brick, proposal });
                }
            }
            ReplicaOutput::Left { .. } => self.nodes.get_mut(&brick).unwrap().left = true,
            ReplicaOutput::Recreate => {
                self.note(format!("recreate {brick}"));
                let node = self.nodes.get_mut(&brick).unwrap();
                node.core = None;
                node.disk = Some(SimStore::new(BrickMeta { volume: 7, brick, ..BrickMeta::default() }));
                self.start(brick);
            }
            ReplicaOutput::Admin { .. } => {}
            ReplicaOutput::Fatal(why) => panic!("brick {brick}: {why}"),
        }
    }

    pub fn request(&mut self, to: BrickId, request: ClientRequest) {
        let delay = self.jitter();
        // What was sent to a process that died does not reach the next one: the connection is another.
        let life = self.nodes[&to].life;
        if self.client_cut.contains(&(request.conn as usize, to)) || self.rng.random_bool(self.loss) {
            return;
        }
        if self.rng.random_bool(self.duplication) {
            let late = Duration::from_micros(self.rng.random_range(100..1_000_000));
            self.post(late, Event::Request { to, life, request: request.clone() });
        }
        self.post(delay, Event::Request { to, life, request });
    }

    pub fn wake(&mut self, client: usize, delay: Duration) {
        self.post(delay, Event::Wake { client });
    }

    fn commit(&mut self, by: Option<BrickId>, proposal: ConfigProposal) {
        let committed = proposal.expect_epoch == self.config.epoch;
        if committed {
            let (old, new) = (self.config.clone(), proposal.new.clone());
            assert_eq!(new.epoch, old.epoch + 1);
            assert!(!new.in_sync.is_empty() && new.in_sync.contains(&new.primary), "{new:?}");
            assert!(new.in_sync.iter().any(|b| old.in_sync.contains(b)), "the in-sync sets {old:?} and {new:?} have no brick in common");
            if new.in_sync.iter().all(|b| old.incarnations.get(b) != new.incarnations.get(b)) && old.epoch > 1 {
                self.tables_lost.push(self.now);
            }
            self.note(format!("commit {new:?} by {by:?}"));
            self.config = proposal.new;
            for to in self.nodes.keys().copied().collect::<Vec<_>>() {
                let delay = Duration::from_millis(self.rng.random_range(1..30));
                self.post(delay, Event::Config { to, config: self.config.clone() });
            }
        }
        if let Some(to) = by {
            self.post(ms(2), Event::Outcome { to, epoch: proposal.expect_epoch, committed });
        }
    }

    fn control(&mut self) {
        let input = ControllerInput {
            groups: BTreeMap::from([("g".to_owned(), self.config.clone())]),
            nodes: self.nodes.keys().map(|&b| (b, NodeId(b))).collect(),
            last_heard: self.heard.clone(),
            leader_since: Some(Time(1)),
        };
        for (_, proposal) in self.controller.poll(self.now, &input) {
            self.commit(None, proposal);
        }
        self.post(ms(50), Event::Control);
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Peer { to, life, from, msg, payload } => {
                if self.nodes.get(&to).is_some_and(|n| n.life == life) && !self.is_cut(from, to) {
                    self.give(to, ReplicaEvent::Peer { from, msg, payload });
                }
            }
            Event::Commit { by, proposal } => self.commit(Some(by), proposal),
            Event::Config { to, config } => {
                if self.store_cut.contains(&to) {
                    // It hears of the present one when it reaches the store again.
                    let config = self.config.clone();
                    self.post(ms(100), Event::Config { to, config });
                } else {
                    self.give(to, ReplicaEvent::Config(config));
                }
            }
            Event::Outcome { to, epoch, committed } => {
                if !self.store_cut.contains(&to) {
                    self.give(to, ReplicaEvent::ProposalDone { expect_epoch: epoch, committed: Some(committed) });
                }
            }
            Event::Renew { brick } => {
                let node = &self.nodes[&brick];
                if node.core.is_some() && self.now >= node.paused && !self.store_cut.contains(&brick) {
                    self.heard.insert(NodeId(brick), self.now);
                    let (life, until) = (node.life, self.now.after(LEASE));
                    self.post(ms(5), Event::Lease { to: brick, life, until });
                    let config = self.config.clone();
                    if self.nodes[&brick].core.as_ref().is_some_and(|c| c.group().epoch < config.epoch) {
                        self.post(ms(5), Event::Config { to: brick, config });
                    }
                }
                self.post(ms(300), Event::Renew { brick });
            }
            Event::Lease { to, life, until } => {
                if self.nodes[&to].life == life {
                    self.give(to, ReplicaEvent::Lease(until));
                }
            }
            Event::Control => self.control(),
            Event::Tick { brick, life } => {
                if self.nodes[&brick].life == life {
                    self.give(brick, ReplicaEvent::Timer);
                }
            }
            Event::Reap { brick, life } => {
                if self.nodes[&brick].life == life && self.now >= self.nodes[&brick].paused {
                    self.give(brick, ReplicaEvent::StoreReady);
                }
            }
            Event::Request { to, life, request } => {
                if self.nodes[&to].life == life {
                    self.give(to, ReplicaEvent::Client(request));
                }
            }
            Event::Answer { client, request, answer, payload } => {
                let mut clients = std::mem::take(&mut self.clients);
                clients[client].on_answer(self, client, request, answer, payload);
                self.clients = clients;
            }
            Event::Wake { client } => {
                let mut clients = std::mem::take(&mut self.clients);
                clients[client].on_wake(self, client);
                self.clients = clients;
            }
        }
    }

    pub fn run_for(&mut self, time: Duration) {
        let end = self.now.after(time);
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > end {
                break;
            }
            let ((at, n), event) = entry.remove_entry();
            self.now = self.now.max(at);
            self.trace = xxh3_64_with_seed(&n.to_le_bytes(), self.trace ^ at.0);
            self.event(event);
        }
        self.now = end;
    }

    /// Runs until `done` says so; panics after `limit`.
    pub fn run_until(&mut self, what: &str, limit: Duration, mut done: impl FnMut(&mut Self) -> bool) {
        let end = self.now.after(limit);
        while !done(self) {
            if self.now >= end {
                for (brick, node) in &self.nodes {
                    println!("{brick}: {:#?}", node.core.as_ref().map(ReplicaCore::info));
                }
                panic!("not in {limit:?}: {what}; config {:?}", self.config);
            }
            self.run_for(ms(10));
        }
    }

    pub fn all_in_sync(&self) -> bool {
        self.config.in_sync.len() == self.nodes.len()
            && self.nodes.values().all(|n| n.core.as_ref().is_some_and(|c| c.role() != Role::Outsider && c.group() == &self.config))
    }

    pub fn settle(&mut self) {
        self.mend_all();
        self.run_until("all bricks in sync", Duration::from_secs(60), |w| w.all_in_sync());
        self.run_for(Duration::from_secs(8));
        assert!(self.all_in_sync(), "{:?}", self.config);
    }

    /// All that a brick shows, by path.
    pub fn picture(&mut self, brick: BrickId) -> BTreeMap<String, (Attr, Bytes)> {
        let node = self.nodes.get_mut(&brick).unwrap();
        let store = match (&mut node.core, &mut node.disk) {
            (Some(core), _) => core.store(),
            (None, Some(disk)) => disk,
            _ => unreachable!(),
        };
        let mut all = BTreeMap::new();
        let mut left = vec![(String::new(), Gfid::ROOT)];
        while let Some((path, dir)) = left.pop() {
            let Reply::Attr(mut attr) = store.query(&Fop::GetAttr { gfid: dir }).unwrap() else { panic!() };
            unify(&mut attr);
            all.insert(format!("{path}/"), (attr, Bytes::new()));
            let Reply::Entries { entries, .. } = store.query(&Fop::ReadDir { gfid: dir, cookie: 0, bytes: 1 << 24, plus: true }).unwrap() else {
                panic!()
            };
            for DirEntry { name, gfid, kind, attr, .. } in entries {
                let path = format!("{path}/{}", String::from_utf8_lossy(&name));
                if kind == FileKind::Dir {
                    left.push((path, gfid));
                    continue;
                }
                let mut attr = attr.unwrap();
                let len = attr.size as u32;
                unify(&mut attr);
                let mut done = Vec::new();
                store.submit(u64::MAX, DataOp::Read { gfid, offset: 0, len });
                let data = loop {
                    store.reap(&mut done);
                    if let Some((_, DataDone::Read(Ok(data)))) = done.iter().find(|(t, _)| *t == u64::MAX) {
                        break data.clone();
                    }
                };
                all.insert(path, (attr, data));
            }
        }
        all
    }

    pub fn assert_equal(&mut self) {
        let bricks: Vec<_> = self.nodes.keys().copied().collect();
        let first = self.picture(bricks[0]);
        for &b in &bricks[1..] {
            let other = self.picture(b);
            for (path, object) in &first {
                let theirs = other.get(path);
                assert!(Some(object) == theirs, "{path} on brick {}: {object:?}; on brick {b}: {theirs:?}", bricks[0]);
            }
            for path in other.keys() {
                assert!(first.contains_key(path), "{path} is on brick {b} only");
            }
        }
        for b in bricks {
            let node = self.nodes.get_mut(&b).unwrap();
            let orphans = node.core.as_mut().unwrap().store().orphans().unwrap();
            assert!(orphans.is_empty(), "orphans on brick {b}: {orphans:?}");
        }
    }
}

/// What bricks need not agree on.
fn unify(attr: &mut Attr) {
    attr.atime = TimeSpec::default();
    attr.ctime = TimeSpec::default();
    attr.blocks = 0;
}
