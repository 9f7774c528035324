//! Time, events, and who gets them.

use super::caller::{Caller, Client};
use super::faults::Faults;
use super::invariants::Checks;
use super::kv::KvClient;
use super::net::{Attempt, ConnId, End, Host, Net, Packet, Proc};
use super::node::{Ask, Node, Told};
use super::trace::Trace;
use brickraft_engine::types::Time;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// Servers; each is a member of the coordination store.
pub const NODES: usize = 3;
/// The first so many servers hold a brick.
pub const BRICKS: usize = 2;
/// Client machines.
pub const CLIENTS: usize = 2;
/// Callers of the file system on each client; the last one only reads, so that nothing holds it up at a primary that is
/// none any more.
pub const CALLERS: usize = 3;

/// What happens at a point in time.
#[derive(Debug)]
pub enum Event {
    Connecting { from: End, to: Proc, give_up: Time, tag: u64 },
    Attempted { who: End, to: Proc, tag: u64, outcome: Attempt },
    Pump { conn: ConnId, to: usize },
    Late { conn: ConnId, end: End, packet: Packet },
    Closed { conn: ConnId, end: End, other: Proc },
    LinkRetry { who: End, peer: usize },
    Unreachable { node: usize, life: u64, peer: usize },
    DiskDone { node: usize, life: u64 },
    JobDone { node: usize, life: u64 },
    StoreReady { node: usize, life: u64 },
    MemberAsk { node: usize, ask: Ask },
    BricksTold { node: usize, life: u64, told: Told },
    Wake { caller: usize, token: u64 },
    KvWake { client: usize, token: u64 },
    Refresh { client: usize, token: u64 },
    Fault,
    Restart { node: usize, life: u64 },
}

/// Everything there is.
pub struct World {
    pub now: Time,
    pub rng: SmallRng,
    queue: BTreeMap<(Time, u64), Event>,
    sequence: u64,
    lives: u64,
    pub trace: Rc<RefCell<Trace>>,
    pub net: Net,
    pub nodes: Vec<Node>,
    pub clients: Vec<Client>,
    pub callers: Vec<Caller>,
    pub kv: Vec<KvClient>,
    pub faults: Faults,
    pub checks: Checks,
    /// No new work is begun.
    pub draining: bool,
}

/// Notes something in the trace.
macro_rules! note {
    ($world:expr, $($what:tt)*) => {
        $world.trace.borrow_mut().note($world.now, format_args!($($what)*))
    };
}
pub(crate) use note;

impl World {
    pub fn new(seed: u64, trace: Rc<RefCell<Trace>>) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let nodes = Node::all(&mut rng);
        let faults = Faults::new(&mut rng);
        let mut world = Self {
            now: Time(1_000_000),
            rng,
            queue: BTreeMap::new(),
            sequence: 0,
            lives: 0,
            trace,
            net: Net::default(),
            nodes,
            clients: (0..CLIENTS).map(|_| Client::default()).collect(),
            callers: (0..CLIENTS * CALLERS).map(|i| Caller::new(i / CALLERS)).collect(),
            kv: (0..CLIENTS).map(|_| KvClient::default()).collect(),
            faults,
            checks: Checks::default(),
            draining: false,
        };
        for node in 0..NODES {
            world.start_node(node);
        }
        world.start_clients();
        world
    }

    pub fn life(&mut self) -> u64 {
        self.lives += 1;
        self.lives
    }

    pub fn post(&mut self, at: Time, event: Event) {
        self.sequence += 1;
        self.queue.insert((at.max(self.now), self.sequence), event);
    }

    pub fn post_in(&mut self, delay: Duration, event: Event) {
        self.post(self.now.after(delay), event);
    }

    pub fn host(&self, who: Proc) -> Host {
        match who {
            Proc::Member(node) | Proc::Bricks(node) => node,
            Proc::Caller(caller) => NODES + if caller < CLIENTS * CALLERS { caller / CALLERS } else { caller - CLIENTS * CALLERS },
        }
    }

    pub fn host_on(&self, host: Host) -> bool {
        self.nodes.get(host).is_none_or(|n| n.on)
    }

    /// The life of whoever accepts connections for `who`.
    pub fn listens(&self, who: Proc) -> Option<u64> {
        match who {
            Proc::Member(i) => self.nodes[i].member.core.is_some().then_some(self.nodes[i].member.life),
            Proc::Bricks(i) => self.nodes[i].up.then_some(self.nodes[i].life),
            Proc::Caller(_) => Some(0),
        }
    }

    /// Whether that life is still lived.
    pub fn alive(&self, end: End) -> bool {
        let brick = |i: usize| self.nodes[i].brick.as_ref().is_some_and(|b| b.core.is_some() && b.life == end.life);
        self.listens(end.who) == Some(end.life) || matches!(end.who, Proc::Bricks(i) if brick(i))
    }

    fn paused(&self, who: Proc) -> Time {
        match who {
            Proc::Member(i) => self.nodes[i].paused[0],
            Proc::Bricks(i) => self.nodes[i].paused[1],
            Proc::Caller(_) => Time(0),
        }
    }

    /// Who has to run for this event.
    fn target(&self, event: &Event) -> Option<Proc> {
        match event {
            Event::Attempted { who, .. } | Event::LinkRetry { who, .. } => Some(who.who),
            Event::Pump { conn, to } => self.net.conns.get(conn).map(|c| c.ends[*to].who),
            Event::Late { end, .. } | Event::Closed { end, .. } => Some(end.who),
            Event::Unreachable { node, .. } | Event::MemberAsk { node, .. } | Event::JobDone { node, .. } | Event::DiskDone { node, .. } => {
                Some(Proc::Member(*node))
            }
            Event::StoreReady { node, .. } | Event::BricksTold { node, .. } => Some(Proc::Bricks(*node)),
            _ => None,
        }
    }

    /// The next timer of a core: its node, and whether it is the brick's.
    fn next_timer(&self) -> Option<(Time, usize, bool)> {
        let mut next: Option<(Time, usize, bool)> = None;
        for (i, node) in self.nodes.iter().enumerate() {
            let member = node.member.core.as_ref().map(|c| (c.next_timeout(), node.member.fired, node.paused[0], false));
            let brick = node.brick.as_ref().and_then(|b| b.core.as_ref().map(|c| (c.next_timeout(), b.fired, node.paused[1], true)));
            for (due, fired, paused, is_brick) in member.into_iter().chain(brick) {
                // The clocks of timers tick in milliseconds.
                let at = node.clock.global(due).max(fired.after(Duration::from_millis(1))).max(paused).max(self.now);
                if next.is_none_or(|n| at < n.0) {
                    next = Some((at, i, is_brick));
                }
            }
        }
        next
    }

    /// One event; false after `end`.
    pub fn step(&mut self, end: Time) -> bool {
        let queued = self.queue.first_key_value().map_or(Time(u64::MAX), |((at, _), _)| *at);
        let timer = self.next_timer();
        if queued.min(timer.map_or(Time(u64::MAX), |t| t.0)) > end {
            self.now = end;
            return false;
        }
        match timer {
            Some((at, node, is_brick)) if at < queued => {
                self.now = at;
                if is_brick {
                    self.brick_timer(node);
                } else {
                    self.member_timer(node);
                }
            }
            _ => {
                let Some(((at, _), event)) = self.queue.pop_first() else { return false };
                self.now = at;
                let paused = self.target(&event).map_or(Time(0), |who| self.paused(who));
                if paused > self.now {
                    self.post(paused, event);
                } else {
                    self.dispatch(event);
                }
            }
        }
        true
    }

    fn dispatch(&mut self, event: Event) {
        match event {
            Event::Connecting { from, to, give_up, tag } => self.on_connecting(from, to, give_up, tag),
            Event::Attempted { who, to, tag, outcome } => self.on_attempted(who, to, tag, outcome),
            Event::Pump { conn, to } => self.on_pump(conn, to),
            Event::Late { conn, end, packet } => {
                self.arrive(conn, end, packet);
            }
            Event::Closed { conn, end, other } => self.on_closed(conn, end, other),
            Event::LinkRetry { who, peer } => self.link_retry(who, peer),
            Event::Unreachable { node, life, peer } => self.member_unreachable(node, life, peer),
            Event::DiskDone { node, life } => self.disk_done(node, life),
            Event::JobDone { node, life } => self.job_done(node, life),
            Event::StoreReady { node, life } => self.store_ready(node, life),
            Event::MemberAsk { node, ask } => self.member_ask(node, ask),
            Event::BricksTold { node, life, told } => self.bricks_told(node, life, told),
            Event::Wake { caller, token } => self.caller_wake(caller, token),
            Event::KvWake { client, token } => self.kv_wake(client, token),
            Event::Refresh { client, token } => self.refresh_timeout(client, token),
            Event::Fault => self.fault(),
            Event::Restart { node, life } => self.restart(node, life),
        }
    }

    fn on_attempted(&mut self, who: End, to: Proc, tag: u64, outcome: Attempt) {
        if !self.alive(who) {
            if let Attempt::Open(conn) = outcome {
                self.break_conn(conn, Duration::from_micros(100));
            }
            return;
        }
        match who.who {
            Proc::Member(_) | Proc::Bricks(_) => self.link_attempted(who, to, outcome),
            Proc::Caller(c) if c < self.callers.len() => self.caller_attempted(c, tag, outcome),
            Proc::Caller(c) => self.kv_attempted(c - self.callers.len(), tag, outcome),
        }
    }

    /// A packet is read by a process.
    pub fn arrive(&mut self, conn: ConnId, end: End, packet: Packet) {
        if !self.alive(end) {
            return;
        }
        match (end.who, packet) {
            (Proc::Member(i), Packet::Member(bytes)) => self.member_packet(i, conn, &bytes),
            (Proc::Member(i), Packet::Kv { request, put, key }) => self.kv_packet(i, conn, request, put, key),
            (Proc::Bricks(i), Packet::Brick { head, payload }) => self.brick_packet(i, conn, &head, payload),
            (Proc::Bricks(i), Packet::Op { request, head, payload }) => self.op_packet(i, conn, request, &head, payload),
            (Proc::Bricks(i), Packet::AskView) => self.view_packet(i, conn),
            (Proc::Caller(c), Packet::Answer { request, head, payload }) => self.caller_answer(c, conn, request, &head, payload),
            (Proc::Caller(c), Packet::View(view)) => self.view_answer(c, conn, &view),
            (Proc::Caller(c), Packet::KvAnswer { request, answer }) => self.kv_answer(c - self.callers.len(), request, answer),
            (who, packet) => panic!("the simulator sent {packet:?} to {who:?}"),
        }
    }

    fn on_closed(&mut self, conn: ConnId, end: End, other: Proc) {
        if !self.alive(end) {
            return;
        }
        match end.who {
            Proc::Member(_) | Proc::Bricks(_) => self.link_closed(conn, end, other),
            Proc::Caller(c) if c < self.callers.len() => self.caller_closed(c, conn),
            Proc::Caller(c) => self.kv_closed(c - self.callers.len(), conn),
        }
    }
}
