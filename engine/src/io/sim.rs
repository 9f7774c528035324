//! A deterministic disk: volatile until durable, with power cuts, torn and reordered sectors, and faults.
//!
//! The model is harsher than most disks, never kinder:
//! - Operations in flight complete in random order; each has its effect at its completion.
//! - A power cut keeps, of every 512-byte sector written and not yet durable, any one of the versions
//!   that it had since it was durable; also of writes still in flight.
//! - Creations, renames and removals survive up to some point in their order (as a journal keeps them).
//!
//! [`SimDisk`] is the disk, [`SimIo`] a process's view of it: drop the latter and open another to restart.

use super::{Completion, Io, IoOp};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const SECTOR: usize = 512;

/// The disk, shared by the processes that come and go. Cloning gives another handle to the same disk.
#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<State>>);

struct State {
    rng: SmallRng,
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    /// Changes of names since they were durable, in order.
    name_changes: Vec<NameChange>,
    flying: Vec<Flying>,
    process: u64,
    /// Operations started and blocking changes made, ever.
    operations: u64,
    off_at: Option<u64>,
    fail_at: Option<(u64, io::ErrorKind)>,
    capacity_bytes: u64,
    manual: bool,
    released: usize,
}

#[derive(Default)]
struct Inode {
    data: Vec<u8>,
    durable: Vec<u8>,
    /// Versions of sectors since they were durable.
    dirty: BTreeMap<usize, Vec<[u8; SECTOR]>>,
}

enum NameChange {
    Link(String, usize),
    Unlink(String),
    Rename(String, String),
}

struct Flying {
    process: u64,
    token: u64,
    op: IoOp<usize>,
    fails: Option<io::ErrorKind>,
}

impl SimDisk {
    /// An empty disk; `seed` decides the order of completions.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            rng: SmallRng::seed_from_u64(seed),
            inodes: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            name_changes: Vec::new(),
            flying: Vec::new(),
            process: 0,
            operations: 0,
            off_at: None,
            fail_at: None,
            capacity_bytes: u64::MAX,
            manual: false,
            released: 0,
        })))
    }

    /// A process's view. What an earlier process left in flight completes now, as the kernel would do it.
    #[must_use]
    pub fn open(&self) -> SimIo {
        let mut state = self.lock();
        while !state.flying.is_empty() {
            state.complete_one();
        }
        state.process += 1;
        state.released = 0;
        SimIo { disk: self.clone(), process: state.process, done: Vec::new() }
    }

    /// Cuts the power: what was not durable survives in part, at random. The disk is on again after it.
    pub fn power_cut(&self, seed: u64) {
        self.lock().power_cut(&mut SmallRng::seed_from_u64(seed));
    }

    /// Operations counted so far; [`Self::off_at`] and [`Self::fail_at`] name points in this count.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// The disk stops answering at the operation with this number: it and everything in flight is undecided
    /// until [`Self::power_cut`].
    pub fn off_at(&self, operation: u64) {
        self.lock().off_at = Some(operation);
    }

    /// Whether the point of [`Self::off_at`] was reached.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.lock().is_off()
    }

    /// The operation with this number fails, once, with `kind`.
    pub fn fail_at(&self, operation: u64, kind: io::ErrorKind) {
        self.lock().fail_at = Some((operation, kind));
    }

    /// Writes fail with `StorageFull` once all files together would be larger.
    pub fn set_capacity(&self, bytes: u64) {
        self.lock().capacity_bytes = bytes;
    }

    /// With `manual`, operations complete only by [`Self::complete`] or in `Io::wait`.
    pub fn set_manual(&self, manual: bool) {
        self.lock().manual = manual;
    }

    /// Operations that have not completed.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.lock().flying.len()
    }

    /// Lets up to `count` operations complete at the next `reap`, in random order.
    pub fn complete(&self, count: usize) {
        self.lock().released += count;
    }

    /// A file's content as a process would read it.
    #[must_use]
    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.lock();
        state.names.get(name).map(|inode| state.inodes[*inode].data.clone())
    }

    /// Replaces a file's content, durably: damage, or a file put there by hand.
    pub fn set_content(&self, name: &str, data: Vec<u8>) {
        let mut state = self.lock();
        let inode = state.inodes.len();
        state.inodes.push(Inode { durable: data.clone(), data, dirty: BTreeMap::new() });
        state.names.insert(name.into(), inode);
        state.durable_names.insert(name.into(), inode);
    }

    /// Removes a file, durably.
    pub fn remove_file(&self, name: &str) {
        let mut state = self.lock();
        state.names.remove(name);
        state.durable_names.remove(name);
    }

    /// Flips one bit of a file, on the medium.
    pub fn flip_bit(&self, name: &str, offset: usize, bit: u8) {
        if let Some(mut data) = self.content(name)
            && let Some(byte) = data.get_mut(offset)
        {
            *byte ^= 1 << (bit % 8);
            self.set_content(name, data);
        }
    }

    /// The names, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.lock().names.keys().cloned().collect()
    }

    /// A copy of the disk as it is, which goes its own way from here.
    #[must_use]
    pub fn fork(&self, seed: u64) -> Self {
        let copy = Self::new(seed);
        let state = self.lock();
        for name in state.names.keys() {
            copy.set_content(name, state.inodes[state.names[name]].data.clone());
        }
        drop(state);
        copy
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inode {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if self.data.len() < end {
            self.data.resize(end, 0);
        }
        self.data[offset..end].copy_from_slice(bytes);
        for sector in offset / SECTOR..end.div_ceil(SECTOR) {
            let version = self.sector(sector);
            self.dirty.entry(sector).or_default().push(version);
        }
    }

    fn sector(&self, sector: usize) -> [u8; SECTOR] {
        let mut bytes = [0; SECTOR];
        let from = (sector * SECTOR).min(self.data.len());
        let to = (from + SECTOR).min(self.data.len());
        bytes[..to - from].copy_from_slice(&self.data[from..to]);
        bytes
    }

    fn make_durable(&mut self, sectors: std::ops::Range<usize>) {
        self.durable.resize(self.data.len(), 0);
        let dirty: Vec<usize> = self.dirty.range(sectors).map(|(sector, _)| *sector).collect();
        for sector in dirty {
            self.dirty.remove(&sector);
            let from = sector * SECTOR;
            let to = (from + SECTOR).min(self.data.len());
            self.durable[from..to].copy_from_slice(&self.data[from..to]);
        }
    }

    fn power_cut(&mut self, rng: &mut SmallRng) {
        if rng.random_bool(0.5) && self.data.len() > self.durable.len() {
            self.durable.resize(self.data.len(), 0);
        }
        for (sector, versions) in std::mem::take(&mut self.dirty) {
            let from = sector * SECTOR;
            let to = (from + SECTOR).min(self.durable.len());
            let pick = rng.random_range(0..=versions.len());
            if pick > 0 && from < to {
                self.durable[from..to].copy_from_slice(&versions[pick - 1][..to - from]);
            }
        }
        self.data = self.durable.clone();
    }
}

impl State {
    fn is_off(&self) -> bool {
        self.off_at.is_some_and(|at| self.operations >= at)
    }

    /// Counts one operation; says how it must fail.
    fn count(&mut self) -> io::Result<Option<io::ErrorKind>> {
        if self.is_off() {
            return Err(io::Error::other("the power is off"));
        }
        self.operations += 1;
        Ok(self.fail_at.take_if(|(at, _)| *at <= self.operations).map(|(_, kind)| kind))
    }

    /// Counts one blocking change of the directory.
    fn change(&mut self) -> io::Result<()> {
        self.count()?.map_or(Ok(()), |kind| Err(kind.into()))
    }

    fn complete_one(&mut self) -> Option<(u64, Completion)> {
        if self.is_off() || self.flying.is_empty() {
            return None;
        }
        let at = self.rng.random_range(0..self.flying.len());
        let Flying { process, token, op, fails } = self.flying.swap_remove(at);
        let result = fails.map_or_else(|| self.run(&op), |kind| Err(kind.into()));
        let data = if let IoOp::Write { data, .. } = op { Some(data) } else { None };
        Some((process, Completion { token, result, data }))
    }

    fn run(&mut self, op: &IoOp<usize>) -> io::Result<()> {
        match op {
            IoOp::Write { file, offset, data, durable } => self.write(*file, *offset, data.as_slice(), *durable),
            IoOp::Zero { file, offset, len } => self.write(*file, *offset, &vec![0; *len], false),
            IoOp::Fsync { file } => {
                self.inodes[*file].make_durable(0..usize::MAX);
                Ok(())
            }
            IoOp::SyncDir => {
                self.name_changes.clear();
                self.durable_names = self.names.clone();
                Ok(())
            }
        }
    }

    fn write(&mut self, file: usize, offset: u64, bytes: &[u8], durable: bool) -> io::Result<()> {
        let offset = usize::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let end = offset + bytes.len();
        let used: u64 = self.names.values().filter(|i| **i != file).map(|i| self.inodes[*i].data.len() as u64).sum();
        if used + end.max(self.inodes[file].data.len()) as u64 > self.capacity_bytes {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.inodes[file].write(offset, bytes);
        if durable {
            self.inodes[file].make_durable(offset / SECTOR..end.div_ceil(SECTOR));
        }
        Ok(())
    }

    fn power_cut(&mut self, rng: &mut SmallRng) {
        for Flying { op, fails, .. } in std::mem::take(&mut self.flying) {
            if fails.is_none() && let IoOp::Write { .. } | IoOp::Zero { .. } = op {
                // Its sectors are volatile versions like any other: each may have got there or not.
                let volatile = match op {
                    IoOp::Write { file, offset, data, .. } => IoOp::Write { file, offset, data, durable: false },
                    other => other,
                };
                let _ = self.run(&volatile);
            }
        }
        for inode in &mut self.inodes {
            inode.power_cut(rng);
        }
        let kept = rng.random_range(0..=self.name_changes.len());
        for change in self.name_changes.drain(..).take(kept) {
            match change {
                NameChange::Link(name, inode) => {
                    self.durable_names.insert(name, inode);
                }
                NameChange::Unlink(name) => {
                    self.durable_names.remove(&name);
                }
                NameChange::Rename(from, to) => {
                    if let Some(inode) = self.durable_names.remove(&from) {
                        self.durable_names.insert(to, inode);
                    }
                }
            }
        }
        self.names = self.durable_names.clone();
        self.off_at = None;
        self.fail_at = None;
        self.process += 1;
    }
}

/// One process's view of a [`SimDisk`].
pub struct SimIo {
    disk: SimDisk,
    process: u64,
    done: Vec<Completion>,
}

impl SimIo {
    /// The disk behind it.
    #[must_use]
    pub const fn disk(&self) -> &SimDisk {
        &self.disk
    }

    /// Refuses a process from before a power cut.
    fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.lock();
        if state.process == self.process { Ok(state) } else { Err(io::Error::other("the power was cut")) }
    }
}

impl Io for SimIo {
    type File = usize;

    fn list(&mut self) -> io::Result<Vec<String>> {
        Ok(self.state()?.names.keys().cloned().collect())
    }

    fn open(&mut self, name: &str, create: bool) -> io::Result<usize> {
        let mut state = self.state()?;
        if let Some(inode) = state.names.get(name) {
            return Ok(*inode);
        }
        if !create {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change()?;
        let inode = state.inodes.len();
        state.inodes.push(Inode::default());
        state.names.insert(name.into(), inode);
        state.name_changes.push(NameChange::Link(name.into(), inode));
        Ok(inode)
    }

    fn close(&mut self, _file: usize) {}

    fn len(&mut self, file: usize) -> io::Result<u64> {
        let state = self.state()?;
        state.inodes.get(file).map_or_else(|| Err(super::std_io::closed()), |i| Ok(i.data.len() as u64))
    }

    fn read_at(&mut self, file: usize, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let state = self.state()?;
        let data = &state.inodes.get(file).ok_or_else(super::std_io::closed)?.data;
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(data.len());
        let n = buf.len().min(data.len() - from);
        buf[..n].copy_from_slice(&data[from..from + n]);
        Ok(n)
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state()?;
        state.change()?;
        let inode = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.into(), inode);
        state.name_changes.push(NameChange::Rename(from.into(), to.into()));
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        let mut state = self.state()?;
        state.change()?;
        state.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
        state.name_changes.push(NameChange::Unlink(name.into()));
        Ok(())
    }

    fn submit(&mut self, token: u64, op: IoOp<usize>) -> io::Result<()> {
        let mut state = self.state()?;
        let fails = state.count()?;
        if let IoOp::Write { file, .. } | IoOp::Fsync { file } | IoOp::Zero { file, .. } = &op
            && *file >= state.inodes.len()
        {
            return Err(super::std_io::closed());
        }
        let process = self.process;
        state.flying.push(Flying { process, token, op, fails });
        Ok(())
    }

    fn reap(&mut self, out: &mut Vec<Completion>) -> io::Result<()> {
        out.append(&mut self.done);
        let mut state = self.state()?;
        while !state.manual || state.released > 0 {
            let Some((process, completion)) = state.complete_one() else { break };
            state.released = state.released.saturating_sub(1);
            if process == self.process {
                out.push(completion);
            }
        }
        Ok(())
    }

    fn wait(&mut self) -> io::Result<()> {
        let mut state = self.state()?;
        if self.done.is_empty() && state.is_off() {
            return Err(io::Error::other("the power is off"));
        }
        let completed = if self.done.is_empty() { state.complete_one() } else { None };
        drop(state);
        self.done.extend(completed.filter(|(process, _)| *process == self.process).map(|(_, c)| c));
        Ok(())
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn describe(&self) -> String {
        "simulated disk".into()
    }
}
