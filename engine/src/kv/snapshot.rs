//! The snapshot stream: FORMAT.md, "Store snapshot stream".

use super::alarm::Alarms;
use super::auth::AuthState;
use super::base::Base;
use super::codec::{
    ALARMS, AUTH, BLOCK_PLACES, FORMAT_VERSION, META, META_HISTORY, META_MEMBERSHIP, META_STATE, SNAPSHOT_TABLES, STREAM_VERSION, State,
    damaged,
};
use super::error::StoreError;
use super::history::{Appender, History, Ledger, is_outside};
use super::store::Inner;
use super::types::Keyspace;
use crate::types::{Index, Revision, Term};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use redb::{Durability, Range, ReadTransaction, WriteTransaction};
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use xxhash_rust::xxh3::Xxh3;

/// No chunk of a snapshot is larger.
pub const SNAPSHOT_CHUNK_BYTES_MAX: usize = 1 << 20;

const MAGIC: &[u8; 8] = b"brkrsnap";
/// Magic, version, state, length of the membership plus one (0: none).
const HEADER_LEN: usize = 8 + 4 + State::LEN + 4;
const RECORD_HEADER_LEN: usize = 1 + 4 + 4;
/// Table number 0, count of records, hash.
const TRAILER_LEN: usize = 1 + 8 + 16;
/// Larger lengths are damage, not data: they must not make us allocate.
const MEMBERSHIP_BYTES_MAX: usize = 16 << 20;
const RECORD_BYTES_MAX: usize = 1 << 30;

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
pub struct SnapshotReader {
    header: SnapshotHeader,
    revisions: [Revision; 2],
    txn: Arc<ReadTransaction>,
    history: Arc<History>,
    /// The next table to open, in [`SNAPSHOT_TABLES`]; past its end and with no table open: all was read.
    next_table: usize,
    /// The open one's place there.
    table: Option<(usize, Range<'static, &'static [u8], &'static [u8]>)>,
    records: u64,
    hash: Xxh3,
    /// Made, not handed out yet: at most a chunk and a record.
    ready: BytesMut,
    ended: bool,
}

impl std::fmt::Debug for SnapshotReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotReader").field("header", &self.header).field("records", &self.records).finish()
    }
}

impl SnapshotReader {
    pub(super) fn new(base: &Base, state: State, membership: Option<Bytes>) -> Result<Self, StoreError> {
        let mut ready = BytesMut::new();
        ready.put_slice(MAGIC);
        ready.put_u32_le(STREAM_VERSION);
        ready.put_slice(&state.encode(STREAM_VERSION));
        let len = membership.as_ref().map_or(0, |m| m.len() + 1);
        ready.put_u32_le(u32::try_from(len).unwrap_or(u32::MAX));
        ready.put_slice(membership.as_deref().unwrap_or_default());
        let mut hash = Xxh3::new();
        hash.update(&ready);
        let header = SnapshotHeader { index: state.applied, term: state.term, membership };
        let revisions = [state.revision(Keyspace::User), state.revision(Keyspace::System)];
        let (txn, history) = (Arc::clone(&base.txn), Arc::clone(&base.history));
        Ok(Self { header, revisions, txn, history, next_table: 0, table: None, records: 0, hash, ready, ended: false })
    }

    /// A key space's revision at that moment.
    #[must_use]
    pub(super) fn revision(&self, keyspace: Keyspace) -> Revision {
        self.revisions[keyspace as usize]
    }

    /// What the snapshot covers.
    #[must_use]
    pub fn header(&self) -> &SnapshotHeader {
        &self.header
    }

    /// The length of the whole stream, in bytes. Reads everything once.
    pub fn stream_bytes(&self) -> Result<u64, StoreError> {
        let mut bytes = (HEADER_LEN + self.header.membership.as_ref().map_or(0, Bytes::len) + TRAILER_LEN) as u64;
        for (place, (_, table, _)) in SNAPSHOT_TABLES.into_iter().enumerate() {
            let is_block_table = BLOCK_PLACES.contains(&place);
            for item in self.txn.open_table(table)?.range::<&[u8]>(..)? {
                let (key, value) = item?;
                let len = if is_block_table { History::block_len(value.value())? } else { value.value().len() };
                bytes += (RECORD_HEADER_LEN + key.value().len() + len) as u64;
            }
        }
        Ok(bytes)
    }

    /// The next portion of the stream, at most [`SNAPSHOT_CHUNK_BYTES_MAX`]; `None` after the last.
    pub fn next_chunk(&mut self) -> Result<Option<Bytes>, StoreError> {
        while self.ready.len() < SNAPSHOT_CHUNK_BYTES_MAX && !self.ended {
            self.produce()?;
        }
        if self.ready.is_empty() {
            return Ok(None);
        }
        let len = self.ready.len().min(SNAPSHOT_CHUNK_BYTES_MAX);
        Ok(Some(self.ready.split_to(len).freeze()))
    }

    /// Adds a record, moves to the next table, or adds the trailer.
    fn produce(&mut self) -> Result<(), StoreError> {
        let start = self.ready.len();
        if let Some((place, range)) = &mut self.table {
            let Some(item) = range.next() else {
                self.table = None;
                return Ok(());
            };
            let (key, value) = item?;
            let (key, value) = (key.value(), value.value());
            let value = if BLOCK_PLACES.contains(place) { self.history.block(value)? } else { Cow::Borrowed(value) };
            self.ready.put_u8(SNAPSHOT_TABLES[*place].0);
            self.ready.put_u32_le(u32::try_from(key.len()).unwrap_or(u32::MAX));
            self.ready.put_u32_le(u32::try_from(value.len()).unwrap_or(u32::MAX));
            self.ready.put_slice(key);
            self.ready.put_slice(&value);
            self.records += 1;
        } else if let Some(&(_, table, _)) = SNAPSHOT_TABLES.get(self.next_table) {
            let place = self.next_table;
            self.next_table += 1;
            self.table = Some((place, self.txn.open_table(table)?.range::<&[u8]>(..)?));
        } else {
            self.ready.put_u8(0);
            self.ready.put_u64_le(self.records);
            self.hash.update(&self.ready[start..]);
            self.ready.put_u128_le(self.hash.digest128());
            self.ended = true;
            return Ok(());
        }
        self.hash.update(&self.ready[start..]);
        Ok(())
    }
}

impl Iterator for SnapshotReader {
    type Item = Result<Bytes, StoreError>;
    fn next(&mut self) -> Option<Self::Item> {
        self.next_chunk().transpose()
    }
}

/// Takes a snapshot stream apart, in portions of any size, and checks it.
#[derive(Default)]
pub(super) struct StreamParser {
    pub(super) header: Option<(State, Option<Bytes>)>,
    /// Arrived, not taken in yet: less than a record after each push.
    pending: BytesMut,
    hash: Xxh3,
    /// Bytes taken in.
    pub(super) offset: u64,
    records: u64,
    /// Place in [`SNAPSHOT_TABLES`] and key of the last record; order is strict.
    last: Option<(usize, Bytes)>,
    ended: bool,
}

/// Where a parser's records go: the place of their table in [`SNAPSHOT_TABLES`], key, value.
type Sink<'s> = dyn FnMut(usize, &[u8], &[u8]) -> Result<(), StoreError> + 's;

impl StreamParser {
    fn refuse<T>(&self, what: impl Into<String>) -> Result<T, StoreError> {
        Err(StoreError::SnapshotRefused { offset: self.offset, what: what.into() })
    }

    /// Takes the next portion. After an error the stream cannot be mended.
    pub(super) fn push(&mut self, chunk: &[u8], sink: &mut Sink<'_>) -> Result<(), StoreError> {
        self.pending.put_slice(chunk);
        if self.header.is_none() && !self.take_header()? {
            return Ok(());
        }
        while self.take_record(sink)? {}
        if self.ended && !self.pending.is_empty() {
            return self.refuse("bytes follow the end");
        }
        Ok(())
    }

    /// Bytes taken off the front, and into the hash.
    fn take(&mut self, len: usize) -> Bytes {
        let bytes = self.pending.split_to(len).freeze();
        self.hash.update(&bytes);
        self.offset += len as u64;
        bytes
    }

    fn take_header(&mut self) -> Result<bool, StoreError> {
        if self.pending.len() < HEADER_LEN {
            return Ok(false);
        }
        let mut fields = &self.pending[..HEADER_LEN];
        if &fields[..8] != MAGIC {
            return self.refuse(format!("begins with {:02x?}, not with a snapshot's {MAGIC:02x?}", &fields[..8]));
        }
        fields.advance(8);
        let version = fields.get_u32_le();
        if version != STREAM_VERSION {
            return self.refuse(format!("format version {version}, this program knows {STREAM_VERSION}"));
        }
        let state = match State::decode(&fields[..State::LEN]) {
            Ok(state) => state,
            Err(error) => return self.refuse(error.to_string()),
        };
        fields.advance(State::LEN);
        let len = fields.get_u32_le() as usize;
        if len > MEMBERSHIP_BYTES_MAX {
            return self.refuse(format!("membership of {len} bytes, at most {MEMBERSHIP_BYTES_MAX} make sense"));
        }
        if self.pending.len() < HEADER_LEN + len.saturating_sub(1) {
            return Ok(false);
        }
        self.take(HEADER_LEN);
        let membership = (len > 0).then(|| self.take(len - 1));
        self.header = Some((state, membership));
        Ok(true)
    }

    /// Takes one record, or the trailer; false when more must arrive first.
    fn take_record(&mut self, sink: &mut Sink<'_>) -> Result<bool, StoreError> {
        let Some(&id) = self.pending.first().filter(|_| !self.ended) else { return Ok(false) };
        if id == 0 {
            return self.take_trailer();
        }
        if self.pending.len() < RECORD_HEADER_LEN {
            return Ok(false);
        }
        let mut fields = &self.pending[1..RECORD_HEADER_LEN];
        let (key_len, value_len) = (fields.get_u32_le() as usize, fields.get_u32_le() as usize);
        let Some(place) = SNAPSHOT_TABLES.iter().position(|table| table.0 == id) else {
            return self.refuse(format!("table number {id} is unknown"));
        };
        if key_len > RECORD_BYTES_MAX || value_len > RECORD_BYTES_MAX {
            return self.refuse(format!("record of {key_len} + {value_len} bytes"));
        }
        if self.pending.len() < RECORD_HEADER_LEN + key_len + value_len {
            return Ok(false);
        }
        let record = self.take(RECORD_HEADER_LEN + key_len + value_len).slice(RECORD_HEADER_LEN..);
        let (key, value) = (record.slice(..key_len), record.slice(key_len..));
        if self.last.as_ref().is_some_and(|(p, k)| (*p, &k[..]) >= (place, &key[..])) {
            return self.refuse(format!("table {}: records out of order", SNAPSHOT_TABLES[place].2));
        }
        sink(place, &key, &value)?;
        self.last = Some((place, key));
        self.records += 1;
        Ok(true)
    }

    fn take_trailer(&mut self) -> Result<bool, StoreError> {
        if self.pending.len() < TRAILER_LEN {
            return Ok(false);
        }
        let records = self.take(TRAILER_LEN - 16).slice(1..).get_u64_le();
        if records != self.records {
            return self.refuse(format!("it tells of {records} records, {} arrived", self.records));
        }
        let (told, found) = (self.pending.get_u128_le(), self.hash.digest128());
        if told != found {
            return self.refuse(format!("checksum {found:032x} instead of {told:032x}"));
        }
        self.ended = true;
        Ok(false)
    }

    /// The header, once the stream has proved complete and undamaged.
    pub(super) fn finish(mut self) -> Result<(State, Option<Bytes>), StoreError> {
        if !self.ended {
            self.offset += self.pending.len() as u64;
            return self.refuse("the stream breaks off");
        }
        match self.header.take() {
            Some(header) => Ok(header),
            None => self.refuse("no header"),
        }
    }
}

/// Takes a snapshot stream in portions of any size, into a write transaction that only [`Self::finish`]
/// commits: a stream that breaks off or turns out damaged leaves the store as it was.
pub struct RestoreWriter {
    inner: Arc<Inner>,
    txn: Option<(WriteTransaction, Appender)>,
    parser: StreamParser,
}

impl std::fmt::Debug for RestoreWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RestoreWriter").field("offset", &self.parser.offset).field("records", &self.parser.records).finish()
    }
}

impl Drop for RestoreWriter {
    fn drop(&mut self) {
        // These go first: whoever sees the flag down may begin others.
        if let Some((txn, appender)) = self.txn.take() {
            drop(txn);
            appender.abandon();
        }
        self.inner.restoring.store(false, Ordering::Release);
    }
}

impl RestoreWriter {
    pub(super) fn new(inner: Arc<Inner>, ledger: &mut Ledger) -> Result<Self, StoreError> {
        let mut appender = Appender::new(&inner.history, ledger);
        appender.free_all();
        let mut txn = inner.db.begin_write()?;
        txn.set_durability(Durability::Immediate)?;
        txn.set_quick_repair(true);
        for (_, table, _) in SNAPSHOT_TABLES {
            txn.delete_table(table)?;
            txn.open_table(table)?;
        }
        inner.restoring.store(true, Ordering::Release);
        Ok(Self { inner, txn: Some((txn, appender)), parser: StreamParser::default() })
    }

    /// Takes the next portion. After an error, drop the writer: the stream cannot be mended.
    pub fn push(&mut self, chunk: &[u8]) -> Result<(), StoreError> {
        let Self { txn, parser, .. } = self;
        let Some((txn, appender)) = txn else { return parser.refuse("the stream has ended") };
        parser.push(chunk, &mut |place, key, value| {
            if BLOCK_PLACES.contains(&place) && is_outside(value) {
                return Err(damaged("snapshot", "block", value));
            }
            let value = if BLOCK_PLACES.contains(&place) { appender.append(value)? } else { Cow::Borrowed(value) };
            txn.open_table(SNAPSHOT_TABLES[place].1)?.insert(key, &value[..])?;
            Ok(())
        })
    }

    /// Checks that the stream is complete and undamaged, and makes it the store's state, durably.
    pub fn finish(mut self) -> Result<(Index, Term), StoreError> {
        let (state, membership) = std::mem::take(&mut self.parser).finish()?;
        let Some((txn, appender)) = self.txn.take() else { return self.parser.refuse("the stream has ended") };
        let committed = appender.finish()?;
        {
            let mut meta = txn.open_table(META)?;
            meta.insert(META_STATE, &state.encode(FORMAT_VERSION)[..])?;
            meta.insert(META_HISTORY, &committed.account().encode()[..])?;
            match &membership {
                Some(membership) => meta.insert(META_MEMBERSHIP, &membership[..])?,
                None => meta.remove(META_MEMBERSHIP)?,
            };
        }
        let alarms = Alarms::read(&txn.open_table(ALARMS)?)?;
        let auth = Arc::new(AuthState::load(&txn.open_table(AUTH)?)?);
        // From here on what is in memory may not be what is in the file.
        self.inner.broken.store(true, Ordering::Release);
        txn.commit()?;
        self.inner.replace(state, membership, alarms, auth, committed)?;
        self.inner.broken.store(false, Ordering::Release);
        Ok((state.applied, state.term))
    }
}
