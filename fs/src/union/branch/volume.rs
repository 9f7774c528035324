//! [`VolumeBranch`]: a branch in a directory of a volume, straight on top of its translator stack, with no mount in between.

use super::{At, Branch, Handle, Listed, New, ObjectId, Open, Stat};
use crate::fop::{Attr, Errno, FileKind, Fop, Gfid, PAYLOAD_BYTES_MAX, RENAME_EXCHANGE, RENAME_NOREPLACE, Reply, SetAttr, StatFs};
use crate::union::Res;
use crate::volume::Volume;
use bytes::Bytes;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

/// Bytes of names that one listing request asks for.
const LISTING_BYTES: u32 = 128 << 10;
/// Inode numbers from gfids leave room for the file system's index.
const INO_BITS: u32 = 56;
/// A brick keeps `trusted.brickraft.*` for itself, so the union's attributes go by other names there.
const OURS: &[u8] = b"trusted.brickraft.";
const OURS_ON_VOLUMES: &[u8] = b"trusted.brickraft-union.";

/// An object by gfid. While a handle of an open file lives, the volume keeps the file, with a name or without.
#[derive(Debug)]
pub struct VolumeObject {
    gfid: Gfid,
    opened: Option<Opened>,
}

struct Opened(Arc<dyn Volume>);

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("open")
    }
}

impl Drop for VolumeObject {
    fn drop(&mut self) {
        if let Some(Opened(volume)) = &self.opened {
            let _ = volume.call(&Fop::Release { gfid: self.gfid }, &[]);
        }
    }
}

/// A branch in a directory of a volume.
pub struct VolumeBranch {
    volume: Arc<dyn Volume>,
    root: Gfid,
    /// Stands for the volume as a file system.
    dev: u64,
}

impl std::fmt::Debug for VolumeBranch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VolumeBranch").field("root", &self.root).finish_non_exhaustive()
    }
}

impl VolumeBranch {
    /// Opens `subdir` of a volume (empty: its root). `label` tells volumes apart: `HOST:VOL/subdir`.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, or that no server answers.
    pub fn open(label: &str, volume: Arc<dyn Volume>, subdir: &Path) -> Res<Self> {
        let dev = xxhash_rust::xxh3::xxh3_64(label.as_bytes());
        let mut branch = Self { volume, root: Gfid::ROOT, dev };
        for component in subdir.iter().filter(|c| *c != OsStr::new("/")) {
            branch.root = branch.attr(&Fop::Lookup { parent: branch.root, name: bytes(component.as_bytes()) })?.gfid;
        }
        match branch.attr(&Fop::GetAttr { gfid: branch.root })?.kind {
            FileKind::Dir => Ok(branch),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn call(&self, fop: &Fop) -> Res<Reply> {
        self.volume.call(fop, &[]).map(|(reply, _)| reply)
    }

    fn done(&self, fop: &Fop) -> Res<()> {
        self.call(fop).map(drop)
    }

    fn attr(&self, fop: &Fop) -> Res<Attr> {
        match self.call(fop)? {
            Reply::Attr(attr) => Ok(attr),
            _ => Err(Errno::EIO),
        }
    }

    fn data(&self, fop: &Fop) -> Res<Vec<u8>> {
        match self.call(fop)? {
            Reply::Data(data) => Ok(data.to_vec()),
            _ => Err(Errno::EIO),
        }
    }

    fn find(&self, at: At<'_>) -> Res<Gfid> {
        match at {
            At::Name(dir, name) => self.attr(&Fop::Lookup { parent: gfid(dir)?, name: bytes(name) }).map(|a| a.gfid),
            At::Open(held) => gfid(held),
        }
    }

    fn stat_of(&self, a: &Attr) -> Stat {
        let [high, low] = halves(a.gfid);
        Stat {
            id: ObjectId(self.dev ^ high, low),
            dev: self.dev,
            ino: low & ((1 << INO_BITS) - 1),
            kind: a.kind,
            mode: a.mode,
            nlink: a.nlink,
            uid: a.uid,
            gid: a.gid,
            rdev: a.rdev,
            size: a.size,
            blocks: a.blocks,
            atime: a.atime,
            mtime: a.mtime,
            ctime: a.ctime,
        }
    }
}

fn halves(gfid: Gfid) -> [u64; 2] {
    let n = u128::from_be_bytes(gfid.0);
    [(n >> 64) as u64, n as u64]
}

fn bytes(name: &[u8]) -> Bytes {
    Bytes::copy_from_slice(name)
}

fn gfid(handle: &Handle) -> Res<Gfid> {
    match handle {
        Handle::Volume(object) => Ok(object.gfid),
        _ => Err(Errno::EBADF),
    }
}

/// An attribute's name as the volume has it.
fn xattr_there(name: &[u8]) -> Bytes {
    match name.strip_prefix(OURS) {
        Some(word) => [OURS_ON_VOLUMES, word].concat().into(),
        None => bytes(name),
    }
}

fn xattr_here(name: &[u8]) -> Vec<u8> {
    match name.strip_prefix(OURS_ON_VOLUMES) {
        Some(word) => [OURS, word].concat(),
        None => name.to_vec(),
    }
}

impl Branch for VolumeBranch {
    fn root(&self) -> Handle {
        Handle::Volume(Arc::new(VolumeObject { gfid: self.root, opened: None }))
    }

    fn can_hold_overlay(&self) -> bool {
        false
    }

    fn stat(&self, at: At<'_>) -> Res<Stat> {
        let fop = match at {
            At::Name(dir, name) => Fop::Lookup { parent: gfid(dir)?, name: bytes(name) },
            At::Open(held) => Fop::GetAttr { gfid: gfid(held)? },
        };
        Ok(self.stat_of(&self.attr(&fop)?))
    }

    fn open(&self, at: At<'_>, how: Open) -> Res<Handle> {
        let (gfid, kind) = match at {
            At::Name(dir, name) => self.attr(&Fop::Lookup { parent: gfid(dir)?, name: bytes(name) }).map(|a| (a.gfid, a.kind))?,
            At::Open(held) => self.attr(&Fop::GetAttr { gfid: gfid(held)? }).map(|a| (a.gfid, a.kind))?,
        };
        match (how, kind) {
            (Open::Path, _) | (_, FileKind::File) => {}
            (_, FileKind::Dir) => return Err(Errno::EISDIR),
            _ => return Err(Errno::ENXIO),
        }
        let opened = if kind == FileKind::Dir {
            None
        } else {
            let flags = if how == Open::Write { rustix::fs::OFlags::RDWR } else { rustix::fs::OFlags::RDONLY };
            self.done(&Fop::Open { gfid, flags: flags.bits() })?;
            Some(Opened(Arc::clone(&self.volume)))
        };
        Ok(Handle::Volume(Arc::new(VolumeObject { gfid, opened })))
    }

    fn list(&self, dir: &Handle, each: &mut dyn FnMut(Listed<'_>)) -> Res<()> {
        let (gfid, mut cookie) = (gfid(dir)?, 0);
        loop {
            let Reply::Entries { entries, end } = self.call(&Fop::ReadDir { gfid, cookie, bytes: LISTING_BYTES, plus: false })? else {
                return Err(Errno::EIO);
            };
            for e in &entries {
                let [_, low] = halves(e.gfid);
                each(Listed { name: &e.name, ino: low & ((1 << INO_BITS) - 1), kind: e.kind });
            }
            match entries.last() {
                Some(last) if !end => cookie = last.cookie,
                _ => return Ok(()),
            }
        }
    }

    fn readlink(&self, at: At<'_>) -> Res<Vec<u8>> {
        self.data(&Fop::ReadLink { gfid: self.find(at)? })
    }

    fn make(&self, dir: &Handle, name: &[u8], new: &New<'_>) -> Res<Stat> {
        let parent = gfid(dir)?;
        let bucket = if new.kind == FileKind::Dir { Gfid::directory_bucket(parent, name) } else { parent.bucket() };
        let (gfid, name) = (Gfid::in_bucket(bucket, rand::random()), bytes(name));
        let (mode, uid, gid) = (new.mode & 0o7777, new.uid, new.gid);
        let attr = self.attr(&match new.kind {
            FileKind::Dir => Fop::MkDir { parent, name, gfid, mode, uid, gid },
            FileKind::Symlink => Fop::Symlink { parent, name, gfid, target: bytes(new.target), uid, gid },
            kind => Fop::MkNod { parent, name, gfid, kind, mode, rdev: new.rdev, uid, gid },
        })?;
        Ok(self.stat_of(&attr))
    }

    fn link(&self, from: At<'_>, dir: &Handle, name: &[u8]) -> Res<()> {
        let (from, parent, name) = (self.find(from)?, gfid(dir)?, bytes(name));
        // A volume takes the same link again for a retry of the first.
        match self.attr(&Fop::Lookup { parent, name: name.clone() }) {
            Ok(_) => Err(Errno::EEXIST),
            Err(Errno::ENOENT) => self.done(&Fop::Link { gfid: from, parent, name }),
            Err(e) => Err(e),
        }
    }

    fn unlink(&self, dir: &Handle, name: &[u8]) -> Res<()> {
        self.done(&Fop::Unlink { parent: gfid(dir)?, name: bytes(name) })
    }

    fn rmdir(&self, dir: &Handle, name: &[u8]) -> Res<()> {
        self.done(&Fop::RmDir { parent: gfid(dir)?, name: bytes(name) })
    }

    fn rename(&self, dir: &Handle, name: &[u8], new_dir: &Handle, new_name: &[u8], flags: u32) -> Res<()> {
        if !matches!(flags, 0 | RENAME_NOREPLACE | RENAME_EXCHANGE) {
            return Err(Errno::EINVAL);
        }
        let (parent, name, new_parent, new_name) = (gfid(dir)?, bytes(name), gfid(new_dir)?, bytes(new_name));
        self.done(&Fop::Rename { parent, name, new_parent, new_name, flags })
    }

    fn set_attr(&self, at: At<'_>, set: &SetAttr) -> Res<()> {
        let gfid = self.find(at)?;
        let mut set = set.clone();
        // A change of owner takes a file's set-id bits away.
        if (set.uid.is_some() || set.gid.is_some()) && set.mode.is_none() {
            let attr = self.attr(&Fop::GetAttr { gfid })?;
            if attr.kind == FileKind::File {
                set.mode = crate::union::without_set_id(attr.mode);
            }
        }
        self.done(&Fop::SetAttr { gfid, set })
    }

    fn get_xattr(&self, at: At<'_>, name: &[u8]) -> Res<Vec<u8>> {
        self.data(&Fop::GetXattr { gfid: self.find(at)?, name: xattr_there(name) })
    }

    fn list_xattr(&self, at: At<'_>) -> Res<Vec<Vec<u8>>> {
        let names = match self.data(&Fop::ListXattr { gfid: self.find(at)? }) {
            Err(Errno::EOPNOTSUPP) => return Ok(Vec::new()),
            other => other?,
        };
        Ok(names.split(|b| *b == 0).filter(|n| !n.is_empty()).map(xattr_here).collect())
    }

    fn set_xattr(&self, at: At<'_>, name: &[u8], value: &[u8], flags: u32) -> Res<()> {
        self.done(&Fop::SetXattr { gfid: self.find(at)?, name: xattr_there(name), value: bytes(value), flags })
    }

    fn remove_xattr(&self, at: At<'_>, name: &[u8]) -> Res<()> {
        self.done(&Fop::RemoveXattr { gfid: self.find(at)?, name: xattr_there(name) })
    }

    fn read(&self, file: &Handle, offset: u64, buf: &mut [u8]) -> Res<usize> {
        let gfid = gfid(file)?;
        let mut done = 0;
        for chunk in buf.chunks_mut(PAYLOAD_BYTES_MAX) {
            let len = u32::try_from(chunk.len()).map_err(|_| Errno::EINVAL)?;
            let (_, data) = self.volume.call(&Fop::Read { gfid, offset: offset + done as u64, len }, &[])?;
            let n = data.len().min(chunk.len());
            chunk[..n].copy_from_slice(&data[..n]);
            done += n;
            if n < chunk.len() {
                break;
            }
        }
        Ok(done)
    }

    fn write(&self, file: &Handle, offset: u64, data: &[u8]) -> Res<()> {
        let gfid = gfid(file)?;
        let mut at = offset;
        for chunk in data.chunks(PAYLOAD_BYTES_MAX) {
            self.volume.call(&Fop::Write { gfid, offset: at }, chunk)?;
            at += chunk.len() as u64;
        }
        Ok(())
    }

    fn fallocate(&self, file: &Handle, offset: u64, len: u64, mode: u32) -> Res<()> {
        self.done(&Fop::Fallocate { gfid: gfid(file)?, offset, len, mode })
    }

    fn lseek(&self, file: &Handle, offset: u64, whence: u32) -> Res<u64> {
        match self.call(&Fop::Lseek { gfid: gfid(file)?, offset, whence })? {
            Reply::Offset(at) => Ok(at),
            _ => Err(Errno::EIO),
        }
    }

    fn fsync(&self, file: &Handle, data_only: bool) -> Res<()> {
        self.done(&Fop::Fsync { gfid: gfid(file)?, data_only })
    }

    fn statfs(&self) -> Res<StatFs> {
        match self.call(&Fop::StatFs)? {
            Reply::StatFs(s) => Ok(s),
            _ => Err(Errno::EIO),
        }
    }

    /// Nobody can lock a directory of a volume. A work directory is taken for abandoned when nothing changed in it for a day, by this
    /// host's clock.
    fn claim(&self, dir: &Handle) -> Res<bool> {
        /// Seconds.
        const ABANDONED_AFTER: i64 = 24 * 60 * 60;
        let attr = self.attr(&Fop::GetAttr { gfid: gfid(dir)? })?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs().cast_signed());
        Ok(now - attr.mtime.sec > ABANDONED_AFTER)
    }
}

#[cfg(test)]
pub(in crate::union) mod tests;
