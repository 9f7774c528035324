//! Log files over io_uring: `O_DIRECT` writes with `RWF_DSYNC` where the file system takes them, else
//! buffered writes each followed by fdatasync.

use super::ring::read_full;
use super::std_io::{Dir, closed, keep};
use super::uring::{Driver, Finished, Work, WriteBuf};
use super::{AlignedBuf, BLOCK_BYTES, Completion, Io, IoOp, ZERO_BYTES_MAX};
use rustix::fs::{Advice, OFlags};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

/// Entries of the ring; a log keeps far fewer in flight.
const RING_ENTRIES: u32 = 32;
const PROBE_NAME: &str = "probe.tmp";

/// Marks, in a driver token, a write whose fdatasync is still to come.
const THEN_SYNC: u64 = 1 << 63;

/// Files of one directory, by io_uring.
pub struct UringIo {
    dir: Dir,
    dir_handle: Arc<File>,
    driver: Driver,
    files: Vec<Option<OpenFile>>,
    zeros: Arc<AlignedBuf>,
    direct: bool,
    /// Completed writes by token whose fdatasync is in flight (buffered mode).
    syncing: Vec<(u64, AlignedBuf)>,
    scratch: Vec<Finished>,
    done: Vec<Completion>,
}

struct OpenFile {
    /// Writes; `O_DIRECT` in direct mode.
    writer: Arc<File>,
    /// Buffered reads, at recovery.
    reader: File,
}

impl UringIo {
    /// Uses `dir`, which must exist, and probes how its file system likes to be written.
    ///
    /// # Errors
    /// When io_uring is not available, or the directory cannot be written.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let mut io = Self::buffered(dir)?;
        io.direct = match io.probe_direct() {
            Ok(()) => true,
            Err(e) => {
                tracing::info!(error = %e, dir = %dir.display(), "no O_DIRECT with RWF_DSYNC here: buffered writes and fdatasync");
                false
            }
        };
        Ok(io)
    }

    /// As [`Self::open`], without trying `O_DIRECT`.
    ///
    /// # Errors
    /// When io_uring is not available, or the directory cannot be opened.
    pub fn buffered(dir: &Path) -> io::Result<Self> {
        let dir = Dir::open(dir)?;
        Ok(Self {
            dir_handle: Arc::new(dir.handle.try_clone()?),
            dir,
            driver: Driver::new(RING_ENTRIES)?,
            files: Vec::new(),
            zeros: Arc::new(AlignedBuf::zeroed(ZERO_BYTES_MAX)),
            direct: false,
            syncing: Vec::new(),
            scratch: Vec::new(),
            done: Vec::new(),
        })
    }

    /// One durable block, written as the log would.
    fn probe_direct(&mut self) -> io::Result<()> {
        let file = self.open_direct(PROBE_NAME, true);
        let result = file.and_then(|file| {
            let buf = WriteBuf::Aligned(AlignedBuf::zeroed(BLOCK_BYTES));
            self.driver.submit(0, Work::Write { file: Arc::new(file), offset: 0, buf, dsync: true })?;
            self.driver.wait()?;
            let mut out = Vec::new();
            self.driver.reap(&mut out)?;
            out.pop().map_or(Err(io::ErrorKind::UnexpectedEof.into()), |(_, result, _)| result.map(|_| ()))
        });
        let removed = self.dir.remove(PROBE_NAME);
        result.and(removed)
    }

    fn open_direct(&self, name: &str, create: bool) -> io::Result<File> {
        let flags = i32::try_from(OFlags::DIRECT.bits()).unwrap_or(0);
        Dir::options(create).custom_flags(flags).open(self.dir.path.join(name))
    }

    fn file(&self, file: usize) -> io::Result<&OpenFile> {
        self.files.get(file).and_then(Option::as_ref).ok_or_else(closed)
    }

    fn pump(&mut self) -> io::Result<()> {
        self.driver.reap(&mut self.scratch)?;
        for (token, result, work) in std::mem::take(&mut self.scratch) {
            self.finish(token, result.map(|_| ()), work)?;
        }
        Ok(())
    }

    fn finish(&mut self, token: u64, result: io::Result<()>, work: Work) -> io::Result<()> {
        let (file, data) = match work {
            Work::Write { file, buf: WriteBuf::Aligned(data), .. } => (Some(file), Some(data)),
            _ => (None, None),
        };
        if token & THEN_SYNC == 0 {
            self.done.push(Completion { token, result, data });
            return Ok(());
        }
        match (file, data) {
            (Some(file), Some(data)) if result.is_ok() => {
                self.syncing.push((token, data));
                self.driver.submit(token, Work::Fsync { file, data_only: true })
            }
            (_, data) => {
                let data = data.or_else(|| {
                    let at = self.syncing.iter().position(|(t, _)| *t == token)?;
                    Some(self.syncing.swap_remove(at).1)
                });
                self.done.push(Completion { token: token & !THEN_SYNC, result, data });
                Ok(())
            }
        }
    }
}

impl Io for UringIo {
    type File = usize;

    fn list(&mut self) -> io::Result<Vec<String>> {
        self.dir.list()
    }

    fn open(&mut self, name: &str, create: bool) -> io::Result<usize> {
        let writer = if self.direct { self.open_direct(name, create)? } else { self.dir.open_file(name, create)? };
        let reader = self.dir.open_file(name, false)?;
        Ok(keep(&mut self.files, OpenFile { writer: Arc::new(writer), reader }))
    }

    fn close(&mut self, file: usize) {
        if let Some(slot) = self.files.get_mut(file) {
            *slot = None;
        }
    }

    fn len(&mut self, file: usize) -> io::Result<u64> {
        Ok(self.file(file)?.reader.metadata()?.len())
    }

    fn read_at(&mut self, file: usize, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let open = self.file(file)?;
        let n = read_full(&open.reader, offset, buf)?;
        if self.direct {
            // Direct writes would have to throw these pages out one by one later.
            let _ = rustix::fs::fadvise(&open.reader, offset, std::num::NonZeroU64::new(n as u64), Advice::DontNeed);
        }
        Ok(n)
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.dir.rename(from, to)
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.dir.remove(name)
    }

    fn submit(&mut self, token: u64, op: IoOp<usize>) -> io::Result<()> {
        assert!(token & THEN_SYNC == 0, "the highest bit of a token is reserved");
        let (token, work) = match op {
            IoOp::Write { file, offset, data, durable } => {
                let file = self.file(file)?.writer.clone();
                let token = if durable && !self.direct { token | THEN_SYNC } else { token };
                (token, Work::Write { file, offset, buf: WriteBuf::Aligned(data), dsync: durable && self.direct })
            }
            IoOp::Fsync { file } => (token, Work::Fsync { file: self.file(file)?.writer.clone(), data_only: false }),
            IoOp::Zero { file, offset, len } => {
                if len > ZERO_BYTES_MAX {
                    return Err(io::ErrorKind::InvalidInput.into());
                }
                let file = self.file(file)?.writer.clone();
                (token, Work::Write { file, offset, buf: WriteBuf::Shared(self.zeros.clone(), len), dsync: false })
            }
            IoOp::SyncDir => (token, Work::Fsync { file: self.dir_handle.clone(), data_only: false }),
        };
        self.driver.submit(token, work)
    }

    fn reap(&mut self, out: &mut Vec<Completion>) -> io::Result<()> {
        self.pump()?;
        out.append(&mut self.done);
        Ok(())
    }

    fn wait(&mut self) -> io::Result<()> {
        loop {
            self.pump()?;
            if !self.done.is_empty() || self.driver.pending() == 0 {
                return Ok(());
            }
            self.driver.wait()?;
        }
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.driver.as_fd())
    }

    fn describe(&self) -> String {
        if self.direct { "io_uring, O_DIRECT with RWF_DSYNC" } else { "io_uring, buffered writes and fdatasync" }.into()
    }
}
