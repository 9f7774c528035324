//! Who may write to files of a live union: the kernel asks a union about opens seldom or never, so the processes are looked at, as fuser(1) does.

use rustix::fs::{AtFlags, CWD, StatxFlags, makedev, statx};
use std::fs::read_dir;
use std::path::{Path, PathBuf};

/// A file that a process has open for writing, or mapped so that what it writes goes there.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Writer {
    /// The file's number in the union.
    pub(super) ino: u64,
    /// The process.
    pub(super) pid: u32,
    /// The file as the process sees it.
    pub(super) path: PathBuf,
}

/// The device and inode numbers of what `path` leads to, as the kernel has them: its file system is not asked.
pub(super) fn identity(path: &Path) -> rustix::io::Result<(u64, u64)> {
    let stat = statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::INO)?;
    Ok((makedev(stat.stx_dev_major, stat.stx_dev_minor), stat.stx_ino))
}

/// All writers of files on the file system of this device number. Processes that end meanwhile are left out, and so are those that this one must not
/// look at.
pub(super) fn on(device: u64) -> Vec<Writer> {
    let pids = read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .flat_map(|pid| [open(device, pid), mapped(device, pid)])
        .flatten()
        .collect()
}

fn open(device: u64, pid: u32) -> Vec<Writer> {
    let fds = read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let writer = |fd: PathBuf| {
        let (its_device, ino) = identity(&fd).ok()?;
        let info =
            (its_device == device).then(|| std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", fd.file_name()?.to_str()?)).ok())??;
        may_write(&info).then(|| Writer { ino, pid, path: std::fs::read_link(&fd).unwrap_or_default() })
    };
    fds.filter_map(|fd| writer(fd.path())).collect()
}

/// What /proc/PID/fdinfo/FD says: O_WRONLY or O_RDWR.
fn may_write(info: &str) -> bool {
    let flags = info.lines().find_map(|line| u32::from_str_radix(line.strip_prefix("flags:")?.trim(), 8).ok());
    flags.is_some_and(|flags| flags & 0o3 != 0)
}

fn mapped(device: u64, pid: u32) -> Vec<Writer> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    maps.lines()
        .filter_map(mapping)
        .filter(|(its_device, ..)| *its_device == device)
        .map(|(_, ino, path)| Writer { ino, pid, path })
        .collect()
}

/// The device, inode and path of a line of /proc/PID/maps that stands for a shared mapping that can be written to.
fn mapping(line: &str) -> Option<(u64, u64, PathBuf)> {
    let mut words = line.splitn(6, ' ').skip(1);
    let (permissions, _offset, device, ino) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let (major, minor) = device.split_once(':')?;
    let device = makedev(u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
    let is_written = permissions.as_bytes().get(1) == Some(&b'w') && permissions.ends_with('s');
    is_written.then_some((device, ino.parse().ok()?, words.next().unwrap_or_default().trim_start().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_read() {
        let line = "7f1c2a000000-7f1c2a021000 rw-s 00000000 00:2a 1234                       /u/a file";
        assert_eq!(mapping(line), Some((makedev(0, 0x2a), 1234, "/u/a file".into())));
        for other in [
            "7f1c2a000000-7f1c2a021000 r--s 00000000 00:2a 1234    /u/f",
            "7f1c2a000000-7f1c2a021000 rw-p 00000000 00:2a 1234    /u/f",
            "",
            "x",
        ] {
            assert_eq!(mapping(other), None, "{other}");
        }
    }

    #[test]
    fn this_process_is_found() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("f");
        let reader = || std::fs::File::open(&path).expect("open");
        let file = std::fs::File::create(&path).expect("create");
        let (device, ino) = identity(&path).expect("stat");
        let mine = || on(device).into_iter().filter(|w| w.ino == ino).collect::<Vec<_>>();
        let _reads = reader();
        assert_eq!(mine(), [Writer { ino, pid: std::process::id(), path: path.clone() }]);
        drop(file);
        assert_eq!(mine(), []);
    }
}
