//! Compares two bricks and reports.
//!
//! A scrub over buckets runs while the volume is in use, so an operation that has reached one brick and not yet the other looks
//! like damage. It looks twice, and what it then finds is still only a suspicion. Before repairing, the caller freezes and
//! drains, scrubs the suspects again (`HealPlan::objects`), and heals by [`ScrubReport::repairs`] of that second report.

use super::content::{ContentSum, names_sum};
use super::decide::{Doubt, Reason, Seen, Verdict, decide};
use crate::fop::{Errno, FileKind, Gfid};
use crate::heal::calls::{HealCall, HealResult, NameEntry, ObjectInfo, Place, STRANGER, Signature};
use crate::heal::cx::Cx;
use crate::heal::healer::{Direction, HealItem, HealPlan, Progress, Step};
use crate::heal::task::Task;
use crate::heal::tree::entries;
use crate::heal::wire::{self, Side, Window, Wire};
use crate::heal::work::{Lister, merge_items};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use xxhash_rust::xxh3::xxh3_128;

/// Most findings that a report lists; the rest is counted.
pub const FINDINGS_MAX: usize = 10_000;
/// Buckets under way.
const UNITS_MAX: usize = 4;

/// In what two copies differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Difference {
    /// One brick lacks the object.
    Missing,
    /// One brick lacks a name of the directory.
    Name,
    /// Content or attributes.
    Content,
    /// A directory stands in two places.
    Place,
}

/// One thing found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The object (of [`Difference::Name`]: the directory).
    pub gfid: Gfid,
    /// The name, of [`Difference::Name`] where it is one.
    pub name: Option<Bytes>,
    /// What differs.
    pub difference: Difference,
    /// Who is right.
    pub verdict: Verdict,
}

/// What a scrub found.
#[derive(Clone, Debug, Default)]
pub struct ScrubReport {
    /// Objects compared.
    pub objects: u64,
    /// Objects that got a signature.
    pub signed: u64,
    /// Objects that changed while they were compared: not judged.
    pub busy: u64,
    /// At most [`FINDINGS_MAX`], by gfid within a bucket.
    pub findings: Vec<Finding>,
    /// Findings that are not listed.
    pub findings_left_out: u64,
}

impl ScrubReport {
    /// The objects to look at again under freeze.
    #[must_use]
    pub fn suspects(&self) -> HealPlan {
        HealPlan::objects(self.findings.iter().map(|f| f.gfid))
    }

    /// What is to be healed in each direction. Undecided findings are in neither.
    #[must_use]
    pub fn repairs(&self) -> [(Direction, BTreeMap<Gfid, HealItem>); 2] {
        let (mut push, mut pull) = (BTreeMap::new(), BTreeMap::new());
        for f in &self.findings {
            let (into, reason) = match f.verdict {
                Verdict::Local(r) => (&mut push, r),
                Verdict::Remote(r) => (&mut pull, r),
                Verdict::Same | Verdict::Undecidable(_) => continue,
            };
            let item =
                if f.difference == Difference::Name && reason == Reason::Present { HealItem::union() } else { HealItem::whole() };
            merge_items(into, f.gfid, item);
        }
        [(Direction::Push, push), (Direction::Pull, pull)]
    }

    /// Findings that nobody can decide.
    pub fn undecided(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|f| matches!(f.verdict, Verdict::Undecidable(_)))
    }
}

#[derive(Clone)]
struct Scrub {
    cx: Cx,
    report: Arc<Mutex<ScrubReport>>,
    sign: bool,
}

/// A comparison of the local brick with one other.
pub struct Scrubber {
    task: Task,
    report: Arc<Mutex<ScrubReport>>,
    counts: Arc<Mutex<Progress>>,
}

impl Scrubber {
    /// `sign`: gives what agrees on both bricks a signature where it has none that is valid.
    #[must_use]
    pub fn new(plan: HealPlan, sign: bool) -> Self {
        let (wire, counts, report) = (Wire::default(), Arc::default(), Arc::default());
        let cx = Cx::new(wire.clone(), Direction::Push, plan, Arc::clone(&counts));
        let scrub = Scrub { cx, report: Arc::clone(&report), sign };
        Self { task: Task::new(wire, async move { scrub.run().await }), report, counts }
    }

    /// As [`Healer::step`](crate::heal::Healer::step).
    pub fn step(&mut self, local: &mut dyn FnMut(&HealCall) -> HealResult) -> Step {
        self.task.step(local)
    }

    /// The next call that is to go to the other brick.
    #[must_use]
    pub fn poll_call(&mut self) -> Option<(u64, HealCall)> {
        self.task.poll_call()
    }

    /// The other brick's answer. Step afterwards.
    pub fn on_return(&mut self, id: u64, result: HealResult) {
        self.task.on_return(id, result);
    }

    /// How it ended, once it did.
    #[must_use]
    pub const fn finished(&self) -> Option<Result<(), Errno>> {
        self.task.finished()
    }

    /// Units done and left.
    #[must_use]
    pub fn units(&self) -> (u64, u64) {
        let p = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        (p.units_done, p.units_left)
    }

    /// What it has found so far.
    #[must_use]
    pub fn report(&self) -> ScrubReport {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Scrub {
    fn report(&self) -> MutexGuard<'_, ScrubReport> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(&self) -> Result<(), Errno> {
        let items: Vec<Gfid> = self.cx.plan.items.keys().copied().filter(|g| !self.cx.planned(*g)).collect();
        self.cx.counts().units_left = (self.cx.plan.buckets.len() + items.len()) as u64;
        let mut units = Window::new(UNITS_MAX);
        for bucket in &self.cx.plan.buckets {
            units.push(self.bucket(*bucket)).await?;
        }
        for gfid in items {
            units.push(self.item(gfid)).await?;
        }
        units.drain().await
    }

    fn unit_done(&self) {
        let mut counts = self.cx.counts();
        counts.units_done += 1;
        counts.units_left = counts.units_left.saturating_sub(1);
    }

    async fn item(&self, gfid: Gfid) -> Result<(), Errno> {
        let local = self.cx.stat(Side::Local, gfid).await?;
        let remote = self.cx.stat(Side::Remote, gfid).await?;
        self.pair(gfid, local, remote).await?;
        self.unit_done();
        Ok(())
    }

    async fn bucket(&self, bucket: crate::fop::Bucket) -> Result<(), Errno> {
        let mut local = Lister::new(&self.cx, Side::Local, bucket);
        let mut remote = Lister::new(&self.cx, Side::Remote, bucket);
        loop {
            let gfid = match (local.peek().await?, remote.peek().await?) {
                (None, None) => break,
                (Some(l), Some(r)) => l.min(r),
                (l, r) => l.or(r).ok_or(wire::PROTOCOL)?,
            };
            let (l, r) = (local.take(gfid).flatten(), remote.take(gfid).flatten());
            self.pair(gfid, l, r).await?;
        }
        self.unit_done();
        Ok(())
    }

    async fn pair(&self, gfid: Gfid, local: Option<ObjectInfo>, remote: Option<ObjectInfo>) -> Result<(), Errno> {
        self.report().objects += 1;
        let found = match (&local, &remote) {
            (None, None) => return Ok(()),
            (Some(l), None) => vec![missing(gfid, l, Verdict::Local(Reason::Present))],
            (None, Some(r)) => vec![missing(gfid, r, Verdict::Remote(Reason::Present))],
            (Some(l), Some(r)) => match self.compare(l, r).await {
                Ok(found) => found,
                // It went while it was compared.
                Err(Errno::ENOENT | Errno::ESTALE | Errno::ENOTDIR) => return self.busy(),
                Err(e) => return Err(e),
            },
        };
        if found.is_empty() {
            return Ok(());
        }
        let key = |o: &Option<ObjectInfo>| o.as_ref().map(|o| (o.attr.size, o.attr.mtime, o.attr.mode, o.xattr_sum));
        let again = (self.cx.stat(Side::Local, gfid).await?, self.cx.stat(Side::Remote, gfid).await?);
        if (key(&again.0), key(&again.1)) != (key(&local), key(&remote)) {
            return self.busy();
        }
        let mut report = self.report();
        for f in found {
            if report.findings.len() < FINDINGS_MAX {
                report.findings.push(f);
            } else {
                report.findings_left_out += 1;
            }
        }
        Ok(())
    }

    fn busy(&self) -> Result<(), Errno> {
        self.report().busy += 1;
        Ok(())
    }

    async fn compare(&self, l: &ObjectInfo, r: &ObjectInfo) -> Result<Vec<Finding>, Errno> {
        let gfid = l.attr.gfid;
        let finding = |difference, verdict| Finding { gfid, name: None, difference, verdict };
        if l.attr.kind != r.attr.kind {
            return Ok(vec![finding(Difference::Content, Verdict::Undecidable(Doubt::Identity))]);
        }
        if l.place != r.place {
            return Ok(vec![finding(Difference::Place, Verdict::Undecidable(Doubt::Identity))]);
        }
        let is_dir = l.attr.kind == FileKind::Dir;
        let (mut names_l, mut names_r) = (BTreeMap::new(), BTreeMap::new());
        let (content_l, content_r) = if is_dir {
            names_l = entries(&self.cx, Side::Local, gfid).await?;
            names_r = entries(&self.cx, Side::Remote, gfid).await?;
            (names_sum(&names_l), names_sum(&names_r))
        } else {
            (self.content(Side::Local, l).await?, self.content(Side::Remote, r).await?)
        };
        let (local, remote) = (self.seen(Side::Local, l, content_l).await?, self.seen(Side::Remote, r, content_r).await?);
        let verdict = decide(&local, &remote, None);
        match verdict {
            Verdict::Same => {
                self.sign(Side::Local, &local).await?;
                self.sign(Side::Remote, &remote).await?;
                Ok(Vec::new())
            }
            Verdict::Undecidable(_) if is_dir && names_l != names_r => Ok(name_findings(gfid, &names_l, &names_r)),
            _ => Ok(vec![finding(if is_dir && names_l != names_r { Difference::Name } else { Difference::Content }, verdict)]),
        }
    }

    async fn content(&self, side: Side, o: &ObjectInfo) -> Result<u128, Errno> {
        let (gfid, mut sum, mut at) = (o.attr.gfid, ContentSum::default(), 0);
        match o.attr.kind {
            FileKind::File => loop {
                let call = HealCall::Sums { gfid, offset: at, end: u64::MAX };
                let (chunks, next) = wire::sums(self.cx.wire.call(side, call).await?)?;
                chunks.into_iter().for_each(|(n, s)| sum.chunk(n, s));
                match next {
                    Some(next) if next > at => at = next,
                    Some(_) => return Err(wire::PROTOCOL),
                    None => return Ok(sum.finish()),
                }
            },
            FileKind::Symlink => Ok(o.target.as_ref().map_or(0, |t| xxh3_128(t))),
            _ => Ok(0),
        }
    }

    async fn seen(&self, side: Side, o: &ObjectInfo, content: u128) -> Result<Seen, Errno> {
        let call = HealCall::Signature { gfid: o.attr.gfid };
        let signature = wire::signature(self.cx.wire.call(side, call).await?)?;
        // A directory's size is the file system's affair.
        let mut attr = o.attr.clone();
        if attr.kind == FileKind::Dir {
            attr.size = 0;
        }
        Ok(Seen { attr, xattr_sum: o.xattr_sum, content, signature })
    }

    async fn sign(&self, side: Side, seen: &Seen) -> Result<(), Errno> {
        let (attr, sum) = (&seen.attr, seen.content);
        let signature = Signature { sum, size: attr.size, mtime: attr.mtime };
        if !self.sign || seen.signature == Some(signature) || !matches!(attr.kind, FileKind::File | FileKind::Dir) {
            return Ok(());
        }
        match self.cx.wire.call(side, HealCall::Sign { gfid: attr.gfid, signature }).await {
            Ok(_) => self.report().signed += 1,
            // It changed meanwhile, or there is no room: it stays unsigned.
            Err(Errno::ESTALE | Errno::ENOENT | Errno::ENOSPC) => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }
}

fn missing(gfid: Gfid, there: &ObjectInfo, present: Verdict) -> Finding {
    let named = there.attr.nlink > 0 && there.place != Some(Place::Limbo);
    let verdict = if named { present } else { Verdict::Undecidable(Doubt::Nameless) };
    Finding { gfid, name: None, difference: Difference::Missing, verdict }
}

/// Names that one brick lacks. A name that is there, in the index too, did not come by accident: it wins over its absence.
fn name_findings(dir: Gfid, local: &BTreeMap<Bytes, NameEntry>, remote: &BTreeMap<Bytes, NameEntry>) -> Vec<Finding> {
    let known = |e: Option<&NameEntry>| e.map(|e| e.gfid).filter(|g| *g != STRANGER);
    let mut names: Vec<_> = local.keys().chain(remote.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let findings = names.into_iter().filter(|n| local.get(*n) != remote.get(*n) || known(local.get(*n)).is_none());
    findings
        .map(|name| {
            let verdict = match (known(local.get(name)), known(remote.get(name))) {
                (Some(_), Some(_)) => Verdict::Undecidable(Doubt::Identity),
                (Some(_), None) => Verdict::Local(Reason::Present),
                (None, Some(_)) => Verdict::Remote(Reason::Present),
                (None, None) => Verdict::Undecidable(Doubt::Stranger),
            };
            Finding { gfid: dir, name: Some(name.clone()), difference: Difference::Name, verdict }
        })
        .collect()
}
