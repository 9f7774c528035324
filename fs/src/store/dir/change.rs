//! Changes of an object: attributes, size, space, extended attributes.

use super::DirStore;
use super::sys::{self, Res};
use crate::fop::{Attr, Errno, FileKind, Gfid, SetAttr, TimeSpec};
use crate::store::{OpCtx, check};

/// The modes that are handed to the file system: keep size, punch hole, collapse, zero, insert, unshare.
const FALLOC_KNOWN: u32 = 1 | 2 | 8 | 16 | 32 | 64;

impl DirStore {
    /// The size first, since it alone can be refused for the caller's fault; then owner (which clears set-id
    /// bits, as chown(2) does), mode, times.
    pub(super) fn set_attr(&mut self, gfid: Gfid, set: &SetAttr, ctx: &OpCtx) -> Res<Attr> {
        let (obj, stat) = self.find(gfid)?;
        if set.size.is_some() {
            match sys::kind(&stat) {
                FileKind::File => {}
                FileKind::Dir => return Err(Errno::EISDIR),
                _ => return Err(Errno::EINVAL),
            }
        }
        check::set_attr(sys::kind(&stat), set)?;
        self.mark(&[gfid.bucket()])?;
        let mut mtime = set.mtime;
        if let Some(size) = set.size {
            let file = self.file(gfid)?;
            sys::truncate(&file, size)?;
            mtime = mtime.or(Some(ctx.time));
        }
        let private = std::sync::Arc::clone(&self.handles.private);
        let at = obj.at(&private);
        if set.uid.is_some() || set.gid.is_some() {
            at.chown(set.uid, set.gid)?;
        }
        if let Some(mode) = set.mode {
            at.chmod(mode)?;
        }
        if set.atime.is_some() || mtime.is_some() {
            at.set_times(set.atime, mtime)?;
        }
        Ok(sys::attr(gfid, &at.stat()?))
    }

    pub(super) fn fallocate(&mut self, gfid: Gfid, offset: u64, len: u64, mode: u32, ctx: &OpCtx) -> Res<()> {
        if mode & !FALLOC_KNOWN != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let file = self.file(gfid)?;
        self.mark(&[gfid.bucket()])?;
        sys::fallocate(&file, mode, offset, len)?;
        // File systems touch the mtime in every mode, by their own clock.
        self.set_mtime(gfid, ctx.time)
    }

    fn set_mtime(&mut self, gfid: Gfid, time: TimeSpec) -> Res<()> {
        let (obj, _) = self.find(gfid)?;
        obj.at(&self.handles.private).set_times(None, Some(time))
    }

    pub(super) fn set_xattr(&mut self, gfid: Gfid, name: &[u8], value: &[u8], flags: u32) -> Res<()> {
        check::xattr(name, value)?;
        let obj = self.find(gfid)?.0;
        self.mark(&[gfid.bucket()])?;
        obj.at(&self.handles.private).set_xattr(name, value, flags)
    }

    pub(super) fn remove_xattr(&mut self, gfid: Gfid, name: &[u8]) -> Res<()> {
        check::xattr(name, b"")?;
        let obj = self.find(gfid)?.0;
        self.mark(&[gfid.bucket()])?;
        obj.at(&self.handles.private).remove_xattr(name)
    }
}
