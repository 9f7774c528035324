//! The bytes of the log. FORMAT.md, "The log", is the specification; a test compares the two.

use super::types::SnapshotMark;
use crate::io::BLOCK_BYTES;
use crate::types::{Entry, EntryKind, GroupId, HardState, Index, NodeId, Term};
use bytes::Bytes;

/// First bytes of a segment file.
pub const SEGMENT_MAGIC: [u8; 8] = *b"BRKRLOG\0";
/// The version that this program writes and reads.
pub const LOG_VERSION: u32 = 1;
/// The segment header takes a whole block, so that batches start aligned.
pub const SEGMENT_HEADER_BYTES: usize = BLOCK_BYTES;
/// First bytes of a batch.
pub const BATCH_MAGIC: [u8; 4] = *b"BRBT";
/// Size of a batch header; it lies in one sector.
pub const BATCH_HEADER_BYTES: usize = 64;
/// Size of a record header.
pub const RECORD_HEADER_BYTES: usize = 32;
/// Size of a hard state's record.
pub const HARD_STATE_BYTES: usize = RECORD_HEADER_BYTES + 8;
/// Size of a snapshot mark's record.
pub const SNAPSHOT_BYTES: usize = RECORD_HEADER_BYTES;
/// Record type: an entry of a group's log.
pub const RECORD_ENTRY: u8 = 1;
/// Record type: a group's hard state.
pub const RECORD_HARD_STATE: u8 = 2;
/// Record type: a group's snapshot mark.
pub const RECORD_SNAPSHOT: u8 = 3;

/// Header of a segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The log's identity, drawn at its creation; salts every checksum.
    pub log_id: u64,
    /// The segment's number, also its name.
    pub segment: u64,
    /// The file's size.
    pub segment_bytes: u64,
}

/// What the first block of a segment file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentHeaderRead {
    /// A header of ours.
    Valid(SegmentHeader),
    /// The magic with another version.
    Version(u32),
    /// Neither.
    Garbage,
}

impl SegmentHeader {
    /// The header's block.
    #[must_use]
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut b = [0; SEGMENT_HEADER_BYTES];
        b[..8].copy_from_slice(&SEGMENT_MAGIC);
        b[8..12].copy_from_slice(&LOG_VERSION.to_le_bytes());
        b[16..24].copy_from_slice(&self.log_id.to_le_bytes());
        b[24..32].copy_from_slice(&self.segment.to_le_bytes());
        b[32..40].copy_from_slice(&self.segment_bytes.to_le_bytes());
        let crc = crc32fast::hash(&b[..40]);
        b[40..44].copy_from_slice(&crc.to_le_bytes());
        b
    }

    /// Reads the first block of a file.
    #[must_use]
    pub fn decode(b: &[u8]) -> SegmentHeaderRead {
        if b.len() < 44 || b[..8] != SEGMENT_MAGIC {
            return SegmentHeaderRead::Garbage;
        }
        if u32_at(b, 8) != LOG_VERSION {
            return SegmentHeaderRead::Version(u32_at(b, 8));
        }
        if crc32fast::hash(&b[..40]) != u32_at(b, 40) {
            return SegmentHeaderRead::Garbage;
        }
        SegmentHeaderRead::Valid(Self { log_id: u64_at(b, 16), segment: u64_at(b, 24), segment_bytes: u64_at(b, 32) })
    }
}

/// Header of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// Bytes of records after the header, without padding.
    pub payload_bytes: u32,
    /// The segment it was written for: a recycled file's old batches carry another.
    pub segment: u64,
    /// Counts batches over the whole log, from 1, without gaps.
    pub number: u64,
    /// [`chain_hash`] of the batch before; 0 before the first.
    pub previous: u64,
    /// The lowest segment that recovery needs.
    pub floor: u64,
    /// All batches up to this number were durable when this one was written.
    pub durable: u64,
    /// CRC32 of the payload.
    pub payload_crc: u32,
}

impl BatchHeader {
    /// The header's bytes; the last four are the checksum of the others and the log id.
    #[must_use]
    pub fn encode(&self, log_id: u64) -> [u8; BATCH_HEADER_BYTES] {
        let mut b = [0; BATCH_HEADER_BYTES];
        b[..4].copy_from_slice(&BATCH_MAGIC);
        b[4..8].copy_from_slice(&self.payload_bytes.to_le_bytes());
        b[8..16].copy_from_slice(&self.segment.to_le_bytes());
        b[16..24].copy_from_slice(&self.number.to_le_bytes());
        b[24..32].copy_from_slice(&self.previous.to_le_bytes());
        b[32..40].copy_from_slice(&self.floor.to_le_bytes());
        b[40..48].copy_from_slice(&self.durable.to_le_bytes());
        b[48..52].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = header_crc(&b, log_id);
        b[60..].copy_from_slice(&crc.to_le_bytes());
        b
    }

    /// The header at the start of `b`, if there is an intact one.
    #[must_use]
    pub fn decode(b: &[u8], log_id: u64) -> Option<Self> {
        let b = b.get(..BATCH_HEADER_BYTES)?;
        if b[..4] != BATCH_MAGIC || header_crc(b, log_id) != u32_at(b, 60) {
            return None;
        }
        Some(Self {
            payload_bytes: u32_at(b, 4),
            segment: u64_at(b, 8),
            number: u64_at(b, 16),
            previous: u64_at(b, 24),
            floor: u64_at(b, 32),
            durable: u64_at(b, 40),
            payload_crc: u32_at(b, 48),
        })
    }

    /// Bytes that the batch takes in the file, padding included.
    #[must_use]
    pub const fn total_bytes(&self) -> usize {
        (BATCH_HEADER_BYTES + self.payload_bytes as usize).next_multiple_of(BLOCK_BYTES)
    }
}

fn header_crc(b: &[u8], log_id: u64) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&log_id.to_le_bytes());
    crc.update(&b[..60]);
    crc.finalize()
}

/// What the next batch carries as `previous`: a hash of this one's header, which holds the payload's checksum.
#[must_use]
pub fn chain_hash(header: &[u8; BATCH_HEADER_BYTES]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(header)
}

/// One record of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Appends, replacing whatever has the same or a higher index.
    Entry(Entry),
    /// Replaces the hard state.
    HardState(HardState),
    /// Moves the compaction point; entries after it stay unless `reset`. The writer decides that, since
    /// replay may not see the entries of segments that went.
    Snapshot {
        /// The compaction point.
        mark: SnapshotMark,
        /// All entries go.
        reset: bool,
    },
}

/// Bytes of an entry's record.
#[must_use]
pub const fn entry_bytes(data: &Bytes) -> usize {
    RECORD_HEADER_BYTES + data.len()
}

/// Appends an entry's record.
pub fn put_entry(out: &mut crate::io::AlignedBuf, group: GroupId, entry: &Entry) {
    out.extend(&record_header(RECORD_ENTRY, entry.kind as u8, entry.data.len() as u32, [group.0, entry.term.0, entry.index.0]));
    out.extend(&entry.data);
}

/// Appends a hard state's record.
pub fn put_hard_state(out: &mut crate::io::AlignedBuf, group: GroupId, state: HardState) {
    out.extend(&record_header(RECORD_HARD_STATE, 0, 8, [group.0, state.term.0, state.commit.0]));
    out.extend(&state.vote.map_or(0, |id| id.0).to_le_bytes());
}

/// Appends a snapshot mark's record.
pub fn put_snapshot(out: &mut crate::io::AlignedBuf, group: GroupId, mark: SnapshotMark, reset: bool) {
    out.extend(&record_header(RECORD_SNAPSHOT, u8::from(reset), 0, [group.0, mark.term.0, mark.index.0]));
}

fn record_header(kind: u8, entry_kind: u8, len: u32, numbers: [u64; 3]) -> [u8; RECORD_HEADER_BYTES] {
    let mut b = [0; RECORD_HEADER_BYTES];
    b[0] = kind;
    b[1] = entry_kind;
    b[4..8].copy_from_slice(&len.to_le_bytes());
    for (i, n) in numbers.iter().enumerate() {
        b[8 + 8 * i..16 + 8 * i].copy_from_slice(&n.to_le_bytes());
    }
    b
}

/// Reads the records of a payload whose checksum holds.
///
/// # Errors
/// What is wrong and at which byte of the payload: the writer was not this program, or had a bug.
pub fn decode_records(payload: &[u8]) -> Result<Vec<(GroupId, Record)>, (usize, &'static str)> {
    let mut records = Vec::new();
    let mut at = 0;
    while at < payload.len() {
        let header = payload.get(at..at + RECORD_HEADER_BYTES).ok_or((at, "a cut record header"))?;
        let from = at + RECORD_HEADER_BYTES;
        let data = payload.get(from..from + u32_at(header, 4) as usize).ok_or((at, "a record longer than its batch"))?;
        let (group, term, index) = (GroupId(u64_at(header, 8)), Term(u64_at(header, 16)), Index(u64_at(header, 24)));
        let record = match header[0] {
            RECORD_ENTRY => {
                let kind = match header[1] {
                    0 => EntryKind::Noop,
                    1 => EntryKind::Normal,
                    2 => EntryKind::Conf,
                    _ => return Err((at, "an unknown entry kind")),
                };
                Record::Entry(Entry { term, index, kind, data: Bytes::copy_from_slice(data) })
            }
            RECORD_HARD_STATE if data.len() == 8 => {
                let vote = Some(NodeId(u64_at(data, 0))).filter(|id| id.0 != 0);
                Record::HardState(HardState { term, vote, commit: index })
            }
            RECORD_SNAPSHOT if data.is_empty() && header[1] <= 1 => Record::Snapshot { mark: SnapshotMark { index, term }, reset: header[1] == 1 },
            _ => return Err((at, "an unknown record type")),
        };
        records.push((group, record));
        at = from + data.len();
    }
    Ok(records)
}

/// The name of a segment's file.
#[must_use]
pub fn segment_name(segment: u64) -> String {
    format!("{segment:016x}.log")
}

/// The segment that a file name stands for.
#[must_use]
pub fn parse_segment_name(name: &str) -> Option<u64> {
    let hex = name.strip_suffix(".log").filter(|hex| hex.len() == 16)?;
    u64::from_str_radix(hex, 16).ok().filter(|n| segment_name(*n) == name)
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from(u32_at(b, at)) | u64::from(u32_at(b, at + 4)) << 32
}
