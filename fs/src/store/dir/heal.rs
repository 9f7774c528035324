//! What heal needs of a brick.

use super::DirStore;
use super::create_object::NewNode;
use super::handles::{DirPlace, Obj, bucket_path, leaf_path, limbo_path, orphan_path};
use super::sweep::gfids_of;
use super::sys::{self, At, Res};
use crate::fop::{Attr, Bucket, Errno, FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FileKind, Gfid, RENAME_NOREPLACE, TimeSpec};
use crate::heal::{ExactAttr, HealStore, NameEntry, Place, STRANGER};
use crate::store::{BrickStore, XATTR_SUM, check};
use bytes::Bytes;
use rustix::fs::Stat;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// How much of a directory one system call lists for heal.
const LIST_BYTES: usize = 1 << 16;

impl From<DirPlace> for Place {
    fn from(place: DirPlace) -> Self {
        match place {
            DirPlace::At(parent, name) => Self::At { parent, name: name.into() },
            DirPlace::Limbo => Self::Limbo,
        }
    }
}

impl DirStore {
    /// What heal sees under a name: `STRANGER` unless the index has this very object.
    fn heal_entry(&mut self, dir_gfid: Gfid, dir: &File, name: &[u8]) -> Res<Option<NameEntry>> {
        let Some(stat) = sys::stat_opt(dir, name)? else { return Ok(None) };
        let is_dir = sys::is_dir(&stat);
        let gfid = match self.entry(dir, name)? {
            Some((gfid, _)) if self.is_known(gfid, dir_gfid, name, &stat)? => gfid,
            _ => STRANGER,
        };
        Ok(Some(NameEntry { name: Bytes::copy_from_slice(name), gfid, is_dir }))
    }

    fn is_known(&mut self, gfid: Gfid, parent: Gfid, name: &[u8], stat: &Stat) -> Res<bool> {
        if sys::is_dir(stat) {
            return match self.handles.place(gfid) {
                Ok(DirPlace::At(p, n)) => Ok(p == parent && n == name),
                Ok(DirPlace::Limbo) | Err(Errno::ENOENT) => Ok(false),
                Err(e) => Err(e),
            };
        }
        match self.handles.leaf(gfid, false) {
            Ok((_, known)) => Ok((known.st_dev, known.st_ino) == (stat.st_dev, stat.st_ino)),
            Err(Errno::ENOENT) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Where the index has a directory; `None` where it has none that is there.
    fn place_now(&mut self, gfid: Gfid) -> Res<Option<DirPlace>> {
        match self.handles.place(gfid).and_then(|place| self.handles.live_dir(gfid).map(|_| place)) {
            Ok(place) => Ok(Some(place)),
            Err(Errno::ENOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The descriptor and the name in it by which a place is reached.
    fn place_at(&mut self, gfid: Gfid, place: &DirPlace) -> Res<(Arc<File>, Vec<u8>)> {
        match place {
            DirPlace::Limbo => Ok((Arc::clone(&self.handles.private), limbo_path(gfid))),
            DirPlace::At(parent, name) => Ok((self.handles.dir(*parent)?, name.clone())),
        }
    }

    fn bucket_of_place(place: &DirPlace, gfid: Gfid) -> Bucket {
        match place {
            DirPlace::At(parent, _) => parent.bucket(),
            DirPlace::Limbo => gfid.bucket(),
        }
    }

    fn move_dir(&mut self, gfid: Gfid, from: &DirPlace, to: &DirPlace) -> Res<()> {
        let (from_dir, from_name) = self.place_at(gfid, from)?;
        let (to_dir, to_name) = self.place_at(gfid, to)?;
        self.mark(&[gfid.bucket(), Self::bucket_of_place(from, gfid), Self::bucket_of_place(to, gfid)])?;
        self.handles.set_place(gfid, &[to.clone(), from.clone()])?;
        let moved = sys::rename(&from_dir, &from_name, &to_dir, &to_name, RENAME_NOREPLACE);
        let now = if moved.is_ok() { to } else { from };
        self.handles.set_place(gfid, std::slice::from_ref(now))?;
        if let DirPlace::At(parent, _) = to {
            self.data.named(gfid, *parent);
        }
        self.listing = None;
        moved
    }

    /// Removes a stranger with all below it; what of it is ours keeps its object in the index.
    fn remove_stranger(dir: &File, name: &[u8], depth: u32) -> Res<()> {
        const DEPTH_MAX: u32 = 256;
        if !sys::is_dir(&sys::stat_at(dir, name)?) {
            return sys::unlink(dir, name);
        }
        if depth == DEPTH_MAX {
            return Err(Errno::EIO);
        }
        let inner = sys::open_dir(dir, name)?;
        for child in sys::list_all(&inner)? {
            Self::remove_stranger(&inner, &child, depth + 1)?;
        }
        sys::rmdir(dir, name)
    }

    /// Saves the directories of ours that lie somewhere below a stranger: they go to limbo.
    fn rescue(&mut self, dir: &File, name: &[u8], depth: u32) -> Res<()> {
        const DEPTH_MAX: u32 = 256;
        if depth == DEPTH_MAX || !sys::is_dir(&sys::stat_at(dir, name)?) {
            return Ok(());
        }
        let inner = sys::open_dir(dir, name)?;
        for child in sys::list_all(&inner)? {
            if !sys::is_dir(&sys::stat_at(&inner, &child)?) {
                continue;
            }
            if let Some(gfid) = At::Path(&inner, &child).gfid()?
                && self.place_now(gfid)?.is_none()
                && self.handles.places(gfid).is_ok()
            {
                self.mark(&[gfid.bucket()])?;
                self.handles.set_place(gfid, &[DirPlace::Limbo])?;
                sys::rename(&inner, &child, &self.handles.private, &limbo_path(gfid), RENAME_NOREPLACE)?;
            } else {
                self.rescue(&inner, &child, depth + 1)?;
            }
        }
        Ok(())
    }

    fn new_node(gfid: Gfid, kind: FileKind, rdev: u64, target: &[u8]) -> NewNode<'_> {
        let mode = if kind == FileKind::Dir { 0o700 } else { 0o600 };
        NewNode { gfid, kind, mode, uid: 0, gid: 0, rdev, target }
    }
}

impl HealStore for DirStore {
    fn heal_objects(&mut self, bucket: Bucket, after: Option<Gfid>, max: usize) -> Res<Vec<Gfid>> {
        let stale = self.listing.as_ref().is_none_or(|(b, _)| *b != bucket);
        if stale || after.is_none() {
            let mut gfids = Vec::new();
            match sys::open_dir(&self.handles.private, bucket_path(bucket).as_bytes()) {
                Err(Errno::ENOENT) => {}
                Err(e) => return Err(e),
                Ok(dir) => {
                    for name in sys::list_all(&dir)? {
                        let name = name.strip_suffix(b".dir").unwrap_or(&name);
                        gfids.extend(std::str::from_utf8(name).ok().and_then(Gfid::parse).filter(|g| g.bucket() == bucket));
                    }
                }
            }
            if bucket == Gfid::ROOT.bucket() {
                gfids.push(Gfid::ROOT);
            }
            gfids.sort_unstable();
            gfids.dedup();
            self.listing = Some((bucket, gfids));
        }
        let Some((_, gfids)) = &self.listing else { return Ok(Vec::new()) };
        let first = after.map_or(0, |a| gfids.partition_point(|g| *g <= a));
        Ok(gfids[first..].iter().take(max).copied().collect())
    }

    fn heal_stat(&mut self, gfid: Gfid) -> Res<(Attr, Option<Place>)> {
        let (obj, stat) = self.find(gfid)?;
        let attr = sys::attr(gfid, &stat);
        let place = match obj {
            Obj::Leaf(_) => None,
            Obj::Dir(_) if gfid == Gfid::ROOT => Some(Place::At { parent: Gfid::ROOT, name: Bytes::new() }),
            // Not where the index says: the descriptor is one from before.
            Obj::Dir(_) => {
                let place = self.handles.place(gfid)?;
                let (dir, name) = self.place_at(gfid, &place)?;
                let there = sys::stat_opt(&dir, &name)?.is_some_and(|s| (s.st_dev, s.st_ino) == (stat.st_dev, stat.st_ino));
                if !there {
                    self.handles.forget(gfid);
                    return Err(Errno::ENOENT);
                }
                Some(place.into())
            }
        };
        Ok((attr, place))
    }

    fn heal_readlink(&mut self, gfid: Gfid) -> Res<Bytes> {
        self.text_of(gfid)
    }

    fn heal_entries(&mut self, dir: Gfid, cookie: u64, max: usize) -> Res<(Vec<NameEntry>, u64)> {
        let fd = self.handles.dir(dir).map_err(|e| self.parent_error(dir, e))?;
        let (mut entries, mut at) = (Vec::new(), cookie);
        loop {
            let batch = sys::list(&fd, at, LIST_BYTES)?;
            if batch.is_empty() {
                return Ok((entries, 0));
            }
            for raw in batch {
                if entries.len() >= max.max(1) {
                    return Ok((entries, at));
                }
                at = raw.cookie;
                if !raw.name.is_empty() && !check::is_private(dir, &raw.name) {
                    entries.extend(self.heal_entry(dir, &fd, &raw.name)?);
                }
            }
        }
    }

    fn heal_lookup(&mut self, parent: Gfid, name: &[u8]) -> Res<Option<NameEntry>> {
        check::name_of_query(parent, name)?;
        let dir = self.handles.dir(parent).map_err(|e| self.parent_error(parent, e))?;
        self.heal_entry(parent, &dir, name)
    }

    fn heal_xattrs(&mut self, gfid: Gfid) -> Res<Vec<(Bytes, Bytes)>> {
        let obj = self.find(gfid)?.0;
        let at = obj.at(&self.handles.private);
        let mut out = Vec::new();
        for name in at.list_xattr()?.into_iter().filter(|n| !check::is_private_xattr(n)) {
            let value = at.get_xattr(&name)?;
            out.push((name.into(), value.into()));
        }
        out.sort();
        Ok(out)
    }

    fn heal_next_data(&mut self, gfid: Gfid, offset: u64) -> Res<Option<(u64, u64)>> {
        let file = self.file(gfid)?;
        let start = match sys::seek(&file, offset, false) {
            Err(Errno::ENXIO) => return Ok(None),
            other => other?,
        };
        Ok(Some((start, sys::seek(&file, start, true)?)))
    }

    fn heal_read(&mut self, gfid: Gfid, offset: u64, len: usize) -> Res<Bytes> {
        let file = self.file(gfid)?;
        let mut buf = vec![0; len.min(crate::heal::CALL_BYTES_MAX)];
        let mut got = 0;
        while got < buf.len() {
            match file.read_at(&mut buf[got..], offset + got as u64) {
                Ok(0) => break,
                Ok(n) => got += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        buf.truncate(got);
        Ok(buf.into())
    }

    fn heal_lost(&mut self, gfid: Gfid, named: bool) -> Res<bool> {
        match self.handles.leaf(gfid, false) {
            Ok((_, stat)) => return Ok(named || stat.st_nlink == 1),
            Err(Errno::ENOENT) => {}
            Err(e) => return Err(e),
        }
        match self.handles.places(gfid) {
            Err(Errno::ENOENT) => return Ok(false),
            other => other?,
        };
        match self.heal_stat(gfid) {
            Err(Errno::ENOENT) => Ok(true),
            other => other.map(|_| false),
        }
    }

    fn heal_swept(&mut self, keep: bool) -> Res<()> {
        self.end_sweep(keep)
    }

    fn heal_limbo(&mut self) -> Res<Vec<Gfid>> {
        gfids_of(&sys::open_dir(&self.handles.private, b"limbo")?)
    }

    fn heal_make(&mut self, gfid: Gfid, kind: FileKind, rdev: u64, target: Option<&[u8]>) -> Res<()> {
        let target = target.unwrap_or_default();
        check::new_node(gfid, kind, target)?;
        if kind == FileKind::Dir {
            return Err(Errno::EINVAL);
        }
        if self.has_orphans {
            self.mark(&[gfid.bucket()])?;
            self.keep_orphan(gfid, false)?;
        }
        match self.find(gfid) {
            Ok((_, stat)) => {
                let attr = sys::attr(gfid, &stat);
                let same = attr.kind == kind
                    && match kind {
                        FileKind::Symlink => self.text_of(gfid)? == target,
                        FileKind::CharDevice | FileKind::BlockDevice => attr.rdev == rdev,
                        _ => true,
                    };
                return if same { Ok(()) } else { Err(Errno::EEXIST) };
            }
            Err(Errno::ENOENT) => {}
            Err(e) => return Err(e),
        }
        self.mark(&[gfid.bucket()])?;
        self.listing = None;
        self.make_nameless(&Self::new_node(gfid, kind, rdev, target), &[], None)
    }

    fn heal_place_dir(&mut self, gfid: Gfid, parent: Gfid, name: &[u8]) -> Res<Option<Place>> {
        check::name(parent, name)?;
        check::new_node(gfid, FileKind::Dir, b"")?;
        let dir = self.handles.dir(parent).map_err(|e| self.parent_error(parent, e))?;
        let to = DirPlace::At(parent, name.to_vec());
        let from = self.place_now(gfid)?;
        if from.as_ref() == Some(&to) {
            return Ok(from.map(Place::from));
        }
        let there = sys::stat_opt(&dir, name)?;
        if there.is_some() && At::Path(&dir, name).gfid()? == Some(gfid) && sys::is_dir(&sys::stat_at(&dir, name)?) && from.is_none() {
            // It stands there already, only the index did not know.
            self.mark(&[gfid.bucket(), parent.bucket()])?;
            self.handles.forget(gfid);
            self.handles.set_place(gfid, &[to])?;
            return Ok(None);
        }
        if there.is_some() {
            return Err(Errno::EEXIST);
        }
        match &from {
            Some(from) => self.move_dir(gfid, from, &to)?,
            None => {
                self.mark(&[gfid.bucket(), parent.bucket()])?;
                self.handles.forget(gfid);
                self.make_dir(parent, &dir, name, &Self::new_node(gfid, FileKind::Dir, 0, b""), &[], TimeSpec::default())?;
                self.data.named(gfid, parent);
                self.listing = None;
            }
        }
        Ok(from.map(Place::from))
    }

    fn heal_to_limbo(&mut self, gfid: Gfid) -> Res<Option<Place>> {
        if gfid == Gfid::ROOT {
            return Err(Errno::EINVAL);
        }
        let from = self.place_now(gfid)?.ok_or(Errno::ENOENT)?;
        if from != DirPlace::Limbo {
            self.move_dir(gfid, &from, &DirPlace::Limbo)?;
        }
        Ok(Some(from.into()))
    }

    fn heal_link(&mut self, parent: Gfid, name: &[u8], gfid: Gfid) -> Res<()> {
        check::name(parent, name)?;
        let dir = self.handles.dir(parent).map_err(|e| self.parent_error(parent, e))?;
        let (path, stat) = self.handles.leaf(gfid, self.has_orphans)?;
        if let Some(there) = sys::stat_opt(&dir, name)? {
            return if (there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino) { Ok(()) } else { Err(Errno::EEXIST) };
        }
        self.mark(&[parent.bucket(), gfid.bucket()])?;
        if path == orphan_path(gfid) {
            // It gets a name again, so it belongs into the index again.
            let to = leaf_path(gfid);
            self.handles.in_bucket(gfid, |private| sys::rename(private, &path, private, &to, 0))?;
        }
        sys::link(&self.handles.private, &leaf_path(gfid), &dir, name)?;
        self.data.named(gfid, parent);
        Ok(())
    }

    fn heal_unlink(&mut self, parent: Gfid, name: &[u8]) -> Res<()> {
        check::name(parent, name)?;
        let dir = self.handles.dir(parent).map_err(|e| self.parent_error(parent, e))?;
        let Some(entry) = self.heal_entry(parent, &dir, name)? else { return Ok(()) };
        if entry.is_dir && entry.gfid != STRANGER {
            return Err(Errno::EISDIR);
        }
        self.mark(&[parent.bucket(), entry.gfid.bucket()])?;
        self.listing = None;
        if entry.is_dir {
            self.rescue(&dir, name, 0)?;
        }
        Self::remove_stranger(&dir, name, 0)
    }

    fn heal_set_attr(&mut self, gfid: Gfid, attr: &ExactAttr) -> Res<()> {
        let (obj, stat) = self.find(gfid)?;
        self.mark(&[gfid.bucket()])?;
        let at = obj.at(&self.handles.private);
        at.chown(Some(attr.uid), Some(attr.gid))?;
        if sys::kind(&stat) != FileKind::Symlink {
            at.chmod(attr.mode)?;
        }
        at.set_times(Some(attr.atime), Some(attr.mtime))
    }

    fn heal_set_xattr(&mut self, gfid: Gfid, name: &[u8], value: Option<&[u8]>) -> Res<()> {
        check::xattr(name, value.unwrap_or_default())?;
        let obj = self.find(gfid)?.0;
        self.mark(&[gfid.bucket()])?;
        set_or_remove(obj.at(&self.handles.private), name, value)
    }

    fn heal_write(&mut self, gfid: Gfid, offset: u64, data: &Bytes) -> Res<()> {
        let file = self.file(gfid)?;
        self.mark(&[gfid.bucket()])?;
        sys::point();
        file.write_all_at(data, offset).map_err(Errno::from)
    }

    fn heal_punch(&mut self, gfid: Gfid, offset: u64, len: u64) -> Res<()> {
        let file = self.file(gfid)?;
        if len == 0 {
            return Ok(());
        }
        self.mark(&[gfid.bucket()])?;
        sys::fallocate(&file, FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE, offset, len)
    }

    fn heal_truncate(&mut self, gfid: Gfid, size: u64) -> Res<()> {
        let file = self.file(gfid)?;
        self.mark(&[gfid.bucket()])?;
        sys::truncate(&file, size)
    }

    fn heal_remove(&mut self, gfid: Gfid) -> Res<()> {
        if gfid == Gfid::ROOT {
            return Err(Errno::ENOTEMPTY);
        }
        self.listing = None;
        match self.handles.leaf(gfid, self.has_orphans) {
            Ok((path, stat)) => {
                if stat.st_nlink > 1 {
                    return Err(Errno::ENOTEMPTY);
                }
                self.mark(&[gfid.bucket()])?;
                sys::unlink(&self.handles.private, &path)?;
            }
            Err(Errno::ENOENT) => {
                if let Some(place) = self.place_now(gfid)? {
                    self.mark(&[gfid.bucket(), Self::bucket_of_place(&place, gfid)])?;
                    let (dir, name) = self.place_at(gfid, &place)?;
                    sys::rmdir(&dir, &name)?;
                }
                self.mark(&[gfid.bucket()])?;
                self.handles.remove_place(gfid)?;
            }
            Err(e) => return Err(e),
        }
        self.handles.forget(gfid);
        self.data.forget(gfid);
        Ok(())
    }

    fn heal_orphan(&mut self, gfid: Gfid) -> Res<()> {
        match self.handles.leaf(gfid, false) {
            Ok((path, stat)) if stat.st_nlink == 1 => {
                self.mark(&[gfid.bucket()])?;
                (self.has_orphans, self.listing) = (true, None);
                sys::rename(&self.handles.private, &path, &self.handles.private, &orphan_path(gfid), 0)
            }
            Ok(_) | Err(Errno::ENOENT) => Ok(()),
            Err(e) => Err(e),
        }
    }

    fn heal_signature(&mut self, gfid: Gfid) -> Res<Option<Bytes>> {
        let obj = self.find(gfid)?.0;
        match obj.at(&self.handles.private).get_xattr(XATTR_SUM.as_bytes()) {
            Ok(value) => Ok(Some(value.into())),
            Err(Errno::ENODATA) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn heal_set_signature(&mut self, gfid: Gfid, value: Option<&[u8]>) -> Res<()> {
        let obj = self.find(gfid)?.0;
        set_or_remove(obj.at(&self.handles.private), XATTR_SUM.as_bytes(), value)
    }
}

fn set_or_remove(at: At<'_>, name: &[u8], value: Option<&[u8]>) -> Res<()> {
    match value {
        Some(value) => at.set_xattr(name, value, 0),
        None => match at.remove_xattr(name) {
            Err(Errno::ENODATA) => Ok(()),
            other => other,
        },
    }
}
