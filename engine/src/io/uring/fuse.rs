//! FUSE over io_uring (Linux 6.14): one request is fetched, and the last one answered, by one system call.
//!
//! The kernel has a queue for each possible processor and hands a request to the queue of the processor that the application runs on. A queue
//! has entries; an entry has a place for one request and its answer. Here an entry has a ring and a thread of its own: it works on one request
//! at a time, and a queue takes up as many at once as it has entries.
//!
//! Numbers and layouts: the kernel's `include/uapi/linux/fuse.h`.

#![allow(clippy::host_endian_bytes, reason = "the kernel's own memory")]

use super::super::AlignedBuf;
use io_uring::{IoUring, opcode, squeue, types};
use rustix::ioctl;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

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

/// An entry that is not registered yet.
pub struct FuseEntry {
    // Before what it points to.
    ring: IoUring<squeue::Entry128>,
    device: Arc<OwnedFd>,
    queue: u16,
    header: Box<Header>,
    payload: AlignedBuf,
}

impl std::fmt::Debug for FuseEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FuseEntry").field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl FuseEntry {
    /// An entry of `queue`, which has to be served by the thread that makes it. `payload_bytes`: at least what was negotiated, and whole pages.
    ///
    /// # Errors
    /// What io_uring_setup(2) says: `EPERM` where it is forbidden, `EINVAL` where 128-byte submissions are unknown.
    pub fn new(device: Arc<OwnedFd>, queue: u16, payload_bytes: usize) -> io::Result<Self> {
        let ring = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(2);
        let ring = ring.or_else(|_| IoUring::builder().build(2))?;
        let header = Box::new(Header { in_out: [0; 128], op: [0; 128], entry: [0; 32] });
        Ok(Self { ring, device, queue, header, payload: AlignedBuf::zeroed(payload_bytes) })
    }

    /// Whether such a ring can be made here.
    ///
    /// # Errors
    /// What io_uring_setup(2) says.
    pub fn probe() -> io::Result<()> {
        IoUring::<squeue::Entry128>::builder().build(2).map(drop)
    }

    fn command(&self, command: u32, commit: u64, segments: Option<&[Segment; 2]>) -> squeue::Entry128 {
        let mut words = [0; 80];
        words[8..16].copy_from_slice(&commit.to_ne_bytes());
        words[16..18].copy_from_slice(&self.queue.to_ne_bytes());
        let entry = opcode::UringCmd80::new(types::Fd(self.device.as_raw_fd()), command).cmd(words);
        let Some(segments) = segments else { return entry.build() };
        let entry = entry.addr(Some(segments.as_ptr().addr() as u64)).build();
        // SAFETY: the type is `repr(C)`, 128 bytes, and any bytes are one; the crate has no setter for this field.
        let mut raw: [u8; 128] = unsafe { std::mem::transmute(entry) };
        raw[SQE_LEN_AT..SQE_LEN_AT + 4].copy_from_slice(&2_u32.to_ne_bytes());
        // SAFETY: as above.
        unsafe { std::mem::transmute(raw) }
    }

    /// Registers the entry and answers its requests until the connection ends. `answer` gives an error number (0: none) and the bytes of the
    /// payload that are the answer.
    ///
    /// # Errors
    /// What registration said: `EAGAIN` before the connection's INIT is answered, after which it may be tried again. After any other the kernel
    /// serves the connection by reads of the device.
    pub fn serve(&mut self, mut answer: impl FnMut(FuseRequest<'_>) -> (i32, usize)) -> io::Result<()> {
        let header = std::ptr::from_mut(&mut *self.header).cast();
        let payload = Segment { base: self.payload.as_mut_slice().as_mut_ptr(), len: self.payload.len() };
        let segments = [Segment { base: header, len: size_of::<Header>() }, payload];
        let mut next = self.command(REGISTER, 0, Some(&segments));
        let mut registered = false;
        loop {
            // SAFETY: header and payload live as long as the ring, in boxes that do not move, and the kernel touches them only within this
            // thread's calls of `submit_and_wait`, by the commands that it is given there; `segments` is read while REGISTER is submitted.
            unsafe { self.ring.submission().push(&next) }.map_err(|_| io::Error::other("the submission queue is full"))?;
            let done = loop {
                match self.ring.submit_and_wait(1) {
                    Ok(_) => {}
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
                if let Some(done) = self.ring.completion().next() {
                    break done.result();
                }
            };
            if done < 0 {
                // ENOTCONN and its like at the end of the connection.
                return if registered { Ok(()) } else { Err(io::Error::from_raw_os_error(-done)) };
            }
            registered = true;
            let Header { in_out, op, entry } = &mut *self.header;
            let commit = u64::from_ne_bytes(entry[8..16].try_into().expect("eight bytes"));
            let len = u32::from_ne_bytes(entry[16..20].try_into().expect("four bytes")) as usize;
            let unique: [u8; 8] = in_out[8..16].try_into().expect("eight bytes");
            let room = self.payload.as_mut_slice();
            let len = len.min(room.len());
            let header = in_out[..40].try_into().expect("forty bytes");
            let (error, bytes) = answer(FuseRequest { header, op, payload: room, len });
            let bytes = u32::try_from(bytes).expect("a payload");
            // `fuse_out_header`, and the bytes once more.
            in_out[..4].copy_from_slice(&(16 + bytes).to_ne_bytes());
            in_out[4..8].copy_from_slice(&(-error).to_ne_bytes());
            in_out[8..16].copy_from_slice(&unique);
            entry[16..20].copy_from_slice(&bytes.to_ne_bytes());
            next = self.command(COMMIT_AND_FETCH, commit, None);
        }
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
