//! Random changes of a few files, beside plain vectors of bytes.

use super::*;
use crate::union::branch::volume;
use crate::union::{Caller, ROOT_INO};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const SIZE_MAX: usize = 200;

/// Where the two branches lie.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Local,
    Simulated,
    Volume,
}

/// What each file of the model holds.
type Files = BTreeMap<usize, Vec<u8>>;

struct World {
    branches: Vec<BranchConfig>,
    below: Vec<(Arc<dyn Branch>, Handle, Vec<u8>)>,
    upper: Arc<dyn Branch>,
    union: Union,
    /// By name: which file.
    names: BTreeMap<&'static str, usize>,
    files: Files,
    /// Unlinked, and still in use.
    open: Vec<(usize, u64)>,
    next: usize,
    done: Vec<String>,
    _dirs: Vec<tempfile::TempDir>,
}

fn branch(kind: Kind, label: &str, perm: Perm, dirs: &mut Vec<tempfile::TempDir>) -> BranchConfig {
    match kind {
        Kind::Local => {
            dirs.push(tempfile::tempdir().unwrap());
            dir_branch(dirs.last().unwrap().path(), perm)
        }
        Kind::Simulated => sim_branch(label, &Arc::new(SimBranch::new(label.len() as u64)), perm),
        Kind::Volume => {
            let source = BranchSource::Volume { label: format!("h:{label}"), volume: volume(), subdir: "".into() };
            BranchConfig { source, perm }
        }
    }
}

/// A second way into a branch.
fn reach(config: &BranchConfig) -> Arc<dyn Branch> {
    match &config.source {
        BranchSource::Dir(path) => Arc::new(crate::union::branch::LocalBranch::open(path).unwrap()),
        BranchSource::Volume { label, volume, subdir } => {
            Arc::new(crate::union::branch::VolumeBranch::open(label, Arc::clone(volume), subdir).unwrap())
        }
        BranchSource::Other { branch, .. } => Arc::clone(branch),
    }
}

fn world(kinds: (Kind, Kind), rng: &mut SmallRng) -> World {
    rustix::process::umask(rustix::fs::Mode::empty());
    let mut dirs = Vec::new();
    let (above, below) = (branch(kinds.0, "up", Perm::RW, &mut dirs), branch(kinds.1, "low", Perm::RO, &mut dirs));
    let lower = reach(&below);
    let (mut names, mut files, mut held) = (BTreeMap::new(), Files::new(), Vec::new());
    for (i, name) in NAMES[..3].iter().enumerate() {
        let mut data = text(rng.random_range(30..SIZE_MAX));
        // Some of it is a hole, or could be one.
        let hole = rng.random_range(0..data.len());
        let end = data.len().min(hole + 40);
        data[hole..end].fill(0);
        super::super::put(&*lower, name, FileKind::File, &data);
        held.push((Arc::clone(&lower), lower.open(At::Name(&lower.root(), name.as_bytes()), Open::Read).unwrap(), data.clone()));
        names.insert(*name, i);
        files.insert(i, data);
    }
    let branches = vec![above, below];
    let upper = reach(&branches[0]);
    let union = Union::open(lazily(branches.clone())).unwrap();
    World { branches, below: held, upper, union, names, files, open: Vec::new(), next: 10, done: Vec::new(), _dirs: dirs }
}

impl World {
    /// Some file: its number in the union, and which one it is.
    fn pick(&self, rng: &mut SmallRng) -> Option<(usize, u64)> {
        if !self.open.is_empty() && rng.random_range(0..5) == 0 {
            return Some(self.open[rng.random_range(0..self.open.len())]);
        }
        let name = NAMES[rng.random_range(0..NAMES.len())];
        self.names.get(name).map(|file| (*file, walk(&self.union, name).unwrap()))
    }

    fn check(&self, context: &str) {
        let said = || format!("{context}: {:#?}", self.done);
        let named =
            self.names.iter().map(|(name, file)| (*file, walk(&self.union, name).unwrap_or_else(|e| panic!("{name}: {e}: {}", said()))));
        for (file, ino) in named.chain(self.open.iter().copied()).collect::<Vec<_>>() {
            let model = &self.files[&file];
            let shown = content(&self.union, ino).unwrap_or_else(|e| panic!("read file {file}: {e}: {}", said()));
            assert_eq!(String::from_utf8_lossy(&shown), String::from_utf8_lossy(model), "file {file}: {}", said());
            let attr = self.union.getattr(ino).unwrap();
            assert!(attr.blocks > 0 || model.iter().all(|b| *b == 0), "it seems to be one hole: {}", said());
        }
        // No bitmap without its file, and no file without its bitmap.
        let (bitmaps, marks) = on_disk(&*self.upper);
        assert_eq!(bitmaps, marks, "{}", said());
    }

    fn seek(&self, (file, ino): (usize, u64), at: usize) {
        let model = &self.files[&file];
        let seek = |at: usize, whence| self.union.lseek(ino, at as u64, whence).map(|n| n as usize);
        let data = match seek(at, 3) {
            Ok(data) => data,
            Err(Errno::ENXIO) => model.len(),
            Err(e) => panic!("SEEK_DATA: {e}: {:#?}", self.done),
        };
        if at >= model.len() {
            assert_eq!(data, model.len());
            return;
        }
        assert!(at <= data && model[at..data].iter().all(|b| *b == 0), "data before {data}, from {at}: {:#?}", self.done);
        let hole = seek(at, 4).expect("SEEK_HOLE");
        let next = if hole < model.len() { seek(hole, 3).unwrap_or(model.len()) } else { hole };
        assert!(at <= hole && hole <= model.len() && model[hole..next].iter().all(|b| *b == 0), "no hole at {hole}: {:#?}", self.done);
    }

    fn write(&mut self, (file, ino): (usize, u64), at: usize, data: &[u8]) {
        self.union.write(ino, at as u64, data, false).unwrap_or_else(|e| panic!("write: {e}: {:#?}", self.done));
        put(self.files.get_mut(&file).unwrap(), at, data);
    }

    fn allocate(&mut self, (file, ino): (usize, u64), at: usize, len: usize, mode: u32) {
        let model = self.files.get_mut(&file).unwrap();
        match self.union.fallocate(ino, at as u64, len as u64, mode) {
            Err(Errno::EOPNOTSUPP) => return,
            other => other.unwrap_or_else(|e| panic!("fallocate: {e}: {:#?}", self.done)),
        }
        let size = model.len();
        if mode & 1 == 0 {
            model.resize(size.max(at + len), 0);
        }
        if mode & !1 != 0 {
            let end = model.len().min(at + len);
            model[at.min(end)..end].fill(0);
        }
    }

    fn copy(&mut self, from: (usize, u64), to: (usize, u64), at: usize, there: usize, len: usize) {
        if from == to {
            return;
        }
        let n = self.union.copy_file_range(from.1, at as u64, to.1, there as u64, len as u64).unwrap() as usize;
        let source = &self.files[&from.0];
        assert_eq!(n, len.min(source.len().saturating_sub(at)), "{:#?}", self.done);
        let part = source[at.min(source.len())..][..n].to_vec();
        if n > 0 {
            put(self.files.get_mut(&to.0).unwrap(), there, &part);
        }
    }

    /// Names come and go.
    fn names(&mut self, rng: &mut SmallRng) {
        let (from, to) = (NAMES[rng.random_range(0..NAMES.len())], NAMES[rng.random_range(0..NAMES.len())]);
        let there = self.names.get(to).map(|file| (*file, walk(&self.union, to).unwrap()));
        match rng.random_range(0..4) {
            0 if there.is_some() => {
                self.done.push(format!("unlink {to}"));
                self.union.unlink(ROOT_INO, to.as_bytes()).unwrap();
                self.names.remove(to);
            }
            1 if from != to && self.names.contains_key(from) => {
                self.done.push(format!("rename {from} {to}"));
                walk(&self.union, from).unwrap();
                self.union.rename(ROOT_INO, from.as_bytes(), ROOT_INO, to.as_bytes(), 0).unwrap();
                let (file, other) = (self.names[from], self.names.get(to).copied());
                // Of two names of one file both stay.
                if other != Some(file) {
                    self.names.remove(from);
                    self.names.insert(to, file);
                }
            }
            2 if there.is_none() && self.names.contains_key(from) => {
                self.done.push(format!("link {from} {to}"));
                self.union.link(walk(&self.union, from).unwrap(), ROOT_INO, to.as_bytes()).unwrap();
                self.names.insert(to, self.names[from]);
            }
            3 if there.is_none() => {
                self.done.push(format!("create {to}"));
                self.union.mknod(ROOT_INO, to.as_bytes(), FileKind::File, 0o644, 0, &Caller::default()).unwrap();
                self.names.insert(to, self.next);
                self.files.insert(self.next, Vec::new());
                self.next += 1;
            }
            _ => return,
        }
        if let Some((file, ino)) = there
            && !self.names.values().any(|f| *f == file)
        {
            self.open.push((file, ino));
        }
    }

    fn remount(&mut self, rng: &mut SmallRng) {
        self.union.close();
        self.open.clear();
        let mut config = lazily(self.branches.clone());
        if rng.random() {
            config.lazy.cpup = None;
        }
        self.done.push(format!("remount, {:?}", config.lazy.cpup));
        self.union = Union::open(config).unwrap();
    }

    fn step(&mut self, rng: &mut SmallRng) {
        let (at, len) = (rng.random_range(0..SIZE_MAX), rng.random_range(1..60));
        match rng.random_range(0..30) {
            0..4 => return self.names(rng),
            4 => return self.remount(rng),
            _ => {}
        }
        let (Some(file), Some(other)) = (self.pick(rng), self.pick(rng)) else { return };
        let what = rng.random_range(0..20);
        self.done.push(format!("{what} on file {} (and {}), {len} at {at}", file.0, other.0));
        let ino = file.1;
        match what {
            0..7 => {
                let data: Vec<u8> = (0..len).map(|_| rng.random_range(b'0'..=b'9')).collect();
                self.write(file, at, &data);
            }
            // Whole blocks.
            7 => self.write(file, at / 16 * 16, &[b'#'; 32]),
            8..10 => {
                truncate(&self.union, ino, at as u64).unwrap();
                self.files.get_mut(&file.0).unwrap().resize(at, 0);
            }
            10..13 => self.allocate(file, at, len, [0, 1, 3, 3, 16, 17][rng.random_range(0..6)]),
            13 => self.copy(file, other, at, rng.random_range(0..SIZE_MAX), len),
            14 => self.union.fsync(ino, rng.random()).unwrap(),
            15 => drop(
                self.union.complete(ino, rng.random_range(1..100)).or_else(|e| if e == Errno::EROFS { Ok(true) } else { Err(e) }).unwrap(),
            ),
            16 => drop(self.union.setattr(ino, &SetAttr { mode: Some(0o600), uid: Some(3), ..SetAttr::default() }, false).unwrap()),
            _ => self.seek(file, at),
        }
    }
}

fn put(model: &mut Vec<u8>, at: usize, data: &[u8]) {
    model.resize(model.len().max(at + data.len()), 0);
    model[at..at + data.len()].copy_from_slice(data);
}

fn run(kinds: (Kind, Kind), seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut w = world(kinds, &mut rng);
        for _ in 0..120 {
            w.step(&mut rng);
            w.check(&format!("{kinds:?}, seed {seed}"));
        }
        w.remount(&mut rng);
        w.check(&format!("{kinds:?}, seed {seed}, at the end"));
        for (branch, held, data) in &w.below {
            let mut buf = vec![0; SIZE_MAX];
            let n = branch.read(held, 0, &mut buf).unwrap();
            assert_eq!(buf[..n], data[..], "seed {seed}: the lower file was changed");
        }
    }
}

#[test]
fn lazy_copies_behave_as_plain_files() {
    run((Kind::Local, Kind::Local), 0..60);
    run((Kind::Simulated, Kind::Simulated), 100..160);
}

#[test]
fn on_volumes_too() {
    run((Kind::Volume, Kind::Local), 200..230);
    run((Kind::Local, Kind::Volume), 300..330);
    run((Kind::Volume, Kind::Volume), 400..430);
}
