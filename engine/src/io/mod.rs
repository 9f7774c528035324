//! Disk I/O behind one completion-based trait, so that the log is driven the same way by a real ring
//! and by a simulator.
//!
//! - [`Io`] is what the log needs: named files in one directory, durable writes, readiness.
//! - [`disk::DiskIo`] picks the fastest safe variant that kernel and file system allow:
//!   [`uring_io::UringIo`] or [`std_io::StdIo`].
//! - [`sim::SimIo`] is a deterministic disk with power cuts and faults.
//! - [`ring::FileRing`] is the general ring for the data files of a brick.
//!
//! `unsafe` lives in [`uring`] alone. All implementations pass [`conformance`].

pub mod buf;
pub mod conformance;
pub mod disk;
pub mod ring;
pub mod sim;
pub mod std_io;
pub mod uring;
pub mod uring_io;

pub use buf::{AlignedBuf, BLOCK_BYTES};

use std::fmt::Debug;
use std::io;
use std::os::fd::BorrowedFd;

/// The longest range that one [`IoOp::Zero`] may cover.
pub const ZERO_BYTES_MAX: usize = 1 << 20;

/// An operation that completes later, answered by one [`Completion`] with its token.
#[derive(Debug)]
pub enum IoOp<F> {
    /// Writes all of `data` at `offset`. Both are multiples of [`BLOCK_BYTES`].
    Write {
        /// Where to.
        file: F,
        /// In bytes from the file's start.
        offset: u64,
        /// What; handed back in the completion for reuse.
        data: AlignedBuf,
        /// Whether the completion means that the bytes survive a power cut.
        durable: bool,
    },
    /// Makes everything that completed before on this file durable, with its size.
    Fsync {
        /// Which file.
        file: F,
    },
    /// Writes zeros (not a hole), not durably. Block-aligned, at most [`ZERO_BYTES_MAX`].
    Zero {
        /// Where to.
        file: F,
        /// In bytes from the file's start.
        offset: u64,
        /// How many bytes.
        len: usize,
    },
    /// Makes all creations, renames and removals before it durable.
    SyncDir,
}

/// The end of one operation.
#[derive(Debug)]
pub struct Completion {
    /// The token given to [`Io::submit`].
    pub token: u64,
    /// Whether the whole operation was done.
    pub result: io::Result<()>,
    /// A write's buffer.
    pub data: Option<AlignedBuf>,
}

/// Storage for a log: named files in one directory.
///
/// `submit` and `reap` never wait for the disk (except in [`std_io::StdIo`], which has nothing better);
/// the other calls may block and are for start-up and for rare work.
pub trait Io {
    /// A small handle to an open file.
    type File: Copy + Debug + PartialEq;

    /// The names in the directory, sorted.
    fn list(&mut self) -> io::Result<Vec<String>>;
    /// Opens `name`, creating it first when `create` is set and it does not exist.
    fn open(&mut self, name: &str, create: bool) -> io::Result<Self::File>;
    /// Gives the handle up. No operation may be in flight on it.
    fn close(&mut self, file: Self::File);
    /// The file's length in bytes.
    fn len(&mut self, file: Self::File) -> io::Result<u64>;
    /// Reads until `buf` is full or the file ends; returns the bytes read.
    fn read_at(&mut self, file: Self::File, offset: u64, buf: &mut [u8]) -> io::Result<usize>;
    /// Renames, replacing `to`. Durable only after a sync of the directory. Open handles follow the file.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a name. Durable only after a sync of the directory.
    fn remove(&mut self, name: &str) -> io::Result<()>;

    /// Starts `op` at once. Operations in flight are not ordered among each other. An error here means
    /// that `op` was not started and has no completion.
    fn submit(&mut self, token: u64, op: IoOp<Self::File>) -> io::Result<()>;
    /// Appends to `out` what has completed. Never blocks.
    fn reap(&mut self, out: &mut Vec<Completion>) -> io::Result<()>;
    /// Blocks until `reap` has something to give; returns at once when nothing is in flight.
    fn wait(&mut self) -> io::Result<()>;
    /// A descriptor that polls readable when `reap` may have something ([`uring::Readiness`] watches it); `None` when completions are
    /// there as soon as `submit` returns (or when a simulator says so).
    fn readiness(&self) -> Option<BorrowedFd<'_>>;
    /// One line for the log: which way of writing is in use.
    fn describe(&self) -> String;
}
