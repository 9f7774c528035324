//! Creating objects: the object first, nameless in the index (a directory in `tmp`), its name last. A cut at any
//! point leaves nothing that a lookup finds.

use super::DirStore;
use super::handles::{DirPlace, leaf_path};
use super::sys::{self, At, Res};
use crate::fop::{Attr, Errno, FileKind, Fop, Gfid, RENAME_NOREPLACE, TimeSpec};
use crate::store::{OpCtx, XATTR_GFID, acl, check};
use std::fs::File;
use std::sync::Arc;

/// What is to be made.
pub(super) struct NewNode<'a> {
    pub(super) gfid: Gfid,
    pub(super) kind: FileKind,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) rdev: u64,
    pub(super) target: &'a [u8],
}

const XATTR_ACL_DEFAULT: &[u8] = b"system.posix_acl_default";
const XATTR_ACL_ACCESS: &[u8] = b"system.posix_acl_access";
const MODE_SETGID: u32 = 0o2000;

impl DirStore {
    /// Create, MkNod, MkDir, Symlink.
    pub(super) fn make(&mut self, fop: &Fop, ctx: &OpCtx) -> Res<Attr> {
        let none: &[u8] = b"";
        let (parent, name, node) = match fop {
            Fop::Create { parent, name, gfid, mode, uid, gid, .. } => {
                (parent, name, NewNode { gfid: *gfid, kind: FileKind::File, mode: *mode, uid: *uid, gid: *gid, rdev: 0, target: none })
            }
            Fop::MkNod { parent, name, gfid, kind, mode, rdev, uid, gid } => {
                (parent, name, NewNode { gfid: *gfid, kind: *kind, mode: *mode, uid: *uid, gid: *gid, rdev: *rdev, target: none })
            }
            Fop::MkDir { parent, name, gfid, mode, uid, gid } => {
                (parent, name, NewNode { gfid: *gfid, kind: FileKind::Dir, mode: *mode, uid: *uid, gid: *gid, rdev: 0, target: none })
            }
            Fop::Symlink { parent, name, gfid, target, uid, gid } => {
                (parent, name, NewNode { gfid: *gfid, kind: FileKind::Symlink, mode: 0o777, uid: *uid, gid: *gid, rdev: 0, target })
            }
            _ => return Err(Errno::EINVAL),
        };
        check::name(*parent, name)?;
        check::new_node(node.gfid, node.kind, node.target)?;
        if matches!(fop, Fop::MkNod { kind: FileKind::Dir | FileKind::Symlink, .. }) {
            return Err(Errno::EINVAL);
        }
        self.make_named(*parent, name, node, ctx.time)
    }

    fn make_named(&mut self, parent: Gfid, name: &[u8], mut node: NewNode<'_>, time: TimeSpec) -> Res<Attr> {
        let dir = self.handles.dir(parent).map_err(|e| self.parent_error(parent, e))?;
        match self.entry(&dir, name)? {
            // Our own work, done before: the first answer was lost.
            Some((gfid, stat)) if gfid == node.gfid && sys::kind(&stat) == node.kind => return Ok(sys::attr(gfid, &stat)),
            Some(_) => return Err(Errno::EEXIST),
            None => {}
        }
        self.mark(&[parent.bucket(), node.gfid.bucket()])?;
        self.displace(&dir, name)?;
        let inherited = self.inherit(&dir, &mut node)?;
        if node.kind == FileKind::Dir {
            self.make_dir(parent, &dir, name, &node, &inherited, time)?;
        } else {
            self.make_leaf(&dir, name, &node, &inherited, time)?;
        }
        self.touched(&dir, time);
        self.data.named(node.gfid, parent);
        let stat = sys::stat_at(&dir, name)?;
        Ok(sys::attr(node.gfid, &stat))
    }

    /// What a new object takes from its directory: the group of a set-gid directory, and a default ACL. Fixes
    /// owner and mode, returns the extended attributes to set.
    fn inherit(&self, dir: &File, node: &mut NewNode<'_>) -> Res<Vec<(&'static [u8], Vec<u8>)>> {
        let stat = sys::stat_fd(dir)?;
        if stat.st_mode & MODE_SETGID != 0 {
            node.gid = stat.st_gid;
            if node.kind == FileKind::Dir {
                node.mode |= MODE_SETGID;
            }
        }
        if node.kind == FileKind::Symlink {
            return Ok(Vec::new());
        }
        let default = match At::Fd(dir).get_xattr(XATTR_ACL_DEFAULT) {
            Ok(text) => text,
            Err(Errno::ENODATA | Errno::EOPNOTSUPP) => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let mut out = Vec::new();
        if let Some((access, mode)) = acl::inherit(&default, node.mode) {
            node.mode = mode;
            out.extend(access.map(|a| (XATTR_ACL_ACCESS, a)));
        }
        if node.kind == FileKind::Dir {
            out.push((XATTR_ACL_DEFAULT, default));
        }
        Ok(out)
    }

    /// Owner, then mode (a change of owner clears set-id bits), then gfid, ACLs and times.
    fn dress(at: At<'_>, node: &NewNode<'_>, xattrs: &[(&'static [u8], Vec<u8>)], time: Option<TimeSpec>) -> Res<()> {
        at.chown(Some(node.uid), Some(node.gid))?;
        if node.kind != FileKind::Symlink {
            at.chmod(node.mode)?;
        }
        at.set_xattr(XATTR_GFID.as_bytes(), &node.gfid.0, 0)?;
        for (name, value) in xattrs {
            at.set_xattr(name, value, 0)?;
        }
        match time {
            Some(t) => at.set_times(Some(t), Some(t)),
            None => Ok(()),
        }
    }

    /// Makes a nameless object in the index. One that is there without a name is what a cut change left.
    pub(super) fn make_nameless(&mut self, node: &NewNode<'_>, xattrs: &[(&'static [u8], Vec<u8>)], time: Option<TimeSpec>) -> Res<()> {
        let path = leaf_path(node.gfid);
        if let Some(stat) = sys::stat_opt(&self.handles.private, &path)? {
            if stat.st_nlink > 1 || sys::is_dir(&stat) {
                return Err(Errno::EEXIST);
            }
            sys::unlink(&self.handles.private, &path)?;
            self.handles.forget(node.gfid);
        }
        let orphan = self.has_orphans && sys::stat_opt(&self.handles.private, &super::handles::orphan_path(node.gfid))?.is_some();
        if orphan || (self.handles.places(node.gfid).is_ok() && self.handles.dir(node.gfid).is_ok()) {
            return Err(Errno::EEXIST);
        }
        let mut file = None;
        match node.kind {
            FileKind::File => file = Some(self.handles.in_bucket(node.gfid, |private| sys::create_file(private, &path))?),
            FileKind::Symlink => self.handles.in_bucket(node.gfid, |private| sys::symlink(node.target, private, &path))?,
            kind => self.handles.in_bucket(node.gfid, |private| sys::mknod(private, &path, kind, node.rdev))?,
        }
        let at = file.as_ref().map_or(At::Path(&self.handles.private, &path), At::Fd);
        let dressed = Self::dress(at, node, xattrs, time);
        if dressed.is_err() {
            let _ = sys::unlink(&self.handles.private, &path);
        }
        dressed
    }

    fn make_leaf(&mut self, dir: &File, name: &[u8], node: &NewNode<'_>, xattrs: &[(&'static [u8], Vec<u8>)], time: TimeSpec) -> Res<()> {
        self.make_nameless(node, xattrs, Some(time))?;
        let path = leaf_path(node.gfid);
        let linked = sys::link(&self.handles.private, &path, dir, name);
        if linked.is_err() {
            let _ = sys::unlink(&self.handles.private, &path);
        }
        linked
    }

    /// Makes a directory in `tmp`, says in the index where it will be, and puts it there.
    pub(super) fn make_dir(&mut self, parent: Gfid, dir: &File, name: &[u8], node: &NewNode<'_>, xattrs: &[(&'static [u8], Vec<u8>)], time: TimeSpec) -> Res<()> {
        let known = self.handles.leaf(node.gfid, true).is_ok() || (self.handles.places(node.gfid).is_ok() && self.handles.dir(node.gfid).is_ok());
        if known {
            return Err(Errno::EEXIST);
        }
        let tmp = format!("tmp/{}", node.gfid).into_bytes();
        let private = Arc::clone(&self.handles.private);
        match sys::mkdir(&private, &tmp) {
            Err(Errno::EEXIST) => sys::rmdir(&private, &tmp).and_then(|()| sys::mkdir(&private, &tmp))?,
            other => other?,
        }
        let new = sys::open_dir(&private, &tmp);
        let placed = new.and_then(|new| {
            Self::dress(At::Fd(&new), node, xattrs, Some(time))?;
            self.handles.set_place(node.gfid, &[DirPlace::At(parent, name.to_vec())])?;
            sys::rename(&private, &tmp, dir, name, RENAME_NOREPLACE)?;
            Ok(new)
        });
        match placed {
            Ok(new) => {
                self.handles.remember_dir(node.gfid, Arc::new(new));
                Ok(())
            }
            Err(e) => {
                let _ = sys::rmdir(&private, &tmp);
                let _ = self.handles.remove_place(node.gfid);
                Err(e)
            }
        }
    }

    /// Link.
    pub(super) fn link(&mut self, gfid: Gfid, parent: Gfid, name: &[u8], ctx: &OpCtx) -> Res<Attr> {
        check::name(parent, name)?;
        let dir = self.handles.dir(parent).map_err(|e| self.parent_error(parent, e))?;
        let path = match self.handles.leaf(gfid, false) {
            Ok((path, _)) => path,
            Err(Errno::ENOENT) if self.handles.dir(gfid).is_ok() => return Err(Errno::EPERM),
            Err(e) => return Err(e),
        };
        match self.entry(&dir, name)? {
            Some((there, stat)) if there == gfid => return Ok(sys::attr(gfid, &stat)),
            Some(_) => return Err(Errno::EEXIST),
            None => {}
        }
        self.mark(&[parent.bucket(), gfid.bucket()])?;
        self.displace(&dir, name)?;
        sys::link(&self.handles.private, &path, &dir, name)?;
        self.touched(&dir, ctx.time);
        self.data.named(gfid, parent);
        self.attr_of(gfid)
    }

    /// What stands in a new name's way and is not ours goes to `lost`, where a human may look at it.
    pub(super) fn displace(&self, dir: &File, name: &[u8]) -> Res<()> {
        const TRIES_MAX: u32 = 10_000;
        if sys::stat_opt(dir, name)?.is_none() {
            return Ok(());
        }
        for n in 0..TRIES_MAX {
            let mut to = format!("lost/{n}-").into_bytes();
            to.extend_from_slice(&name[..name.len().min(200)]);
            match sys::rename(dir, name, &self.handles.private, &to, RENAME_NOREPLACE) {
                Err(Errno::EEXIST) => {}
                other => {
                    tracing::warn!(to = %String::from_utf8_lossy(&to), "moved what is not ours out of the way of a new name");
                    return other;
                }
            }
        }
        Err(Errno::EEXIST)
    }

    /// A directory's entries changed.
    pub(super) fn touched(&mut self, dir: &File, time: TimeSpec) {
        // Replicas compare it; a failure here is a failing disk, which the next change meets too.
        if let Err(e) = At::Fd(dir).set_times(None, Some(time)) {
            tracing::warn!(error = %e, "set a directory's mtime");
        }
        self.listing = None;
    }
}
