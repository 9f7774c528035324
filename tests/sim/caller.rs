//! A client of the volume, as src/client is: a session with numbered operations, a view, connections that are used
//! again, and callers that block.

use super::net::{Attempt, ConnId, End, Packet, Proc};
use super::node::brick_node;
use super::work::Work;
use super::world::{CALLERS, Event, NODES, World, note};
use brickraft::wire::{ClientMessage, ServerMessage};
use brickraft_fs::fop::{Errno, Fop, Reply};
use brickraft_fs::replica::{BrickId, GroupConfig, ReplicaError};
use brickraft_engine::types::Time;
use bytes::Bytes;
use rand::Rng;
use std::collections::BTreeSet;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_millis(600);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(700);
const RETRY_WAIT: Duration = Duration::from_millis(20);
const SLOW_REFRESH: Duration = Duration::from_millis(250);
const LOOK: Duration = Duration::from_millis(100);

/// What the callers of one client share.
#[derive(Default)]
pub struct Client {
    session: u64,
    last_op: u64,
    under_way: BTreeSet<u64>,
    view: GroupConfig,
    version: u64,
    idle: Vec<(BrickId, ConnId)>,
    /// A question to a server: the caller's tag, the server, its connection.
    asking: Option<(u64, usize, Option<ConnId>)>,
    asked: Time,
}

impl Client {
    fn acked(&self) -> u64 {
        self.under_way.first().map_or(self.last_op, |first| first - 1)
    }
}

/// An operation under way.
pub struct Doing {
    pub op: u64,
    pub fop: Fop,
    payload: Bytes,
    retry: bool,
    request: u64,
    conn: Option<ConnId>,
    brick: BrickId,
    incarnation: Option<u64>,
    version: u64,
    since: Time,
    asked: Time,
    /// Its attempt to connect.
    tag: u64,
}

/// Somebody who calls and blocks.
pub struct Caller {
    pub client: usize,
    pub doing: Option<Doing>,
    token: u64,
    pub work: Work,
}

impl Caller {
    pub fn new(client: usize) -> Self {
        Self { client, doing: None, token: 0, work: Work::default() }
    }
}

/// Tags from here on belong to questions for the view.
const ASK_TAG: u64 = 1 << 40;

impl World {
    /// For the report of a client that waits.
    pub fn describe_callers(&self) -> String {
        let doing = |c: &Caller| {
            c.doing.as_ref().map(|d| {
                let open = d.conn.map(|conn| self.net.conns.contains_key(&conn));
                format!("op {} {:?} to {:x}/{:x?}, open {open:?} since {:?}", d.op, d.fop, d.brick, d.incarnation, d.since)
            })
        };
        let clients: Vec<_> = self.clients.iter().map(|c| (c.view.epoch, c.view.primary, c.asking, c.version)).collect();
        format!("{:#?} {clients:?}", self.callers.iter().map(doing).collect::<Vec<_>>())
    }

    pub(super) fn start_clients(&mut self) {
        for i in 0..self.clients.len() {
            self.clients[i].session = self.rng.random::<u64>() | 1;
        }
        for c in 0..self.callers.len() {
            self.callers[c].work = Work::new(c);
            self.wake_in(c, Duration::from_millis(500));
        }
        self.start_kv();
    }

    /// Wakes a caller later; earlier wakes are void.
    pub(super) fn wake_in(&mut self, c: usize, delay: Duration) {
        self.callers[c].token += 1;
        let token = self.callers[c].token;
        self.post_in(delay, Event::Wake { caller: c, token });
    }

    fn end(c: usize) -> End {
        End { who: Proc::Caller(c), life: 0 }
    }

    /// Begins an operation; [`World::work_done`] gets its outcome.
    pub(super) fn call(&mut self, c: usize, fop: Fop, payload: Bytes) {
        let client = &mut self.clients[self.callers[c].client];
        client.last_op += 1;
        let op = client.last_op;
        client.under_way.insert(op);
        note!(self, "caller {c}: op {op} {fop:?} {} bytes", payload.len());
        let doing = Doing {
            op,
            fop,
            payload,
            retry: false,
            request: 0,
            conn: None,
            brick: 0,
            incarnation: None,
            version: 0,
            since: self.now,
            asked: self.now,
            tag: 0,
        };
        self.callers[c].doing = Some(doing);
        self.attempt(c);
    }

    fn attempt(&mut self, c: usize) {
        let client = &mut self.clients[self.callers[c].client];
        let (primary, version) = (client.view.primary, client.version);
        let incarnation = client.view.incarnations.get(&primary).copied();
        let Some(doing) = &mut self.callers[c].doing else { return };
        doing.conn = None;
        (doing.brick, doing.incarnation, doing.version) = (primary, incarnation, version);
        if client.view.epoch == 0 {
            self.refresh(c, version);
            return self.wake_in(c, Duration::from_millis(100));
        }
        if let Some(at) = client.idle.iter().position(|(brick, _)| *brick == primary) {
            let (_, conn) = client.idle.swap_remove(at);
            if self.net.conns.contains_key(&conn) {
                return self.send_op(c, conn);
            }
            // The end of that connection has come, though nobody has looked yet.
            let Some(doing) = &mut self.callers[c].doing else { return };
            doing.retry = true;
            self.refresh(c, version);
            return self.wake_in(c, RETRY_WAIT);
        }
        let tag = self.life();
        if let Some(doing) = &mut self.callers[c].doing {
            doing.tag = tag;
        }
        self.callers[c].token += 1;
        self.connect(Self::end(c), Proc::Bricks(brick_node(primary)), CONNECT_TIMEOUT, tag);
    }

    pub(super) fn caller_attempted(&mut self, c: usize, tag: u64, outcome: Attempt) {
        if tag >= ASK_TAG {
            return self.view_attempted(c, tag, outcome);
        }
        let Some(doing) = self.callers[c].doing.as_ref().filter(|d| d.tag == tag && d.conn.is_none()) else {
            if let Attempt::Open(conn) = outcome {
                self.break_conn(conn, Duration::from_micros(100));
            }
            return;
        };
        let version = doing.version;
        match outcome {
            Attempt::Open(conn) => self.send_op(c, conn),
            Attempt::Refused | Attempt::TimedOut => {
                self.refresh(c, version);
                self.wake_in(c, RETRY_WAIT);
            }
        }
    }

    fn send_op(&mut self, c: usize, conn: ConnId) {
        let request = self.life();
        let now = self.now;
        let client = &self.clients[self.callers[c].client];
        let (epoch, acked, session) = (client.view.epoch, client.acked(), client.session);
        let Some(doing) = &mut self.callers[c].doing else { return };
        (doing.request, doing.conn, doing.since, doing.asked, doing.tag) = (request, Some(conn), now, now, 0);
        let message = ClientMessage::Op { op: doing.op, acked, retry: doing.retry, epoch, fence: 0, fop: doing.fop.clone() };
        let head = Bytes::from(postcard::to_allocvec(&(session, message)).expect("plain data"));
        let payload = doing.payload.clone();
        self.send(conn, 1, Packet::Op { request, head, payload });
        self.wake_in(c, LOOK);
    }

    pub(super) fn caller_wake(&mut self, c: usize, token: u64) {
        if self.callers[c].token != token {
            return;
        }
        let Some(doing) = &mut self.callers[c].doing else { return self.next_work(c) };
        let Some(conn) = doing.conn else { return self.attempt(c) };
        let sent_to = (doing.brick, doing.incarnation);
        let due = self.now.since(doing.asked) >= PATIENCE;
        if due {
            doing.asked = self.now;
            let version = self.clients[self.callers[c].client].version;
            self.refresh(c, version);
        }
        let view = &self.clients[self.callers[c].client].view;
        if (view.primary, view.incarnations.get(&view.primary).copied()) == sent_to {
            return self.wake_in(c, LOOK);
        }
        // The same process under a new epoch still has the request; another one has not.
        self.break_conn(conn, Duration::from_micros(100));
        self.broken(c);
    }

    fn broken(&mut self, c: usize) {
        let Some(doing) = &mut self.callers[c].doing else { return };
        doing.retry = true;
        doing.conn = None;
        let version = doing.version;
        self.refresh(c, version);
        let moved = self.clients[self.callers[c].client].version != version;
        self.wake_in(c, if moved { Duration::from_micros(10) } else { RETRY_WAIT });
    }

    pub(super) fn caller_closed(&mut self, c: usize, conn: ConnId) {
        let client = self.callers[c].client;
        if let Some((_, server, Some(asking))) = self.clients[client].asking
            && asking == conn
        {
            return self.ask_next(client, server);
        }
        if let Some(c) = self.caller_on(client, conn) {
            self.broken(c);
        }
    }

    /// Who waits on a connection: any caller of the client may use what another opened.
    fn caller_on(&self, client: usize, conn: ConnId) -> Option<usize> {
        (0..self.callers.len()).find(|&c| self.callers[c].client == client && self.callers[c].doing.as_ref().is_some_and(|d| d.conn == Some(conn)))
    }

    pub(super) fn caller_answer(&mut self, c: usize, conn: ConnId, request: u64, head: &Bytes, payload: Bytes) {
        let Some(c) = self.caller_on(self.callers[c].client, conn) else { return };
        let Some(doing) = self.callers[c].doing.as_mut().filter(|d| d.request == request && d.conn == Some(conn)) else { return };
        doing.conn = None;
        let (brick, version) = (doing.brick, doing.version);
        let answer: ServerMessage = postcard::from_bytes(head).expect("decode");
        let client = self.callers[c].client;
        self.clients[client].idle.push((brick, conn));
        match answer {
            Ok(reply) => self.end_call(c, Ok((reply, payload))),
            Err(ReplicaError::Errno(e)) => self.end_call(c, Err(e)),
            Err(ReplicaError::Abandoned { config }) => {
                self.learn(client, config);
                self.broken(c);
            }
            Err(ReplicaError::WrongEpoch { config } | ReplicaError::NotPrimary { config }) => {
                let news = self.learn(client, config);
                self.wake_in(c, if news { Duration::from_micros(10) } else { RETRY_WAIT });
            }
            Err(ReplicaError::NoLease | ReplicaError::Busy) => {
                if self.now.since(self.clients[client].asked) >= SLOW_REFRESH {
                    self.refresh(c, version);
                }
                self.wake_in(c, RETRY_WAIT);
            }
            Err(ReplicaError::Forgotten) => panic!("caller {c}: the outcome of an operation that waits is forgotten"),
        }
    }

    fn end_call(&mut self, c: usize, outcome: Result<(Reply, Bytes), Errno>) {
        let Some(doing) = self.callers[c].doing.take() else { return };
        self.clients[self.callers[c].client].under_way.remove(&doing.op);
        match &outcome {
            Ok((_, data)) => note!(self, "caller {c}: op {} done, {} bytes", doing.op, data.len()),
            Err(e) => note!(self, "caller {c}: op {} failed: {e}", doing.op),
        }
        self.work_done(c, doing.fop, outcome);
    }

    fn learn(&mut self, client: usize, config: GroupConfig) -> bool {
        let client = &mut self.clients[client];
        let news = config.epoch > client.view.epoch;
        if news {
            client.version += 1;
            let primary = config.primary;
            client.view = config;
            client.idle.retain(|(brick, _)| *brick == primary);
        }
        news
    }

    /// Asks one server after the other for the view, unless that is being done.
    fn refresh(&mut self, c: usize, version: u64) {
        let client = self.callers[c].client;
        if self.clients[client].asking.is_some() || self.clients[client].version != version {
            return;
        }
        self.ask_server(client, 0);
    }

    fn ask_server(&mut self, client: usize, server: usize) {
        if server >= NODES {
            self.clients[client].asking = None;
            self.clients[client].asked = self.now;
            return;
        }
        let tag = ASK_TAG + self.life();
        self.clients[client].asking = Some((tag, server, None));
        self.connect(Self::end(client * CALLERS), Proc::Bricks(server), CONNECT_TIMEOUT, tag);
        self.post_in(CONNECT_TIMEOUT, Event::Refresh { client, token: tag });
    }

    fn ask_next(&mut self, client: usize, server: usize) {
        self.ask_server(client, server + 1);
    }

    pub(super) fn refresh_timeout(&mut self, client: usize, token: u64) {
        if let Some((tag, server, conn)) = self.clients[client].asking
            && tag == token
        {
            self.clients[client].asking = None;
            if let Some(conn) = conn {
                self.break_conn(conn, Duration::from_micros(100));
            }
            self.ask_next(client, server);
        }
    }

    fn view_attempted(&mut self, c: usize, tag: u64, outcome: Attempt) {
        let client = self.callers[c].client;
        let server = match self.clients[client].asking {
            Some((current, server, None)) if current == tag => server,
            _ => {
                if let Attempt::Open(conn) = outcome {
                    self.break_conn(conn, Duration::from_micros(100));
                }
                return;
            }
        };
        if let Attempt::Open(conn) = outcome {
            self.clients[client].asking = Some((tag, server, Some(conn)));
            self.send(conn, 1, Packet::AskView);
        } else {
            self.ask_next(client, server);
        }
    }

    pub(super) fn view_answer(&mut self, c: usize, conn: ConnId, view: &Bytes) {
        let client = self.callers[c].client;
        let Some((_, server, Some(asking))) = self.clients[client].asking else { return };
        if asking != conn {
            return;
        }
        self.clients[client].asking = None;
        self.break_conn(conn, Duration::from_micros(100));
        let config: GroupConfig = postcard::from_bytes(view).expect("decode");
        if self.learn(client, config) {
            self.clients[client].asked = self.now;
        } else {
            self.ask_next(client, server);
        }
    }
}
