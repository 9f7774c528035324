//! History outside of the engine's file.
//!
//! History and its index are written once and read seldom, so their full blocks do without a tree's pages: they lie one behind the other in
//! files of their own ([`super::segments`]), and `log` and `index` say where. Only the last block, which the next checkpoint fills up, and what
//! garbage collection left of a block if that is little, stand in the tables themselves. Space is never used again under its old address; what a
//! checkpoint frees becomes a hole once that checkpoint is durable and nobody reads an older one.

use super::backend::UNSYNCED_BYTES_MAX;
use super::base::ReadTable;
use super::block;
use super::codec::{Fields, Logged, Rev, damaged};
use super::error::StoreError;
use super::runs::Guard;
use super::segments::{SEGMENT_BYTES, Storage, segment_of};
use redb::{ReadTransaction, ReadableTable};
use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use xxhash_rust::xxh3::xxh3_64;

/// Blocks begin at multiples of this, so that each becomes a hole by itself.
const ALIGN: usize = if cfg!(test) { 64 } else { 4096 };
/// A block of usual records has this length.
pub(super) const BLOCK_BYTES: usize = if cfg!(test) { 512 } else { 8192 };
/// What is left of a block is kept in the table below this length.
pub(super) const INLINE_BYTES_MAX: usize = BLOCK_BYTES / 2;
/// Larger blocks stay in the table: they are records that hardly fit into a file.
const EXTENT_BYTES_MAX: usize = (SEGMENT_BYTES / 16) as usize;
/// What is collected before it is written.
const WRITE_BYTES: usize = 1 << 20;
/// Begins a value that says where a block lies. (A block that begins so, with the length of its first key, is longer than that.)
const EXTENT_MARK: u8 = 0xff;
/// Mark, address, length, checksum.
const EXTENT_LEN: usize = 1 + 8 + 4 + 8;

const fn padded(len: usize) -> usize {
    len.next_multiple_of(ALIGN)
}

/// Where a block lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    at: u64,
    len: u32,
    /// XXH3-64 of the block.
    sum: u64,
}

impl Extent {
    fn encode(&self) -> [u8; EXTENT_LEN] {
        let mut out = [EXTENT_MARK; EXTENT_LEN];
        out[1..9].copy_from_slice(&self.at.to_le_bytes());
        out[9..13].copy_from_slice(&self.len.to_le_bytes());
        out[13..].copy_from_slice(&self.sum.to_le_bytes());
        out
    }

    /// `None`: the value is a block itself.
    fn decode(value: &[u8]) -> Result<Option<Self>, StoreError> {
        if !is_outside(value) {
            return Ok(None);
        }
        let parse = || {
            let mut f = Fields(value);
            f.u8()?;
            let extent = Self { at: f.u64()?, len: f.u32()?, sum: f.u64()? };
            f.0.is_empty().then_some(extent)
        };
        parse().map(Some).ok_or_else(|| damaged("log", "extent", value))
    }

    fn range(&self) -> Range<u64> {
        self.at..self.at.saturating_add(padded(self.len as usize) as u64)
    }
}

/// The files, for reading.
#[derive(Debug)]
pub(super) struct History {
    storage: Box<dyn Storage>,
    /// Bytes that are in use.
    bytes: AtomicU64,
}

impl History {
    pub(super) fn new(storage: Box<dyn Storage>, account: &Account) -> Self {
        Self { storage, bytes: AtomicU64::new(account.bytes()) }
    }

    /// Bytes that blocks take, as of the last checkpoint.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// As [`Self::block`].
    pub(super) fn block_of<'t>(&self, value: Guard<'t>) -> Result<Block<'t>, StoreError> {
        if is_outside(value.value()) {
            return Ok(Block::Outside(self.block(value.value())?.into_owned()));
        }
        Ok(Block::Inside(value))
    }

    /// The block that a value is, or tells of.
    pub(super) fn block<'v>(&self, value: &'v [u8]) -> Result<Cow<'v, [u8]>, StoreError> {
        let Some(Extent { at, len, sum }) = Extent::decode(value)? else { return Ok(Cow::Borrowed(value)) };
        if len as usize > EXTENT_BYTES_MAX {
            return Err(damaged("log", "extent", value));
        }
        let mut block = vec![0; len as usize];
        self.storage.read(at, &mut block).map_err(|cause| StoreError::History { doing: "read", at, cause })?;
        let found = xxh3_64(&block);
        if found != sum {
            let what = format!("block of {len} bytes at address {at}: checksum {found:016x} instead of {sum:016x}");
            return Err(StoreError::Damaged { table: "history", what });
        }
        Ok(Cow::Owned(block))
    }

    /// How long that is.
    pub(super) fn block_len(value: &[u8]) -> Result<usize, StoreError> {
        Ok(Extent::decode(value)?.map_or(value.len(), |extent| extent.len as usize))
    }

    /// Shows `f` the changes from `from` on, below `to`, until it returns false; then this returns false too.
    pub(super) fn for_each(
        &self,
        log: &impl ReadableTable<&'static [u8], &'static [u8]>,
        from: Rev,
        to: Rev,
        mut f: impl FnMut(Rev, &Logged<'_>) -> Result<bool, StoreError>,
    ) -> Result<bool, StoreError> {
        if from >= to {
            return Ok(true);
        }
        let (from, to) = (from.key(), to.key());
        // `from` lies in the block whose key is the last at or before it.
        let first = log.range::<&[u8]>(..=&from[..])?.next_back().transpose()?;
        let first = first.map_or_else(|| from.to_vec(), |(key, _)| key.value().to_vec());
        for item in log.range::<&[u8]>(&first[..]..&to[..])? {
            let (_, value) = item?;
            for record in block::records("log", &self.block(value.value())?) {
                let (key, value) = record?;
                if key >= &to[..] {
                    return Ok(true);
                }
                if key >= &from[..] && !f(Rev::from_key(key)?, &Logged::decode(value)?)? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// The change of exactly this revision; `None` when it has been collected.
    pub(super) fn logged<R>(&self, log: &ReadTable, rev: Rev, f: impl FnOnce(&Logged<'_>) -> R) -> Result<Option<R>, StoreError> {
        let wanted = rev.key();
        let Some(item) = log.range::<&[u8]>(..=&wanted[..])?.next_back() else { return Ok(None) };
        let (_, value) = item?;
        let block = self.block(value.value())?;
        let mut rest = &block[..];
        while let Some((key, value)) = block::next("log", &mut rest)? {
            if key == wanted {
                return Ok(Some(f(&Logged::decode(value)?)));
            }
        }
        Ok(None)
    }
}

/// A block, wherever it came from.
pub(super) enum Block<'t> {
    Inside(Guard<'t>),
    Outside(Vec<u8>),
}

impl Block<'_> {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Inside(guard) => guard.value(),
            Self::Outside(bytes) => bytes,
        }
    }
}

/// What is where: `meta`/`history`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Account {
    /// Where the next block goes.
    pub(super) end: u64,
    /// Bytes in use, by segment; those with none in use are to be removed.
    pub(super) live: BTreeMap<u32, u64>,
    /// Not in use any more, and not made a hole yet, as far as is known: in order.
    freed: Vec<(u64, u64)>,
}

impl Account {
    pub(super) fn bytes(&self) -> u64 {
        self.live.values().sum()
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = self.end.to_le_bytes().to_vec();
        out.extend_from_slice(&u32::try_from(self.live.len()).unwrap_or(u32::MAX).to_le_bytes());
        for (segment, live) in &self.live {
            out.extend_from_slice(&segment.to_le_bytes());
            out.extend_from_slice(&live.to_le_bytes());
        }
        for (from, to) in &self.freed {
            out.extend_from_slice(&from.to_le_bytes());
            out.extend_from_slice(&to.to_le_bytes());
        }
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let parse = || {
            let mut f = Fields(bytes);
            let mut account = Self { end: f.u64()?, ..Self::default() };
            for _ in 0..f.u32()? {
                account.live.insert(f.u32()?, f.u64()?);
            }
            while !f.0.is_empty() {
                account.freed.push((f.u64()?, f.u64()?));
            }
            let aligned = |at: u64| at.is_multiple_of(ALIGN as u64) && at <= account.end;
            let sound = |(from, to): &(u64, u64)| from < to && aligned(*from) && aligned(*to);
            (aligned(account.end) && account.freed.iter().all(sound)).then_some(account)
        };
        parse().ok_or_else(|| damaged("meta", "history", bytes))
    }

    fn free(&mut self, range: &Range<u64>) -> Result<(), StoreError> {
        let live = self.live.get_mut(&segment_of(range.start));
        let left = live.as_deref().and_then(|live| live.checked_sub(range.end - range.start));
        match (live, left) {
            (Some(live), Some(left)) => *live = left,
            _ => return Err(damaged("meta", "history", &self.encode())),
        }
        Ok(())
    }
}

/// Who may still read what was freed.
#[derive(Debug)]
struct Freed {
    /// Of the checkpoint that had it in use last. Those before it are waited for as well: they stand before it.
    reader: Weak<ReadTransaction>,
    ranges: Vec<(u64, u64)>,
}

/// What checkpoints know of the files, from one to the next.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// As of the last checkpoint, but for what was freed.
    account: Account,
    /// What was freed, the oldest first.
    freed: VecDeque<Freed>,
}

impl Ledger {
    pub(super) fn new(mut account: Account) -> Self {
        let freed = Freed { reader: Weak::new(), ranges: std::mem::take(&mut account.freed) };
        Self { account, freed: VecDeque::from([freed]) }
    }

    /// What the next account says is durable: `reader` reads the one before it.
    pub(super) fn committed(&mut self, history: &History, committed: Committed, reader: &Arc<ReadTransaction>) {
        history.bytes.store(committed.account.bytes(), Ordering::Relaxed);
        self.account = Account { freed: Vec::new(), ..committed.account };
        self.freed.push_back(Freed { reader: Arc::downgrade(reader), ranges: committed.freed });
    }

    /// Gives back the space that nobody reads any more. What cannot be given back now is tried again next time: whatever is wrong, nothing is lost.
    fn sweep(&mut self, storage: &dyn Storage) {
        if let Err(e) = self.try_sweep(storage) {
            tracing::warn!("cannot give back space of the store's history, it stays in use: {e}");
        }
    }

    fn try_sweep(&mut self, storage: &dyn Storage) -> io::Result<()> {
        while let Some(freed) = self.freed.front().filter(|freed| freed.reader.strong_count() == 0) {
            for (from, to) in &freed.ranges {
                parts(*from..*to).try_for_each(|part| storage.free(part))?;
            }
            self.freed.pop_front();
        }
        if self.freed.is_empty() {
            let last = segment_of(self.account.end);
            let empty: Vec<u32> = self.account.live.iter().filter(|(s, live)| **live == 0 && **s < last).map(|(s, _)| *s).collect();
            for segment in empty {
                storage.forget(segment)?;
                self.account.live.remove(&segment);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
impl Ledger {
    /// `extents`: where blocks lie.
    pub(super) fn check(&self, extents: &[Range<u64>]) {
        let mut all: Vec<Range<u64>> = extents.to_vec();
        let mut live: BTreeMap<u32, u64> = self.account.live.keys().map(|segment| (*segment, 0)).collect();
        for extent in extents {
            assert!(extent.end <= self.account.end && segment_of(extent.start) == segment_of(extent.end - 1), "{extent:?}");
            *live.get_mut(&segment_of(extent.start)).expect("a segment that is counted") += extent.end - extent.start;
        }
        assert_eq!(live, self.account.live);
        all.extend(self.freed.iter().flat_map(|freed| &freed.ranges).map(|(from, to)| *from..*to));
        all.sort_unstable_by_key(|range| range.start);
        assert!(all.windows(2).all(|pair| pair[0].end <= pair[1].start), "{all:?}");
    }
}

/// Where the block lies that a value tells of.
#[cfg(test)]
pub(super) fn extent_of(value: &[u8]) -> Option<Range<u64>> {
    Extent::decode(value).unwrap().map(|extent| extent.range())
}

/// A range, cut at the borders of segments.
fn parts(mut range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    std::iter::from_fn(move || {
        let border = (u64::from(segment_of(range.start)) + 1) * SEGMENT_BYTES;
        let part = range.start..range.end.min(border);
        range.start = part.end;
        (!part.is_empty()).then_some(part)
    })
}

/// What a checkpoint made of the account.
#[derive(Debug)]
pub(super) struct Committed {
    account: Account,
    freed: Vec<(u64, u64)>,
}

/// Adds blocks, and gives up others, over one checkpoint.
#[derive(Debug)]
pub(super) struct Appender {
    history: Arc<History>,
    before: Account,
    account: Account,
    /// Before, and not given back yet.
    pending: Vec<(u64, u64)>,
    freed: Vec<(u64, u64)>,
    /// To be written where `account.end` is, less its length.
    buffer: Vec<u8>,
    unsynced: u64,
}

impl Appender {
    /// Gives back space first.
    pub(super) fn new(history: &Arc<History>, ledger: &mut Ledger) -> Self {
        ledger.sweep(&*history.storage);
        let pending = ledger.freed.iter().flat_map(|freed| freed.ranges.iter().copied()).collect();
        let (before, account) = (ledger.account.clone(), ledger.account.clone());
        Self { history: Arc::clone(history), before, account, pending, freed: Vec::new(), buffer: Vec::new(), unsynced: 0 }
    }

    /// Gives up what was appended.
    pub(super) fn abandon(self) {
        if let Err(e) = self.history.storage.cut(self.before.end, &self.before.live) {
            tracing::warn!("cannot give back space of a snapshot that was given up, it stays in use until the next start: {e}");
        }
    }

    /// The block that a value is, or tells of.
    pub(super) fn block<'v>(&mut self, value: &'v [u8]) -> Result<Cow<'v, [u8]>, StoreError> {
        let flushed = self.account.end - self.buffer.len() as u64;
        if Extent::decode(value)?.is_some_and(|extent| extent.range().end > flushed) {
            self.flush()?;
        }
        self.history.block(value)
    }

    /// The files, in which everything is that was appended.
    pub(super) fn history(&mut self) -> Result<Arc<History>, StoreError> {
        self.flush()?;
        Ok(Arc::clone(&self.history))
    }

    /// Takes a block, unless it is small; returns what the table is to say of it.
    pub(super) fn append<'b>(&mut self, block: &'b [u8]) -> Result<Cow<'b, [u8]>, StoreError> {
        if block.len() < INLINE_BYTES_MAX || block.len() > EXTENT_BYTES_MAX {
            return Ok(Cow::Borrowed(block));
        }
        let room = SEGMENT_BYTES - self.account.end % SEGMENT_BYTES;
        let len = padded(block.len());
        if room < len as u64 {
            self.flush()?;
            self.account.end += room;
        } else if room == SEGMENT_BYTES {
            self.flush()?;
        }
        let at = self.account.end;
        let filled = self.buffer.len();
        self.buffer.extend_from_slice(block);
        self.buffer.resize(filled + len, 0);
        self.account.end += len as u64;
        *self.account.live.entry(segment_of(at)).or_default() += len as u64;
        if self.buffer.len() >= WRITE_BYTES {
            self.flush()?;
        }
        let extent = Extent { at, len: u32::try_from(block.len()).unwrap_or(u32::MAX), sum: xxh3_64(block) };
        Ok(Cow::Owned(extent.encode().to_vec()))
    }

    /// The table does not tell of this block any more.
    pub(super) fn free(&mut self, value: &[u8]) -> Result<(), StoreError> {
        if let Some(extent) = Extent::decode(value)? {
            let Range { start, end } = extent.range();
            self.account.free(&(start..end))?;
            self.freed.push((start, end));
        }
        Ok(())
    }

    /// Nor of any that was there before.
    pub(super) fn free_all(&mut self) {
        for part in parts(0..self.account.end) {
            if let Some(live) = self.account.live.get_mut(&segment_of(part.start)).filter(|live| **live > 0) {
                *live = 0;
                self.freed.push((part.start, part.end));
            }
        }
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let at = self.account.end - self.buffer.len() as u64;
        self.history.storage.write(at, &self.buffer).map_err(|cause| StoreError::History { doing: "write", at, cause })?;
        self.unsynced += self.buffer.len() as u64;
        self.buffer.clear();
        if self.unsynced >= UNSYNCED_BYTES_MAX { self.sync() } else { Ok(()) }
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        self.unsynced = 0;
        let at = self.account.end;
        self.history.storage.sync().map_err(|cause| StoreError::History { doing: "sync", at, cause })
    }

    /// Makes the blocks durable; whoever makes the account so next tells [`Ledger::committed`].
    pub(super) fn finish(mut self) -> Result<Committed, StoreError> {
        self.flush()?;
        if self.unsynced > 0 {
            self.sync()?;
        }
        let freed = joined(std::mem::take(&mut self.freed));
        self.pending.extend_from_slice(&freed);
        self.account.freed = joined(self.pending);
        Ok(Committed { account: self.account, freed })
    }
}

impl Committed {
    pub(super) fn account(&self) -> &Account {
        &self.account
    }
}

/// In order, with those that touch or overlap made one.
fn joined(mut ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    ranges.sort_unstable();
    let mut out: Vec<(u64, u64)> = Vec::new();
    for (from, to) in ranges {
        match out.last_mut() {
            Some(last) if last.1 >= from => last.1 = last.1.max(to),
            _ => out.push((from, to)),
        }
    }
    out
}

/// Whether a value tells of a block outside.
pub(super) fn is_outside(value: &[u8]) -> bool {
    value.len() == EXTENT_LEN && value[0] == EXTENT_MARK
}

/// Whether a block is closed before a record of `more` bytes: once it is long enough, and little of its last page would be left empty.
pub(super) fn is_full(len: usize, more: usize) -> bool {
    let end = padded(len).max(BLOCK_BYTES);
    len + more > end && end - len <= len / 8
}
