//! Threads that are bound to a processor, for the sake of short requests, and let loose while they wait for a disk: its interrupt may come to another
//! processor, and to wake one that sleeps costs as much as the disk's answer.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::cell::Cell;

#[derive(Clone, Copy)]
struct Bound {
    to: CpuSet,
    /// Where it could run before.
    before: CpuSet,
}

thread_local! {
    static BOUND: Cell<Option<Bound>> = const { Cell::new(None) };
}

/// Binds this thread to a processor, if it may run there.
pub(crate) fn bind(processor: usize) {
    let mut to = CpuSet::new();
    to.set(processor);
    if let Ok(before) = sched_getaffinity(None)
        && sched_setaffinity(None, &to).is_ok()
    {
        BOUND.set(Some(Bound { to, before }));
    }
}

/// Does what waits for a disk.
pub(crate) fn wait<T>(f: impl FnOnce() -> T) -> T {
    let Some(bound) = BOUND.get() else { return f() };
    // Where this fails the thread stays as it is.
    let _ = sched_setaffinity(None, &bound.before);
    let done = f();
    let _ = sched_setaffinity(None, &bound.to);
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_thread_is_loose_while_it_waits() {
        // A thread of its own: the others of the test's process stay where they are.
        std::thread::spawn(|| {
            let free = sched_getaffinity(None).expect("affinity");
            let processor = (0..CpuSet::MAX_CPU).find(|n| free.is_set(*n)).expect("one");
            assert_eq!(wait(|| 7), 7, "nothing is bound");
            bind(processor);
            let bound = sched_getaffinity(None).expect("affinity");
            assert!(bound.count() == 1 && bound.is_set(processor));
            assert!(wait(|| sched_getaffinity(None)).expect("affinity") == free);
            assert!(sched_getaffinity(None).expect("affinity") == bound);
        })
        .join()
        .expect("the thread");
    }
}
