//! The one module that talks to io_uring, and so the one with `unsafe` in this crate.
//!
//! [`Driver`] owns every buffer and file for as long as the kernel may touch them; its interface is
//! safe, and [`super::ring::FileRing`] and [`super::uring_io::UringIo`] are built on it without `unsafe`.
//!
//! Ring flags: `COOP_TASKRUN | TASKRUN_FLAG`, not `DEFER_TASKRUN`: with the latter a completion shows
//! only after `io_uring_enter(GETEVENTS)`, and `SINGLE_ISSUER` would tie a ring to the thread that made
//! it; measured, all of them are within noise of each other here (peers.md), and with these the ring's
//! own descriptor can be polled.
#![allow(unsafe_code, reason = "submission queue entries carry raw pointers to buffers that Driver owns")]

pub mod fuse;

use super::AlignedBuf;
use bytes::Bytes;
use io_uring::{IoUring, opcode, squeue, types};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Linux caps one read or write just below 2 GiB; one submission stays well below that.
const TRANSFER_BYTES_MAX: usize = 1 << 30;

/// Bytes to write, kept alive until the kernel is done with them.
#[derive(Debug)]
pub enum WriteBuf {
    /// A log batch.
    Aligned(AlignedBuf),
    /// The first `.1` bytes of a shared buffer (zeros).
    Shared(Arc<AlignedBuf>, usize),
    /// A payload from the network or from FUSE.
    Bytes(Bytes),
}

impl WriteBuf {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Aligned(b) => b.as_slice(),
            Self::Shared(b, len) => &b.as_slice()[..*len],
            Self::Bytes(b) => b,
        }
    }
}

/// One operation.
#[derive(Debug)]
pub enum Work {
    /// Fills `buf` (its length is the wish), short only at the end of the file.
    Read {
        /// From where.
        file: Arc<File>,
        /// In bytes.
        offset: u64,
        /// Where to.
        buf: Vec<u8>,
    },
    /// Writes all of `buf`.
    Write {
        /// Where to.
        file: Arc<File>,
        /// In bytes.
        offset: u64,
        /// What.
        buf: WriteBuf,
        /// With `RWF_DSYNC`.
        dsync: bool,
    },
    /// fsync or fdatasync.
    Fsync {
        /// Which file or directory.
        file: Arc<File>,
        /// fdatasync.
        data_only: bool,
    },
}

/// The end of one operation: its token, the bytes moved, and the work with its buffer.
pub type Finished = (u64, io::Result<usize>, Work);

struct Slot {
    token: u64,
    work: Work,
    moved: usize,
}

/// A ring that owns what it has in flight, submits at once, and finishes short transfers itself.
pub struct Driver {
    ring: IoUring,
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    /// Work beyond the ring's size waits here for a slot.
    backlog: VecDeque<(u64, Work)>,
    in_flight: usize,
    finished: Vec<Finished>,
}

impl Driver {
    /// A ring with `entries` operations in flight at most; more are queued.
    ///
    /// # Errors
    /// Whatever `io_uring_setup` says: EPERM or ENOSYS where io_uring is forbidden.
    pub fn new(entries: u32) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .build(entries)
            .or_else(|e| if e.raw_os_error() == Some(EINVAL) { IoUring::new(entries) } else { Err(e) })?;
        let entries = entries as usize;
        Ok(Self {
            ring,
            slots: (0..entries).map(|_| None).collect(),
            free: (0..entries).rev().collect(),
            backlog: VecDeque::new(),
            in_flight: 0,
            finished: Vec::new(),
        })
    }

    /// Operations that have not been handed out by [`Self::reap`] yet.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.in_flight + self.backlog.len() + self.finished.len()
    }

    /// Starts `work` at once, or as soon as one of `entries` slots is free.
    ///
    /// # Errors
    /// When the ring itself is broken; the state of the work is then unknown.
    pub fn submit(&mut self, token: u64, work: Work) -> io::Result<()> {
        self.backlog.push_back((token, work));
        self.start_backlog();
        self.enter()
    }

    /// Appends what has finished to `out`. Never blocks.
    ///
    /// # Errors
    /// When the ring itself is broken.
    pub fn reap(&mut self, out: &mut Vec<Finished>) -> io::Result<()> {
        if self.ring.submission().taskrun() {
            // Completions that wait for this thread to enter the kernel.
            // SAFETY: no argument is passed (arg None); with min_complete 0 the call only runs task work.
            match unsafe { self.ring.submitter().enter::<libc_sigset>(0, 0, IORING_ENTER_GETEVENTS, None) } {
                Ok(_) => {}
                Err(e) if transient(&e) => {}
                Err(e) => return Err(e),
            }
        }
        self.collect();
        self.start_backlog();
        self.enter()?;
        out.append(&mut self.finished);
        Ok(())
    }

    /// Blocks until something has finished; returns at once when nothing is pending.
    ///
    /// # Errors
    /// When the ring itself is broken.
    pub fn wait(&mut self) -> io::Result<()> {
        loop {
            self.collect();
            self.start_backlog();
            if !self.finished.is_empty() || self.in_flight == 0 {
                return self.enter();
            }
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(e) if transient(&e) => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn start_backlog(&mut self) {
        while !self.backlog.is_empty() {
            let Some(at) = self.free.pop() else { return };
            if let Some((token, work)) = self.backlog.pop_front() {
                self.slots[at] = Some(Slot { token, work, moved: 0 });
                self.in_flight += 1;
                self.push(at);
            }
        }
    }

    /// Queues the rest of a slot's work. The queue has as many entries as there are slots, and a slot
    /// has at most one entry in it, so there is always room.
    fn push(&mut self, at: usize) {
        let Some(slot) = self.slots[at].as_mut() else { return };
        let entry = slot.entry().user_data(at as u64);
        // SAFETY: the buffer and the file that the entry points to are owned by self.slots[at] (heap
        // memory that does not move with the slot), which is emptied only in `collect`, after the
        // completion; Drop waits for all of them.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        assert!(pushed.is_ok(), "the submission queue has an entry for each slot");
    }

    /// Hands queued entries to the kernel. Transient refusals are retried at the next call.
    fn enter(&mut self) -> io::Result<()> {
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if transient(&e) => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn collect(&mut self) {
        loop {
            let Some(done) = self.ring.completion().next() else { return };
            let at = usize::try_from(done.user_data()).unwrap_or(usize::MAX);
            let Some(slot) = self.slots.get_mut(at).and_then(Option::as_mut) else { continue };
            match slot.advance(done.result()) {
                None => self.push(at),
                Some(result) => {
                    let Some(slot) = self.slots[at].take() else { continue };
                    self.free.push(at);
                    self.in_flight -= 1;
                    self.finished.push((slot.token, result, slot.work));
                }
            }
        }
    }
}

impl Slot {
    /// The entry for what is left to do.
    fn entry(&mut self) -> squeue::Entry {
        match &mut self.work {
            Work::Read { file, offset, buf } => {
                let rest = &mut buf[self.moved..];
                let len = rest.len().min(TRANSFER_BYTES_MAX) as u32;
                opcode::Read::new(types::Fd(file.as_raw_fd()), rest.as_mut_ptr(), len).offset(*offset + self.moved as u64).build()
            }
            Work::Write { file, offset, buf, dsync } => {
                let rest = &buf.as_slice()[self.moved..];
                let len = rest.len().min(TRANSFER_BYTES_MAX) as u32;
                opcode::Write::new(types::Fd(file.as_raw_fd()), rest.as_ptr(), len)
                    .offset(*offset + self.moved as u64)
                    .rw_flags(if *dsync { RWF_DSYNC } else { 0 })
                    .build()
            }
            Work::Fsync { file, data_only } => {
                let flags = if *data_only { types::FsyncFlags::DATASYNC } else { types::FsyncFlags::empty() };
                opcode::Fsync::new(types::Fd(file.as_raw_fd())).flags(flags).build()
            }
        }
    }

    /// Takes a completion's result in; `None` means that a rest must be submitted.
    fn advance(&mut self, result: i32) -> Option<io::Result<usize>> {
        let Ok(moved) = usize::try_from(result) else {
            let e = io::Error::from_raw_os_error(-result);
            // The kernel gave up before anything was moved in this step: as with EINTR of pwrite. A sync
            // is not repeated: its error may have been the one report of a lost write.
            let again = transient(&e) && !matches!(self.work, Work::Fsync { .. });
            return if again { None } else { Some(Err(e)) };
        };
        self.moved += moved;
        match &mut self.work {
            Work::Read { buf, .. } => {
                if moved > 0 && self.moved < buf.len() {
                    return None;
                }
                buf.truncate(self.moved);
            }
            Work::Write { buf, .. } => {
                if moved == 0 && self.moved < buf.as_slice().len() {
                    return Some(Err(io::ErrorKind::WriteZero.into()));
                }
                if self.moved < buf.as_slice().len() {
                    return None;
                }
            }
            Work::Fsync { .. } => {}
        }
        Some(Ok(self.moved))
    }
}

/// The kernel still reads from and writes to the buffers of what is in flight, so wait for all of it.
impl Drop for Driver {
    fn drop(&mut self) {
        self.backlog.clear();
        while self.in_flight > 0 {
            self.finished.clear();
            if self.wait().is_err() {
                // Without the ring there is no way to learn when the kernel is done: leak the buffers.
                std::mem::forget(std::mem::take(&mut self.slots));
                return;
            }
        }
    }
}

impl AsRawFd for Driver {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl AsFd for Driver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring keeps its descriptor open for as long as it lives, and it outlives the borrow.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

/// Readiness of a ring for a tokio runtime: the safe way to an `AsyncFd` on it.
///
/// It holds a duplicate of the descriptor, so the ring itself stays free to be used.
#[derive(Debug)]
pub struct Readiness(AsyncFd<OwnedFd>);

impl Readiness {
    /// Watches `ring`. Must be called inside a tokio runtime with I/O enabled.
    ///
    /// # Errors
    /// When the descriptor cannot be duplicated or watched.
    pub fn new(ring: &impl AsFd) -> io::Result<Self> {
        let fd = ring.as_fd().try_clone_to_owned()?;
        // SAFETY: an OwnedFd always gives the same open descriptor until it is dropped.
        Ok(Self(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?))
    }

    /// Waits until there is something to reap. Reap everything after it: only what completes later wakes it again.
    ///
    /// # Errors
    /// When the runtime shuts down.
    pub async fn ready(&self) -> io::Result<()> {
        self.0.readable().await?.clear_ready();
        Ok(())
    }

    /// [`Self::ready`] for those who poll by hand.
    ///
    /// # Errors
    /// When the runtime shuts down.
    pub fn poll_ready(&self, cx: &mut std::task::Context<'_>) -> std::task::Poll<io::Result<()>> {
        self.0.poll_read_ready(cx).map(|guard| guard.map(|mut g| g.clear_ready()))
    }
}

fn transient(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(EINTR | EAGAIN | EBUSY))
}

const EINTR: i32 = 4;
const EAGAIN: i32 = 11;
const EBUSY: i32 = 16;
const EINVAL: i32 = 22;
/// linux/fs.h.
const RWF_DSYNC: i32 = 2;
/// linux/io_uring.h.
const IORING_ENTER_GETEVENTS: u32 = 1;
#[allow(non_camel_case_types, reason = "stands for the type of an argument that is never passed")]
type libc_sigset = u8;
