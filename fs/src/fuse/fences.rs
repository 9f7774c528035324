//! Which file handles carry a fencing token, and how one is put on a handle.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

/// `ioctl(fd, FENCE_IOCTL, &token)`, the token a u64: `_IOW('B', 1, __u64)`. It raises the file's fence to the token, and
/// from then on what goes through the handle is refused with `ESTALE` once somebody raised the fence further.
pub const FENCE_IOCTL: u32 = 0x4008_4201;

/// Numbers of open file handles, and the tokens of those that have one.
#[derive(Debug, Default)]
pub(super) struct Fences {
    last: AtomicU64,
    tokens: RwLock<HashMap<u64, u64>>,
}

impl Fences {
    /// A number for a new handle.
    pub(super) fn open(&self) -> u64 {
        self.last.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The handle's token; 0: none.
    pub(super) fn of(&self, handle: u64) -> u64 {
        self.tokens.read().unwrap_or_else(PoisonError::into_inner).get(&handle).copied().unwrap_or(0)
    }

    pub(super) fn set(&self, handle: u64, token: u64) {
        self.tokens.write().unwrap_or_else(PoisonError::into_inner).insert(handle, token);
    }

    pub(super) fn close(&self, handle: u64) {
        if self.of(handle) != 0 {
            self.tokens.write().unwrap_or_else(PoisonError::into_inner).remove(&handle);
        }
    }
}
