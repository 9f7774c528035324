//! name_to_handle_at(2), which the crates that we use lack: the one call here without a safe wrapper.
#![allow(unsafe_code, reason = "no safe wrapper of name_to_handle_at(2)")]

use nix::libc;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicI32, Ordering};

/// The longest handle that the kernel makes (`MAX_HANDLE_SZ`).
const HANDLE_BYTES_MAX: usize = 128;
/// A handle that only tells objects apart will do (Linux 6.5).
const AT_HANDLE_FID: i32 = 0x200;

/// The kernel's `struct file_handle`, with room for the longest.
#[repr(C)]
struct FileHandle {
    bytes: u32,
    kind: i32,
    data: [u8; HANDLE_BYTES_MAX],
}

static FLAGS: AtomicI32 = AtomicI32::new(libc::AT_EMPTY_PATH | AT_HANDLE_FID);

/// The handle of what is open, as the kernel lays it out in events: length, type, and the bytes.
///
/// # Errors
/// As name_to_handle_at(2): `EOPNOTSUPP` where the file system has none.
#[allow(clippy::host_endian_bytes, reason = "the kernel's own memory")]
pub(super) fn of(fd: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let mut handle = FileHandle { bytes: HANDLE_BYTES_MAX as u32, kind: 0, data: [0; HANDLE_BYTES_MAX] };
    let mut mount = 0;
    loop {
        let flags = FLAGS.load(Ordering::Relaxed);
        let into = std::ptr::from_mut(&mut handle).cast();
        // SAFETY: the descriptor is open while it is borrowed, the path is a C string, and `handle` is what the kernel takes it for: a header
        // that says how many bytes follow, and that many.
        if unsafe { libc::name_to_handle_at(fd.as_raw_fd(), c"".as_ptr(), into, &raw mut mount, flags) } == 0 {
            break;
        }
        let error = io::Error::last_os_error();
        // An older kernel does not know the flag.
        if error.raw_os_error() != Some(libc::EINVAL) || flags & AT_HANDLE_FID == 0 {
            return Err(error);
        }
        FLAGS.store(flags & !AT_HANDLE_FID, Ordering::Relaxed);
    }
    let data = handle.data.get(..handle.bytes as usize).ok_or(io::ErrorKind::InvalidData)?;
    Ok([&handle.bytes.to_ne_bytes()[..], &handle.kind.to_ne_bytes(), data].concat())
}
