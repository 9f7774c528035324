//! FUSE over io_uring (Linux 6.14): one request is fetched, and the last one answered, by one system call.
//!
//! The kernel has a queue for each possible processor and hands a request to the queue of the processor that the application runs on. A queue
//! has entries; an entry has a place for one request and its answer, and a queue takes up as many requests at once as it has entries. A ring
//! serves some of a queue's entries, or all, and belongs to one thread: the kernel lays a request down only while that thread waits for one. A
//! request that takes long may be worked on by another thread; its answer goes by the ring's again.
//!
//! Numbers and layouts: the kernel's `include/uapi/linux/fuse.h`.

#![allow(clippy::host_endian_bytes, reason = "the kernel's own memory")]

use super::super::AlignedBuf;
use io_uring::{IoUring, opcode, squeue, types};
use rustix::event::{EventfdFlags, PollFlags};
use rustix::ioctl;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// `FUSE_IO_URING_CMD_REGISTER`: gives an entry to the kernel and fetches its first request.
const REGISTER: u32 = 1;
/// `FUSE_IO_URING_CMD_COMMIT_AND_FETCH`: answers and fetches the next.
const COMMIT_AND_FETCH: u32 = 2;
/// Where a submission has its length, which io-uring's builder leaves at 0.
const SQE_LEN_AT: usize = 24;

/// `struct fuse_uring_req_header`.
#[derive(Debug)]
#[repr(C, align(64))]
struct Header {
    /// `fuse_in_header`, then `fuse_out_header`.
    in_out: [u8; 128],
    /// What belongs to the operation.
    op: [u8; 128],
    /// `fuse_uring_ent_in_out`: flags, commit id, bytes of payload.
    entry: [u8; 32],
}

#[repr(C)]
#[derive(Debug)]
struct Segment {
    base: *mut u8,
    len: usize,
}

/// Makes this thread one that never takes the processor from another as it is woken (`SCHED_BATCH`). Whoever sends a request and waits for it
/// gives the processor up anyway; whoever only tells something, as RELEASE does, goes on, and the thread has it done together with the next request.
///
/// # Errors
/// sched_setscheduler(2)'s.
pub fn never_preempt() -> io::Result<()> {
    let priority = libc::sched_param { sched_priority: 0 };
    // SAFETY: the kernel reads the one number; 0 is this thread.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const priority) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A request, as the kernel laid it down.
#[derive(Debug)]
pub struct FuseRequest<'a> {
    /// `fuse_in_header`.
    pub header: &'a [u8; 40],
    /// The operation's own part.
    pub op: &'a [u8; 128],
    /// Names and data in its first `len` bytes; the answer's data goes here, from the start.
    pub payload: &'a mut [u8],
    /// Bytes of the request's payload.
    pub len: usize,
}

/// Between two attempts at what the kernel does not take yet: entries before it has the answer to INIT, submissions when it is short of memory.
const RETRY_WAIT: Duration = Duration::from_millis(1);
/// How often the entries of a ring try to get in.
const INIT_ATTEMPTS_MAX: usize = 10_000;
/// RELEASE and RELEASEDIR: what nobody waits for.
const UNAWAITED: [u32; 2] = [18, 29];
/// What a completion says that is no entry's.
const BACK: u64 = u64::MAX;
/// The connection, among the files that a ring knows.
const DEVICE: types::Fixed = types::Fixed(0);

/// A place for one request and its answer, while it is with us.
#[derive(Debug)]
pub struct FuseEntry {
    id: usize,
    header: Box<Header>,
    payload: AlignedBuf,
}

impl FuseEntry {
    fn new(id: usize, payload_bytes: usize) -> Self {
        let header = Box::new(Header { in_out: [0; 128], op: [0; 128], entry: [0; 32] });
        Self { id, header, payload: AlignedBuf::zeroed(payload_bytes) }
    }

    /// `fuse_in_header`.
    #[must_use]
    pub fn header(&self) -> &[u8; 40] {
        self.header.in_out.first_chunk().expect("forty bytes of more")
    }

    /// The operation's own part.
    #[must_use]
    pub fn op(&self) -> &[u8; 128] {
        &self.header.op
    }

    /// Whether somebody waits for the answer.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        !UNAWAITED.contains(&u32::from_ne_bytes(self.header()[4..8].try_into().expect("four bytes")))
    }

    /// Puts an answer in the request's place. `answer` gives an error number (0: none) and the bytes of the payload that are the answer; or `None`
    /// when it has none yet, and has left the request as it was. Says whether there is an answer.
    pub fn answer(&mut self, answer: impl FnOnce(FuseRequest<'_>) -> Option<(i32, usize)>) -> bool {
        let Header { in_out, op, entry } = &mut *self.header;
        let len = u32::from_ne_bytes(entry[16..20].try_into().expect("four bytes")) as usize;
        let unique: [u8; 8] = in_out[8..16].try_into().expect("eight bytes");
        let room = self.payload.as_mut_slice();
        let len = len.min(room.len());
        let header = in_out.first_chunk().expect("forty bytes of more");
        let Some((error, bytes)) = answer(FuseRequest { header, op, payload: room, len }) else { return false };
        let bytes = u32::try_from(bytes).expect("a payload");
        // `fuse_out_header`, and the bytes once more.
        in_out[..4].copy_from_slice(&(16 + bytes).to_ne_bytes());
        in_out[4..8].copy_from_slice(&(-error).to_ne_bytes());
        in_out[8..16].copy_from_slice(&unique);
        entry[16..20].copy_from_slice(&bytes.to_ne_bytes());
        true
    }

    fn commit_id(&self) -> u64 {
        u64::from_ne_bytes(self.header.entry[8..16].try_into().expect("eight bytes"))
    }

    fn segments(&mut self) -> [Segment; 2] {
        let header = std::ptr::from_mut(&mut *self.header).cast();
        let payload = Segment { base: self.payload.as_mut_slice().as_mut_ptr(), len: self.payload.len() };
        [Segment { base: header, len: size_of::<Header>() }, payload]
    }
}

/// Where other threads give entries back that they have answered.
#[derive(Debug)]
pub struct FuseReturns {
    answered: Mutex<Vec<FuseEntry>>,
    /// Counts, and wakes the ring's thread.
    event: OwnedFd,
}

impl FuseReturns {
    /// Takes what is there.
    fn take(&self) -> Vec<FuseEntry> {
        // Before the entries: whoever gives one afterwards wakes anew. Where nothing was counted there may be entries all the same.
        let _ = rustix::io::read(&self.event, &mut [0_u8; 8]);
        std::mem::take(&mut *self.answered.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Has an answer sent.
    pub fn give(&self, entry: FuseEntry) {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
        if let Err(e) = rustix::io::write(&self.event, &1_u64.to_ne_bytes()) {
            tracing::error!(%e, "a FUSE ring's thread cannot be woken");
        }
    }
}

/// What io_uring_enter(2) says of a moment is no error: whatever was not submitted is with the next call.
fn passing(entered: io::Result<usize>) -> io::Result<()> {
    match entered {
        Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(()),
        Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ResourceBusy) => {
            std::thread::sleep(RETRY_WAIT);
            Ok(())
        }
        entered => entered.map(drop),
    }
}

/// A ring for entries of a queue.
pub struct FuseRing {
    // Before what it points to.
    ring: IoUring<squeue::Entry128>,
    queue: u16,
    /// By number; `None` while another thread has it.
    entries: Vec<Option<FuseEntry>>,
    returns: Arc<FuseReturns>,
    listens: bool,
}

impl std::fmt::Debug for FuseRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FuseRing").field("queue", &self.queue).field("entries", &self.entries.len()).finish_non_exhaustive()
    }
}

impl FuseRing {
    /// A ring for `entries` entries of `queue`, which has to be served by the thread that makes it. `payload_bytes`: at least what was
    /// negotiated, and whole pages.
    ///
    /// # Errors
    /// What io_uring_setup(2) says: `EPERM` where it is forbidden, `EINVAL` where 128-byte submissions are unknown.
    pub fn new(device: &OwnedFd, queue: u16, entries: usize, payload_bytes: usize) -> io::Result<Self> {
        // Each entry once, and the poll for those that come back.
        let size = u32::try_from(entries + 1).map_err(io::Error::other)?.next_power_of_two();
        let ring = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(size);
        let ring = ring.or_else(|_| IoUring::builder().build(size))?;
        ring.submitter().register_files(&[device.as_raw_fd()])?;
        let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let returns = Arc::new(FuseReturns { answered: Mutex::default(), event });
        let entries = (0..entries).map(|id| Some(FuseEntry::new(id, payload_bytes))).collect();
        Ok(Self { ring, queue, entries, returns, listens: false })
    }

    /// Whether such a ring can be made here.
    ///
    /// # Errors
    /// What io_uring_setup(2) says.
    pub fn probe() -> io::Result<()> {
        IoUring::<squeue::Entry128>::builder().build(2).map(drop)
    }

    /// Where other threads give entries back.
    #[must_use]
    pub fn returns(&self) -> Arc<FuseReturns> {
        Arc::clone(&self.returns)
    }

    /// Registers the entries, when the connection is ready, and answers requests until it ends. Once.
    ///
    /// `take` gets each request, and the number of those that came with it and are to be looked at still. It gives the entry back, answered;
    /// or `None`, when another thread will ([`FuseReturns::give`]).
    ///
    /// # Errors
    /// What registration said, when the kernel takes none of them: it serves the connection by reads of the device then.
    pub fn serve(mut self, mut take: impl FnMut(FuseEntry, usize) -> Option<FuseEntry>) -> io::Result<()> {
        let segments: Vec<[Segment; 2]> = self.entries.iter_mut().flatten().map(FuseEntry::segments).collect();
        for (id, segments) in segments.iter().enumerate() {
            self.push(self.command(id, REGISTER, 0, Some(segments)))?;
        }
        let mut left = segments.len();
        let mut attempts = INIT_ATTEMPTS_MAX;
        // Those that a request has come by.
        let mut used = vec![false; left];
        let mut turn = VecDeque::with_capacity(left + 1);
        // Some came before INIT was answered.
        let mut early = false;
        loop {
            if std::mem::take(&mut early) {
                attempts -= 1;
                std::thread::sleep(RETRY_WAIT);
            }
            self.wait(&mut turn)?;
            while let Some((id, result)) = turn.pop_front() {
                if id == BACK {
                    self.listens = false;
                    self.returns.take().into_iter().try_for_each(|entry| self.commit(entry))?;
                    if self.entries.iter().any(Option::is_none) {
                        self.listen()?;
                    }
                    if !turn.is_empty() {
                        self.submit()?;
                    }
                    continue;
                }
                let id = usize::try_from(id).map_err(io::Error::other)?;
                if result < 0 {
                    let error = io::Error::from_raw_os_error(-result);
                    match error.kind() {
                        _ if used[id] => return Ok(()),
                        io::ErrorKind::NotConnected | io::ErrorKind::ConnectionAborted => return Ok(()),
                        io::ErrorKind::WouldBlock if attempts > 0 => {
                            early = true;
                            self.push(self.command(id, REGISTER, 0, Some(&segments[id])))?;
                        }
                        _ if left == 1 => return Err(error),
                        _ => {
                            left -= 1;
                            tracing::warn!(%error, "the kernel takes not all entries of a FUSE ring; requests may come by the device");
                        }
                    }
                    continue;
                }
                used[id] = true;
                let entry = self.entries.get_mut(id).and_then(Option::take).ok_or_else(|| io::Error::other("an entry of nobody's"))?;
                let awaited = entry.is_awaited();
                match take(entry, turn.len()) {
                    Some(entry) => self.commit(entry)?,
                    None if self.listens => {}
                    None => self.listen()?,
                }
                if awaited && !turn.is_empty() {
                    self.submit()?;
                }
            }
        }
    }

    /// Gives an answer, and the entry, to the kernel, with the next call.
    fn commit(&mut self, entry: FuseEntry) -> io::Result<()> {
        let command = self.command(entry.id, COMMIT_AND_FETCH, entry.commit_id(), None);
        let id = entry.id;
        self.entries[id] = Some(entry);
        self.push(command)
    }

    /// Has the thread woken, with the next call, when an entry is given back.
    fn listen(&mut self) -> io::Result<()> {
        self.listens = true;
        let poll = opcode::PollAdd::new(types::Fd(self.returns.event.as_raw_fd()), PollFlags::IN.bits().into()).build();
        self.push(squeue::Entry128::from(poll.user_data(BACK)))
    }

    fn push(&mut self, entry: squeue::Entry128) -> io::Result<()> {
        // SAFETY: headers and payloads lie in allocations of their own, which live as long as the ring or, while another thread has an entry, are
        // not the kernel's; it touches them only within this thread's calls of `submit` and `submit_and_wait`, by the commands that it is given
        // there. What REGISTER points to lives as long as `serve`, which ends with the ring.
        unsafe { self.ring.submission().push(&entry) }.map_err(|_| io::Error::other("the submission queue is full"))
    }

    fn submit(&self) -> io::Result<()> {
        passing(self.ring.submit())
    }

    /// Waits for something to come.
    fn wait(&mut self, turn: &mut VecDeque<(u64, i32)>) -> io::Result<()> {
        while turn.is_empty() {
            passing(self.ring.submit_and_wait(1))?;
            turn.extend(self.ring.completion().map(|done| (done.user_data(), done.result())));
        }
        Ok(())
    }

    fn command(&self, id: usize, command: u32, commit: u64, segments: Option<&[Segment; 2]>) -> squeue::Entry128 {
        let mut words = [0; 80];
        words[8..16].copy_from_slice(&commit.to_ne_bytes());
        words[16..18].copy_from_slice(&self.queue.to_ne_bytes());
        let entry = opcode::UringCmd80::new(DEVICE, command).cmd(words);
        let Some(segments) = segments else { return entry.build().user_data(id as u64) };
        let entry = entry.addr(Some(segments.as_ptr().addr() as u64)).build().user_data(id as u64);
        // SAFETY: the type is `repr(C)`, 128 bytes, and any bytes are one; the crate has no setter for this field.
        let mut raw: [u8; 128] = unsafe { std::mem::transmute(entry) };
        raw[SQE_LEN_AT..SQE_LEN_AT + 4].copy_from_slice(&2_u32.to_ne_bytes());
        // SAFETY: as above.
        unsafe { std::mem::transmute(raw) }
    }
}

/// `struct fuse_backing_map`.
#[repr(C)]
#[derive(Debug)]
struct BackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}

/// `FUSE_DEV_IOC_BACKING_OPEN` and `FUSE_DEV_IOC_BACKING_CLOSE`.
const BACKING_OPEN: ioctl::Opcode = ioctl::opcode::write::<BackingMap>(229, 1);
const BACKING_CLOSE: ioctl::Opcode = ioctl::opcode::write::<u32>(229, 2);

/// Makes a file known to the kernel, for FUSE passthrough. The answer is positive.
struct OpenBacking(BackingMap);

// SAFETY: the kernel reads a `fuse_backing_map` and returns a number.
unsafe impl ioctl::Ioctl for OpenBacking {
    type Output = i32;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> ioctl::Opcode {
        BACKING_OPEN
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        std::ptr::from_mut(&mut self.0).cast()
    }

    unsafe fn output_from_ptr(out: ioctl::IoctlOutput, _: *mut std::ffi::c_void) -> rustix::io::Result<i32> {
        Ok(out)
    }
}

/// A file that the kernel knows by a number of the connection's.
#[derive(Debug)]
pub struct FuseBacking {
    device: Arc<OwnedFd>,
    id: i32,
}

impl FuseBacking {
    /// Registers `file`, which may be closed then.
    ///
    /// # Errors
    /// `EPERM` without `CAP_SYS_ADMIN`, `ELOOP` for a file on a file system that is itself stacked too high.
    pub fn new(device: Arc<OwnedFd>, file: impl AsFd) -> io::Result<Self> {
        let map = BackingMap { fd: file.as_fd().as_raw_fd(), flags: 0, padding: 0 };
        // SAFETY: see `OpenBacking`; the descriptor is open.
        let id = unsafe { ioctl::ioctl(&*device, OpenBacking(map)) }?;
        Ok(Self { device, id })
    }

    /// Its number.
    #[must_use]
    pub const fn id(&self) -> i32 {
        self.id
    }
}

impl Drop for FuseBacking {
    fn drop(&mut self) {
        // SAFETY: the kernel reads a number of 32 bits.
        let closed = unsafe { ioctl::ioctl(&*self.device, ioctl::Setter::<BACKING_CLOSE, i32>::new(self.id)) };
        if let Err(e) = closed {
            // The connection has ended, and its files with it.
            tracing::debug!(%e, id = self.id, "FUSE_DEV_IOC_BACKING_CLOSE");
        }
    }
}
