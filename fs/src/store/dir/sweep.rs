//! Start-up: puts away what a change left that was cut off. Only dirty buckets can hold such a thing.

use super::DirStore;
use super::handles::{bucket_path, leaf_path, orphan_path, swept_path};
use super::sys::{self, Res};
use crate::fop::{Bucket, Errno, Gfid, RENAME_NOREPLACE};
use crate::heal::HealStore;
use std::fs::File;
use std::sync::Arc;

impl DirStore {
    /// Idempotent: a sweep that is cut off is done again.
    pub(super) fn sweep(&mut self) -> Res<()> {
        self.sweep_tmp()?;
        self.sweep_orphans()?;
        self.sweep_buckets()
    }

    /// Changes are made one at a time, so one that was interrupted left one object, which goes. More of them are the work of a
    /// power cut, or of somebody's hand in the brick's directory: they are put away, for heal to tell what was lost from what
    /// users removed.
    fn sweep_buckets(&mut self) -> Res<()> {
        let private = Arc::clone(&self.handles.private);
        let put_away =
            |(bucket, name): &(Bucket, Vec<u8>)| sys::rename(&private, &index_path(*bucket, name), &private, &swept_path(name), 0);
        let (mut first, mut count) = (None, 0_u64);
        for bucket in self.bitmap.set().iter().collect::<Vec<_>>() {
            for name in self.leftovers(bucket)? {
                count += 1;
                if count == 1 {
                    first = Some((bucket, name));
                    continue;
                }
                first.take().iter().try_for_each(put_away)?;
                put_away(&(bucket, name))?;
            }
        }
        if let Some((bucket, name)) = first {
            tracing::debug!(object = %String::from_utf8_lossy(&name), "removed what an interrupted change left");
            return sys::unlink(&private, &index_path(bucket, &name));
        }
        if count > 0 {
            tracing::warn!(path = %self.path.display(), count, "objects without a name were put away in .brickraft/swept");
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

    /// The index's names of objects that never got a name or lost their last one, and of places where no directory is.
    fn leftovers(&mut self, bucket: Bucket) -> Res<Vec<Vec<u8>>> {
        let dir = match sys::open_dir(&self.handles.private, bucket_path(bucket).as_bytes()) {
            Err(Errno::ENOENT) => return Ok(Vec::new()),
            other => other?,
        };
        let mut left = Vec::new();
        for name in sys::list_all(&dir)? {
            let is_left = if let Some(gfid) = name.strip_suffix(b".dir").and_then(parse) {
                self.handles.place(gfid).and_then(|_| self.handles.dir(gfid)).err() == Some(Errno::ENOENT)
            } else {
                sys::stat_opt(&dir, &name)?.is_some_and(|s| s.st_nlink == 1 && !sys::is_dir(&s))
            };
            if is_left {
                left.push(name);
            }
        }
        Ok(left)
    }

    /// What was put away goes back into the index, unless it was made again since, or goes for good.
    pub(super) fn end_sweep(&mut self, keep: bool) -> Res<()> {
        if !self.has_swept {
            return Ok(());
        }
        let names = sys::list_all(&sys::open_dir(&self.handles.private, b"swept")?)?;
        let failed = names.iter().filter_map(|name| self.end_sweep_of(name, keep).err()).last();
        if let Some(e) = failed {
            return Err(e);
        }
        (self.has_swept, self.listing) = (false, None);
        Ok(())
    }

    /// What went back into the index and found no name goes: no brick has one for it.
    pub(super) fn drop_unswept(&mut self) -> Res<()> {
        for gfid in std::mem::take(&mut self.unswept) {
            if self.heal_lost(gfid, false)? {
                self.heal_remove(gfid)?;
            }
        }
        Ok(())
    }

    fn end_sweep_of(&mut self, name: &[u8], keep: bool) -> Res<()> {
        let (from, gfid) = (swept_path(name), parse(name.strip_suffix(b".dir").unwrap_or(name)));
        if let Some(gfid) = gfid.filter(|_| keep) {
            self.mark(&[gfid.bucket()])?;
            let to = index_path(gfid.bucket(), name);
            match self.handles.in_bucket(gfid, |private| sys::rename(private, &from, private, &to, RENAME_NOREPLACE)) {
                Ok(()) => {
                    self.unswept.insert(gfid);
                    return Ok(());
                }
                Err(Errno::EEXIST) => {}
                Err(e) => return Err(e),
            }
        }
        sys::unlink(&self.handles.private, &from)
    }
}

/// `index/ab/cd/<name>`.
fn index_path(bucket: Bucket, name: &[u8]) -> Vec<u8> {
    [bucket_path(bucket).as_bytes(), b"/", name].concat()
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
