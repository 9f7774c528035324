//! Signs files that have been idle for a while, a slice of work at a time.

use super::content::ContentSum;
use crate::fop::{Errno, FileKind, Gfid};
use crate::heal::{HealCall, HealResult, HealReturn, ObjectInfo, Signature};
use brickraft_engine::types::Time;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Most files that wait to be signed; those above are left to the next scrub.
pub const SIGNER_QUEUE_MAX: usize = 100_000;

struct Job {
    gfid: Gfid,
    info: ObjectInfo,
    sum: ContentSum,
    at: u64,
}

/// A queue of written files and the one being hashed. The caller notes each write; a file that is written while it is
/// hashed starts again.
pub struct Signer {
    idle: Duration,
    due: BTreeSet<(Time, Gfid)>,
    times: BTreeMap<Gfid, Time>,
    job: Option<Job>,
}

impl Signer {
    /// `idle`: how long a file must have been left alone.
    #[must_use]
    pub const fn new(idle: Duration) -> Self {
        Self { idle, due: BTreeSet::new(), times: BTreeMap::new(), job: None }
    }

    /// The file was changed (data, size or mtime).
    pub fn note(&mut self, gfid: Gfid, now: Time) {
        if self.job.as_ref().is_some_and(|j| j.gfid == gfid) {
            self.job = None;
        }
        if let Some(old) = self.times.remove(&gfid) {
            self.due.remove(&(old, gfid));
        }
        if self.times.len() < SIGNER_QUEUE_MAX {
            let at = now.after(self.idle);
            self.times.insert(gfid, at);
            self.due.insert((at, gfid));
        }
    }

    /// When [`Signer::step`] has something to do; `None`: not before the next [`Signer::note`].
    #[must_use]
    pub fn next_due(&self) -> Option<Time> {
        if self.job.is_some() { Some(Time(0)) } else { self.due.first().map(|(at, _)| *at) }
    }

    /// Files that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.times.len() + usize::from(self.job.is_some())
    }

    /// Does one slice (at most 4 MiB are read). `local` executes a call on the local store.
    pub fn step(&mut self, now: Time, local: &mut dyn FnMut(&HealCall) -> HealResult) {
        // What cannot be read or signed is left: scrub reports it.
        if self.slice(now, local).is_err() {
            self.job = None;
        }
    }

    fn slice(&mut self, now: Time, local: &mut dyn FnMut(&HealCall) -> HealResult) -> Result<(), Errno> {
        let Some(mut job) = self.job.take() else {
            let Some((at, gfid)) = self.due.first().copied().filter(|(at, _)| *at <= now) else { return Ok(()) };
            self.due.remove(&(at, gfid));
            self.times.remove(&gfid);
            self.job = start(gfid, local)?;
            return Ok(());
        };
        let call = HealCall::Sums { gfid: job.gfid, offset: job.at, end: u64::MAX };
        let HealReturn::Sums { chunks, next } = local(&call)? else { return Err(Errno::EIO) };
        chunks.into_iter().for_each(|(n, sum)| job.sum.chunk(n, sum));
        match next {
            Some(next) => {
                job.at = next;
                self.job = Some(job);
            }
            None => {
                let Job { gfid, info, sum, .. } = job;
                let signature = Signature { sum: sum.finish(), size: info.attr.size, mtime: info.attr.mtime };
                local(&HealCall::Sign { gfid, signature })?;
            }
        }
        Ok(())
    }
}

/// A job, unless the file is gone, is none, or carries a signature that is still valid.
fn start(gfid: Gfid, local: &mut dyn FnMut(&HealCall) -> HealResult) -> Result<Option<Job>, Errno> {
    let HealReturn::Stats(mut found) = local(&HealCall::Stat { gfids: vec![gfid] })? else { return Err(Errno::EIO) };
    let Some(info) = found.pop().flatten().filter(|i| i.attr.kind == FileKind::File) else { return Ok(None) };
    let HealReturn::Signature(signature) = local(&HealCall::Signature { gfid })? else { return Err(Errno::EIO) };
    let valid = signature.is_some_and(|s| (s.size, s.mtime) == (info.attr.size, info.attr.mtime));
    Ok((!valid).then(|| Job { gfid, info, sum: ContentSum::default(), at: 0 }))
}
