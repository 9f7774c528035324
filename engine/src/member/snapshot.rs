//! Snapshots to members that need more than the log has, and from a leader to this one.
//!
//! A transfer is a stream of numbered chunks with a bounded window; what was sent and not acknowledged is kept, so
//! that a lost message costs a resend and not the transfer. The sender reads its store at one point in time
//! while writes go on. The receiver spools, serves its old state meanwhile, then restores in a job.

use super::core::{GROUP, MemberCore};
use super::job::{Spool, StoreJob};
use super::types::{MemberConfig, MemberOutput, PeerMessage, SnapshotChunk, SnapshotProgress};
use crate::io::Io;
use crate::kv::{SnapshotReader, StoreError};
use crate::raft::{Body, Message, SnapshotMeta};
use crate::types::{Index, NodeId, Term, Time};
use crate::wal::{LogBatch, SnapshotMark};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Transfers to followers at once; others are told to try again.
const SENDING_MAX: usize = 3;
/// Without an acknowledgement for so long, the window is sent again.
const RESEND: Duration = Duration::from_secs(1);

struct Sending {
    transfer: u64,
    term: Term,
    reader: SnapshotReader,
    meta: SnapshotMeta,
    /// Read ahead, since the last chunk must say that it is the last.
    ahead: Option<Bytes>,
    /// Sent and not acknowledged.
    window: VecDeque<(u64, Bytes, bool)>,
    next: u64,
    progress_at: Time,
    sent_at: Time,
}

struct Receiving {
    from: NodeId,
    transfer: u64,
    term: Term,
    meta: SnapshotMeta,
    next: u64,
    spool: Spool,
}

struct Installing {
    from: NodeId,
    transfer: u64,
    chunks: u64,
    meta: SnapshotMeta,
}

/// All transfers of a member.
pub(super) struct Transfers {
    next_transfer: u64,
    sending: BTreeMap<NodeId, Sending>,
    receiving: Option<Receiving>,
    installing: Option<Installing>,
    /// The last one that was installed, in case the sender did not hear of it.
    installed: Option<(NodeId, u64)>,
}

impl Transfers {
    /// `first` is random, so that a restarted sender's transfers have other numbers.
    pub(super) fn new(first: u64) -> Self {
        Self { next_transfer: first, sending: BTreeMap::new(), receiving: None, installing: None, installed: None }
    }

    /// The oldest state that is being sent; its follower will need the log from there on.
    pub(super) fn oldest(&self) -> Option<Index> {
        self.sending.values().map(|s| s.meta.index).min()
    }

    /// This member's state is being replaced: it must not stand for election meanwhile.
    pub(super) fn installing(&self) -> bool {
        self.installing.is_some()
    }

    pub(super) fn next_timeout(&self, config: &MemberConfig) -> Option<Time> {
        self.sending.values().map(|s| s.sent_at.after(RESEND).min(s.progress_at.after(config.snapshot_stall))).min()
    }
}

impl<I: Io> MemberCore<I> {
    /// A follower needs the store's state.
    pub(super) fn start_transfer(&mut self, now: Time, to: NodeId) -> Result<(), String> {
        if self.transfers.sending.contains_key(&to) {
            return Ok(());
        }
        if self.transfers.sending.len() >= SENDING_MAX {
            self.raft.report_snapshot(now, to, false);
            return Ok(());
        }
        // The log goes on from the last checkpoint, and to take one now would make everybody wait.
        let mut reader = self.store.last_checkpoint().map_err(|e| format!("read a snapshot: {e}"))?;
        let header = reader.header();
        let membership = match &header.membership {
            Some(bytes) => postcard::from_bytes(bytes).map_err(|e| format!("decode membership: {e}"))?,
            None => return Err("the store has no membership".into()),
        };
        let meta = SnapshotMeta { index: header.index, term: header.term, membership };
        let ahead = reader.next_chunk().map_err(|e| format!("read a snapshot: {e}"))?;
        let transfer = self.transfers.next_transfer;
        self.transfers.next_transfer = transfer.wrapping_add(1);
        tracing::info!(to = %format_args!("{:016x}", to.0), index = meta.index.0, "snapshot: start to send");
        let window = VecDeque::new();
        let term = self.raft.term();
        let sending = Sending { transfer, term, reader, meta, ahead, window, next: 0, progress_at: now, sent_at: now };
        self.transfers.sending.insert(to, sending);
        Ok(())
    }

    /// Fills windows, sends again, gives up.
    pub(super) fn drive_transfers(&mut self, now: Time) -> Result<(), String> {
        let targets: Vec<NodeId> = self.transfers.sending.keys().copied().collect();
        for to in targets {
            let Some(s) = self.transfers.sending.get(&to) else { continue };
            if !self.leads() || s.term != self.raft.term() || now.since(s.progress_at) >= self.config.snapshot_stall {
                self.end_transfer(now, to, false);
            } else {
                self.fill_window(now, to)?;
            }
        }
        Ok(())
    }

    fn fill_window(&mut self, now: Time, to: NodeId) -> Result<(), String> {
        let Some(s) = self.transfers.sending.get_mut(&to) else { return Ok(()) };
        let mut out = Vec::new();
        if now.since(s.sent_at) >= RESEND && !s.window.is_empty() {
            s.sent_at = now;
            out.extend(s.window.iter().cloned());
        }
        while s.window.len() < self.config.snapshot_window_max {
            let Some(data) = s.ahead.take() else { break };
            s.ahead = s.reader.next_chunk().map_err(|e| format!("read a snapshot: {e}"))?;
            let chunk = (s.next, data, s.ahead.is_none());
            s.next += 1;
            s.sent_at = now;
            s.window.push_back(chunk.clone());
            out.push(chunk);
        }
        let (transfer, term, meta) = (s.transfer, s.term, s.meta.clone());
        for (seq, data, last) in out {
            let chunk = SnapshotChunk { transfer, term, meta: meta.clone(), seq, data, last };
            self.send(to, PeerMessage::Snapshot(chunk));
        }
        Ok(())
    }

    fn end_transfer(&mut self, now: Time, to: NodeId, ok: bool) {
        if self.transfers.sending.remove(&to).is_some() {
            tracing::info!(to = %format_args!("{:016x}", to.0), ok, "snapshot: transfer ended");
            self.raft.report_snapshot(now, to, ok);
        }
    }

    /// The receiver tells how far it is.
    pub(super) fn on_snapshot_ack(&mut self, now: Time, from: NodeId, transfer: u64, ack: SnapshotProgress) {
        let Some(s) = self.transfers.sending.get_mut(&from).filter(|s| s.transfer == transfer) else { return };
        match ack {
            SnapshotProgress::Received(upto) => {
                // Also when nothing is new: a receiver that restores says so again and again.
                s.progress_at = now;
                s.sent_at = now;
                while s.window.front().is_some_and(|(seq, _, last)| *seq < upto && !*last) {
                    s.window.pop_front();
                }
            }
            SnapshotProgress::Installed => self.end_transfer(now, from, true),
            SnapshotProgress::Refused => self.end_transfer(now, from, false),
        }
    }

    fn acknowledge(&mut self, to: NodeId, transfer: u64, ack: SnapshotProgress) {
        self.send(to, PeerMessage::SnapshotAck { transfer, ack });
    }

    /// A chunk of the leader's state.
    pub(super) fn on_snapshot_chunk(&mut self, now: Time, from: NodeId, chunk: SnapshotChunk) {
        let transfer = chunk.transfer;
        if self.transfers.installed == Some((from, transfer)) {
            return self.acknowledge(from, transfer, SnapshotProgress::Installed);
        }
        if let Some(i) = &self.transfers.installing {
            let same = (i.from, i.transfer) == (from, transfer);
            let ack = if same { SnapshotProgress::Received(i.chunks) } else { SnapshotProgress::Refused };
            return self.acknowledge(from, transfer, ack);
        }
        let known = self.transfers.receiving.as_ref().is_some_and(|r| (r.from, r.transfer) == (from, transfer));
        if !known && (chunk.seq != 0 || !self.begin_receiving(now, from, &chunk)) {
            return self.acknowledge(from, transfer, SnapshotProgress::Refused);
        }
        let Some(r) = &mut self.transfers.receiving else { return };
        if chunk.seq == r.next {
            if let Err(e) = r.spool.push(&chunk.data) {
                tracing::warn!(error = %e, "snapshot: spool");
                self.transfers.receiving = None;
                return self.acknowledge(from, transfer, SnapshotProgress::Refused);
            }
            r.next += 1;
            if chunk.last {
                return self.install(now);
            }
        }
        let next = r.next;
        self.acknowledge(from, transfer, SnapshotProgress::Received(next));
    }

    fn begin_receiving(&mut self, now: Time, from: NodeId, chunk: &SnapshotChunk) -> bool {
        if !self.raft.begin_snapshot_install(now, from, chunk.term, &chunk.meta) || chunk.meta.index <= self.applied {
            return false;
        }
        let spool = match Spool::new(self.config.spool_dir.as_deref()) {
            Ok(spool) => spool,
            Err(e) => {
                tracing::warn!(error = %e, "snapshot: make the spool");
                return false;
            }
        };
        let (transfer, term, meta) = (chunk.transfer, chunk.term, chunk.meta.clone());
        self.transfers.receiving = Some(Receiving { from, transfer, term, meta, next: 0, spool });
        true
    }

    /// All chunks are here. The log may have caught up by itself meanwhile: then they are not wanted any more.
    fn install(&mut self, now: Time) {
        let Some(r) = self.transfers.receiving.take() else { return };
        let wanted = r.meta.index > self.applied && !self.job && self.raft.begin_snapshot_install(now, r.from, r.term, &r.meta);
        if !wanted {
            return self.acknowledge(r.from, r.transfer, SnapshotProgress::Refused);
        }
        self.acknowledge(r.from, r.transfer, SnapshotProgress::Received(r.next));
        self.transfers.installing = Some(Installing { from: r.from, transfer: r.transfer, chunks: r.next, meta: r.meta });
        self.start_job(StoreJob::Restore(r.spool));
    }

    /// The store holds the snapshot, durably. If the power fails before the log's mark is durable, recovery
    /// finds the store ahead of the log and sets the mark itself.
    pub(super) fn on_restored(&mut self, now: Time, result: Result<(Index, Term), StoreError>) -> Result<(), String> {
        let Some(Installing { from, transfer, meta, .. }) = self.transfers.installing.take() else { return Ok(()) };
        match result {
            Ok(at) if at == (meta.index, meta.term) => {}
            Ok((index, term)) => {
                return Err(format!("snapshot of entry {} in term {} restored entry {index} in term {term}", meta.index, meta.term));
            }
            Err(e @ (StoreError::SnapshotRefused { .. } | StoreError::Restoring)) => {
                tracing::warn!(error = %e, "snapshot: restore");
                self.acknowledge(from, transfer, SnapshotProgress::Refused);
                return Ok(());
            }
            Err(e) => return Err(format!("restore a snapshot: {e}")),
        }
        let mark = SnapshotMark { index: meta.index, term: meta.term };
        self.wal.append(GROUP, LogBatch { hard_state: None, entries: &[], snapshot: Some(mark) }).map_err(|e| e.to_string())?;
        self.applied = meta.index;
        self.applied_term = meta.term;
        self.compacted = meta.index;
        self.sizes.clear();
        self.membership = meta.membership.clone();
        self.attributes = self.store.member_attributes().map_err(|e| format!("read member attributes: {e}"))?;
        self.refresh_members();
        self.hub.on_restore(&self.store);
        // Outcomes of this member's own commands may be in the snapshot, where nobody finds them; the term rule
        // must not take those for lost, so it is not applied here: they time out.
        self.forget_sent();
        self.on_conf_applied(now, meta.index, Term(0));
        self.raft.finish_snapshot_install(now, meta);
        self.outputs.push_back(MemberOutput::MembershipChanged(self.members.clone()));
        self.transfers.installed = Some((from, transfer));
        self.acknowledge(from, transfer, SnapshotProgress::Installed);
        self.release_reads();
        tracing::info!(index = self.applied.0, "snapshot: installed");
        Ok(())
    }

    /// While its state is being replaced a member does not stand for election, not even when asked to.
    pub(super) fn campaign_held(&self, msg: &Message) -> bool {
        self.transfers.installing() && matches!(msg.body, Body::TimeoutNow)
    }
}
