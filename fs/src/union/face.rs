//! [`Union`]: the face that the front end sees.

use super::{BranchChange, BranchInfo, Caller, DirEntry, Entry, Res, UnionConfig, UnionError};
use crate::fop::{Attr, Errno, FileKind, SetAttr, StatFs};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// A union of branches. Called by several threads at once; calls may block.
#[derive(Debug)]
pub struct Union {
}

impl Union {
    /// Puts the branches together and sweeps what a crash left in their work directories.
    ///
    /// # Errors
    /// Says which branch, and what to do.
    pub fn open(config: UnionConfig) -> Result<Self, UnionError> { let _ = config; Err(UnionError::NotSupportedYet("union")) }
    /// Removes the work directories. Called once, at the end.
    pub fn close(&self) {}

    /// Finds a name; counts one reference. A negative answer is `ENOENT`.
    pub fn lookup(&self, _parent: u64, _name: &[u8]) -> Res<Entry> { Err(Errno::ENOSYS) }
    /// Drops `count` references.
    pub fn forget(&self, _ino: u64, _count: u64) {}
    /// stat(2).
    pub fn getattr(&self, _ino: u64) -> Res<Attr> { Err(Errno::ENOSYS) }
    /// chmod, chown, truncate, utimes. `kill_priv`: a truncation takes set-id bits away.
    pub fn setattr(&self, _ino: u64, _set: &SetAttr, _kill_priv: bool) -> Res<Attr> { Err(Errno::ENOSYS) }
    /// readlink(2).
    pub fn readlink(&self, _ino: u64) -> Res<Vec<u8>> { Err(Errno::ENOSYS) }
    /// mknod(2), and creat(2) with `FileKind::File`; counts one reference. `EEXIST` when the name is there.
    pub fn mknod(&self, _parent: u64, _name: &[u8], _kind: FileKind, _mode: u32, _rdev: u64, _caller: &Caller) -> Res<Entry> { Err(Errno::ENOSYS) }
    /// mkdir(2); counts one reference.
    pub fn mkdir(&self, _parent: u64, _name: &[u8], _mode: u32, _caller: &Caller) -> Res<Entry> { Err(Errno::ENOSYS) }
    /// symlink(2); counts one reference.
    pub fn symlink(&self, _parent: u64, _name: &[u8], _target: &[u8], _caller: &Caller) -> Res<Entry> { Err(Errno::ENOSYS) }
    /// link(2); counts one reference.
    pub fn link(&self, _ino: u64, _parent: u64, _name: &[u8]) -> Res<Entry> { Err(Errno::ENOSYS) }
    /// open(2) with `O_TMPFILE`: a file without a name that `link` can name; counts one reference.
    pub fn tmpfile(&self, _parent: u64, _mode: u32, _caller: &Caller) -> Res<Entry> { Err(Errno::ENOSYS) }
    /// unlink(2).
    pub fn unlink(&self, _parent: u64, _name: &[u8]) -> Res<()> { Err(Errno::ENOSYS) }
    /// rmdir(2).
    pub fn rmdir(&self, _parent: u64, _name: &[u8]) -> Res<()> { Err(Errno::ENOSYS) }
    /// renameat2(2); `flags`: `fop::RENAME_NOREPLACE`, `fop::RENAME_EXCHANGE`.
    pub fn rename(&self, _parent: u64, _name: &[u8], _new_parent: u64, _new_name: &[u8], _flags: u32) -> Res<()> { Err(Errno::ENOSYS) }
    /// pread(2): bytes read, short only at the end of the file.
    pub fn read(&self, _ino: u64, _offset: u64, _buf: &mut [u8]) -> Res<usize> { Err(Errno::ENOSYS) }
    /// pwrite(2): all of it. `kill_priv`: takes set-id bits away (`FUSE_WRITE_KILL_SUIDGID`).
    pub fn write(&self, _ino: u64, _offset: u64, _data: &[u8], _kill_priv: bool) -> Res<()> { Err(Errno::ENOSYS) }
    /// fallocate(2).
    pub fn fallocate(&self, _ino: u64, _offset: u64, _len: u64, _mode: u32) -> Res<()> { Err(Errno::ENOSYS) }
    /// lseek(2); `whence`: `SEEK_DATA` (3) or `SEEK_HOLE` (4).
    pub fn lseek(&self, _ino: u64, _offset: u64, _whence: u32) -> Res<u64> { Err(Errno::ENOSYS) }
    /// copy_file_range(2): bytes copied, 0 at the end of the source.
    pub fn copy_file_range(&self, _from: u64, _from_offset: u64, _to: u64, _to_offset: u64, _len: u64) -> Res<u64> { Err(Errno::ENOSYS) }
    /// fsync(2) and fdatasync(2), of directories too.
    pub fn fsync(&self, _ino: u64, _data_only: bool) -> Res<()> { Err(Errno::ENOSYS) }
    /// Feeds the entries after `cookie` (0: from the start) to `add` until it says that the buffer is full; the refused entry's reference is
    /// not counted.
    pub fn readdir(&self, _ino: u64, _cookie: u64, _plus: bool, _add: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Res<()> { Err(Errno::ENOSYS) }
    /// getxattr(2).
    pub fn getxattr(&self, _ino: u64, _name: &[u8]) -> Res<Vec<u8>> { Err(Errno::ENOSYS) }
    /// listxattr(2): the names, each ended by NUL.
    pub fn listxattr(&self, _ino: u64) -> Res<Vec<u8>> { Err(Errno::ENOSYS) }
    /// setxattr(2).
    pub fn setxattr(&self, _ino: u64, _name: &[u8], _value: &[u8], _flags: u32) -> Res<()> { Err(Errno::ENOSYS) }
    /// removexattr(2).
    pub fn removexattr(&self, _ino: u64, _name: &[u8]) -> Res<()> { Err(Errno::ENOSYS) }
    /// statfs(2).
    pub fn statfs(&self) -> Res<StatFs> { Err(Errno::ENOSYS) }
    /// A descriptor of the file as it lies in a local branch, for FUSE passthrough; with `write` it is copied up first. `None` where
    /// there is none (a volume's file).
    pub fn backing(&self, _ino: u64, _write: bool) -> Res<Option<Arc<OwnedFd>>> { Err(Errno::ENOSYS) }

    /// The branches, the topmost first.
    #[must_use]
    pub fn branches(&self) -> Vec<BranchInfo> { Vec::new() }
    /// How it was configured, with the branches as they are now.
    #[must_use]
    pub fn config(&self) -> UnionConfig { UnionConfig::default() }
    /// Changes the branches of the live union. Afterwards the front end drops what the kernel caches.
    ///
    /// # Errors
    /// Says which branch, and why not.
    pub fn change(&self, change: BranchChange) -> Result<(), UnionError> { let _ = change; Err(UnionError::NotSupportedYet("union")) }
    /// The numbers that the front end holds references to: what to invalidate after a change of branches.
    #[must_use]
    pub fn live(&self) -> Vec<u64> { Vec::new() }
}
