//! Where blocks of history lie beside the engine's file: FORMAT.md, "History files".

use super::error::StoreError;
use rustix::fs::FallocateFlags;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Addresses in one file.
pub(super) const SEGMENT_BYTES: u64 = if cfg!(test) { 64 << 10 } else { 1 << 30 };

/// One address space of bytes. Whoever writes is alone; what is written is changed no more, so readers need not wait.
pub(super) trait Storage: std::fmt::Debug + Send + Sync {
    fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()>;
    fn write(&self, at: u64, data: &[u8]) -> io::Result<()>;
    /// Makes durable what was written.
    fn sync(&self) -> io::Result<()>;
    /// Nobody reads these bytes again: the space may be used for something else.
    fn free(&self, range: Range<u64>) -> io::Result<()>;
    /// The same of a whole segment.
    fn forget(&self, segment: u32) -> io::Result<()>;
    /// The same of everything from `end` on, and of segments of which no byte is counted in `live`.
    fn cut(&self, end: u64, live: &BTreeMap<u32, u64>) -> io::Result<()>;
}

/// The segment that an address lies in.
pub(super) fn segment_of(at: u64) -> u32 {
    u32::try_from(at / SEGMENT_BYTES).unwrap_or(u32::MAX)
}

/// Another disk's one file; what is free stays where it is.
#[derive(Debug)]
pub(super) struct OneFile<B>(pub B);

impl<B: redb::StorageBackend> Storage for OneFile<B> {
    fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(at, out)
    }

    fn write(&self, at: u64, data: &[u8]) -> io::Result<()> {
        let end = at + data.len() as u64;
        if self.0.len()? < end {
            self.0.set_len(end)?;
        }
        self.0.write(at, data)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    /// Tests would see whoever reads it yet.
    fn free(&self, range: Range<u64>) -> io::Result<()> {
        let end = range.end.min(self.0.len()?);
        let len = usize::try_from(end.saturating_sub(range.start)).map_err(|_| io::ErrorKind::InvalidInput)?;
        if len == 0 { Ok(()) } else { self.0.write(range.start, &vec![0; len]) }
    }

    fn forget(&self, _segment: u32) -> io::Result<()> {
        Ok(())
    }

    fn cut(&self, end: u64, _live: &BTreeMap<u32, u64>) -> io::Result<()> {
        if self.0.len()? > end { self.0.set_len(end) } else { Ok(()) }
    }
}

/// Files of [`SEGMENT_BYTES`] addresses each in a directory, made when something is written to them.
#[derive(Debug)]
pub(super) struct SegmentFiles {
    dir: PathBuf,
    open: RwLock<BTreeMap<u32, Arc<File>>>,
    /// Written since the last sync.
    unsynced: Mutex<BTreeSet<u32>>,
    /// That there are no holes.
    told: AtomicBool,
}

impl SegmentFiles {
    /// Those beside the engine's file: `kv.history/` for `kv.redb`.
    pub(super) fn beside(path: &Path) -> Self {
        Self { dir: path.with_extension("history"), open: RwLock::default(), unsynced: Mutex::default(), told: AtomicBool::new(false) }
    }

    fn path(&self, segment: u32) -> PathBuf {
        self.dir.join(format!("{segment:010}"))
    }

    /// Removes what checkpoints that did not come about left behind `end`, and files of which no byte is counted in `live`; checks that
    /// there is a file wherever one has some.
    pub(super) fn recover(&self, end: u64, live: &BTreeMap<u32, u64>) -> Result<(), StoreError> {
        let failed = |path: &Path, cause: String, advice| StoreError::Open { path: path.to_owned(), cause, advice };
        for (segment, _) in live.iter().filter(|(_, live)| **live > 0) {
            let path = self.path(*segment);
            if !path.is_file() {
                return Err(failed(&path, "a history file is missing".into(), super::backend::REJOIN));
            }
        }
        self.cut(end, live)
            .map_err(|e| failed(&self.dir, e.to_string(), "check the disk (space, permissions, kernel messages), then start again"))
    }

    fn opened(&self, segment: u32) -> Option<Arc<File>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).get(&segment).cloned()
    }

    fn file(&self, segment: u32, make: bool) -> io::Result<Arc<File>> {
        if let Some(file) = self.opened(segment) {
            return Ok(file);
        }
        let path = self.path(segment);
        let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
        let file = match File::options().read(true).write(true).open(&path) {
            Err(e) if make && e.kind() == io::ErrorKind::NotFound => self.make(&path).map_err(named)?,
            file => file.map_err(named)?,
        };
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        Ok(Arc::clone(open.entry(segment).or_insert_with(|| Arc::new(file))))
    }

    fn make(&self, path: &Path) -> io::Result<File> {
        let sync = |dir: &Path| File::open(dir).and_then(|dir| dir.sync_all());
        if !self.dir.is_dir() {
            std::fs::create_dir(&self.dir)?;
            sync(self.dir.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
        }
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        sync(&self.dir)?;
        Ok(file)
    }
}

impl Storage for SegmentFiles {
    fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        self.file(segment_of(at), false)?.read_exact_at(out, at % SEGMENT_BYTES)
    }

    fn write(&self, at: u64, data: &[u8]) -> io::Result<()> {
        let segment = segment_of(at);
        if at % SEGMENT_BYTES + data.len() as u64 > SEGMENT_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a write reaches over a file's end"));
        }
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner).insert(segment);
        self.file(segment, true)?.write_all_at(data, at % SEGMENT_BYTES)
    }

    fn sync(&self) -> io::Result<()> {
        let unsynced = std::mem::take(&mut *self.unsynced.lock().unwrap_or_else(PoisonError::into_inner));
        unsynced.into_iter().try_for_each(|segment| self.file(segment, false)?.sync_data())
    }

    fn free(&self, range: Range<u64>) -> io::Result<()> {
        let (segment, from) = (segment_of(range.start), range.start % SEGMENT_BYTES);
        let file = match self.file(segment, false) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file?,
        };
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::io::retry_on_intr(|| rustix::fs::fallocate(&file, flags, from, range.end - range.start)) {
            // The space comes back with the whole file.
            Err(rustix::io::Errno::OPNOTSUPP) => {
                if !self.told.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "{}: this file system knows no holes in files: compacted history takes up space until all of a file's 1 GiB is",
                        self.dir.display()
                    );
                }
                Ok(())
            }
            done => Ok(done?),
        }
    }

    fn forget(&self, segment: u32) -> io::Result<()> {
        self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&segment);
        match std::fs::remove_file(self.path(segment)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    fn cut(&self, end: u64, live: &BTreeMap<u32, u64>) -> io::Result<()> {
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let entries = match std::fs::read_dir(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let path = entry?.path();
            // Other names are not ours.
            let Some(segment) = path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok()) else { continue };
            let start = u64::from(segment) * SEGMENT_BYTES;
            if start >= end || !live.contains_key(&segment) {
                self.forget(segment)?;
            } else if end - start < SEGMENT_BYTES {
                let file = File::options().write(true).open(&path)?;
                if file.metadata()?.len() > end - start {
                    file.set_len(end - start)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_made_cut_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kv.redb");
        let files = SegmentFiles::beside(&path);
        let next = SEGMENT_BYTES;
        for at in [0, 4096, next, next + 8192, 2 * next] {
            files.write(at, &[7; 4096]).unwrap();
        }
        files.sync().unwrap();
        files.free(0..4096).unwrap();
        let mut page = [1; 4096];
        files.read(0, &mut page).unwrap();
        assert_eq!(page, [0; 4096]);
        files.read(4096, &mut page).unwrap();
        assert_eq!(page, [7; 4096]);
        files.forget(0).unwrap();
        assert_eq!(files.read(4096, &mut page).unwrap_err().kind(), io::ErrorKind::NotFound);
        std::fs::write(dir.path().join("kv.history/lost+found"), "").unwrap();
        let files = SegmentFiles::beside(&path);
        files.recover(next + 4096, &BTreeMap::from([(1, 4096)])).unwrap();
        files.read(next, &mut page).unwrap();
        assert_eq!(files.read(next + 8192, &mut page).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(!dir.path().join("kv.history/0000000002").exists() && dir.path().join("kv.history/lost+found").exists());
        let text = files.recover(next + 4096, &BTreeMap::from([(0, 1), (1, 1)])).unwrap_err().to_string();
        assert!(text.contains("kv.history/0000000000: a history file is missing; remove this member's data"), "{text}");
        // No byte of it counts: it was to be removed when the power went.
        files.recover(3 * next, &BTreeMap::new()).unwrap();
        assert!(!dir.path().join("kv.history/0000000001").exists());
        assert!(files.write(next - 4096, &[7; 4097]).is_err());
        // What is not there needs no freeing.
        files.free(0..4096).unwrap();
        files.forget(0).unwrap();
    }
}
