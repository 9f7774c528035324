//! Connections as TCP has them: in order, delayed, stalled by a partition, broken as a whole. Nothing comes twice on
//! one connection, but what was under way on a broken one may still arrive, later than what the next one carries.

use super::world::{Event, World};
use brickraft_engine::types::Time;
use bytes::Bytes;
use rand::Rng;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// A machine: 0..NODES are servers, the rest are clients.
pub type Host = usize;
/// A connection.
pub type ConnId = u64;

/// Who holds an end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Proc {
    Member(usize),
    /// The bricks' thread of a node, whether its brick runs or not.
    Bricks(usize),
    /// A client's caller, or its etcd client.
    Caller(usize),
}

/// An end: who, and which life of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    pub who: Proc,
    pub life: u64,
}

/// What travels.
#[derive(Clone, Debug)]
pub enum Packet {
    Member(Bytes),
    Brick { head: Bytes, payload: Bytes },
    Op { request: u64, head: Bytes, payload: Bytes },
    Answer { request: u64, head: Bytes, payload: Bytes },
    AskView,
    View(Bytes),
    Kv { request: u64, put: Option<Bytes>, key: Bytes },
    KvAnswer { request: u64, answer: super::kv::Answer },
}

/// How an attempt to connect ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    Open(ConnId),
    Refused,
    TimedOut,
}

pub struct Conn {
    /// Who opened it, and who accepted.
    pub ends: [End; 2],
    open: bool,
    /// Towards each end, with the earliest time of arrival.
    queues: [VecDeque<(Time, Packet)>; 2],
    last: [Time; 2],
    stalled: Option<(Time, Duration)>,
}

/// The network.
#[derive(Default)]
pub struct Net {
    pub conns: BTreeMap<ConnId, Conn>,
    next: ConnId,
    /// Pairs of hosts that do not reach each other, smaller first.
    pub cut: BTreeSet<(Host, Host)>,
    /// Share of packets that are lost once and sent again.
    pub loss: f64,
    /// Chance of a packet to break its connection.
    pub breaks: f64,
}

impl Net {
    pub fn is_cut(&self, a: Host, b: Host) -> bool {
        self.cut.contains(&(a.min(b), a.max(b)))
    }

    pub fn set_cut(&mut self, a: Host, b: Host) {
        if a != b {
            self.cut.insert((a.min(b), a.max(b)));
        }
    }
}

impl World {
    fn latency(&mut self) -> Duration {
        Duration::from_micros(if self.rng.random_bool(0.02) { self.rng.random_range(1_000..20_000) } else { self.rng.random_range(60..600) })
    }

    /// Starts to connect; the outcome comes as [`Event::Attempted`] with `tag`.
    pub fn connect(&mut self, from: End, to: Proc, timeout: Duration, tag: u64) {
        let at = self.now.after(self.latency() * 2);
        self.post(at, Event::Connecting { from, to, give_up: self.now.after(timeout), tag });
    }

    pub(super) fn on_connecting(&mut self, from: End, to: Proc, give_up: Time, tag: u64) {
        let (a, b) = (self.host(from.who), self.host(to));
        let outcome = if self.net.is_cut(a, b) || !self.host_on(b) {
            if self.now < give_up {
                let again = self.now.after(Duration::from_millis(100)).min(give_up);
                return self.post(again, Event::Connecting { from, to, give_up, tag });
            }
            Attempt::TimedOut
        } else if let Some(life) = self.listens(to) {
            self.net.next += 1;
            let ends = [from, End { who: to, life }];
            let conn = Conn { ends, open: true, queues: Default::default(), last: [self.now; 2], stalled: None };
            self.net.conns.insert(self.net.next, conn);
            Attempt::Open(self.net.next)
        } else {
            Attempt::Refused
        };
        self.post(self.now, Event::Attempted { who: from, to, tag, outcome });
    }

    /// Sends towards end `to` (0: who opened it, 1: who accepted). Lost when the connection is broken.
    pub fn send(&mut self, id: ConnId, to: usize, packet: Packet) {
        let mut delay = self.latency();
        if self.net.loss > 0.0 && self.rng.random_bool(self.net.loss) {
            delay += Duration::from_millis(self.rng.random_range(200..450));
        }
        let broken = self.net.breaks > 0.0 && self.rng.random_bool(self.net.breaks);
        let Some(conn) = self.net.conns.get_mut(&id).filter(|c| c.open) else { return };
        let at = self.now.after(delay).max(Time(conn.last[to].0 + 1));
        conn.last[to] = at;
        conn.queues[to].push_back((at, packet));
        if conn.queues[to].len() == 1 {
            self.post(at, Event::Pump { conn: id, to });
        }
        if broken {
            self.break_conn(id, Duration::from_millis(1));
        }
    }

    pub(super) fn on_pump(&mut self, id: ConnId, to: usize) {
        let Some(conn) = self.net.conns.get(&id).filter(|c| c.open) else { return };
        let (a, b) = (self.host(conn.ends[0].who), self.host(conn.ends[1].who));
        if self.net.is_cut(a, b) || !self.host_on(a) || !self.host_on(b) {
            let patience = Duration::from_millis(self.rng.random_range(2_000..15_000));
            let again = Duration::from_millis(self.rng.random_range(50..400));
            let now = self.now;
            let Some(conn) = self.net.conns.get_mut(&id) else { return };
            let (since, patience) = *conn.stalled.get_or_insert((now, patience));
            if now.since(since) > patience {
                return self.break_conn(id, Duration::from_millis(1));
            }
            return self.post(now.after(again), Event::Pump { conn: id, to });
        }
        let now = self.now;
        let Some(conn) = self.net.conns.get_mut(&id) else { return };
        conn.stalled = None;
        let end = conn.ends[to];
        let mut arrived = Vec::new();
        while conn.queues[to].front().is_some_and(|(at, _)| *at <= now) {
            arrived.extend(conn.queues[to].pop_front().map(|(_, packet)| packet));
        }
        if let Some((at, _)) = conn.queues[to].front() {
            let at = *at;
            self.post(at, Event::Pump { conn: id, to });
        }
        for packet in arrived {
            self.arrive(id, end, packet);
        }
    }

    /// Breaks a connection: some of what is under way still arrives, then each end hears of it.
    pub fn break_conn(&mut self, id: ConnId, silence: Duration) {
        let Some(mut conn) = self.net.conns.remove(&id).filter(|c| c.open) else { return };
        conn.open = false;
        let (a, b) = (self.host(conn.ends[0].who), self.host(conn.ends[1].who));
        let reachable = !self.net.is_cut(a, b);
        for to in 0..2 {
            let kept = if reachable { self.rng.random_range(0..=conn.queues[to].len()) } else { 0 };
            let mut at = self.now;
            for (due, packet) in conn.queues[to].drain(..).take(kept) {
                let late = Duration::from_millis(if self.rng.random_bool(0.2) { self.rng.random_range(0..400) } else { 0 });
                at = Time(at.max(due).after(late).0 + 1);
                self.post(at, Event::Late { conn: id, end: conn.ends[to], packet });
            }
            let heard = at.after(silence);
            self.post(heard, Event::Closed { conn: id, end: conn.ends[to], other: conn.ends[1 - to].who });
        }
    }

    /// A process is gone, or its machine: its connections break.
    pub fn break_all(&mut self, who: Proc, silent: bool) {
        let of: Vec<ConnId> = self.net.conns.iter().filter(|(_, c)| c.ends.iter().any(|e| e.who == who)).map(|(id, _)| *id).collect();
        for id in of {
            let silence = if silent { Duration::from_millis(self.rng.random_range(200..6_000)) } else { Duration::from_micros(100) };
            self.break_conn(id, silence);
        }
    }
}
