//! Between the kernel's types and ours.

use crate::fop::{Attr, Errno, FileKind, TimeSpec};
use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(super) fn errno(e: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(e.0)
}

fn system_time(t: TimeSpec) -> SystemTime {
    let nanos = Duration::from_nanos(u64::from(t.nsec));
    match u64::try_from(t.sec) {
        Ok(sec) => UNIX_EPOCH + Duration::from_secs(sec) + nanos,
        Err(_) => UNIX_EPOCH - Duration::from_secs(t.sec.unsigned_abs()) + nanos,
    }
}

pub(super) fn time_spec(t: SystemTime) -> TimeSpec {
    match t.duration_since(UNIX_EPOCH) {
        Ok(d) => TimeSpec { sec: d.as_secs().cast_signed(), nsec: d.subsec_nanos() },
        Err(before) => {
            let d = before.duration();
            let borrow = i64::from(d.subsec_nanos() > 0);
            TimeSpec { sec: -d.as_secs().cast_signed() - borrow, nsec: (1_000_000_000 - d.subsec_nanos()) % 1_000_000_000 }
        }
    }
}

pub(super) fn time_or_now(t: TimeOrNow) -> TimeSpec {
    match t {
        TimeOrNow::SpecificTime(t) => time_spec(t),
        TimeOrNow::Now => time_spec(SystemTime::now()),
    }
}

pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Dir => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

/// The kind that mknod(2)'s mode names; `None` for a directory or nonsense.
pub(super) fn node_kind(mode: u32) -> Option<FileKind> {
    Some(match mode & 0o170_000 {
        0 | 0o100_000 => FileKind::File,
        0o010_000 => FileKind::Fifo,
        0o140_000 => FileKind::Socket,
        0o020_000 => FileKind::CharDevice,
        0o060_000 => FileKind::BlockDevice,
        _ => return None,
    })
}

pub(super) fn file_attr(ino: INodeNo, a: &Attr) -> FileAttr {
    FileAttr {
        ino,
        size: a.size,
        blocks: a.blocks,
        atime: system_time(a.atime),
        mtime: system_time(a.mtime),
        ctime: system_time(a.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(a.kind),
        perm: u16::try_from(a.mode & 0o7777).expect("12 bits"),
        nlink: a.nlink,
        uid: a.uid,
        gid: a.gid,
        // The FUSE protocol carries 32 bits: Linux's own packing of major and minor numbers.
        rdev: u32::try_from(a.rdev & 0xffff_ffff).expect("masked"),
        blksize: 4096,
        flags: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_survive_the_round_trip() {
        for t in [
            TimeSpec { sec: 0, nsec: 0 },
            TimeSpec { sec: -1, nsec: 999_999_999 },
            TimeSpec { sec: -5, nsec: 0 },
            TimeSpec { sec: 1 << 33, nsec: 7 },
        ] {
            assert_eq!(time_spec(system_time(t)), t);
        }
    }
}
