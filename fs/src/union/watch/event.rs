//! What fanotify's descriptor is read as. The kernel is believed, but nothing that it could say makes this panic.
//!
//! An event is a header (length, version, length of the header, mask, descriptor, process), and then records, each with a type and a length. Asked
//! for with `FAN_REPORT_DFID_NAME`, the record that counts names the directory by file system and handle, and the entry in it.

/// The queue was full, and events were lost (`FAN_Q_OVERFLOW`).
const OVERFLOW: u64 = 0x4000;
const VERSION: u8 = 3;
const HEADER_BYTES: usize = 24;
/// A record's type, padding and length.
const RECORD_BYTES: usize = 4;
/// `FAN_EVENT_INFO_TYPE_DFID_NAME`, and the same without a name: of the directory itself.
const DIR_AND_NAME: u8 = 2;
const DIR: u8 = 3;
/// File system, length and type of the handle.
const KEY_BYTES: usize = 16;

/// One event.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Event<'a> {
    pub(super) mask: u64,
    pub(super) pid: i32,
    /// The directory: its file system's id and its handle, as [`super::Watched`] has them. `None` after an overflow.
    pub(super) dir: Option<&'a [u8]>,
    /// The entry, `.` for the directory itself.
    pub(super) name: &'a [u8],
}

impl Event<'_> {
    /// Events were lost, or this one is none that we understand.
    pub(super) fn is_loss(&self) -> bool {
        self.mask & OVERFLOW != 0 || self.dir.is_none()
    }
}

/// The events of one read. What is cut off or malformed comes as one that [`Event::is_loss`], and ends it.
pub(super) fn events(mut bytes: &[u8]) -> impl Iterator<Item = Event<'_>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let Some((event, rest)) = event(bytes) else {
            bytes = &[];
            return Some(Event { mask: OVERFLOW, pid: 0, dir: None, name: b"" });
        };
        bytes = rest;
        Some(event)
    })
}

fn event(bytes: &[u8]) -> Option<(Event<'_>, &[u8])> {
    let len = u32_at(bytes, 0)? as usize;
    let header = usize::from(u16_at(bytes, 6)?);
    if bytes.get(4)? != &VERSION || header < HEADER_BYTES || len < header || len > bytes.len() {
        return None;
    }
    let (this, rest) = bytes.split_at(len);
    let (mask, pid) = (u64_at(this, 8)?, u32_at(this, 20)?.cast_signed());
    let (dir, name) = place(&this[header..]).map_or((None, &b""[..]), |(dir, name)| (Some(dir), name));
    Some((Event { mask, pid, dir, name }, rest))
}

/// The directory and the name, from the records.
fn place(mut records: &[u8]) -> Option<(&[u8], &[u8])> {
    while !records.is_empty() {
        let len = usize::from(u16_at(records, 2)?);
        if len < RECORD_BYTES || len > records.len() {
            return None;
        }
        let (record, rest) = records.split_at(len);
        let body = &record[RECORD_BYTES..];
        if matches!(record[0], DIR_AND_NAME | DIR) {
            let handle = u32_at(body, 8)? as usize;
            let end = KEY_BYTES.checked_add(handle).filter(|end| *end <= body.len())?;
            let (key, name) = body.split_at(end);
            let name = name.split(|b| *b == 0).next().unwrap_or_default();
            return Some((key, if record[0] == DIR || name.is_empty() { b"." } else { name }));
        }
        records = rest;
    }
    None
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[allow(clippy::host_endian_bytes, reason = "the kernel's own memory")]
fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_ne_bytes)
}

#[allow(clippy::host_endian_bytes, reason = "the kernel's own memory")]
fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_ne_bytes)
}

#[allow(clippy::host_endian_bytes, reason = "the kernel's own memory")]
fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_ne_bytes)
}

#[cfg(test)]
#[allow(clippy::host_endian_bytes, reason = "as the kernel writes it")]
mod tests {
    use super::*;

    const KEY: [u8; KEY_BYTES + 8] = [1, 2, 3, 4, 5, 6, 7, 8, 8, 0, 0, 0, 1, 0, 0, 0, 9, 9, 9, 9, 9, 9, 9, 9];

    fn record(kind: u8, name: &[u8]) -> Vec<u8> {
        let mut out = vec![kind, 0, 0, 0];
        out.extend([&KEY[..], name].concat());
        out.resize(out.len().next_multiple_of(4), 0);
        let len = u16::try_from(out.len()).expect("short");
        out[2..4].copy_from_slice(&len.to_ne_bytes());
        out
    }

    fn message(mask: u64, pid: i32, records: &[Vec<u8>]) -> Vec<u8> {
        let records = records.concat();
        let len = u32::try_from(HEADER_BYTES + records.len()).expect("short");
        let mut out = len.to_ne_bytes().to_vec();
        out.extend([VERSION, 0]);
        out.extend(24_u16.to_ne_bytes());
        out.extend(mask.to_ne_bytes());
        out.extend((-1_i32).to_ne_bytes());
        out.extend(pid.to_ne_bytes());
        out.extend(records);
        out
    }

    #[test]
    fn names_and_directories_are_found_among_other_records() {
        let other = record(1, b"");
        let bytes = [
            message(0x100, 7, &[other.clone(), record(DIR_AND_NAME, b"new\0")]),
            message(4, 8, &[record(DIR_AND_NAME, b".\0")]),
            message(4, 9, &[record(DIR, b"")]),
        ]
        .concat();
        let found: Vec<_> = events(&bytes).collect();
        let want = |mask, pid, name| Event { mask, pid, dir: Some(&KEY[..]), name };
        assert_eq!(found, [want(0x100, 7, b"new"), want(4, 8, b"."), want(4, 9, b".")]);
        assert!(found.iter().all(|e| !e.is_loss()));
    }

    #[test]
    fn an_overflow_is_a_loss_and_so_is_what_says_nothing() {
        let bytes =
            [message(OVERFLOW, 0, &[]), message(0x100, 7, &[record(1, b"")]), message(0x100, 7, &[record(DIR_AND_NAME, b"x\0")])].concat();
        let losses: Vec<bool> = events(&bytes).map(|e| e.is_loss()).collect();
        assert_eq!(losses, [true, true, false]);
    }

    #[test]
    fn no_bytes_make_it_panic_and_none_pass_unnoticed() {
        let whole = message(0x100, 7, &[record(1, b""), record(DIR_AND_NAME, b"name\0")]);
        for cut in 1..whole.len() {
            assert!(events(&whole[..cut]).any(|e| e.is_loss()), "cut after {cut}");
        }
        for at in 0..whole.len() {
            for value in [0, 1, 3, 25, 127, 255] {
                let mut bad = whole.clone();
                bad[at] = value;
                assert!(events(&bad).count() <= whole.len());
            }
        }
    }
}
