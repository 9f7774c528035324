//! A client: one operation after the other, with retries, over registers that all share and a directory of its own.

use super::check::{Action, Span};
use super::world::{Answer, World, ms};
use crate::fop::{Bucket, Errno, Fop, Gfid, Reply};
use crate::replica::{BrickId, ClientRequest, GroupConfig, ReplicaError};
use brickraft_engine::types::Time;
use bytes::Bytes;
use rand::Rng;
use std::collections::BTreeMap;

pub const REGISTERS: usize = 3;

pub fn register(n: usize) -> Gfid {
    Gfid::in_bucket(Bucket(0), [0xA0 + n as u8; 14])
}

fn directory(client: usize) -> Gfid {
    Gfid::in_bucket(Bucket(100 + client as u16), [0xD0; 14])
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Setup,
    Registers,
    /// Registers and the own directory.
    Both,
    Idle,
}

struct Current {
    fop: Fop,
    payload: Bytes,
    op: u64,
    sent: bool,
    at: Time,
    span: Option<usize>,
    expect: Expect,
}

/// What the answer must be.
#[derive(Clone, Debug)]
enum Expect {
    /// Setting up: whatever.
    Any,
    Ok,
    Err(Errno),
    Names,
    Register,
}

pub struct Client {
    pub kind: Kind,
    session: u64,
    op: u64,
    requests: u64,
    config: Option<GroupConfig>,
    target: BrickId,
    current: Option<Current>,
    pub history: Vec<Span>,
    values: u64,
    /// The model of the own directory.
    pub names: BTreeMap<String, Gfid>,
    pub done: u64,
    script: Vec<Fop>,
    pub results: Vec<Answer>,
    pub last_payload: Bytes,
    pub bricks: u64,
    gfids: u64,
    wakes: u64,
    /// Answers that left open whether the operation was carried out.
    pub abandoned: u32,
    /// The token of the handle that it works through.
    pub fence: u64,
}

impl Client {
    pub fn new(n: usize, bricks: u64, kind: Kind) -> Self {
        let script = if kind == Kind::Idle {
            Vec::new()
        } else {
            let mut s: Vec<_> = (0..REGISTERS).map(|r| create(Gfid::ROOT, &format!("r{r}"), register(r))).collect();
            s.push(Fop::MkDir { parent: Gfid::ROOT, name: format!("d{n}").into(), gfid: directory(n), mode: 0o755, uid: 0, gid: 0 });
            s.reverse();
            s
        };
        Self {
            kind,
            session: 1000 + n as u64,
            op: 0,
            requests: 0,
            config: None,
            target: 1,
            current: None,
            history: Vec::new(),
            values: 0,
            names: BTreeMap::new(),
            done: 0,
            script,
            results: Vec::new(),
            last_payload: Bytes::new(),
            bricks,
            gfids: 0,
            wakes: 0,
            abandoned: 0,
            fence: 0,
        }
    }

    /// Does this next (its result goes to `results`).
    pub fn then(&mut self, fop: Fop) {
        self.script.insert(0, fop);
    }

    pub fn is_idle(&self) -> bool {
        self.current.is_none() && self.script.is_empty()
    }

    fn begin(&mut self, w: &mut World, me: usize) {
        self.op += 1;
        let (fop, payload, expect, action) = if let Some(fop) = self.script.pop() {
            let payload = if let Fop::Write { .. } = fop { Bytes::from(format!("{me}{:07}", self.op)) } else { Bytes::new() };
            if !payload.is_empty() {
                self.last_payload = payload.clone();
            }
            (fop, payload, Expect::Any, None)
        } else if self.kind == Kind::Idle || self.kind == Kind::Setup {
            self.op -= 1;
            return;
        } else if self.kind == Kind::Both && w.rng.random_bool(0.5) {
            let (fop, expect) = self.own(w, me);
            (fop, Bytes::new(), expect, None)
        } else {
            let r = w.rng.random_range(0..REGISTERS);
            let gfid = register(r);
            match w.rng.random_range(0..10) {
                0..4 => (Fop::Read { gfid, offset: 0, len: 8 }, Bytes::new(), Expect::Register, Some((r, Action::Read(0)))),
                4 => (Fop::Fsync { gfid, data_only: false }, Bytes::new(), Expect::Ok, Some((r, Action::Sync))),
                _ => {
                    self.values += 1;
                    let value = (me as u64 + 1) << 32 | self.values;
                    (Fop::Write { gfid, offset: 0 }, Bytes::copy_from_slice(&value.to_be_bytes()), Expect::Ok, Some((r, Action::Write(value))))
                }
            }
        };
        let span = action.map(|(register, action)| {
            self.history.push(Span { register, action, start: w.now, end: None });
            self.history.len() - 1
        });
        self.current = Some(Current { fop, payload, op: self.op, sent: false, at: w.now, span, expect });
        self.send(w, me);
    }

    /// An operation in the own directory, where nobody else is: the outcome is known.
    fn own(&mut self, w: &mut World, me: usize) -> (Fop, Expect) {
        let parent = directory(me);
        let name = format!("f{}", w.rng.random_range(0..6));
        let there = self.names.contains_key(&name);
        match w.rng.random_range(0..5) {
            0 | 1 => {
                self.gfids += 1;
                let mut id = [me as u8 + 1; 14];
                id[6..].copy_from_slice(&self.gfids.to_be_bytes());
                let gfid = Gfid::in_bucket(parent.bucket(), id);
                if !there {
                    self.names.insert(name.clone(), gfid);
                }
                (create(parent, &name, gfid), if there { Expect::Err(Errno::EEXIST) } else { Expect::Ok })
            }
            2 => {
                self.names.remove(&name);
                (Fop::Unlink { parent, name: name.into() }, if there { Expect::Ok } else { Expect::Err(Errno::ENOENT) })
            }
            3 => {
                let to = format!("f{}", w.rng.random_range(0..6));
                let fop = Fop::Rename { parent, name: name.clone().into(), new_parent: parent, new_name: to.clone().into(), flags: 0 };
                if let Some(gfid) = self.names.remove(&name) {
                    self.names.insert(to, gfid);
                    (fop, Expect::Ok)
                } else {
                    (fop, Expect::Err(Errno::ENOENT))
                }
            }
            _ => (Fop::ReadDir { gfid: parent, cookie: 0, bytes: 1 << 20, plus: false }, Expect::Names),
        }
    }

    fn send(&mut self, w: &mut World, me: usize) {
        let Some(c) = &mut self.current else { return };
        self.requests += 1;
        let request = ClientRequest {
            conn: me as u64,
            request: self.requests,
            session: self.session,
            op: c.op,
            acked: c.op - 1,
            retry: c.sent,
            epoch: self.config.as_ref().map_or(1, |c| c.epoch),
            fence: self.fence,
            fop: c.fop.clone(),
            payload: c.payload.clone(),
        };
        c.sent = true;
        c.at = w.now;
        w.request(self.target, request);
        w.wake(me, ms(400));
    }

    pub fn on_wake(&mut self, w: &mut World, me: usize) {
        self.wakes += 1;
        match &self.current {
            None => self.begin(w, me),
            Some(c) if w.now.since(c.at) >= ms(400) => {
                self.target = self.target % self.bricks + 1;
                self.send(w, me);
            }
            Some(_) => {}
        }
    }

    pub fn on_answer(&mut self, w: &mut World, me: usize, request: u64, answer: Answer, payload: Bytes) {
        self.abandoned += u32::from(matches!(answer, Err(ReplicaError::Abandoned { .. })));
        if self.current.is_none() || request != self.requests {
            return;
        }
        match &answer {
            Err(ReplicaError::WrongEpoch { config } | ReplicaError::NotPrimary { config } | ReplicaError::Abandoned { config }) => {
                let newer = self.config.as_ref().is_none_or(|c| c.epoch <= config.epoch);
                if newer {
                    self.target = config.primary;
                    self.config = Some(config.clone());
                }
                if let Some(c) = &mut self.current {
                    c.at = w.now;
                }
                // At once would be a busy loop between two bricks that know less than the store.
                self.requests += 1;
                w.wake(me, ms(410));
                if newer {
                    self.send(w, me);
                }
                return;
            }
            Err(ReplicaError::Busy | ReplicaError::NoLease) => return,
            Err(ReplicaError::Forgotten) => panic!("client {me}: forgotten: {:?}", self.current.as_ref().map(|c| &c.fop)),
            Ok(_) | Err(ReplicaError::Errno(_)) => {}
        }
        let Some(c) = self.current.take() else { return };
        w.note(format!("client {me} op {} {:?} -> {answer:?}", c.op, c.fop));
        // A session's first ops after the table was lost, as at the very start, are in doubt when they are retried.
        let doubtful = (!w.tables_lost.is_empty() || c.op <= 65) && matches!(c.expect, Expect::Err(Errno::ENOENT)) && answer.is_ok();
        if !doubtful {
            self.check(me, &c, &answer, &payload);
        }
        if let Some(span) = c.span {
            let span = &mut self.history[span];
            span.end = Some(w.now);
            if let Action::Read(v) = &mut span.action {
                *v = if payload.len() == 8 { u64::from_be_bytes(payload[..].try_into().unwrap()) } else { 0 };
            }
        }
        if matches!(c.expect, Expect::Any) {
            self.results.push(answer);
        }
        self.done += 1;
        let pause = w.rng.random_range(100..20_000);
        w.wake(me, std::time::Duration::from_micros(pause));
    }

    fn check(&self, me: usize, c: &Current, answer: &Answer, payload: &Bytes) {
        let good = match &c.expect {
            Expect::Any => true,
            Expect::Ok => answer.is_ok(),
            Expect::Err(e) => *answer == Err(ReplicaError::Errno(*e)),
            Expect::Register => answer.is_ok() && (payload.is_empty() || payload.len() == 8),
            Expect::Names => match answer {
                Ok(Reply::Entries { entries, .. }) => {
                    let found: BTreeMap<String, Gfid> =
                        entries.iter().map(|e| (String::from_utf8_lossy(&e.name).into_owned(), e.gfid)).collect();
                    found == self.names
                }
                _ => false,
            },
        };
        assert!(good, "client {me}: op {} {:?} gave {answer:?} ({} bytes), expected {:?}; names {:?}", c.op, c.fop, payload.len(), c.expect, self.names);
    }
}

pub fn create(parent: Gfid, name: &str, gfid: Gfid) -> Fop {
    Fop::Create { parent, name: name.to_owned().into(), gfid, mode: 0o644, uid: 0, gid: 0, open: false }
}
