//! Queries.

use super::DirStore;
use super::handles::Obj;
use super::sys::{self, At, Res};
use crate::fop::{Attr, DirEntry, Errno, Fop, FopResult, Gfid, Reply, StatFs};
use crate::store::check;
use bytes::Bytes;
use rustix::fs::Stat;
use std::fs::File;

const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;
/// What an entry costs in a listing beside its name, roughly as FUSE's dirent and direntplus.
const ENTRY_BYTES: usize = 24;
const ENTRY_PLUS_BYTES: usize = 152;
/// The longest listing of one reply, in bytes.
const LISTING_BYTES_MAX: usize = 1 << 20;

impl DirStore {
    pub(super) fn run_query(&mut self, fop: &Fop) -> FopResult {
        match fop {
            Fop::Lookup { parent, name } => {
                check::name_of_query(*parent, name)?;
                let dir = self.handles.dir(*parent).map_err(|e| self.parent_error(*parent, e))?;
                let (gfid, stat) = self.entry(&dir, name)?.ok_or(Errno::ENOENT)?;
                Ok(Reply::Attr(sys::attr(gfid, &stat)))
            }
            Fop::GetAttr { gfid } | Fop::Open { gfid, .. } => self.attr_of(*gfid).map(Reply::Attr),
            Fop::Release { .. } => Ok(Reply::Done),
            Fop::ReadLink { gfid } => {
                let (obj, _) = self.find(*gfid)?;
                match obj {
                    Obj::Dir(_) => Err(Errno::EINVAL),
                    Obj::Leaf(path) => Ok(Reply::Data(sys::readlink(&self.handles.private, &path)?.into())),
                }
            }
            Fop::ReadDir { gfid, cookie, bytes, plus } => self.read_dir(*gfid, *cookie, *bytes as usize, *plus),
            Fop::StatFs => self.stat_fs(),
            Fop::GetXattr { gfid, name } => {
                if check::is_private_xattr(name) {
                    return Err(Errno::ENODATA);
                }
                check::xattr(name, b"")?;
                let (obj, _) = self.find(*gfid)?;
                Ok(Reply::Data(obj.at(&self.handles.private).get_xattr(name)?.into()))
            }
            Fop::ListXattr { gfid } => {
                let (obj, _) = self.find(*gfid)?;
                let mut out = Vec::new();
                for name in obj.at(&self.handles.private).list_xattr()?.iter().filter(|n| !check::is_private_xattr(n)) {
                    out.extend_from_slice(name);
                    out.push(0);
                }
                Ok(Reply::Data(out.into()))
            }
            Fop::Lseek { gfid, offset, whence } => {
                let hole = match *whence {
                    SEEK_DATA => false,
                    SEEK_HOLE => true,
                    _ => return Err(Errno::EINVAL),
                };
                let file = self.file(*gfid)?;
                sys::seek(&file, *offset, hole).map(Reply::Offset)
            }
            _ => Err(Errno::EINVAL),
        }
    }

    pub(super) fn find(&mut self, gfid: Gfid) -> Res<(Obj, Stat)> {
        self.handles.find(gfid, self.has_orphans)
    }

    pub(super) fn file(&mut self, gfid: Gfid) -> Res<std::sync::Arc<File>> {
        self.handles.file(gfid, self.has_orphans)
    }

    pub(super) fn attr_of(&mut self, gfid: Gfid) -> Res<Attr> {
        let (_, stat) = self.find(gfid)?;
        Ok(sys::attr(gfid, &stat))
    }

    /// A parent that is not a directory is `ENOTDIR`, not `ENOENT`.
    pub(super) fn parent_error(&self, parent: Gfid, e: Errno) -> Errno {
        if e == Errno::ENOENT && self.handles.leaf(parent, self.has_orphans).is_ok() { Errno::ENOTDIR } else { e }
    }

    /// What stands under a name: `None` when nothing does, or nothing of ours. A file whose link in the index
    /// was lost gets it back.
    pub(super) fn entry(&mut self, dir: &File, name: &[u8]) -> Res<Option<(Gfid, Stat)>> {
        let Some(stat) = sys::stat_opt(dir, name)? else { return Ok(None) };
        let gfid = match At::Path(dir, name).gfid() {
            Ok(Some(gfid)) => gfid,
            Ok(None) | Err(Errno::ENOENT) => return Ok(None),
            Err(e) => return Err(e),
        };
        if stat.st_nlink == 1 && !sys::is_dir(&stat) {
            let path = super::handles::leaf_path(gfid);
            return match self.handles.in_bucket(gfid, |private| sys::link(dir, name, private, &path)) {
                Ok(()) => Ok(Some((gfid, sys::stat_at(dir, name)?))),
                // The index has another object under this gfid: this one is a copy that somebody made.
                Err(Errno::EEXIST) => Ok(None),
                Err(e) => Err(e),
            };
        }
        Ok(Some((gfid, stat)))
    }

    fn read_dir(&mut self, gfid: Gfid, cookie: u64, bytes: usize, plus: bool) -> FopResult {
        let (dir, _) = match self.find(gfid)? {
            (Obj::Dir(dir), stat) => (dir, stat),
            (Obj::Leaf(_), _) => return Err(Errno::ENOTDIR),
        };
        let bytes = bytes.min(LISTING_BYTES_MAX);
        let (mut entries, mut used, mut at) = (Vec::new(), 0, cookie);
        loop {
            let batch = sys::list(&dir, at, bytes)?;
            if batch.is_empty() {
                return Ok(Reply::Entries { entries, end: true });
            }
            for raw in batch {
                at = raw.cookie;
                if raw.name.is_empty() || check::is_private(gfid, &raw.name) {
                    continue;
                }
                let cost = raw.name.len() + if plus { ENTRY_PLUS_BYTES } else { ENTRY_BYTES };
                if !entries.is_empty() && used + cost > bytes {
                    return Ok(Reply::Entries { entries, end: false });
                }
                // What vanished meanwhile, or is not ours, is left out.
                if let Some((id, stat)) = self.entry(&dir, &raw.name)? {
                    let attr = plus.then(|| sys::attr(id, &stat));
                    entries.push(DirEntry { cookie: raw.cookie, name: raw.name.into(), gfid: id, kind: sys::kind(&stat), attr });
                    used += cost;
                }
            }
        }
    }

    fn stat_fs(&self) -> FopResult {
        let s = sys::stat_vfs(&self.handles.root)?;
        let half = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(Reply::StatFs(StatFs {
            blocks: s.f_blocks,
            bfree: s.f_bfree,
            bavail: s.f_bavail,
            files: s.f_files,
            ffree: s.f_ffree,
            bsize: half(s.f_bsize),
            frsize: half(s.f_frsize),
            namelen: half(s.f_namemax),
        }))
    }

    /// A symbolic link's text, for heal.
    pub(super) fn text_of(&mut self, gfid: Gfid) -> Res<Bytes> {
        match self.run_query(&Fop::ReadLink { gfid })? {
            Reply::Data(text) => Ok(text),
            _ => Err(Errno::EIO),
        }
    }
}
