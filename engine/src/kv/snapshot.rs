//! The snapshot stream: FORMAT.md, "Store snapshot stream".

use super::error::StoreError;
use super::store::Store;
use crate::types::{Index, Term};
use bytes::Bytes;

/// No chunk of a snapshot is larger.
pub const SNAPSHOT_CHUNK_BYTES_MAX: usize = 1 << 20;

/// What a snapshot covers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotHeader {
    /// The last entry in it.
    pub index: Index,
    /// That entry's term.
    pub term: Term,
    /// The membership at that point.
    pub membership: Option<Bytes>,
}

/// Reads a snapshot, chunk by chunk. Owns its point in time: the store may change or be dropped meanwhile.
#[derive(Debug)]
pub struct SnapshotReader {}

impl SnapshotReader {
    /// What the snapshot covers.
    #[must_use]
    pub fn header(&self) -> &SnapshotHeader {
        const EMPTY: &SnapshotHeader = &SnapshotHeader { index: Index(0), term: Term(0), membership: None };
        EMPTY
    }

    /// The next portion of the stream, at most [`SNAPSHOT_CHUNK_BYTES_MAX`]; `None` after the last.
    pub fn next_chunk(&mut self) -> Result<Option<Bytes>, StoreError> {
        Ok(None)
    }
}

/// Takes a snapshot stream in portions of any size.
#[derive(Debug)]
pub struct RestoreWriter<'s> {
    _store: &'s Store,
}

impl RestoreWriter<'_> {
    /// Takes the next portion.
    pub fn push(&mut self, _chunk: &[u8]) -> Result<(), StoreError> {
        Ok(())
    }

    /// Checks that the stream is complete and undamaged, and makes it the store's state, durably.
    pub fn finish(self) -> Result<(Index, Term), StoreError> {
        Err(StoreError::Restoring)
    }
}
