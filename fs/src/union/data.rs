//! The data of files. There are no open files here: a descriptor of the branch's is kept per file, within a bound, for the next call.

use super::Res;
use super::attrs::without_set_id;
use super::branch::{At, Open};
use super::core::{OpenFile, Union};
use super::lazy::LazyFile;
use super::node::{Node, Spot, lock};
use crate::fop::{Errno, FileKind, SetAttr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, RwLockReadGuard};

/// Bytes of one step of `copy_file_range`.
const COPY_STEP_BYTES_MAX: usize = 1 << 20;

impl Union {
    /// The file, open.
    pub(super) fn opened(&self, node: &Node, write: bool) -> Res<OpenFile> {
        if node.kind != FileKind::File {
            return Err(if node.is_dir() { Errno::EISDIR } else { Errno::EINVAL });
        }
        if let Some(known) = lock(&self.files).get(node.ino)
            && (known.writable || !write)
            && !known.slot.is_gone()
        {
            return Ok(known);
        }
        let file = node.file()?;
        if file.slot.is_gone() {
            return Err(Errno::ESTALE);
        }
        let writable = file.slot.writable();
        if write && !writable {
            return Err(Errno::EROFS);
        }
        let branch = &file.slot.branch;
        let (handle, writable) = match &file.spot {
            Spot::Open(held) => (held.clone(), writable),
            Spot::Name(dir, name) => {
                let at = At::Name(dir, name);
                let (handle, writable) = match (write, writable) {
                    (true, _) => (branch.open(at, Open::Write)?, true),
                    (false, true) => (branch.open(at, Open::Read)?, false),
                    (false, false) => (branch.open(at, Open::ReadQuietly)?, false),
                };
                if branch.stat(At::Open(&handle))?.id != file.id {
                    return Err(Errno::ESTALE);
                }
                (handle, writable)
            }
        };
        let open = OpenFile::new(&file.slot, handle, writable, file.lazy.as_ref());
        // Still under the file's lock: a copy-up drops what is kept under it too.
        lock(&self.files).put(node.ino, open.clone());
        Ok(open)
    }

    /// The file, open to be written to, and the promise that it stays where it is.
    fn opened_for_writing<'n>(&self, node: &'n Arc<Node>) -> Res<(OpenFile, RwLockReadGuard<'n, ()>)> {
        self.make_writable(node, u64::MAX)?;
        let stays = node.stays();
        Ok((self.opened(node, true)?, stays))
    }

    fn read_opened(&self, node: &Node, file: &OpenFile, offset: u64, buf: &mut [u8]) -> Res<usize> {
        match file.lazy() {
            Some(lazy) => self.lazy_read(LazyFile { node, lazy, copy: &file.handle }, offset, buf),
            None => file.slot.branch.read(&file.handle, offset, buf),
        }
    }

    fn write_opened(&self, node: &Node, file: &OpenFile, offset: u64, data: &[u8]) -> Res<()> {
        match file.lazy() {
            Some(lazy) => self.lazy_write(LazyFile { node, lazy, copy: &file.handle }, offset, data),
            None => file.slot.branch.write(&file.handle, offset, data),
        }
    }

    /// pread(2): bytes read, short only at the end of the file.
    ///
    /// # Errors
    /// As pread(2); `ESTALE` when somebody took the file away behind our back.
    pub fn read(&self, ino: u64, offset: u64, buf: &mut [u8]) -> Res<usize> {
        let node = self.table.get(ino)?;
        let file = self.opened(&node, false)?;
        if offset > 0 || file.lazy().is_some() {
            return self.read_opened(&node, &file, offset, buf);
        }
        let (bytes, waited) = file.slot.branch.read_telling(&file.handle, offset, buf)?;
        self.scout.reads(&node, waited);
        Ok(bytes)
    }

    /// pwrite(2): all of it. `kill_priv`: takes set-id bits away (`FUSE_WRITE_KILL_SUIDGID`).
    ///
    /// # Errors
    /// As pwrite(2); `EROFS` where no branch can take a copy.
    pub fn write(&self, ino: u64, offset: u64, data: &[u8], kill_priv: bool) -> Res<()> {
        let node = self.table.get(ino)?;
        let (file, _stays) = self.opened_for_writing(&node)?;
        let branch = &file.slot.branch;
        if kill_priv {
            let at = At::Open(&file.handle);
            if let Some(mode) = without_set_id(branch.stat(at)?.mode) {
                branch.set_attr(at, &SetAttr { mode: Some(mode), ..SetAttr::default() })?;
            }
        }
        self.write_opened(&node, &file, offset, data)
    }

    /// fallocate(2).
    ///
    /// # Errors
    /// As fallocate(2).
    pub fn fallocate(&self, ino: u64, offset: u64, len: u64, mode: u32) -> Res<()> {
        let node = self.table.get(ino)?;
        let (file, _stays) = self.opened_for_writing(&node)?;
        match file.lazy() {
            Some(lazy) => self.lazy_fallocate(LazyFile { node: &node, lazy, copy: &file.handle }, offset, len, mode),
            None => file.slot.branch.fallocate(&file.handle, offset, len, mode),
        }
    }

    /// lseek(2); `whence`: `SEEK_DATA` (3) or `SEEK_HOLE` (4).
    ///
    /// # Errors
    /// `ENXIO` beyond the end.
    pub fn lseek(&self, ino: u64, offset: u64, whence: u32) -> Res<u64> {
        let node = self.table.get(ino)?;
        let file = self.opened(&node, false)?;
        match file.lazy() {
            Some(lazy) => self.lazy_seek(LazyFile { node: &node, lazy, copy: &file.handle }, offset, whence),
            None => file.slot.branch.lseek(&file.handle, offset, whence),
        }
    }

    /// copy_file_range(2): bytes copied, 0 at the end of the source.
    ///
    /// # Errors
    /// As the system call.
    pub fn copy_file_range(&self, from: u64, from_offset: u64, to: u64, to_offset: u64, len: u64) -> Res<u64> {
        let (from, to) = (self.table.get(from)?, self.table.get(to)?);
        let (target, _stays) = self.opened_for_writing(&to)?;
        let source = self.opened(&from, false)?;
        let want = usize::try_from(len).unwrap_or(usize::MAX);
        let whole = source.lazy().is_none() && target.lazy().is_none();
        if whole
            && let (Some(input), Some(output)) =
                (source.slot.branch.descriptor(&source.handle), target.slot.branch.descriptor(&target.handle))
        {
            let (mut off_in, mut off_out) = (from_offset, to_offset);
            match rustix::fs::copy_file_range(&input, Some(&mut off_in), &output, Some(&mut off_out), want) {
                Ok(n) => return Ok(n as u64),
                Err(rustix::io::Errno::XDEV | rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
                Err(e) => return Err(e.into()),
            }
        }
        let mut buf = vec![0; want.min(COPY_STEP_BYTES_MAX)];
        let got = self.read_opened(&from, &source, from_offset, &mut buf)?;
        if got > 0 {
            self.write_opened(&to, &target, to_offset, &buf[..got])?;
        }
        Ok(got as u64)
    }

    /// fsync(2) and fdatasync(2), of directories too.
    ///
    /// # Errors
    /// What the branch says.
    pub fn fsync(&self, ino: u64, data_only: bool) -> Res<()> {
        let node = self.table.get(ino)?;
        if self.config.volatile {
            return Ok(());
        }
        if node.is_dir() {
            let layers = node.dir()?.layers.clone();
            return layers.iter().filter(|l| l.slot.writable()).try_for_each(|l| l.slot.branch.fsync(&l.dir, data_only));
        }
        if node.kind != FileKind::File || !node.file()?.slot.writable() {
            return Ok(());
        }
        let file = self.opened(&node, false)?;
        match file.lazy() {
            Some(lazy) => self.lazy.flush(lazy, Some(&file.handle), data_only),
            None => file.slot.branch.fsync(&file.handle, data_only),
        }
    }

    /// A descriptor of the file as it lies in a local branch, and whether it can be written there, for FUSE passthrough. `None` where there is none
    /// (a volume's file), and of a file that lies in two branches.
    ///
    /// # Errors
    /// As open(2).
    pub fn backing(&self, ino: u64) -> Res<Option<(Arc<OwnedFd>, bool)>> {
        let file = self.opened(&*self.table.get(ino)?, false)?;
        if file.lazy().is_some() {
            return Ok(None);
        }
        Ok(file.slot.branch.descriptor(&file.handle).map(|fd| (fd, file.slot.writable())))
    }
}
