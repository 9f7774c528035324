//! Committed entries into the store, outcomes to whom they concern; checkpoints and compaction of the log.

use super::core::{MemberCore, size};
use super::envelope::{Envelope, RequestId};
use super::job::StoreJob;
use super::types::{MemberError, MemberOutput};
use crate::io::Io;
use crate::kv::types::{Command, CommandResponse, KvError};
use crate::kv::{ApplyEntry, ApplyOutcome, MemberAttributes, StoreError};
use crate::raft::{ConfChange, Membership};
use crate::types::{Entry, EntryKind, Index, NodeId, Term, Time};
use crate::wal::{LogBatch, SnapshotMark};
use std::borrow::Cow;
use std::time::Duration;

/// Entries in one store transaction.
const BATCH_ENTRIES_MAX: usize = 2048;
/// Bytes of entries in one store transaction, unless one entry is larger.
const BATCH_BYTES_MAX: usize = 4 << 20;
/// While more than this waits to be applied, new proposals are refused.
pub(super) const TO_APPLY_BYTES_MAX: usize = 128 << 20;
/// Memory of applied changes that causes a checkpoint, which puts them into the store's file.
const RECENT_BYTES_CHECKPOINT: usize = 48 << 20;
/// Memory of applied changes above which applying waits for the checkpoint that is being taken.
const RECENT_BYTES_MAX: usize = 192 << 20;
/// What part of the time between two checkpoints one may take.
const CHECKPOINT_SHARE: f64 = 0.7;
/// But it is not slower than this, in bytes of applied changes.
const CHECKPOINT_BYTES_PER_S_MIN: f64 = 8e6;
/// Memory of applied changes above which a checkpoint does not rest.
pub(super) const RECENT_BYTES_HURRY: usize = 128 << 20;
/// How long after a checkpoint the next one goes on with removing compacted history.
const GARBAGE_PAUSE: Duration = Duration::from_millis(200);

/// What applying an entry means for this member, besides the store's part.
enum Effect {
    None,
    Answer(RequestId),
    Grant(RequestId, i64),
    Revoke(RequestId, i64),
    Attributes(RequestId, NodeId, MemberAttributes),
    Compact(RequestId),
    Members(Option<Membership>),
}

impl<I: Io> MemberCore<I> {
    /// Applies one batch. Waits while the store is being replaced, or a checkpoint cannot keep up.
    pub(super) fn apply(&mut self, now: Time) -> Result<bool, String> {
        if self.to_apply.is_empty() || self.transfers.installing() || (self.job && self.store.recent_bytes() > RECENT_BYTES_MAX) {
            return Ok(false);
        }
        let mut batch = Vec::new();
        let mut effects = Vec::new();
        let mut bytes = 0;
        // Copied for the first change of it.
        let mut membership = Cow::Borrowed(&self.membership);
        while let Some(entry) = self.to_apply.front() {
            let length = size(entry) as usize;
            if !batch.is_empty() && (batch.len() >= BATCH_ENTRIES_MAX || bytes + length > BATCH_BYTES_MAX) {
                break;
            }
            let Some(entry) = self.to_apply.pop_front() else { break };
            self.to_apply_bytes -= length;
            // A snapshot that was installed meanwhile may hold it already.
            if entry.index <= self.applied {
                continue;
            }
            bytes += length;
            let (item, effect) = decode(&entry, &mut membership)?;
            self.sizes.push_back(size(&entry));
            batch.push(item);
            effects.push(effect);
        }
        let (Some(first), Some(last)) = (batch.first(), batch.last()) else { return Ok(true) };
        if first.index != self.applied.next() {
            return Err(format!("entry {} follows applied entry {}", first.index, self.applied));
        }
        let (index, term) = (last.index, last.term);
        let terms: Vec<_> = batch.iter().map(|e| e.term).collect();
        let outcomes = self
            .store
            .apply_with(&batch, &|ks, key| self.hub.wants(ks, key))
            .map_err(|e| format!("apply up to entry {index}: {e}"))?;
        if outcomes.len() != effects.len() {
            return Err(format!("the store answered {} of {} entries", outcomes.len(), effects.len()));
        }
        self.applied = index;
        self.raft.on_applied(index);
        self.since_checkpoint += bytes as u64;
        for ((outcome, effect), term) in outcomes.into_iter().zip(effects).zip(terms) {
            if term > self.applied_term {
                self.applied_term = term;
                self.on_term_applied(term);
                if term == self.raft.term() && self.leads() {
                    self.promote_now = true;
                }
            }
            self.on_applied_entry(now, outcome, effect, term);
        }
        self.applied_term = term;
        if std::mem::take(&mut self.promote_now) {
            self.promote(now)?;
        }
        // Changes that lost their place in the log to other entries.
        self.on_conf_applied(now, index, Term(0));
        self.release_reads();
        self.release_confirmed(now);
        Ok(true)
    }

    fn on_applied_entry(&mut self, now: Time, outcome: ApplyOutcome, effect: Effect, term: Term) {
        if !outcome.skipped {
            self.hub.on_events(outcome.keyspace, outcome.applied.revision, &outcome.events);
        }
        let index = outcome.index;
        let ok = outcome.applied.result.is_ok();
        match effect {
            Effect::None => {}
            Effect::Answer(request) => self.on_outcome(request, outcome.applied),
            Effect::Grant(request, ttl_s) => {
                if let Ok(CommandResponse::LeaseGranted { id, ttl_s: granted }) = &outcome.applied.result {
                    self.lessor.grant(now, *id, (*granted).max(ttl_s));
                }
                self.on_outcome(request, outcome.applied);
            }
            Effect::Revoke(request, id) => {
                // One that was refused goes on.
                if ok || outcome.applied.result == Err(KvError::LeaseNotFound) {
                    self.lessor.revoke(id);
                }
                self.on_outcome(request, outcome.applied);
            }
            Effect::Compact(request) => {
                if ok {
                    self.checkpoint_due = self.checkpoint_due.min(now.after(GARBAGE_PAUSE));
                }
                self.on_outcome(request, outcome.applied);
            }
            Effect::Attributes(request, id, attributes) => {
                self.attributes.insert(id, attributes);
                self.refresh_members();
                self.outputs.push_back(MemberOutput::MembershipChanged(self.members.clone()));
                self.on_outcome(request, outcome.applied);
            }
            Effect::Members(membership) => {
                if let Some(membership) = membership {
                    self.membership = membership;
                    self.refresh_members();
                    self.outputs.push_back(MemberOutput::MembershipChanged(self.members.clone()));
                }
                self.on_conf_applied(now, index, term);
            }
        }
    }

    /// Merges what members told about themselves into the membership of the log.
    pub(super) fn refresh_members(&mut self) {
        let mut members = self.membership.clone();
        for (id, info) in members.voters.iter_mut().chain(members.learners.iter_mut()) {
            if let Some(own) = self.attributes.get(id) {
                info.name.clone_from(&own.name);
                info.client_urls.clone_from(&own.client_urls);
            }
        }
        self.members = members;
    }

    /// Checkpoints when due; they remove compacted history as well.
    pub(super) fn maintain(&mut self, now: Time) {
        let much = self.since_checkpoint >= self.config.checkpoint_bytes || self.store.recent_bytes() >= RECENT_BYTES_CHECKPOINT;
        if !self.job && (much || (self.since_checkpoint > 0 && now >= self.checkpoint_due)) {
            self.since_checkpoint = 0;
            let over = self.checkpoint_over(now.since(self.checkpoint_since));
            self.checkpoint_since = now;
            self.start_job(StoreJob::Checkpoint { over });
        }
    }

    /// How long a checkpoint may take, the one before having begun `since` ago: most of the time until the next. All members take theirs at about
    /// the same place of the log, and at full speed the clients of all of them would feel it (the 99th percentile of puts doubled).
    fn checkpoint_over(&self, since: Duration) -> Duration {
        // Somebody may wait for compacted history to be gone.
        if self.store.has_garbage() {
            return Duration::ZERO;
        }
        let work = Duration::from_secs_f64(self.store.recent_bytes() as f64 / CHECKPOINT_BYTES_PER_S_MIN);
        since.mul_f64(CHECKPOINT_SHARE).min(work)
    }

    /// The store's state is durable up to an index: the log before it, but for a tail, may go.
    pub(super) fn on_checkpoint(&mut self, now: Time, result: Result<Index, StoreError>, rested: Duration) -> Result<(), String> {
        let durable = result.map_err(|e| format!("checkpoint: {e}"))?;
        self.config.stats.checkpoint.record(now.since(self.checkpoint_since).saturating_sub(rested));
        self.checkpoint_due = now.after(self.config.checkpoint_interval);
        if self.store.has_garbage() {
            self.since_checkpoint = self.since_checkpoint.max(1);
            self.checkpoint_due = now.after(GARBAGE_PAUSE);
        }
        let target = self.compaction_target(durable);
        if target <= self.compacted {
            return Ok(());
        }
        let Some(term) = self.raft.term_at(target) else { return Ok(()) };
        let mark = SnapshotMark { index: target, term };
        let batch = LogBatch { hard_state: None, entries: &[], snapshot: Some(mark) };
        match self.wal.append(super::core::GROUP, batch) {
            Ok(_) => {}
            // The next checkpoint tries again.
            Err(crate::wal::WalError::QueueFull { .. }) => return Ok(()),
            Err(e) => return Err(e.to_string()),
        }
        self.raft.compact(target);
        let gone = target.0 - self.compacted.0;
        self.sizes.drain(..usize::try_from(gone).unwrap_or(usize::MAX).min(self.sizes.len()));
        self.compacted = target;
        Ok(())
    }

    /// Keeps a tail for slow followers, bounded in entries and bytes, and what running transfers will need.
    fn compaction_target(&self, durable: Index) -> Index {
        let (mut entries, mut bytes) = (0_u64, 0_u64);
        for length in self.sizes.iter().rev() {
            if entries >= self.config.tail_entries || bytes + u64::from(*length) > self.config.tail_bytes {
                break;
            }
            entries += 1;
            bytes += u64::from(*length);
        }
        let mut target = durable.min(Index(self.applied.0 - entries.min(self.applied.0)));
        if let Some(sent) = self.transfers.oldest() {
            // A transfer that takes very long does not keep the log for ever: its follower gets another.
            let floor = self.applied.0.saturating_sub(self.config.tail_entries.saturating_mul(8));
            target = target.min(sent.max(Index(floor)));
        }
        target
    }

    /// Whether the store lags so far behind that taking more proposals would only fill memory.
    pub(super) fn overloaded(&self) -> Option<MemberError> {
        (self.to_apply_bytes > TO_APPLY_BYTES_MAX).then_some(MemberError::TooManyRequests)
    }
}

fn decode(entry: &Entry, membership: &mut Cow<'_, Membership>) -> Result<(ApplyEntry, Effect), String> {
    let mut item = ApplyEntry { index: entry.index, term: entry.term, command: None, membership: None };
    let effect = match entry.kind {
        EntryKind::Noop => Effect::None,
        EntryKind::Conf => {
            let change = ConfChange::decode(&entry.data).ok_or_else(|| format!("entry {}: not a membership change", entry.index))?;
            // Raft agreed on it when it was appended; a change that does not fit changes nothing anywhere.
            match membership.with(&change) {
                Ok(next) => {
                    let bytes = postcard::to_allocvec(&next).map_err(|e| format!("encode membership: {e}"))?;
                    item.membership = Some(bytes.into());
                    *membership = Cow::Owned(next.clone());
                    Effect::Members(Some(next))
                }
                Err(_) => Effect::Members(None),
            }
        }
        EntryKind::Normal => {
            let envelope = Envelope::decode(&entry.data)
                .map_err(|e| format!("entry {}: {e}; it was written by a newer version, or is damaged", entry.index))?;
            let request = envelope.request;
            let effect = match envelope.command.unwrapped().1 {
                Command::LeaseGrant { ttl_s, .. } => Effect::Grant(request, *ttl_s),
                Command::LeaseRevoke { id } => Effect::Revoke(request, *id),
                Command::Compact { .. } => Effect::Compact(request),
                Command::MemberAttributes { id, name, client_urls } => {
                    Effect::Attributes(request, *id, MemberAttributes { name: name.clone(), client_urls: client_urls.clone() })
                }
                Command::Put(..) | Command::DeleteRange(..) | Command::Txn(..) => Effect::Answer(request),
                Command::Alarm { .. } | Command::Auth(_) | Command::As { .. } => Effect::Answer(request),
            };
            item.command = Some(envelope.command);
            effect
        }
    };
    Ok((item, effect))
}
