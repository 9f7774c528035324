//! Bitmap checkpoints: while all members are in sync, all sync their disks, and what was synced need not be
//! compared any more when a brick comes back.
//!
//! The mark that all note is `epoch << 24 | count`, so it grows and is never used twice: one primary an epoch. A
//! brick notes the mark (durable) before it clears bits. The bits of what was touched since the sync began, or was
//! in flight then, stay. A brick that missed the end of a checkpoint has another mark than the others, and is
//! healed in full when it comes back: dear, but right.

use super::types::{BrickId, PeerMsg};
use super::{DataTask, Disk, ReplicaCore, Role};
use crate::store::{BrickMeta, BucketSet, DataDone, DataOp};
use brickraft_engine::types::Time;
use std::collections::BTreeSet;
use std::time::Duration;

/// A checkpoint that is not done after this time is given up.
const CHECKPOINT_MAX: Duration = Duration::from_secs(600);

/// A checkpoint under way at the primary.
pub(super) struct Checkpoint {
    mark: u64,
    /// What is touched since it began, or was in flight then.
    pub keep: BucketSet,
    waiting: BTreeSet<BrickId>,
    began: Time,
    sent: Time,
}

impl<S: Disk> ReplicaCore<S> {
    pub(super) fn tick_checkpoint(&mut self) {
        let (now, epoch) = (self.now, self.group.epoch);
        if let Some(c) = &mut self.p.checkpoint {
            if now.since(c.began) > CHECKPOINT_MAX {
                self.p.checkpoint = None;
            } else if now.since(c.sent) >= self.timing.retransmit * 4 {
                c.sent = now;
                let (mark, to): (u64, Vec<_>) = (c.mark, c.waiting.iter().copied().collect());
                let me = self.brick;
                for brick in to.into_iter().filter(|&b| b != me) {
                    self.send(brick, PeerMsg::Checkpoint { epoch, mark });
                }
            }
            return;
        }
        let all = self.group.members.iter().all(|b| self.group.in_sync.contains(b));
        let quiet = self.p.serving && !self.p.lost_some && self.p.join.is_none() && self.p.repair.is_none() && self.p.suspects.is_empty();
        let due = now.since(self.p.checkpoint_at) >= self.timing.checkpoint;
        if !all || !quiet || !due || self.store.dirty().is_empty() {
            return;
        }
        self.p.checkpoint_at = now;
        self.p.checkpoints += 1;
        let mark = epoch << 24 | self.p.checkpoints;
        let keep = self.p.flights.values().flat_map(|f| &f.touches).map(|g| g.bucket()).collect();
        let waiting = self.group.in_sync.iter().copied().collect();
        self.p.checkpoint = Some(Checkpoint { mark, keep, waiting, began: now, sent: now });
        for brick in self.others() {
            self.send(brick, PeerMsg::Checkpoint { epoch, mark });
        }
        self.submit(DataTask::Checkpoint(mark), DataOp::SyncAll);
    }

    pub(super) fn checkpoint_synced_here(&mut self, mark: u64, done: DataDone) {
        if !matches!(done, DataDone::Synced(Ok(()))) {
            self.note_damage(format!("cannot sync the brick: {done:?}"));
            if self.role == Role::Primary {
                self.p.checkpoint = None;
                self.p.failed = Some(self.others()).filter(|o| !o.is_empty());
            }
            return;
        }
        match self.role {
            Role::Primary => self.on_checkpoint_synced(self.brick, mark),
            Role::Secondary if self.s.keep.as_ref().is_some_and(|k| k.0 == mark) => {
                self.send(self.group.primary, PeerMsg::CheckpointSynced { epoch: self.group.epoch, mark });
            }
            _ => {}
        }
    }

    pub(super) fn on_checkpoint_synced(&mut self, from: BrickId, mark: u64) {
        let Some(c) = &mut self.p.checkpoint else { return };
        if c.mark != mark {
            return;
        }
        c.waiting.remove(&from);
        if !c.waiting.is_empty() {
            return;
        }
        let Some(c) = self.p.checkpoint.take() else { return };
        if self.end_checkpoint(mark, &c.keep) {
            for brick in self.others() {
                self.send(brick, PeerMsg::CheckpointCommit { epoch: self.group.epoch, mark });
            }
        }
    }

    fn end_checkpoint(&mut self, mark: u64, keep: &BucketSet) -> bool {
        let meta = BrickMeta { synced_epoch: mark, ..self.meta };
        if let Err(e) = self.store.set_meta(meta) {
            if !self.wiped {
                self.fatal(format!("cannot note checkpoint {mark}: {e}"));
            }
            return false;
        }
        self.meta = meta;
        if let Err(e) = self.store.reset_dirty(keep) {
            self.note_damage(format!("cannot clear the dirty bitmap: {e}"));
        }
        true
    }

    pub(super) fn on_checkpoint(&mut self, mark: u64) {
        if self.s.next.is_none() || self.s.keep.as_ref().is_some_and(|k| k.0 == mark) {
            // Under way; a lost answer is sent again when the sync is done, or the primary gives up.
            if !self.data.values().any(|t| *t == DataTask::Checkpoint(mark)) && self.s.next.is_some() {
                self.send(self.group.primary, PeerMsg::CheckpointSynced { epoch: self.group.epoch, mark });
            }
            return;
        }
        let keep = self.s.recent.values().flatten().map(|g| g.bucket()).collect();
        self.s.keep = Some((mark, keep));
        self.submit(DataTask::Checkpoint(mark), DataOp::SyncAll);
    }

    pub(super) fn on_checkpoint_commit(&mut self, mark: u64) {
        if let Some((_, keep)) = self.s.keep.take_if(|k| k.0 == mark) {
            self.end_checkpoint(mark, &keep);
        }
    }
}
