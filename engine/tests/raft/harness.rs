//! Nodes on a fake clock, with a network and disks that misbehave as told.

use crate::invariants::Checkers;
use brickraft_engine::raft::*;
use brickraft_engine::types::*;
use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::time::Duration;

pub const MS: u64 = 1_000;

/// What survives a crash.
#[derive(Default)]
struct Disk {
    hard_state: HardState,
    entries: Vec<Entry>,
    /// The state machine's durable state: every entry that it has applied.
    checkpoint: SnapshotMeta,
    state: Vec<Entry>,
}

impl Disk {
    fn write(&mut self, persist: Persist) {
        if let Some(hard) = persist.hard_state {
            self.hard_state = hard;
        }
        if let Some(first) = persist.entries.first() {
            self.entries.retain(|e| e.index < first.index);
            self.entries.extend(persist.entries);
        }
    }
}

pub struct Node {
    pub core: Option<RaftCore>,
    pub config: RaftConfig,
    /// How much faster than true time its clock runs, in per mille.
    pub drift: i64,
    incarnation: u64,
    disk: Disk,
    writes: VecDeque<Persist>,
    write_at: u64,
    pub state: Vec<Entry>,
    pub roles: Vec<RoleChange>,
}

impl Node {
    /// When its clock shows `at`, or a moment later.
    fn true_time(&self, at: Time) -> u64 {
        let rate = (1000 + self.drift) as u64;
        (at.0 / rate).saturating_mul(1000).saturating_add(at.0 % rate * 1000 / rate + 2)
    }
}

enum Event {
    Deliver { from: NodeId, to: NodeId, msg: Message },
    Written { node: NodeId, incarnation: u64 },
    Snapshot { from: NodeId, to: NodeId, term: Term, meta: SnapshotMeta, state: Vec<Entry>, incarnation: u64 },
}

pub struct Net {
    pub nodes: BTreeMap<NodeId, Node>,
    pub now: u64,
    pub rng: SmallRng,
    queue: BTreeMap<(u64, u64), Event>,
    serial: u64,
    /// Probabilities of loss and duplication, in percent; delays in µs.
    pub loss: u32,
    pub duplication: u32,
    pub delay: Range<u64>,
    pub write_delay: Range<u64>,
    /// Directed links that are cut.
    pub cut: BTreeSet<(NodeId, NodeId)>,
    pub checks: Checkers,
    pub reads: BTreeMap<u64, Index>,
    pub reads_failed: Vec<u64>,
    pub sent: BTreeMap<&'static str, u64>,
    /// Messages held back instead of delivered, while set.
    pub capture: Option<Vec<(NodeId, NodeId, Message)>>,
    pub snapshots: u64,
    pub round_trips: Vec<(NodeId, Duration)>,
}

pub fn id(n: u64) -> NodeId {
    NodeId(n)
}

pub fn info(n: u64) -> MemberInfo {
    MemberInfo { name: format!("n{n}"), ..MemberInfo::default() }
}

pub fn founders(n: u64) -> Membership {
    Membership { voters: (1..=n).map(|i| (id(i), info(i))).collect(), learners: BTreeMap::new() }
}

impl Net {
    pub fn new(voters: u64, seed: u64) -> Self {
        Self::with(voters, seed, |_| {})
    }

    pub fn with(voters: u64, seed: u64, tune: impl Fn(&mut RaftConfig)) -> Self {
        let mut net = Self {
            nodes: BTreeMap::new(),
            now: 1_000_000,
            rng: SmallRng::seed_from_u64(seed),
            queue: BTreeMap::new(),
            serial: 0,
            loss: 0,
            duplication: 0,
            delay: 500..1_500,
            write_delay: 100..500,
            cut: BTreeSet::new(),
            checks: Checkers::default(),
            reads: BTreeMap::new(),
            reads_failed: Vec::new(),
            sent: BTreeMap::new(),
            capture: None,
            snapshots: 0,
            round_trips: Vec::new(),
        };
        for n in 1..=voters {
            let mut config = RaftConfig::new(id(n));
            config.heartbeat = Duration::from_millis(20);
            config.election_timeout = Duration::from_millis(100);
            tune(&mut config);
            net.add(config, founders(voters));
        }
        net
    }

    /// A new node: a founder, or one that is to join.
    pub fn add(&mut self, config: RaftConfig, membership: Membership) {
        let node = config.id;
        let disk = Disk { checkpoint: SnapshotMeta { membership, ..SnapshotMeta::default() }, ..Disk::default() };
        let entry = Node {
            core: None,
            config,
            drift: 0,
            incarnation: 0,
            disk,
            writes: VecDeque::new(),
            write_at: 0,
            state: Vec::new(),
            roles: Vec::new(),
        };
        self.nodes.insert(node, entry);
        self.restart(node);
    }

    pub fn join(&mut self, n: u64) {
        let config = RaftConfig { id: id(n), ..self.nodes[&id(1)].config.clone() };
        self.add(config, Membership::default());
    }

    /// What node `n`'s clock shows.
    pub fn clock(&self, n: NodeId) -> Time {
        let drift = self.nodes[&n].drift;
        Time(self.now.saturating_add_signed(self.now as i64 * drift / 1000))
    }

    pub fn restart(&mut self, n: NodeId) {
        let seed = self.rng.random();
        let now = self.clock(n);
        let node = self.nodes.get_mut(&n).unwrap();
        assert!(node.core.is_none());
        let (hard_state, snapshot) = (node.disk.hard_state, node.disk.checkpoint.clone());
        let initial = Initial { hard_state, applied: snapshot.index, snapshot, entries: node.disk.entries.clone() };
        node.state = node.disk.state.clone();
        node.core = Some(RaftCore::new(node.config.clone(), initial, now, seed).expect("the disk is sound"));
        self.pump(n);
    }

    /// Power off: of the writes under way, some prefix has made it.
    pub fn crash(&mut self, n: NodeId) {
        let node = self.nodes.get_mut(&n).unwrap();
        node.core = None;
        node.incarnation += 1;
        let made = self.rng.random_range(0..=node.writes.len());
        for persist in std::mem::take(&mut node.writes).into_iter().take(made) {
            node.disk.write(persist);
        }
    }

    /// Makes the state machine durable and drops the log up to `keep` entries before.
    pub fn checkpoint(&mut self, n: NodeId, keep: u64) {
        let node = self.nodes.get_mut(&n).unwrap();
        let Some(core) = &mut node.core else { return };
        let Some(last) = node.state.last() else { return };
        let (index, term) = (last.index, last.term);
        let Some(membership) = core.membership_at(index) else { return };
        node.disk.checkpoint = SnapshotMeta { index, term, membership: membership.clone() };
        node.disk.state = node.state.clone();
        node.disk.entries.retain(|e| e.index > index);
        core.compact(Index(index.0.saturating_sub(keep)));
    }

    pub fn core(&self, n: u64) -> &RaftCore {
        self.nodes[&id(n)].core.as_ref().expect("node is up")
    }

    /// One call on a node, and everything that comes of it.
    pub fn on<R>(&mut self, n: NodeId, f: impl FnOnce(&mut RaftCore, Time) -> R) -> R {
        let now = self.clock(n);
        let result = f(self.nodes.get_mut(&n).unwrap().core.as_mut().expect("node is up"), now);
        self.pump(n);
        result
    }

    pub fn propose(&mut self, n: NodeId, data: &str) -> Result<Index, ProposeError> {
        let data = Bytes::copy_from_slice(data.as_bytes());
        self.on(n, |core, now| core.propose(now, data))
    }

    pub fn read(&mut self, n: NodeId, ctx: u64) -> Result<(), ProposeError> {
        let committed = self.checks.leader_completeness.highest();
        self.checks.read_linearizability.asked(ctx, committed);
        let result = self.on(n, |core, now| core.read_index(now, ctx));
        if result.is_err() {
            self.checks.read_linearizability.failed(ctx);
        }
        result
    }

    fn pump(&mut self, n: NodeId) {
        loop {
            let node = self.nodes.get_mut(&n).unwrap();
            let Some(core) = &mut node.core else { return };
            let output = core.take_output();
            if output.is_empty() {
                break;
            }
            if let Some(persist) = output.persist {
                self.checks.log_matching.observe(core, &persist);
                node.write_at = node.write_at.max(self.now + self.rng.random_range(self.write_delay.clone()));
                node.writes.push_back(persist);
                self.serial += 1;
                let event = Event::Written { node: n, incarnation: node.incarnation };
                self.queue.insert((node.write_at, self.serial), event);
            }
            node.roles.extend(output.role_changed);
            for entry in output.committed {
                self.checks.state_machine_safety.observe(n, Index(node.state.len() as u64), &entry);
                core.on_applied(entry.index);
                node.state.push(entry);
            }
            for (ctx, index) in output.reads {
                self.checks.read_linearizability.answered(ctx, index);
                self.reads.insert(ctx, index);
            }
            for ctx in output.reads_failed {
                self.checks.read_linearizability.failed(ctx);
                self.reads_failed.push(ctx);
            }
            for (to, msg) in output.messages {
                self.send(n, to, msg);
            }
            self.round_trips.extend(output.round_trips);
            for to in output.send_snapshot {
                self.send_snapshot(n, to);
            }
        }
        let core = self.nodes[&n].core.as_ref().unwrap();
        self.checks.election_safety.observe(core);
        self.checks.leader_append_only.observe(core);
        self.checks.leader_completeness.observe(core);
    }

    fn send(&mut self, from: NodeId, to: NodeId, msg: Message) {
        *self.sent.entry(msg.name()).or_default() += 1;
        if let Some(captured) = &mut self.capture {
            return captured.push((from, to, msg));
        }
        let copies = 1 + u32::from(self.rng.random_range(0..100) < self.duplication);
        for _ in 0..copies {
            if self.rng.random_range(0..100) >= self.loss {
                let at = self.now + self.rng.random_range(self.delay.clone());
                self.serial += 1;
                self.queue.insert((at, self.serial), Event::Deliver { from, to, msg: msg.clone() });
            }
        }
    }

    fn send_snapshot(&mut self, from: NodeId, to: NodeId) {
        let node = &self.nodes[&from];
        let core = node.core.as_ref().unwrap();
        let last = node.state.last().expect("what is compacted was applied");
        let membership = core.membership_at(last.index).unwrap().clone();
        let meta = SnapshotMeta { index: last.index, term: last.term, membership };
        let event = Event::Snapshot { from, to, term: core.term(), meta, state: node.state.clone(), incarnation: node.incarnation };
        self.serial += 1;
        self.snapshots += 1;
        self.queue.insert((self.now + 5 * MS, self.serial), event);
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Deliver { from, to, msg } => {
                if self.cut.contains(&(from, to)) || self.nodes.get(&to).is_none_or(|n| n.core.is_none()) {
                    return;
                }
                // Now and then over the wire's encoding.
                let msg = if self.serial.is_multiple_of(16) { postcard::from_bytes(&postcard::to_allocvec(&msg).unwrap()).unwrap() } else { msg };
                self.on(to, |core, now| core.step(now, from, msg));
            }
            Event::Written { node: n, incarnation } => {
                let node = self.nodes.get_mut(&n).unwrap();
                if node.incarnation != incarnation {
                    return;
                }
                let persist = node.writes.pop_front().unwrap();
                let seq = persist.seq;
                node.disk.write(persist);
                self.on(n, |core, now| core.on_persisted(now, seq));
            }
            Event::Snapshot { from, to, term, meta, state, incarnation } => {
                let reachable = !self.cut.contains(&(from, to)) && self.rng.random_range(0..100) >= self.loss;
                let ok = reachable && self.nodes[&to].core.is_some();
                if ok {
                    self.install(from, to, term, meta, state);
                }
                if self.nodes[&from].incarnation == incarnation && self.nodes[&from].core.is_some() {
                    self.on(from, |core, now| core.report_snapshot(now, to, ok));
                }
            }
        }
    }

    fn install(&mut self, from: NodeId, to: NodeId, term: Term, meta: SnapshotMeta, state: Vec<Entry>) {
        if !self.on(to, |core, now| core.begin_snapshot_install(now, from, term, &meta)) {
            return;
        }
        let node = self.nodes.get_mut(&to).unwrap();
        node.disk.checkpoint = meta.clone();
        node.disk.state = state.clone();
        node.state = state;
        // Sometimes the power goes before the log has heard of it.
        if self.rng.random_range(0..8) == 0 && self.loss > 0 {
            self.crash(to);
            return self.restart(to);
        }
        node.disk.entries.retain(|e| e.index > meta.index);
        // Writes of entries that the snapshot replaces may be under way still: the log drops them.
        for write in &mut node.writes {
            write.entries.retain(|e| e.index > meta.index);
        }
        self.on(to, |core, now| core.finish_snapshot_install(now, meta));
    }

    /// Lets `ms` pass.
    pub fn run(&mut self, ms: u64) {
        let end = self.now + ms * MS;
        loop {
            let event_at = self.queue.keys().next().map_or(u64::MAX, |(at, _)| *at);
            let timers = self.nodes.iter().filter_map(|(n, node)| Some((node.true_time(node.core.as_ref()?.next_timeout()), *n)));
            let (timer_at, timer_node) = timers.min().unwrap_or((u64::MAX, id(0)));
            let at = event_at.min(timer_at);
            if at > end {
                break;
            }
            self.now = self.now.max(at);
            if event_at <= timer_at {
                let (_, event) = self.queue.pop_first().unwrap();
                self.handle(event);
            } else {
                self.on(timer_node, |core, now| core.handle_timeout(now));
            }
        }
        self.now = end;
    }

    /// Runs until `done`, at most for `ms`.
    pub fn run_until(&mut self, ms: u64, done: impl Fn(&Self) -> bool) {
        for _ in 0..ms {
            if done(self) {
                return;
            }
            self.run(1);
        }
        let nodes: Vec<_> = self
            .nodes
            .values()
            .filter_map(|n| n.core.as_ref())
            .map(|c| (c.id().0, c.role(), c.term().0, c.last_index().0, c.committed().0, c.leader(), c.ignored()))
            .collect();
        let leader = self.leader().map(|l| self.core(l.0));
        let peers: Vec<_> = self.nodes.keys().map(|n| leader.and_then(|l| l.progress(*n))).collect();
        panic!("not within {ms} ms: {nodes:?}, peers {peers:?}, base {:?}", leader.map(RaftCore::compacted));
    }

    /// The leader of the highest term.
    pub fn leader(&self) -> Option<NodeId> {
        let cores = self.nodes.values().filter_map(|n| n.core.as_ref());
        cores.filter(|c| c.role() == Role::Leader).max_by_key(|c| c.term()).map(RaftCore::id)
    }

    /// Runs until there is a leader that can commit.
    pub fn elect(&mut self) -> NodeId {
        let ready = |net: &Self| {
            net.leader().is_some_and(|l| {
                let core = net.core(l.0);
                core.term_at(core.committed()) == Some(core.term())
            })
        };
        self.run_until(5_000, ready);
        self.leader().unwrap()
    }

    /// Cuts `group` off from the rest.
    pub fn isolate(&mut self, group: &[NodeId]) {
        for a in self.nodes.keys() {
            for b in self.nodes.keys() {
                if group.contains(a) != group.contains(b) {
                    self.cut.insert((*a, *b));
                }
            }
        }
    }

    pub fn heal(&mut self) {
        self.cut.clear();
        (self.loss, self.duplication) = (0, 0);
    }

    /// Runs until all members' state machines are equal and hold `index`.
    pub fn settle(&mut self, index: Index) {
        self.run_until(20_000, |net| {
            let Some(leader) = net.leader() else { return false };
            let last = net.core(leader.0).last_index();
            let members: Vec<_> = net.core(leader.0).membership().ids().collect();
            last >= index && members.iter().all(|m| net.nodes[m].state.len() as u64 == last.0)
        });
    }
}
