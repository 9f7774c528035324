//! [`fuser::Filesystem`] over a [`Union`].

use super::edge::{Backing, Edge};
use crate::fop::{Errno, SetAttr};
use crate::fuse::convert::{errno, file_attr, file_type, node_kind, time_or_now};
use crate::fuse::ring::CAPABILITY;
use crate::union::{Caller, Entry, Res};
use fuser::{
    CopyFileRangeFlags, FileAttr, FileHandle, Filesystem, Generation, INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::ops::Deref;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// The largest payload of one request.
pub(super) const PAYLOAD_MAX: u32 = 1 << 20;
/// Requests that the kernel may have in flight in the background (read-ahead, asynchronous writes).
const BACKGROUND_MAX: u16 = 64;

thread_local! {
    /// What this thread reads into.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A union as a FUSE file system.
#[derive(Debug)]
pub(super) struct UnionFs(pub(super) Arc<Edge>);

impl Deref for UnionFs {
    type Target = Edge;

    fn deref(&self) -> &Edge {
        &self.0
    }
}

impl UnionFs {
    /// Answers with what is under a name of `parent`; `seen`: before it was looked for.
    fn entry(&self, parent: INodeNo, seen: u64, result: Res<Entry>, reply: ReplyEntry) {
        match result {
            Ok(e) => {
                let (node, ttl) = self.node_number(e.ino);
                let (attr, name) = (self.life.attr(e.ino, &e.attr, seen), self.life.name(parent, seen));
                reply.entry_with_ttls(&ttl.min(attr), &name, &file_attr(node, &e.attr), Generation(e.generation));
            }
            Err(e) => reply.error(errno(e)),
        }
    }

    /// The node of an inode, and how long attributes may live that come with it: fuser takes its number for the inode's, so those of a moved file
    /// must be asked for again.
    fn node_number(&self, ino: u64) -> (INodeNo, Duration) {
        let node = self.node(ino);
        (INodeNo(node), if node == ino { Duration::MAX } else { Duration::ZERO })
    }
}

fn caller(req: &Request, umask: u32) -> Caller {
    Caller { uid: req.uid(), gid: req.gid(), pid: req.pid(), umask }
}

fn empty(result: Res<()>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(errno(e)),
    }
}

fn xattr(result: Res<Vec<u8>>, size: u32, reply: ReplyXattr) {
    match result {
        Ok(data) if size == 0 => reply.size(u32::try_from(data.len()).unwrap_or(u32::MAX)),
        Ok(data) if data.len() <= size as usize => reply.data(&data),
        Ok(_) => reply.error(fuser::Errno::ERANGE),
        Err(e) => reply.error(errno(e)),
    }
}

/// What a negative answer carries; only its number, 0, is looked at.
fn nobody() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind: fuser::FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

impl Filesystem for UnionFs {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let mut wanted = InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_POSIX_ACL
            | InitFlags::FUSE_DONT_MASK;
        if self.options.caching.watch_times {
            wanted |= InitFlags::FUSE_AUTO_INVAL_DATA;
        }
        // By itself the kernel asks for attributes with the first part of a listing only, and looks up all other names one by one.
        if !self.union.is_local() {
            wanted |= InitFlags::FUSE_READDIRPLUS_AUTO;
        }
        if self.options.writeback {
            wanted |= InitFlags::FUSE_WRITEBACK_CACHE;
        }
        if self.options.passthrough {
            // One: another stacking file system may lie on top of the union.
            let passes = config.capabilities().contains(InitFlags::FUSE_PASSTHROUGH) && config.set_max_stack_depth(1).is_ok();
            if passes {
                wanted |= InitFlags::FUSE_PASSTHROUGH;
            } else {
                tracing::warn!("this kernel passes no files through (FUSE_PASSTHROUGH, Linux 6.9): all are read through the union");
            }
            let _ = self.passes.set(passes);
        }
        if self.ring {
            wanted |= InitFlags::from_bits_retain(CAPABILITY);
        }
        // What the kernel lacks, it does without.
        let _ = config.add_capabilities(wanted & config.capabilities());
        let _ = config.set_max_write(PAYLOAD_MAX);
        let _ = config.set_max_readahead(PAYLOAD_MAX);
        let _ = config.set_max_background(BACKGROUND_MAX);
        self.kernel.found(config.capabilities());
        self.life.on(&self.kernel);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let seen = self.life.seen();
        match self.relief.patiently(|| self.union.lookup(parent.0, name.as_bytes())) {
            // The kernel remembers that there is no such name.
            Err(Errno::ENOENT) => reply.entry_with_ttls(&Duration::ZERO, &self.life.name(parent, seen), &nobody(), Generation(0)),
            result => self.entry(parent, seen, result, reply),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.0.forget(ino.0, nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let (seen, ino) = (self.life.seen(), self.ino(ino.0));
        match self.union.getattr(ino) {
            Ok(attr) => reply.attr(&self.life.attr(ino, &attr, seen), &file_attr(INodeNo(ino), &attr)),
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
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttr { mode: mode.map(|m| m & 0o7777), uid, gid, size, atime: atime.map(time_or_now), mtime: mtime.map(time_or_now) };
        // fuser does not hand the kernel's own word on, FATTR_KILL_SUIDGID: who is not root has no CAP_FSETID.
        let kill_priv = mode.is_none() && size.is_some() && req.uid() != 0;
        let (seen, ino) = (self.life.seen(), self.ino(ino.0));
        match self.0.set_attr(ino, &set, kill_priv) {
            Ok(attr) => reply.attr(&self.life.attr(ino, &attr, seen), &file_attr(INodeNo(ino), &attr)),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.union.readlink(ino.0) {
            Ok(target) => reply.data(&target),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn mknod(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32, reply: ReplyEntry) {
        let Some(kind) = node_kind(mode) else { return reply.error(fuser::Errno::EINVAL) };
        let seen = self.life.seen();
        let made = self
            .relief
            .patiently(|| self.union.mknod(parent.0, name.as_bytes(), kind, mode & 0o7777, u64::from(rdev), &caller(req, umask)));
        self.entry(parent, seen, made, reply);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let seen = self.life.seen();
        let made = self.relief.patiently(|| self.union.mkdir(parent.0, name.as_bytes(), mode & 0o7777, &caller(req, umask)));
        self.entry(parent, seen, made, reply);
    }

    fn symlink(&self, req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry) {
        let seen = self.life.seen();
        let made = self.union.symlink(parent.0, link_name.as_bytes(), target.as_os_str().as_bytes(), &caller(req, 0));
        self.entry(parent, seen, made, reply);
    }

    fn link(&self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let seen = self.life.seen();
        self.entry(newparent, seen, self.union.link(self.ino(ino.0), newparent.0, newname.as_bytes()), reply);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.relief.patiently(|| self.union.unlink(parent.0, name.as_bytes())), reply);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.relief.patiently(|| self.union.rmdir(parent.0, name.as_bytes())), reply);
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
        empty(self.relief.patiently(|| self.union.rename(parent.0, name.as_bytes(), newparent.0, newname.as_bytes(), flags.bits())), reply);
    }

    /// There are no open files, but with `passthrough`.
    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let write = flags.acc_mode() != fuser::OpenAccMode::O_RDONLY;
        let opened = match self.0.open(ino.0, write, |file| reply.open_backing(file).map(Backing::Device)) {
            Ok(opened) => opened,
            Err(e) => return reply.error(errno(e)),
        };
        match opened.backing.as_deref() {
            None => reply.opened(opened.handle, opened.flags),
            Some(Backing::Device(backing)) => reply.opened_passthrough(opened.handle, opened.flags, backing),
            Some(Backing::Ring(_)) => reply.error(fuser::Errno::EIO),
        }
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock: LockOwner, reply: ReplyEmpty) {
        reply.error(fuser::Errno::ENOSYS);
    }

    /// Comes only for files that CREATE or OPEN opened.
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
        self.0.release(ino.0, fh);
        reply.ok();
    }

    fn create(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, flags: i32, reply: ReplyCreate) {
        let seen = self.life.seen();
        match self.0.create(parent.0, name.as_bytes(), mode, flags.cast_unsigned(), &caller(req, umask)) {
            Ok((e, handle, flags)) => {
                let (node, ttl) = self.node_number(e.ino);
                let attr = file_attr(node, &e.attr);
                reply.created(
                    &self.life.attr(e.ino, &e.attr, seen).min(self.life.name(parent, seen)).min(ttl),
                    &attr,
                    Generation(e.generation),
                    handle,
                    flags,
                );
            }
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
        BUFFER.with_borrow_mut(|buffer| {
            let size = size.min(PAYLOAD_MAX) as usize;
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            match self.relief.patiently(|| self.union.read(self.ino(ino.0), offset, &mut buffer[..size])) {
                Ok(n) => reply.data(&buffer[..n]),
                Err(e) => reply.error(errno(e)),
            }
        });
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let kill_priv = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        match self.relief.patiently(|| self.union.write(self.ino(ino.0), offset, data, kill_priv)) {
            Ok(()) => reply.written(u32::try_from(data.len()).expect("a request's payload")),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        empty(self.union.fsync(self.ino(ino.0), datasync), reply);
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        empty(self.union.fsync(self.ino(ino.0), datasync), reply);
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listed = self.relief.patiently(|| {
            self.union
                .readdir(ino.0, offset, false, &mut |e| reply.add(INodeNo(e.ino), e.cookie, file_type(e.kind), OsStr::from_bytes(e.name)))
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn readdirplus(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let seen = self.life.seen();
        let listed = self.relief.patiently(|| {
            self.union.readdir(ino.0, offset, true, &mut |e| {
                let name = OsStr::from_bytes(e.name);
                match &e.entry {
                    Some(entry) => {
                        let (node, at_most) = self.node_number(entry.ino);
                        // fuser has one time for both.
                        let ttl = self.life.name(ino, seen).min(self.life.attr(entry.ino, &entry.attr, seen)).min(at_most);
                        reply.add(node, e.cookie, name, &ttl, &file_attr(node, &entry.attr), Generation(entry.generation))
                    }
                    // A name and a number, and nothing for the kernel to remember: `.` and `..`.
                    None if matches!(e.name, b"." | b"..") => {
                        let attr = FileAttr { ino: INodeNo(e.ino), kind: file_type(e.kind), ..nobody() };
                        reply.add(INodeNo(e.ino), e.cookie, name, &Duration::ZERO, &attr, Generation(0))
                    }
                    // Gone since the listing was made.
                    None => false,
                }
            })
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self.union.statfs() {
            Ok(s) => reply.statfs(s.blocks, s.bfree, s.bavail, s.files, s.ffree, s.bsize, s.namelen, s.frsize),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn setxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, value: &[u8], flags: i32, _position: u32, reply: ReplyEmpty) {
        if self.own_xattr(ino.0, name.as_bytes()).is_some() {
            return reply.error(fuser::Errno::EPERM);
        }
        empty(self.union.setxattr(self.ino(ino.0), name.as_bytes(), value, flags.cast_unsigned()), reply);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let value = self.own_xattr(ino.0, name.as_bytes()).unwrap_or_else(|| self.union.getxattr(self.ino(ino.0), name.as_bytes()));
        xattr(value, size, reply);
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        xattr(self.union.listxattr(self.ino(ino.0)), size, reply);
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if self.own_xattr(ino.0, name.as_bytes()).is_some() {
            return reply.error(fuser::Errno::EPERM);
        }
        empty(self.union.removexattr(self.ino(ino.0), name.as_bytes()), reply);
    }

    fn fallocate(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, length: u64, mode: i32, reply: ReplyEmpty) {
        empty(self.union.fallocate(self.ino(ino.0), offset, length, mode.cast_unsigned()), reply);
    }

    fn lseek(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let found = u64::try_from(offset)
            .map_err(|_| Errno::ENXIO)
            .and_then(|offset| self.union.lseek(self.ino(ino.0), offset, whence.cast_unsigned()))
            .and_then(|at| i64::try_from(at).map_err(|_| Errno::EFBIG));
        match found {
            Ok(at) => reply.offset(at),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        ino_in: INodeNo,
        _fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The answer has 32 bits.
        match self.union.copy_file_range(self.ino(ino_in.0), offset_in, self.ino(ino_out.0), offset_out, len.min(1 << 30)) {
            Ok(n) => reply.written(u32::try_from(n).expect("at most what was asked for")),
            Err(e) => reply.error(errno(e)),
        }
    }
}
