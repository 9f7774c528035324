//! A store on storage that forgets everything since the last sync.

use super::*;
use crate::kv::StoreError;
use redb::StorageBackend;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

/// The files of a disk.
pub(super) const TABLES: usize = 0;
pub(super) const HISTORY: usize = 1;

/// What is written, and what a power cut leaves of it.
#[derive(Debug, Default)]
pub(super) struct Disk {
    pub(super) volatile: [Vec<u8>; 2],
    durable: [Vec<u8>; 2],
    syncs: usize,
    /// After so many syncs, later ones only pretend: as if the power went before them.
    syncs_max: Option<usize>,
    /// After so many writes, the next fails.
    writes_max: Option<usize>,
    /// What happened since somebody began to record.
    record: Option<Vec<(usize, Op)>>,
}

#[derive(Clone, Debug)]
enum Op {
    Write(usize, Vec<u8>),
    SetLen(usize),
    Sync,
}

#[derive(Clone, Debug, Default)]
pub(super) struct LossyDisk(Arc<Mutex<Disk>>);

#[derive(Debug)]
pub(super) struct LossyFile(LossyDisk, usize);

impl StorageBackend for LossyFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().volatile[self.1].len() as u64)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let disk = self.0.lock();
        let from = offset as usize;
        let bytes = disk.volatile[self.1].get(from..from + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.volatile[self.1].resize(len as usize, 0);
        disk.record(self.1, || Op::SetLen(len as usize));
        Ok(())
    }
    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.syncs += 1;
        disk.record(self.1, || Op::Sync);
        if disk.syncs_max.is_none_or(|max| disk.syncs <= max) {
            disk.durable[self.1] = disk.volatile[self.1].clone();
        }
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut disk = self.0.lock();
        if let Some(left) = &mut disk.writes_max {
            *left = left.checked_sub(1).ok_or(io::ErrorKind::StorageFull)?;
        }
        disk.record(self.1, || Op::Write(offset as usize, data.to_vec()));
        let from = offset as usize;
        disk.volatile[self.1].get_mut(from..from + data.len()).ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(data);
        Ok(())
    }
}

impl Disk {
    fn record(&mut self, file: usize, op: impl FnOnce() -> Op) {
        if let Some(record) = &mut self.record {
            record.push((file, op()));
        }
    }

    fn of(files: [Vec<u8>; 2]) -> LossyDisk {
        LossyDisk(Arc::new(Mutex::new(Self { volatile: files.clone(), durable: files, ..Self::default() })))
    }
}

/// A disk on which `ops` were under way when the power went: of each file all up to its last sync are there, of those after
/// it the ones that `survives` picks.
fn cut_short(before: &[Vec<u8>; 2], ops: &[(usize, Op)], mut survives: impl FnMut() -> bool) -> LossyDisk {
    let synced = [TABLES, HISTORY].map(|f| ops.iter().rposition(|(file, op)| *file == f && matches!(op, Op::Sync)));
    let mut files = before.clone();
    for (i, (file, op)) in ops.iter().enumerate() {
        if synced[*file].is_none_or(|last| i > last) && !survives() {
            continue;
        }
        let bytes = &mut files[*file];
        match op {
            Op::Write(offset, data) => {
                let end = offset + data.len();
                bytes.resize(bytes.len().max(end), 0);
                bytes[*offset..end].copy_from_slice(data);
            }
            Op::SetLen(len) => bytes.resize(*len, 0),
            Op::Sync => {}
        }
    }
    Disk::of(files)
}

impl LossyDisk {
    pub(super) fn lock(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap()
    }

    pub(super) fn open(&self) -> Store {
        Store::with_backend(self.file(TABLES), self.file(HISTORY), 1 << 20).unwrap()
    }

    pub(super) fn file(&self, file: usize) -> LossyFile {
        LossyFile(self.clone(), file)
    }

    /// What the disk holds after a power cut.
    pub(super) fn after_power_cut(&self) -> Self {
        let durable = self.lock().durable.clone();
        Disk::of(durable)
    }
}

fn log(len: u64) -> Vec<ApplyEntry> {
    let mut entries = Vec::new();
    for i in 1..=len {
        let command = match i % 7 {
            0 => delete(&format!("k{}", i % 20), ""),
            1 => Command::LeaseGrant { id: i.cast_signed(), ttl_s: 10 },
            2 => put_lease(&format!("k{}", i % 20), (i - 1).cast_signed()),
            3 if i > 30 => compact(i / 3),
            4 => Command::LeaseRevoke { id: (i - 3).cast_signed() },
            _ => put(&format!("k{}", i % 20), &"v".repeat(i as usize * 5)),
        };
        entries.push(entry(i, command));
    }
    entries
}

/// Everything that is replicated, in comparable form.
fn state(store: &Store) -> impl PartialEq + std::fmt::Debug {
    let hash = store.hash_kv(U, Revision(0)).unwrap();
    (store.applied(), hash, read(store, &all()), store.leases().unwrap())
}

#[test]
fn after_a_power_cut_the_store_is_at_its_last_checkpoint_and_replays() {
    let entries = log(120);
    let reference = memory();
    let mut states = vec![format!("{:?}", state(&reference))];
    for entry in &entries {
        reference.apply(std::slice::from_ref(entry)).unwrap();
        states.push(format!("{:?}", state(&reference)));
    }
    let disk = LossyDisk::default();
    let store = disk.open();
    let mut checkpoint = 0;
    for (i, batch) in entries.chunks(5).enumerate() {
        store.apply(batch).unwrap();
        if i % 4 == 3 {
            checkpoint = store.checkpoint().unwrap().0;
        }
        let crashed = disk.after_power_cut().open();
        assert_eq!(crashed.applied().0.0, checkpoint);
        assert_eq!(format!("{:?}", state(&crashed)), states[checkpoint as usize]);
        // The log replays from anywhere before.
        let applied = (i + 1) * 5;
        crashed.apply(&entries[..applied]).unwrap();
        assert_eq!(format!("{:?}", state(&crashed)), states[applied]);
    }
}

#[test]
fn power_cut_at_every_sync() {
    let entries = log(60);
    // A cut while the file is being made is `Store::open`'s business: it makes it under another name.
    let disk = LossyDisk::default();
    drop(disk.open());
    let made = disk.lock().syncs;
    for syncs_max in made.. {
        let disk = LossyDisk::default();
        disk.lock().syncs_max = Some(syncs_max);
        let store = disk.open();
        let mut checkpoints = vec![0];
        for batch in entries.chunks(20) {
            store.apply(batch).unwrap();
            checkpoints.push(store.checkpoint().unwrap().0);
        }
        let crashed = disk.after_power_cut().open();
        let applied = crashed.applied().0.0;
        assert!(checkpoints.contains(&applied), "{applied} after {syncs_max} syncs");
        crashed.apply(&entries).unwrap();
        assert_eq!(format!("{:?}", state(&crashed)), format!("{:?}", state(&store)));
        if disk.lock().syncs <= syncs_max {
            assert_eq!(applied, 60);
            break;
        }
    }
}

#[test]
fn a_store_half_made_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    std::fs::write(dir.path().join("store.new"), vec![0; 5000]).unwrap();
    let store = Store::open(&path, 1 << 20).unwrap();
    run(&store, put("a", "1"));
    store.checkpoint().unwrap();
    run(&store, put("b", "1"));
    drop(store);
    assert!(!dir.path().join("store.new").exists());
    let store = Store::open(&path, 1 << 20).unwrap();
    assert!(store.get(U, b"a").unwrap().is_some());
}

/// The second half of the log is folded; the power goes at every write of that, and what had not been synced
/// survives wholly, not at all, or here and there.
#[test]
fn power_cut_at_every_write_of_a_fold() {
    let entries = log(120);
    let reference = memory();
    reference.apply(&entries[..60]).unwrap();
    let at_60 = format!("{:?}", state(&reference));
    reference.apply(&entries[60..]).unwrap();
    let at_120 = format!("{:?}", state(&reference));
    let disk = LossyDisk::default();
    let store = disk.open();
    store.apply(&entries[..60]).unwrap();
    store.checkpoint().unwrap();
    store.apply(&entries[60..]).unwrap();
    let before = disk.lock().volatile.clone();
    disk.lock().record = Some(Vec::new());
    assert_eq!(store.checkpoint().unwrap(), Index(120));
    let ops = disk.lock().record.take().unwrap();
    assert!(
        [TABLES, HISTORY].iter().all(|f| ops.iter().any(|(file, op)| file == f && matches!(op, Op::Sync))) && ops.len() > 10,
        "{} operations",
        ops.len()
    );
    let mut seen = [0, 0];
    for n in 0..=ops.len() {
        let mut flip = 0_u32;
        let mut here_and_there = || {
            flip = flip.wrapping_mul(1_664_525).wrapping_add(1_013_904_223 + n as u32);
            flip & 0x10000 != 0
        };
        for disk in [
            cut_short(&before, &ops[..n], || true),
            cut_short(&before, &ops[..n], || false),
            cut_short(&before, &ops[..n], &mut here_and_there),
        ] {
            let crashed = disk.open();
            let (applied, expected) = if crashed.applied().0 == Index(60) { (60, &at_60) } else { (120, &at_120) };
            assert_eq!(format!("{:?}", state(&crashed)), *expected, "after {n} of {} operations", ops.len());
            seen[usize::from(applied == 120)] += 1;
            crashed.apply(&entries).unwrap();
            assert_eq!(format!("{:?}", state(&crashed)), at_120);
        }
    }
    assert!(seen[0] > 3 && seen[1] > 0, "{seen:?}");
}

/// A checkpoint takes several steps; one that fails is not made durable by what follows, nor by closing the store.
#[test]
fn a_fold_that_fails_leaves_the_checkpoint_before() {
    let entries = log(120);
    let mut failed = 0;
    for writes_max in 0.. {
        let disk = LossyDisk::default();
        let store = disk.open();
        store.apply(&entries[..60]).unwrap();
        store.checkpoint().unwrap();
        let at_60 = format!("{:?}", state(&store));
        store.apply(&entries[60..]).unwrap();
        disk.lock().writes_max = Some(writes_max);
        if store.checkpoint().is_ok() {
            break;
        }
        failed += 1;
        assert!(matches!(store.checkpoint(), Err(StoreError::Broken)));
        assert_eq!(store.last_checkpoint().unwrap().header().index, Index(60));
        disk.lock().writes_max = None;
        drop(store);
        let volatile = disk.lock().volatile.clone();
        for disk in [disk.after_power_cut(), Disk::of(volatile)] {
            let again = disk.open();
            assert_eq!(format!("{:?}", state(&again)), at_60, "after {writes_max} writes");
        }
    }
    assert!(failed > 3, "{failed}");
}
