//! FUSE's messages as bytes, for requests that come over io_uring: fuser reads those of the device itself. Layouts: the kernel's
//! `include/uapi/linux/fuse.h`, protocol 7.31 and later.

#![allow(clippy::host_endian_bytes, reason = "the kernel's own memory")]

use super::convert::time_spec;
use crate::fop::{Attr, FileKind, SetAttr, TimeSpec};
use std::time::{Duration, SystemTime};

/// The operations, by their numbers.
pub(super) mod opcode {
    pub(in crate::fuse) const LOOKUP: u32 = 1;
    pub(in crate::fuse) const GETATTR: u32 = 3;
    pub(in crate::fuse) const SETATTR: u32 = 4;
    pub(in crate::fuse) const READLINK: u32 = 5;
    pub(in crate::fuse) const SYMLINK: u32 = 6;
    pub(in crate::fuse) const MKNOD: u32 = 8;
    pub(in crate::fuse) const MKDIR: u32 = 9;
    pub(in crate::fuse) const UNLINK: u32 = 10;
    pub(in crate::fuse) const RMDIR: u32 = 11;
    pub(in crate::fuse) const RENAME: u32 = 12;
    pub(in crate::fuse) const LINK: u32 = 13;
    pub(in crate::fuse) const OPEN: u32 = 14;
    pub(in crate::fuse) const READ: u32 = 15;
    pub(in crate::fuse) const WRITE: u32 = 16;
    pub(in crate::fuse) const STATFS: u32 = 17;
    pub(in crate::fuse) const RELEASE: u32 = 18;
    pub(in crate::fuse) const FSYNC: u32 = 20;
    pub(in crate::fuse) const SETXATTR: u32 = 21;
    pub(in crate::fuse) const GETXATTR: u32 = 22;
    pub(in crate::fuse) const LISTXATTR: u32 = 23;
    pub(in crate::fuse) const REMOVEXATTR: u32 = 24;
    pub(in crate::fuse) const READDIR: u32 = 28;
    pub(in crate::fuse) const FSYNCDIR: u32 = 30;
    pub(in crate::fuse) const CREATE: u32 = 35;
    pub(in crate::fuse) const DESTROY: u32 = 38;
    pub(in crate::fuse) const FALLOCATE: u32 = 43;
    pub(in crate::fuse) const READDIRPLUS: u32 = 44;
    pub(in crate::fuse) const RENAME2: u32 = 45;
    pub(in crate::fuse) const LSEEK: u32 = 46;
    pub(in crate::fuse) const COPY_FILE_RANGE: u32 = 47;
    pub(in crate::fuse) const TMPFILE: u32 = 51;
}

const FATTR_MODE: u32 = 1;
const FATTR_UID: u32 = 1 << 1;
const FATTR_GID: u32 = 1 << 2;
const FATTR_SIZE: u32 = 1 << 3;
const FATTR_ATIME: u32 = 1 << 4;
const FATTR_MTIME: u32 = 1 << 5;
const FATTR_ATIME_NOW: u32 = 1 << 7;
const FATTR_MTIME_NOW: u32 = 1 << 8;
const FATTR_KILL_SUIDGID: u32 = 1 << 11;

/// The numbers of a message, in the machine's own order, one after the other. Beyond the end they are 0: the kernel sends whole structures.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbers<'a>(pub(super) &'a [u8]);

impl Numbers<'_> {
    pub(super) fn u32(&self, at: usize) -> u32 {
        self.0.get(at..at + 4).map_or(0, |b| u32::from_ne_bytes(b.try_into().expect("four bytes")))
    }

    pub(super) fn u64(&self, at: usize) -> u64 {
        self.0.get(at..at + 8).map_or(0, |b| u64::from_ne_bytes(b.try_into().expect("eight bytes")))
    }
}

/// The head of a request: `fuse_in_header`.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the names are the kernel's")]
pub(super) struct Head {
    pub(super) opcode: u32,
    pub(super) node: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) pid: u32,
}

impl Head {
    pub(super) fn new(bytes: &[u8; 40]) -> Self {
        let n = Numbers(bytes);
        Self { opcode: n.u32(4), node: n.u64(16), uid: n.u32(24), gid: n.u32(28), pid: n.u32(32) }
    }
}

/// The names at the start of a payload, each ended by a NUL, and what follows them.
pub(super) fn names<const N: usize>(mut bytes: &[u8]) -> Option<([&[u8]; N], &[u8])> {
    let mut out = [&b""[..]; N];
    for name in &mut out {
        let end = bytes.iter().position(|b| *b == 0)?;
        (*name, bytes) = (&bytes[..end], &bytes[end + 1..]);
    }
    Some((out, bytes))
}

/// `fuse_setattr_in`, and whether set-id bits must go.
pub(super) fn set_attr(op: Numbers<'_>) -> (SetAttr, bool) {
    let valid = op.u32(0);
    let given = |bit: u32| valid & bit != 0;
    let time = |bit, now_bit, sec: usize, nsec: usize| {
        given(bit).then(|| {
            if given(now_bit) { time_spec(SystemTime::now()) } else { TimeSpec { sec: op.u64(sec).cast_signed(), nsec: op.u32(nsec) } }
        })
    };
    let set = SetAttr {
        mode: given(FATTR_MODE).then(|| op.u32(68) & 0o7777),
        uid: given(FATTR_UID).then(|| op.u32(76)),
        gid: given(FATTR_GID).then(|| op.u32(80)),
        size: given(FATTR_SIZE).then(|| op.u64(16)),
        atime: time(FATTR_ATIME, FATTR_ATIME_NOW, 32, 56),
        mtime: time(FATTR_MTIME, FATTR_MTIME_NOW, 40, 60),
    };
    (set, given(FATTR_KILL_SUIDGID))
}

/// What an answer is written to: the payload's start.
#[derive(Debug)]
pub(super) struct Out<'a> {
    to: &'a mut [u8],
    len: usize,
}

impl<'a> Out<'a> {
    pub(super) const fn new(to: &'a mut [u8]) -> Self {
        Self { to, len: 0 }
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) const fn room(&self) -> usize {
        self.to.len() - self.len
    }

    /// # Panics
    /// If it does not fit: structures do, and the callers of other things look first.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.to[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
        self
    }

    pub(super) fn u32(&mut self, n: u32) -> &mut Self {
        self.bytes(&n.to_ne_bytes())
    }

    pub(super) fn u64(&mut self, n: u64) -> &mut Self {
        self.bytes(&n.to_ne_bytes())
    }

    /// `fuse_attr`.
    pub(super) fn attr(&mut self, ino: u64, a: &Attr) -> &mut Self {
        self.u64(ino).u64(a.size).u64(a.blocks);
        self.u64(a.atime.sec.cast_unsigned()).u64(a.mtime.sec.cast_unsigned()).u64(a.ctime.sec.cast_unsigned());
        self.u32(a.atime.nsec).u32(a.mtime.nsec).u32(a.ctime.nsec);
        self.u32(kind_bits(a.kind) | a.mode & 0o7777).u32(a.nlink).u32(a.uid).u32(a.gid);
        // 32 bits: Linux's own packing of major and minor numbers.
        self.u32((a.rdev & 0xffff_ffff) as u32).u32(4096).u32(0)
    }

    /// `fuse_attr_out`.
    pub(super) fn attr_out(&mut self, ttl: Duration, ino: u64, a: &Attr) -> &mut Self {
        self.u64(ttl.as_secs()).u32(ttl.subsec_nanos()).u32(0).attr(ino, a)
    }

    /// `fuse_entry_out`.
    pub(super) fn entry(&mut self, e: &EntryOut<'_>) -> &mut Self {
        self.u64(e.node).u64(e.generation).u64(e.names.as_secs()).u64(e.attributes.as_secs());
        self.u32(e.names.subsec_nanos()).u32(e.attributes.subsec_nanos());
        match e.attr {
            Some((ino, attr)) => self.attr(ino, attr),
            None => self.bytes(&[0; 88]),
        }
    }

    /// `fuse_dirent`, if it fits.
    pub(super) fn dirent(&mut self, ino: u64, cookie: u64, kind: FileKind, name: &[u8]) -> bool {
        let padded = name.len().next_multiple_of(8);
        if self.room() < 24 + padded {
            return false;
        }
        let len = u32::try_from(name.len()).expect("a name");
        self.u64(ino).u64(cookie).u32(len).u32(kind_bits(kind) >> 12).bytes(name).bytes(&[0; 8][..padded - name.len()]);
        true
    }

    /// `fuse_direntplus`, if it fits.
    pub(super) fn direntplus(&mut self, e: &EntryOut<'_>, ino: u64, cookie: u64, kind: FileKind, name: &[u8]) -> bool {
        if self.room() < 128 + 24 + name.len().next_multiple_of(8) {
            return false;
        }
        self.entry(e).dirent(ino, cookie, kind, name)
    }
}

/// An entry of a directory as the kernel may remember it; node 0 is no object.
#[derive(Debug, Default)]
pub(super) struct EntryOut<'a> {
    pub(super) node: u64,
    pub(super) generation: u64,
    pub(super) names: Duration,
    pub(super) attributes: Duration,
    pub(super) attr: Option<(u64, &'a Attr)>,
}

const fn kind_bits(kind: FileKind) -> u32 {
    match kind {
        FileKind::File => 0o100_000,
        FileKind::Dir => 0o040_000,
        FileKind::Symlink => 0o120_000,
        FileKind::Fifo => 0o010_000,
        FileKind::Socket => 0o140_000,
        FileKind::CharDevice => 0o020_000,
        FileKind::BlockDevice => 0o060_000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_at_their_ends() {
        assert_eq!(names::<2>(b"old\0new\0"), Some(([&b"old"[..], b"new"], &b""[..])));
        assert_eq!(names::<1>(b"user.a\0value\0"), Some(([&b"user.a"[..]], &b"value\0"[..])));
        assert_eq!(names::<2>(b"old\0new"), None);
    }

    #[test]
    fn structures_have_the_kernel_s_sizes() {
        let mut room = [1; 1024];
        let time = TimeSpec { sec: 1, nsec: 2 };
        let attr = Attr {
            gfid: crate::fop::Gfid::ROOT,
            kind: FileKind::File,
            mode: 0o644,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 5,
            blocks: 8,
            atime: time,
            mtime: time,
            ctime: time,
        };
        assert_eq!(Out::new(&mut room).attr(1, &attr).len(), 88);
        assert_eq!(Out::new(&mut room).attr_out(Duration::ZERO, 1, &attr).len(), 104);
        assert_eq!(Out::new(&mut room).entry(&EntryOut::default()).len(), 128);
        let mut out = Out::new(&mut room[..200]);
        assert!(out.direntplus(&EntryOut::default(), 5, 6, FileKind::File, b"123456789"));
        assert_eq!(out.len(), 128 + 24 + 16);
        assert!(!out.dirent(5, 6, FileKind::File, b"123456789"));
        assert_eq!(out.len(), 128 + 24 + 16, "nothing of what does not fit");
    }

    #[test]
    fn only_what_is_valid_is_set() {
        let mut op = [0xff; 88];
        op[..4].copy_from_slice(&(FATTR_SIZE | FATTR_KILL_SUIDGID).to_ne_bytes());
        op[16..24].copy_from_slice(&77_u64.to_ne_bytes());
        assert_eq!(set_attr(Numbers(&op)), (SetAttr { size: Some(77), ..SetAttr::default() }, true));
    }
}
