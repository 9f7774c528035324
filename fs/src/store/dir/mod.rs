//! [`DirStore`]: a brick in a directory of a Linux file system. See FORMAT.md, "brick", for what lies where.
//!
//! - `create` makes and opens bricks, `own` is identity and bitmap, `sweep` repairs after a cut;
//! - `handles` finds objects by gfid, `sys` has the system calls;
//! - `query`, `create_object`, `remove`, `change` and `data` are the file operations, `heal` is heal's.

mod change;
mod create;
mod create_object;
mod data;
mod handles;
mod heal;
pub(crate) mod lru;
mod own;
mod query;
mod remove;
mod sweep;
mod sys;
#[cfg(test)]
mod tests;

use crate::fop::{Bucket, Errno, Fop, FopResult, Gfid, Reply};
use crate::store::{BrickMeta, BrickStore, BucketSet, DataDone, DataOp, OpCtx, PRIVATE_DIR, StoreError};
use handles::Handles;
use own::Bitmap;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A brick in a directory. Made by [`DirStore::create`], opened by [`DirStore::open`]; one process at a time.
pub struct DirStore {
    path: PathBuf,
    index: File,
    meta: BrickMeta,
    bitmap: Bitmap,
    handles: Handles,
    /// Objects that are open somewhere.
    kept: BTreeSet<Gfid>,
    /// Whether `.brickraft/orphans` may hold something.
    has_orphans: bool,
    /// Whether `.brickraft/swept` may hold something.
    has_swept: bool,
    /// What went back from there into the index.
    unswept: BTreeSet<Gfid>,
    data: data::DataPath,
    /// The gfids of the bucket that heal is listing.
    listing: Option<(Bucket, Vec<Gfid>)>,
    /// A write of identity or bitmap failed.
    latched: bool,
}

impl DirStore {
    /// The brick's directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Marks buckets dirty, durably, before they are changed.
    fn mark(&mut self, buckets: &[Bucket]) -> Result<(), Errno> {
        if self.latched {
            return Err(Errno::EIO);
        }
        self.bitmap.mark(buckets).map_err(|e| {
            self.latched = true;
            tracing::error!(path = %self.path.display(), error = %e, "the dirty bitmap cannot be written: the brick stops changing");
            Errno::EIO
        })
    }

    /// Whether the directory at our path is the one we hold, with our identity in it.
    fn is_intact(&self) -> std::io::Result<bool> {
        let same = |a: &std::fs::Metadata, b: &std::fs::Metadata| a.dev() == b.dev() && a.ino() == b.ino();
        if !same(&self.path.symlink_metadata()?, &self.handles.root.metadata()?) {
            return Ok(false);
        }
        let private = self.path.join(std::str::from_utf8(PRIVATE_DIR).unwrap_or_default());
        if !same(&private.join("index").symlink_metadata()?, &self.index.metadata()?) {
            return Ok(false);
        }
        Ok(matches!(own::read_meta(&self.handles.private, &private), Ok(Some(m)) if m.volume == self.meta.volume && m.brick == self.meta.brick)
            && private.join(own::META_FILE).symlink_metadata()?.is_file()
            && sys::At::Fd(&self.handles.root).gfid() == Ok(Some(Gfid::ROOT)))
    }
}

impl AsRawFd for DirStore {
    fn as_raw_fd(&self) -> RawFd {
        self.data.raw_fd()
    }
}

impl BrickStore for DirStore {
    fn meta(&self) -> BrickMeta {
        self.meta
    }

    fn set_meta(&mut self, meta: BrickMeta) -> Result<(), StoreError> {
        if self.latched {
            return Err(StoreError::Latched);
        }
        let path = self.path.join(std::str::from_utf8(PRIVATE_DIR).unwrap_or_default());
        own::write_meta(&self.handles.private, &path, &meta).inspect_err(|_| self.latched = true)?;
        self.meta = meta;
        Ok(())
    }

    fn intact(&mut self) -> bool {
        let intact = self.is_intact().unwrap_or(false);
        if !intact {
            self.handles.forget_all();
        }
        intact
    }

    fn dirty(&self) -> &BucketSet {
        self.bitmap.set()
    }

    fn mark_dirty(&mut self, bucket: Bucket) -> Result<(), Errno> {
        self.mark(&[bucket])
    }

    fn reset_dirty(&mut self, keep: &BucketSet) -> Result<(), Errno> {
        if self.latched {
            return Err(Errno::EIO);
        }
        // All bricks are the same: nobody will ask for it.
        if let Err(e) = self.end_sweep(false).and_then(|()| self.drop_unswept()) {
            tracing::warn!(path = %self.path.display(), error = %e, "cannot remove what was put away in .brickraft/swept");
        }
        self.bitmap.replace(keep).map_err(|e| {
            self.latched = true;
            tracing::error!(path = %self.path.display(), error = %e, "the dirty bitmap cannot be written: the brick stops changing");
            Errno::EIO
        })
    }

    fn query(&mut self, fop: &Fop) -> FopResult {
        self.run_query(fop)
    }

    fn apply(&mut self, fop: &Fop, ctx: &OpCtx) -> FopResult {
        match fop {
            Fop::Create { .. } | Fop::MkNod { .. } | Fop::MkDir { .. } | Fop::Symlink { .. } => self.make(fop, ctx).map(Reply::Attr),
            Fop::Link { gfid, parent, name } => self.link(*gfid, *parent, name, ctx).map(Reply::Attr),
            Fop::Unlink { parent, name } => self.unlink(*parent, name, ctx).map(|()| Reply::Done),
            Fop::RmDir { parent, name } => self.rm_dir(*parent, name, ctx).map(|()| Reply::Done),
            Fop::Rename { parent, name, new_parent, new_name, flags } => {
                self.rename(*parent, name, *new_parent, new_name, *flags, ctx).map(|()| Reply::Done)
            }
            Fop::SetAttr { gfid, set } => self.set_attr(*gfid, set, ctx).map(Reply::Attr),
            Fop::Fallocate { gfid, offset, len, mode } => self.fallocate(*gfid, *offset, *len, *mode, ctx).map(|()| Reply::Done),
            Fop::SetXattr { gfid, name, value, flags } => self.set_xattr(*gfid, name, value, *flags).map(|()| Reply::Done),
            Fop::RemoveXattr { gfid, name } => self.remove_xattr(*gfid, name).map(|()| Reply::Done),
            _ => Err(Errno::EINVAL),
        }
    }

    fn submit(&mut self, token: u64, op: DataOp) {
        self.start_data(token, op);
    }

    fn reap(&mut self, out: &mut Vec<(u64, DataDone)>) {
        self.reap_data(out);
    }

    fn pending(&self) -> usize {
        self.data.pending()
    }

    fn ready_fd(&self) -> Option<RawFd> {
        Some(self.as_raw_fd())
    }

    fn keep_orphan(&mut self, gfid: Gfid, keep: bool) -> Result<(), Errno> {
        if keep {
            self.kept.insert(gfid);
            return Ok(());
        }
        self.kept.remove(&gfid);
        if !self.has_orphans {
            return Ok(());
        }
        match sys::unlink(&self.handles.private, &handles::orphan_path(gfid)) {
            Ok(()) => {
                self.handles.forget(gfid);
                self.data.forget(gfid);
                Ok(())
            }
            Err(Errno::ENOENT) => Ok(()),
            Err(e) => Err(e),
        }
    }

    fn orphans(&mut self) -> Result<Vec<Gfid>, Errno> {
        self.list_orphans()
    }
}

/// The descriptor of the brick's ring: readable when [`BrickStore::reap`] has something.
impl std::os::fd::AsFd for DirStore {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.data.as_fd()
    }
}
