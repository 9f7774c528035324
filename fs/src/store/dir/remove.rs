//! Unlink, rmdir and rename. The name goes first, then what the index has; a cut in between leaves an object
//! without a name, which the next start puts away.

use super::DirStore;
use super::handles::{DirPlace, leaf_path, orphan_path};
use super::sys::{self, Res};
use crate::fop::{Errno, Gfid, RENAME_EXCHANGE, RENAME_NOREPLACE};
use crate::store::{OpCtx, check};
use rustix::fs::Stat;
use std::fs::File;

/// The old and the new place of a directory that is about to move.
struct Move {
    gfid: Gfid,
    from: DirPlace,
    to: DirPlace,
}

impl DirStore {
    pub(super) fn unlink(&mut self, parent: Gfid, name: &[u8], ctx: &OpCtx) -> Res<()> {
        check::name(parent, name)?;
        let dir = self.handles.dir(parent).map_err(|e| self.parent_error(parent, e))?;
        let (gfid, stat) = self.entry(&dir, name)?.ok_or(Errno::ENOENT)?;
        if sys::is_dir(&stat) {
            return Err(Errno::EISDIR);
        }
        self.mark(&[parent.bucket(), gfid.bucket()])?;
        let last = stat.st_nlink == 2;
        self.before_last_name(gfid, last)?;
        if let Err(e) = sys::unlink(&dir, name) {
            self.after_failure(gfid, last);
            return Err(e);
        }
        self.after_last_name(gfid, last);
        self.touched(&dir, ctx.time);
        Ok(())
    }

    /// An open object that is about to lose its last name moves from the index to the orphans, before.
    fn before_last_name(&mut self, gfid: Gfid, last: bool) -> Res<()> {
        if last && self.kept.contains(&gfid) {
            self.has_orphans = true;
            sys::rename(&self.handles.private, &leaf_path(gfid), &self.handles.private, &orphan_path(gfid), 0)?;
        }
        Ok(())
    }

    /// It kept its name after all.
    fn after_failure(&mut self, gfid: Gfid, last: bool) {
        if last && self.kept.contains(&gfid) {
            let _ = sys::rename(&self.handles.private, &orphan_path(gfid), &self.handles.private, &leaf_path(gfid), 0);
        }
    }

    /// An object that lost its last name and is not open leaves the index.
    fn after_last_name(&mut self, gfid: Gfid, last: bool) {
        if last && !self.kept.contains(&gfid) {
            // If this fails the object stays behind nameless; the next start puts it away.
            if let Err(e) = sys::unlink(&self.handles.private, &leaf_path(gfid)) {
                tracing::warn!(%gfid, error = %e, "remove a nameless object from the index");
            }
            self.handles.forget(gfid);
            self.data.forget(gfid);
        }
    }

    pub(super) fn rm_dir(&mut self, parent: Gfid, name: &[u8], ctx: &OpCtx) -> Res<()> {
        check::name(parent, name)?;
        let dir = self.handles.dir(parent).map_err(|e| self.parent_error(parent, e))?;
        let (gfid, stat) = self.entry(&dir, name)?.ok_or(Errno::ENOENT)?;
        if !sys::is_dir(&stat) {
            return Err(Errno::ENOTDIR);
        }
        self.mark(&[parent.bucket(), gfid.bucket()])?;
        sys::rmdir(&dir, name)?;
        self.dir_gone(gfid);
        self.touched(&dir, ctx.time);
        Ok(())
    }

    fn dir_gone(&mut self, gfid: Gfid) {
        if let Err(e) = self.handles.remove_place(gfid) {
            tracing::warn!(%gfid, error = %e, "remove a removed directory's place from the index");
        }
        self.handles.forget(gfid);
        self.data.forget(gfid);
    }

    pub(super) fn rename(&mut self, parent: Gfid, name: &[u8], to: Gfid, new: &[u8], flags: u32, ctx: &OpCtx) -> Res<()> {
        check::name(parent, name)?;
        check::name(to, new)?;
        check::rename_flags(flags)?;
        let dir = self.handles.dir(parent).map_err(|e| self.parent_error(parent, e))?;
        let to_dir = self.handles.dir(to).map_err(|e| self.parent_error(to, e))?;
        let source = self.entry(&dir, name)?.ok_or(Errno::ENOENT)?;
        let target = self.entry(&to_dir, new)?;
        if flags == RENAME_NOREPLACE && target.is_some() {
            return Err(Errno::EEXIST);
        }
        if flags == RENAME_EXCHANGE && target.is_none() {
            return Err(Errno::ENOENT);
        }
        if target.as_ref().is_some_and(|t| t.0 == source.0) {
            // Two names of one file: nothing happens, says POSIX.
            return Ok(());
        }
        let mut buckets = vec![parent.bucket(), to.bucket(), source.0.bucket()];
        buckets.extend(target.as_ref().map(|t| t.0.bucket()));
        self.mark(&buckets)?;
        if target.is_none() {
            self.displace(&to_dir, new)?;
        }
        let moves = moves(&source, target.as_ref().filter(|_| flags == RENAME_EXCHANGE), (parent, name), (to, new));
        let replaced = target.filter(|_| flags != RENAME_EXCHANGE);
        self.move_entry((&dir, name), (&to_dir, new), flags, &moves, replaced.as_ref())?;
        self.touched(&dir, ctx.time);
        self.touched(&to_dir, ctx.time);
        self.data.named(source.0, to);
        Ok(())
    }

    fn move_entry(&mut self, from: (&File, &[u8]), to: (&File, &[u8]), flags: u32, moves: &[Move], replaced: Option<&(Gfid, Stat)>) -> Res<()> {
        let lost = replaced.filter(|(_, stat)| !sys::is_dir(stat)).map(|(gfid, stat)| (*gfid, stat.st_nlink == 2));
        if let Some((gfid, last)) = lost {
            self.before_last_name(gfid, last)?;
        }
        // The index names both places of a directory while it moves, so that it is found wherever a cut leaves it.
        let renamed = moves
            .iter()
            .try_for_each(|m| self.handles.set_place(m.gfid, &[m.to.clone(), m.from.clone()]))
            .and_then(|()| sys::rename(from.0, from.1, to.0, to.1, flags));
        let done = renamed.is_ok();
        for m in moves {
            let place = if done { &m.to } else { &m.from };
            // Both places are as good; the next use settles it.
            let _ = self.handles.set_place(m.gfid, std::slice::from_ref(place));
        }
        match (replaced, lost) {
            (_, Some((gfid, last))) if done => self.after_last_name(gfid, last),
            (_, Some((gfid, last))) => self.after_failure(gfid, last),
            (Some((gfid, _)), None) if done => self.dir_gone(*gfid),
            _ => {}
        }
        renamed.map_err(|e| if e == Errno::EEXIST && flags == 0 { Errno::ENOTEMPTY } else { e })
    }
}

/// The directories that a rename moves.
fn moves(source: &(Gfid, Stat), other: Option<&(Gfid, Stat)>, from: (Gfid, &[u8]), to: (Gfid, &[u8])) -> Vec<Move> {
    let from = DirPlace::At(from.0, from.1.to_vec());
    let to = DirPlace::At(to.0, to.1.to_vec());
    let mut out = Vec::new();
    if sys::is_dir(&source.1) {
        out.push(Move { gfid: source.0, from: from.clone(), to: to.clone() });
    }
    if let Some(other) = other.filter(|o| sys::is_dir(&o.1)) {
        out.push(Move { gfid: other.0, from: to, to: from });
    }
    out
}
