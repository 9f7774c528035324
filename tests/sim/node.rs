//! A server: a member, a brick, their disks, their clock, and how src/node wires them.

use super::disk::Backend;
use super::net::{Attempt, ConnId, End, Packet, Proc};
use super::world::{BRICKS, Event, NODES, World, note};
use brickraft::node::keeper;
use brickraft::records::ClusterView;
use brickraft_engine::io::sim::{SimDisk, SimIo};
use brickraft_engine::kv::WatchId;
use brickraft_engine::kv::types::Command;
use brickraft_engine::member::identity::{InitialMember, bootstrap};
use brickraft_engine::member::job::StoreJob;
use brickraft_engine::member::{MemberCore, Start};
use brickraft_engine::types::{NodeId, Time};
use brickraft_fs::replica::controller::Controller;
use brickraft_fs::replica::{BrickId, ConfigProposal, ReplicaCore};
use brickraft_fs::store::{BrickMeta, SimStore};
use bytes::Bytes;
use rand::Rng;
use rand::rngs::SmallRng;
use std::collections::BTreeMap;
use std::time::Duration;

/// Parts per million that a clock may be off. Two servers that differ by it in opposite directions still
/// keep the keeper's margin: 1000 ms by a slow clock are less than 1200 ms by a fast one.
const DRIFT_PPM_MAX: i64 = 30_000;

/// A monotonic clock that starts anywhere and runs a little fast or slow.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    offset: u64,
    ppm: i64,
}

impl Clock {
    pub fn new(rng: &mut SmallRng) -> Self {
        Self { offset: rng.random_range(0..100_000_000), ppm: rng.random_range(-DRIFT_PPM_MAX..=DRIFT_PPM_MAX) }
    }

    fn rate(self) -> i128 {
        1_000_000 + i128::from(self.ppm)
    }

    pub fn local(self, global: Time) -> Time {
        Time(self.offset + u64::try_from(i128::from(global.0) * self.rate() / 1_000_000).expect("in range"))
    }

    /// The first moment at which the clock shows `local`.
    pub fn global(self, local: Time) -> Time {
        let passed = i128::from(local.0.saturating_sub(self.offset));
        Time(u64::try_from((passed * 1_000_000 + self.rate() - 1) / self.rate()).unwrap_or(u64::MAX))
    }
}

/// A one-way connection to a peer, opened again whenever it breaks (net/src/link.rs).
#[derive(Debug, Default)]
pub struct Link {
    pub up: Option<ConnId>,
    wait_ms: u64,
}

/// What the member's thread is asked, and for whom.
#[derive(Debug)]
pub enum Ask {
    Renew { life: u64, sent: Time },
    Control { life: u64 },
    Commit { life: u64, brick: u64, expect_epoch: u64, command: Command },
}

/// What the bricks' thread is told.
#[derive(Debug)]
pub enum Told {
    View(Vec<(Bytes, Option<Bytes>, u64)>, bool),
    Renewed(Option<Time>),
    RenewTick(u64),
    ControlTick,
    Propose { brick: u64, proposal: ConfigProposal },
    Proposed { brick: u64, expect_epoch: u64, committed: Option<bool> },
}

/// Who waits for a member's reply.
#[derive(Debug)]
pub enum Asker {
    Renew { life: u64, sent: Time },
    Control { life: u64 },
    Commit { life: u64, brick: u64, expect_epoch: u64 },
    KvPut { conn: ConnId, request: u64 },
    KvGet { conn: ConnId, request: u64, key: Bytes },
}

pub struct MemberSide {
    pub disk: SimDisk,
    /// The store's tables, and its history.
    pub backends: [Backend; 2],
    pub start: Start,
    pub core: Option<MemberCore<SimIo>>,
    pub life: u64,
    pub fired: Time,
    pub watch: Option<WatchId>,
    pub asks: BTreeMap<u64, Asker>,
    pub next_ask: u64,
    pub disk_busy: bool,
    pub job: Option<StoreJob>,
    pub links: BTreeMap<usize, Link>,
}

pub struct BrickSide {
    pub id: BrickId,
    pub store: Option<SimStore>,
    pub core: Option<ReplicaCore<SimStore>>,
    pub life: u64,
    pub fired: Time,
    pub ready_posted: bool,
    pub links: BTreeMap<usize, Link>,
    /// It lost power since it was last known to hold everything.
    pub power_lost: bool,
    /// Kept down by a fault until it is started again.
    pub down: bool,
}

pub struct Node {
    pub id: NodeId,
    pub clock: Clock,
    pub skew_us: i64,
    /// The machine has power.
    pub on: bool,
    /// The process runs.
    pub up: bool,
    pub life: u64,
    /// Until when the member's and the bricks' thread stand still.
    pub paused: [Time; 2],
    /// Its disks are slow.
    pub slow: bool,
    pub member: MemberSide,
    pub brick: Option<BrickSide>,
    pub view: ClusterView,
    /// When the news that were sent last come to the bricks' thread: they come in order.
    pub news: Time,
    pub lease: Time,
    pub renew: (u64, bool),
    pub controller: Controller,
}

/// A brick's id by its node's number.
pub const fn brick_id(node: usize) -> BrickId {
    0xb0 + node as u64
}

/// A brick's node by its id.
pub fn brick_node(id: BrickId) -> usize {
    usize::try_from(id - brick_id(0)).expect("a brick's id")
}

impl Node {
    pub fn all(rng: &mut SmallRng) -> Vec<Self> {
        let list: Vec<_> =
            (1..=NODES).map(|i| InitialMember { name: format!("m{i}"), peer_urls: vec![format!("http://127.0.0.1:{i}")] }).collect();
        let (_, founders) = bootstrap(&list, "sim");
        let ids: Vec<NodeId> = founders.ids().collect();
        ids.iter().enumerate().map(|(i, &id)| Self::new(i, id, Start::Founder(founders.clone()), rng)).collect()
    }

    fn new(i: usize, id: NodeId, start: Start, rng: &mut SmallRng) -> Self {
        let brick = (i < BRICKS).then(|| {
            let mut store = SimStore::new(BrickMeta { volume: 7, brick: brick_id(i), ..BrickMeta::default() });
            store.set_jitter(Some(rng.random()));
            BrickSide {
                id: brick_id(i),
                store: Some(store),
                core: None,
                life: 0,
                fired: Time(0),
                ready_posted: false,
                links: BTreeMap::new(),
                power_lost: false,
                down: false,
            }
        });
        let member = MemberSide {
            disk: SimDisk::new(rng.random()),
            backends: Default::default(),
            start,
            core: None,
            life: 0,
            fired: Time(0),
            watch: None,
            asks: BTreeMap::new(),
            next_ask: 1,
            disk_busy: false,
            job: None,
            links: BTreeMap::new(),
        };
        Self {
            id,
            clock: Clock::new(rng),
            skew_us: rng.random_range(-1_500_000..1_500_000),
            on: true,
            up: false,
            life: 0,
            paused: [Time(0); 2],
            slow: false,
            member,
            brick,
            view: ClusterView::default(),
            news: Time(0),
            lease: Time(0),
            renew: (0, false),
            controller: keeper::controller(),
        }
    }
}

impl World {
    pub fn local(&self, node: usize) -> Time {
        self.nodes[node].clock.local(self.now)
    }

    /// Starts the process of a server.
    pub fn start_node(&mut self, i: usize) {
        note!(self, "node {i} starts");
        let (life, clock) = (self.life(), Clock::new(&mut self.rng));
        let node = &mut self.nodes[i];
        node.life = life;
        (node.on, node.up) = (true, true);
        node.clock = clock;
        node.paused = [Time(0); 2];
        node.view = ClusterView::default();
        node.lease = Time(0);
        node.renew = (0, false);
        node.controller = keeper::controller();
        self.start_member(i);
        self.tell_bricks(i, Told::RenewTick(0), Duration::from_micros(100));
        self.tell_bricks(i, Told::ControlTick, Duration::from_micros(100));
    }

    /// Something for the bricks' thread of this life, a little later.
    pub fn tell_bricks(&mut self, i: usize, told: Told, delay: Duration) {
        let life = self.nodes[i].life;
        self.post_in(delay, Event::BricksTold { node: i, life, told });
    }

    /// The time between two threads of a process.
    pub fn crossing(&mut self) -> Duration {
        let long = self.rng.random_bool(0.05);
        Duration::from_micros(self.rng.random_range(5..if long { 5_000 } else { 200 }))
    }

    fn link(&mut self, who: End, peer: usize) -> Option<&mut Link> {
        match who.who {
            Proc::Member(i) => self.nodes[i].member.links.get_mut(&peer),
            Proc::Bricks(i) => self.nodes[i].brick.as_mut().filter(|b| b.life == who.life).and_then(|b| b.links.get_mut(&peer)),
            Proc::Caller(_) => None,
        }
    }

    pub(super) fn link_retry(&mut self, who: End, peer: usize) {
        if self.alive(who) && self.link(who, peer).is_some() {
            let to = if matches!(who.who, Proc::Member(_)) { Proc::Member(peer) } else { Proc::Bricks(peer) };
            self.connect(who, to, Duration::from_secs(1), 0);
        }
    }

    pub(super) fn link_attempted(&mut self, who: End, to: Proc, outcome: Attempt) {
        let peer = self.host(to);
        let Some(link) = self.link(who, peer) else { return };
        let wait = link.wait_ms.max(20);
        if let Attempt::Open(conn) = outcome {
            link.wait_ms = 20;
            link.up = Some(conn);
        } else {
            link.wait_ms = (wait * 2).min(500);
            self.post_in(Duration::from_millis(wait), Event::LinkRetry { who, peer });
        }
        self.link_event(who, peer, outcome);
    }

    fn link_event(&mut self, who: End, peer: usize, outcome: Attempt) {
        match who.who {
            Proc::Member(i) if !matches!(outcome, Attempt::Open(_)) => self.member_unreachable(i, who.life, peer),
            Proc::Bricks(i) => self.brick_link(i, peer, outcome),
            _ => {}
        }
    }

    pub(super) fn link_closed(&mut self, conn: ConnId, end: End, other: Proc) {
        let peer = self.host(other);
        if peer >= NODES {
            return;
        }
        let Some(link) = self.link(end, peer) else { return };
        if link.up != Some(conn) {
            return;
        }
        link.up = None;
        let wait = link.wait_ms.max(20);
        self.post_in(Duration::from_millis(wait), Event::LinkRetry { who: end, peer });
        match end.who {
            Proc::Member(i) => self.member_unreachable(i, end.life, peer),
            Proc::Bricks(i) => self.brick_link_down(i, peer),
            Proc::Caller(_) => {}
        }
    }

    /// Queues a packet on a link; false when it is not up and the packet is lost.
    pub fn link_send(&mut self, who: End, peer: usize, packet: Packet) -> bool {
        let Some(conn) = self.link(who, peer).and_then(|l| l.up) else { return false };
        self.send(conn, 1, packet);
        true
    }

    /// The process of a server ends; with `power`, its machine loses power.
    pub fn kill_node(&mut self, i: usize, power: bool) {
        note!(self, "node {i} {}", if power { "loses power" } else { "is killed" });
        self.nodes[i].up = false;
        self.nodes[i].on = !power;
        self.kill_member(i, power);
        self.kill_brick(i, power);
        self.nodes[i].life = 0;
        self.break_all(Proc::Bricks(i), power);
    }

    /// A fault's end: whatever is down on that server starts.
    pub(super) fn restart(&mut self, i: usize, life: u64) {
        let node = &mut self.nodes[i];
        if life != u64::MAX && node.life != life {
            return;
        }
        if let Some(brick) = &mut node.brick {
            brick.down = false;
        }
        if !node.up {
            return self.start_node(i);
        }
        if self.nodes[i].member.core.is_none() {
            self.start_member(i);
        }
        self.reconcile(i);
    }
}
