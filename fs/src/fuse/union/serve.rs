//! Requests that come over io_uring. What is not here is answered with ENOSYS, as fuser does: among it OPENDIR and FLUSH, and OPEN but with
//! `passthrough`; see the module's text.

use super::edge::{Backing, Edge};
use crate::fop::{Attr, Errno};
use crate::fuse::convert::node_kind;
use crate::fuse::ring::{Length, Service};
use crate::fuse::wire::{EntryOut, Head, Numbers, Out, names, opcode, set_attr};
use crate::union::{Caller, Entry, Res, Standing};
use brickraft_engine::io::uring::fuse::{FuseBacking, FuseRequest};
use fuser::{FileHandle, INodeNo};
use std::sync::Arc;
use std::time::Duration;

/// What is written at once without waiting for room in the page cache, as a rule.
const QUICK_WRITE_BYTES_MAX: u32 = 64 << 10;
const FSYNC_FDATASYNC: u32 = 1;
const WRITE_KILL_SUIDGID: u32 = 1 << 2;

/// A request without its payload.
struct Call<'a> {
    head: Head,
    op: Numbers<'a>,
    /// The inode that it is about.
    ino: u64,
    /// Before anything was looked for, see `Lifetimes`.
    seen: u64,
}

impl Call<'_> {
    const fn caller(&self, umask: u32) -> Caller {
        Caller { uid: self.head.uid, gid: self.head.gid, pid: self.head.pid, umask }
    }
}

/// The names at the start of a payload.
fn cut<const N: usize>(payload: &[u8]) -> Res<[&[u8]; N]> {
    names(payload).map(|(names, _)| names).ok_or(Errno::EINVAL)
}

impl Service for Edge {
    fn serve(&self, request: FuseRequest<'_>) -> (i32, usize) {
        let FuseRequest { header, op, payload, len } = request;
        let head = Head::new(header);
        let call = Call { head, op: Numbers(op), ino: self.ino(head.node), seen: self.life.seen() };
        match self.answer(&call, payload, len) {
            Ok(bytes) => (0, bytes),
            Err(e) => (e.0, 0),
        }
    }

    fn length(&self, header: &[u8; 40], op: &[u8; 128]) -> Length {
        let (head, op) = (Head::new(header), Numbers(op));
        if head.opcode == opcode::OPEN {
            // Mostly of a file that need not be looked at; `open` knows.
            return Length::Look;
        }
        let names =
            matches!(head.opcode, opcode::SYMLINK | opcode::MKNOD | opcode::MKDIR | opcode::CREATE | opcode::TMPFILE | opcode::UNLINK);
        let Standing::Settled { writable } = self.union.standing(self.ino(head.node), names) else { return Length::Long };
        let in_place = |short: bool| if short && writable { Length::Change } else { Length::Long };
        match head.opcode {
            opcode::WRITE => in_place(op.u32(16) <= QUICK_WRITE_BYTES_MAX),
            opcode::SETATTR => in_place(set_attr(op).0.size.is_none()),
            opcode::SETXATTR | opcode::REMOVEXATTR => in_place(true),
            opcode::UNLINK if self.union.has_lazy_copies() => Length::Long,
            _ if names => Length::Change,
            // Of a directory as large as it is; copies, perhaps; to the disk.
            opcode::READDIR
            | opcode::READDIRPLUS
            | opcode::RMDIR
            | opcode::LINK
            | opcode::RENAME
            | opcode::RENAME2
            | opcode::FALLOCATE
            | opcode::COPY_FILE_RANGE
            | opcode::FSYNC
            | opcode::FSYNCDIR
            | opcode::DESTROY => Length::Long,
            // What reads, and what is not served.
            _ => Length::Look,
        }
    }
}

impl Edge {
    fn answer(&self, call: &Call<'_>, payload: &mut [u8], len: usize) -> Res<usize> {
        match call.head.opcode {
            opcode::READ => {
                let size = (call.op.u32(16) as usize).min(payload.len());
                self.relief.patiently(|| self.union.read(call.ino, call.op.u64(8), &mut payload[..size]))
            }
            opcode::WRITE => {
                let (size, kill_priv) = (call.op.u32(16) as usize, call.op.u32(20) & WRITE_KILL_SUIDGID != 0);
                let data = payload.get(..size.min(len)).ok_or(Errno::EINVAL)?;
                self.relief.patiently(|| self.union.write(call.ino, call.op.u64(8), data, kill_priv))?;
                Ok(Out::new(payload).u32(call.op.u32(16)).u32(0).len())
            }
            opcode::READDIR | opcode::READDIRPLUS => self.list(call, payload),
            opcode::LOOKUP | opcode::SYMLINK | opcode::MKNOD | opcode::MKDIR | opcode::LINK | opcode::CREATE | opcode::TMPFILE => {
                self.enter(call, payload, len)
            }
            opcode::UNLINK | opcode::RMDIR | opcode::RENAME | opcode::RENAME2 => self.leave(call, &payload[..len]).map(|()| 0),
            opcode::SETXATTR | opcode::GETXATTR | opcode::LISTXATTR | opcode::REMOVEXATTR => self.xattr(call, payload, len),
            _ => self.plain(call, payload),
        }
    }

    /// Operations on an object, without names.
    fn plain(&self, call: &Call<'_>, payload: &mut [u8]) -> Res<usize> {
        let (ino, op) = (call.ino, call.op);
        match call.head.opcode {
            opcode::GETATTR => self.attributes(call, payload, &self.union.getattr(ino)?),
            opcode::SETATTR => {
                let (set, kill_priv) = set_attr(op);
                self.attributes(call, payload, &self.set_attr(ino, &set, kill_priv)?)
            }
            opcode::READLINK => {
                let target = self.union.readlink(ino)?;
                Ok(Out::new(payload).bytes(&target).len())
            }
            opcode::OPEN => {
                let write = op.u32(0) & rustix::fs::OFlags::ACCMODE.bits() != rustix::fs::OFlags::RDONLY.bits();
                let register = |file: &std::os::fd::OwnedFd| FuseBacking::new(Arc::clone(&self.device), file).map(Backing::Ring);
                let mut opened = self.open(call.head.node, write, register)?;
                let backing = match opened.backing.as_deref() {
                    Some(Backing::Ring(backing)) => {
                        opened.flags |= fuser::FopenFlags::FOPEN_PASSTHROUGH;
                        backing.id().cast_unsigned()
                    }
                    Some(Backing::Device(_)) => return Err(Errno::EIO),
                    None => 0,
                };
                Ok(Out::new(payload).u64(opened.handle.0).u32(opened.flags.bits()).u32(backing).len())
            }
            opcode::RELEASE => {
                self.release(call.head.node, FileHandle(op.u64(0)));
                Ok(0)
            }
            opcode::FSYNC | opcode::FSYNCDIR => self.union.fsync(ino, op.u32(8) & FSYNC_FDATASYNC != 0).map(|()| 0),
            opcode::FALLOCATE => self.union.fallocate(ino, op.u64(8), op.u64(16), op.u32(24)).map(|()| 0),
            opcode::LSEEK => {
                let at = self.union.lseek(ino, op.u64(8), op.u32(16))?;
                Ok(Out::new(payload).u64(at).len())
            }
            opcode::COPY_FILE_RANGE => {
                // The answer has 32 bits.
                let (to, bytes) = (self.ino(op.u64(16)), op.u64(40).min(1 << 30));
                let copied = self.union.copy_file_range(ino, op.u64(8), to, op.u64(32), bytes)?;
                Ok(Out::new(payload).u32(u32::try_from(copied).expect("at most what was asked for")).u32(0).len())
            }
            opcode::STATFS => {
                let s = self.union.statfs()?;
                let mut out = Out::new(payload);
                out.u64(s.blocks).u64(s.bfree).u64(s.bavail).u64(s.files).u64(s.ffree);
                Ok(out.u32(s.bsize).u32(s.namelen).u32(s.frsize).bytes(&[0; 28]).len())
            }
            opcode::DESTROY => {
                self.union.close();
                Ok(0)
            }
            _ => Err(Errno::ENOSYS),
        }
    }

    fn attributes(&self, call: &Call<'_>, payload: &mut [u8], attr: &Attr) -> Res<usize> {
        Ok(Out::new(payload).attr_out(self.life.attr(call.ino, attr, call.seen), call.ino, attr).len())
    }

    /// What is under a name of the directory that the call is about.
    fn entry_out<'a>(&self, call: &Call<'_>, e: &'a Entry) -> EntryOut<'a> {
        EntryOut {
            node: self.node(e.ino),
            generation: e.generation,
            names: self.life.name(INodeNo(call.ino), call.seen),
            attributes: self.life.attr(e.ino, &e.attr, call.seen),
            attr: Some((e.ino, &e.attr)),
        }
    }

    /// Operations whose answer is an entry.
    fn enter(&self, call: &Call<'_>, payload: &mut [u8], len: usize) -> Res<usize> {
        let (ino, op, sent) = (call.ino, call.op, &payload[..len]);
        let entry = match call.head.opcode {
            opcode::LOOKUP => {
                let [name] = cut(sent)?;
                match self.relief.patiently(|| self.union.lookup(ino, name)) {
                    // The kernel remembers that there is no such name.
                    Err(Errno::ENOENT) => {
                        let nothing = EntryOut { names: self.life.name(INodeNo(ino), call.seen), ..EntryOut::default() };
                        return Ok(Out::new(payload).entry(&nothing).len());
                    }
                    found => found?,
                }
            }
            opcode::SYMLINK => {
                let [name, target] = cut(sent)?;
                self.union.symlink(ino, name, target, &call.caller(0))?
            }
            opcode::MKNOD => {
                let [name] = cut(sent)?;
                let (mode, device, caller) = (op.u32(0), u64::from(op.u32(4)), call.caller(op.u32(8)));
                let kind = node_kind(mode).ok_or(Errno::EINVAL)?;
                self.relief.patiently(|| self.union.mknod(ino, name, kind, mode & 0o7777, device, &caller))?
            }
            opcode::MKDIR => {
                let [name] = cut(sent)?;
                self.relief.patiently(|| self.union.mkdir(ino, name, op.u32(0) & 0o7777, &call.caller(op.u32(4))))?
            }
            opcode::LINK => {
                let [name] = cut(sent)?;
                self.union.link(self.ino(op.u64(0)), ino, name)?
            }
            made => {
                let (flags, mode, caller) = (op.u32(0), op.u32(4), call.caller(op.u32(8)));
                let (entry, handle, flags) = if made == opcode::TMPFILE {
                    self.tmpfile(ino, mode, &caller)?
                } else {
                    let [name] = cut(sent)?;
                    self.create(ino, name, mode, flags, &caller)?
                };
                return Ok(Out::new(payload).entry(&self.entry_out(call, &entry)).u64(handle.0).u32(flags.bits()).u32(0).len());
            }
        };
        Ok(Out::new(payload).entry(&self.entry_out(call, &entry)).len())
    }

    /// Operations that take a name away.
    fn leave(&self, call: &Call<'_>, sent: &[u8]) -> Res<()> {
        match call.head.opcode {
            opcode::UNLINK => {
                let [name] = cut(sent)?;
                self.relief.patiently(|| self.union.unlink(call.ino, name))
            }
            opcode::RMDIR => {
                let [name] = cut(sent)?;
                self.relief.patiently(|| self.union.rmdir(call.ino, name))
            }
            _ => {
                let [old, new] = cut(sent)?;
                let (to, flags) = (call.op.u64(0), if call.head.opcode == opcode::RENAME2 { call.op.u32(8) } else { 0 });
                self.relief.patiently(|| self.union.rename(call.ino, old, to, new, flags))
            }
        }
    }

    fn xattr(&self, call: &Call<'_>, payload: &mut [u8], len: usize) -> Res<usize> {
        let (ino, op, sent) = (call.ino, call.op, &payload[..len]);
        let value = match call.head.opcode {
            opcode::SETXATTR => {
                let ([name], value) = names(sent).ok_or(Errno::EINVAL)?;
                let value = value.get(..op.u32(0) as usize).ok_or(Errno::EINVAL)?;
                if self.own_xattr(ino, name).is_some() {
                    return Err(Errno::EPERM);
                }
                return self.union.setxattr(ino, name, value, op.u32(4)).map(|()| 0);
            }
            opcode::REMOVEXATTR => {
                let [name] = cut(sent)?;
                if self.own_xattr(ino, name).is_some() {
                    return Err(Errno::EPERM);
                }
                return self.union.removexattr(ino, name).map(|()| 0);
            }
            opcode::GETXATTR => {
                let [name] = cut(sent)?;
                self.own_xattr(ino, name).unwrap_or_else(|| self.union.getxattr(ino, name))?
            }
            _ => self.union.listxattr(ino)?,
        };
        match op.u32(0) as usize {
            0 => Ok(Out::new(payload).u32(u32::try_from(value.len()).unwrap_or(u32::MAX)).u32(0).len()),
            size if value.len() <= size => Ok(Out::new(payload).bytes(&value).len()),
            _ => Err(Errno::ERANGE),
        }
    }

    fn list(&self, call: &Call<'_>, payload: &mut [u8]) -> Res<usize> {
        let (offset, size) = (call.op.u64(8), (call.op.u32(16) as usize).min(payload.len()));
        let plus = call.head.opcode == opcode::READDIRPLUS;
        let mut len = 0;
        self.relief.patiently(|| {
            let mut out = Out::new(&mut payload[..size]);
            let listed = self.union.readdir(call.ino, offset, plus, &mut |e| {
                let added = match &e.entry {
                    _ if !plus => out.dirent(e.ino, e.cookie, e.kind, e.name),
                    Some(entry) => out.direntplus(&self.entry_out(call, entry), e.ino, e.cookie, e.kind, e.name),
                    // A name and a number, and nothing for the kernel to remember.
                    None if matches!(e.name, b"." | b"..") => {
                        let nothing = EntryOut { names: Duration::ZERO, ..EntryOut::default() };
                        out.direntplus(&nothing, e.ino, e.cookie, e.kind, e.name)
                    }
                    // Gone since the listing was made.
                    None => true,
                };
                !added
            });
            len = out.len();
            listed
        })?;
        Ok(len)
    }
}
