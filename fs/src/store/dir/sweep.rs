//! Start-up: puts away what a change left that was cut off. Only dirty buckets can hold such a thing.

use super::DirStore;
use super::handles::{bucket_path, leaf_path, orphan_path};
use super::sys::{self, Res};
use crate::fop::{Bucket, Errno, Gfid};
use std::fs::File;

impl DirStore {
    /// Idempotent: a sweep that is cut off is done again.
    pub(super) fn sweep(&mut self) -> Res<()> {
        self.sweep_tmp()?;
        self.sweep_orphans()?;
        for bucket in self.bitmap.set().iter().collect::<Vec<_>>() {
            self.sweep_bucket(bucket)?;
        }
        Ok(())
    }

    /// What is in `tmp` never got its name: empty directories and links to places.
    fn sweep_tmp(&mut self) -> Res<()> {
        let tmp = sys::open_dir(&self.handles.private, b"tmp")?;
        for name in sys::list_all(&tmp)? {
            match sys::unlink(&tmp, &name) {
                Err(Errno::EISDIR) => sys::rmdir(&tmp, &name)?,
                other => other?,
            }
        }
        Ok(())
    }

    /// An orphan that still has a name was about to lose it: it goes back to the index.
    fn sweep_orphans(&mut self) -> Res<()> {
        for gfid in self.list_orphans()? {
            let stat = sys::stat_at(&self.handles.private, &orphan_path(gfid))?;
            if stat.st_nlink > 1 {
                let (from, to) = (orphan_path(gfid), leaf_path(gfid));
                self.handles.in_bucket(gfid, |private| sys::rename(private, &from, private, &to, 0))?;
            }
        }
        Ok(())
    }

    pub(super) fn list_orphans(&mut self) -> Res<Vec<Gfid>> {
        let dir = sys::open_dir(&self.handles.private, b"orphans")?;
        let gfids = gfids_of(&dir)?;
        self.has_orphans = !gfids.is_empty();
        Ok(gfids)
    }

    /// Objects that never got a name or lost their last one, and places of directories that are not there.
    fn sweep_bucket(&mut self, bucket: Bucket) -> Res<()> {
        let dir = match sys::open_dir(&self.handles.private, bucket_path(bucket).as_bytes()) {
            Err(Errno::ENOENT) => return Ok(()),
            other => other?,
        };
        for name in sys::list_all(&dir)? {
            if let Some(gfid) = name.strip_suffix(b".dir").and_then(parse) {
                if let Err(Errno::ENOENT) = self.handles.place(gfid).and_then(|_| self.handles.dir(gfid)) {
                    self.drop_dangling(gfid)?;
                }
            } else if let Some(stat) = sys::stat_opt(&dir, &name)?
                && stat.st_nlink == 1
                && !sys::is_dir(&stat)
            {
                tracing::debug!(object = %String::from_utf8_lossy(&name), "removed an object that an interrupted change left without a name");
                sys::unlink(&dir, &name)?;
            }
        }
        Ok(())
    }

    /// A place where nothing is: made by a `mkdir` that did not end, or left by a `rmdir`. Where something else
    /// removed the directory the place stays: heal compares it.
    fn drop_dangling(&mut self, gfid: Gfid) -> Res<()> {
        tracing::debug!(%gfid, "removed the place of a directory that is not there");
        self.handles.remove_place(gfid)
    }
}

fn parse(name: &[u8]) -> Option<Gfid> {
    Gfid::parse(std::str::from_utf8(name).ok()?)
}

/// The gfids that a directory's names are, ascending.
pub(super) fn gfids_of(dir: &File) -> Res<Vec<Gfid>> {
    let mut gfids: Vec<Gfid> = sys::list_all(dir)?.iter().filter_map(|n| parse(n)).collect();
    gfids.sort_unstable();
    Ok(gfids)
}
