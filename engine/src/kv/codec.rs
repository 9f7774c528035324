//! Tables and records of the store: FORMAT.md, "Store tables". All integers are little-endian, except in
//! table keys, where big-endian makes byte order the numeric order.

use super::error::StoreError;
use super::types::Keyspace;
use crate::types::{Index, Revision, Term};
use redb::TableDefinition;

/// Every table maps bytes to bytes, so that one loop dumps and one loop restores them all.
pub(super) type Def = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// The version of the tables. In version 3 all blocks stood in the tables, as some still may.
pub(super) const FORMAT_VERSION: u32 = 4;
const FORMAT_VERSION_MIN: u32 = 3;
/// The version of the snapshot stream.
pub(super) const STREAM_VERSION: u32 = 3;
/// Values up to this length stand in `current` too, so that a range is one scan.
pub(super) const INLINE_BYTES_MAX: usize = 128;

pub(super) const META: Def = TableDefinition::new("meta");
pub(super) const LEASES: Def = TableDefinition::new("leases");
pub(super) const ATTACHED: Def = TableDefinition::new("attached");
pub(super) const MEMBERS: Def = TableDefinition::new("members");
pub(super) const ALARMS: Def = TableDefinition::new("alarms");
pub(super) const AUTH: Def = TableDefinition::new("auth");
const USER: [Def; 3] = [TableDefinition::new("user.current"), TableDefinition::new("user.log"), TableDefinition::new("user.index")];
const SYSTEM: [Def; 3] = [TableDefinition::new("system.current"), TableDefinition::new("system.log"), TableDefinition::new("system.index")];

/// `meta` key of the [`State`] record.
pub(super) const META_STATE: &[u8] = b"state";
/// `meta` key of the [`super::history::Account`]; absent in files of version 3.
pub(super) const META_HISTORY: &[u8] = b"history";
/// `meta` key of the membership bytes.
pub(super) const META_MEMBERSHIP: &[u8] = b"membership";

/// The tables `current`, `log`, `index` of a key space.
pub(super) const fn tables_of(keyspace: Keyspace) -> [Def; 3] {
    match keyspace {
        Keyspace::User => USER,
        Keyspace::System => SYSTEM,
    }
}

/// The tables that have no revisions; the order is that of [`super::overlay::Overlay::plain`].
pub(super) const PLAIN_TABLES: [Def; 5] = [LEASES, ATTACHED, MEMBERS, ALARMS, AUTH];

/// The tables that a snapshot carries, with their numbers in the stream, ascending. `meta` travels in the
/// stream's header.
pub(super) const SNAPSHOT_TABLES: [(u8, Def, &str); 11] = [
    (1, LEASES, "leases"),
    (2, ATTACHED, "attached"),
    (3, MEMBERS, "members"),
    (4, ALARMS, "alarms"),
    (17, USER[0], "user.current"),
    (18, USER[1], "user.log"),
    (19, USER[2], "user.index"),
    (33, SYSTEM[0], "system.current"),
    (34, SYSTEM[1], "system.log"),
    (35, SYSTEM[2], "system.index"),
    (48, AUTH, "auth"),
];

/// The place of the user's living keys in [`SNAPSHOT_TABLES`].
pub(super) const USER_CURRENT_PLACE: usize = 4;
/// The places there of history and index, whose blocks may lie outside.
pub(super) const BLOCK_PLACES: [usize; 4] = [5, 6, 8, 9];

/// A main revision and the place of a change within it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rev {
    pub main: u64,
    pub sub: u32,
}

impl Rev {
    pub(super) const NONE: Self = Self { main: 0, sub: 0 };

    /// The key in `log`.
    pub(super) fn key(self) -> [u8; 12] {
        let mut key = [0; 12];
        key[..8].copy_from_slice(&self.main.to_be_bytes());
        key[8..].copy_from_slice(&self.sub.to_be_bytes());
        key
    }

    pub(super) fn from_key(key: &[u8]) -> Result<Self, StoreError> {
        let parse = || {
            let (main, sub) = key.split_first_chunk::<8>()?;
            Some(Self { main: u64::from_be_bytes(*main), sub: u32::from_be_bytes(sub.try_into().ok()?) })
        };
        parse().ok_or_else(|| damaged("log", "key", key))
    }
}

pub(super) fn damaged(table: &'static str, part: &str, bytes: &[u8]) -> StoreError {
    let shown = &bytes[..bytes.len().min(64)];
    StoreError::Damaged { table, what: format!("{part} of {} bytes does not decode: {shown:02x?}", bytes.len()) }
}

/// Takes fixed-size integers off the front.
pub(super) struct Fields<'a>(pub &'a [u8]);

impl Fields<'_> {
    pub(super) fn u8(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }
    pub(super) fn u32(&mut self) -> Option<u32> {
        let (head, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*head))
    }
    pub(super) fn u64(&mut self) -> Option<u64> {
        let (head, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*head))
    }
    pub(super) fn i64(&mut self) -> Option<i64> {
        Some(self.u64()?.cast_signed())
    }
}

/// What `current` says about a living key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Current<'a> {
    pub rev: Rev,
    pub create: u64,
    pub version: u64,
    pub lease: i64,
    /// The value, unless it stands only in `log`.
    pub inline: Option<&'a [u8]>,
}

impl<'a> Current<'a> {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&self.rev.main.to_le_bytes());
        out.extend_from_slice(&self.rev.sub.to_le_bytes());
        out.extend_from_slice(&self.create.to_le_bytes());
        out.extend_from_slice(&self.version.to_le_bytes());
        out.extend_from_slice(&self.lease.to_le_bytes());
        out.push(u8::from(self.inline.is_some()));
        out.extend_from_slice(self.inline.unwrap_or_default());
    }

    pub(super) fn decode(bytes: &'a [u8]) -> Result<Self, StoreError> {
        let parse = || {
            let mut f = Fields(bytes);
            let rev = Rev { main: f.u64()?, sub: f.u32()? };
            let (create, version, lease, flags) = (f.u64()?, f.u64()?, f.i64()?, f.u8()?);
            let inline = match flags {
                0 if f.0.is_empty() => None,
                1 => Some(f.0),
                _ => return None,
            };
            Some(Self { rev, create, version, lease, inline })
        };
        parse().ok_or_else(|| damaged("current", "record", bytes))
    }
}

/// One change in `log`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Logged<'a> {
    pub delete: bool,
    pub create: u64,
    pub version: u64,
    pub lease: i64,
    /// The change that this one supersedes; [`Rev::NONE`] at a creation. Garbage collection follows it.
    pub prev: Rev,
    pub key: &'a [u8],
    pub value: &'a [u8],
}

impl<'a> Logged<'a> {
    /// Bytes that it takes, encoded.
    pub(super) fn len(&self) -> usize {
        1 + 3 * 8 + 12 + 4 + self.key.len() + self.value.len()
    }

    /// Adds it to what `out` holds.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(self.delete));
        out.extend_from_slice(&self.create.to_le_bytes());
        out.extend_from_slice(&self.version.to_le_bytes());
        out.extend_from_slice(&self.lease.to_le_bytes());
        out.extend_from_slice(&self.prev.main.to_le_bytes());
        out.extend_from_slice(&self.prev.sub.to_le_bytes());
        out.extend_from_slice(&u32::try_from(self.key.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(self.key);
        out.extend_from_slice(self.value);
    }

    pub(super) fn decode(bytes: &'a [u8]) -> Result<Self, StoreError> {
        let parse = || {
            let mut f = Fields(bytes);
            let delete = match f.u8()? {
                0 => false,
                1 => true,
                _ => return None,
            };
            let (create, version, lease) = (f.u64()?, f.u64()?, f.i64()?);
            let prev = Rev { main: f.u64()?, sub: f.u32()? };
            let key_len = usize::try_from(f.u32()?).ok()?;
            let (key, value) = f.0.split_at_checked(key_len)?;
            Some(Self { delete, create, version, lease, prev, key, value })
        };
        parse().ok_or_else(|| damaged("log", "record", bytes))
    }
}

/// Appends `key` so that byte order stays key order with something following: a zero byte becomes `00 ff`,
/// the end is `00 00`.
fn escape(key: &[u8], out: &mut Vec<u8>) {
    if key.contains(&0) {
        for byte in key {
            out.extend_from_slice(if *byte == 0 { &[0, 0xff] } else { std::slice::from_ref(byte) });
        }
    } else {
        out.extend_from_slice(key);
    }
    out.extend_from_slice(&[0, 0]);
}

/// The key in `index`: a user key and a main revision.
pub(super) fn index_key(key: &[u8], main: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 12);
    write_index_key(key, main, &mut out);
    out
}

/// The same, in place of what `out` holds.
pub(super) fn write_index_key(key: &[u8], main: u64, out: &mut Vec<u8>) {
    out.clear();
    escape(key, out);
    out.extend_from_slice(&main.to_be_bytes());
}

/// Takes an `index` key apart.
pub(super) fn split_index_key(bytes: &[u8]) -> Result<(Vec<u8>, u64), StoreError> {
    let parse = || {
        let (escaped, main) = bytes.split_last_chunk::<8>()?;
        let escaped = escaped.strip_suffix(&[0, 0])?;
        let mut key = Vec::with_capacity(escaped.len());
        let mut rest = escaped.iter();
        while let Some(&byte) = rest.next() {
            if byte == 0 && rest.next() != Some(&0xff) {
                return None;
            }
            key.push(byte);
        }
        Some((key, u64::from_be_bytes(*main)))
    };
    parse().ok_or_else(|| damaged("index", "key", bytes))
}

/// The value in `index`: the sub-revision, and whether the change was a deletion.
pub(super) fn index_value(sub: u32, tombstone: bool) -> [u8; 5] {
    let mut out = [0; 5];
    out[..4].copy_from_slice(&sub.to_le_bytes());
    out[4] = u8::from(tombstone);
    out
}

pub(super) fn split_index_value(bytes: &[u8]) -> Result<(u32, bool), StoreError> {
    let mut f = Fields(bytes);
    match (f.u32(), f.u8(), f.0.is_empty()) {
        (Some(sub), Some(flag @ 0..=1), true) => Ok((sub, flag == 1)),
        _ => Err(damaged("index", "value", bytes)),
    }
}

/// The key in `attached`: a lease and a user key.
pub(super) fn attached_key(lease: i64, key: &[u8]) -> Vec<u8> {
    let mut out = lease.to_be_bytes().to_vec();
    out.extend_from_slice(key);
    out
}

/// A key space's revisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KeyspaceState {
    pub revision: u64,
    /// Reads below it are refused.
    pub compact: u64,
    /// Invariant: `collected <= compact`, and no garbage of revisions below `collected` is left.
    pub collected: u64,
}

/// The store's numbers, in one record that every batch rewrites.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub applied: Index,
    pub term: Term,
    /// Bytes of keys and values in all tables but `meta`, with a flat overhead for each record.
    pub used_bytes: u64,
    pub keyspaces: [KeyspaceState; 2],
}

impl State {
    pub(super) const LEN: usize = 4 + 8 * 9;

    pub(super) const EMPTY: Self =
        Self { applied: Index(0), term: Term(0), used_bytes: 0, keyspaces: [KeyspaceState { revision: 1, compact: 0, collected: 0 }; 2] };

    pub(super) fn revision(&self, keyspace: Keyspace) -> Revision {
        Revision(self.keyspaces[keyspace as usize].revision)
    }

    /// `version`: that of the tables, or of the stream.
    pub(super) fn encode(&self, version: u32) -> Vec<u8> {
        let mut out = version.to_le_bytes().to_vec();
        for number in [self.applied.0, self.term.0, self.used_bytes] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for k in &self.keyspaces {
            for number in [k.revision, k.compact, k.collected] {
                out.extend_from_slice(&number.to_le_bytes());
            }
        }
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let mut f = Fields(bytes);
        match f.u32() {
            Some(FORMAT_VERSION_MIN..=FORMAT_VERSION) => {}
            Some(other) => {
                let what = format!("format version {other}, this program knows {FORMAT_VERSION}");
                return Err(StoreError::Damaged { table: "meta", what });
            }
            None => return Err(damaged("meta", "state", bytes)),
        }
        let mut parse = || {
            let (applied, term, used_bytes) = (Index(f.u64()?), Term(f.u64()?), f.u64()?);
            let mut keyspace = || {
                let (revision, compact, collected) = (f.u64()?, f.u64()?, f.u64()?);
                (revision >= 1 && collected <= compact && compact <= revision).then_some(KeyspaceState { revision, compact, collected })
            };
            let keyspaces = [keyspace()?, keyspace()?];
            f.0.is_empty().then_some(Self { applied, term, used_bytes, keyspaces })
        };
        parse().ok_or_else(|| damaged("meta", "state", bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_keys_keep_the_order_of_keys_then_revisions() {
        let keys: [&[u8]; 7] = [b"", b"\0", b"\0\0", b"\0\x01", b"a", b"a\0", b"ab"];
        let mut last = Vec::new();
        for key in keys {
            for main in [0, 1, 255, 256, u64::MAX] {
                let encoded = index_key(key, main);
                assert!(last < encoded, "{key:?} {main}");
                assert_eq!(split_index_key(&encoded).unwrap(), (key.to_vec(), main));
                last = encoded;
            }
        }
        assert!(split_index_key(b"short").is_err());
        assert!(split_index_key(&[b'a', 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).is_err());
    }

    #[test]
    fn records_round_trip_and_refuse_what_is_cut() {
        let mut out = Vec::new();
        let current = Current { rev: Rev { main: 5, sub: 2 }, create: 3, version: 2, lease: -7, inline: Some(b"v") };
        current.encode(&mut out);
        assert_eq!(Current::decode(&out).unwrap(), current);
        assert!(Current::decode(&out[..36]).is_err());
        let prev = Rev { main: 4, sub: 0 };
        let logged = Logged { delete: true, create: 1, version: 2, lease: 3, prev, key: b"key", value: b"" };
        out.clear();
        logged.encode(&mut out);
        assert_eq!(out.len(), logged.len());
        assert_eq!(Logged::decode(&out).unwrap(), logged);
        assert!(Logged::decode(&out[..43]).is_err());
        for version in [STREAM_VERSION, FORMAT_VERSION] {
            let state = State::EMPTY.encode(version);
            assert_eq!(State::decode(&state).unwrap(), State::EMPTY);
            assert_eq!(state.len(), State::LEN);
            assert!(State::decode(&state[1..]).is_err());
        }
        for version in [FORMAT_VERSION_MIN - 1, FORMAT_VERSION + 1] {
            assert!(State::decode(&State::EMPTY.encode(version)).is_err());
        }
    }

    #[test]
    fn format_md_tells_the_truth() {
        let page = include_str!("../../../FORMAT.md");
        let chapter = page.split("## The coordination store's file").nth(1).unwrap();
        for (number, table, name) in SNAPSHOT_TABLES {
            assert_eq!(redb::TableHandle::name(&table), name);
            let row = name.replace("user.", "KS.").replace("system.", "KS.");
            let row = chapter.lines().find(|line| line.starts_with(&format!("| `{row}` |"))).unwrap();
            let numbers = row.split('|').nth(2).unwrap();
            assert!(numbers.split(',').any(|n| n.trim() == number.to_string()), "{row}");
        }
        assert!(chapter.contains(&format!("version u32 = {FORMAT_VERSION}, applied index")));
        assert!(chapter.contains(&format!("as above ({} bytes)", State::LEN)));
        assert!(chapter.contains(&format!("values up to {INLINE_BYTES_MAX} bytes")));
        assert!(chapter.contains(&format!("beyond {} bytes", crate::kv::block::BLOCK_BYTES_MAX)));
        assert!(chapter.contains(&format!("beyond {} bytes", crate::kv::current::BLOCK_BYTES_MAX)));
        assert!(chapter.contains("beyond 8192 bytes, or a later multiple of 4096") && chapter.contains("those below 4096 bytes"));
        assert!(chapter.contains(&format!("magic `brkrsnap`, version u32 = {STREAM_VERSION}")));
    }
}
