//! The key-value store's disk: what is not synced survives a power cut in part, sector by sector.

use rand::Rng;
use rand::rngs::SmallRng;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

const PAGE: usize = 4096;
const SECTOR: usize = 512;

#[derive(Clone, Debug, Default)]
struct State {
    data: Vec<u8>,
    /// Pages that were written since the last sync, as they were then.
    before: BTreeMap<usize, Vec<u8>>,
    synced_len: usize,
}

impl State {
    fn remember(&mut self, from: usize, to: usize) {
        for page in from / PAGE..to.div_ceil(PAGE) {
            if self.before.contains_key(&page) {
                continue;
            }
            let start = (page * PAGE).min(self.data.len());
            let end = (start + PAGE).min(self.data.len());
            let mut old = self.data[start..end].to_vec();
            old.resize(PAGE, 0);
            self.before.insert(page, old);
        }
    }
}

/// Cloning gives another handle to the same disk.
#[derive(Clone, Debug, Default)]
pub struct Backend(Arc<Mutex<State>>);

impl Backend {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("one thread")
    }

    /// The disk as the next process finds it. What the old one still does (it is only dropped) goes nowhere.
    #[must_use]
    pub fn taken_over(&self) -> Self {
        Self(Arc::new(Mutex::new(self.lock().clone())))
    }

    /// The same after a power cut.
    #[must_use]
    pub fn after_power_cut(&self, rng: &mut SmallRng) -> Self {
        let mut state = self.lock().clone();
        let len = if rng.random_bool(0.5) { state.synced_len } else { state.data.len().max(state.synced_len) };
        state.data.resize(len, 0);
        for (page, old) in std::mem::take(&mut state.before) {
            let whole = rng.random_bool(0.7);
            let back = rng.random_bool(0.5);
            for sector in 0..PAGE / SECTOR {
                if if whole { back } else { rng.random_bool(0.5) } {
                    let from = page * PAGE + sector * SECTOR;
                    let to = (from + SECTOR).min(len);
                    if from < to {
                        state.data[from..to].copy_from_slice(&old[sector * SECTOR..sector * SECTOR + to - from]);
                    }
                }
            }
        }
        state.synced_len = len;
        Self(Arc::new(Mutex::new(state)))
    }
}

impl redb::StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().data.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.lock();
        let from = usize::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        out.copy_from_slice(state.data.get(from..from + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.lock();
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
        let old = state.data.len();
        if len < old {
            state.remember(len, old);
        }
        state.data.resize(len, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.lock();
        state.before.clear();
        state.synced_len = state.data.len();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.lock();
        let from = usize::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let to = from + data.len();
        if to > state.data.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        state.remember(from, to);
        state.data[from..to].copy_from_slice(data);
        Ok(())
    }
}
