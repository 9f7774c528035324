//! [`SimStore`]: a brick in memory, for the simulator. It answers as [`super::DirStore`] does, knows what is durable and
//! what is not, can lose power, and can be damaged.
//!
//! The model of durability is that of a journaling file system: changes of metadata become durable in the order in
//! which they were made; an fsync makes all before it durable; data that was not synced may be there, may be missing,
//! may be there in part. Identity and bitmap are durable at once.

mod heal;
mod node;
mod power;
mod tree;

use crate::fop::{Attr, Bucket, DirEntry, Errno, FileKind, Fop, FopResult, Gfid, PAYLOAD_BYTES_MAX, Reply, StatFs, TimeSpec};
use crate::store::{BrickMeta, BrickStore, BucketSet, DataDone, DataOp, OpCtx, StoreError, check};
use bytes::Bytes;
use node::Node;
use power::Journal;
use rand::Rng;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use std::collections::BTreeMap;
use std::sync::Arc;
use tree::{Res, Tree, new_node, xattr_namespace};

/// An operation under way, with what it may rely on.
#[derive(Clone)]
struct Pending {
    token: u64,
    op: DataOp,
    /// For syncs: the journal's length when it was submitted, and the object then.
    at: u64,
    image: Option<Arc<Node>>,
}

/// A brick in memory. Cloning it makes an independent copy: yesterday's backup, for instance.
#[derive(Clone)]
pub struct SimStore {
    meta: BrickMeta,
    dirty: BucketSet,
    tree: Tree,
    journal: Journal,
    pending: Vec<Pending>,
    done: Vec<(u64, DataDone)>,
    writing: BTreeMap<Gfid, (u32, TimeSpec)>,
    /// With a seed, operations end late and in any order.
    jitter: Option<SmallRng>,
    stalled: bool,
    intact: bool,
    full: bool,
    fail_sync: bool,
    latched: bool,
}

impl SimStore {
    /// A new, empty brick.
    #[must_use]
    pub fn new(meta: BrickMeta) -> Self {
        let tree = Tree::new();
        let journal = Journal::new(&tree);
        Self {
            meta,
            dirty: BucketSet::new(),
            tree,
            journal,
            pending: Vec::new(),
            done: Vec::new(),
            writing: BTreeMap::new(),
            jitter: None,
            stalled: false,
            intact: true,
            full: false,
            fail_sync: false,
            latched: false,
        }
    }

    /// With a seed, each [`BrickStore::reap`] ends some of the operations under way, in any order; without, all of
    /// them in the order of their submission.
    pub fn set_jitter(&mut self, seed: Option<u64>) {
        self.jitter = seed.map(SmallRng::seed_from_u64);
    }

    /// While it is stalled, no operation under way ends.
    pub fn set_stalled(&mut self, stalled: bool) {
        self.stalled = stalled;
    }

    /// Everything that needs space fails with `ENOSPC` while it is full.
    pub fn set_full(&mut self, full: bool) {
        self.full = full;
    }

    /// The next sync fails, and every one after it.
    pub fn fail_next_sync(&mut self) {
        self.fail_sync = true;
    }

    fn mark(&mut self, buckets: &[Bucket]) {
        self.dirty.extend(buckets.iter().copied());
    }

    /// Runs a change and writes it to the journal; one that fails has changed nothing.
    fn change<T>(&mut self, buckets: &[Bucket], run: impl FnOnce(&mut Tree) -> Res<T>) -> Res<T> {
        if !self.intact {
            return Err(Errno::EIO);
        }
        let result = run(&mut self.tree);
        if !self.tree.touched.is_empty() {
            self.mark(buckets);
            self.journal.write(&mut self.tree);
        }
        result
    }

    fn read_dir(&self, gfid: Gfid, cookie: u64, bytes: usize, plus: bool) -> FopResult {
        const ENTRY_BYTES: usize = 24;
        const ENTRY_PLUS_BYTES: usize = 152;
        let dir = self.tree.dir(gfid)?;
        let (mut entries, mut used) = (Vec::new(), 0);
        for (cookie, name) in dir.by_cookie.range(cookie.saturating_add(1)..) {
            let Some((id, node)) = self.tree.entry(gfid, name)? else { continue };
            let cost = name.len() + if plus { ENTRY_PLUS_BYTES } else { ENTRY_BYTES };
            if !entries.is_empty() && used + cost > bytes {
                return Ok(Reply::Entries { entries, end: false });
            }
            used += cost;
            entries.push(DirEntry { cookie: *cookie, name: name.clone(), gfid: id, kind: node.kind, attr: plus.then(|| node.attr(id)) });
        }
        Ok(Reply::Entries { entries, end: true })
    }

    fn get_xattr(&self, gfid: Gfid, name: &Bytes) -> FopResult {
        if check::is_private_xattr(name) {
            return Err(Errno::ENODATA);
        }
        check::xattr(name, b"")?;
        let node = self.tree.get(gfid)?;
        xattr_namespace(node.kind, name, Errno::ENODATA)?;
        node.xattrs.get(name).cloned().map(Reply::Data).ok_or(Errno::ENODATA)
    }

    /// What can be refused at once, as opening the file would.
    fn refuse(&self, op: &DataOp) -> Option<DataDone> {
        let dead = if self.intact { None } else { Some(Errno::EIO) };
        match op {
            DataOp::Read { len, .. } if *len as usize > PAYLOAD_BYTES_MAX => Some(DataDone::Read(Err(Errno::EINVAL))),
            DataOp::Read { gfid, .. } => dead.or(self.tree.file(*gfid).err()).map(|e| DataDone::Read(Err(e))),
            DataOp::Write { gfid, offset, data, .. } => {
                let fits = offset.checked_add(data.len() as u64).is_some_and(|end| i64::try_from(end).is_ok());
                let error = if fits { dead.or(self.tree.file(*gfid).err()) } else { Some(Errno::EFBIG) };
                error.or_else(|| self.full.then_some(Errno::ENOSPC)).map(|e| DataDone::Write(Err(e)))
            }
            DataOp::Fsync { .. } | DataOp::SyncAll if self.latched => Some(DataDone::Synced(Err(Errno::EIO))),
            DataOp::Fsync { gfid, .. } => match dead.or(self.tree.get(*gfid).err()) {
                Some(e) => Some(DataDone::Synced(Err(e))),
                None if matches!(self.tree.get(*gfid), Ok(n) if !matches!(n.kind, FileKind::File | FileKind::Dir)) => Some(DataDone::Synced(Err(Errno::EINVAL))),
                None => None,
            },
            DataOp::SyncAll => dead.map(|e| DataDone::Synced(Err(e))),
        }
    }

    fn finish(&mut self, p: Pending) {
        let done = match p.op {
            DataOp::Read { gfid, offset, len } => DataDone::Read(self.tree.file(gfid).map(|n| n.content.read(offset, len as usize))),
            DataOp::Write { gfid, offset, data, time } => DataDone::Write(self.finish_write(gfid, offset, &data, time)),
            DataOp::Fsync { .. } | DataOp::SyncAll if self.fail_sync => {
                (self.fail_sync, self.latched) = (false, true);
                DataDone::Synced(Err(Errno::EIO))
            }
            DataOp::Fsync { gfid, .. } => {
                self.journal.synced(p.at, p.image.map(|image| (gfid, image)));
                DataDone::Synced(Ok(()))
            }
            DataOp::SyncAll => {
                self.journal.synced_all(p.at);
                DataDone::Synced(Ok(()))
            }
        };
        self.done.push((p.token, done));
    }

    fn finish_write(&mut self, gfid: Gfid, offset: u64, data: &[u8], time: TimeSpec) -> Res<Attr> {
        let mut latest = time;
        if let Some((in_flight, max)) = self.writing.get_mut(&gfid) {
            latest = *max;
            *in_flight -= 1;
            if *in_flight == 0 {
                self.writing.remove(&gfid);
            }
        }
        self.change(&[gfid.bucket()], |tree| {
            tree.file(gfid)?;
            if !data.is_empty() {
                let node = tree.get_mut(gfid)?;
                node.content.write(offset, data);
                (node.mtime, node.ctime) = (latest, latest);
            }
            tree.attr(gfid)
        })
    }
}

impl BrickStore for SimStore {
    fn meta(&self) -> BrickMeta {
        self.meta
    }

    fn set_meta(&mut self, meta: BrickMeta) -> Result<(), StoreError> {
        if !self.intact {
            return Err(StoreError::Latched);
        }
        self.meta = meta;
        Ok(())
    }

    fn intact(&mut self) -> bool {
        self.intact
    }

    fn dirty(&self) -> &BucketSet {
        &self.dirty
    }

    fn mark_dirty(&mut self, bucket: Bucket) -> Res<()> {
        self.mark(&[bucket]);
        Ok(())
    }

    fn reset_dirty(&mut self, keep: &BucketSet) -> Res<()> {
        self.dirty = keep.clone();
        Ok(())
    }

    fn query(&mut self, fop: &Fop) -> FopResult {
        if !self.intact {
            return Err(Errno::ENOENT);
        }
        match fop {
            Fop::Lookup { parent, name } => {
                check::name_of_query(*parent, name)?;
                let (gfid, node) = self.tree.entry(*parent, name)?.ok_or(Errno::ENOENT)?;
                Ok(Reply::Attr(node.attr(gfid)))
            }
            Fop::GetAttr { gfid } | Fop::Open { gfid, .. } => self.tree.attr(*gfid).map(Reply::Attr),
            Fop::Release { .. } => Ok(Reply::Done),
            Fop::ReadLink { gfid } => match self.tree.get(*gfid)? {
                node if node.kind == FileKind::Symlink => Ok(Reply::Data(node.target.clone())),
                _ => Err(Errno::EINVAL),
            },
            Fop::ReadDir { gfid, cookie, bytes, plus } => self.read_dir(*gfid, *cookie, *bytes as usize, *plus),
            Fop::StatFs => Ok(Reply::StatFs(StatFs { blocks: 1 << 20, bfree: 1 << 19, bavail: 1 << 19, files: 1 << 20, ffree: 1 << 19, bsize: 4096, frsize: 4096, namelen: 255 })),
            Fop::GetXattr { gfid, name } => self.get_xattr(*gfid, name),
            Fop::ListXattr { gfid } => {
                let names = self.tree.get(*gfid)?.xattrs.keys().flat_map(|n| n.iter().copied().chain([0]));
                Ok(Reply::Data(names.collect::<Vec<u8>>().into()))
            }
            Fop::Lseek { gfid, offset, whence } => {
                let hole = match *whence {
                    3 => false,
                    4 => true,
                    _ => return Err(Errno::EINVAL),
                };
                self.tree.file(*gfid)?.content.seek(*offset, hole).map(Reply::Offset)
            }
            _ => Err(Errno::EINVAL),
        }
    }

    fn apply(&mut self, fop: &Fop, ctx: &OpCtx) -> FopResult {
        let time = ctx.time;
        match fop {
            Fop::Create { .. } | Fop::MkNod { .. } | Fop::MkDir { .. } | Fop::Symlink { .. } => {
                let (parent, name, gfid, node) = new_node(fop)?;
                if self.full && self.tree.entry(parent, name)?.is_none() {
                    return Err(Errno::ENOSPC);
                }
                self.change(&[parent.bucket(), gfid.bucket()], |t| t.make(parent, name, gfid, node, time)).map(Reply::Attr)
            }
            Fop::Link { gfid, parent, name } => {
                self.change(&[parent.bucket(), gfid.bucket()], |t| t.link(*gfid, *parent, name, time)).map(Reply::Attr)
            }
            Fop::Unlink { parent, name } | Fop::RmDir { parent, name } => {
                let object = self.tree.entry(*parent, name).ok().flatten().map_or(*parent, |(g, _)| g);
                let directory = matches!(fop, Fop::RmDir { .. });
                self.change(&[parent.bucket(), object.bucket()], |t| t.remove(*parent, name, directory, time)).map(|()| Reply::Done)
            }
            Fop::Rename { parent, name, new_parent, new_name, flags } => {
                let mut buckets = vec![parent.bucket(), new_parent.bucket()];
                for (p, n) in [(parent, name), (new_parent, new_name)] {
                    buckets.extend(self.tree.entry(*p, n).ok().flatten().map(|(g, _)| g.bucket()));
                }
                self.change(&buckets, |t| t.rename((*parent, name), (*new_parent, new_name), *flags, time)).map(|()| Reply::Done)
            }
            Fop::SetAttr { gfid, set } => self.change(&[gfid.bucket()], |t| t.set_attr(*gfid, set, time)).map(Reply::Attr),
            Fop::Fallocate { gfid, offset, len, mode } => {
                self.change(&[gfid.bucket()], |t| t.fallocate(*gfid, *offset, *len, *mode, time)).map(|()| Reply::Done)
            }
            Fop::SetXattr { gfid, name, value, flags } => {
                self.change(&[gfid.bucket()], |t| t.set_xattr(*gfid, name, Some(value), *flags)).map(|()| Reply::Done)
            }
            Fop::RemoveXattr { gfid, name } => self.change(&[gfid.bucket()], |t| t.set_xattr(*gfid, name, None, 0)).map(|()| Reply::Done),
            _ => Err(Errno::EINVAL),
        }
    }

    fn submit(&mut self, token: u64, op: DataOp) {
        if let Some(done) = self.refuse(&op) {
            self.done.push((token, done));
            return;
        }
        let mut image = None;
        match &op {
            DataOp::Write { gfid, time, .. } => {
                self.mark(&[gfid.bucket()]);
                let writing = self.writing.entry(*gfid).or_default();
                *writing = (writing.0 + 1, writing.1.max(*time));
            }
            DataOp::Fsync { gfid, .. } => image = self.tree.nodes.get(gfid).cloned(),
            DataOp::Read { .. } | DataOp::SyncAll => {}
        }
        self.pending.push(Pending { token, op, at: self.journal.len(), image });
    }

    fn reap(&mut self, out: &mut Vec<(u64, DataDone)>) {
        match self.jitter.take() {
            jitter if self.stalled => self.jitter = jitter,
            None => std::mem::take(&mut self.pending).into_iter().for_each(|p| self.finish(p)),
            Some(mut rng) => {
                for _ in 0..self.pending.len() {
                    if rng.random_bool(0.5) {
                        let p = self.pending.swap_remove(rng.random_range(0..self.pending.len()));
                        self.finish(p);
                    }
                }
                self.jitter = Some(rng);
            }
        }
        out.append(&mut self.done);
    }

    fn pending(&self) -> usize {
        self.pending.len() + self.done.len()
    }

    fn keep_orphan(&mut self, gfid: Gfid, keep: bool) -> Res<()> {
        if keep {
            self.tree.kept.insert(gfid);
            return Ok(());
        }
        self.tree.kept.remove(&gfid);
        if self.tree.get(gfid).is_ok_and(|n| n.orphan) {
            return self.change(&[], |t| {
                t.drop_node(gfid);
                Ok(())
            });
        }
        Ok(())
    }

    fn orphans(&mut self) -> Res<Vec<Gfid>> {
        Ok(self.tree.nodes.iter().filter(|(_, n)| n.orphan).map(|(g, _)| *g).collect())
    }
}

#[cfg(test)]
mod tests;
