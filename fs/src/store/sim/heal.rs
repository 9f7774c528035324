//! What heal needs of a brick.

use super::SimStore;
use super::node::Node;
use super::tree::Res;
use crate::fop::{Attr, Bucket, Errno, FileKind, Gfid};
use crate::heal::{ExactAttr, HealStore, NameEntry, Place};
use crate::store::{BrickStore, check};
use bytes::Bytes;
use std::collections::Bound;

fn bucket_of(place: &Place, gfid: Gfid) -> Bucket {
    match place {
        Place::At { parent, .. } => parent.bucket(),
        Place::Limbo => gfid.bucket(),
    }
}

impl SimStore {
    fn name_entry(&self, dir: Gfid, name: &[u8]) -> Res<Option<NameEntry>> {
        let found = self.tree.entry(dir, name)?;
        Ok(found.map(|(gfid, node)| NameEntry { name: Bytes::copy_from_slice(name), gfid, is_dir: node.is_dir() }))
    }

    fn move_dir(&mut self, gfid: Gfid, from: &Place, to: &Place) -> Res<()> {
        self.change(&[gfid.bucket(), bucket_of(from, gfid), bucket_of(to, gfid)], |t| {
            if let Place::At { parent, name } = from {
                t.leave(*parent, name)?;
            }
            match to {
                Place::At { parent, name } => t.enter(*parent, name, gfid),
                Place::Limbo => {
                    t.get_mut(gfid)?.place = Some(Place::Limbo);
                    Ok(())
                }
            }
        })
    }
}

impl HealStore for SimStore {
    fn heal_objects(&mut self, bucket: Bucket, after: Option<Gfid>, max: usize) -> Res<Vec<Gfid>> {
        let first = after.map_or(Bound::Included(Gfid::in_bucket(bucket, [0; 14])), Bound::Excluded);
        let last = Bound::Included(Gfid::in_bucket(bucket, [0xff; 14]));
        if after.is_some_and(|a| a >= Gfid::in_bucket(bucket, [0xff; 14])) {
            return Ok(Vec::new());
        }
        Ok(self.tree.nodes.range((first, last)).filter(|(_, n)| !n.orphan).map(|(g, _)| *g).take(max).collect())
    }

    fn heal_stat(&mut self, gfid: Gfid) -> Res<(Attr, Option<Place>)> {
        let node = self.tree.get(gfid)?;
        Ok((node.attr(gfid), node.place.clone()))
    }

    fn heal_readlink(&mut self, gfid: Gfid) -> Res<Bytes> {
        match self.tree.get(gfid)? {
            node if node.kind == FileKind::Symlink => Ok(node.target.clone()),
            _ => Err(Errno::EINVAL),
        }
    }

    fn heal_entries(&mut self, dir: Gfid, cookie: u64, max: usize) -> Res<(Vec<NameEntry>, u64)> {
        let node = self.tree.dir(dir)?;
        let mut entries = Vec::new();
        let mut last = cookie;
        for (cookie, name) in node.by_cookie.range(cookie.saturating_add(1)..) {
            if entries.len() >= max.max(1) {
                return Ok((entries, last));
            }
            last = *cookie;
            entries.extend(self.name_entry(dir, name)?);
        }
        Ok((entries, 0))
    }

    fn heal_lookup(&mut self, parent: Gfid, name: &[u8]) -> Res<Option<NameEntry>> {
        check::name_of_query(parent, name)?;
        self.name_entry(parent, name)
    }

    fn heal_xattrs(&mut self, gfid: Gfid) -> Res<Vec<(Bytes, Bytes)>> {
        Ok(self.tree.get(gfid)?.xattrs.iter().map(|(k, v)| (k.clone(), v.clone())).collect())
    }

    fn heal_next_data(&mut self, gfid: Gfid, offset: u64) -> Res<Option<(u64, u64)>> {
        let content = &self.tree.file(gfid)?.content;
        match content.seek(offset, false) {
            Ok(start) => Ok(Some((start, content.seek(start, true)?))),
            Err(Errno::ENXIO) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn heal_read(&mut self, gfid: Gfid, offset: u64, len: usize) -> Res<Bytes> {
        Ok(self.tree.file(gfid)?.content.read(offset, len.min(crate::heal::CALL_BYTES_MAX)))
    }

    /// Nobody gets at what is simulated but by changes.
    fn heal_lost(&mut self, _: Gfid, _: bool) -> Res<bool> {
        Ok(false)
    }

    fn heal_swept(&mut self, _: bool) -> Result<(), Errno> {
        Ok(())
    }

    fn heal_limbo(&mut self) -> Res<Vec<Gfid>> {
        Ok(self.tree.nodes.iter().filter(|(_, n)| n.place == Some(Place::Limbo)).map(|(g, _)| *g).collect())
    }

    fn heal_make(&mut self, gfid: Gfid, kind: FileKind, rdev: u64, target: Option<&[u8]>) -> Res<()> {
        let target = target.unwrap_or_default();
        check::new_node(gfid, kind, target)?;
        if kind == FileKind::Dir {
            return Err(Errno::EINVAL);
        }
        self.keep_orphan(gfid, false)?;
        if let Ok(node) = self.tree.get(gfid) {
            let device = matches!(kind, FileKind::CharDevice | FileKind::BlockDevice);
            let same = node.kind == kind && (kind != FileKind::Symlink || node.target == target) && (!device || node.rdev == rdev);
            return if same { Ok(()) } else { Err(Errno::EEXIST) };
        }
        if self.full {
            return Err(Errno::ENOSPC);
        }
        let mut node = Node::new(kind, if kind == FileKind::Symlink { 0o777 } else { 0o600 });
        node.target = Bytes::copy_from_slice(target);
        if matches!(kind, FileKind::CharDevice | FileKind::BlockDevice) {
            node.rdev = rdev;
        }
        self.change(&[gfid.bucket()], |t| {
            t.put(gfid, node);
            Ok(())
        })
    }

    fn heal_place_dir(&mut self, gfid: Gfid, parent: Gfid, name: &[u8]) -> Res<Option<Place>> {
        check::name(parent, name)?;
        check::new_node(gfid, FileKind::Dir, b"")?;
        self.tree.dir(parent)?;
        let to = Place::At { parent, name: Bytes::copy_from_slice(name) };
        let from = match self.tree.get(gfid) {
            Ok(node) if node.is_dir() => node.place.clone(),
            Ok(_) => return Err(Errno::EEXIST),
            Err(_) => None,
        };
        if from.as_ref() == Some(&to) {
            return Ok(from);
        }
        if self.tree.entry(parent, name)?.is_some() {
            return Err(Errno::EEXIST);
        }
        let Some(from) = from else {
            if self.full {
                return Err(Errno::ENOSPC);
            }
            self.change(&[gfid.bucket(), parent.bucket()], |t| {
                t.put(gfid, Node::new(FileKind::Dir, 0o700));
                t.enter(parent, name, gfid)
            })?;
            return Ok(None);
        };
        if self.tree.is_above(gfid, parent) {
            return Err(Errno::EINVAL);
        }
        self.move_dir(gfid, &from, &to)?;
        Ok(Some(from))
    }

    fn heal_to_limbo(&mut self, gfid: Gfid) -> Res<Option<Place>> {
        if gfid == Gfid::ROOT {
            return Err(Errno::EINVAL);
        }
        let from = self.tree.get(gfid)?.place.clone().ok_or(Errno::ENOENT)?;
        if from != Place::Limbo {
            self.move_dir(gfid, &from, &Place::Limbo)?;
        }
        Ok(Some(from))
    }

    fn heal_link(&mut self, parent: Gfid, name: &[u8], gfid: Gfid) -> Res<()> {
        check::name(parent, name)?;
        self.tree.dir(parent)?;
        if self.tree.get(gfid)?.is_dir() {
            return Err(Errno::ENOENT);
        }
        match self.tree.entry(parent, name)? {
            Some((there, _)) if there == gfid => return Ok(()),
            Some(_) => return Err(Errno::EEXIST),
            None => {}
        }
        self.change(&[parent.bucket(), gfid.bucket()], |t| {
            t.enter(parent, name, gfid)?;
            t.get_mut(gfid)?.orphan = false;
            Ok(())
        })
    }

    fn heal_unlink(&mut self, parent: Gfid, name: &[u8]) -> Res<()> {
        check::name(parent, name)?;
        let Some((gfid, node)) = self.tree.entry(parent, name)? else { return Ok(()) };
        if node.is_dir() {
            return Err(Errno::EISDIR);
        }
        self.change(&[parent.bucket(), gfid.bucket()], |t| t.leave(parent, name).map(|_| ()))
    }

    fn heal_set_attr(&mut self, gfid: Gfid, attr: &ExactAttr) -> Res<()> {
        self.change(&[gfid.bucket()], |t| {
            let node = t.get_mut(gfid)?;
            (node.uid, node.gid, node.atime, node.mtime) = (attr.uid, attr.gid, attr.atime, attr.mtime);
            if node.kind != FileKind::Symlink {
                node.mode = attr.mode & 0o7777;
            }
            Ok(())
        })
    }

    fn heal_set_xattr(&mut self, gfid: Gfid, name: &[u8], value: Option<&[u8]>) -> Res<()> {
        match self.change(&[gfid.bucket()], |t| t.set_xattr(gfid, name, value, 0)) {
            Err(Errno::ENODATA) if value.is_none() => Ok(()),
            other => other,
        }
    }

    fn heal_write(&mut self, gfid: Gfid, offset: u64, data: &Bytes) -> Res<()> {
        self.tree.file(gfid)?;
        if self.full {
            return Err(Errno::ENOSPC);
        }
        self.change(&[gfid.bucket()], |t| {
            t.get_mut(gfid)?.content.write(offset, data);
            Ok(())
        })
    }

    fn heal_punch(&mut self, gfid: Gfid, offset: u64, len: u64) -> Res<()> {
        self.tree.file(gfid)?;
        self.change(&[gfid.bucket()], |t| {
            t.get_mut(gfid)?.content.punch(offset, offset.saturating_add(len));
            Ok(())
        })
    }

    fn heal_truncate(&mut self, gfid: Gfid, size: u64) -> Res<()> {
        self.tree.file(gfid)?;
        self.change(&[gfid.bucket()], |t| {
            t.get_mut(gfid)?.content.truncate(size);
            Ok(())
        })
    }

    fn heal_remove(&mut self, gfid: Gfid) -> Res<()> {
        if gfid == Gfid::ROOT {
            return Err(Errno::ENOTEMPTY);
        }
        let Ok(node) = self.tree.get(gfid) else { return Ok(()) };
        if node.names > 0 || !node.entries.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        let place = node.place.clone();
        let bucket = place.as_ref().map_or(gfid.bucket(), |p| bucket_of(p, gfid));
        self.change(&[gfid.bucket(), bucket], |t| {
            if let Some(Place::At { parent, name }) = place {
                t.leave(parent, &name)?;
            }
            t.drop_node(gfid);
            Ok(())
        })
    }

    fn heal_orphan(&mut self, gfid: Gfid) -> Res<()> {
        if self.tree.get(gfid).is_ok_and(|n| !n.is_dir() && n.names == 0) {
            self.change(&[gfid.bucket()], |t| {
                t.get_mut(gfid)?.orphan = true;
                Ok(())
            })?;
        }
        Ok(())
    }

    fn heal_signature(&mut self, gfid: Gfid) -> Res<Option<Bytes>> {
        Ok(self.tree.get(gfid)?.signature.clone())
    }

    fn heal_set_signature(&mut self, gfid: Gfid, value: Option<&[u8]>) -> Res<()> {
        self.tree.get(gfid)?;
        self.change(&[], |t| {
            t.get_mut(gfid)?.signature = value.map(Bytes::copy_from_slice);
            Ok(())
        })
    }
}
