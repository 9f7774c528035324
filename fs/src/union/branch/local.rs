//! [`LocalBranch`]: a branch in a directory of this host.

use super::{At, Branch, Fetched, Handle, Listed, New, ObjectId, Open, Stat, copy_by_reading, data_extents};
use crate::fop::{Errno, FileKind, SetAttr, StatFs, TimeSpec};
use crate::union::Res;
use rustix::fs::{self, AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps, UTIME_OMIT, XattrFlags};
use rustix::io::ReadWriteFlags;
use rustix::mount::{MountPropagationFlags, OpenTreeFlags, mount_change, open_tree};
use std::io::IoSliceMut;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The largest value of an extended attribute, and the longest list of names (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const XATTR_BYTES_MAX: usize = 65_536;
/// The least that a read gives, but for the end of a file.
const PAGE_BYTES: u64 = 4096;
/// Bytes of one listing request.
const LISTING_BYTES: usize = 1 << 16;

/// How a file that is made is opened.
const MADE: OFlags = OFlags::RDWR.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// An object by descriptor.
#[derive(Debug)]
pub struct LocalObject {
    fd: Arc<OwnedFd>,
    /// An `O_PATH` descriptor: it only names.
    path_only: bool,
}

/// A branch in a directory.
#[derive(Debug)]
pub struct LocalBranch {
    root: Handle,
    /// Its file system cannot share data between files.
    clones_nothing: AtomicBool,
    /// To give a name to what has none, or to sync that, costs its file system a sync of everything.
    names_are_dear: bool,
}

/// Those of which that is known, by statfs(2)'s type: ZFS (`zfs_link` waits for the transaction group) and F2FS (fsync of a file whose count of
/// links is not one is a checkpoint).
const NAMES_ARE_DEAR: [i64; 2] = [0x2fc1_2fc1, 0xf2f5_2010];

impl LocalBranch {
    /// Opens the directory, as a mount of its own where this process may make one: what is mounted inside the branch is not seen then, be it the
    /// very union, which would wait for itself.
    ///
    /// # Errors
    /// As open(2).
    pub fn open(path: &Path) -> Res<Self> {
        let open =
            |dir: BorrowedFd<'_>, path: &Path| fs::openat(dir, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let fd = match private_mount(path) {
            Ok(mount) => open(mount.as_fd(), Path::new("."))?,
            Err(e) => {
                tracing::warn!(branch = %path.display(), %e, "what is mounted inside the branch shows");
                open(CWD, path)?
            }
        };
        #[allow(clippy::useless_conversion, reason = "the type differs between architectures")]
        let kind = i64::from(fs::fstatfs(&fd)?.f_type);
        Ok(Self { root: handle(fd, false), clones_nothing: AtomicBool::new(false), names_are_dear: NAMES_ARE_DEAR.contains(&kind) })
    }
}

/// A mount of this directory that is attached nowhere, without those below it. It lasts as long as anything of it is open.
fn private_mount(path: &Path) -> rustix::io::Result<OwnedFd> {
    let mount = open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    // None comes to it later either. (Some kernels refuse this to what is attached nowhere; to those nothing comes anyway.)
    if let Err(e) = mount_change(format!("/proc/self/fd/{}", mount.as_raw_fd()), MountPropagationFlags::PRIVATE) {
        tracing::debug!(branch = %path.display(), %e, "make the branch's own mount private");
    }
    Ok(mount)
}

fn handle(fd: OwnedFd, path_only: bool) -> Handle {
    Handle::Local(Arc::new(LocalObject { fd: Arc::new(fd), path_only }))
}

/// The object of a handle of ours.
fn object(handle: &Handle) -> Res<&LocalObject> {
    match handle {
        Handle::Local(object) => Ok(object),
        _ => Err(Errno::EBADF),
    }
}

fn fd(handle: &Handle) -> Res<BorrowedFd<'_>> {
    Ok(object(handle)?.fd.as_fd())
}

/// A path that leads to the object through our own descriptor, and whether its last component is to be followed.
fn proc_path(at: At<'_>) -> Res<(Vec<u8>, bool)> {
    let (held, name) = match at {
        At::Name(dir, name) => (dir, Some(name)),
        At::Open(held) => (held, None),
    };
    let mut path = format!("/proc/self/fd/{}", object(held)?.fd.as_raw_fd()).into_bytes();
    if let Some(name) = name {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    Ok((path, name.is_none()))
}

/// The descriptor itself, where it does more than name.
fn direct(at: At<'_>) -> Option<BorrowedFd<'_>> {
    match at {
        At::Open(Handle::Local(object)) if !object.path_only => Some(object.fd.as_fd()),
        _ => None,
    }
}

#[allow(
    clippy::cast_sign_loss,
    clippy::cast_possible_truncation,
    clippy::unnecessary_cast,
    reason = "the types of stat's fields differ between architectures"
)]
fn stat_of(s: &fs::Stat) -> Stat {
    let kind = FileKind::from(FileType::from_raw_mode(s.st_mode));
    let device = matches!(kind, FileKind::CharDevice | FileKind::BlockDevice);
    Stat {
        id: ObjectId(s.st_dev as u64, s.st_ino as u64),
        dev: s.st_dev as u64,
        ino: s.st_ino as u64,
        kind,
        mode: s.st_mode & 0o7777,
        nlink: u32::try_from(s.st_nlink).unwrap_or(u32::MAX),
        uid: s.st_uid,
        gid: s.st_gid,
        rdev: if device { s.st_rdev as u64 } else { 0 },
        size: s.st_size as u64,
        blocks: s.st_blocks as u64,
        atime: TimeSpec { sec: s.st_atime as i64, nsec: s.st_atime_nsec as u32 },
        mtime: TimeSpec { sec: s.st_mtime as i64, nsec: s.st_mtime_nsec as u32 },
        ctime: TimeSpec { sec: s.st_ctime as i64, nsec: s.st_ctime_nsec as u32 },
    }
}

impl LocalBranch {
    /// Gives what was just made the owner and the mode that it shall have.
    fn give(&self, at: At<'_>, new: &New<'_>) -> Res<Stat> {
        let stat = self.stat(at)?;
        let owned = stat.uid == new.uid && stat.gid == new.gid;
        // mkdir(2) takes no set-id bits, chown(2) drops a file's, and a default ACL has its own idea of the rest.
        let special = new.mode & 0o7000;
        if owned && (new.kind == FileKind::Symlink || stat.mode & 0o7000 == special) {
            return Ok(stat);
        }
        if !owned {
            chown(at, Some(new.uid), Some(new.gid))?;
        }
        if new.kind != FileKind::Symlink {
            chmod(at, stat.mode & 0o777 | special)?;
        }
        self.stat(at)
    }
}

fn chown(at: At<'_>, uid: Option<u32>, gid: Option<u32>) -> Res<()> {
    // -1 means "leave alone" to the kernel and is no valid id.
    if uid == Some(u32::MAX) || gid == Some(u32::MAX) {
        return Err(Errno::EINVAL);
    }
    let (uid, gid) = (uid.map(fs::Uid::from_raw), gid.map(fs::Gid::from_raw));
    match at {
        At::Name(dir, name) => fs::chownat(fd(dir)?, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?,
        At::Open(held) => fs::chownat(fd(held)?, c"", uid, gid, AtFlags::EMPTY_PATH)?,
    }
    Ok(())
}

fn chmod(at: At<'_>, mode: u32) -> Res<()> {
    let mode = Mode::from_raw_mode(mode & 0o7777);
    match (direct(at), at) {
        (Some(fd), _) => fs::fchmod(fd, mode)?,
        (None, At::Name(dir, name)) => fs::chmodat(fd(dir)?, name, mode, AtFlags::empty())?,
        (None, At::Open(_)) => fs::chmodat(CWD, proc_path(at)?.0, mode, AtFlags::empty())?,
    }
    Ok(())
}

fn set_times(at: At<'_>, atime: Option<TimeSpec>, mtime: Option<TimeSpec>) -> Res<()> {
    let spec = |t: Option<TimeSpec>| match t {
        Some(t) => Timespec { tv_sec: t.sec, tv_nsec: t.nsec.into() },
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
    };
    let times = Timestamps { last_access: spec(atime), last_modification: spec(mtime) };
    match (direct(at), at) {
        (Some(fd), _) => fs::futimens(fd, &times)?,
        (None, At::Name(dir, name)) => fs::utimensat(fd(dir)?, name, &times, AtFlags::SYMLINK_NOFOLLOW)?,
        (None, At::Open(_)) => fs::utimensat(CWD, proc_path(at)?.0, &times, AtFlags::empty())?,
    }
    Ok(())
}

impl Branch for LocalBranch {
    fn root(&self) -> Handle {
        self.root.clone()
    }

    fn can_hold_overlay(&self) -> bool {
        true
    }

    fn stat(&self, at: At<'_>) -> Res<Stat> {
        let stat = match at {
            At::Name(dir, name) => fs::statat(fd(dir)?, name, AtFlags::SYMLINK_NOFOLLOW)?,
            At::Open(held) => fs::fstat(fd(held)?)?,
        };
        Ok(stat_of(&stat))
    }

    fn open(&self, at: At<'_>, how: Open) -> Res<Handle> {
        let base = OFlags::CLOEXEC | OFlags::NOCTTY;
        let (dir, name, nofollow) = match at {
            At::Name(dir, name) => (fd(dir)?, name.to_vec(), OFlags::NOFOLLOW),
            At::Open(_) => (CWD, proc_path(at)?.0, OFlags::empty()),
        };
        let open = |flags: OFlags| fs::openat(dir, &name[..], base | nofollow | flags, Mode::empty());
        let (opened, path_only) = match how {
            // A directory's descriptor shall list it and reach its attributes too.
            Open::Path => match open(OFlags::RDONLY | OFlags::DIRECTORY) {
                Err(rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => (open(OFlags::PATH)?, true),
                other => (other?, false),
            },
            Open::Read => (open(OFlags::RDONLY | OFlags::NONBLOCK)?, false),
            Open::ReadQuietly => match open(OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOATIME) {
                Err(rustix::io::Errno::PERM) => (open(OFlags::RDONLY | OFlags::NONBLOCK)?, false),
                other => (other?, false),
            },
            Open::Write => (open(OFlags::RDWR | OFlags::NONBLOCK)?, false),
        };
        Ok(handle(opened, path_only))
    }

    fn list(&self, dir: &Handle, each: &mut dyn FnMut(Listed<'_>)) -> Res<()> {
        // A position of our own: several threads list the same directory.
        let own = fs::openat(fd(dir)?, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOATIME, Mode::empty())?;
        let mut buf = Vec::with_capacity(LISTING_BYTES);
        let mut raw = fs::RawDir::new(&own, buf.spare_capacity_mut());
        while let Some(entry) = raw.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => match fs::statat(&own, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => FileType::from_raw_mode(stat.st_mode).into(),
                    Err(rustix::io::Errno::NOENT) => continue,
                    Err(e) => return Err(e.into()),
                },
                known => known.into(),
            };
            each(Listed { name, ino: entry.ino(), kind });
        }
        Ok(())
    }

    fn readlink(&self, at: At<'_>) -> Res<Vec<u8>> {
        let target = match at {
            At::Name(dir, name) => fs::readlinkat(fd(dir)?, name, Vec::new())?,
            At::Open(held) => fs::readlinkat(fd(held)?, c"", Vec::new())?,
        };
        Ok(target.into_bytes())
    }

    fn make(&self, dir: &Handle, name: &[u8], new: &New<'_>) -> Res<Stat> {
        let d = fd(dir)?;
        let mode = Mode::from_raw_mode(new.mode & 0o7777);
        let node = |kind| fs::mknodat(d, name, kind, mode, new.rdev);
        match new.kind {
            FileKind::Dir => fs::mkdirat(d, name, mode)?,
            FileKind::Symlink => fs::symlinkat(new.target, d, name)?,
            FileKind::File => node(FileType::RegularFile)?,
            FileKind::Fifo => node(FileType::Fifo)?,
            FileKind::Socket => node(FileType::Socket)?,
            FileKind::CharDevice => node(FileType::CharacterDevice)?,
            FileKind::BlockDevice => node(FileType::BlockDevice)?,
        }
        let fixed = self.give(At::Name(dir, name), new);
        if fixed.is_err() {
            let _ = if new.kind == FileKind::Dir { self.rmdir(dir, name) } else { self.unlink(dir, name) };
        }
        fixed
    }

    fn make_open(&self, dir: &Handle, name: &[u8], new: &New<'_>) -> Res<(Stat, Option<Handle>)> {
        let made =
            fs::openat(fd(dir)?, name, MADE | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW, Mode::from_raw_mode(new.mode & 0o7777))?;
        let made = handle(made, false);
        match self.give(At::Open(&made), new) {
            Ok(stat) => Ok((stat, Some(made))),
            Err(e) => {
                let _ = self.unlink(dir, name);
                Err(e)
            }
        }
    }

    fn make_unnamed(&self, dir: &Handle, new: &New<'_>) -> Res<Option<(Stat, Handle)>> {
        if self.names_are_dear {
            return Ok(None);
        }
        let made = match fs::openat(fd(dir)?, c".", MADE | OFlags::TMPFILE, Mode::from_raw_mode(new.mode & 0o7777)) {
            // The second is what kernels say that do not know the flag; the others, some file systems.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR | rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                return Ok(None);
            }
            made => handle(made?, false),
        };
        let stat = self.give(At::Open(&made), new)?;
        Ok(Some((stat, made)))
    }

    fn link(&self, from: At<'_>, dir: &Handle, name: &[u8]) -> Res<()> {
        match from {
            At::Name(from, old) => fs::linkat(fd(from)?, old, fd(dir)?, name, AtFlags::empty())?,
            At::Open(_) => fs::linkat(CWD, proc_path(from)?.0, fd(dir)?, name, AtFlags::SYMLINK_FOLLOW)?,
        }
        Ok(())
    }

    fn unlink(&self, dir: &Handle, name: &[u8]) -> Res<()> {
        Ok(fs::unlinkat(fd(dir)?, name, AtFlags::empty())?)
    }

    fn rmdir(&self, dir: &Handle, name: &[u8]) -> Res<()> {
        fs::unlinkat(fd(dir)?, name, AtFlags::REMOVEDIR).map_err(|e| match e {
            rustix::io::Errno::EXIST => Errno::ENOTEMPTY,
            e => e.into(),
        })
    }

    fn rename(&self, dir: &Handle, name: &[u8], new_dir: &Handle, new_name: &[u8], flags: u32) -> Res<()> {
        let (from, to) = (fd(dir)?, fd(new_dir)?);
        match flags {
            0 => fs::renameat(from, name, to, new_name)?,
            flags => fs::renameat_with(from, name, to, new_name, RenameFlags::from_bits_retain(flags))?,
        }
        Ok(())
    }

    fn set_attr(&self, at: At<'_>, set: &SetAttr) -> Res<()> {
        if set.uid.is_some() || set.gid.is_some() {
            chown(at, set.uid, set.gid)?;
        }
        if let Some(mode) = set.mode {
            chmod(at, mode)?;
        }
        if let Some(size) = set.size {
            match direct(at) {
                Some(fd) => fs::ftruncate(fd, size)?,
                None => fs::ftruncate(fd(&self.open(at, Open::Write)?)?, size)?,
            }
        }
        if set.atime.is_some() || set.mtime.is_some() {
            set_times(at, set.atime, set.mtime)?;
        }
        Ok(())
    }

    fn get_xattr(&self, at: At<'_>, name: &[u8]) -> Res<Vec<u8>> {
        let mut buf = vec![0; 256];
        loop {
            let got = match direct(at) {
                Some(fd) => fs::fgetxattr(fd, name, &mut buf[..]),
                None => match proc_path(at)? {
                    (path, true) => fs::getxattr(path, name, &mut buf[..]),
                    (path, false) => fs::lgetxattr(path, name, &mut buf[..]),
                },
            };
            match got {
                Ok(n) => {
                    buf.truncate(n);
                    return Ok(buf);
                }
                Err(rustix::io::Errno::RANGE) if buf.len() < XATTR_BYTES_MAX => buf = vec![0; XATTR_BYTES_MAX],
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn list_xattr(&self, at: At<'_>) -> Res<Vec<Vec<u8>>> {
        let mut buf = vec![0; 512];
        loop {
            let got = match direct(at) {
                Some(fd) => fs::flistxattr(fd, &mut buf[..]),
                None => match proc_path(at)? {
                    (path, true) => fs::listxattr(path, &mut buf[..]),
                    (path, false) => fs::llistxattr(path, &mut buf[..]),
                },
            };
            match got {
                Ok(n) => return Ok(buf[..n].split(|b| *b == 0).filter(|n| !n.is_empty()).map(<[u8]>::to_vec).collect()),
                Err(rustix::io::Errno::RANGE) if buf.len() < XATTR_BYTES_MAX => buf = vec![0; XATTR_BYTES_MAX],
                Err(rustix::io::Errno::OPNOTSUPP) => return Ok(Vec::new()),
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn set_xattr(&self, at: At<'_>, name: &[u8], value: &[u8], flags: u32) -> Res<()> {
        let flags = XattrFlags::from_bits(flags).ok_or(Errno::EINVAL)?;
        match direct(at) {
            Some(fd) => fs::fsetxattr(fd, name, value, flags)?,
            None => match proc_path(at)? {
                (path, true) => fs::setxattr(path, name, value, flags)?,
                (path, false) => fs::lsetxattr(path, name, value, flags)?,
            },
        }
        Ok(())
    }

    fn remove_xattr(&self, at: At<'_>, name: &[u8]) -> Res<()> {
        match direct(at) {
            Some(fd) => fs::fremovexattr(fd, name)?,
            None => match proc_path(at)? {
                (path, true) => fs::removexattr(path, name)?,
                (path, false) => fs::lremovexattr(path, name)?,
            },
        }
        Ok(())
    }

    fn read(&self, file: &Handle, offset: u64, buf: &mut [u8]) -> Res<usize> {
        let fd = fd(file)?;
        let mut done = 0;
        while done < buf.len() {
            match rustix::io::pread(fd, &mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => {
                    done += n;
                    // What cuts a read short before the end of the file does so between two pages.
                    if !(offset + done as u64).is_multiple_of(PAGE_BYTES) {
                        break;
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(done)
    }

    fn read_telling(&self, file: &Handle, offset: u64, buf: &mut [u8]) -> Res<(usize, bool)> {
        let at_once = rustix::io::preadv2(fd(file)?, &mut [IoSliceMut::new(buf)], offset, ReadWriteFlags::NOWAIT);
        match at_once {
            // Cut short between two pages: that may not be all.
            Ok(n) if n > 0 && n < buf.len() && (offset + n as u64).is_multiple_of(PAGE_BYTES) => {
                self.read(file, offset + n as u64, &mut buf[n..]).map(|more| (n + more, false))
            }
            Ok(n) => Ok((n, false)),
            Err(e) => self.read(file, offset, buf).map(|n| (n, e == rustix::io::Errno::AGAIN)),
        }
    }

    fn fetches(&self) -> bool {
        true
    }

    fn fetch(&self, at: At<'_>, bytes: u64) -> Res<Fetched> {
        let (dir, name) = match at {
            At::Name(dir, name) => (fd(dir)?, name),
            At::Open(_) => return Err(Errno::EINVAL),
        };
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOATIME | OFlags::CLOEXEC | OFlags::NOCTTY;
        let file = fs::openat(dir, name, flags, Mode::empty())?;
        // The first byte tells whether there is anything to do.
        match rustix::io::preadv2(&file, &mut [IoSliceMut::new(&mut [0])], 0, ReadWriteFlags::NOWAIT) {
            Err(rustix::io::Errno::AGAIN) => {}
            // Or its file system cannot tell: then nothing waits for it.
            _ => return Ok(Fetched::InMemory),
        }
        fs::fadvise(&file, 0, NonZeroU64::new(bytes), fs::Advice::WillNeed)?;
        Ok(Fetched::Asked)
    }

    fn write(&self, file: &Handle, offset: u64, data: &[u8]) -> Res<()> {
        let fd = fd(file)?;
        let mut done = 0;
        while done < data.len() {
            match rustix::io::pwrite(fd, &data[done..], offset + done as u64) {
                Ok(0) => return Err(Errno::EIO),
                Ok(n) => done += n,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn fallocate(&self, file: &Handle, offset: u64, len: u64, mode: u32) -> Res<()> {
        Ok(fs::fallocate(fd(file)?, fs::FallocateFlags::from_bits_retain(mode), offset, len)?)
    }

    fn lseek(&self, file: &Handle, offset: u64, whence: u32) -> Res<u64> {
        let to = match whence {
            super::SEEK_DATA => fs::SeekFrom::Data(offset),
            super::SEEK_HOLE => fs::SeekFrom::Hole(offset),
            _ => return Err(Errno::EINVAL),
        };
        Ok(fs::seek(fd(file)?, to)?)
    }

    fn fsync(&self, file: &Handle, data_only: bool) -> Res<()> {
        let fd = fd(file)?;
        let synced = if data_only { fs::fdatasync(fd) } else { fs::fsync(fd) };
        Ok(synced?)
    }

    fn sync_all(&self) -> Res<()> {
        Ok(fs::syncfs(fd(&self.root)?)?)
    }

    fn statfs(&self) -> Res<StatFs> {
        let s = fs::fstatvfs(fd(&self.root)?)?;
        let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(StatFs {
            blocks: s.f_blocks,
            bfree: s.f_bfree,
            bavail: s.f_bavail,
            files: s.f_files,
            ffree: s.f_ffree,
            bsize: small(s.f_bsize),
            frsize: small(s.f_frsize),
            namelen: small(s.f_namemax),
        })
    }

    fn claim(&self, dir: &Handle) -> Res<bool> {
        match fs::flock(fd(dir)?, fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    fn descriptor(&self, file: &Handle) -> Option<Arc<OwnedFd>> {
        object(file).ok().filter(|o| !o.path_only).map(|o| Arc::clone(&o.fd))
    }

    fn copy_from(&self, to: &Handle, source: &dyn Branch, from: &Handle, size: u64) -> Res<()> {
        let (Ok(out), Ok(input)) = (fd(to), fd(from)) else { return copy_by_reading(self, to, source, from, size) };
        if !self.clones_nothing.load(Ordering::Relaxed) {
            match fs::ioctl_ficlone(out, input) {
                Ok(()) => return Ok(fs::ftruncate(out, size)?),
                // Its file system never does.
                Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOTTY) => self.clones_nothing.store(true, Ordering::Relaxed),
                Err(_) => {}
            }
        }
        let mut done = 0;
        let mut each = |start, end| {
            let mut at = start;
            while at < end {
                let (mut off_in, mut off_out) = (at, at);
                let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(1 << 30);
                match fs::copy_file_range(input, Some(&mut off_in), out, Some(&mut off_out), want)? {
                    0 => break,
                    n => at += n as u64,
                }
                done = at;
            }
            Ok(())
        };
        // In a block there is no hole worth looking for.
        let copied = if size <= PAGE_BYTES {
            each(0, size)
        } else {
            data_extents(size, &mut |at, whence| source.lseek(from, at, whence), &mut each)
        };
        match copied {
            // Not between these two file systems.
            Err(Errno::EXDEV | Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOSYS) if done == 0 => {
                copy_by_reading(self, to, source, from, size)
            }
            // It ends with a hole.
            Ok(()) if done < size => Ok(fs::ftruncate(out, size)?),
            other => other,
        }
    }
}
