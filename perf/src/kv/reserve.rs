//! Memory that the machine really has.
//!
//! A virtual machine's host may take back memory that is free (free page reporting), and whoever gets such a page first waits for the host:
//! on the machine that the results are from, writing to a file goes at a tenth of its speed then. How much of that a system meets with is a
//! matter of luck. So some memory is touched before a system's turn, and given back to the kernel while it works, a little at a time: the
//! kernel hands out first what was freed last.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

const PAGE_BYTES: usize = 4096;
/// Given back at a time. More than malloc(3) would ever keep for itself (32 MiB).
const CHUNK_BYTES: usize = 64 << 20;

/// Touched memory, on its way back to the kernel. What is left goes back when this is dropped.
pub(super) struct Reserve {
    /// Dropped: end.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Reserve {
    /// Touches so many GiB now, and gives them back evenly over `duration`.
    pub(super) fn new(gib: usize, duration: Duration) -> Self {
        let chunks = (gib << 30) / CHUNK_BYTES;
        let mut memory: Vec<Vec<u8>> = (0..chunks).map(|_| touched(CHUNK_BYTES)).collect();
        let (stop, stopped) = mpsc::channel::<()>();
        let pause = duration / u32::try_from(chunks.max(1)).unwrap_or(u32::MAX);
        let thread = std::thread::spawn(move || {
            while !memory.is_empty() && stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                memory.pop();
            }
        });
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Reserve {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It does not panic.
            let _ = thread.join();
        }
    }
}

fn touched(bytes: usize) -> Vec<u8> {
    let mut memory = vec![0_u8; bytes];
    memory.iter_mut().step_by(PAGE_BYTES).for_each(|byte| *byte = 1);
    std::hint::black_box(memory)
}
