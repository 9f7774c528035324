//! Backup files: FORMAT.md, "Backup file". What `Maintenance/Snapshot` sends and `brickraft snapshot restore` reads.

use super::block;
use super::codec::{SNAPSHOT_TABLES, State, USER_CURRENT_PLACE};
use super::error::StoreError;
use super::snapshot::{SNAPSHOT_CHUNK_BYTES_MAX, SnapshotReader, StreamParser};
use super::store::Store;
use super::types::Keyspace;
use crate::types::{Index, NodeId, Revision, Term};
use bytes::{BufMut, Bytes, BytesMut};
use sha2::{Digest, Sha256};
use std::io::{self, Read, Seek, SeekFrom};
use thiserror::Error;

const MAGIC: &[u8; 8] = b"BRKBKUP\0";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 64;
const BLOCK_HEADER_BYTES: usize = 8;
/// etcd's clients want the length without the hash to be a multiple of this.
const SECTOR_BYTES: u64 = 512;
const HASH_BYTES: u64 = 32;

/// Why a backup file is refused.
#[derive(Debug, Error)]
pub enum BackupError {
    /// The file cannot be read.
    #[error("read the backup: {0}")]
    Io(#[from] io::Error),
    /// It is not what was once written.
    #[error("backup refused at byte {offset}: {what}")]
    Damaged {
        /// Where in the file.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// The blocks are whole, what they hold is not; or the new store fails.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Lengths that follow from the stream's.
fn padded_bytes(stream: u64) -> u64 {
    let blocks = stream.div_ceil(SNAPSHOT_CHUNK_BYTES_MAX as u64);
    (HEADER_BYTES as u64 + stream + blocks * BLOCK_HEADER_BYTES as u64).next_multiple_of(SECTOR_BYTES)
}

/// A backup on its way out, chunk by chunk; of one moment, while writes go on.
pub struct Backup {
    reader: SnapshotReader,
    sha: Sha256,
    left: u64,
    header: Option<Bytes>,
}

impl Backup {
    pub(super) fn new(reader: SnapshotReader, cluster_id: u64, member: NodeId, revision: Revision) -> Result<Self, StoreError> {
        let stream = reader.stream_bytes()?;
        let mut header = BytesMut::with_capacity(HEADER_BYTES);
        header.put_slice(MAGIC);
        header.put_u32_le(VERSION);
        header.put_u32_le(u32::try_from(SNAPSHOT_CHUNK_BYTES_MAX).unwrap_or(u32::MAX));
        for number in [stream, cluster_id, member.0, revision.0] {
            header.put_u64_le(number);
        }
        header.put_bytes(0, HEADER_BYTES - 4 - header.len());
        header.put_u32_le(crc32fast::hash(&header));
        Ok(Self { reader, sha: Sha256::new(), left: padded_bytes(stream) + HASH_BYTES, header: Some(header.freeze()) })
    }

    /// Bytes that are still to come.
    #[must_use]
    pub fn remaining_bytes(&self) -> u64 {
        self.left
    }

    /// The next portion; `None` after the last.
    pub fn next_chunk(&mut self) -> Result<Option<Bytes>, StoreError> {
        if self.left == 0 {
            return Ok(None);
        }
        let chunk = if let Some(header) = self.header.take() {
            header
        } else if let Some(block) = self.reader.next_chunk()? {
            let mut out = BytesMut::with_capacity(BLOCK_HEADER_BYTES + block.len());
            out.put_u32_le(u32::try_from(block.len()).unwrap_or(u32::MAX));
            out.put_u32_le(crc32fast::hash(&block));
            out.put_slice(&block);
            out.freeze()
        } else {
            let mut out = BytesMut::zeroed(usize::try_from(self.left.saturating_sub(HASH_BYTES)).unwrap_or(0));
            self.sha.update(&out);
            out.put_slice(&self.sha.finalize_reset());
            out.freeze()
        };
        if self.left > HASH_BYTES {
            self.sha.update(&chunk);
        }
        self.left = self.left.saturating_sub(chunk.len() as u64);
        Ok(Some(chunk))
    }
}

impl std::fmt::Debug for Backup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backup").field("left", &self.left).finish_non_exhaustive()
    }
}

/// What a backup file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackupSummary {
    /// CRC-32 of the store snapshot stream.
    pub hash: u32,
    /// The revision of the user key space.
    pub revision: Revision,
    /// Living keys of the user key space.
    pub keys: u64,
    /// The file's length.
    pub bytes: u64,
    /// The last entry in it.
    pub applied: (Index, Term),
    /// The cluster that it is of.
    pub cluster_id: u64,
    /// The membership at that point, as the member encodes it.
    pub membership: Option<Bytes>,
}

/// A backup file whose header and hash are checked.
#[derive(Debug)]
pub struct BackupReader<R> {
    file: R,
    stream: u64,
    bytes: u64,
    cluster_id: u64,
}

fn damaged<T>(offset: u64, what: impl Into<String>) -> Result<T, BackupError> {
    Err(BackupError::Damaged { offset, what: what.into() })
}

fn number(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

impl<R: Read + Seek> BackupReader<R> {
    /// Checks the header and, unless `skip_hash`, the hash over the whole file.
    ///
    /// # Errors
    /// A file that is none, is cut short or altered, or cannot be read.
    pub fn open(mut file: R, skip_hash: bool) -> Result<Self, BackupError> {
        let bytes = file.seek(SeekFrom::End(0))?;
        file.rewind()?;
        let mut header = [0; HEADER_BYTES];
        if bytes < HEADER_BYTES as u64 {
            return damaged(bytes, format!("the file ends inside its header of {HEADER_BYTES} bytes"));
        }
        file.read_exact(&mut header)?;
        if &header[..8] != MAGIC {
            return damaged(0, format!("begins with {:02x?}, not with a backup's {MAGIC:02x?}", &header[..8]));
        }
        let told = u32::from_le_bytes([header[60], header[61], header[62], header[63]]);
        let found = crc32fast::hash(&header[..60]);
        if told != found {
            return damaged(0, format!("the header's checksum is {found:08x} instead of {told:08x}"));
        }
        let version = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
        if version != VERSION {
            return damaged(8, format!("format version {version}, this program knows {VERSION}"));
        }
        let stream = number(&header, 16);
        let expected = padded_bytes(stream.min(u64::MAX / 2)).saturating_add(if skip_hash { 0 } else { HASH_BYTES });
        if bytes < expected {
            return damaged(bytes, format!("the file breaks off here; {expected} bytes were written"));
        }
        if !skip_hash && bytes > expected {
            return damaged(expected, format!("{} bytes follow the end", bytes - expected));
        }
        let mut reader = Self { file, stream, bytes, cluster_id: number(&header, 24) };
        if !skip_hash {
            // The blocks first: they say where.
            reader.blocks(&mut |_| Ok(()))?;
            reader.check_hash(expected - HASH_BYTES)?;
        }
        Ok(reader)
    }

    fn check_hash(&mut self, length: u64) -> Result<(), BackupError> {
        self.file.rewind()?;
        let mut sha = Sha256::new();
        let mut left = length;
        let mut buffer = vec![0; 256 * 1024];
        while left > 0 {
            let step = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            self.file.read_exact(&mut buffer[..step])?;
            sha.update(&buffer[..step]);
            left -= step as u64;
        }
        let mut told = [0; HASH_BYTES as usize];
        self.file.read_exact(&mut told)?;
        let found: [u8; HASH_BYTES as usize] = sha.finalize().into();
        if told != found {
            return damaged(length, format!("expected sha256 {}, got {}", hex(&told), hex(&found)));
        }
        Ok(())
    }

    /// Hands the stream out, block by block, each checked.
    fn blocks(&mut self, take: &mut dyn FnMut(&[u8]) -> Result<(), BackupError>) -> Result<(), BackupError> {
        let mut at = HEADER_BYTES as u64;
        let mut left = self.stream;
        self.file.seek(SeekFrom::Start(at))?;
        let mut buffer = Vec::new();
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(SNAPSHOT_CHUNK_BYTES_MAX);
            let mut head = [0; BLOCK_HEADER_BYTES];
            self.file.read_exact(&mut head)?;
            let [a, b, c, d, e, f, g, h] = head;
            let (length, told) = (u32::from_le_bytes([a, b, c, d]) as usize, u32::from_le_bytes([e, f, g, h]));
            if length != wanted {
                return damaged(at, format!("a block of {length} bytes where one of {wanted} belongs"));
            }
            buffer.resize(length, 0);
            self.file.read_exact(&mut buffer)?;
            let found = crc32fast::hash(&buffer);
            if found != told {
                return damaged(at, format!("the block of {length} bytes has checksum {found:08x} instead of {told:08x}"));
            }
            take(&buffer)?;
            at += (BLOCK_HEADER_BYTES + length) as u64;
            left -= length as u64;
        }
        Ok(())
    }

    /// Reads all of it, for `snapshot status`.
    ///
    /// # Errors
    /// As [`Self::open`], and when what the blocks hold is damaged.
    pub fn summary(&mut self) -> Result<BackupSummary, BackupError> {
        let mut parser = StreamParser::default();
        let mut keys = 0;
        let mut crc = crc32fast::Hasher::new();
        self.blocks(&mut |block| {
            crc.update(block);
            parser.push(block, &mut |place, _, value| {
                if place == USER_CURRENT_PLACE {
                    for record in block::records("current", value) {
                        record?;
                        keys += 1;
                    }
                }
                Ok(())
            })?;
            Ok(())
        })?;
        let (state, membership): (State, _) = parser.finish()?;
        Ok(BackupSummary {
            hash: crc.finalize(),
            revision: state.revision(Keyspace::User),
            keys,
            bytes: self.bytes,
            applied: (state.applied, state.term),
            cluster_id: self.cluster_id,
            membership,
        })
    }

    /// Makes it a store's whole content, durably.
    ///
    /// # Errors
    /// As [`Self::summary`]; the store is unchanged then.
    pub fn restore(&mut self, store: &Store) -> Result<(), BackupError> {
        let mut writer = store.begin_restore()?;
        self.blocks(&mut |block| Ok(writer.push(block)?))?;
        writer.finish()?;
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// How a restored store becomes that of a new cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refound {
    /// The new cluster's first membership, as the member encodes it.
    pub membership: Bytes,
    /// The user key space's revision grows by so much, so that caches and watchers of the old cluster notice.
    pub bump_revision: u64,
    /// Everything before the new revision counts as compacted.
    pub mark_compacted: bool,
}

impl Store {
    /// Starts a backup of this moment.
    pub fn backup(&self, cluster_id: u64, member: NodeId) -> Result<Backup, StoreError> {
        let reader = self.snapshot()?;
        let revision = reader.revision(Keyspace::User);
        Backup::new(reader, cluster_id, member, revision)
    }
}

const _: () = assert!(SNAPSHOT_TABLES[USER_CURRENT_PLACE].0 == 17);

#[cfg(test)]
mod tests {
    use super::super::tests::{memory, put, run};
    use super::*;
    use std::io::Cursor;

    fn file(store: &Store) -> Vec<u8> {
        let mut backup = store.backup(7, NodeId(9)).unwrap();
        let mut all = Vec::new();
        let mut left = backup.remaining_bytes();
        while let Some(chunk) = backup.next_chunk().unwrap() {
            all.extend_from_slice(&chunk);
            left -= chunk.len() as u64;
            assert_eq!(backup.remaining_bytes(), left);
        }
        assert_eq!((left, all.len() as u64 % SECTOR_BYTES), (0, HASH_BYTES));
        all
    }

    fn filled() -> Store {
        let store = memory();
        for i in 0..40 {
            run(&store, put(&format!("k{}", i % 30), "value"));
        }
        store
    }

    #[test]
    fn a_backup_restores_to_the_same_store() {
        let store = filled();
        run(&store, put("large", &"y".repeat(3 << 20)));
        let bytes = file(&store);
        let mut reader = BackupReader::open(Cursor::new(&bytes), false).unwrap();
        let summary = reader.summary().unwrap();
        assert_eq!((summary.keys, summary.revision, summary.cluster_id), (31, store.revision(Keyspace::User), 7));
        assert_eq!((summary.bytes, summary.applied), (bytes.len() as u64, store.applied()));
        let other = memory();
        reader.restore(&other).unwrap();
        assert_eq!(other.hash_all().unwrap(), store.hash_all().unwrap());
        // Without the hash, as a file that was cut to its content.
        let cut = &bytes[..bytes.len() - 32];
        assert!(BackupReader::open(Cursor::new(cut), false).is_err());
        assert_eq!(BackupReader::open(Cursor::new(cut), true).unwrap().summary().unwrap().keys, 31);
    }

    #[test]
    fn every_cut_and_every_altered_byte_is_found() {
        let bytes = file(&filled());
        for length in 0..bytes.len() {
            let error = BackupReader::open(Cursor::new(&bytes[..length]), false).unwrap_err().to_string();
            assert!(error.contains(&format!("at byte {length}")), "{length}: {error}");
        }
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            let error = BackupReader::open(Cursor::new(&bad), false).unwrap_err();
            let BackupError::Damaged { offset, .. } = error else { panic!("{error}") };
            assert!(offset <= at as u64 || at as u64 >= bytes.len() as u64 - 544, "{at}: {error}");
        }
        let longer = [&bytes[..], b"x"].concat();
        assert!(BackupReader::open(Cursor::new(&longer), false).unwrap_err().to_string().contains("1 bytes follow the end"));
    }

    #[test]
    fn a_refounded_store_keeps_keys_and_forgets_who_it_was_of() {
        let store = filled();
        let alarm = super::super::Alarm { member: NodeId(9), kind: super::super::AlarmType::NoSpace };
        run(&store, super::super::types::Command::Alarm { activate: true, alarm });
        let attributes = super::super::types::Command::MemberAttributes { id: NodeId(9), name: "n".into(), client_urls: vec![] };
        run(&store, attributes);
        let before = (store.applied(), store.revision(Keyspace::User));
        let refound = Refound { membership: Bytes::from_static(b"m"), bump_revision: 1000, mark_compacted: true };
        let at = store.refound(&refound).unwrap();
        assert_eq!(at, (before.0.0.next(), before.0.1.next()));
        assert_eq!(store.membership(), Some(Bytes::from_static(b"m")));
        assert!(store.member_attributes().unwrap().is_empty() && store.alarms().is_empty());
        let revision = Revision(before.1.0 + 1000);
        assert_eq!((store.revision(Keyspace::User), store.compact_revision(Keyspace::User)), (revision, revision));
        assert_eq!(super::super::tests::read(&store, &super::super::tests::all()).count, 30);
        assert_eq!(run(&store, put("new", "1")).applied.revision, revision.next());
    }

    #[test]
    fn format_md_tells_the_truth() {
        let page = include_str!("../../../FORMAT.md");
        let chapter = page.split("### Backup file").nth(1).expect("the chapter");
        assert!(chapter.contains("`BRKBKUP\\0`") && chapter.contains(&format!("version u32 = {VERSION}")));
        assert!(chapter.contains(&format!("{SNAPSHOT_CHUNK_BYTES_MAX} bytes")) && chapter.contains(&format!("multiple of {SECTOR_BYTES}")));
    }
}
