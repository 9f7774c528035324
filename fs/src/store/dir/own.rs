//! The brick's own files: its identity (`.brickraft/brick`) and the dirty bitmap (`.brickraft/dirty`).
//! FORMAT.md, "brick", is their specification.

use crate::fop::Bucket;
use crate::store::{BUCKET_COUNT, BrickMeta, BucketSet, StoreError};
use rustix::fs::{self, Mode, OFlags};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

pub(super) const META_FILE: &str = "brick";
pub(super) const DIRTY_FILE: &str = "dirty";
pub(super) const META_MAGIC: [u8; 8] = *b"BRKBRICK";
pub(super) const DIRTY_MAGIC: [u8; 8] = *b"BRKDIRTY";
pub(super) const META_VERSION: u32 = 1;
/// magic 8, version 4, volume 16, brick 8, incarnation 8, epoch 8, synced epoch 8, held 8, CRC-32 4.
pub(super) const META_BYTES: usize = 72;
const META_CRC_AT: usize = META_BYTES - 4;
/// The unit that a disk writes wholly or not at all.
pub(super) const SECTOR_BYTES: usize = 512;
/// The bits of one sector: its last 4 bytes are their CRC-32.
pub(super) const SECTOR_BITS: usize = (SECTOR_BYTES - 4) * 8;
/// Sectors of bits, after one sector of header.
pub(super) const SECTORS: usize = BUCKET_COUNT.div_ceil(SECTOR_BITS);

/// The identity as it stands on disk.
pub(super) fn encode_meta(m: &BrickMeta) -> [u8; META_BYTES] {
    let mut out = [0; META_BYTES];
    out[..8].copy_from_slice(&META_MAGIC);
    out[8..12].copy_from_slice(&META_VERSION.to_le_bytes());
    out[12..28].copy_from_slice(&m.volume.to_le_bytes());
    for (i, n) in [m.brick, m.incarnation, m.epoch, m.synced_epoch, m.held].into_iter().enumerate() {
        out[28 + i * 8..36 + i * 8].copy_from_slice(&n.to_le_bytes());
    }
    let crc = crc32fast::hash(&out[..META_CRC_AT]);
    out[META_CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    out
}

fn damaged(path: &Path, offset: u64, expected: impl Into<String>, found: impl Into<String>) -> StoreError {
    StoreError::Damaged { path: path.into(), offset, expected: expected.into(), found: found.into() }
}

/// The identity in `bytes`; `path` is for the error.
pub(super) fn decode_meta(path: &Path, bytes: &[u8]) -> Result<BrickMeta, StoreError> {
    if bytes.len() != META_BYTES {
        return Err(damaged(path, 0, format!("{META_BYTES} bytes"), format!("{} bytes", bytes.len())));
    }
    if bytes[..8] != META_MAGIC {
        return Err(damaged(path, 0, "the magic BRKBRICK", format!("{:02x?}", &bytes[..8])));
    }
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    let half = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
    let crc = crc32fast::hash(&bytes[..META_CRC_AT]);
    if half(META_CRC_AT) != crc {
        return Err(damaged(path, META_CRC_AT as u64, format!("CRC {crc:08x}"), format!("{:08x}", half(META_CRC_AT))));
    }
    if half(8) != META_VERSION {
        return Err(damaged(path, 8, format!("version {META_VERSION}"), format!("version {}", half(8))));
    }
    let volume = u128::from_le_bytes(bytes[12..28].try_into().expect("16 bytes"));
    Ok(BrickMeta { volume, brick: word(28), incarnation: word(36), epoch: word(44), synced_epoch: word(52), held: word(60) })
}

/// Replaces the identity: durable and whole, whenever the power fails.
pub(super) fn write_meta(private: &File, path: &Path, meta: &BrickMeta) -> Result<(), StoreError> {
    let fail = |doing| move |e: io::Error| StoreError::Io { path: path.join(META_FILE), doing, source: e };
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = fs::openat(private, "brick.new", flags, Mode::from_raw_mode(0o600)).map(File::from);
    let file = file.map_err(io::Error::from).map_err(fail("create the new identity"))?;
    file.write_all_at(&encode_meta(meta), 0).map_err(fail("write the new identity"))?;
    file.sync_all().map_err(fail("sync the new identity"))?;
    fs::renameat(private, "brick.new", private, META_FILE).map_err(io::Error::from).map_err(fail("put the new identity in place"))?;
    private.sync_all().map_err(fail("sync the directory of the identity"))
}

/// Reads the identity; `None` when there is none.
pub(super) fn read_meta(private: &File, path: &Path) -> Result<Option<BrickMeta>, StoreError> {
    let path = path.join(META_FILE);
    let file = match fs::openat(private, META_FILE, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(e) => return Err(StoreError::Io { path, doing: "open the identity", source: e.into() }),
    };
    let bytes = read_up_to(&file, META_BYTES + 1).map_err(|e| StoreError::Io { path: path.clone(), doing: "read the identity", source: e })?;
    decode_meta(&path, &bytes).map(Some)
}

/// The file's bytes from its start, at most `bytes_max`.
fn read_up_to(file: &File, bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; bytes_max];
    let mut got = 0;
    while got < bytes_max {
        match file.read_at(&mut bytes[got..], got as u64)? {
            0 => break,
            n => got += n,
        }
    }
    bytes.truncate(got);
    Ok(bytes)
}

/// The durable bitmap of changed buckets. One sector holds [`SECTOR_BITS`] bits and their CRC, so that a
/// sector that tore or rotted counts as "all dirty": the safe side.
pub(super) struct Bitmap {
    file: File,
    path: PathBuf,
    set: BucketSet,
}

fn header() -> [u8; SECTOR_BYTES] {
    let mut out = [0; SECTOR_BYTES];
    out[..8].copy_from_slice(&DIRTY_MAGIC);
    out[8..12].copy_from_slice(&META_VERSION.to_le_bytes());
    out
}

/// The sector that holds bucket `b`'s bit.
const fn sector_of(b: Bucket) -> usize {
    b.0 as usize / SECTOR_BITS
}

fn encode_sector(set: &BucketSet, sector: usize) -> [u8; SECTOR_BYTES] {
    let mut out = [0; SECTOR_BYTES];
    let first = sector * SECTOR_BITS;
    for bit in 0..SECTOR_BITS.min(BUCKET_COUNT - first) {
        if u16::try_from(first + bit).is_ok_and(|b| set.contains(Bucket(b))) {
            out[bit / 8] |= 1 << (bit % 8);
        }
    }
    let crc = crc32fast::hash(&out[..SECTOR_BYTES - 4]);
    out[SECTOR_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Adds the bits of one sector to `set`; false when its CRC does not fit (then all its bits are set).
fn decode_sector(set: &mut BucketSet, sector: usize, bytes: &[u8]) -> bool {
    let whole = bytes.len() == SECTOR_BYTES && crc32fast::hash(&bytes[..SECTOR_BYTES - 4]).to_le_bytes() == bytes[SECTOR_BYTES - 4..];
    let first = sector * SECTOR_BITS;
    for bit in 0..SECTOR_BITS.min(BUCKET_COUNT - first) {
        if !whole || bytes[bit / 8] >> (bit % 8) & 1 == 1 {
            set.extend(u16::try_from(first + bit).ok().map(Bucket));
        }
    }
    whole
}

fn encode_bitmap(set: &BucketSet) -> Vec<u8> {
    let mut out = header().to_vec();
    (0..SECTORS).for_each(|s| out.extend_from_slice(&encode_sector(set, s)));
    out
}

impl Bitmap {
    /// Opens the bitmap. A missing or damaged one is replaced by one with every doubtful bit set.
    pub(super) fn open(private: &File, path: &Path) -> Result<Self, StoreError> {
        let path = path.join(DIRTY_FILE);
        let shown = path.clone();
        let fail = |doing| { let path = shown.clone(); move |source: io::Error| StoreError::Io { path, doing, source } };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = fs::openat(private, DIRTY_FILE, flags, Mode::from_raw_mode(0o600)).map(File::from);
        let file = file.map_err(io::Error::from).map_err(fail("open the bitmap"))?;
        let bytes = read_up_to(&file, SECTOR_BYTES * (1 + SECTORS)).map_err(fail("read the bitmap"))?;
        let mut set = BucketSet::new();
        let mut whole = bytes.get(..SECTOR_BYTES) == Some(&header()[..]);
        if whole {
            for sector in 0..SECTORS {
                let at = SECTOR_BYTES * (1 + sector);
                whole &= decode_sector(&mut set, sector, bytes.get(at..at + SECTOR_BYTES).unwrap_or(&[]));
            }
        } else {
            set = BucketSet::full();
        }
        let mut map = Self { file, path, set };
        if !whole {
            tracing::warn!(path = %map.path.display(), dirty = map.set.len(), "the dirty bitmap is missing or damaged: what is in doubt counts as dirty");
            let set = map.set.clone();
            map.replace(&set).map_err(fail("rewrite the bitmap"))?;
            private.sync_all().map_err(fail("sync the directory of the bitmap"))?;
        }
        Ok(map)
    }

    pub(super) const fn set(&self) -> &BucketSet {
        &self.set
    }

    /// Sets the bits; durable on return. One sync for all of them, none when they are set already.
    pub(super) fn mark(&mut self, buckets: &[Bucket]) -> io::Result<()> {
        let mut sectors: Vec<usize> = buckets.iter().filter(|b| !self.set.contains(**b)).map(|b| sector_of(*b)).collect();
        if sectors.is_empty() {
            return Ok(());
        }
        let mut set = self.set.clone();
        set.extend(buckets.iter().copied());
        sectors.dedup();
        for sector in sectors {
            self.file.write_all_at(&encode_sector(&set, sector), (SECTOR_BYTES * (1 + sector)) as u64)?;
        }
        self.file.sync_data()?;
        self.set = set;
        Ok(())
    }

    /// Makes `set` the content; durable on return.
    pub(super) fn replace(&mut self, set: &BucketSet) -> io::Result<()> {
        self.file.write_all_at(&encode_bitmap(set), 0)?;
        self.file.sync_data()?;
        self.set = set.clone();
        Ok(())
    }
}

/// Writes the bitmap of a new brick: nothing is dirty. (It was never in sync, so its first heal is a full one.)
pub(super) fn create_bitmap(private: &File) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(fs::openat(private, DIRTY_FILE, flags, Mode::from_raw_mode(0o600))?);
    file.write_all_at(&encode_bitmap(&BucketSet::new()), 0)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_of_the_identity_is_found() {
        let meta = BrickMeta { volume: 7 << 100, brick: 2, incarnation: 3, epoch: 4, synced_epoch: 5, held: 6 };
        let good = encode_meta(&meta);
        assert_eq!(decode_meta(Path::new("x"), &good).unwrap(), meta);
        for bit in 0..META_BYTES * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_meta(Path::new("x"), &bad).is_err(), "bit {bit}");
        }
        assert!(decode_meta(Path::new("x"), &good[..71]).is_err());
    }

    #[test]
    fn a_damaged_sector_of_the_bitmap_is_all_dirty() {
        let set: BucketSet = [Bucket(3), Bucket(4_063), Bucket(4_064), Bucket(65_535)].into_iter().collect();
        let dir = tempfile::tempdir().unwrap();
        let private = File::open(dir.path()).unwrap();
        create_bitmap(&private).unwrap();
        let mut map = Bitmap::open(&private, dir.path()).unwrap();
        assert!(map.set().is_empty());
        map.mark(&set.iter().collect::<Vec<_>>()).unwrap();
        drop(map);
        assert_eq!(Bitmap::open(&private, dir.path()).unwrap().set(), &set);
        let file = File::options().write(true).open(dir.path().join(DIRTY_FILE)).unwrap();
        file.write_all_at(&[9], SECTOR_BYTES as u64 * 2).unwrap();
        let map = Bitmap::open(&private, dir.path()).unwrap();
        assert_eq!(map.set().len(), SECTOR_BITS + 3);
        drop(map);
        file.set_len(100).unwrap();
        assert_eq!(Bitmap::open(&private, dir.path()).unwrap().set(), &BucketSet::full());
    }

    #[test]
    fn format_md_says_what_the_code_does() {
        let page = include_str!("../../../../FORMAT.md");
        let bitmap = SECTOR_BYTES * (1 + SECTORS);
        for fact in [
            format!("### Identity: `brick`, {META_BYTES} bytes"),
            format!("magic `{}`", String::from_utf8_lossy(&META_MAGIC)),
            format!("version = {META_VERSION}"),
            format!("| {META_CRC_AT} | 4 | CRC-32"),
            format!("### Bitmap: `dirty`, {},{} bytes", bitmap / 1000, bitmap % 1000),
            format!("magic `{}`", String::from_utf8_lossy(&DIRTY_MAGIC)),
            format!("Then {SECTORS} sectors of {} bytes of bits", SECTOR_BYTES - 4),
            format!("from n * {SECTOR_BITS} on"),
        ] {
            assert!(page.contains(&fact), "FORMAT.md lacks {fact:?}");
        }
    }
}
