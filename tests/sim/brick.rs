//! A server's brick and the keeper beside it: what src/node/bricks.rs, clients.rs and keeper.rs do.

use super::net::{Attempt, ConnId, End, Packet, Proc};
use super::node::{Ask, Link, Told, brick_id, brick_node};
use super::world::{BRICKS, Event, World, note};
use brickraft::node::cluster::{Change, Expect, transaction};
use brickraft::node::keeper::{CONTROL, LEASE, RENEW};
use brickraft::records::{BrickRecord, ClusterView, group_key};
use brickraft::wire::{ClientMessage, ServerMessage};
use brickraft_fs::fop::TimeSpec;
use brickraft_fs::replica::{
    ClientRequest, ConfigProposal, GroupConfig, PeerMsg, ReplicaCore, ReplicaError, ReplicaEvent, ReplicaOutput, ReplicaTiming,
};
use brickraft_fs::store::BrickStore;
use bytes::Bytes;
use rand::Rng;
use std::collections::BTreeMap;
use std::time::Duration;

/// The one group.
pub fn the_group() -> String {
    group_key("sim", 0)
}

/// As in a server, but for what would not come about within a run's half minute.
fn timing() -> ReplicaTiming {
    ReplicaTiming {
        stuck_timeout: Duration::from_secs(10),
        checkpoint: Duration::from_secs(4),
        grace: Duration::from_secs(3),
        ..ReplicaTiming::default()
    }
}

fn head(value: &impl serde::Serialize) -> Bytes {
    Bytes::from(postcard::to_allocvec(value).expect("plain data"))
}

impl World {
    fn wall(&self, i: usize) -> TimeSpec {
        let us = 1_700_000_000_000_000 + i64::try_from(self.now.0).expect("in range") + self.nodes[i].skew_us;
        TimeSpec { sec: us / 1_000_000, nsec: u32::try_from(us % 1_000_000 * 1000).expect("in range") }
    }

    /// Opens the brick where the records give it to this server, and tells it what they say.
    pub(super) fn reconcile(&mut self, i: usize) {
        let Some((config, _)) = self.nodes[i].view.groups.get(&the_group()).cloned() else { return };
        let Some(brick) = &self.nodes[i].brick else { return };
        if brick.core.is_none() {
            if brick.down || !self.nodes[i].up {
                return;
            }
            self.open_brick(i);
        }
        self.brick_handle(i, ReplicaEvent::Config(config));
    }

    fn open_brick(&mut self, i: usize) {
        let (life, seed, now, fired) = (self.life(), self.rng.random(), self.local(i), self.now);
        let lease = self.nodes[i].lease;
        let Some(brick) = &mut self.nodes[i].brick else { return };
        let Some(mut store) = brick.store.take() else { return };
        store.set_stalled(true);
        let core = ReplicaCore::with_timing(brick.id, store, now, seed, timing()).expect("the brick opens");
        (brick.life, brick.fired, brick.ready_posted) = (life, fired, false);
        let incarnation = core.incarnation();
        brick.core = Some(core);
        brick.links = (0..BRICKS).filter(|p| *p != i).map(|p| (p, Link::default())).collect();
        note!(self, "brick {i} opens as {incarnation:x}");
        for peer in (0..BRICKS).filter(|p| *p != i) {
            self.post(self.now, Event::LinkRetry { who: End { who: Proc::Bricks(i), life }, peer });
        }
        self.brick_handle(i, ReplicaEvent::Lease(lease));
    }

    pub fn kill_brick(&mut self, i: usize, power: bool) {
        let Some(brick) = &mut self.nodes[i].brick else { return };
        brick.power_lost |= power;
        let links: Vec<ConnId> = std::mem::take(&mut brick.links).into_values().filter_map(|l| l.up).collect();
        let store = brick.core.take().map(ReplicaCore::into_store).or_else(|| brick.store.take());
        let Some(mut store) = store else { return };
        if power {
            store.power_cut(&mut self.rng);
        } else {
            store.process_killed(&mut self.rng);
        }
        let seed = self.rng.random();
        store.set_jitter(Some(seed));
        let Some(brick) = &mut self.nodes[i].brick else { return };
        brick.store = Some(store);
        note!(self, "brick {i} is gone");
        for conn in links {
            self.break_conn(conn, Duration::from_micros(100));
        }
    }

    pub(super) fn brick_timer(&mut self, i: usize) {
        if let Some(brick) = &mut self.nodes[i].brick {
            brick.fired = self.now;
        }
        self.brick_handle(i, ReplicaEvent::Timer);
    }

    pub(super) fn store_ready(&mut self, i: usize, life: u64) {
        let Some(brick) = self.nodes[i].brick.as_mut().filter(|b| b.life == life) else { return };
        brick.ready_posted = false;
        if let Some(core) = &mut brick.core {
            core.store().set_stalled(false);
            self.brick_handle(i, ReplicaEvent::StoreReady);
        }
    }

    pub(super) fn brick_handle(&mut self, i: usize, event: ReplicaEvent) {
        let (now, wall) = (self.local(i), self.wall(i));
        let Some(brick) = &mut self.nodes[i].brick else { return };
        let (id, life) = (brick.id, brick.life);
        let Some(core) = &mut brick.core else { return };
        let before = core.role();
        core.handle(now, wall, event);
        core.store().set_stalled(true);
        let pending = core.store().pending() > 0;
        let mut outputs = Vec::new();
        while let Some(output) = core.poll_output() {
            outputs.push(output);
        }
        let after = core.role();
        let ready = pending && !brick.ready_posted;
        brick.ready_posted |= ready;
        if before != after {
            note!(self, "brick {i}: {before:?} -> {after:?}");
        }
        if ready {
            let us = if self.nodes[i].slow { self.rng.random_range(2_000..200_000) } else { self.rng.random_range(20..1_500) };
            self.post_in(Duration::from_micros(us), Event::StoreReady { node: i, life });
        }
        for output in outputs {
            match output {
                ReplicaOutput::Reply { conn, request, result, payload } => {
                    self.send(conn, 0, Packet::Answer { request, head: head(&result), payload });
                }
                ReplicaOutput::ToPeer { to, msg, payload } => {
                    let who = End { who: Proc::Bricks(i), life };
                    self.link_send(who, brick_node(to), Packet::Brick { head: head(&msg), payload });
                }
                ReplicaOutput::Propose(proposal) => {
                    let crossing = self.crossing();
                    self.tell_bricks(i, Told::Propose { brick: life, proposal }, crossing);
                }
                ReplicaOutput::Admin { .. } | ReplicaOutput::Left { .. } => {}
                ReplicaOutput::Recreate => panic!("brick {id:x} finds its directory gone"),
                ReplicaOutput::Fatal(why) => panic!("brick {id:x} cannot go on: {why}"),
            }
        }
    }

    pub(super) fn brick_link(&mut self, i: usize, peer: usize, outcome: Attempt) {
        match outcome {
            Attempt::Open(_) => self.brick_handle(i, ReplicaEvent::PeerUp(brick_id(peer))),
            Attempt::Refused => self.peer_dead(i, brick_id(peer)),
            Attempt::TimedOut => {}
        }
    }

    pub(super) fn brick_link_down(&mut self, i: usize, peer: usize) {
        self.brick_handle(i, ReplicaEvent::PeerDown(brick_id(peer)));
    }

    /// As `Bricks::peer_dead`.
    fn peer_dead(&mut self, i: usize, peer: u64) {
        let Some(core) = self.nodes[i].brick.as_ref().and_then(|b| b.core.as_ref()) else { return };
        let (incarnation, own) = (core.peer_incarnation(peer), core.incarnation());
        self.brick_handle(i, ReplicaEvent::PeerDead(peer));
        let node = &self.nodes[i];
        let Some((config, _)) = node.view.groups.get(&the_group()) else { return };
        let life = node.brick.as_ref().map_or(0, |b| b.life);
        let held = incarnation.is_some_and(|inc| config.holds(peer, inc));
        if held
            && config.holds(brick_id(i), own)
            && let Some(new) = config.without(&[peer])
        {
            let proposal = ConfigProposal { expect_epoch: config.epoch, new };
            let crossing = self.crossing();
            self.tell_bricks(i, Told::Propose { brick: life, proposal }, crossing);
        }
    }

    pub(super) fn brick_packet(&mut self, i: usize, conn: ConnId, bytes: &Bytes, payload: Bytes) {
        if self.nodes[i].brick.as_ref().is_none_or(|b| b.core.is_none()) {
            // It does not run here: the connection is closed.
            return self.break_conn(conn, Duration::from_micros(100));
        }
        let from = brick_id(1 - i);
        let msg: PeerMsg = postcard::from_bytes(bytes).expect("decode");
        self.brick_handle(i, ReplicaEvent::Peer { from, msg, payload });
    }

    pub(super) fn op_packet(&mut self, i: usize, conn: ConnId, request: u64, bytes: &Bytes, payload: Bytes) {
        let (session, message): (u64, ClientMessage) = postcard::from_bytes(bytes).expect("decode");
        let ClientMessage::Op { op, acked, retry, epoch, fence, fop } = message else { return };
        if self.nodes[i].brick.as_ref().is_none_or(|b| b.core.is_none()) {
            let refusal: ServerMessage = Err(ReplicaError::Busy);
            return self.send(conn, 0, Packet::Answer { request, head: head(&refusal), payload: Bytes::new() });
        }
        let r = ClientRequest { conn, request, session, op, acked, retry, epoch, fence, fop, payload };
        self.brick_handle(i, ReplicaEvent::Client(r));
    }

    pub(super) fn view_packet(&mut self, i: usize, conn: ConnId) {
        let config = self.nodes[i].view.groups.get(&the_group()).map_or_else(GroupConfig::default, |(c, _)| c.clone());
        self.send(conn, 0, Packet::View(head(&config)));
    }

    pub(super) fn bricks_told(&mut self, i: usize, life: u64, told: Told) {
        if !self.nodes[i].up || self.nodes[i].life != life {
            return;
        }
        match told {
            Told::View(changes, anew) => self.take_view(i, changes, anew),
            Told::RenewTick(n) => self.renew(i, n),
            Told::Renewed(sent) => {
                if let Some(sent) = sent {
                    let lease = sent.after(LEASE);
                    if self.local(i).since(sent) < LEASE {
                        self.nodes[i].lease = lease;
                        self.brick_handle(i, ReplicaEvent::Lease(lease));
                    }
                }
                self.nodes[i].renew.1 = false;
            }
            Told::ControlTick => {
                let crossing = self.crossing();
                self.post_in(crossing, Event::MemberAsk { node: i, ask: Ask::Control { life } });
                self.tell_bricks(i, Told::ControlTick, CONTROL);
            }
            Told::Propose { brick, proposal } => self.commit(i, life, brick, &proposal),
            Told::Proposed { brick, expect_epoch, committed } => {
                if brick != 0 && self.nodes[i].brick.as_ref().is_some_and(|b| b.life == brick) {
                    self.brick_handle(i, ReplicaEvent::ProposalDone { expect_epoch, committed });
                }
            }
        }
    }

    /// One question at a time, every [`RENEW`]; one that has no answer within a lease is given up.
    fn renew(&mut self, i: usize, n: u64) {
        let sent = self.local(i);
        let (waiting, asked) = (self.nodes[i].renew.1, self.nodes[i].renew.0);
        if !waiting || n.saturating_sub(asked) * 300 >= 1000 {
            self.nodes[i].renew = (n, true);
            let (crossing, life) = (self.crossing(), self.nodes[i].life);
            self.post_in(crossing, Event::MemberAsk { node: i, ask: Ask::Renew { life, sent } });
        }
        self.tell_bricks(i, Told::RenewTick(n + 1), RENEW);
    }

    fn take_view(&mut self, i: usize, changes: Vec<(Bytes, Option<Bytes>, u64)>, anew: bool) {
        if anew {
            self.nodes[i].view = ClusterView::default();
        }
        let bricks: BTreeMap<_, _> = (0..BRICKS).map(|b| (brick_id(b), self.brick_record(b))).collect();
        let view = &mut self.nodes[i].view;
        view.bricks = bricks;
        for (key, value, revision) in changes {
            view.apply(&key, value.as_deref(), revision);
        }
        if view.groups.is_empty() && anew && i == 0 {
            // `volume create`, which somebody repeats until it is done.
            let ids: Vec<_> = (0..BRICKS).map(brick_id).collect();
            let new = GroupConfig::initial(&ids, ids.iter().map(|&b| (b, 0)).collect());
            self.create_group(i, &new);
        }
        self.reconcile(i);
    }

    fn brick_record(&self, b: usize) -> BrickRecord {
        BrickRecord {
            id: brick_id(b),
            volume: "sim".into(),
            group: 0,
            node: self.nodes[b].id,
            host: format!("host{b}"),
            path: "/brick".into(),
            on_root: true,
        }
    }

    fn create_group(&mut self, i: usize, new: &GroupConfig) {
        let command = transaction(&[Expect::Absent(the_group())], vec![Change::put(the_group(), new)]);
        let life = self.nodes[i].life;
        self.post_in(Duration::from_millis(1), Event::MemberAsk { node: i, ask: Ask::Commit { life, brick: 0, expect_epoch: 0, command } });
    }

    /// As `Bricks::commit`.
    fn commit(&mut self, i: usize, life: u64, brick: u64, proposal: &ConfigProposal) {
        let expect_epoch = proposal.expect_epoch;
        let known = self.nodes[i].view.groups.get(&the_group()).map(|(c, revision)| (c.epoch, *revision));
        let Some((epoch, revision)) = known.filter(|k| k.0 == expect_epoch) else {
            let committed = known.is_some_and(|k| k.0 > expect_epoch).then_some(false);
            return self.tell_bricks(i, Told::Proposed { brick, expect_epoch, committed }, Duration::from_micros(5));
        };
        note!(self, "node {i} proposes epoch {} primary {:x} in sync {:x?}", epoch + 1, proposal.new.primary, proposal.new.in_sync);
        let command = transaction(&[Expect::At(the_group(), revision)], vec![Change::put(the_group(), &proposal.new)]);
        let crossing = self.crossing();
        self.post_in(crossing, Event::MemberAsk { node: i, ask: Ask::Commit { life, brick, expect_epoch, command } });
    }
}
