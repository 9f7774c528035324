//! Opening the storage engine: a backend that knows its length, and errors that say what to do.

use super::error::StoreError;
use redb::{BackendError, Database, DatabaseError, StorageBackend, StorageError};
use std::io;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that are written before they are synced, whoever asks for it or not. A checkpoint that left all of its hundred
/// MiB to its end would keep the disk busy for some tenths of a second, and the log's writes waiting behind it.
pub(super) const UNSYNCED_BYTES_MAX: u64 = if cfg!(test) { 32 << 10 } else { 8 << 20 };

/// Passes everything on, and keeps the length where [`super::Store::sizes`] reads it without a system call.
#[derive(Debug)]
struct Measured<B> {
    inner: B,
    len: Arc<AtomicU64>,
    /// Bytes written since the last sync.
    unsynced: AtomicU64,
}

impl<B: StorageBackend> StorageBackend for Measured<B> {
    fn len(&self) -> io::Result<u64> {
        let len = self.inner.len()?;
        self.len.store(len, Ordering::Relaxed);
        Ok(len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)?;
        self.len.store(len, Ordering::Relaxed);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.unsynced.store(0, Ordering::Relaxed);
        self.inner.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.inner.write(offset, data)?;
        let before = self.unsynced.fetch_add(data.len() as u64, Ordering::Relaxed);
        if before >= UNSYNCED_BYTES_MAX { self.sync_data() } else { Ok(()) }
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.query_lock_range(start, end)
    }
}

/// The engine on a backend, and the backend's length as it goes.
pub(super) fn open_backend(
    backend: impl StorageBackend,
    path: &Path,
    cache_bytes: usize,
) -> Result<(Database, Arc<AtomicU64>), StoreError> {
    let len = Arc::new(AtomicU64::new(0));
    let backend = Measured { inner: backend, len: Arc::clone(&len), unsynced: AtomicU64::new(0) };
    // The engine trusts its pages once the header is accepted, and may panic on a file that something else
    // altered. What is on the disk must never take the process down without a word.
    let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        Database::builder().set_cache_size(cache_bytes).create_with_backend(backend)
    }));
    match opened {
        Ok(Ok(db)) => Ok((db, len)),
        Ok(Err(error)) => Err(open_error(path, &error)),
        Err(_) => Err(open_failed(path, "the storage engine gave up on its content".into(), REJOIN)),
    }
}

/// The engine on a file.
pub(super) fn open_file(path: &Path, cache_bytes: usize) -> Result<(Database, Arc<AtomicU64>), StoreError> {
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(|e| open_failed(path, e.to_string(), "check that the directory exists and is writable"))?;
    let backend = redb::backends::FileBackend::new(file).map_err(|e| open_error(path, &e))?;
    open_backend(backend, path, cache_bytes)
}

/// Has a missing file made by `make` under another name, so that a crash in the midst of it leaves no half
/// file where the next start looks: the engine would refuse it.
pub(super) fn make_file(path: &Path, make: impl FnOnce(&Path) -> Result<(), StoreError>) -> Result<(), StoreError> {
    const ADVICE: &str = "check that the directory exists and is writable";
    let failed = |e: io::Error| open_failed(path, e.to_string(), ADVICE);
    if path.try_exists().map_err(failed)? {
        return Ok(());
    }
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = Path::new(&new);
    match std::fs::remove_file(new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
        _ => make(new)?,
    }
    std::fs::rename(new, path).map_err(failed)?;
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::File::open(parent).and_then(|dir| dir.sync_all()).map_err(failed)
}

pub(super) const REJOIN: &str = "remove this member's data and let it join again (its peers have everything)";

fn open_failed(path: &Path, cause: String, advice: &'static str) -> StoreError {
    StoreError::Open { path: path.to_owned(), cause, advice }
}

fn open_error(path: &Path, error: &DatabaseError) -> StoreError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => StoreError::InUse { path: path.to_owned() },
        DatabaseError::UpgradeRequired(_) => {
            open_failed(path, error.to_string(), "it was written by an older version: start that one, or join again")
        }
        DatabaseError::Storage(StorageError::Io(e)) if e.kind() != io::ErrorKind::InvalidData => {
            open_failed(path, e.to_string(), "check the disk (space, permissions, kernel messages), then start again")
        }
        _ => open_failed(path, error.to_string(), REJOIN),
    }
}
