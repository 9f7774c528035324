//! A branch: the [`Branch`] trait, [`LocalBranch`] (a directory), [`VolumeBranch`] (a directory of a volume) and [`SimBranch`] (the same in
//! memory, with power cuts), with one [`conformance`] suite for all three.
//!
//! A branch knows nothing of whiteouts or of other branches. Directories are held by handle and objects named relative to them, so that a
//! rename of a parent confuses nobody.

pub mod conformance;
mod local;
mod sim;
mod volume;

pub use local::{LocalBranch, LocalObject};
pub use sim::{SimBranch, SimObject};
#[cfg(test)]
pub(in crate::union) use volume::tests::volume;
pub use volume::{VolumeBranch, VolumeObject};

use super::Res;
use crate::fop::{Errno, FileKind, SetAttr, StatFs, TimeSpec};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// An object that is held: a directory, or an open file.
#[derive(Clone, Debug)]
pub enum Handle {
    /// By descriptor.
    Local(Arc<LocalObject>),
    /// By gfid.
    Volume(Arc<VolumeObject>),
    /// By number.
    Sim(Arc<SimObject>),
}

impl Handle {
    /// Whether both are certainly handles of one object.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Local(a), Self::Local(b)) => Arc::ptr_eq(a, b),
            (Self::Volume(a), Self::Volume(b)) => Arc::ptr_eq(a, b),
            (Self::Sim(a), Self::Sim(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

/// An object by whatever names it.
#[derive(Clone, Copy, Debug)]
pub enum At<'a> {
    /// By its name in a directory. Not followed if it is a symbolic link.
    Name(&'a Handle, &'a [u8]),
    /// By its own handle.
    Open(&'a Handle),
}

/// What an object is for good: no two objects that exist at one time share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ObjectId(pub u64, pub u64);

/// stat(2) of a branch's object.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are stat(2)'s")]
pub struct Stat {
    pub id: ObjectId,
    /// The file system that it lies on.
    pub dev: u64,
    pub ino: u64,
    pub kind: FileKind,
    /// `mode & 0o7777`.
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u64,
    pub size: u64,
    /// Units of 512 bytes.
    pub blocks: u64,
    pub atime: TimeSpec,
    pub mtime: TimeSpec,
    pub ctime: TimeSpec,
}

/// What a handle is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// A directory: to name its objects, list it and change it; or any object, to name it.
    Path,
    /// A regular file's data.
    Read,
    /// The same, without a mark that it was read (`O_NOATIME`), where that is possible.
    ReadQuietly,
    /// Both ways.
    Write,
}

/// What is made.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the names are mknod(2)'s")]
pub struct New<'a> {
    pub kind: FileKind,
    pub mode: u32,
    pub rdev: u64,
    /// Of a symbolic link.
    pub target: &'a [u8],
    pub uid: u32,
    pub gid: u32,
}

/// One name as a directory lists it; never `.` or `..`.
#[derive(Clone, Copy, Debug)]
pub struct Listed<'a> {
    /// The name.
    pub name: &'a [u8],
    /// As [`Stat::ino`].
    pub ino: u64,
    /// Its kind.
    pub kind: FileKind,
}

/// What [`Branch::fetch`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// There is nothing to fetch.
    InMemory,
    /// The disk was asked for it.
    Asked,
}

/// Linux's `RENAME_WHITEOUT`: leaves a character device 0/0 under the old name.
pub const RENAME_WHITEOUT: u32 = 4;

/// A directory tree that a union stacks. Calls come from several threads at once and may block.
///
/// Errors are the system calls'; each call is atomic, and changes of names reach the disk in the order in which they were made. Data reaches it by [`Branch::fsync`]
/// alone.
pub trait Branch: Send + Sync + std::fmt::Debug {
    /// The root directory.
    fn root(&self) -> Handle;
    /// Whether `RENAME_WHITEOUT` and device nodes 0/0 work: what overlayfs's layout needs.
    fn can_hold_overlay(&self) -> bool;
    /// stat(2).
    fn stat(&self, at: At<'_>) -> Res<Stat>;
    /// Holds an object.
    fn open(&self, at: At<'_>, how: Open) -> Res<Handle>;
    /// All names of a directory.
    fn list(&self, dir: &Handle, each: &mut dyn FnMut(Listed<'_>)) -> Res<()>;
    /// readlink(2).
    fn readlink(&self, at: At<'_>) -> Res<Vec<u8>>;
    /// Makes an object with exactly this owner and mode (but for what a default ACL of `dir` says).
    fn make(&self, dir: &Handle, name: &[u8], new: &New<'_>) -> Res<Stat>;
    /// Makes a regular file as [`Branch::make`] does, and leaves it open both ways where that costs nothing.
    fn make_open(&self, dir: &Handle, name: &[u8], new: &New<'_>) -> Res<(Stat, Option<Handle>)> {
        self.make(dir, name, new).map(|stat| (stat, None))
    }
    /// Makes an empty regular file as [`Branch::make`] does, but without a name (`O_TMPFILE`), open both ways: [`Branch::link`] gives it one.
    /// It is gone with its handle, or with a crash. `None` where that is not possible.
    fn make_unnamed(&self, dir: &Handle, new: &New<'_>) -> Res<Option<(Stat, Handle)>> {
        let _ = (dir, new);
        Ok(None)
    }
    /// link(2).
    fn link(&self, from: At<'_>, dir: &Handle, name: &[u8]) -> Res<()>;
    /// unlink(2).
    fn unlink(&self, dir: &Handle, name: &[u8]) -> Res<()>;
    /// rmdir(2).
    fn rmdir(&self, dir: &Handle, name: &[u8]) -> Res<()>;
    /// renameat2(2).
    fn rename(&self, dir: &Handle, name: &[u8], new_dir: &Handle, new_name: &[u8], flags: u32) -> Res<()>;
    /// chown, chmod, truncate, utimes, in that order. A change of owner takes a file's set-id bits away, as chown(2) does.
    fn set_attr(&self, at: At<'_>, set: &SetAttr) -> Res<()>;
    /// getxattr(2).
    fn get_xattr(&self, at: At<'_>, name: &[u8]) -> Res<Vec<u8>>;
    /// listxattr(2). None at all where there are no extended attributes.
    fn list_xattr(&self, at: At<'_>) -> Res<Vec<Vec<u8>>>;
    /// setxattr(2).
    fn set_xattr(&self, at: At<'_>, name: &[u8], value: &[u8], flags: u32) -> Res<()>;
    /// removexattr(2).
    fn remove_xattr(&self, at: At<'_>, name: &[u8]) -> Res<()>;
    /// pread(2) on what was opened for it: short only at the end of the file.
    fn read(&self, file: &Handle, offset: u64, buf: &mut [u8]) -> Res<usize>;
    /// The same, and whether the disk had to be waited for, where that is known.
    fn read_telling(&self, file: &Handle, offset: u64, buf: &mut [u8]) -> Res<(usize, bool)> {
        self.read(file, offset, buf).map(|n| (n, false))
    }
    /// Whether [`Branch::fetch`] does anything.
    fn fetches(&self) -> bool {
        false
    }
    /// Lets the first `bytes` of a file be read into memory, if they are not there, and does not wait for it. Changes no time of access.
    fn fetch(&self, at: At<'_>, bytes: u64) -> Res<Fetched> {
        let _ = (at, bytes);
        Ok(Fetched::InMemory)
    }
    /// pwrite(2): all of it.
    fn write(&self, file: &Handle, offset: u64, data: &[u8]) -> Res<()>;
    /// fallocate(2).
    fn fallocate(&self, file: &Handle, offset: u64, len: u64, mode: u32) -> Res<()>;
    /// lseek(2) with `SEEK_DATA` (3) or `SEEK_HOLE` (4).
    fn lseek(&self, file: &Handle, offset: u64, whence: u32) -> Res<u64>;
    /// fsync(2) of an open file, or of a directory.
    fn fsync(&self, file: &Handle, data_only: bool) -> Res<()>;
    /// syncfs(2): all that there is reaches the disk. `EOPNOTSUPP` where that is not possible.
    fn sync_all(&self) -> Res<()> {
        Err(Errno::EOPNOTSUPP)
    }
    /// statfs(2).
    fn statfs(&self) -> Res<StatFs>;
    /// Takes a work directory for as long as the handle lives; false when somebody else has it.
    fn claim(&self, dir: &Handle) -> Res<bool>;
    /// The descriptor of an open file, where it has one.
    fn descriptor(&self, file: &Handle) -> Option<Arc<OwnedFd>> {
        let _ = file;
        None
    }
    /// Copies `size` bytes from the start of a file of any branch to an empty one, holes kept.
    fn copy_from(&self, to: &Handle, source: &dyn Branch, from: &Handle, size: u64) -> Res<()> {
        copy_by_reading(self, to, source, from, size)
    }
}

pub(super) const SEEK_DATA: u32 = 3;
pub(super) const SEEK_HOLE: u32 = 4;
/// Bytes of one read while copying.
const COPY_CHUNK_BYTES_MAX: usize = 1 << 20;

/// lseek(2) in a file that is copied.
type Seek<'s> = &'s mut dyn FnMut(u64, u32) -> Res<u64>;

/// Calls `each` with the start and the end of every stretch of data in the first `size` bytes.
fn data_extents(size: u64, seek: Seek<'_>, each: &mut dyn FnMut(u64, u64) -> Res<()>) -> Res<()> {
    let mut at = 0;
    while at < size {
        let start = match seek(at, SEEK_DATA) {
            Ok(start) => start,
            Err(crate::fop::Errno::ENXIO) => return Ok(()),
            // No file system is bound to know its holes.
            Err(_) => return each(at, size),
        };
        if start >= size {
            return Ok(());
        }
        let end = seek(start, SEEK_HOLE)?.min(size);
        // Somebody made a hole here since: what comes after it is data all the same.
        let end = if start < end { end } else { size };
        each(start, end)?;
        at = end;
    }
    Ok(())
}

fn copy_by_reading<B: Branch + ?Sized>(to_branch: &B, to: &Handle, source: &dyn Branch, from: &Handle, size: u64) -> Res<()> {
    copy_data(to_branch, to, size, &mut |at, whence| source.lseek(from, at, whence), &mut |at, buf| source.read(from, at, buf))
}

/// Copies the first `size` bytes of what `seek` and `read` show into an empty file, holes kept.
pub(super) fn copy_data<B: Branch + ?Sized>(
    to_branch: &B,
    to: &Handle,
    size: u64,
    seek: Seek<'_>,
    read: &mut dyn FnMut(u64, &mut [u8]) -> Res<usize>,
) -> Res<()> {
    let mut buf = vec![0; COPY_CHUNK_BYTES_MAX.min(usize::try_from(size).unwrap_or(COPY_CHUNK_BYTES_MAX))];
    data_extents(size, seek, &mut |start, end| {
        let mut at = start;
        while at < end {
            let want = buf.len().min(usize::try_from(end - at).unwrap_or(buf.len()));
            let got = read(at, &mut buf[..want])?;
            if got == 0 {
                break;
            }
            to_branch.write(to, at, &buf[..got])?;
            at += got as u64;
        }
        Ok(())
    })?;
    to_branch.set_attr(At::Open(to), &SetAttr { size: Some(size), ..SetAttr::default() })
}
