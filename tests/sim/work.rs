//! What a caller does: it changes files in directories of its own, reads everybody's, and compares.

use super::invariants::{acknowledged_changes_survive as changes, fsynced_content_survives as fsynced, reads_never_go_back as reads};
use super::model::{BLOCK, BLOCKS, Name, block, values};
use super::world::{CALLERS, World};
use brickraft_fs::fop::{DirEntry, Errno, FileKind, Fop, Gfid, Reply, SetAttr};
use bytes::Bytes;
use rand::Rng;
use rand::rngs::SmallRng;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Names in a directory.
const NAMES: u8 = 4;
/// The name of the subdirectory.
const SUB: &[u8] = b"sub";

/// What the operation under way is for.
#[derive(Clone, Debug)]
pub enum Intent {
    MkDir,
    Create(Name, Gfid),
    Unlink(Name),
    Rename(Name, Name),
    MkSub(Gfid),
    RmSub,
    Write(Gfid, Vec<(usize, usize)>),
    Fsync(Gfid, Vec<usize>),
    Read(Gfid, Vec<usize>),
    List(bool),
    Lookup(Name),
    /// After a power cut that may have lost something: see what is there.
    Relist(bool),
    Reread(Gfid),
}

/// A caller's state and its model of its directory.
#[derive(Default)]
pub struct Work {
    reader: bool,
    root_name: Bytes,
    dir: Option<Gfid>,
    sub: Option<Gfid>,
    pub names: BTreeMap<Name, Gfid>,
    intent: Option<Intent>,
    todo: VecDeque<Intent>,
    /// Files found since the last power cut.
    found: BTreeMap<Name, Gfid>,
    /// The losses that it knows of, and that there were when the operation began.
    losses: u64,
    losses_then: u64,
    resyncing: bool,
    /// The last look at everything, in a quiet system, is begun or over.
    verifying: bool,
    pub verified: bool,
    /// Directories whose making was tried.
    tried: BTreeSet<Gfid>,
}

fn gfid(parent: Gfid, rng: &mut SmallRng) -> Gfid {
    Gfid::in_bucket(parent.bucket(), rng.random())
}

fn text(name: Name) -> Bytes {
    Bytes::from(format!("n{}", name.1))
}

impl Work {
    pub fn new(c: usize) -> Self {
        Self { reader: c % CALLERS == CALLERS - 1, root_name: Bytes::from(format!("w{c}")), ..Self::default() }
    }

    fn parent(&self, name: Name) -> Gfid {
        (if name.0 { self.sub } else { self.dir }).unwrap_or(Gfid::ROOT)
    }
}

impl World {
    fn work(&mut self, c: usize) -> &mut Work {
        &mut self.callers[c].work
    }

    /// The caller is free: what next?
    pub(super) fn next_work(&mut self, c: usize) {
        let losses = self.checks.losses;
        let draining = self.draining;
        if self.work(c).reader {
            return self.next_read(c);
        }
        let w = self.work(c);
        if w.losses != losses && w.dir.is_some() && !w.resyncing {
            (w.resyncing, w.verifying, w.verified) = (true, false, false);
            w.losses = losses;
            w.found.clear();
            w.todo = VecDeque::from([Intent::Relist(false)]);
        }
        if w.losses != losses && w.resyncing {
            w.losses = losses;
            w.found.clear();
            w.todo = VecDeque::from([Intent::Relist(false)]);
        }
        if let Some(intent) = w.todo.pop_front() {
            return self.begin(c, intent);
        }
        if w.resyncing {
            w.resyncing = false;
            let found = std::mem::take(&mut w.found);
            w.names = found;
            let names = w.names.clone();
            fsynced::check_names(&mut self.checks.files, c, &names);
            return self.next_work(c);
        }
        if w.dir.is_none() {
            w.losses = losses;
            return self.begin(c, Intent::MkDir);
        }
        if draining {
            if w.verified {
                return;
            }
            if w.verifying {
                w.verified = true;
                return;
            }
            w.verifying = true;
            let mut todo = VecDeque::from([Intent::List(false)]);
            if w.sub.is_some() {
                todo.push_back(Intent::List(true));
            }
            todo.extend(w.names.values().map(|g| Intent::Read(*g, Vec::new())));
            w.todo = todo;
            return self.next_work(c);
        }
        let intent = self.choose(c);
        self.begin(c, intent);
    }

    /// The next file for a caller that only reads.
    fn next_read(&mut self, c: usize) {
        if self.draining {
            self.work(c).verified = true;
            return;
        }
        match self.any_file() {
            Some(gfid) => self.begin(c, Intent::Read(gfid, Vec::new())),
            None => self.wake_in(c, Duration::from_millis(50)),
        }
    }

    fn any_file(&mut self) -> Option<Gfid> {
        let all: Vec<Gfid> = self.checks.files.files.iter().filter(|(_, f)| !f.gone).map(|(g, _)| *g).collect();
        (!all.is_empty()).then(|| all[self.rng.random_range(0..all.len())])
    }

    fn choose(&mut self, c: usize) -> Intent {
        let w = &self.callers[c].work;
        let all: Vec<Name> =
            (0..NAMES).flat_map(|n| [(false, n), (true, n)]).filter(|n| !n.0 || w.sub.is_some()).collect();
        let name = all[self.rng.random_range(0..all.len())];
        let taken: Vec<Name> = w.names.keys().copied().collect();
        let there = (!taken.is_empty()).then(|| taken[self.rng.random_range(0..taken.len())]);
        let mine = there.map(|n| w.names[&n]);
        let sub_empty = !w.names.keys().any(|n| n.0);
        match (self.rng.random_range(0..100), there, mine) {
            (0..10, _, _) if !w.names.contains_key(&name) => {
                let parent = w.parent(name);
                Intent::Create(name, gfid(parent, &mut self.rng))
            }
            (10..14, Some(there), _) => Intent::Unlink(there),
            (14..22, Some(there), _) if there != name => Intent::Rename(there, name),
            (22..25, _, _) if w.sub.is_none() => {
                let bucket = Gfid::directory_bucket(w.dir.unwrap_or(Gfid::ROOT), SUB);
                Intent::MkSub(Gfid::in_bucket(bucket, self.rng.random()))
            }
            (25..27, _, _) if w.sub.is_some() && sub_empty => Intent::RmSub,
            (27..57, _, Some(mine)) => {
                let first = self.rng.random_range(0..BLOCKS);
                let last = (first + self.rng.random_range(1..6)).min(BLOCKS);
                Intent::Write(mine, (first..last).map(|b| (b, 0)).collect())
            }
            (57..59, _, Some(mine)) => Intent::Write(mine, Vec::new()),
            (59..69, _, Some(mine)) => Intent::Fsync(mine, Vec::new()),
            (69..72, _, _) => Intent::List(w.sub.is_some() && self.rng.random_bool(0.4)),
            (72..75, _, _) => Intent::Lookup(name),
            (75..87, _, Some(mine)) => Intent::Read(mine, Vec::new()),
            _ => self.any_file().map_or(Intent::List(false), |gfid| Intent::Read(gfid, Vec::new())),
        }
    }

    fn begin(&mut self, c: usize, intent: Intent) {
        let losses = self.checks.losses;
        let w = &mut self.callers[c].work;
        w.losses_then = losses;
        let dir = w.dir.unwrap_or(Gfid::ROOT);
        let mut payload = Bytes::new();
        let files = &mut self.checks.files;
        let mut intent = intent;
        let fop;
        match &mut intent {
            Intent::MkDir => {
                let gfid = Gfid::in_bucket(Gfid::directory_bucket(Gfid::ROOT, &w.root_name), self.rng.random());
                w.tried.insert(gfid);
                fop = Fop::MkDir { parent: Gfid::ROOT, name: w.root_name.clone(), gfid, mode: 0o755, uid: 0, gid: 0 };
            }
            Intent::Create(name, gfid) => {
                files.make(*gfid, c);
                fop = Fop::Create { parent: w.parent(*name), name: text(*name), gfid: *gfid, mode: 0o644, uid: 0, gid: 0, open: false };
            }
            Intent::Unlink(name) => {
                if let Some(f) = w.names.get(name).and_then(|g| files.files.get_mut(g)) {
                    (f.may_be_gone, f.gone) = (true, true);
                }
                fop = Fop::Unlink { parent: w.parent(*name), name: text(*name) };
            }
            Intent::Rename(from, to) => {
                if let Some(f) = w.names.get(to).and_then(|g| files.files.get_mut(g)) {
                    (f.may_be_gone, f.gone) = (true, true);
                }
                if let Some(f) = w.names.get(from).and_then(|g| files.files.get_mut(g)) {
                    f.names.insert(*to);
                }
                fop = Fop::Rename { parent: w.parent(*from), name: text(*from), new_parent: w.parent(*to), new_name: text(*to), flags: 0 };
            }
            Intent::MkSub(gfid) => {
                fop = Fop::MkDir { parent: dir, name: Bytes::from_static(SUB), gfid: *gfid, mode: 0o755, uid: 0, gid: 0 };
            }
            Intent::RmSub => fop = Fop::RmDir { parent: dir, name: Bytes::from_static(SUB) },
            Intent::Write(gfid, places) if places.is_empty() => {
                let first = self.rng.random_range(0..=BLOCKS);
                if let Some(f) = files.files.get_mut(gfid) {
                    places.extend((first..BLOCKS).map(|b| (b, f.blocks[b].attempt(0))));
                }
                fop = Fop::SetAttr { gfid: *gfid, set: SetAttr { size: Some((first * BLOCK) as u64), ..SetAttr::default() } };
            }
            Intent::Write(gfid, places) => {
                let value = files.value();
                let first = places[0].0;
                for (b, place) in places.iter_mut() {
                    *place = files.files.get_mut(gfid).map_or(0, |f| f.blocks[*b].attempt(value));
                }
                payload = block(value).repeat(places.len()).into();
                fop = Fop::Write { gfid: *gfid, offset: (first * BLOCK) as u64 };
            }
            Intent::Fsync(gfid, marks) => {
                *marks = files.files.get(gfid).map(|f| f.blocks.iter().map(|b| b.acked).collect()).unwrap_or_default();
                fop = Fop::Fsync { gfid: *gfid, data_only: false };
            }
            Intent::Read(gfid, floors) => {
                *floors = files.floors(*gfid);
                fop = Fop::Read { gfid: *gfid, offset: 0, len: 64 << 10 };
            }
            Intent::Reread(gfid) => fop = Fop::Read { gfid: *gfid, offset: 0, len: 64 << 10 },
            Intent::List(sub) | Intent::Relist(sub) => {
                let gfid = if *sub { w.sub.unwrap_or(dir) } else { dir };
                fop = Fop::ReadDir { gfid, cookie: 0, bytes: 64 << 10, plus: false };
            }
            Intent::Lookup(name) => fop = Fop::Lookup { parent: w.parent(*name), name: text(*name) },
        }
        w.intent = Some(intent);
        self.call(c, fop, payload);
    }

    /// The outcome of what [`World::call`] began.
    pub(super) fn work_done(&mut self, c: usize, fop: Fop, outcome: Result<(Reply, Bytes), Errno>) {
        let ms = self.rng.random_range(0..if self.draining { 2 } else { 40 });
        self.wake_in(c, Duration::from_millis(ms));
        let certain = self.checks.losses == self.callers[c].work.losses_then;
        let Some(intent) = self.work(c).intent.take() else { return };
        match intent {
            Intent::Relist(sub) => return self.relisted(c, sub, certain, outcome),
            Intent::Reread(gfid) if certain => {
                let read = outcome.map(|(_, data)| data);
                return fsynced::check_content(&mut self.checks.files, gfid, &read);
            }
            Intent::Read(gfid, floors) => {
                let mine = self.checks.files.files.get(&gfid).is_some_and(|f| f.owner == c);
                let read = outcome.map(|(_, data)| data);
                return reads::check(&mut self.checks.files, gfid, &floors, certain, mine, &read);
            }
            _ => {}
        }
        if let (Intent::MkDir, Fop::MkDir { gfid, .. }) = (&intent, &fop) {
            match outcome {
                Ok(_) => self.work(c).dir = Some(*gfid),
                // An earlier attempt of ours came back with the power.
                Err(e) => assert!(e == Errno::EEXIST && !certain, "caller {c}: {fop:?} failed: {e}"),
            }
            return;
        }
        if certain {
            self.settle(c, intent, &fop, &outcome);
        } else {
            self.checks.files.changed_in_doubt(c, &intent);
        }
    }

    fn settle(&mut self, c: usize, intent: Intent, fop: &Fop, outcome: &Result<(Reply, Bytes), Errno>) {
        let w = &mut self.callers[c].work;
        let files = &mut self.checks.files;
        match intent {
            Intent::List(sub) => {
                let sub_entry = w.sub.filter(|_| !sub);
                return changes::check_listing(c, sub, &w.names, sub_entry, outcome);
            }
            Intent::Lookup(name) => return changes::check_lookup(c, fop, w.names.get(&name).copied(), outcome),
            _ => {}
        }
        changes::check_outcome(c, fop, outcome);
        match intent {
            Intent::Create(name, gfid) => drop(w.names.insert(name, gfid)),
            Intent::Unlink(name) => drop(w.names.remove(&name)),
            Intent::Rename(from, to) => {
                if let Some(gfid) = w.names.remove(&from) {
                    w.names.insert(to, gfid);
                }
            }
            Intent::MkSub(gfid) => w.sub = Some(gfid),
            Intent::RmSub => w.sub = None,
            Intent::Write(gfid, places) => {
                if let Some(f) = files.files.get_mut(&gfid) {
                    places.iter().for_each(|&(b, place)| f.blocks[b].acked = f.blocks[b].acked.max(place));
                }
            }
            Intent::Fsync(gfid, marks) => {
                let names: BTreeSet<Name> = w.names.iter().filter(|(_, g)| **g == gfid).map(|(n, _)| *n).collect();
                if let Some(f) = files.files.get_mut(&gfid) {
                    marks.iter().zip(&mut f.blocks).for_each(|(mark, b)| b.synced = b.synced.max(*mark));
                    (f.names, f.may_be_gone) = (names, false);
                }
            }
            _ => {}
        }
    }

    /// Takes in what is there after a power cut.
    fn relisted(&mut self, c: usize, sub: bool, certain: bool, outcome: Result<(Reply, Bytes), Errno>) {
        if !certain {
            return;
        }
        let w = &mut self.callers[c].work;
        let entries: Vec<DirEntry> = match outcome {
            Ok((Reply::Entries { entries, end: true }, _)) => entries,
            Err(Errno::ENOENT) if !sub => {
                // The directory itself was not durable.
                (w.dir, w.sub, w.resyncing) = (None, None, false);
                w.names.clear();
                w.todo.clear();
                return fsynced::check_names(&mut self.checks.files, c, &BTreeMap::new());
            }
            other => panic!("caller {c}: listing after a power cut: {other:?}"),
        };
        if !sub {
            w.sub = None;
        }
        for entry in entries {
            if entry.kind == FileKind::Dir {
                w.sub = Some(entry.gfid);
                w.todo.push_back(Intent::Relist(true));
                continue;
            }
            let number = entry.name.get(1).map_or(0, |b| b - b'0');
            w.found.insert((sub, number), entry.gfid);
            w.todo.push_back(Intent::Reread(entry.gfid));
        }
    }
}

/// The values of what was read, or what is wrong with it.
pub fn contents(gfid: Gfid, data: &Bytes) -> Vec<u64> {
    values(data).unwrap_or_else(|e| panic!("file {gfid}: {e}"))
}
