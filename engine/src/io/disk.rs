//! The fastest safe way to a log directory that this machine allows.

use super::std_io::StdIo;
use super::uring_io::UringIo;
use super::{Completion, Io, IoOp};
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

/// [`UringIo`], or [`StdIo`] where io_uring is forbidden.
pub enum DiskIo {
    /// The kernel gave us a ring.
    Uring(Box<UringIo>),
    /// It did not.
    Std(Box<StdIo>),
}

impl DiskIo {
    /// Makes `dir` if need be, and picks.
    ///
    /// # Errors
    /// When the directory cannot be made or opened.
    pub fn open(dir: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let io = match UringIo::open(dir) {
            Ok(io) => Self::Uring(Box::new(io)),
            Err(e) => {
                tracing::warn!(
                    error = %e,
                    "io_uring is not available (container sandboxes often forbid it; see sysctl kernel.io_uring_disabled and the seccomp profile): \
                     the log uses pwrite and fdatasync, which is slower"
                );
                Self::Std(Box::new(StdIo::open(dir)?))
            }
        };
        tracing::info!(dir = %dir.display(), way = io.describe(), "log storage");
        Ok(io)
    }
}

macro_rules! either {
    ($self:ident, $io:ident => $call:expr) => {
        match $self {
            Self::Uring($io) => $call,
            Self::Std($io) => $call,
        }
    };
}

impl Io for DiskIo {
    type File = usize;

    fn list(&mut self) -> io::Result<Vec<String>> {
        either!(self, io => io.list())
    }
    fn open(&mut self, name: &str, create: bool) -> io::Result<usize> {
        either!(self, io => Io::open(&mut **io, name, create))
    }
    fn close(&mut self, file: usize) {
        either!(self, io => io.close(file));
    }
    fn len(&mut self, file: usize) -> io::Result<u64> {
        either!(self, io => io.len(file))
    }
    fn read_at(&mut self, file: usize, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        either!(self, io => io.read_at(file, offset, buf))
    }
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        either!(self, io => io.rename(from, to))
    }
    fn remove(&mut self, name: &str) -> io::Result<()> {
        either!(self, io => io.remove(name))
    }
    fn submit(&mut self, token: u64, op: IoOp<usize>) -> io::Result<()> {
        either!(self, io => io.submit(token, op))
    }
    fn reap(&mut self, out: &mut Vec<Completion>) -> io::Result<()> {
        either!(self, io => io.reap(out))
    }
    fn wait(&mut self) -> io::Result<()> {
        either!(self, io => io.wait())
    }
    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        either!(self, io => io.readiness())
    }
    fn describe(&self) -> String {
        either!(self, io => io.describe())
    }
}
