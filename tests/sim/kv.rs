//! Clients of the key-value store: puts and gets at any member, one at a time each.

use super::invariants::kv_linearizable::Operation;
use super::net::{Attempt, ConnId, End, Packet, Proc};
use super::node::Asker;
use super::world::{CALLERS, CLIENTS, Event, NODES, World, note};
use brickraft_engine::kv::types::{Command, CommandResponse, Keyspace, PutRequest, RangeRequest};
use brickraft_engine::member::{MemberError, MemberReply, MemberRequest};
use bytes::Bytes;
use rand::Rng;
use std::time::Duration;

const KEYS: u32 = 3;
const TIMEOUT: Duration = Duration::from_secs(3);

/// A member's answer.
#[derive(Clone, Debug)]
pub enum Answer {
    Put { revision: u64 },
    Got { value: Option<Bytes>, revision: u64 },
    /// Not done, or nobody knows.
    Failed(String),
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Put { revision } => write!(f, "done at {revision}"),
            Self::Got { value, revision } => write!(f, "{:?} at {revision}", value.as_deref().map(super::kv::short)),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

/// A value without its padding.
pub fn short(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('x').to_owned()
}

#[derive(Default)]
pub struct KvClient {
    conn: Option<(usize, ConnId)>,
    token: u64,
    doing: Option<Operation>,
    request: u64,
}

impl World {
    fn kv_end(client: usize) -> End {
        End { who: Proc::Caller(CLIENTS * CALLERS + client), life: 0 }
    }

    pub(super) fn start_kv(&mut self) {
        for client in 0..self.kv.len() {
            self.kv_sleep(client, Duration::from_millis(100));
        }
    }

    fn kv_sleep(&mut self, client: usize, delay: Duration) {
        let token = self.life();
        self.kv[client].token = token;
        self.post_in(delay, Event::KvWake { client, token });
    }

    pub fn kv_idle(&self) -> bool {
        self.kv.iter().all(|k| k.doing.is_none())
    }

    pub(super) fn kv_wake(&mut self, client: usize, token: u64) {
        if self.kv[client].token != token {
            return;
        }
        if let Some(operation) = self.kv[client].doing.take() {
            // No answer: it may have been done, or may yet be.
            note!(self, "kv client {client}: {operation} has no answer");
            if let Some((_, conn)) = self.kv[client].conn.take() {
                self.break_conn(conn, Duration::from_micros(100));
            }
            return self.kv_sleep(client, Duration::from_millis(10));
        }
        if self.draining {
            return;
        }
        if self.kv[client].conn.is_none() || self.rng.random_bool(0.2) {
            if let Some((_, conn)) = self.kv[client].conn.take() {
                self.break_conn(conn, Duration::from_micros(100));
            }
            let member = self.rng.random_range(0..NODES);
            self.connect(Self::kv_end(client), Proc::Member(member), Duration::from_millis(500), member as u64);
            return;
        }
        self.kv_operate(client);
    }

    pub(super) fn kv_attempted(&mut self, client: usize, tag: u64, outcome: Attempt) {
        match outcome {
            Attempt::Open(conn) => {
                self.kv[client].conn = Some((usize::try_from(tag).expect("a member"), conn));
                self.kv_operate(client);
            }
            _ => self.kv_sleep(client, Duration::from_millis(50)),
        }
    }

    fn kv_operate(&mut self, client: usize) {
        let Some((_, conn)) = self.kv[client].conn else { return };
        let key = Bytes::from(format!("k{}", self.rng.random_range(0..KEYS)));
        let request = self.life();
        let put = self.rng.random_bool(0.6).then(|| Bytes::from(format!("v{request}{}", "x".repeat(self.rng.random_range(0..300)))));
        let floor = self.checks.kv.floor;
        self.kv[client].doing = Some(Operation { key: key.clone(), put: put.clone(), floor });
        self.kv[client].request = request;
        if let Some(value) = &put {
            self.checks.kv.tried.insert(value.clone(), key.clone());
        }
        self.send(conn, 1, Packet::Kv { request, put, key });
        self.kv_sleep(client, TIMEOUT);
    }

    pub(super) fn kv_packet(&mut self, i: usize, conn: ConnId, request: u64, put: Option<Bytes>, key: Bytes) {
        match put {
            Some(value) => {
                let command = Command::Put(Keyspace::User, PutRequest { key, value, ..PutRequest::default() });
                self.member_request(i, MemberRequest::Propose(command), Asker::KvPut { conn, request });
            }
            None => self.member_request(i, MemberRequest::ReadIndex, Asker::KvGet { conn, request, key }),
        }
    }

    pub(super) fn kv_put_done(&mut self, conn: ConnId, request: u64, result: Result<MemberReply, MemberError>) {
        let answer = match result {
            Ok(MemberReply::Applied(applied)) => match applied.result {
                Ok(CommandResponse::Op(_)) => Answer::Put { revision: applied.revision.0 },
                other => panic!("a put was refused: {other:?}"),
            },
            Ok(other) => panic!("answer to a put: {other:?}"),
            Err(e) => Answer::Failed(e.to_string()),
        };
        self.send(conn, 0, Packet::KvAnswer { request, answer });
    }

    pub(super) fn kv_read_ready(&mut self, i: usize, conn: ConnId, request: u64, key: &Bytes, result: Result<MemberReply, MemberError>) {
        let answer = match (result, &self.nodes[i].member.core) {
            (Ok(_), Some(core)) => {
                let range = RangeRequest { key: key.clone(), ..RangeRequest::default() };
                let (found, revision) = core.store().range(Keyspace::User, &range).expect("range");
                Answer::Got { value: found.kvs.first().map(|kv| kv.value.clone()), revision: revision.0 }
            }
            (Err(e), _) => Answer::Failed(e.to_string()),
            _ => return,
        };
        self.send(conn, 0, Packet::KvAnswer { request, answer });
    }

    pub(super) fn kv_answer(&mut self, client: usize, request: u64, answer: Answer) {
        if self.kv[client].request != request {
            return;
        }
        let Some(operation) = self.kv[client].doing.take() else { return };
        note!(self, "kv client {client}: {operation} -> {answer}");
        self.checks.kv.done(operation, answer);
        let ms = self.rng.random_range(0..60);
        self.kv_sleep(client, Duration::from_millis(ms));
    }

    pub(super) fn kv_closed(&mut self, client: usize, conn: ConnId) {
        if self.kv[client].conn.is_some_and(|(_, c)| c == conn) {
            self.kv[client].conn = None;
            if self.kv[client].doing.take().is_some() {
                self.kv_sleep(client, Duration::from_millis(20));
            }
        }
    }
}
