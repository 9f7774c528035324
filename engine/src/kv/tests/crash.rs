//! A store on storage that forgets everything since the last sync.

use super::*;
use redb::StorageBackend;
use std::io;
use std::sync::{Arc, Mutex};

/// What is written, and what a power cut leaves of it.
#[derive(Debug, Default)]
struct Disk {
    volatile: Vec<u8>,
    durable: Vec<u8>,
    syncs: usize,
    /// After so many syncs, later ones only pretend: as if the power went before them.
    syncs_max: Option<usize>,
}

#[derive(Clone, Debug, Default)]
struct LossyBackend(Arc<Mutex<Disk>>);

impl StorageBackend for LossyBackend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().volatile.len() as u64)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let disk = self.0.lock().unwrap();
        let from = offset as usize;
        let bytes = disk.volatile.get(from..from + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.lock().unwrap().volatile.resize(len as usize, 0);
        Ok(())
    }
    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.syncs += 1;
        if disk.syncs_max.is_none_or(|max| disk.syncs <= max) {
            disk.durable = disk.volatile.clone();
        }
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        let from = offset as usize;
        disk.volatile.get_mut(from..from + data.len()).ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(data);
        Ok(())
    }
}

impl LossyBackend {
    /// What the disk holds after a power cut.
    fn after_power_cut(&self) -> Self {
        let durable = self.0.lock().unwrap().durable.clone();
        Self(Arc::new(Mutex::new(Disk { volatile: durable.clone(), durable, ..Disk::default() })))
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
    let disk = LossyBackend::default();
    let store = Store::with_backend(disk.clone(), 1 << 20).unwrap();
    let mut checkpoint = 0;
    for (i, batch) in entries.chunks(5).enumerate() {
        store.apply(batch).unwrap();
        if i % 4 == 3 {
            checkpoint = store.checkpoint().unwrap().0;
        }
        let crashed = Store::with_backend(disk.after_power_cut(), 1 << 20).unwrap();
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
    let disk = LossyBackend::default();
    drop(Store::with_backend(disk.clone(), 1 << 20).unwrap());
    let made = disk.0.lock().unwrap().syncs;
    for syncs_max in made.. {
        let disk = LossyBackend::default();
        disk.0.lock().unwrap().syncs_max = Some(syncs_max);
        let store = Store::with_backend(disk.clone(), 1 << 20).unwrap();
        let mut checkpoints = vec![0];
        for batch in entries.chunks(20) {
            store.apply(batch).unwrap();
            checkpoints.push(store.checkpoint().unwrap().0);
        }
        let crashed = Store::with_backend(disk.after_power_cut(), 1 << 20).unwrap();
        let applied = crashed.applied().0.0;
        assert!(checkpoints.contains(&applied), "{applied} after {syncs_max} syncs");
        crashed.apply(&entries).unwrap();
        assert_eq!(format!("{:?}", state(&crashed)), format!("{:?}", state(&store)));
        if disk.0.lock().unwrap().syncs <= syncs_max {
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
