//! The simplest store that a heal can run on: a model in memory, with the checks that a real one makes.

use crate::fop::{Attr, Bucket, Errno, FileKind, Gfid, TimeSpec};
use crate::heal::{ExactAttr, HealStore, NameEntry, Place};
use bytes::Bytes;
use std::collections::BTreeMap;

pub const PAGE: u64 = 4096;

#[derive(Clone, PartialEq)]
pub struct Obj {
    pub kind: FileKind,
    pub mode: u32,
    pub uid: u32,
    pub mtime: TimeSpec,
    pub rdev: u64,
    pub size: u64,
    pub target: Option<Bytes>,
    pub xattrs: BTreeMap<Bytes, Bytes>,
    pub pages: BTreeMap<u64, Vec<u8>>,
    pub place: Option<Place>,
    pub entries: BTreeMap<Bytes, Gfid>,
    pub signature: Option<Bytes>,
}

impl std::fmt::Debug for Obj {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let pages: Vec<_> = self.pages.iter().map(|(n, p)| format!("{n}:{:x}", xxhash_rust::xxh3::xxh3_64(p))).collect();
        let Self { kind, mode, mtime, size, xattrs, place, entries, signature, .. } = self;
        write!(f, "{kind:?} {mode:o} {mtime:?} {size} {xattrs:?} {pages:?} {place:?} {entries:?} {signature:?}")
    }
}

impl Obj {
    pub fn new(kind: FileKind) -> Self {
        Self {
            kind,
            mode: 0o600,
            uid: 0,
            mtime: TimeSpec { sec: 9_999, nsec: 9 },
            rdev: 0,
            size: 0,
            target: None,
            xattrs: BTreeMap::new(),
            pages: BTreeMap::new(),
            place: None,
            entries: BTreeMap::new(),
            signature: None,
        }
    }
}

#[derive(Clone)]
pub struct Model {
    pub objs: BTreeMap<Gfid, Obj>,
    pub written: u64,
    pub clock: i64,
}

impl Model {
    pub fn new() -> Self {
        let mut root = Obj::new(FileKind::Dir);
        root.place = Some(Place::At { parent: Gfid::ROOT, name: Bytes::new() });
        Self { objs: BTreeMap::from([(Gfid::ROOT, root)]), written: 0, clock: 0 }
    }

    pub fn get(&self, g: Gfid) -> Result<&Obj, Errno> {
        self.objs.get(&g).ok_or(Errno::ENOENT)
    }

    pub fn get_mut(&mut self, g: Gfid) -> Result<&mut Obj, Errno> {
        self.objs.get_mut(&g).ok_or(Errno::ENOENT)
    }

    pub fn dir_mut(&mut self, g: Gfid) -> Result<&mut Obj, Errno> {
        let dir = self.objs.get_mut(&g).ok_or(Errno::ENOENT)?;
        if dir.kind == FileKind::Dir { Ok(dir) } else { Err(Errno::ENOTDIR) }
    }

    pub fn names_of(&self, g: Gfid) -> usize {
        self.objs.values().map(|o| o.entries.values().filter(|e| **e == g).count()).sum()
    }

    /// Whether `below` is `above` or lies in it.
    pub fn inside(&self, mut below: Gfid, above: Gfid) -> bool {
        loop {
            if below == above {
                return true;
            }
            match self.objs.get(&below).and_then(|o| o.place.clone()) {
                Some(Place::At { parent, .. }) if below != Gfid::ROOT => below = parent,
                _ => return false,
            }
        }
    }

    fn touch(&mut self, g: Gfid) {
        self.clock += 1;
        let sec = 1_000_000 + self.clock;
        if let Some(o) = self.objs.get_mut(&g) {
            o.mtime = TimeSpec { sec, nsec: 1 };
        }
    }

    pub fn detach(&mut self, dir: Gfid) -> Option<Place> {
        let before = self.objs.get_mut(&dir)?.place.take();
        if let Some(Place::At { parent, name }) = &before {
            if let Some(p) = self.objs.get_mut(parent) {
                p.entries.remove(name);
            }
            self.touch(*parent);
        }
        before
    }

    fn entry(&self, name: &Bytes, g: Gfid) -> NameEntry {
        NameEntry { name: name.clone(), gfid: g, is_dir: self.objs[&g].kind == FileKind::Dir }
    }

    /// What must be equal after a heal: everything but the model's own counters.
    pub fn picture(&self) -> BTreeMap<Gfid, Obj> {
        let mut objs = self.objs.clone();
        // A page of zeros is as good as a hole.
        objs.values_mut().for_each(|o| o.pages.retain(|_, p| p.iter().any(|b| *b != 0)));
        objs
    }

    pub fn fsck(&self) {
        for (g, o) in &self.objs {
            if o.kind == FileKind::Dir {
                let Some(Place::At { parent, name }) = &o.place else { panic!("{g} is in limbo") };
                assert!(*g == Gfid::ROOT || self.objs[parent].entries[name] == *g);
                assert!(self.inside(*g, Gfid::ROOT), "{g} is not below the root");
            }
            assert!(o.entries.values().all(|e| self.objs.contains_key(e)));
        }
    }
}

impl HealStore for Model {
    fn heal_objects(&mut self, bucket: Bucket, after: Option<Gfid>, max: usize) -> Result<Vec<Gfid>, Errno> {
        Ok(self.objs.keys().copied().filter(|g| g.bucket() == bucket && Some(*g) > after).take(max).collect())
    }

    fn heal_stat(&mut self, g: Gfid) -> Result<(Attr, Option<Place>), Errno> {
        let o = self.get(g)?;
        let place = (o.kind == FileKind::Dir).then(|| o.place.clone().unwrap_or(Place::Limbo));
        let attr = Attr {
            gfid: g,
            kind: o.kind,
            mode: o.mode,
            nlink: self.names_of(g) as u32,
            uid: o.uid,
            gid: 0,
            rdev: o.rdev,
            size: o.size,
            blocks: o.pages.len() as u64 * 8,
            atime: TimeSpec::default(),
            mtime: o.mtime,
            ctime: TimeSpec::default(),
        };
        Ok((attr, place))
    }

    fn heal_readlink(&mut self, g: Gfid) -> Result<Bytes, Errno> {
        self.get(g)?.target.clone().ok_or(Errno::EINVAL)
    }

    fn heal_entries(&mut self, dir: Gfid, cookie: u64, max: usize) -> Result<(Vec<NameEntry>, u64), Errno> {
        let max = max.min(2); // so that paging is tested
        let d = self.get(dir)?;
        let page: Vec<_> = d.entries.iter().skip(cookie as usize).take(max).map(|(n, g)| self.entry(n, *g)).collect();
        let next = if page.len() < max { 0 } else { cookie + page.len() as u64 };
        Ok((page, next))
    }

    fn heal_lookup(&mut self, parent: Gfid, name: &[u8]) -> Result<Option<NameEntry>, Errno> {
        Ok(self.get(parent)?.entries.get_key_value(name).map(|(n, g)| self.entry(n, *g)))
    }

    fn heal_xattrs(&mut self, g: Gfid) -> Result<Vec<(Bytes, Bytes)>, Errno> {
        Ok(self.get(g)?.xattrs.iter().map(|(k, v)| (k.clone(), v.clone())).collect())
    }

    fn heal_next_data(&mut self, g: Gfid, offset: u64) -> Result<Option<(u64, u64)>, Errno> {
        let o = self.get(g)?;
        let Some((first, _)) = o.pages.range(offset / PAGE..).next() else { return Ok(None) };
        let mut end = *first;
        while o.pages.contains_key(&end) {
            end += 1;
        }
        let (from, to) = ((first * PAGE).max(offset), (end * PAGE).min(o.size));
        Ok((from < to).then_some((from, to)))
    }

    fn heal_read(&mut self, g: Gfid, offset: u64, len: usize) -> Result<Bytes, Errno> {
        let o = self.get(g)?;
        let end = o.size.min(offset + len as u64);
        let zero = vec![0; PAGE as usize];
        let byte = |at: u64| o.pages.get(&(at / PAGE)).unwrap_or(&zero)[(at % PAGE) as usize];
        Ok((offset..end).map(byte).collect::<Vec<_>>().into())
    }

    fn heal_lost(&mut self, _: Gfid, _: bool) -> Result<bool, Errno> {
        Ok(false)
    }

    fn heal_swept(&mut self, _: bool) -> Result<(), Errno> {
        Ok(())
    }

    fn heal_limbo(&mut self) -> Result<Vec<Gfid>, Errno> {
        Ok(self.objs.iter().filter(|(_, o)| o.kind == FileKind::Dir && o.place.is_none()).map(|(g, _)| *g).collect())
    }

    fn heal_make(&mut self, g: Gfid, kind: FileKind, rdev: u64, target: Option<&[u8]>) -> Result<(), Errno> {
        let target = target.map(Bytes::copy_from_slice);
        let o = self.objs.entry(g).or_insert_with(|| Obj { rdev, target: target.clone(), ..Obj::new(kind) });
        if (o.kind, o.rdev, &o.target) == (kind, rdev, &target) { Ok(()) } else { Err(Errno::EEXIST) }
    }

    fn heal_place_dir(&mut self, g: Gfid, parent: Gfid, name: &[u8]) -> Result<Option<Place>, Errno> {
        if let Some(there) = self.dir_mut(parent)?.entries.get(name) {
            return if *there == g { Ok(self.heal_stat(g)?.1) } else { Err(Errno::EEXIST) };
        }
        if self.objs.contains_key(&g) && self.inside(parent, g) {
            return Err(Errno::EINVAL);
        }
        let was_there = self.objs.contains_key(&g);
        self.objs.entry(g).or_insert_with(|| Obj::new(FileKind::Dir));
        let before = self.detach(g);
        let name = Bytes::copy_from_slice(name);
        self.dir_mut(parent)?.entries.insert(name.clone(), g);
        self.touch(parent);
        self.dir_mut(g)?.place = Some(Place::At { parent, name });
        Ok(was_there.then(|| before.unwrap_or(Place::Limbo)))
    }

    fn heal_to_limbo(&mut self, g: Gfid) -> Result<Option<Place>, Errno> {
        assert_ne!(g, Gfid::ROOT);
        self.dir_mut(g)?;
        Ok(Some(self.detach(g).unwrap_or(Place::Limbo)))
    }

    fn heal_link(&mut self, parent: Gfid, name: &[u8], g: Gfid) -> Result<(), Errno> {
        assert_ne!(self.get(g)?.kind, FileKind::Dir);
        match self.dir_mut(parent)?.entries.get(name) {
            Some(there) if *there == g => return Ok(()),
            Some(_) => return Err(Errno::EEXIST),
            None => {}
        }
        self.dir_mut(parent)?.entries.insert(Bytes::copy_from_slice(name), g);
        self.touch(parent);
        Ok(())
    }

    fn heal_unlink(&mut self, parent: Gfid, name: &[u8]) -> Result<(), Errno> {
        if let Some(g) = self.dir_mut(parent)?.entries.get(name).copied() {
            if self.objs[&g].kind == FileKind::Dir {
                return Err(Errno::EISDIR);
            }
            self.dir_mut(parent)?.entries.remove(name);
            self.touch(parent);
        }
        Ok(())
    }

    fn heal_set_attr(&mut self, g: Gfid, attr: &ExactAttr) -> Result<(), Errno> {
        let o = self.get_mut(g)?;
        (o.mode, o.uid, o.mtime) = (attr.mode, attr.uid, attr.mtime);
        Ok(())
    }

    fn heal_set_xattr(&mut self, g: Gfid, name: &[u8], value: Option<&[u8]>) -> Result<(), Errno> {
        let o = self.get_mut(g)?;
        match value {
            Some(v) => drop(o.xattrs.insert(Bytes::copy_from_slice(name), Bytes::copy_from_slice(v))),
            None => drop(o.xattrs.remove(name)),
        }
        Ok(())
    }

    fn heal_write(&mut self, g: Gfid, offset: u64, data: &Bytes) -> Result<(), Errno> {
        self.written += data.len() as u64;
        let o = self.get_mut(g)?;
        for (at, byte) in (offset..).zip(data.iter()) {
            o.pages.entry(at / PAGE).or_insert_with(|| vec![0; PAGE as usize])[(at % PAGE) as usize] = *byte;
        }
        o.size = o.size.max(offset + data.len() as u64);
        self.touch(g);
        Ok(())
    }

    fn heal_punch(&mut self, g: Gfid, offset: u64, len: u64) -> Result<(), Errno> {
        let o = self.get_mut(g)?;
        assert!(offset.is_multiple_of(PAGE) && len.is_multiple_of(PAGE));
        o.pages.retain(|p, _| !(offset / PAGE..(offset + len) / PAGE).contains(p));
        self.touch(g);
        Ok(())
    }

    fn heal_truncate(&mut self, g: Gfid, size: u64) -> Result<(), Errno> {
        let o = self.get_mut(g)?;
        o.size = size;
        o.pages.retain(|p, _| p * PAGE < size);
        if let Some(last) = o.pages.get_mut(&(size / PAGE)) {
            last[(size % PAGE) as usize..].fill(0);
        }
        self.touch(g);
        Ok(())
    }

    fn heal_remove(&mut self, g: Gfid) -> Result<(), Errno> {
        let Some(o) = self.objs.get(&g) else { return Ok(()) };
        if !o.entries.is_empty() || (o.kind != FileKind::Dir && self.names_of(g) > 0) {
            return Err(Errno::ENOTEMPTY);
        }
        self.detach(g);
        self.objs.remove(&g);
        Ok(())
    }

    fn heal_orphan(&mut self, _: Gfid) -> Result<(), Errno> {
        Ok(())
    }

    fn heal_signature(&mut self, g: Gfid) -> Result<Option<Bytes>, Errno> {
        Ok(self.get(g)?.signature.clone())
    }

    fn heal_set_signature(&mut self, g: Gfid, value: Option<&[u8]>) -> Result<(), Errno> {
        self.get_mut(g)?.signature = value.map(Bytes::copy_from_slice);
        Ok(())
    }
}
