//! Work on the store that waits for the disk, done beside the member's thread.
//!
//! While a job runs, the member goes on with consensus: it votes, sends and takes heartbeats, writes its log and
//! acknowledges it. During a checkpoint it applies and answers, too; only a restore, on a follower that could serve
//! nothing anyway, makes applying wait. So a slow disk costs no leader its office. The time is bounded by the
//! data: a checkpoint writes what `checkpoint_bytes` of log changed, and applying waits before much more than
//! that has come together in memory.

use crate::kv::{Store, StoreError};
use crate::types::{Index, Term};
use bytes::Bytes;
use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::Path;
use std::time::Duration;

/// A job. [`Self::run`] blocks.
#[derive(Debug)]
pub enum StoreJob {
    /// Make what is applied durable.
    Checkpoint {
        /// How long it may take: it rests in between, so that the processor and the disk are not taken from everybody at once.
        over: Duration,
    },
    /// Replace the store's content by a received snapshot.
    Restore(Spool),
}

/// How a job ended.
#[derive(Debug)]
pub enum StoreDone {
    /// A checkpoint.
    Checkpoint {
        /// Everything up to this index is durable in the store.
        result: Result<Index, StoreError>,
        /// How long it rested.
        rested: Duration,
    },
    /// The store holds this entry as its last.
    Restore(Result<(Index, Term), StoreError>),
}

impl StoreJob {
    /// Does the work. `rest` is told how long it may take and how much of it is done, from 0 to 1; it sleeps for as long as the work is ahead
    /// of its time, and says for how long that was.
    #[must_use]
    pub fn run(self, store: &Store, rest: &dyn Fn(Duration, f64) -> Duration) -> StoreDone {
        match self {
            Self::Checkpoint { over } => {
                let rested = Cell::new(Duration::ZERO);
                let result = store.paced_checkpoint(&|done| rested.set(rested.get() + rest(over, done)));
                StoreDone::Checkpoint { result, rested: rested.get() }
            }
            Self::Restore(spool) => StoreDone::Restore(restore(store, spool)),
        }
    }
}

fn restore(store: &Store, spool: Spool) -> Result<(Index, Term), StoreError> {
    let mut writer = store.begin_restore()?;
    let mut reader = spool.into_reader().map_err(|e| refused(0, &e))?;
    let mut offset = 0;
    while let Some(chunk) = reader.next_chunk().map_err(|e| refused(offset, &e))? {
        offset += chunk.len() as u64;
        writer.push(&chunk)?;
    }
    writer.finish()
}

/// The spool is a cache: losing it loses the transfer, not the store.
fn refused(offset: u64, e: &io::Error) -> StoreError {
    StoreError::SnapshotRefused { offset, what: format!("read the received stream back: {e}") }
}

/// Where a snapshot is kept until all of it has arrived, so that a transfer that breaks off costs nothing
/// but its own time and the old state is served meanwhile.
#[derive(Debug)]
pub enum Spool {
    /// In memory, for tests and tiny clusters.
    Memory(Vec<Bytes>),
    /// In a file without a name, which the system frees with its last handle, in a crash as well.
    File(File),
}

impl Spool {
    /// An empty spool, in a file in `dir` where there is one.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn new(dir: Option<&Path>) -> io::Result<Self> {
        let Some(dir) = dir else { return Ok(Self::Memory(Vec::new())) };
        let path = dir.join("snapshot.tmp");
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        std::fs::remove_file(&path)?;
        Ok(Self::File(file))
    }

    /// Adds the next portion.
    ///
    /// # Errors
    /// When the disk is full, for one.
    pub fn push(&mut self, chunk: &Bytes) -> io::Result<()> {
        match self {
            Self::Memory(chunks) => {
                chunks.push(chunk.clone());
                Ok(())
            }
            Self::File(file) => file.write_all(chunk),
        }
    }

    fn into_reader(self) -> io::Result<SpoolReader> {
        match self {
            Self::Memory(chunks) => Ok(SpoolReader::Memory(chunks.into_iter())),
            Self::File(mut file) => file.rewind().map(|()| SpoolReader::File(file)),
        }
    }
}

enum SpoolReader {
    Memory(std::vec::IntoIter<Bytes>),
    File(File),
}

impl SpoolReader {
    fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        match self {
            Self::Memory(chunks) => Ok(chunks.next()),
            Self::File(file) => {
                let mut buf = vec![0; 256 * 1024];
                let n = file.read(&mut buf)?;
                buf.truncate(n);
                Ok((n > 0).then(|| buf.into()))
            }
        }
    }
}
