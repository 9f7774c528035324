//! An object in memory.

use crate::fop::{Attr, Errno, FileKind, Gfid, TimeSpec};
use crate::heal::Place;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The unit of data and holes, as a common file system's block.
pub(super) const PAGE_BYTES: u64 = 4096;
/// What a disk writes wholly or not at all.
pub(super) const SECTOR_BYTES: usize = 512;

pub(super) type Page = [u8; PAGE_BYTES as usize];

/// A file's content: pages that were written, holes between them.
#[derive(Clone, Default)]
pub(super) struct Content {
    pub(super) pages: BTreeMap<u64, Arc<Page>>,
    pub(super) size: u64,
}

impl Content {
    /// Splits a range into (page, first byte, past the last byte).
    fn parts(offset: u64, end: u64) -> impl Iterator<Item = (u64, usize, usize)> {
        let pages = if end > offset { offset / PAGE_BYTES..end.div_ceil(PAGE_BYTES) } else { 0..0 };
        pages.map(move |p| {
            let start = offset.max(p * PAGE_BYTES) - p * PAGE_BYTES;
            let stop = end.min((p + 1) * PAGE_BYTES) - p * PAGE_BYTES;
            (p, start as usize, stop as usize)
        })
    }

    pub(super) fn read(&self, offset: u64, len: usize) -> Bytes {
        let end = self.size.min(offset.saturating_add(len as u64));
        let mut out = Vec::new();
        for (p, start, stop) in Self::parts(offset, end) {
            match self.pages.get(&p) {
                Some(page) => out.extend_from_slice(&page[start..stop]),
                None => out.resize(out.len() + stop - start, 0),
            }
        }
        out.into()
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        let end = offset + data.len() as u64;
        let mut rest = data;
        for (p, start, stop) in Self::parts(offset, end) {
            let page = self.pages.entry(p).or_insert_with(|| Arc::new([0; PAGE_BYTES as usize]));
            let (now, later) = rest.split_at(stop - start);
            Arc::make_mut(page)[start..stop].copy_from_slice(now);
            rest = later;
        }
        self.size = self.size.max(end);
    }

    pub(super) fn punch(&mut self, offset: u64, end: u64) {
        // Only pages that exist: a hole may be as long as a file can be.
        let touched: Vec<u64> = self.pages.range(offset / PAGE_BYTES..end.div_ceil(PAGE_BYTES)).map(|(p, _)| *p).collect();
        for p in touched {
            let (first, last) = (p * PAGE_BYTES, (p + 1) * PAGE_BYTES);
            if offset <= first && end >= last {
                self.pages.remove(&p);
            } else if let Some(page) = self.pages.get_mut(&p) {
                Arc::make_mut(page)[(offset.max(first) - first) as usize..(end.min(last) - first) as usize].fill(0);
            }
        }
    }

    pub(super) fn truncate(&mut self, size: u64) {
        if size < self.size {
            self.pages.split_off(&size.div_ceil(PAGE_BYTES));
            self.punch(size, size.next_multiple_of(PAGE_BYTES));
        }
        self.size = size;
    }

    /// `SEEK_DATA` or `SEEK_HOLE`.
    pub(super) fn seek(&self, offset: u64, hole: bool) -> Result<u64, Errno> {
        if offset >= self.size {
            return Err(Errno::ENXIO);
        }
        let first = offset / PAGE_BYTES;
        if hole {
            let page = (first..).find(|p| !self.pages.contains_key(p)).unwrap_or(u64::MAX / PAGE_BYTES);
            return Ok((page * PAGE_BYTES).max(offset).min(self.size));
        }
        let page = self.pages.range(first..).next().map(|(p, _)| *p * PAGE_BYTES).filter(|at| *at < self.size);
        page.map(|at| at.max(offset)).ok_or(Errno::ENXIO)
    }
}

/// An object.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) kind: FileKind,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) rdev: u64,
    pub(super) atime: TimeSpec,
    pub(super) mtime: TimeSpec,
    pub(super) ctime: TimeSpec,
    /// Names of a non-directory.
    pub(super) names: u32,
    /// Kept although it has no name.
    pub(super) orphan: bool,
    pub(super) xattrs: BTreeMap<Bytes, Bytes>,
    pub(super) signature: Option<Bytes>,
    pub(super) content: Content,
    pub(super) target: Bytes,
    /// Of a directory (the root's is itself).
    pub(super) place: Option<Place>,
    pub(super) entries: BTreeMap<Bytes, (u64, Gfid)>,
    pub(super) by_cookie: BTreeMap<u64, Bytes>,
    pub(super) subdirs: u32,
    next_cookie: u64,
}

impl Node {
    pub(super) fn new(kind: FileKind, mode: u32) -> Self {
        Self {
            kind,
            mode,
            uid: 0,
            gid: 0,
            rdev: 0,
            atime: TimeSpec::default(),
            mtime: TimeSpec::default(),
            ctime: TimeSpec::default(),
            names: 0,
            orphan: false,
            xattrs: BTreeMap::new(),
            signature: None,
            content: Content::default(),
            target: Bytes::new(),
            place: None,
            entries: BTreeMap::new(),
            by_cookie: BTreeMap::new(),
            subdirs: 0,
            next_cookie: 0,
        }
    }

    pub(super) fn is_dir(&self) -> bool {
        self.kind == FileKind::Dir
    }

    pub(super) fn enter(&mut self, name: &[u8], gfid: Gfid, is_dir: bool) {
        self.leave(name, false);
        self.next_cookie += 1;
        let name = Bytes::copy_from_slice(name);
        self.by_cookie.insert(self.next_cookie, name.clone());
        self.entries.insert(name, (self.next_cookie, gfid));
        self.subdirs += u32::from(is_dir);
    }

    pub(super) fn leave(&mut self, name: &[u8], is_dir: bool) {
        if let Some((cookie, _)) = self.entries.remove(name) {
            self.by_cookie.remove(&cookie);
            self.subdirs -= u32::from(is_dir);
        }
    }

    pub(super) fn attr(&self, gfid: Gfid) -> Attr {
        let (size, blocks) = match self.kind {
            FileKind::File => (self.content.size, self.content.pages.len() as u64 * (PAGE_BYTES / SECTOR_BYTES as u64)),
            FileKind::Dir => (PAGE_BYTES, PAGE_BYTES / SECTOR_BYTES as u64),
            FileKind::Symlink => (self.target.len() as u64, 0),
            _ => (0, 0),
        };
        Attr {
            gfid,
            kind: self.kind,
            mode: self.mode,
            nlink: if self.is_dir() { 2 + self.subdirs } else { self.names },
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev,
            size,
            blocks,
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
        }
    }

    /// A change of owner, with what it does to set-id bits.
    pub(super) fn chown(&mut self, uid: Option<u32>, gid: Option<u32>) {
        if uid.is_none() && gid.is_none() {
            return;
        }
        self.uid = uid.unwrap_or(self.uid);
        self.gid = gid.unwrap_or(self.gid);
        if !self.is_dir() {
            self.mode &= !0o4000;
            if self.mode & 0o010 != 0 {
                self.mode &= !0o2000;
            }
        }
    }
}
