//! Epochs, hellos and proposals: who is in the group, as this brick learns it and wants it to be.
//!
//! What a brick does about its own place, by what it finds:
//!
//! | I am in `in_sync` | under my incarnation | others in sync | then |
//! |---|---|---|---|
//! | no | - | - | join ([`super::join`]) |
//! | yes | yes | - | follow, or be primary |
//! | yes | no, and my disk is not the one that was in sync (an old copy put back, an empty disk) | some | take myself out |
//! | yes | no, and so is my disk | none | nothing: better no answer than a wrong one |
//! | yes | no | none | I am the last: take the group under my new incarnation |
//! | yes | no | one lives, and is in sync by its own word | my old process is dead: take myself out |
//! | yes | no | all restarted too | the most recent takes the group alone: of those that were last in sync under the incarnation which the group knows (not from an old copy put back), the one with the greatest checkpoint mark, then the most dirty buckets, then the primary, then the lowest id |
//! | yes | no | not all heard | wait; the controller removes bricks of dead nodes |
//!
//! In the last two rows every brick has all that was synced. What was acknowledged but not synced survives the
//! death of processes; after a power cut of all bricks it may be lost, as on any file system.

use super::types::{BrickId, ConfigProposal, GroupConfig, Identity, PeerMsg, ReplicaOutput};
use super::{DataTask, Disk, ReplicaCore, Role};
use crate::store::DataOp;
use brickraft_engine::types::Time;
use bytes::Bytes;

impl<S: Disk> ReplicaCore<S> {
    pub(super) fn identity(&self) -> Identity {
        Identity {
            incarnation: self.incarnation,
            epoch: self.group.epoch,
            synced_epoch: self.meta.synced_epoch,
            in_sync: self.role != Role::Outsider,
            held: self.lineage(),
            dirty: u32::try_from(self.store.dirty().len()).unwrap_or(u32::MAX),
        }
    }

    /// The incarnation under which this disk was last in sync, as far as it can know: the group's, if it is the one
    /// that was offered last (the process may have died before it heard that it was taken).
    fn lineage(&self) -> u64 {
        let recorded = self.group.incarnations.get(&self.brick).copied().unwrap_or(0);
        if recorded == self.meta.incarnation { recorded } else { self.meta.held }
    }

    /// Before the group is told to take this brick in under its incarnation: the disk must know it. False: it cannot.
    pub(super) fn offer(&mut self) -> bool {
        if self.meta.incarnation == self.incarnation {
            return true;
        }
        let meta = crate::store::BrickMeta { held: self.lineage(), incarnation: self.incarnation, ..self.meta };
        if let Err(e) = self.store.set_meta(meta) {
            self.fatal(format!("cannot note the incarnation: {e}"));
            return false;
        }
        self.meta = meta;
        true
    }

    /// A committed configuration. The epoch is durable before anything is done in it.
    pub(super) fn on_config(&mut self, config: GroupConfig) {
        if config.epoch <= self.group.epoch {
            return;
        }
        if config.epoch < self.meta.epoch {
            // The store's answer is older than what this brick has acted in: wait for the present one.
            return;
        }
        let before = self.role;
        let holds = config.holds(self.brick, self.incarnation);
        let mut meta = self.meta;
        meta.epoch = config.epoch;
        if holds {
            (meta.held, meta.incarnation) = (self.incarnation, self.incarnation);
        } else if before != Role::Outsider {
            // A new life: nothing that was sent to the old one may be taken for the new.
            self.incarnation = super::next_incarnation(self.incarnation, &mut self.rng);
        }
        if meta != self.meta {
            if let Err(e) = self.store.set_meta(meta)
                && !self.wiped
            {
                return self.fatal(format!("cannot note epoch {}: {e}", config.epoch));
            }
            self.meta = meta;
        }
        let same_reign = self.group.primary == config.primary
            && self.group.incarnations.get(&config.primary) == config.incarnations.get(&config.primary);
        self.group = config;
        self.proposal = None;
        self.role = match (holds, self.group.primary == self.brick) {
            (false, _) => Role::Outsider,
            (true, true) => Role::Primary,
            (true, false) => Role::Secondary,
        };
        tracing::info!(brick = self.brick, epoch = self.group.epoch, role = ?self.role, in_sync = ?self.group.in_sync, "new epoch");
        self.change_role(before, same_reign);
        if self.role == Role::Primary {
            for brick in self.group.members.clone() {
                if brick != self.brick {
                    self.send(brick, PeerMsg::Config(self.group.clone()));
                }
            }
        }
    }

    fn change_role(&mut self, before: Role, same_reign: bool) {
        if before == Role::Primary && self.role != Role::Primary {
            self.abandon_primary();
        }
        match (before, self.role) {
            (Role::Primary, Role::Primary) => self.primary_in_new_epoch(),
            (_, Role::Primary) => {
                if before == Role::Outsider {
                    match self.o.ready_replies() {
                        // It joined and became primary before it heard of either.
                        Some(replies) => self.sessions.replace_table(replies),
                        // Restarted, and the last one: what clients were told is not known any more.
                        None => self.sessions.begin_lost(),
                    }
                }
                self.stop_following();
                self.p = self.new_primary();
                self.begin_take_over();
            }
            (Role::Secondary, Role::Secondary) if same_reign => {}
            (Role::Outsider, Role::Secondary) => self.joined(),
            (_, Role::Secondary) => self.stop_following(),
            (Role::Outsider, Role::Outsider) => {}
            (_, Role::Outsider) => {
                self.stop_following();
                self.s.recent.clear();
                self.sessions = super::sessions::Sessions::default();
                self.new_attempt();
            }
        }
    }

    fn primary_in_new_epoch(&mut self) {
        let in_sync = self.group.in_sync.clone();
        self.p.suspects.retain(|b, _| in_sync.contains(b));
        self.p.failed = None;
        self.join_in_new_epoch();
        self.asks_in_new_epoch();
        self.take_over_in_new_epoch();
        self.p.checkpoint = None;
        self.p.scrub = None;
        self.p.compared = None;
        self.flights_in_new_epoch();
    }

    pub(super) fn on_peer_up(&mut self, brick: BrickId) {
        let now = self.now;
        let peer = self.peers.entry(brick).or_default();
        (peer.down, peer.dead, peer.heard) = (false, false, now);
        self.send(brick, PeerMsg::Hello(self.identity()));
        if self.role == Role::Primary {
            self.resend_all(Some(brick));
        }
    }

    pub(super) fn on_peer_down(&mut self, brick: BrickId, dead: bool) {
        let peer = self.peers.entry(brick).or_default();
        peer.down = true;
        peer.dead = dead;
        if dead && self.group.in_sync.contains(&brick) && self.role == Role::Primary {
            self.p.suspects.insert(brick, true);
        }
        if self.role == Role::Primary {
            self.join_lost(brick);
        }
    }

    fn on_hello(&mut self, from: BrickId, identity: Identity) {
        let known = self.peers.get(&from).and_then(|p| p.hello);
        self.peers.entry(from).or_default().hello = Some((identity, self.now));
        if identity.epoch < self.group.epoch && self.group.epoch != 0 {
            self.send(from, PeerMsg::Config(self.group.clone()));
        } else if identity.epoch > self.group.epoch {
            self.send(from, PeerMsg::NeedConfig { epoch: self.group.epoch });
        }
        // Tell one that asks who is in sync; those who are settled do not chat.
        let news = known.is_none_or(|(k, _)| k != identity);
        if news || (!identity.in_sync && self.role != Role::Outsider) {
            self.send(from, PeerMsg::Hello(self.identity()));
        }
    }

    pub(super) fn on_peer(&mut self, from: BrickId, msg: PeerMsg, payload: Bytes) {
        if from == self.brick || (self.group.epoch != 0 && !self.group.members.contains(&from)) {
            return;
        }
        let now = self.now;
        let peer = self.peers.entry(from).or_default();
        (peer.heard, peer.down, peer.dead) = (now, false, false);
        if self.role == Role::Primary
            && let Some(false) = self.p.suspects.get(&from)
        {
            self.p.suspects.remove(&from);
        }
        match msg {
            PeerMsg::Hello(identity) => return self.on_hello(from, identity),
            PeerMsg::Config(config) => return self.on_config(config),
            PeerMsg::NeedConfig { epoch } => {
                if epoch < self.group.epoch {
                    self.send(from, PeerMsg::Config(self.group.clone()));
                }
                return;
            }
            _ => {}
        }
        let Some(epoch) = epoch_of(&msg) else {
            if let PeerMsg::Join { identity, attempt } = msg {
                self.on_join(from, identity, attempt, &payload);
            }
            return;
        };
        if epoch < self.group.epoch {
            return self.send(from, PeerMsg::Config(self.group.clone()));
        }
        if epoch > self.group.epoch {
            return self.send(from, PeerMsg::NeedConfig { epoch: self.group.epoch });
        }
        if self.role == Role::Primary {
            self.on_secondary_says(from, msg, &payload);
        } else if from == self.group.primary {
            self.on_primary_says(from, msg, payload);
        }
    }

    fn on_secondary_says(&mut self, from: BrickId, msg: PeerMsg, payload: &Bytes) {
        match msg {
            PeerMsg::Ack { seq, result, .. } => self.on_ack(from, seq, result),
            PeerMsg::QueryReply { id, result, .. } => self.on_query_reply(from, id, result),
            PeerMsg::HealReturn(tag) => self.on_heal_return(from, tag, payload),
            PeerMsg::JoinReadyDone { attempt, seq, .. } => self.on_join_ready_done(from, attempt, seq),
            PeerMsg::Recent { objects, .. } => self.on_recent(from, objects),
            PeerMsg::TookOverDone { .. } => self.on_took_over_done(from),
            PeerMsg::CheckpointSynced { mark, .. } => self.on_checkpoint_synced(from, mark),
            _ => {}
        }
    }

    fn on_primary_says(&mut self, from: BrickId, msg: PeerMsg, payload: Bytes) {
        if let PeerMsg::Heal(tag) = msg {
            return self.on_heal(from, tag, &payload);
        }
        if let PeerMsg::JoinReady { attempt, seq, orphans, replies, .. } = msg {
            return self.on_join_ready(attempt, seq, &orphans, replies);
        }
        if self.role != Role::Secondary {
            return;
        }
        match msg {
            PeerMsg::Op { epoch, seq, complete, heal_floor, session, op, acked, time, touches, rep } => {
                self.heals.over((epoch, heal_floor));
                self.on_op(super::secondary::Received { seq, session, op, acked, time, touches, rep, payload }, complete);
            }
            PeerMsg::Complete { complete, ping, .. } => {
                if self.s.next.is_some() {
                    self.on_complete(complete);
                }
                if ping {
                    self.send(from, PeerMsg::Pong { epoch: self.group.epoch });
                }
            }
            PeerMsg::Query { id, after, fop, .. } => self.on_query(from, id, after, fop),
            PeerMsg::TakeOver { .. } => {
                self.s.asked = true;
                self.send_recent();
            }
            PeerMsg::TookOver { seq, orphans, replies, .. } => self.on_took_over(seq, &orphans, replies),
            PeerMsg::Checkpoint { mark, .. } => self.on_checkpoint(mark),
            PeerMsg::CheckpointCommit { mark, .. } => self.on_checkpoint_commit(mark),
            _ => {}
        }
    }

    /// False when somebody emptied the brick's directory; the brick then leaves the group's in-sync set.
    pub(super) fn check_intact(&mut self) -> bool {
        if !self.wiped && !self.store.intact() {
            self.wiped = true;
            self.note_damage("the brick's directory is not ours any more: emptied, or replaced".to_owned());
            if self.role == Role::Outsider {
                self.out.push_back(ReplicaOutput::Recreate);
                self.dead = true;
            }
        }
        !self.wiped
    }

    pub(super) fn tick(&mut self) {
        self.ticked = self.now;
        if self.now.since(self.intact_at) >= self.timing.intact {
            self.intact_at = self.now;
            self.check_intact();
        }
        match self.role {
            Role::Primary => self.tick_primary(),
            Role::Secondary => {}
            Role::Outsider => self.tick_outsider(),
        }
    }

    /// The configuration that this brick wants next, if not the present one.
    fn wanted(&self) -> Option<GroupConfig> {
        if self.group.epoch == 0 {
            return None;
        }
        let me = [self.brick];
        match self.role {
            Role::Outsider => self.wanted_by_restarted(),
            Role::Secondary => {
                if self.leaving || self.wiped {
                    return self.group.without(&me);
                }
                // Its process is dead beyond doubt, so its lease is too.
                let dead = self.peers.get(&self.group.primary).is_some_and(|p| p.dead);
                dead.then(|| self.group.without(&[self.group.primary])).flatten().map(|c| GroupConfig { primary: self.brick, ..c })
            }
            Role::Primary => self.wanted_by_primary(),
        }
    }

    fn wanted_by_primary(&self) -> Option<GroupConfig> {
        let gone: Vec<_> = self.p.suspects.keys().copied().collect();
        if self.leaving || self.wiped {
            let live: Vec<_> = self.others().into_iter().filter(|b| !gone.contains(b)).collect();
            if let Some(&primary) = live.first() {
                return Some(GroupConfig { epoch: self.group.epoch + 1, primary, in_sync: live, ..self.group.clone() });
            }
        }
        if let Some(good) = &self.p.failed {
            let live: Vec<_> = good.iter().copied().filter(|b| self.group.in_sync.contains(b) && *b != self.brick).collect();
            if let Some(&primary) = live.first() {
                return Some(GroupConfig { epoch: self.group.epoch + 1, primary, in_sync: live, ..self.group.clone() });
            }
        }
        let gone: Vec<_> = gone.into_iter().filter(|&b| b != self.brick).collect();
        let base = self.group.without(&gone);
        self.wanted_by_join(base)
    }

    fn wanted_by_restarted(&self) -> Option<GroupConfig> {
        if !self.group.in_sync.contains(&self.brick) || self.wiped {
            return None;
        }
        let alone = || {
            let mut new = GroupConfig { epoch: self.group.epoch + 1, primary: self.brick, in_sync: vec![self.brick], ..self.group.clone() };
            // What an earlier process offered may still be on its way to the store. Only one offer can be known to the disk,
            // so the same is made again; once it is recorded, this process offers itself.
            let recorded = self.group.incarnations.get(&self.brick).copied().unwrap_or(0);
            let offered = self.meta.incarnation != self.meta.held && self.meta.incarnation != recorded;
            new.incarnations.insert(self.brick, if offered { self.meta.incarnation } else { self.incarnation });
            new
        };
        let went_on = |b: BrickId, i: &Identity| i.held == self.group.incarnations.get(&b).copied().unwrap_or(0);
        let others = self.others();
        if others.is_empty() {
            // Not with an old copy, and not with an empty disk: better no answer than a wrong one.
            return went_on(self.brick, &self.identity()).then(alone);
        }
        let fresh = |b: &BrickId| {
            let (identity, at) = self.peers.get(b).and_then(|p| p.hello)?;
            (self.now.since(at) < self.timing.hello * 4).then_some(identity)
        };
        if !went_on(self.brick, &self.identity()) {
            // An old copy put back, or an empty disk: whoever is right, it is another.
            let new = self.group.without(&[self.brick])?;
            return Some(new);
        }
        if let Some(live) = others.iter().find(|b| fresh(b).is_some_and(|i| i.in_sync && self.group.holds(**b, i.incarnation))) {
            let new = self.group.without(&[self.brick])?;
            return Some(if self.group.primary == self.brick { GroupConfig { primary: *live, ..new } } else { new });
        }
        let mut all: Vec<(BrickId, Identity)> = vec![(self.brick, self.identity())];
        for b in &others {
            all.push((*b, fresh(b).filter(|i| !i.in_sync)?));
        }
        all.retain(|(b, i)| went_on(*b, i));
        let best = all.iter().max_by_key(|(b, i)| (i.synced_epoch, i.dirty, *b == self.group.primary, std::cmp::Reverse(*b)))?;
        (best.0 == self.brick).then(alone)
    }

    pub(super) fn propose_if_due(&mut self) {
        let Some(new) = self.wanted() else { return };
        let recent = self.proposal.is_some_and(|(epoch, at)| epoch == self.group.epoch && self.now.since(at) < self.timing.propose_retry);
        if recent {
            return;
        }
        if self.role == Role::Outsider && new.incarnations.get(&self.brick) == Some(&self.incarnation) && !self.offer() {
            return;
        }
        self.proposal = Some((self.group.epoch, self.now));
        self.out.push_back(ReplicaOutput::Propose(ConfigProposal { expect_epoch: self.group.epoch, new }));
    }

    pub(super) fn on_proposal_done(&mut self, expect_epoch: u64, committed: Option<bool>) {
        // Success and failure both mean that a new configuration is on its way; an unknown outcome is tried again.
        if committed.is_none() && self.proposal.is_some_and(|(epoch, _)| epoch == expect_epoch) {
            self.proposal = Some((expect_epoch, self.now));
        }
    }

    /// `Leave`: once out of sync (or the last one, and synced), the brick may stop.
    pub(super) fn finish_leaving(&mut self) {
        if self.wiped && self.role == Role::Outsider && !self.dead {
            self.out.push_back(ReplicaOutput::Recreate);
            self.dead = true;
        }
        if !self.leaving {
            return;
        }
        if self.role == Role::Outsider {
            self.out.push_back(ReplicaOutput::Left { last: false });
            self.leaving = false;
        } else if self.others().is_empty() && !self.data.values().any(|t| *t == DataTask::LeaveSync) && self.p.flights.is_empty() {
            self.leaving = false;
            self.submit(DataTask::LeaveSync, DataOp::SyncAll);
        }
    }

    /// Hellos to those whose word this brick needs.
    pub(super) fn say_hello(&mut self, last: Time) -> bool {
        if self.now.since(last) < self.timing.hello {
            return false;
        }
        for brick in self.group.members.clone() {
            if brick != self.brick {
                self.send(brick, PeerMsg::Hello(self.identity()));
            }
        }
        true
    }
}

const fn epoch_of(msg: &PeerMsg) -> Option<u64> {
    match msg {
        PeerMsg::Op { epoch, .. }
        | PeerMsg::Ack { epoch, .. }
        | PeerMsg::Complete { epoch, .. }
        | PeerMsg::Pong { epoch }
        | PeerMsg::Query { epoch, .. }
        | PeerMsg::QueryReply { epoch, .. }
        | PeerMsg::JoinReady { epoch, .. }
        | PeerMsg::JoinReadyDone { epoch, .. }
        | PeerMsg::TakeOver { epoch }
        | PeerMsg::Recent { epoch, .. }
        | PeerMsg::TookOver { epoch, .. }
        | PeerMsg::TookOverDone { epoch }
        | PeerMsg::Checkpoint { epoch, .. }
        | PeerMsg::CheckpointSynced { epoch, .. }
        | PeerMsg::CheckpointCommit { epoch, .. } => Some(*epoch),
        PeerMsg::Heal(tag) | PeerMsg::HealReturn(tag) => Some(tag.epoch),
        PeerMsg::Hello(_) | PeerMsg::Config(_) | PeerMsg::NeedConfig { .. } | PeerMsg::Join { .. } => None,
    }
}
