//! The member's state machine and the order in which things happen in it.

use super::job::{StoreDone, StoreJob};
use super::leader::LeaderSide;
use super::origin::Origin;
use super::recovery::{self, OpenError, Start};
use super::snapshot::Transfers;
use super::stats::SharedStats;
use super::types::{MemberConfig, MemberError, MemberEvent, MemberOutput, MemberStatus, PeerMessage};
use crate::io::Io;
use crate::kv::types::Keyspace;
use crate::kv::{Lessor, MemberAttributes, Store, WatchConfig, WatchCounts, WatchHub, WatchId, WatchOutput, WatchRequest};
use crate::raft::{Membership, Output, Persist, RaftConfig, RaftCore, Role};
use crate::types::{Entry, GroupId, Index, NodeId, Term, Time};
use crate::wal::{LogBatch, Lsn, Wal, WalError};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The coordination store's Raft group.
pub const GROUP: GroupId = GroupId(1);
/// Rounds of work in one [`MemberCore::advance`], so that the driver sees its channels in between.
const ROUNDS_MAX: usize = 32;

/// One member: Raft, log and store.
///
/// The driver's duties: [`Self::handle`] any number of events, then [`Self::advance`], then
/// [`Self::poll_output`] until `None`, then wait for an event or [`Self::next_timeout`]. Events that are
/// handled before one `advance` share one log write.
pub struct MemberCore<I: Io> {
    pub(super) config: MemberConfig,
    pub(super) raft: RaftCore,
    pub(super) wal: Wal<I>,
    pub(super) store: Arc<Store>,
    pub(super) outputs: VecDeque<MemberOutput>,
    /// Log writes on their way, with Raft's number for each.
    persisting: VecDeque<(Lsn, u64, Time)>,
    /// A write that the log had no room for.
    held: Option<Persist>,
    pub(super) origin: Origin,
    pub(super) leader: LeaderSide,
    pub(super) lessor: Lessor,
    pub(super) hub: WatchHub,
    pub(super) transfers: Transfers,
    /// Committed entries that are not applied, and their size.
    pub(super) to_apply: VecDeque<Entry>,
    pub(super) to_apply_bytes: usize,
    pub(super) applied: Index,
    pub(super) applied_term: Term,
    /// The sizes of the entries that the log still has, up to `applied`.
    pub(super) sizes: VecDeque<u32>,
    /// The log's compaction point.
    pub(super) compacted: Index,
    pub(super) since_checkpoint: u64,
    pub(super) checkpoint_due: Time,
    /// The first entry of the own term was applied.
    pub(super) promote_now: bool,
    /// A store job is out.
    pub(super) job: bool,
    /// When the last checkpoint was begun.
    pub(super) checkpoint_since: Time,
    /// As of `applied`: as the log has it, and with what members told about themselves.
    pub(super) membership: Membership,
    pub(super) members: Membership,
    pub(super) attributes: BTreeMap<NodeId, MemberAttributes>,
    stopping: Option<Time>,
    /// Set once the member takes no more events, with the cause.
    pub(super) stopped: Option<String>,
    pub(super) again: bool,
}

impl<I: Io> MemberCore<I> {
    /// Recovers a member from its log and store, or makes a new one.
    ///
    /// # Errors
    /// When log or store are damaged, or do not belong together.
    pub fn open(config: MemberConfig, start: Start, io: I, store: Arc<Store>, now: Time, seed: u64) -> Result<Self, OpenError> {
        let opened = recovery::open(&config, start, io, &store)?;
        let mut rng = SmallRng::seed_from_u64(seed);
        let raft_config = RaftConfig {
            heartbeat: config.heartbeat,
            election_timeout: config.election_timeout,
            lease_reads: config.lease_reads,
            ..RaftConfig::new(config.id)
        };
        let sizes = opened.initial.entries.iter().take_while(|e| e.index <= opened.applied).map(size).collect();
        let compacted = opened.initial.snapshot.index;
        let raft = RaftCore::new(raft_config, opened.initial, now, rng.random())?;
        let mut core = Self {
            origin: Origin::new(rng.random(), now),
            leader: LeaderSide::default(),
            lessor: Lessor::new(),
            hub: WatchHub::new(WatchConfig::default(), &store),
            transfers: Transfers::new(rng.random()),
            raft,
            wal: opened.wal,
            outputs: VecDeque::new(),
            persisting: VecDeque::new(),
            held: None,
            to_apply: VecDeque::new(),
            to_apply_bytes: 0,
            applied: opened.applied,
            applied_term: opened.applied_term,
            sizes,
            compacted,
            since_checkpoint: 0,
            checkpoint_due: now.after(config.checkpoint_interval),
            promote_now: false,
            job: false,
            checkpoint_since: now,
            membership: opened.membership,
            members: Membership::default(),
            attributes: store.member_attributes()?,
            stopping: None,
            stopped: None,
            again: false,
            store,
            config,
        };
        if core.store.has_garbage() {
            core.since_checkpoint = 1;
            core.checkpoint_due = now;
        }
        core.refresh_members();
        Ok(core)
    }

    /// Takes an event in. Nothing leaves before [`Self::advance`].
    pub fn handle(&mut self, now: Time, event: MemberEvent) {
        if self.stopped.is_some() {
            if let MemberEvent::Request { id, .. } = event {
                self.reply(id, Err(MemberError::Stopped));
            }
            return;
        }
        match event {
            MemberEvent::Timer | MemberEvent::IoReady => {}
            MemberEvent::Peer { from, msg } => self.on_peer(now, from, msg),
            MemberEvent::Request { id, req } => self.on_request(now, id, req),
            MemberEvent::PeerUnreachable(peer) => {
                self.raft.report_unreachable(peer);
            }
            MemberEvent::JobDone(done) => {
                self.job = false;
                let result = match done {
                    StoreDone::Checkpoint { result, rested } => self.on_checkpoint(now, result, rested),
                    StoreDone::Restore(result) => self.on_restored(now, result),
                };
                if let Err(cause) = result {
                    self.die(cause);
                }
            }
            MemberEvent::Stop => self.on_stop(now),
        }
    }

    fn on_peer(&mut self, now: Time, from: NodeId, msg: PeerMessage) {
        match msg {
            PeerMessage::Raft(msg) if self.campaign_held(&msg) => {}
            PeerMessage::Raft(msg) => self.raft.step(now, from, msg),
            PeerMessage::Forward(forward) => self.on_forward(now, from, forward),
            PeerMessage::Ask { id, ask } => self.on_ask(now, from, id, ask),
            PeerMessage::Answer { id, result } => self.on_answer(now, from, id, result),
            PeerMessage::Snapshot(chunk) => self.on_snapshot_chunk(now, from, chunk),
            PeerMessage::SnapshotAck { transfer, ack } => self.on_snapshot_ack(now, from, transfer, ack),
        }
    }

    /// Does what the events since the last call ask for, as far as it goes without waiting.
    pub fn advance(&mut self, now: Time) {
        if self.stopped.is_some() {
            return;
        }
        if let Err(cause) = self.try_advance(now) {
            self.die(cause);
        }
    }

    fn try_advance(&mut self, now: Time) -> Result<(), String> {
        if !self.transfers.installing() && self.raft.next_timeout() <= now {
            self.raft.handle_timeout(now);
        }
        self.again = true;
        for _ in 0..ROUNDS_MAX {
            self.flush_origin(now);
            self.flush_confirm(now);
            let mut progress = self.take_raft_output(now)?;
            progress |= self.poll_log(now)?;
            progress |= self.apply(now)?;
            if !progress {
                self.again = false;
                break;
            }
        }
        self.origin_tick(now);
        self.check_moving(now);
        self.revoke_expired(now);
        self.drive_transfers(now)?;
        self.maintain(now);
        self.again |= self.hub.catch_up(&self.store).map_err(|e| format!("read history for watchers: {e}"))?;
        self.check_stopped(now);
        Ok(())
    }

    fn take_raft_output(&mut self, now: Time) -> Result<bool, String> {
        let mut progress = false;
        while self.held.is_none() {
            let output = self.raft.take_output();
            if output.is_empty() {
                break;
            }
            progress = true;
            self.on_raft_output(now, output)?;
        }
        Ok(progress)
    }

    fn on_raft_output(&mut self, now: Time, output: Output) -> Result<(), String> {
        if let Some(persist) = output.persist {
            self.persist(now, persist)?;
        }
        for (to, msg) in output.messages {
            self.send(to, PeerMessage::Raft(msg));
        }
        if let Some(change) = output.role_changed {
            // Also when the term alone moves: what was confirmed in the old one is void.
            self.resign(now);
            self.on_leader_change(now);
            self.check_moving(now);
            self.outputs.push_back(MemberOutput::RoleChanged(change));
        }
        self.to_apply_bytes += output.committed.iter().map(|e| size(e) as usize).sum::<usize>();
        self.to_apply.extend(output.committed);
        for (round, index) in output.reads {
            self.on_confirmed(now, round, index);
        }
        for round in output.reads_failed {
            self.on_unconfirmed(now, round);
        }
        for (peer, took) in output.round_trips {
            self.config.stats.round_trips.record(peer, took);
        }
        for to in output.send_snapshot {
            self.start_transfer(now, to)?;
        }
        Ok(())
    }

    fn persist(&mut self, now: Time, persist: Persist) -> Result<(), String> {
        let batch = LogBatch { hard_state: persist.hard_state, entries: &persist.entries, snapshot: None };
        match self.wal.append(GROUP, batch) {
            Ok(lsn) => self.persisting.push_back((lsn, persist.seq, now)),
            Err(WalError::QueueFull { .. }) => self.held = Some(persist),
            Err(e) => return Err(e.to_string()),
        }
        Ok(())
    }

    fn poll_log(&mut self, now: Time) -> Result<bool, String> {
        let durable = self.wal.poll().map_err(|e| e.to_string())?;
        let mut progress = false;
        while let Some((lsn, seq, since)) = self.persisting.front().copied() {
            if lsn > durable {
                break;
            }
            self.persisting.pop_front();
            self.config.stats.log_write.record(now.since(since));
            self.raft.on_persisted(now, seq);
            progress = true;
        }
        if let Some(held) = self.held.take() {
            self.persist(now, held)?;
            progress |= self.held.is_none();
        }
        Ok(progress)
    }

    /// The next thing that the member wants done.
    pub fn poll_output(&mut self) -> Option<MemberOutput> {
        self.outputs.pop_front()
    }

    /// When to call [`Self::advance`] at the latest.
    #[must_use]
    pub fn next_timeout(&self) -> Time {
        if self.again {
            return Time(0);
        }
        if self.stopped.is_some() {
            return Time(u64::MAX);
        }
        let mut next = if self.transfers.installing() { Time(u64::MAX) } else { self.raft.next_timeout() };
        let others = [
            self.origin.next_timeout(self.no_leader_after()),
            self.leader.next_timeout(),
            if self.leader_since().is_some() { self.lessor.next_deadline() } else { None },
            self.transfers.next_timeout(&self.config),
            if self.since_checkpoint > 0 && !self.job { Some(self.checkpoint_due) } else { None },
            self.stopping,
        ];
        for other in others.into_iter().flatten() {
            next = next.min(other);
        }
        next
    }

    pub(super) fn send(&mut self, to: NodeId, msg: PeerMessage) {
        self.outputs.push_back(MemberOutput::Send { to, msg });
    }

    /// The member cannot go on. Nothing more is sent, so the others elect a leader without it.
    pub(super) fn die(&mut self, cause: String) {
        if self.stopped.is_none() {
            self.outputs.retain(|o| matches!(o, MemberOutput::Reply { .. }));
            self.fail_all(&MemberError::Stopped);
            self.outputs.push_back(MemberOutput::Fatal(cause.clone()));
            self.stopped = Some(cause);
            self.again = false;
        }
    }

    fn on_stop(&mut self, now: Time) {
        if self.stopping.is_some() {
            return;
        }
        match self.best_successor() {
            Some(to) if self.leads() => {
                self.raft.transfer_leader(now, to);
                self.stopping = Some(now.after(self.handover_max()));
            }
            _ => self.stopping = Some(now),
        }
    }

    fn check_stopped(&mut self, now: Time) {
        let Some(deadline) = self.stopping else { return };
        // Once somebody else leads, this member has told its clients what it knows.
        if (self.raft.role() != Role::Leader && self.raft.leader().is_some()) || now >= deadline {
            self.fail_all(&MemberError::Stopped);
            self.stopped = Some("stopped on request".into());
            self.again = false;
            self.outputs.push_back(MemberOutput::Stopped);
        }
    }

    /// What this member knows of itself.
    #[must_use]
    pub fn status(&self) -> MemberStatus {
        MemberStatus {
            id: self.config.id,
            cluster_id: self.config.cluster_id,
            role: self.raft.role(),
            is_learner: !self.membership.is_voter(self.config.id),
            term: self.raft.term(),
            leader: self.raft.leader(),
            revision: self.store.revision(Keyspace::User),
            applied: self.applied,
            committed: self.raft.committed(),
            last_index: self.raft.last_index(),
            membership: self.members.clone(),
            stopped: self.stopped.clone(),
        }
    }

    /// Writes down for others what only its own thread knows. Costs some stores.
    pub fn show_figures(&self) {
        let stats = &self.config.stats;
        let store = |figure: &AtomicU64, value: u64| figure.store(value, Ordering::Relaxed);
        let WatchCounts { watchers, slow, pending_events } = self.hub.counts(Keyspace::User);
        store(&stats.committed, self.raft.committed().0);
        store(&stats.applied, self.applied.0);
        store(&stats.log_bytes, self.wal.written_bytes());
        store(&stats.late_heartbeats, self.raft.late_heartbeats());
        store(&stats.watchers, watchers as u64);
        store(&stats.slow_watchers, slow as u64);
        store(&stats.pending_events, pending_events as u64);
    }

    /// Its figures.
    #[must_use]
    pub fn stats(&self) -> &SharedStats {
        &self.config.stats
    }

    /// The last applied index.
    #[must_use]
    pub fn applied(&self) -> Index {
        self.applied
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Consensus, for tests and figures.
    #[must_use]
    pub fn raft(&self) -> &RaftCore {
        &self.raft
    }

    /// The log's storage.
    #[must_use]
    pub fn io(&self) -> &I {
        self.wal.io()
    }

    /// The log's storage, for a simulator to complete operations.
    pub fn io_mut(&mut self) -> &mut I {
        self.wal.io_mut()
    }

    /// Adds a watcher; its output comes from [`Self::watch_poll`].
    pub fn watch_create(&mut self, keyspace: Keyspace, request: WatchRequest) -> WatchId {
        self.again = true;
        self.hub.create(keyspace, request)
    }

    /// Removes a watcher.
    pub fn watch_cancel(&mut self, id: WatchId) {
        self.hub.cancel(id);
    }

    /// Asks for a progress output of one watcher.
    pub fn watch_progress(&mut self, id: WatchId) {
        self.hub.request_progress(id);
    }

    /// A watcher that has output.
    pub fn watch_ready(&mut self) -> Option<WatchId> {
        self.hub.next_ready()
    }

    /// Whether [`Self::watch_poll`] would give something.
    #[must_use]
    pub fn watch_has_output(&self, id: WatchId) -> bool {
        self.hub.has_output(id)
    }

    /// A watcher's next output. Poll until `None`, or again when its consumer has room.
    pub fn watch_poll(&mut self, id: WatchId, events_max: usize) -> Option<WatchOutput> {
        let output = self.hub.poll(id, events_max);
        // Its queue has room now: it may go on reading history.
        self.again |= self.stopped.is_none() && self.hub.needs_catch_up();
        output
    }

    pub(super) fn start_job(&mut self, job: StoreJob) {
        self.job = true;
        self.outputs.push_back(MemberOutput::Job(job));
    }
}

/// What an entry counts for in bounds.
pub(super) fn size(entry: &Entry) -> u32 {
    u32::try_from(entry.data.len() + 32).unwrap_or(u32::MAX)
}
