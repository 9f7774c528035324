//! FORMAT.md says what the code does: its example is made anew here, byte for byte.

use super::super::SnapshotMark;
use super::super::format::*;
use super::super::types::WalConfig;
use crate::io::{AlignedBuf, BLOCK_BYTES};
use crate::types::{Entry, EntryKind, GroupId, HardState, Index, NodeId, Term};

const PAGE: &str = include_str!("../../../../FORMAT.md");

fn hex(bytes: &[u8]) -> String {
    bytes.chunks(16).map(|line| line.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ") + "\n").collect()
}

fn example() -> String {
    let segment = SegmentHeader { log_id: 0x1122_3344_5566_7788, segment: 2, segment_bytes: 64 << 20 };
    let mut payload = AlignedBuf::default();
    put_hard_state(&mut payload, GroupId(1), HardState { term: Term(5), vote: Some(NodeId(9)), commit: Index(41) });
    put_snapshot(&mut payload, GroupId(1), SnapshotMark { index: Index(40), term: Term(4) }, false);
    put_entry(&mut payload, GroupId(1), &Entry { term: Term(5), index: Index(42), kind: EntryKind::Normal, data: (&b"value"[..]).into() });
    let batch = BatchHeader {
        payload_bytes: payload.len() as u32,
        segment: 2,
        number: 7,
        previous: 0xaabb,
        floor: 1,
        durable: 5,
        payload_crc: crc32fast::hash(payload.as_slice()),
    };
    let header = batch.encode(segment.log_id);
    format!(
        "segment header\n{}batch header, chain hash {:016x}\n{}records\n{}",
        hex(&segment.encode()[..48]),
        chain_hash(&header),
        hex(&header),
        hex(payload.as_slice())
    )
}

#[test]
fn the_example_is_what_the_code_writes() {
    let example = example();
    assert!(PAGE.contains(&example), "FORMAT.md's example should read:\n{example}");
}

#[test]
fn the_constants_stand_in_the_page() {
    for line in [
        format!("| log format version | {LOG_VERSION} |"),
        format!("| block | {BLOCK_BYTES} |"),
        format!("| segment header | {SEGMENT_HEADER_BYTES} |"),
        format!("| batch header | {BATCH_HEADER_BYTES} |"),
        format!("| record header | {RECORD_HEADER_BYTES} |"),
        format!("| segment, default | {} |", WalConfig::default().segment_bytes),
        format!("| record type: entry | {RECORD_ENTRY} |"),
        format!("| record type: hard state | {RECORD_HARD_STATE} |"),
        format!("| record type: snapshot mark | {RECORD_SNAPSHOT} |"),
        format!("| entry kind: noop, normal, conf | {}, {}, {} |", EntryKind::Noop as u8, EntryKind::Normal as u8, EntryKind::Conf as u8),
    ] {
        assert!(PAGE.contains(&line), "FORMAT.md lacks: {line}");
    }
}

#[test]
fn what_is_written_is_read_back() {
    let mut payload = AlignedBuf::default();
    let hs = HardState { term: Term(5), vote: None, commit: Index(41) };
    put_hard_state(&mut payload, GroupId(1), hs);
    put_snapshot(&mut payload, GroupId(2), SnapshotMark { index: Index(40), term: Term(4) }, true);
    let records = decode_records(payload.as_slice()).unwrap();
    assert_eq!(records[0], (GroupId(1), Record::HardState(hs)));
    assert_eq!(records[1], (GroupId(2), Record::Snapshot { mark: SnapshotMark { index: Index(40), term: Term(4) }, reset: true }));
    for cut in 1..payload.len() {
        let cut = decode_records(&payload.as_slice()[..cut]);
        assert!(cut.is_err() || cut.is_ok_and(|r| r.len() == 1));
    }
    assert_eq!(parse_segment_name(&segment_name(0xab)), Some(0xab));
    for bad in ["00000000000000AB.log", "+0000000000000ab.log", "ab.log", "00000000000000ab.tmp"] {
        assert_eq!(parse_segment_name(bad), None, "{bad}");
    }
}
