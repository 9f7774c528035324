//! A server's member: the driver of `MemberCore`, and what the rest of the server asks of it.

use super::disk::Backend;
use super::net::{ConnId, End, Packet, Proc};
use super::node::{Ask, Asker, Link, Told};
use super::world::{Event, NODES, World, note};
use brickraft::node::{cluster, keeper};
use brickraft_engine::kv::types::{Event as KvEvent, Keyspace, RangeRequest};
use brickraft_engine::kv::{Store, WatchOutput, WatchRequest};
use brickraft_engine::member::job::StoreJob;
use brickraft_engine::member::{MemberConfig, MemberCore, MemberError, MemberEvent, MemberOutput, MemberReply, MemberRequest, PeerMessage};
use brickraft_engine::types::Revision;
use brickraft_engine::wal::WalConfig;
use bytes::Bytes;
use rand::Rng;
use std::sync::Arc;
use std::time::Duration;

fn config() -> MemberConfig {
    MemberConfig {
        cluster_id: 1,
        checkpoint_bytes: 8 << 10,
        checkpoint_interval: Duration::from_secs(3),
        tail_entries: 20,
        snapshot_window_max: 2,
        wal: WalConfig { segment_bytes: 64 << 10, log_id: 7, ..WalConfig::default() },
        ..MemberConfig::default()
    }
}

impl World {
    pub fn start_member(&mut self, i: usize) {
        let (life, seed, now) = (self.life(), self.rng.random(), self.local(i));
        let fired = self.now;
        let node = &mut self.nodes[i];
        let member = &mut node.member;
        member.life = life;
        member.disk.set_manual(false);
        let [tables, history] = member.backends.clone();
        let store = Store::with_backend(tables, history, 1 << 20).expect("the store opens after whatever happened");
        let config = MemberConfig { id: node.id, ..config() };
        let core = MemberCore::open(config, member.start.clone(), member.disk.open(), Arc::new(store), now, seed);
        member.disk.set_manual(true);
        member.core = Some(core.expect("the member opens after whatever happened"));
        member.asks.clear();
        member.fired = fired;
        (member.watch, member.disk_busy, member.job) = (None, false, None);
        member.links = (0..NODES).filter(|p| *p != i).map(|p| (p, Link::default())).collect();
        for peer in (0..NODES).filter(|p| *p != i) {
            self.post(self.now, Event::LinkRetry { who: End { who: Proc::Member(i), life }, peer });
        }
        self.settle_member(i);
    }

    pub fn kill_member(&mut self, i: usize, power: bool) {
        if self.nodes[i].member.core.is_none() {
            return;
        }
        note!(self, "member {i} is gone");
        let seed = self.rng.random();
        let member = &mut self.nodes[i].member;
        // The old store must not write to the disk that the next one will open.
        let next = |backend: &Backend| if power { backend.after_power_cut(&mut self.rng) } else { backend.taken_over() };
        member.backends = member.backends.each_ref().map(next);
        member.core = None;
        if power {
            member.disk.power_cut(seed);
        }
        member.links.clear();
        for asker in std::mem::take(&mut member.asks).into_values() {
            if let Asker::Commit { life, brick, expect_epoch } = asker
                && life == self.nodes[i].life
            {
                self.tell_bricks(i, Told::Proposed { brick, expect_epoch, committed: None }, Duration::from_millis(1));
            }
        }
        self.break_all(Proc::Member(i), power);
    }

    fn member_handle(&mut self, i: usize, event: MemberEvent) {
        let now = self.local(i);
        if let Some(core) = &mut self.nodes[i].member.core {
            core.handle(now, event);
            self.settle_member(i);
        }
    }

    fn lives(&self, i: usize, life: u64) -> bool {
        self.nodes[i].member.core.is_some() && self.nodes[i].member.life == life
    }

    pub(super) fn member_timer(&mut self, i: usize) {
        self.nodes[i].member.fired = self.now;
        self.member_handle(i, MemberEvent::Timer);
    }

    pub(super) fn member_unreachable(&mut self, i: usize, life: u64, peer: usize) {
        if self.lives(i, life) {
            let peer = self.nodes[peer].id;
            self.member_handle(i, MemberEvent::PeerUnreachable(peer));
        }
    }

    pub(super) fn disk_done(&mut self, i: usize, life: u64) {
        if self.lives(i, life) {
            let member = &mut self.nodes[i].member;
            member.disk_busy = false;
            let flying = member.disk.in_flight().max(1);
            member.disk.complete(self.rng.random_range(1..=flying));
            self.member_handle(i, MemberEvent::IoReady);
        }
    }

    pub(super) fn job_done(&mut self, i: usize, life: u64) {
        if !self.lives(i, life) {
            return;
        }
        let member = &mut self.nodes[i].member;
        let (Some(job), Some(core)) = (member.job.take(), &member.core) else { return };
        let done = job.run(&core.store().clone(), &|_, _| Duration::ZERO);
        self.member_handle(i, MemberEvent::JobDone(done));
    }

    pub(super) fn member_packet(&mut self, i: usize, conn: ConnId, bytes: &Bytes) {
        let Some(from) = self.net.conns.get(&conn).map(|c| self.host(c.ends[0].who)) else { return };
        let msg = PeerMessage::decode(bytes).expect("decode");
        let from = self.nodes[from].id;
        self.member_handle(i, MemberEvent::Peer { from, msg });
    }

    /// A request of this server's own, or of a client.
    pub fn member_request(&mut self, i: usize, req: MemberRequest, asker: Asker) {
        let member = &mut self.nodes[i].member;
        let id = member.next_ask;
        member.next_ask += 1;
        member.asks.insert(id, asker);
        self.member_handle(i, MemberEvent::Request { id, req });
    }

    pub(super) fn member_ask(&mut self, i: usize, ask: Ask) {
        let runs = self.nodes[i].member.core.is_some();
        match ask {
            Ask::Renew { life, sent } if runs && life == self.nodes[i].life => {
                let node = self.nodes[i].id;
                self.member_request(i, MemberRequest::NodeAlive { node }, Asker::Renew { life, sent });
            }
            Ask::Control { life } if runs && life == self.nodes[i].life => {
                self.member_request(i, MemberRequest::NodeLeases, Asker::Control { life });
            }
            Ask::Commit { life, brick, expect_epoch, command } if life == self.nodes[i].life => {
                if runs {
                    self.member_request(i, MemberRequest::Propose(command), Asker::Commit { life, brick, expect_epoch });
                } else {
                    self.tell_bricks(i, Told::Proposed { brick, expect_epoch, committed: None }, Duration::from_millis(1));
                }
            }
            _ => {}
        }
    }

    fn settle_member(&mut self, i: usize) {
        let now = self.local(i);
        let Some(core) = &mut self.nodes[i].member.core else { return };
        core.advance(now);
        let mut replies = Vec::new();
        while let Some(output) = self.nodes[i].member.core.as_mut().and_then(MemberCore::poll_output) {
            match output {
                MemberOutput::Send { to, msg } => self.member_send(i, to, &msg),
                MemberOutput::Reply { id, result } => replies.push((id, result)),
                MemberOutput::Job(job) => self.member_job(i, job),
                MemberOutput::RoleChanged(change) => note!(self, "member {i}: {change:?}"),
                MemberOutput::MembershipChanged(_) => {}
                MemberOutput::Stopped => panic!("member {i} stopped by itself"),
                MemberOutput::Fatal(cause) => panic!("member {i} cannot go on: {cause}"),
            }
        }
        self.follow(i);
        let member = &mut self.nodes[i].member;
        if !member.disk_busy && member.disk.in_flight() > 0 {
            member.disk_busy = true;
            let life = member.life;
            let us = if self.nodes[i].slow { self.rng.random_range(5_000..300_000) } else { self.rng.random_range(40..1_500) };
            self.post_in(Duration::from_micros(us), Event::DiskDone { node: i, life });
        }
        for (id, result) in replies {
            self.member_reply(i, id, result);
        }
    }

    fn member_send(&mut self, i: usize, to: brickraft_engine::types::NodeId, msg: &PeerMessage) {
        let Some(peer) = self.nodes.iter().position(|n| n.id == to) else { return };
        let life = self.nodes[i].member.life;
        let bytes = msg.encode().expect("encode");
        if !self.link_send(End { who: Proc::Member(i), life }, peer, Packet::Member(bytes)) {
            self.post_in(Duration::from_micros(50), Event::Unreachable { node: i, life, peer });
        }
    }

    fn member_job(&mut self, i: usize, job: StoreJob) {
        let member = &mut self.nodes[i].member;
        assert!(member.job.is_none(), "one job at a time");
        member.job = Some(job);
        let life = member.life;
        let ms = self.rng.random_range(1..if self.nodes[i].slow { 2_000 } else { 100 });
        self.post_in(Duration::from_millis(ms), Event::JobDone { node: i, life });
    }

    fn member_reply(&mut self, i: usize, id: u64, result: Result<MemberReply, MemberError>) {
        let Some(asker) = self.nodes[i].member.asks.remove(&id) else { panic!("member {i} answered request {id} twice") };
        let crossing = self.crossing();
        match asker {
            Asker::Renew { life, sent } if life == self.nodes[i].life => {
                self.tell_bricks(i, Told::Renewed(result.ok().map(|_| sent)), crossing);
            }
            Asker::Control { life } if life == self.nodes[i].life => {
                if let Ok(MemberReply::NodeLeases(leases)) = result {
                    let now = leases.now;
                    let node = &mut self.nodes[i];
                    let input = keeper::controller_input(&node.view, Some(leases));
                    let proposals = node.controller.poll(now, &input);
                    for (_, proposal) in proposals {
                        note!(self, "controller at {i}: {:?} {:?}", proposal.new.epoch, proposal.new.in_sync);
                        self.tell_bricks(i, Told::Propose { brick: 0, proposal }, crossing);
                    }
                }
            }
            Asker::Commit { life, brick, expect_epoch } if life == self.nodes[i].life => {
                let committed = match result {
                    Ok(MemberReply::Applied(applied)) => cluster::succeeded(applied).ok(),
                    _ => None,
                };
                self.tell_bricks(i, Told::Proposed { brick, expect_epoch, committed }, crossing);
            }
            Asker::KvPut { conn, request } => self.kv_put_done(conn, request, result),
            Asker::KvGet { conn, request, key } => self.kv_read_ready(i, conn, request, &key, result),
            _ => {}
        }
    }

    /// Tells the bricks' thread what the records say, as `node::cluster::follow` does.
    fn follow(&mut self, i: usize) {
        let mut changes: Vec<KvEvent> = Vec::new();
        loop {
            let Some(core) = &mut self.nodes[i].member.core else { return };
            let Some(id) = core.watch_ready() else { break };
            let mut compacted = false;
            while let Some(output) = core.watch_poll(id, 64) {
                match output {
                    WatchOutput::Events { events, .. } => changes.extend(events),
                    WatchOutput::Progress { .. } => {}
                    WatchOutput::Compacted { .. } => compacted = true,
                }
            }
            if compacted {
                self.nodes[i].member.watch = None;
            }
        }
        let mut told: Vec<(Bytes, Option<Bytes>, u64)> =
            changes.iter().map(|e| (e.kv.key.clone(), (!e.delete).then(|| e.kv.value.clone()), e.kv.mod_revision.0)).collect();
        let member = &mut self.nodes[i].member;
        let anew = member.watch.is_none();
        if let (true, Some(core)) = (anew, &mut member.core) {
            let key = Bytes::from_static(b"\0");
            let range = RangeRequest { key: key.clone(), range_end: key.clone(), ..RangeRequest::default() };
            let (found, revision) = core.store().range(Keyspace::System, &range).expect("read the records");
            told = found.kvs.iter().map(|kv| (kv.key.clone(), Some(kv.value.clone()), kv.mod_revision.0)).collect();
            let request =
                WatchRequest { key: key.clone(), range_end: key, start_revision: Revision(revision.0 + 1), ..WatchRequest::default() };
            member.watch = Some(core.watch_create(Keyspace::System, request));
        }
        if told.is_empty() && !anew {
            return;
        }
        self.observe_configs(i);
        let crossing = self.crossing();
        let at = self.now.after(crossing).max(self.nodes[i].news);
        self.nodes[i].news = at;
        self.tell_bricks(i, Told::View(told, anew), at.since(self.now));
    }
}
