//! The system calls of a brick, and the one place where their errors become [`Errno`]s.
//!
//! Everything is relative to a directory descriptor and follows no symbolic link in its last component;
//! the components before it are our own directories. Every call that changes something passes
//! [`point`], where the tests cut a change in two.

use crate::fop::{Attr, Errno, FileKind, Gfid, TimeSpec};
use crate::store::XATTR_GFID;
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps, UTIME_OMIT, XattrFlags};
use std::fs::File;
use std::os::fd::AsRawFd;

pub(super) type Res<T> = Result<T, Errno>;

/// What stands in for a call's error. `ELOOP`: a symbolic link lies where a directory should; a brick out
/// of descriptors is the brick's failure and not the caller's.
fn errno(e: rustix::io::Errno) -> Errno {
    match e {
        rustix::io::Errno::LOOP => Errno::ENOTDIR,
        rustix::io::Errno::MFILE | rustix::io::Errno::NFILE => Errno::EIO,
        e => Errno(e.raw_os_error()),
    }
}

/// Where a test kills the process. Nothing in a build that is not a test.
#[cfg(not(test))]
#[inline(always)]
pub(super) fn point() {}
#[cfg(test)]
pub(super) use crash::point;

#[cfg(test)]
pub(super) mod crash {
    use std::cell::Cell;

    thread_local! { static LEFT: Cell<Option<u64>> = const { Cell::new(None) }; }

    /// What a killed change unwinds with.
    pub(in super::super) struct Killed;

    /// Dies at the `n`-th point from now (0: the next).
    pub(in super::super) fn arm(n: Option<u64>) {
        LEFT.set(n);
    }

    pub(in super::super) fn point() {
        match LEFT.get() {
            Some(0) => {
                LEFT.set(None);
                std::panic::panic_any(Killed);
            }
            Some(n) => LEFT.set(Some(n - 1)),
            None => {}
        }
    }
}

pub(super) fn open_dir(at: &File, name: &[u8]) -> Res<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(at, name, flags, Mode::empty()).map(File::from).map_err(errno)
}

/// Opens a regular file for reading and writing.
pub(super) fn open_file(at: &File, name: &[u8]) -> Res<File> {
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    match fs::openat(at, name, flags | OFlags::RDWR, Mode::empty()) {
        // A brick whose file system went read-only can still serve reads.
        Err(rustix::io::Errno::ROFS) => fs::openat(at, name, flags | OFlags::RDONLY, Mode::empty()),
        other => other,
    }
    .map(File::from)
    .map_err(errno)
}

pub(super) fn create_file(at: &File, name: &[u8]) -> Res<File> {
    point();
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(at, name, flags, Mode::from_raw_mode(0o600)).map(File::from).map_err(errno)
}

pub(super) fn stat_at(at: &File, name: &[u8]) -> Res<Stat> {
    fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW).map_err(errno)
}

/// As [`stat_at`]; `None` when there is no such name.
pub(super) fn stat_opt(at: &File, name: &[u8]) -> Res<Option<Stat>> {
    match stat_at(at, name) {
        Ok(s) => Ok(Some(s)),
        Err(Errno::ENOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

pub(super) fn stat_fd(file: &File) -> Res<Stat> {
    fs::fstat(file).map_err(errno)
}

pub(super) fn mkdir(at: &File, name: &[u8]) -> Res<()> {
    point();
    fs::mkdirat(at, name, Mode::from_raw_mode(0o700)).map_err(errno)
}

pub(super) fn mknod(at: &File, name: &[u8], kind: FileKind, rdev: u64) -> Res<()> {
    point();
    let kind = match kind {
        FileKind::Fifo => FileType::Fifo,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharacterDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::File => FileType::RegularFile,
        FileKind::Dir | FileKind::Symlink => return Err(Errno::EINVAL),
    };
    fs::mknodat(at, name, kind, Mode::from_raw_mode(0o600), rdev).map_err(errno)
}

pub(super) fn symlink(text: &[u8], at: &File, name: &[u8]) -> Res<()> {
    point();
    fs::symlinkat(text, at, name).map_err(errno)
}

pub(super) fn readlink(at: &File, name: &[u8]) -> Res<Vec<u8>> {
    fs::readlinkat(at, name, Vec::new()).map(std::ffi::CString::into_bytes).map_err(errno)
}

pub(super) fn link(from: &File, name: &[u8], to: &File, new: &[u8]) -> Res<()> {
    point();
    fs::linkat(from, name, to, new, AtFlags::empty()).map_err(errno)
}

pub(super) fn unlink(at: &File, name: &[u8]) -> Res<()> {
    point();
    fs::unlinkat(at, name, AtFlags::empty()).map_err(errno)
}

pub(super) fn rmdir(at: &File, name: &[u8]) -> Res<()> {
    point();
    fs::unlinkat(at, name, AtFlags::REMOVEDIR).map_err(|e| match e {
        rustix::io::Errno::EXIST => Errno::ENOTEMPTY,
        e => errno(e),
    })
}

/// `flags` as `renameat2`'s.
pub(super) fn rename(from: &File, name: &[u8], to: &File, new: &[u8], flags: u32) -> Res<()> {
    point();
    let flags = RenameFlags::from_bits_retain(flags);
    if flags.is_empty() { fs::renameat(from, name, to, new) } else { fs::renameat_with(from, name, to, new, flags) }.map_err(errno)
}

/// An object by whatever names it: a directory's descriptor, or a path relative to `.brickraft`.
#[derive(Clone, Copy)]
pub(super) enum At<'a> {
    Fd(&'a File),
    Path(&'a File, &'a [u8]),
}

impl At<'_> {
    pub(super) fn stat(self) -> Res<Stat> {
        match self {
            At::Fd(f) => stat_fd(f),
            At::Path(dir, path) => stat_at(dir, path),
        }
    }

    /// `None` leaves a time alone.
    pub(super) fn set_times(self, atime: Option<TimeSpec>, mtime: Option<TimeSpec>) -> Res<()> {
        point();
        let spec = |t: Option<TimeSpec>| match t {
            Some(t) => Timespec { tv_sec: t.sec, tv_nsec: t.nsec.into() },
            None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        };
        let times = Timestamps { last_access: spec(atime), last_modification: spec(mtime) };
        match self {
            At::Fd(f) => fs::futimens(f, &times),
            At::Path(dir, path) => fs::utimensat(dir, path, &times, AtFlags::SYMLINK_NOFOLLOW),
        }
        .map_err(errno)
    }

    pub(super) fn chown(self, uid: Option<u32>, gid: Option<u32>) -> Res<()> {
        point();
        // -1 means "leave alone" to the kernel and is no valid id.
        if uid == Some(u32::MAX) || gid == Some(u32::MAX) {
            return Err(Errno::EINVAL);
        }
        let (uid, gid) = (uid.map(fs::Uid::from_raw), gid.map(fs::Gid::from_raw));
        match self {
            At::Fd(f) => fs::fchown(f, uid, gid),
            At::Path(dir, path) => fs::chownat(dir, path, uid, gid, AtFlags::SYMLINK_NOFOLLOW),
        }
        .map_err(errno)
    }

    /// Not for symbolic links.
    pub(super) fn chmod(self, mode: u32) -> Res<()> {
        point();
        let mode = Mode::from_raw_mode(mode & 0o7777);
        match self {
            At::Fd(f) => fs::fchmod(f, mode),
            At::Path(dir, path) => fs::chmodat(dir, path, mode, AtFlags::empty()),
        }
        .map_err(errno)
    }

    /// For `l*xattr`, which have no form that is relative to a descriptor: the component before the last
    /// leads through our own descriptor, the last is not followed.
    fn proc_path(dir: &File, path: &[u8]) -> Vec<u8> {
        let mut full = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
        full.extend_from_slice(path);
        full
    }

    pub(super) fn get_xattr(self, name: &[u8]) -> Res<Vec<u8>> {
        let mut buf = vec![0; 256];
        loop {
            let got = match self {
                At::Fd(f) => fs::fgetxattr(f, name, &mut buf[..]),
                At::Path(dir, path) => fs::lgetxattr(Self::proc_path(dir, path), name, &mut buf[..]),
            };
            match got {
                Ok(n) => {
                    buf.truncate(n);
                    return Ok(buf);
                }
                // The largest value that Linux allows fits the second buffer.
                Err(rustix::io::Errno::RANGE) if buf.len() < 65_536 => buf = vec![0; 65_536],
                Err(e) => return Err(errno(e)),
            }
        }
    }

    pub(super) fn list_xattr(self) -> Res<Vec<Vec<u8>>> {
        let mut buf = vec![0; 65_536];
        let n = match self {
            At::Fd(f) => fs::flistxattr(f, &mut buf[..]),
            At::Path(dir, path) => fs::llistxattr(Self::proc_path(dir, path), &mut buf[..]),
        }
        .map_err(errno)?;
        Ok(buf[..n].split(|b| *b == 0).filter(|n| !n.is_empty()).map(<[u8]>::to_vec).collect())
    }

    pub(super) fn set_xattr(self, name: &[u8], value: &[u8], flags: u32) -> Res<()> {
        point();
        let flags = XattrFlags::from_bits(flags).ok_or(Errno::EINVAL)?;
        match self {
            At::Fd(f) => fs::fsetxattr(f, name, value, flags),
            At::Path(dir, path) => fs::lsetxattr(Self::proc_path(dir, path), name, value, flags),
        }
        .map_err(errno)
    }

    pub(super) fn remove_xattr(self, name: &[u8]) -> Res<()> {
        point();
        match self {
            At::Fd(f) => fs::fremovexattr(f, name),
            At::Path(dir, path) => fs::lremovexattr(Self::proc_path(dir, path), name),
        }
        .map_err(errno)
    }

    /// The gfid that the object carries; `None` when it is not ours.
    pub(super) fn gfid(self) -> Res<Option<Gfid>> {
        let mut buf = [0; 16];
        let got = match self {
            At::Fd(f) => fs::fgetxattr(f, XATTR_GFID, &mut buf),
            At::Path(dir, path) => fs::lgetxattr(Self::proc_path(dir, path), XATTR_GFID, &mut buf),
        };
        match got {
            Ok(16) => Ok(Some(Gfid(buf))),
            Ok(_) | Err(rustix::io::Errno::NODATA | rustix::io::Errno::RANGE | rustix::io::Errno::OPNOTSUPP) => Ok(None),
            Err(e) => Err(errno(e)),
        }
    }
}

pub(super) fn truncate(file: &File, size: u64) -> Res<()> {
    point();
    fs::ftruncate(file, size).map_err(errno)
}

pub(super) fn fallocate(file: &File, mode: u32, offset: u64, len: u64) -> Res<()> {
    point();
    fs::fallocate(file, fs::FallocateFlags::from_bits_retain(mode), offset, len).map_err(errno)
}

/// `SEEK_DATA` or `SEEK_HOLE`.
pub(super) fn seek(file: &File, offset: u64, hole: bool) -> Res<u64> {
    fs::seek(file, if hole { fs::SeekFrom::Hole(offset) } else { fs::SeekFrom::Data(offset) }).map_err(errno)
}

pub(super) fn stat_vfs(file: &File) -> Res<fs::StatVfs> {
    fs::fstatvfs(file).map_err(errno)
}

/// Waits until all of the file system is durable.
pub(super) fn sync_fs(file: &File) -> Res<()> {
    fs::syncfs(file).map_err(errno)
}

/// One entry as the kernel lists it.
pub(super) struct RawEntry {
    pub(super) name: Vec<u8>,
    pub(super) cookie: u64,
}

/// The entries after `cookie` (0: from the start) that fit in one buffer of `bytes`; empty at the end.
/// The cookies are the file system's own: they stay good while the directory changes.
pub(super) fn list(dir: &File, cookie: u64, bytes: usize) -> Res<Vec<RawEntry>> {
    fs::seek(dir, fs::SeekFrom::Start(cookie)).map_err(errno)?;
    let mut buf = Vec::with_capacity(bytes.clamp(4096, 1 << 16));
    let mut raw = fs::RawDir::new(dir, buf.spare_capacity_mut());
    let mut out = Vec::new();
    while let Some(entry) = raw.next() {
        let entry = entry.map_err(errno)?;
        let name = entry.file_name().to_bytes();
        // `.` and `..` are handed on with an empty name: their cookies matter, they do not.
        let name = if matches!(name, b"." | b"..") { Vec::new() } else { name.to_vec() };
        let cookie = entry.next_entry_cookie();
        out.push(RawEntry { name, cookie });
        if raw.is_buffer_empty() {
            break;
        }
    }
    Ok(out)
}

/// All names of a directory, in no order.
pub(super) fn list_all(dir: &File) -> Res<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    let mut cookie = 0;
    loop {
        let batch = list(dir, cookie, 1 << 16)?;
        let Some(last) = batch.last() else { return Ok(names) };
        cookie = last.cookie;
        names.extend(batch.into_iter().map(|e| e.name).filter(|n| !n.is_empty()));
    }
}

/// What a stat's mode says.
pub(super) fn kind(stat: &Stat) -> FileKind {
    FileType::from_raw_mode(stat.st_mode).into()
}

pub(super) fn is_dir(stat: &Stat) -> bool {
    kind(stat) == FileKind::Dir
}

/// What the user sees of `stat`: without the index's link, and the root without our directory.
#[allow(clippy::cast_sign_loss, clippy::unnecessary_cast, reason = "the types of stat's fields differ between architectures")]
pub(super) fn attr(gfid: Gfid, stat: &Stat) -> Attr {
    let kind = kind(stat);
    let links = u32::try_from(stat.st_nlink).unwrap_or(u32::MAX);
    let ours = kind != FileKind::Dir || (gfid == Gfid::ROOT && links > 2);
    let device = matches!(kind, FileKind::CharDevice | FileKind::BlockDevice);
    Attr {
        gfid,
        kind,
        mode: stat.st_mode & 0o7777,
        nlink: if ours { links.saturating_sub(1) } else { links },
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: if device { stat.st_rdev as u64 } else { 0 },
        size: stat.st_size as u64,
        blocks: stat.st_blocks as u64,
        atime: TimeSpec { sec: stat.st_atime as i64, nsec: stat.st_atime_nsec as u32 },
        mtime: TimeSpec { sec: stat.st_mtime as i64, nsec: stat.st_mtime_nsec as u32 },
        ctime: TimeSpec { sec: stat.st_ctime as i64, nsec: stat.st_ctime_nsec as u32 },
    }
}
