//! [`fuser::Filesystem`] over a [`Union`].

use super::UnionMountOptions;
use super::cache::Kernel;
use super::lifetime::Lifetimes;
use super::relief::Relief;
use crate::fop::{Errno, FileKind, SetAttr};
use crate::fuse::convert::{errno, file_attr, file_type, node_kind, time_or_now};
use crate::union::{Caller, Entry, Res, Udba, Union};
use fuser::{
    CopyFileRangeFlags, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// The largest payload of one request.
const PAYLOAD_MAX: u32 = 1 << 20;
/// Requests that the kernel may have in flight in the background (read-ahead, asynchronous writes).
const BACKGROUND_MAX: u16 = 64;
/// Attributes of a union as a whole, on its root: read them with getfattr(1).
const XATTR: &str = "user.brickraft.";

thread_local! {
    /// What this thread reads into.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A union as a FUSE file system.
pub(super) struct UnionFs {
    union: Arc<Union>,
    options: UnionMountOptions,
    kernel: Arc<Kernel>,
    /// How long names and attributes may live in the kernel.
    life: Lifetimes,
    relief: Arc<Relief>,
}

impl std::fmt::Debug for UnionFs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UnionFs").field("options", &self.options).finish_non_exhaustive()
    }
}

impl UnionFs {
    pub(super) fn new(union: Arc<Union>, options: UnionMountOptions, kernel: Arc<Kernel>, relief: Arc<Relief>) -> Self {
        let life = Lifetimes::new(union.clone(), options.caching);
        Self { union, options, kernel, life, relief }
    }

    /// Answers with what is under a name of `parent`; `seen`: before it was looked for.
    fn entry(&self, parent: INodeNo, seen: u64, result: Res<Entry>, reply: ReplyEntry) {
        match result {
            Ok(e) => {
                let (attr, name) = (self.life.attr(e.ino, &e.attr, seen), self.life.name(parent, seen));
                reply.entry_with_ttls(&attr, &name, &file_attr(INodeNo(e.ino), &e.attr), Generation(e.generation));
            }
            Err(e) => reply.error(errno(e)),
        }
    }

    /// What the mount's root tells about the union; `None` for a name that is not ours.
    fn own_xattr(&self, ino: INodeNo, name: &OsStr) -> Option<Res<Vec<u8>>> {
        let name = name.to_str()?.strip_prefix(XATTR)?;
        if ino != INodeNo::ROOT {
            return None;
        }
        let config = self.union.config();
        Some(Ok(match name {
            "branches" => {
                let all: Vec<String> = self.union.branches().iter().map(|b| format!("{}={}", b.label, b.perm)).collect();
                all.join("\n").into_bytes()
            }
            "create" => config.create.to_string().into_bytes(),
            "cpup" => config.copyup.to_string().into_bytes(),
            "udba" if config.udba != Udba::None && !self.options.caching.notify => Udba::Reval.to_string().into_bytes(),
            "udba" => config.udba.to_string().into_bytes(),
            "watched" => self.union.watched().to_string().into_bytes(),
            "invalidated" => {
                let (sent, everything) = self.kernel.counts();
                format!("{sent} {everything}").into_bytes()
            }
            "layout" => config.layout.to_string().into_bytes(),
            "pid" => std::process::id().to_string().into_bytes(),
            "version" => env!("CARGO_PKG_VERSION").as_bytes().to_vec(),
            _ => return Some(Err(Errno::ENODATA)),
        }))
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
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_POSIX_ACL
            | InitFlags::FUSE_DONT_MASK;
        if self.options.caching.watch_times {
            wanted |= InitFlags::FUSE_AUTO_INVAL_DATA;
        }
        if self.options.writeback {
            wanted |= InitFlags::FUSE_WRITEBACK_CACHE;
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

    fn destroy(&mut self) {
        self.union.close();
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
        self.union.forget(ino.0, nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let seen = self.life.seen();
        match self.union.getattr(ino.0) {
            Ok(attr) => reply.attr(&self.life.attr(ino.0, &attr, seen), &file_attr(ino, &attr)),
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
        let kill_priv = mode.is_none() && (uid.is_some() || gid.is_some() || (size.is_some() && req.uid() != 0));
        let seen = self.life.seen();
        match self.union.setattr(ino.0, &set, kill_priv) {
            Ok(attr) => reply.attr(&self.life.attr(ino.0, &attr, seen), &file_attr(ino, &attr)),
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
        self.entry(newparent, seen, self.union.link(ino.0, newparent.0, newname.as_bytes()), reply);
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

    /// There are no open files.
    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock: LockOwner, reply: ReplyEmpty) {
        reply.error(fuser::Errno::ENOSYS);
    }

    /// Comes only for files that CREATE opened.
    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    /// Without it the kernel sends MKNOD, and nothing when the file is closed.
    fn create(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, flags: i32, reply: ReplyCreate) {
        if self.options.create_by_mknod {
            return reply.error(fuser::Errno::ENOSYS);
        }
        let seen = self.life.seen();
        let made = match self.union.mknod(parent.0, name.as_bytes(), FileKind::File, mode & 0o7777, 0, &caller(req, umask)) {
            // Somebody else was faster: without O_EXCL that is an open of what it made.
            Err(Errno::EEXIST) if flags.cast_unsigned() & rustix::fs::OFlags::EXCL.bits() == 0 => {
                self.union.lookup(parent.0, name.as_bytes())
            }
            made => made,
        };
        match made {
            Ok(e) => {
                let attr = file_attr(INodeNo(e.ino), &e.attr);
                reply.created(
                    &self.life.attr(e.ino, &e.attr, seen).min(self.life.name(parent, seen)),
                    &attr,
                    Generation(e.generation),
                    FileHandle(0),
                    FopenFlags::FOPEN_KEEP_CACHE,
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
            match self.relief.patiently(|| self.union.read(ino.0, offset, &mut buffer[..size])) {
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
        match self.relief.patiently(|| self.union.write(ino.0, offset, data, kill_priv)) {
            Ok(()) => reply.written(u32::try_from(data.len()).expect("a request's payload")),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        empty(self.union.fsync(ino.0, datasync), reply);
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        empty(self.union.fsync(ino.0, datasync), reply);
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
                    Some(entry) => reply.add(
                        INodeNo(entry.ino),
                        e.cookie,
                        name,
                        // fuser has one time for both.
                        &self.life.name(ino, seen).min(self.life.attr(entry.ino, &entry.attr, seen)),
                        &file_attr(INodeNo(entry.ino), &entry.attr),
                        Generation(entry.generation),
                    ),
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
        if self.own_xattr(ino, name).is_some() {
            return reply.error(fuser::Errno::EPERM);
        }
        empty(self.union.setxattr(ino.0, name.as_bytes(), value, flags.cast_unsigned()), reply);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let value = self.own_xattr(ino, name).unwrap_or_else(|| self.union.getxattr(ino.0, name.as_bytes()));
        xattr(value, size, reply);
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        xattr(self.union.listxattr(ino.0), size, reply);
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if self.own_xattr(ino, name).is_some() {
            return reply.error(fuser::Errno::EPERM);
        }
        empty(self.union.removexattr(ino.0, name.as_bytes()), reply);
    }

    fn fallocate(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, length: u64, mode: i32, reply: ReplyEmpty) {
        empty(self.union.fallocate(ino.0, offset, length, mode.cast_unsigned()), reply);
    }

    fn lseek(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let found = u64::try_from(offset)
            .map_err(|_| Errno::ENXIO)
            .and_then(|offset| self.union.lseek(ino.0, offset, whence.cast_unsigned()))
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
        match self.union.copy_file_range(ino_in.0, offset_in, ino_out.0, offset_out, len.min(1 << 30)) {
            Ok(n) => reply.written(u32::try_from(n).expect("at most what was asked for")),
            Err(e) => reply.error(errno(e)),
        }
    }
}
