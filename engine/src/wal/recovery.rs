//! From whatever is on the disk to an open log, or to a refusal. The cases stand in [`super::cases`].

use super::cases::{EndCase, HeaderFact, Here, Later, SegmentCase, end_case, segment_case};
use super::format::{
    BATCH_HEADER_BYTES, BATCH_MAGIC, BatchHeader, LOG_VERSION, Record, SEGMENT_HEADER_BYTES, SegmentHeader, SegmentHeaderRead, chain_hash,
    decode_records, parse_segment_name, segment_name,
};
use super::groups::Replay;
use super::log::{Start, Tail, Wal};
use super::segments::Segments;
use super::types::{Recovered, TornTail, WalConfig, WalError};
use crate::io::{BLOCK_BYTES, Completion, Io, IoOp, ZERO_BYTES_MAX};
use crate::types::GroupId;

const SEGMENT_BYTES_MIN: u64 = 64 << 10;
const IN_FLIGHT_MAX: usize = 16;

impl<I: Io> Wal<I> {
    /// Opens the log in `io`'s directory, creating it when there is none. Everything that it answers is
    /// durable, whether or not it had been acknowledged.
    ///
    /// Blocks: a log is opened before anything is served.
    ///
    /// # Errors
    /// [`WalError::Damaged`], with file and offset, when something acknowledged is gone; [`WalError::Version`];
    /// [`WalError::Io`].
    pub fn recover(mut io: I, config: WalConfig) -> Result<(Self, Recovered), WalError> {
        check(&config)?;
        let names = io.list().map_err(WalError::io("list segments"))?;
        let mut found: Vec<u64> = names.iter().filter_map(|n| parse_segment_name(n)).collect();
        found.sort_unstable();
        let scan = Scan::run(&mut io, &found)?;
        let (start, recovered) = match scan {
            Some(scan) => scan.into_start(&mut io, &config)?,
            None => (create(&mut io, &config, &found)?, Recovered::default()),
        };
        Ok((Self::start(io, config, start), recovered))
    }
}

fn check(config: &WalConfig) -> Result<(), WalError> {
    let WalConfig { segment_bytes, batches_in_flight_max, .. } = config;
    if *segment_bytes < SEGMENT_BYTES_MIN || segment_bytes % BLOCK_BYTES as u64 != 0 {
        return Err(WalError::Config(format!("segment_bytes {segment_bytes}: a multiple of {BLOCK_BYTES}, at least {SEGMENT_BYTES_MIN}")));
    }
    if !(1..=IN_FLIGHT_MAX).contains(batches_in_flight_max) {
        return Err(WalError::Config(format!("batches_in_flight_max {batches_in_flight_max}: 1 to {IN_FLIGHT_MAX}")));
    }
    Ok(())
}

/// A new log. What is there never held a batch.
fn create<I: Io>(io: &mut I, config: &WalConfig, found: &[u64]) -> Result<Start<I::File>, WalError> {
    for segment in found {
        let name = segment_name(*segment);
        io.remove(&name).map_err(WalError::io(format!("remove unfinished segment {name}")))?;
        blocking(io, IoOp::SyncDir, "sync the log's directory")?;
    }
    let log_id = if config.log_id == 0 { rand::random::<u64>() | 1 } else { config.log_id };
    let mut segments = Segments::new(log_id, config.segment_bytes, [], []);
    segments.prepare(io, 1)?;
    while segments.highest() == 0 {
        let mut done = Vec::new();
        io.wait().map_err(WalError::io("prepare the first segment"))?;
        io.reap(&mut done).map_err(WalError::io("prepare the first segment"))?;
        for Completion { result, .. } in done {
            segments.completed(io, result)?;
        }
    }
    let tail = Tail { segment: 1, offset: SEGMENT_HEADER_BYTES as u64, end: config.segment_bytes };
    Ok(Start { log_id, groups: std::collections::BTreeMap::new(), segments, tail, last_number: 0, chain: 0, floor: 1 })
}

/// Runs one operation to its end. Nothing else may be in flight.
fn blocking<I: Io>(io: &mut I, op: IoOp<I::File>, action: &str) -> Result<(), WalError> {
    io.submit(0, op).map_err(WalError::io(action))?;
    let mut done = Vec::new();
    while done.is_empty() {
        io.wait().map_err(WalError::io(action))?;
        io.reap(&mut done).map_err(WalError::io(action))?;
    }
    done.pop().map_or(Ok(()), |c| c.result.map_err(WalError::io(action)))
}

/// One segment file in memory.
struct Segment {
    number: u64,
    data: Vec<u8>,
}

/// The chain of batches, as far as it goes.
struct Scan {
    log_id: u64,
    /// Every segment file that exists, but for one that was never prepared.
    present: Vec<u64>,
    /// The contiguous ones up to the newest.
    run: Vec<u64>,
    discard: Option<u64>,
    /// The last valid batch and the hash that the next one carries.
    last_number: u64,
    chain: u64,
    floor: u64,
    records: Vec<(u64, Vec<(GroupId, Record)>)>,
    /// Where the chain ends.
    end: Option<Segment>,
    end_offset: usize,
    torn: bool,
}

impl Scan {
    /// `None`: there is no log yet.
    fn run<I: Io>(io: &mut I, found: &[u64]) -> Result<Option<Self>, WalError> {
        let Some(newest) = found.last() else { return Ok(None) };
        let run: Vec<u64> = found.iter().rev().zip((0..=*newest).rev()).take_while(|(a, b)| **a == *b).map(|(a, _)| *a).collect();
        let run: Vec<u64> = run.into_iter().rev().collect();
        let Some(log_id) = find_log_id(io, &run)? else {
            return Self::without_header(io, &run, found);
        };
        let mut scan = Self {
            log_id,
            present: found.to_vec(),
            run: run.clone(),
            discard: None,
            last_number: 0,
            chain: 0,
            floor: 1,
            records: Vec::new(),
            end: None,
            end_offset: SEGMENT_HEADER_BYTES,
            torn: false,
        };
        let mut later: Vec<Segment> = Vec::new();
        for number in &run {
            let segment = read_segment(io, *number)?;
            match classify(&segment, Some(log_id), number == newest)? {
                SegmentCase::Discard => scan.discard = Some(*number),
                _ => scan.take(segment, &mut later)?,
            }
        }
        scan.finish(&later, found)
    }

    /// No segment has a readable header: either creation was interrupted, or all of it is damaged.
    fn without_header<I: Io>(io: &mut I, run: &[u64], found: &[u64]) -> Result<Option<Self>, WalError> {
        for number in run {
            let segment = read_segment(io, *number)?;
            let case = classify(&segment, None, Some(number) == found.last())?;
            if case != SegmentCase::Discard || found.len() > 1 || *number != 1 {
                return Err(damaged(&segment_name(*number), 0, "a segment header", "none"));
            }
        }
        Ok(None)
    }

    /// Follows the chain into `segment`, or keeps it as evidence when the chain ended before it.
    fn take(&mut self, segment: Segment, later: &mut Vec<Segment>) -> Result<(), WalError> {
        let first_of_run = self.end.is_none();
        if !first_of_run && !self.follows(&segment, SEGMENT_HEADER_BYTES, false) {
            later.push(segment);
            return Ok(());
        }
        let mut at = SEGMENT_HEADER_BYTES;
        // The lowest segment's first batch follows one that went with the segments before it.
        let mut anything = first_of_run && segment.number > 1;
        while self.follows(&segment, at, anything) {
            anything = false;
            let Some(header) = BatchHeader::decode(&segment.data[at..], self.log_id) else { break };
            let payload = &segment.data[at + BATCH_HEADER_BYTES..at + BATCH_HEADER_BYTES + header.payload_bytes as usize];
            let records = decode_records(payload)
                .map_err(|(offset, what)| damaged(&segment_name(segment.number), at + BATCH_HEADER_BYTES + offset, "a record", what))?;
            self.records.push((segment.number, records));
            self.last_number = header.number;
            self.floor = header.floor;
            self.chain = chain_hash(&header.encode(self.log_id));
            at += header.total_bytes();
        }
        if !later.is_empty() {
            // The chain cannot go on behind a segment that it does not enter.
            let name = segment_name(segment.number);
            return Err(damaged(&name, SEGMENT_HEADER_BYTES, "nothing behind the end of the log", "batches that follow"));
        }
        self.end = Some(segment);
        self.end_offset = at;
        Ok(())
    }

    /// Whether an intact batch stands at `at` that follows the last one (`anything`: whatever its number).
    fn follows(&self, segment: &Segment, at: usize, anything: bool) -> bool {
        let Some(header) = segment.data.get(at..).and_then(|b| BatchHeader::decode(b, self.log_id)) else { return false };
        header.segment == segment.number
            && (anything || (header.number == self.last_number + 1 && header.previous == self.chain))
            && segment
                .data
                .get(at + BATCH_HEADER_BYTES..at + BATCH_HEADER_BYTES + header.payload_bytes as usize)
                .is_some_and(|payload| crc32fast::hash(payload) == header.payload_crc)
            && at + header.total_bytes() <= segment.data.len()
    }

    /// Decides how the chain ends, and whether all segments that it needs are there.
    fn finish(mut self, later: &[Segment], found: &[u64]) -> Result<Option<Self>, WalError> {
        let lowest = self.run.first().copied().unwrap_or(1);
        let Some(end) = &self.end else {
            // One segment, never prepared, while a readable header is elsewhere: what came before is gone.
            return Err(missing(lowest.saturating_sub(1)));
        };
        let alone = end.number == 1 && found.first() == Some(&1);
        if self.last_number == 0 && !alone {
            return Err(missing(lowest.saturating_sub(1)));
        }
        let n = self.last_number + 1;
        let here = self.here_at(end, self.end_offset);
        let from = (self.end_offset + BLOCK_BYTES).min(end.data.len());
        // Batch n was the next segment's first, when that one's start is unreadable and nothing else here follows.
        let next_start = later.first().filter(|s| s.number == end.number + 1 && self.here_at(s, SEGMENT_HEADER_BYTES) != Here::Stray);
        let evidence = later.iter().map(|s| (s.number, &s.data[SEGMENT_HEADER_BYTES.min(s.data.len())..], SEGMENT_HEADER_BYTES));
        let evidence = std::iter::once((end.number, &end.data[from..], from)).chain(evidence);
        let (later, at) = evidence.map(|(s, data, base)| self.evidence(s, data, base, n)).fold(
            (Later::Nothing, (end.number, self.end_offset)),
            |best, found| if found.0 > best.0 { found } else { best },
        );
        let name = segment_name(end.number);
        match end_case(here, later) {
            EndCase::Clean => {}
            EndCase::Torn => self.torn = true,
            EndCase::Broken => {
                let expected = format!("batch {n}, following hash {:016x}", self.chain);
                return Err(damaged(&name, self.end_offset, &expected, "a batch that does not follow"));
            }
            EndCase::Damaged => {
                let found = format!("{here:?}, although the batch in {} at byte {} says that it was durable", segment_name(at.0), at.1);
                return Err(match next_start.filter(|_| here == Here::Nothing && at.0 > end.number) {
                    Some(next) => damaged(&segment_name(next.number), SEGMENT_HEADER_BYTES, &format!("batch {n}"), &found),
                    None => damaged(&name, self.end_offset, &format!("batch {n}"), &found),
                });
            }
        }
        if self.floor < lowest {
            return Err(missing(lowest - 1));
        }
        Ok(Some(self))
    }

    fn here_at(&self, end: &Segment, offset: usize) -> Here {
        match end.data.get(offset..).and_then(|b| BatchHeader::decode(b, self.log_id)) {
            Some(h) if h.segment != end.number => Here::Nothing,
            Some(h) if h.number == self.last_number + 1 && h.previous == self.chain => Here::Torn,
            Some(_) => Here::Stray,
            None => Here::Nothing,
        }
    }

    /// The strongest header of a batch `n` or later in `data`, which starts at byte `base` of `segment`.
    fn evidence(&self, segment: u64, data: &[u8], base: usize, n: u64) -> (Later, (u64, usize)) {
        let mut best = (Later::Nothing, (segment, base));
        for (i, block) in data.chunks(BLOCK_BYTES).enumerate() {
            let Some(header) = BatchHeader::decode(block, self.log_id) else { continue };
            if header.segment == segment && header.number >= n {
                let later = if header.durable >= n { Later::Confirms } else { Later::Unconfirmed };
                if later > best.0 {
                    best = (later, (segment, base + i * BLOCK_BYTES));
                }
            }
        }
        best
    }

    /// Cleans up and makes durable what was read, so that what recovery answers stays true.
    fn into_start<I: Io>(self, io: &mut I, config: &WalConfig) -> Result<(Start<I::File>, Recovered), WalError> {
        let Some(end) = self.end else { return Err(missing(1)) };
        let name = segment_name(end.number);
        let mut present = self.present;
        // Prepared segments behind a torn tail may hold batches that outlived it. The newest goes first, each
        // durably, so that no power cut leaves a gap.
        while present.last().is_some_and(|s| Some(*s) == self.discard || (self.torn && *s > end.number)) {
            let Some(segment) = present.pop() else { break };
            io.remove(&segment_name(segment)).map_err(WalError::io(format!("remove segment {}", segment_name(segment))))?;
            blocking(io, IoOp::SyncDir, "sync the log's directory")?;
        }
        let mut torn_tail = None;
        if self.torn {
            zero_rest(io, &end, self.end_offset as u64)?;
            tracing::warn!(file = name, offset = self.end_offset, batch = self.last_number + 1, "cut a torn tail off; nothing in it was acknowledged");
            torn_tail = Some(TornTail { file: name, offset: self.end_offset as u64, batch: self.last_number + 1 });
        }
        for segment in present.iter().filter(|s| **s >= self.floor) {
            let name = segment_name(*segment);
            let file = io.open(&name, false).map_err(WalError::io(format!("open segment {name}")))?;
            blocking(io, IoOp::Fsync { file }, &format!("sync segment {name}"))?;
            io.close(file);
        }
        blocking(io, IoOp::SyncDir, "sync the log's directory")?;

        let mut replay = Replay::default();
        for (segment, records) in self.records.into_iter().filter(|(s, _)| *s >= self.floor) {
            for (group, record) in records {
                replay.apply(group, record, segment);
            }
        }
        let (groups, recovered) = replay.finish().map_err(|(group, index)| {
            damaged(&segment_name(self.floor), 0, &format!("entry {index} of group {group}"), "a gap before later entries")
        })?;
        let (retired, live): (Vec<u64>, Vec<u64>) = present.into_iter().partition(|s| *s < self.floor);
        let tail = Tail { segment: end.number, offset: self.end_offset as u64, end: end.data.len() as u64 };
        let segments = Segments::new(self.log_id, config.segment_bytes, live, retired);
        let start = Start { log_id: self.log_id, groups, segments, tail, last_number: self.last_number, chain: self.chain, floor: self.floor };
        Ok((start, Recovered { groups: recovered, torn_tail }))
    }
}

/// Overwrites everything from `offset` on, durably: later batches of the torn tail must not come back to life.
fn zero_rest<I: Io>(io: &mut I, end: &Segment, offset: u64) -> Result<(), WalError> {
    let name = segment_name(end.number);
    let file = io.open(&name, false).map_err(WalError::io(format!("open segment {name}")))?;
    let mut at = offset;
    while at < end.data.len() as u64 {
        let len = (end.data.len() as u64 - at).min(ZERO_BYTES_MAX as u64) as usize;
        blocking(io, IoOp::Zero { file, offset: at, len }, &format!("clear the torn tail of {name}"))?;
        at += len as u64;
    }
    blocking(io, IoOp::Fsync { file }, &format!("clear the torn tail of {name}"))?;
    io.close(file);
    Ok(())
}

/// The identity in the first readable header.
fn find_log_id<I: Io>(io: &mut I, run: &[u64]) -> Result<Option<u64>, WalError> {
    for number in run {
        let name = segment_name(*number);
        let file = io.open(&name, false).map_err(WalError::io(format!("open segment {name}")))?;
        let mut block = vec![0; SEGMENT_HEADER_BYTES];
        let n = io.read_at(file, 0, &mut block).map_err(WalError::io(format!("read the header of {name}")))?;
        io.close(file);
        match SegmentHeader::decode(&block[..n]) {
            SegmentHeaderRead::Valid(header) => return Ok(Some(header.log_id)),
            SegmentHeaderRead::Version(found) => return Err(WalError::Version { file: name, expected: LOG_VERSION, found }),
            SegmentHeaderRead::Garbage => {}
        }
    }
    Ok(None)
}

fn read_segment<I: Io>(io: &mut I, number: u64) -> Result<Segment, WalError> {
    let name = segment_name(number);
    let file = io.open(&name, false).map_err(WalError::io(format!("open segment {name}")))?;
    let len = io.len(file).map_err(WalError::io(format!("stat segment {name}")))?;
    let mut data = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
    let n = io.read_at(file, 0, &mut data).map_err(WalError::io(format!("read segment {name}")))?;
    data.truncate(n);
    io.close(file);
    Ok(Segment { number, data })
}

/// Looks a segment up in the table, and refuses what must be refused.
fn classify(segment: &Segment, log_id: Option<u64>, newest: bool) -> Result<SegmentCase, WalError> {
    let name = segment_name(segment.number);
    let read = SegmentHeader::decode(&segment.data);
    let fact = match read {
        SegmentHeaderRead::Valid(h) if Some(h.log_id) != log_id => HeaderFact::OtherLog,
        SegmentHeaderRead::Valid(h) if h.segment != segment.number => HeaderFact::Stale,
        // A file that lost its end is no longer what the header says.
        SegmentHeaderRead::Valid(h) if h.segment_bytes != segment.data.len() as u64 => HeaderFact::Garbage,
        SegmentHeaderRead::Valid(_) => HeaderFact::Valid,
        SegmentHeaderRead::Version(_) => HeaderFact::OtherVersion,
        SegmentHeaderRead::Garbage => HeaderFact::Garbage,
    };
    let batches = segment.data.chunks(BLOCK_BYTES).any(|block| match log_id {
        Some(log_id) => BatchHeader::decode(block, log_id).is_some_and(|h| h.segment == segment.number),
        None => block.starts_with(&BATCH_MAGIC),
    });
    match (segment_case(fact, batches, newest), read) {
        (SegmentCase::Version, SegmentHeaderRead::Version(found)) => Err(WalError::Version { file: name, expected: LOG_VERSION, found }),
        (SegmentCase::Foreign, _) => Err(damaged(&name, 16, "the log id of its neighbours", "a segment of another log")),
        (SegmentCase::Damaged | SegmentCase::Version, read) => {
            let expected = format!("the header of segment {} with {} bytes", segment.number, segment.data.len());
            Err(damaged(&name, 0, &expected, &format!("{read:?}")))
        }
        (case, _) => Ok(case),
    }
}

fn damaged(file: &str, offset: usize, expected: &str, found: &str) -> WalError {
    WalError::Damaged { file: file.into(), offset: offset as u64, expected: expected.into(), found: found.into() }
}

fn missing(segment: u64) -> WalError {
    damaged(&segment_name(segment), 0, "a segment file", "none")
}
