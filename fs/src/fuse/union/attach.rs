//! mount(2) itself. The type shows in /proc/mounts, so that mount(8) finds our helper again, and no fusermount is needed.

use super::UnionMountOptions;
use rustix::fs::{Mode, OFlags, major, minor};
use rustix::mount::{MountFlags as Kernel, UnmountFlags};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What the kernel reads ahead of a sequential reader, KiB: its default for FUSE is 128.
const READ_AHEAD_KB: u32 = 1024;

/// Flags of a mount, as mount(8) has words for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are mount(8)'s")]
pub struct MountFlags {
    pub read_only: bool,
    pub no_suid: bool,
    pub no_dev: bool,
    pub no_exec: bool,
    pub no_atime: bool,
    pub no_dir_atime: bool,
    pub sync: bool,
    pub dir_sync: bool,
}

impl MountFlags {
    fn kernel(self) -> Kernel {
        let words = [
            (self.read_only, Kernel::RDONLY),
            (self.no_suid, Kernel::NOSUID),
            (self.no_dev, Kernel::NODEV),
            (self.no_exec, Kernel::NOEXEC),
            (self.no_atime, Kernel::NOATIME),
            (!self.no_atime, Kernel::RELATIME),
            (self.no_dir_atime, Kernel::NODIRATIME),
            (self.sync, Kernel::SYNCHRONOUS),
            (self.dir_sync, Kernel::DIRSYNC),
        ];
        words.into_iter().filter(|(wanted, _)| *wanted).fold(Kernel::empty(), |all, (_, flag)| all | flag)
    }
}

fn c_string(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a NUL byte"))
}

/// Opens /dev/fuse and mounts it on `dir`; the kernel's first request waits on the device.
pub(super) fn attach(dir: &Path, kind: &str, options: &UnionMountOptions) -> io::Result<OwnedFd> {
    let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let data = format!("fd={},rootmode=40000,user_id={uid},group_id={gid},allow_other,default_permissions", device.as_raw_fd());
    let (source, data, kind) = (c_string(options.source.as_bytes())?, c_string(data.as_bytes())?, c_string(kind.as_bytes())?);
    rustix::mount::mount(source.as_c_str(), dir, kind.as_c_str(), options.flags.kernel(), Some(data.as_c_str()))?;
    Ok(device)
}

pub(super) fn detach(dir: &Path) -> io::Result<()> {
    Ok(rustix::mount::unmount(dir, UnmountFlags::DETACH)?)
}

pub(super) fn set_flags(dir: &Path, flags: MountFlags) -> io::Result<()> {
    let target = c_string(dir.as_os_str().as_bytes())?;
    Ok(rustix::mount::mount_remount(target.as_c_str(), flags.kernel(), c"")?)
}

/// A remount that changes no flag.
pub(super) fn remount_as_it_is(dir: &Path) -> io::Result<()> {
    use rustix::fs::StatVfsMountFlags as Is;
    let is = rustix::fs::statvfs(dir)?.f_flag;
    let flags = MountFlags {
        read_only: is.contains(Is::RDONLY),
        no_suid: is.contains(Is::NOSUID),
        no_dev: is.contains(Is::NODEV),
        no_exec: is.contains(Is::NOEXEC),
        no_atime: is.contains(Is::NOATIME),
        no_dir_atime: is.contains(Is::NODIRATIME),
        sync: is.contains(Is::SYNCHRONOUS),
        dir_sync: false,
    };
    set_flags(dir, flags)
}

/// Lets the kernel read further ahead; without the right to, it does not.
pub(super) fn read_ahead(dir: &Path) {
    let set = || -> io::Result<()> {
        let device = rustix::fs::stat(dir)?.st_dev;
        let file = format!("/sys/class/bdi/{}:{}/read_ahead_kb", major(device), minor(device));
        std::fs::write(file, READ_AHEAD_KB.to_string())
    };
    if let Err(e) = set() {
        tracing::info!(%e, "the kernel's read-ahead stays as it is");
    }
}
