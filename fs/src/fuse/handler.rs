//! [`fuser::Filesystem`] over a [`Volume`].

use super::MountOptions;
use super::convert::{errno, file_attr, file_type, node_kind, time_or_now};
use super::dirs::{DOT, DOTDOT, Dirs};
use super::fences::{FENCE_IOCTL, Fences};
use super::nodes::Nodes;
use crate::fop::{Attr, DirEntry, Errno, FileKind, Fop, Gfid, Reply, SetAttr, TimeSpec, XATTR_FENCE};
use crate::volume::Volume;
use bytes::Bytes;
use fuser::{
    AccessFlags, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

/// Bytes of names and attributes that one listing request asks the servers for.
const LISTING_BYTES: u32 = 128 << 10;
/// Requests that the kernel may have in flight in the background (read-ahead, asynchronous writes).
const BACKGROUND_MAX: u16 = 64;

/// A volume as a FUSE file system.
pub struct VolumeFs {
    volume: Arc<dyn Volume>,
    options: MountOptions,
    nodes: Nodes,
    dirs: Dirs,
    fences: Fences,
}

impl std::fmt::Debug for VolumeFs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VolumeFs").field("options", &self.options).finish_non_exhaustive()
    }
}

impl VolumeFs {
    pub(super) fn new(volume: Arc<dyn Volume>, options: MountOptions) -> Self {
        Self { volume, options, nodes: Nodes::default(), dirs: Dirs::default(), fences: Fences::default() }
    }

    fn call(&self, fop: &Fop) -> Result<Reply, Errno> {
        self.volume.call(fop, &[]).map(|(reply, _)| reply)
    }

    fn call_attr(&self, fop: &Fop) -> Result<Attr, Errno> {
        match self.call(fop)? {
            Reply::Attr(attr) => Ok(attr),
            other => Err(unexpected(fop, &other)),
        }
    }

    /// Puts a token on a handle, once the file's fence is as high.
    fn fence(&self, ino: INodeNo, fh: FileHandle, token: u64) -> Result<(), Errno> {
        let gfid = self.nodes.gfid(ino)?;
        let (name, value) = (Bytes::from_static(XATTR_FENCE), Bytes::from(token.to_string()));
        self.call(&Fop::SetXattr { gfid, name, value, flags: 0 })?;
        self.fences.set(fh.0, token);
        Ok(())
    }

    fn call_data(&self, fop: &Fop) -> Result<Bytes, Errno> {
        match self.call(fop)? {
            Reply::Data(data) => Ok(data),
            other => Err(unexpected(fop, &other)),
        }
    }

    fn reply_entry(&self, result: Result<Attr, Errno>, reply: ReplyEntry) {
        match result {
            Ok(attr) => {
                let ino = self.nodes.looked_up(&attr);
                reply.entry_with_ttls(&self.options.attribute_timeout, &self.options.entry_timeout, &file_attr(ino, &attr), Generation(0));
            }
            Err(e) => reply.error(errno(e)),
        }
    }

    /// A fresh gfid for `name` in `parent`: files share their parent's bucket, directories are spread.
    fn new_gfid(parent: Gfid, name: &[u8], kind: FileKind) -> Gfid {
        let bucket = if kind == FileKind::Dir { Gfid::directory_bucket(parent, name) } else { parent.bucket() };
        Gfid::in_bucket(bucket, rand::random())
    }

    fn make(&self, req: &Request, parent: INodeNo, name: &OsStr, kind: FileKind, mode: u32, rdev: u64) -> Result<Attr, Errno> {
        let parent = self.nodes.gfid(parent)?;
        let gfid = Self::new_gfid(parent, name.as_bytes(), kind);
        let (name, gid, mode) = self.inherit(req, parent, name, kind, mode)?;
        let uid = req.uid();
        self.call_attr(&match kind {
            FileKind::Dir => Fop::MkDir { parent, name, gfid, mode, uid, gid },
            _ => Fop::MkNod { parent, name, gfid, kind, mode, rdev, uid, gid },
        })
    }

    /// Group and mode of a new object: a set-group-id directory hands its group down (inode_init_owner in the kernel).
    fn inherit(&self, req: &Request, parent: Gfid, name: &OsStr, kind: FileKind, mode: u32) -> Result<(Bytes, u32, u32), Errno> {
        let name = Bytes::copy_from_slice(name.as_bytes());
        let mode = mode & 0o7777;
        let (dir_mode, dir_gid) = match self.nodes.directory(parent) {
            Some(known) => known,
            None => self.call_attr(&Fop::GetAttr { gfid: parent }).map(|dir| (dir.mode, dir.gid))?,
        };
        if dir_mode & 0o2000 == 0 {
            return Ok((name, req.gid(), mode));
        }
        Ok((name, dir_gid, if kind == FileKind::Dir { mode | 0o2000 } else { mode }))
    }

    /// A change of content by somebody without privileges takes set-id bits away, as the kernel asks.
    fn drop_set_id(&self, gfid: Gfid) -> Result<(), Errno> {
        let attr = self.call_attr(&Fop::GetAttr { gfid })?;
        let mut mode = attr.mode & !0o4000;
        if attr.mode & 0o0010 != 0 {
            mode &= !0o2000;
        }
        if mode != attr.mode {
            self.call(&Fop::SetAttr { gfid, set: SetAttr { mode: Some(mode), ..SetAttr::default() } })?;
        }
        Ok(())
    }

    /// Feeds entries after `offset` to `add` until it says that the kernel's buffer is full.
    fn list(
        &self,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        plus: bool,
        mut add: impl FnMut(&DirEntry, u64) -> bool,
    ) -> Result<(), Errno> {
        let gfid = self.nodes.gfid(ino)?;
        let stream = self.dirs.get(fh.0).ok_or(Errno::EBADF)?;
        let mut stream = stream.lock().expect("no panic holds it");
        for (at, next, name) in [(0, DOT, &b"."[..]), (DOT, DOTDOT, b"..")] {
            if (offset == 0 || offset == DOT) && offset <= at {
                let dot = DirEntry { cookie: next, name: Bytes::from_static(name), gfid, kind: FileKind::Dir, attr: None };
                if add(&dot, next) {
                    return Ok(());
                }
            }
        }
        let position = if matches!(offset, 0 | DOT | DOTDOT) { 0 } else { offset };
        // A rewind must see the directory anew; going on where the last answer stopped need not ask again.
        if position == 0 || stream.position != position || stream.plus != plus {
            stream.ahead.clear();
            stream.end = false;
            stream.position = position;
            stream.plus = plus;
        }
        loop {
            while let Some(entry) = stream.ahead.front() {
                if add(entry, entry.cookie) {
                    return Ok(());
                }
                stream.position = entry.cookie;
                stream.ahead.pop_front();
            }
            if stream.end {
                return Ok(());
            }
            let fop = Fop::ReadDir { gfid, cookie: stream.position, bytes: LISTING_BYTES, plus };
            match self.call(&fop)? {
                Reply::Entries { entries, end } => {
                    stream.end = end || entries.is_empty();
                    stream.ahead = entries.into();
                }
                other => return Err(unexpected(&fop, &other)),
            }
        }
    }
}

fn unexpected(fop: &Fop, reply: &Reply) -> Errno {
    tracing::error!(?fop, ?reply, "the server answered with the wrong kind of reply");
    Errno::EIO
}

fn empty(result: Result<Reply, Errno>, reply: ReplyEmpty) {
    match result {
        Ok(_) => reply.ok(),
        Err(e) => reply.error(errno(e)),
    }
}

fn xattr(result: Result<Bytes, Errno>, size: u32, reply: ReplyXattr) {
    match result {
        Ok(data) if size == 0 => reply.size(u32::try_from(data.len()).unwrap_or(u32::MAX)),
        Ok(data) if data.len() <= size as usize => reply.data(&data),
        Ok(_) => reply.error(fuser::Errno::ERANGE),
        Err(e) => reply.error(errno(e)),
    }
}

impl Filesystem for VolumeFs {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2
            | InitFlags::FUSE_CACHE_SYMLINKS;
        // What the kernel lacks, it does without.
        let _ = config.add_capabilities(wanted & config.capabilities());
        let payload = u32::try_from(crate::fop::PAYLOAD_BYTES_MAX).expect("1 MiB");
        let _ = config.set_max_write(payload);
        let _ = config.set_max_readahead(payload);
        let _ = config.set_max_background(BACKGROUND_MAX);
        Ok(())
    }

    fn destroy(&mut self) {
        self.volume.close();
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let result = self
            .nodes
            .gfid(parent)
            .and_then(|parent| self.call_attr(&Fop::Lookup { parent, name: Bytes::copy_from_slice(name.as_bytes()) }));
        self.reply_entry(result, reply);
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.nodes.forget(ino, nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.nodes.gfid(ino).and_then(|gfid| self.call_attr(&Fop::GetAttr { gfid })) {
            Ok(attr) => {
                self.nodes.seen(&attr);
                reply.attr(&self.options.attribute_timeout, &file_attr(ino, &attr));
            }
            Err(e) => reply.error(errno(e)),
        }
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let result = self.nodes.gfid(ino).and_then(|gfid| {
            let takes_set_id = mode.is_none() && (uid.is_some() || gid.is_some() || (size.is_some() && req.uid() != 0));
            if takes_set_id && self.call_attr(&Fop::GetAttr { gfid })?.kind == FileKind::File {
                self.drop_set_id(gfid)?;
            }
            let set =
                SetAttr { mode: mode.map(|m| m & 0o7777), uid, gid, size, atime: atime.map(time_or_now), mtime: mtime.map(time_or_now) };
            let fop = Fop::SetAttr { gfid, set };
            match self.volume.call_fenced(&fop, &[], fh.map_or(0, |fh| self.fences.of(fh.0)))? {
                (Reply::Attr(attr), _) => Ok(attr),
                (other, _) => Err(unexpected(&fop, &other)),
            }
        });
        match result {
            Ok(attr) => {
                self.nodes.seen(&attr);
                reply.attr(&self.options.attribute_timeout, &file_attr(ino, &attr));
            }
            Err(e) => reply.error(errno(e)),
        }
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.nodes.gfid(ino).and_then(|gfid| self.call_data(&Fop::ReadLink { gfid })) {
            Ok(target) => reply.data(&target),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn mknod(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32, reply: ReplyEntry) {
        let Some(kind) = node_kind(mode) else { return reply.error(fuser::Errno::EINVAL) };
        self.reply_entry(self.make(req, parent, name, kind, mode & !umask, u64::from(rdev)), reply);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        self.reply_entry(self.make(req, parent, name, FileKind::Dir, mode & !umask, 0), reply);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let result =
            self.nodes.gfid(parent).and_then(|parent| self.call(&Fop::Unlink { parent, name: Bytes::copy_from_slice(name.as_bytes()) }));
        empty(result, reply);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let result =
            self.nodes.gfid(parent).and_then(|parent| self.call(&Fop::RmDir { parent, name: Bytes::copy_from_slice(name.as_bytes()) }));
        empty(result, reply);
    }

    fn symlink(&self, req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry) {
        let result = self.nodes.gfid(parent).and_then(|parent| {
            let (name, gid, _) = self.inherit(req, parent, link_name, FileKind::Symlink, 0o777)?;
            let gfid = Self::new_gfid(parent, &name, FileKind::Symlink);
            let target = Bytes::copy_from_slice(target.as_os_str().as_bytes());
            self.call_attr(&Fop::Symlink { parent, name, gfid, target, uid: req.uid(), gid })
        });
        self.reply_entry(result, reply);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let result = self.nodes.gfid(parent).and_then(|parent| {
            self.call(&Fop::Rename {
                parent,
                name: Bytes::copy_from_slice(name.as_bytes()),
                new_parent: self.nodes.gfid(newparent)?,
                new_name: Bytes::copy_from_slice(newname.as_bytes()),
                flags: flags.bits(),
            })
        });
        empty(result, reply);
    }

    fn link(&self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let result = self.nodes.gfid(ino).and_then(|gfid| {
            let parent = self.nodes.gfid(newparent)?;
            self.call_attr(&Fop::Link { gfid, parent, name: Bytes::copy_from_slice(newname.as_bytes()) })
        });
        self.reply_entry(result, reply);
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.nodes.gfid(ino).and_then(|gfid| self.call(&Fop::Open { gfid, flags: flags.0.cast_unsigned() })) {
            Ok(_) => reply.opened(FileHandle(self.fences.open()), FopenFlags::empty()),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.nodes.gfid(ino).and_then(|gfid| self.volume.call(&Fop::Read { gfid, offset, len: size }, &[])) {
            Ok((_, data)) => reply.data(&data),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let result = self.nodes.gfid(ino).and_then(|gfid| {
            if write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID) {
                self.drop_set_id(gfid)?;
            }
            let fop = Fop::Write { gfid, offset };
            match self.volume.call_fenced(&fop, data, self.fences.of(fh.0))? {
                (Reply::Written { len, .. }, _) => Ok(len),
                (other, _) => Err(unexpected(&fop, &other)),
            }
        });
        match result {
            Ok(len) => reply.written(len),
            Err(e) => reply.error(errno(e)),
        }
    }

    /// Writes are at the servers before they return, so that closing has nothing left to do.
    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.fences.close(fh.0);
        empty(self.nodes.gfid(ino).and_then(|gfid| self.call(&Fop::Release { gfid })), reply);
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        empty(self.nodes.gfid(ino).and_then(|gfid| self.call(&Fop::Fsync { gfid, data_only: datasync })), reply);
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(self.dirs.open()), FopenFlags::empty());
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let result = self.list(ino, fh, offset, false, |e, next| {
            reply.add(self.nodes.number(e.gfid), next, file_type(e.kind), OsStr::from_bytes(&e.name))
        });
        match result {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn readdirplus(&self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let (entry_ttl, attr_ttl) = (self.options.entry_timeout, self.options.attribute_timeout);
        let result = self.list(ino, fh, offset, true, |e, next| {
            let name = OsStr::from_bytes(&e.name);
            if e.name.as_ref() == b"." || e.name.as_ref() == b".." {
                // The kernel takes the name and the number alone; no lookup is counted.
                return reply.add(
                    ino,
                    next,
                    name,
                    &std::time::Duration::ZERO,
                    &file_attr(self.nodes.number(e.gfid), &dot_attr(e.gfid)),
                    Generation(0),
                );
            }
            // Gone since the listing was made: nothing to show.
            let Some(attr) = e.attr.as_ref() else { return false };
            let ino = self.nodes.looked_up(attr);
            let full = reply.add(ino, next, name, &entry_ttl.min(attr_ttl), &file_attr(ino, attr), Generation(0));
            if full {
                self.nodes.forget(ino, 1);
            }
            full
        });
        match result {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn releasedir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.dirs.close(fh.0);
        reply.ok();
    }

    fn fsyncdir(&self, req: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.fsync(req, ino, fh, datasync, reply);
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self.call(&Fop::StatFs) {
            Ok(Reply::StatFs(s)) => reply.statfs(s.blocks, s.bfree, s.bavail, s.files, s.ffree, s.bsize, s.namelen, s.frsize),
            Ok(other) => reply.error(errno(unexpected(&Fop::StatFs, &other))),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn setxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, value: &[u8], flags: i32, _position: u32, reply: ReplyEmpty) {
        let result = self.nodes.gfid(ino).and_then(|gfid| {
            self.call(&Fop::SetXattr {
                gfid,
                name: Bytes::copy_from_slice(name.as_bytes()),
                value: Bytes::copy_from_slice(value),
                flags: flags.cast_unsigned(),
            })
        });
        empty(result, reply);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let result =
            self.nodes.gfid(ino).and_then(|gfid| self.call_data(&Fop::GetXattr { gfid, name: Bytes::copy_from_slice(name.as_bytes()) }));
        xattr(result, size, reply);
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        xattr(self.nodes.gfid(ino).and_then(|gfid| self.call_data(&Fop::ListXattr { gfid })), size, reply);
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let result =
            self.nodes.gfid(ino).and_then(|gfid| self.call(&Fop::RemoveXattr { gfid, name: Bytes::copy_from_slice(name.as_bytes()) }));
        empty(result, reply);
    }

    /// The kernel itself checks permissions (`default_permissions`); only the object's existence is left to see.
    fn access(&self, _req: &Request, ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        empty(self.nodes.gfid(ino).and_then(|gfid| self.call(&Fop::GetAttr { gfid })), reply);
    }

    fn create(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, flags: i32, reply: ReplyCreate) {
        let result = self.nodes.gfid(parent).and_then(|parent| {
            let (name, gid, mode) = self.inherit(req, parent, name, FileKind::File, mode & !umask)?;
            let gfid = Self::new_gfid(parent, &name, FileKind::File);
            let made = self.call_attr(&Fop::Create { parent, name: name.clone(), gfid, mode, uid: req.uid(), gid, open: true });
            if made != Err(Errno::EEXIST) || flags.cast_unsigned() & rustix::fs::OFlags::EXCL.bits() != 0 {
                return made;
            }
            // Another client was faster: without O_EXCL that is an open of what it made.
            let attr = self.call_attr(&Fop::Lookup { parent, name })?;
            self.call(&Fop::Open { gfid: attr.gfid, flags: flags.cast_unsigned() })?;
            Ok(attr)
        });
        match result {
            Ok(attr) => {
                let ino = self.nodes.looked_up(&attr);
                reply.created(&self.options.attribute_timeout, &file_attr(ino, &attr), Generation(0), FileHandle(self.fences.open()), FopenFlags::empty());
            }
            Err(e) => reply.error(errno(e)),
        }
    }

    fn fallocate(&self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, length: u64, mode: i32, reply: ReplyEmpty) {
        let result = self.nodes.gfid(ino).and_then(|gfid| {
            let fop = Fop::Fallocate { gfid, offset, len: length, mode: mode.cast_unsigned() };
            self.volume.call_fenced(&fop, &[], self.fences.of(fh.0))
        });
        empty(result.map(|(reply, _)| reply), reply);
    }

    fn ioctl(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: IoctlFlags,
        cmd: u32,
        in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        if cmd != FENCE_IOCTL {
            return reply.error(fuser::Errno::ENOTTY);
        }
        #[allow(clippy::host_endian_bytes, reason = "the caller's own memory")]
        let token = in_data.try_into().map(u64::from_ne_bytes);
        let result = token.map_err(|_| Errno::EINVAL).and_then(|token| self.fence(ino, fh, token));
        match result {
            Ok(()) => reply.ioctl(0, &[]),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn lseek(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let result = self.nodes.gfid(ino).and_then(|gfid| {
            let fop = Fop::Lseek { gfid, offset: u64::try_from(offset).map_err(|_| Errno::ENXIO)?, whence: whence.cast_unsigned() };
            match self.call(&fop)? {
                Reply::Offset(at) => i64::try_from(at).map_err(|_| Errno::EFBIG),
                other => Err(unexpected(&fop, &other)),
            }
        });
        match result {
            Ok(at) => reply.offset(at),
            Err(e) => reply.error(errno(e)),
        }
    }
}

/// What a listing tells of `.` and `..`: their kind.
fn dot_attr(gfid: Gfid) -> Attr {
    let epoch = TimeSpec::default();
    Attr {
        gfid,
        kind: FileKind::Dir,
        mode: 0,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        blocks: 0,
        atime: epoch,
        mtime: epoch,
        ctime: epoch,
    }
}
