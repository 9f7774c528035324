//! What both ways of a request share: the device, by fuser (`handler`), and the rings (`serve`).

use super::UnionMountOptions;
use super::cache::Kernel;
use super::lifetime::Lifetimes;
use super::opens::{Candidate, Looked, Opened, Opens, PASSED_BYTES_MIN};
use super::relief::Relief;
use crate::fop::{Attr, Errno, FileKind, SetAttr};
use crate::fuse::ring::{ELSEWHERE, may_wait};
use crate::union::{Caller, Entry, ROOT_INO, Res, Standing, Udba, Union};
use brickraft_engine::io::uring::fuse::FuseBacking;
use fuser::{BackingId, FileHandle, FopenFlags};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

/// Attributes of a union as a whole, on its root: read them with getfattr(1).
const XATTR: &str = "user.brickraft.";

/// What the kernel knows a file below by, dropped when it should forget it.
#[derive(Debug)]
pub(super) enum Backing {
    Device(BackingId),
    Ring(FuseBacking),
}

/// A union at its mount.
pub(super) struct Edge {
    pub(super) union: Arc<Union>,
    pub(super) options: UnionMountOptions,
    pub(super) kernel: Arc<Kernel>,
    /// How long names and attributes may live in the kernel.
    pub(super) life: Lifetimes,
    pub(super) relief: Arc<Relief>,
    /// Open files, with `passthrough` alone.
    pub(super) opens: Arc<Opens>,
    /// The kernel passes files through.
    pub(super) passes: OnceLock<bool>,
    /// Requests come by rings.
    pub(super) ring: bool,
    /// The connection, for requests by rings.
    pub(super) device: Arc<OwnedFd>,
}

impl std::fmt::Debug for Edge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Edge").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Edge {
    /// Open files, if files are opened here.
    pub(super) fn opens(&self) -> Option<&Opens> {
        self.passes.get().is_some_and(|p| *p).then_some(&*self.opens)
    }

    /// The inode number of a node: the same, but for moved files.
    pub(super) fn ino(&self, node: u64) -> u64 {
        self.opens().map_or(node, |o| o.inode(node))
    }

    /// The node of an inode.
    pub(super) fn node(&self, ino: u64) -> u64 {
        self.opens().map_or(ino, |o| o.node(ino))
    }

    /// FORGET.
    pub(super) fn forget(&self, node: u64, count: u64) {
        let ino = self.ino(node);
        if self.union.forget(ino, count)
            && let Some(opens) = self.opens()
        {
            opens.forget(ino);
        }
    }

    /// OPEN, where files are opened; `register` makes a file known to the kernel.
    pub(super) fn open(&self, node: u64, write: bool, register: impl FnOnce(&OwnedFd) -> io::Result<Backing>) -> Res<Opened<Backing>> {
        let opens = self.opens().ok_or(Errno::ENOSYS)?;
        let small = if write { None } else { opens.open_small(node) };
        let answer = match small {
            Some(answer) => answer,
            None if !may_wait() && self.union.standing(self.ino(node), false) == Standing::Busy => return Err(ELSEWHERE),
            None => opens.open(node, write, &self.look(self.ino(node))?, register),
        };
        answer.opened().ok_or(Errno::ESTALE)
    }

    /// SETATTR; `kill_priv`: set-id bits go for another reason than a new owner.
    pub(super) fn set_attr(&self, ino: u64, set: &SetAttr, kill_priv: bool) -> Res<Attr> {
        let owner = set.mode.is_none() && (set.uid.is_some() || set.gid.is_some());
        let attr = self.union.setattr(ino, set, kill_priv || owner);
        if set.size.is_some()
            && let Some(opens) = self.opens()
        {
            opens.resized(opens.node(ino));
        }
        attr
    }

    /// Whether a file is one to pass through.
    fn look(&self, ino: u64) -> Res<Looked> {
        let attr = self.union.getattr(ino)?;
        if attr.kind != FileKind::File {
            return Ok(Looked::Unfit);
        }
        if attr.size < PASSED_BYTES_MIN {
            return Ok(Looked::Small);
        }
        let Some((file, writable)) = self.relief.patiently(|| self.union.backing(ino))? else { return Ok(Looked::Unfit) };
        let stat = rustix::fs::fstat(&*file)?;
        Ok(Looked::Fit(Candidate { file, id: (stat.st_dev, stat.st_ino), writable }))
    }

    /// CREATE; without it the kernel sends MKNOD, and nothing when the file is closed, but where files are opened.
    pub(super) fn create(&self, parent: u64, name: &[u8], mode: u32, flags: u32, caller: &Caller) -> Res<(Entry, FileHandle, FopenFlags)> {
        if self.options.create_by_mknod && self.opens().is_none() {
            return Err(Errno::ENOSYS);
        }
        let made = self.relief.patiently(|| self.union.mknod(parent, name, FileKind::File, mode & 0o7777, 0, caller));
        let entry = match made {
            // Somebody else was faster: without O_EXCL that is an open of what it made. The kernel looks the name up again, and asks whether this
            // caller may open that; it takes what CREATE answers for the caller's own.
            Err(Errno::EEXIST) if flags & rustix::fs::OFlags::EXCL.bits() == 0 => return Err(Errno::ESTALE),
            made => made?,
        };
        self.open_made(entry)
    }

    /// TMPFILE.
    pub(super) fn tmpfile(&self, parent: u64, mode: u32, caller: &Caller) -> Res<(Entry, FileHandle, FopenFlags)> {
        self.open_made(self.relief.patiently(|| self.union.tmpfile(parent, mode & 0o7777, caller))?)
    }

    /// Opens what was just made, as its answer does.
    fn open_made(&self, entry: Entry) -> Res<(Entry, FileHandle, FopenFlags)> {
        let Some(opens) = self.opens() else { return Ok((entry, FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE)) };
        let opened = opens.open(self.node(entry.ino), true, &Looked::Unfit, |_| Err(io::ErrorKind::Unsupported.into()));
        let opened = opened.opened().ok_or(Errno::ESTALE)?;
        Ok((entry, opened.handle, opened.flags))
    }

    /// RELEASE: comes only for files that CREATE or OPEN opened.
    pub(super) fn release(&self, node: u64, handle: FileHandle) {
        if let Some(opens) = self.opens() {
            opens.release(node, handle);
        }
    }

    /// What the mount's root tells about the union; `None` for a name that is not ours.
    pub(super) fn own_xattr(&self, ino: u64, name: &[u8]) -> Option<Res<Vec<u8>>> {
        let name = std::str::from_utf8(name).ok()?.strip_prefix(XATTR)?;
        if ino != ROOT_INO {
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
            "watched" => self.union.watched().to_string().into_bytes(),
            "scouted" => self.union.scouted().to_string().into_bytes(),
            "invalidated" => {
                let (sent, everything) = self.kernel.counts();
                format!("{sent} {everything}").into_bytes()
            }
            "udba" => config.udba.to_string().into_bytes(),
            "lazy_cpup" => config.lazy.cpup.map_or_else(|| "off".to_owned(), |bytes| bytes.to_string()).into_bytes(),
            "layout" => config.layout.to_string().into_bytes(),
            "pid" => std::process::id().to_string().into_bytes(),
            "version" => env!("CARGO_PKG_VERSION").as_bytes().to_vec(),
            _ => return Some(Err(Errno::ENODATA)),
        }))
    }
}
