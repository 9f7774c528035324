//! The open log: batches are built, written in a pipeline and acknowledged in order.

use super::format::{
    BATCH_HEADER_BYTES, BatchHeader, HARD_STATE_BYTES, SEGMENT_HEADER_BYTES, SNAPSHOT_BYTES, chain_hash, entry_bytes, put_entry,
    put_hard_state, put_snapshot, segment_name,
};
use super::groups::Group;
use super::segments::{PREPARE_TOKEN, Segments};
use super::types::{LogBatch, Lsn, WalConfig, WalError};
use crate::io::{AlignedBuf, BLOCK_BYTES, Completion, Io, IoOp};
use crate::types::GroupId;
use std::collections::{BTreeMap, VecDeque};

/// Buffers kept for reuse.
const POOL_MAX: usize = 8;

/// The durable log. Only [`Wal::recover`] makes one.
pub struct Wal<I: Io> {
    pub(super) io: I,
    config: WalConfig,
    log_id: u64,
    groups: BTreeMap<GroupId, Group>,
    segments: Segments<I::File>,
    /// Takes appends.
    open: Option<Batch>,
    /// Full batches that wait for their turn.
    sealed: VecDeque<Batch>,
    sealed_bytes: usize,
    in_flight: VecDeque<Flying>,
    /// Where the next batch to be opened goes.
    tail: Tail,
    next_number: u64,
    chain: u64,
    durable_number: u64,
    appended: Lsn,
    durable: Lsn,
    written_bytes: u64,
    /// The lowest segment that recovery needs, once all that is queued is durable.
    floor: u64,
    pool: Vec<AlignedBuf>,
    completions: Vec<Completion>,
    latched: Option<WalError>,
}

/// A position for a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tail {
    pub segment: u64,
    pub offset: u64,
    /// The segment's size.
    pub end: u64,
}

/// What recovery hands to the open log.
pub(super) struct Start<F> {
    pub log_id: u64,
    pub groups: BTreeMap<GroupId, Group>,
    pub segments: Segments<F>,
    pub tail: Tail,
    pub last_number: u64,
    pub chain: u64,
    pub floor: u64,
}

/// A batch that is being filled or waits.
struct Batch {
    segment: u64,
    offset: u64,
    /// Header space and records.
    buf: AlignedBuf,
    bytes_max: usize,
    last: Lsn,
    floor: u64,
}

/// A batch on its way to the disk.
struct Flying {
    number: u64,
    last: Lsn,
    floor: u64,
    done: bool,
}

impl<I: Io> Wal<I> {
    pub(super) fn start(io: I, config: WalConfig, start: Start<I::File>) -> Self {
        Self {
            io,
            log_id: start.log_id,
            groups: start.groups,
            segments: start.segments,
            open: None,
            sealed: VecDeque::new(),
            sealed_bytes: 0,
            in_flight: VecDeque::new(),
            tail: start.tail,
            next_number: start.last_number + 1,
            chain: start.chain,
            durable_number: start.last_number,
            appended: Lsn(0),
            durable: Lsn(0),
            written_bytes: 0,
            floor: start.floor,
            pool: Vec::new(),
            completions: Vec::new(),
            latched: None,
            config,
        }
    }

    /// Queues an addition to `group`; [`Self::poll`] sends it on its way.
    ///
    /// # Errors
    /// [`WalError::Rejected`] and [`WalError::QueueFull`] leave everything as it was; all others latch.
    pub fn append(&mut self, group: GroupId, batch: LogBatch<'_>) -> Result<Lsn, WalError> {
        self.check(group, &batch)?;
        if let Some(state) = batch.hard_state {
            let segment = self.room(HARD_STATE_BYTES, |buf| put_hard_state(buf, group, state));
            let g = self.groups.entry(group).or_default();
            g.hard_state = state;
            g.hard_state_segment = Some(segment);
        }
        let mut frees = false;
        if let Some(mark) = batch.snapshot {
            // Looking at all groups is worth it only when this one held the lowest segment.
            frees = self.groups.get(&group).and_then(Group::first_segment).is_none_or(|s| s <= self.floor);
            let reset = self.groups.entry(group).or_default().resets(mark);
            let segment = self.room(SNAPSHOT_BYTES, |buf| put_snapshot(buf, group, mark, reset));
            self.groups.entry(group).or_default().compact(mark, reset, segment);
        }
        for entry in batch.entries {
            let segment = self.room(entry_bytes(&entry.data), |buf| put_entry(buf, group, entry));
            self.groups.entry(group).or_default().push(entry.index, entry.term, segment);
        }
        if frees {
            self.raise_floor();
        }
        self.appended = Lsn(self.appended.0 + 1);
        if let Some(open) = &mut self.open {
            open.last = self.appended;
        } else if self.in_flight.is_empty() && self.sealed.is_empty() {
            // An empty addition with nothing before it is as durable as it gets.
            self.durable = self.appended;
        } else {
            self.room(0, |_| ());
            if let Some(open) = &mut self.open {
                open.last = self.appended;
            }
        }
        Ok(self.appended)
    }

    fn check(&self, group: GroupId, batch: &LogBatch<'_>) -> Result<(), WalError> {
        if let Some(e) = &self.latched {
            return Err(e.clone());
        }
        let fresh = Group::default();
        let state = self.groups.get(&group).unwrap_or(&fresh);
        if let Some(what) = state.refuse(batch.snapshot, batch.entries) {
            return Err(WalError::Rejected { group, what });
        }
        let record_bytes_max = self.config.segment_bytes - (SEGMENT_HEADER_BYTES + BATCH_HEADER_BYTES) as u64;
        let mut bytes = self.queued_bytes();
        for entry in batch.entries {
            if entry_bytes(&entry.data) as u64 > record_bytes_max {
                let what = format!("entry {} has {} bytes; a segment takes {record_bytes_max}", entry.index, entry.data.len());
                return Err(WalError::Rejected { group, what });
            }
            bytes += entry_bytes(&entry.data);
        }
        // An addition larger than the whole queue still gets through when it comes alone.
        if bytes > self.config.queue_bytes_max && self.queued_bytes() > 0 {
            return Err(WalError::QueueFull { bytes: self.queued_bytes() });
        }
        Ok(())
    }

    fn queued_bytes(&self) -> usize {
        self.sealed_bytes + self.open.as_ref().map_or(0, |b| b.buf.len())
    }

    /// Writes records of `bytes` bytes into the open batch, or into a new one when they do not fit; returns
    /// the segment that they will be in.
    fn room(&mut self, bytes: usize, write: impl FnOnce(&mut AlignedBuf)) -> u64 {
        if self.open.as_ref().is_some_and(|b| b.buf.len() + bytes > b.bytes_max) {
            self.seal();
        }
        let open = match self.open.take() {
            Some(open) => self.open.insert(open),
            None => {
                let fresh = self.next_batch(bytes);
                self.open.insert(fresh)
            }
        };
        write(&mut open.buf);
        open.segment
    }

    /// A batch with room for a record of `bytes` bytes, in the next segment when this one's rest is short.
    fn next_batch(&mut self, bytes: usize) -> Batch {
        let usual = self.config.batch_bytes_max.min(usize::try_from(self.config.segment_bytes / 4).unwrap_or(usize::MAX));
        let bytes_max = usual.max((BATCH_HEADER_BYTES + bytes).next_multiple_of(BLOCK_BYTES));
        if self.tail.end - self.tail.offset < bytes_max as u64 {
            self.tail = Tail { segment: self.tail.segment + 1, offset: SEGMENT_HEADER_BYTES as u64, end: self.config.segment_bytes };
        }
        let mut buf = self.pool.pop().unwrap_or_else(|| AlignedBuf::with_capacity(64 << 10));
        buf.clear();
        buf.extend(&[0; BATCH_HEADER_BYTES]);
        Batch { segment: self.tail.segment, offset: self.tail.offset, buf, bytes_max, last: self.appended, floor: self.floor }
    }

    /// Closes the open batch: its length, and so the place of the next one, is now known.
    fn seal(&mut self) {
        if let Some(batch) = self.open.take() {
            self.tail.offset = batch.offset + batch.buf.len().next_multiple_of(BLOCK_BYTES) as u64;
            self.sealed_bytes += batch.buf.len();
            self.sealed.push_back(batch);
        }
    }

    /// Raises the floor to the lowest segment with a live entry, carrying hard states and snapshot marks
    /// that lie below it forward into the same batch.
    fn raise_floor(&mut self) {
        let live = self.groups.values().filter_map(Group::first_segment).min();
        let carried = |floor: u64, g: &Group| g.state_segment().is_some_and(|s| s < floor);
        let count = |floor: u64, groups: &BTreeMap<GroupId, Group>| groups.values().filter(|g| carried(floor, g)).count();
        let floor = live.unwrap_or(self.tail.segment).min(self.tail.segment);
        if floor <= self.floor {
            return;
        }
        let bytes = count(floor, &self.groups) * (HARD_STATE_BYTES + SNAPSHOT_BYTES);
        let segment = self.room(bytes, |_| ());
        let Some(open) = &mut self.open else { return };
        for (id, g) in self.groups.iter_mut().filter(|(_, g)| carried(floor, g)) {
            put_hard_state(&mut open.buf, *id, g.hard_state);
            put_snapshot(&mut open.buf, *id, g.snapshot, false);
            g.hard_state_segment = Some(segment);
            g.snapshot_segment = Some(segment);
        }
        self.floor = floor;
        open.floor = floor;
    }

    /// Submits what may go and takes in what is done. Returns the highest durable LSN: it and all before
    /// it survive a power cut.
    ///
    /// Call it after every round of appends, and whenever `io().readiness()` is readable. Where that is `None`, call it for as long
    /// as [`Self::has_pending`].
    ///
    /// # Errors
    /// The first failed operation, now and forever.
    pub fn poll(&mut self) -> Result<Lsn, WalError> {
        if let Some(e) = &self.latched {
            return Err(e.clone());
        }
        self.run().inspect_err(|e| {
            tracing::error!(error = %e, "the log stops here");
            self.latched = Some(e.clone());
        })?;
        Ok(self.durable)
    }

    fn run(&mut self) -> Result<(), WalError> {
        self.reap()?;
        if self.submit()? {
            self.reap()?;
        }
        self.segments.prepare(&mut self.io, self.tail.segment + 1)
    }

    fn reap(&mut self) -> Result<(), WalError> {
        let mut completions = std::mem::take(&mut self.completions);
        self.io.reap(&mut completions).map_err(WalError::io("reap completions"))?;
        for Completion { token, result, data } in completions.drain(..) {
            if token == PREPARE_TOKEN {
                self.segments.completed(&mut self.io, result)?;
                continue;
            }
            result.map_err(|e| WalError::io(format!("write batch {token}"))(e))?;
            if let Some(flying) = self.in_flight.iter_mut().find(|f| f.number == token) {
                flying.done = true;
            }
            if let Some(buf) = data.filter(|b| self.pool.len() < POOL_MAX && b.capacity() <= 2 * self.config.batch_bytes_max) {
                self.pool.push(buf);
            }
        }
        self.completions = completions;
        let mut floor = None;
        while self.in_flight.front().is_some_and(|f| f.done) {
            if let Some(done) = self.in_flight.pop_front() {
                self.durable_number = done.number;
                self.durable = done.last;
                floor = Some(done.floor);
            }
        }
        floor.map_or(Ok(()), |floor| self.segments.retire(&mut self.io, floor))
    }

    /// Starts batches for as long as depth and segments allow; whether any was started.
    fn submit(&mut self) -> Result<bool, WalError> {
        let mut any = false;
        while self.in_flight.len() < self.config.batches_in_flight_max {
            if self.sealed.is_empty() {
                // Small batches side by side cost more than they give: with something in flight, the open
                // batch goes on filling until it is worth it.
                let worth = if self.in_flight.is_empty() { 1 } else { self.config.pipeline_bytes_min };
                if self.open.as_ref().is_none_or(|b| b.buf.len() < worth) {
                    break;
                }
                self.seal();
            }
            let Some(batch) = self.sealed.front() else { break };
            let segment = batch.segment;
            let Some(file) = self.segments.file(&mut self.io, segment)? else { break };
            if let Some(batch) = self.sealed.pop_front() {
                self.sealed_bytes -= batch.buf.len();
                self.write(file, batch)?;
                any = true;
            }
        }
        Ok(any)
    }

    fn write(&mut self, file: I::File, batch: Batch) -> Result<(), WalError> {
        let Batch { segment, offset, mut buf, last, floor, .. } = batch;
        let payload = &buf.as_slice()[BATCH_HEADER_BYTES..];
        let header = BatchHeader {
            payload_bytes: u32::try_from(payload.len()).map_err(|_| WalError::Config("a batch beyond 4 GiB".into()))?,
            segment,
            number: self.next_number,
            previous: self.chain,
            floor,
            durable: self.durable_number,
            payload_crc: crc32fast::hash(payload),
        };
        let number = header.number;
        let header = header.encode(self.log_id);
        buf.as_mut_slice()[..BATCH_HEADER_BYTES].copy_from_slice(&header);
        buf.pad_to_block();
        self.chain = chain_hash(&header);
        self.next_number += 1;
        self.written_bytes += buf.len() as u64;
        self.in_flight.push_back(Flying { number, last, floor, done: false });
        self.io.submit(number, IoOp::Write { file, offset, data: buf, durable: true }).map_err(|e| {
            let action = format!("write batch {number} to segment {} at byte {offset}", segment_name(segment));
            WalError::io(action)(e)
        })
    }

    /// The first half of [`Self::poll`]: takes in what is done and submits nothing, so that those who waited can append
    /// before the next batch goes.
    ///
    /// # Errors
    /// As [`Self::poll`].
    pub(super) fn take_completions(&mut self) -> Result<Lsn, WalError> {
        if let Some(e) = &self.latched {
            return Err(e.clone());
        }
        self.reap().inspect_err(|e| self.latched = Some(e.clone()))?;
        Ok(self.durable)
    }

    /// The error that latched the log.
    pub const fn latched(&self) -> Option<&WalError> {
        self.latched.as_ref()
    }

    /// The highest durable LSN.
    pub const fn durable(&self) -> Lsn {
        self.durable
    }

    /// Bytes handed to the disk since the start, headers and padding included.
    pub const fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// Whether an append waits for durability.
    pub fn has_pending(&self) -> bool {
        self.durable < self.appended
    }

    /// The storage.
    pub const fn io(&self) -> &I {
        &self.io
    }

    /// The storage.
    pub const fn io_mut(&mut self) -> &mut I {
        &mut self.io
    }

    /// Live segment files (the one in preparation not counted).
    pub fn segments(&self) -> usize {
        self.segments.live()
    }

    /// Waits until everything appended is durable. Blocks; for tests, shutdown and plain threads.
    ///
    /// # Errors
    /// As [`Self::poll`].
    pub fn flush(&mut self) -> Result<Lsn, WalError> {
        loop {
            let durable = self.poll()?;
            if !self.has_pending() {
                return Ok(durable);
            }
            if let Err(e) = self.io.wait().map_err(WalError::io("wait for completions")) {
                self.latched = Some(e.clone());
                return Err(e);
            }
        }
    }
}
