//! Opens, where `passthrough` asks for them: the kernel reads and writes large files of local branches without us.
//!
//! By the kernel's rules an inode is either cached by the union's mount or passed through, to one file, as long as any handle of that kind is
//! open. So:
//! - large files of local branches are passed through, for writing only where no copy-up has to come first;
//! - while such a file has cached handles (of a writer that will copy it up), others are cached too;
//! - who opens a file while another one is passed through under its inode - a writer of a lower file, a reader of its copy - finds it *moved*: the
//!   file gets another node number, OPEN is answered with ESTALE, and the kernel looks the name up again, once. Who opened it before goes on
//!   reading the lower file, as on overlayfs.

use super::edge::Backing;
use fuser::{FileHandle, FopenFlags};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Files below this many bytes are cached: they are read in one request, and from then on from memory.
pub(super) const PASSED_BYTES_MIN: u64 = 128 << 10;
/// The first of the numbers that moved files get. Inode numbers never come that far.
const MOVED_MIN: u64 = 0xffff << 48;

/// What a handle's number says of it.
const CACHED: FileHandle = FileHandle(1);
const PASSED: FileHandle = FileHandle(2);

/// What a look at a file says.
#[derive(Debug)]
pub(super) enum Looked {
    /// It is too small to be passed through.
    Small,
    /// It cannot be passed through, now at least.
    Unfit,
    Fit(Candidate),
}

/// A file that could be passed through.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) file: Arc<OwnedFd>,
    /// Device and inode in the branch.
    pub(super) id: (u64, u64),
    /// It lies where it can be written.
    pub(super) writable: bool,
}

#[derive(Debug)]
struct Passed<B> {
    id: (u64, u64),
    backing: Arc<B>,
    handles: u32,
}

/// What is known of a file's size. No more than a hint: a file that has become large behind it is cached, and every byte of it is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    /// Look.
    Unknown,
    /// It was below [`PASSED_BYTES_MIN`] when it was last opened.
    Small,
    /// Somebody opened it for writing, and may write on.
    Growing,
}

/// A file that is open, or of whose size something is known.
#[derive(Debug)]
struct State<B> {
    cached: u32,
    passed: Option<Box<Passed<B>>>,
    /// Written past the page cache of the union's mount: the next cached open must not trust it.
    stale: bool,
    size: Size,
}

impl<B> State<B> {
    const NEW: Self = Self { cached: 0, passed: None, stale: false, size: Size::Unknown };

    /// Opens it by the page cache.
    fn cache(&mut self) -> Answer<B> {
        self.cached += 1;
        Answer::Cached { keep: !std::mem::take(&mut self.stale) }
    }
}

/// How an open is answered.
#[derive(Debug)]
pub(super) enum Answer<B> {
    /// With or without what the kernel still has of its data.
    Cached {
        keep: bool,
    },
    Passed(Arc<B>),
    /// Look the name up again: the file has another number now.
    Moved,
}

#[derive(Debug)]
struct Inner<B> {
    /// By node, in order: files are mostly opened directory by directory, with numbers close to each other, whose places in a hash table would
    /// each be another line of memory.
    files: BTreeMap<u64, State<B>>,
    /// The nodes of moved files, by inode number; the last is the one that names lead to.
    moved: HashMap<u64, Vec<u64>>,
    /// And back.
    inodes: HashMap<u64, u64>,
    next: u64,
}

impl<B> Inner<B> {
    fn inode(&self, node: u64) -> u64 {
        self.inodes.get(&node).copied().unwrap_or(node)
    }

    /// Whether names lead to another node of the file by now.
    fn has_moved(&self, node: u64) -> bool {
        !self.moved.is_empty() && self.moved.get(&self.inode(node)).and_then(|nodes| nodes.last()).is_some_and(|last| *last != node)
    }
}

/// The open handles of all files that have any. `B` is what the kernel knows a file by.
#[derive(Debug)]
pub(super) struct Opens<B = Backing> {
    inner: Mutex<Inner<B>>,
    any_moved: AtomicBool,
    refused: AtomicBool,
}

impl<B> Default for Opens<B> {
    fn default() -> Self {
        let inner = Inner { files: BTreeMap::new(), moved: HashMap::new(), inodes: HashMap::new(), next: MOVED_MIN };
        Self { inner: Mutex::new(inner), any_moved: AtomicBool::new(false), refused: AtomicBool::new(false) }
    }
}

impl<B> Opens<B> {
    fn inner(&self) -> MutexGuard<'_, Inner<B>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node that names of the inode `ino` lead to.
    pub(super) fn node(&self, ino: u64) -> u64 {
        if !self.any_moved.load(Ordering::Acquire) {
            return ino;
        }
        self.inner().moved.get(&ino).and_then(|nodes| nodes.last()).copied().unwrap_or(ino)
    }

    /// The inode number of a node.
    pub(super) fn inode(&self, node: u64) -> u64 {
        if node < MOVED_MIN { node } else { self.inner().inode(node) }
    }

    /// The nodes that a moved file has, besides the one that has its inode's number.
    pub(super) fn moved(&self, ino: u64) -> Vec<u64> {
        if !self.any_moved.load(Ordering::Acquire) {
            return Vec::new();
        }
        self.inner().moved.get(&ino).cloned().unwrap_or_default()
    }

    /// Opens a file for reading that need not be looked at, since it was small when it was last opened. `None`: look, and [`Self::open`] it.
    pub(super) fn open_small(&self, node: u64) -> Option<Answer<B>> {
        let mut inner = self.inner();
        if inner.has_moved(node) {
            return None;
        }
        let state = inner.files.get_mut(&node).filter(|state| state.size == Size::Small && state.passed.is_none())?;
        Some(state.cache())
    }

    /// A file's size was set.
    pub(super) fn resized(&self, node: u64) {
        if let Some(state) = self.inner().files.get_mut(&node)
            && state.size == Size::Small
        {
            state.size = Size::Unknown;
        }
    }

    /// Decides about an open; `register` makes a file known to the kernel.
    pub(super) fn open(&self, node: u64, write: bool, looked: &Looked, register: impl FnOnce(&OwnedFd) -> io::Result<B>) -> Answer<B> {
        let fits = match looked {
            Looked::Fit(candidate) if candidate.writable || !write => Some(candidate),
            _ => None,
        };
        let mut inner = self.inner();
        let inner = &mut *inner;
        if inner.has_moved(node) {
            return Answer::Moved;
        }
        let ino = inner.inode(node);
        let state = inner.files.entry(node).or_insert(State::NEW);
        state.size = match state.size {
            Size::Growing => Size::Growing,
            _ if write => Size::Growing,
            _ if matches!(looked, Looked::Small) => Size::Small,
            _ => Size::Unknown,
        };
        if let Some(passed) = &mut state.passed {
            if fits.is_none_or(|c| c.id != passed.id) {
                inner.moved.entry(ino).or_default().push(inner.next);
                inner.inodes.insert(inner.next, ino);
                inner.next += 1;
                self.any_moved.store(true, Ordering::Release);
                return Answer::Moved;
            }
            passed.handles += 1;
            state.stale |= write;
            return Answer::Passed(Arc::clone(&passed.backing));
        }
        if state.cached == 0
            && let Some(candidate) = fits
            && let Some(backing) = self.registered(register(&candidate.file))
        {
            state.stale |= write;
            state.passed = Some(Box::new(Passed { id: candidate.id, backing: Arc::clone(&backing), handles: 1 }));
            return Answer::Passed(backing);
        }
        state.cache()
    }

    fn registered(&self, made: io::Result<B>) -> Option<Arc<B>> {
        match made {
            Ok(backing) => Some(Arc::new(backing)),
            Err(e) => {
                if !self.refused.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%e, "the kernel passes a file of a branch not through; such files are read through the union");
                }
                None
            }
        }
    }

    /// A handle was closed.
    pub(super) fn release(&self, node: u64, handle: FileHandle) {
        let mut inner = self.inner();
        let Some(state) = inner.files.get_mut(&node) else { return };
        let mut last = None;
        if handle == CACHED {
            state.cached = state.cached.saturating_sub(1);
        } else if handle == PASSED
            && let Some(passed) = &mut state.passed
        {
            passed.handles -= 1;
            if passed.handles == 0 {
                last = state.passed.take();
            }
        }
        if state.cached == 0 && state.passed.is_none() && !state.stale && state.size == Size::Unknown {
            inner.files.remove(&node);
        }
        drop(inner);
        // Tells the kernel, which need not wait for others' opens.
        drop(last);
    }

    /// The kernel has forgotten all nodes of an inode, and their pages.
    pub(super) fn forget(&self, ino: u64) {
        let mut inner = self.inner();
        inner.files.remove(&ino);
        for node in inner.moved.remove(&ino).unwrap_or_default() {
            inner.files.remove(&node);
            inner.inodes.remove(&node);
        }
    }
}

/// A handle as the kernel is told of it.
#[derive(Debug)]
pub(super) struct Opened<B> {
    pub(super) handle: FileHandle,
    pub(super) flags: FopenFlags,
    /// The file that it is passed through to.
    pub(super) backing: Option<Arc<B>>,
}

impl<B> Answer<B> {
    /// `None` where the name has to be looked up again.
    pub(super) fn opened(self) -> Option<Opened<B>> {
        Some(match self {
            Self::Cached { keep: true } => Opened { handle: CACHED, flags: FopenFlags::FOPEN_KEEP_CACHE, backing: None },
            Self::Cached { keep: false } => Opened { handle: CACHED, flags: FopenFlags::empty(), backing: None },
            Self::Passed(backing) => Opened { handle: PASSED, flags: FopenFlags::empty(), backing: Some(backing) },
            Self::Moved => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(id: u64, writable: bool) -> Looked {
        let file = std::fs::File::open("/dev/null").expect("open");
        Looked::Fit(Candidate { file: Arc::new(file.into()), id: (1, id), writable })
    }

    fn word(answer: &Answer<u64>) -> &'static str {
        match answer {
            Answer::Cached { keep: true } => "cached",
            Answer::Cached { keep: false } => "anew",
            Answer::Passed(_) => "passed",
            Answer::Moved => "moved",
        }
    }

    fn open(opens: &Opens<u64>, write: bool, looked: &Looked) -> &'static str {
        word(&opens.open(opens.node(7), write, looked, |_| Ok(1)))
    }

    #[test]
    fn one_kind_and_one_file_at_a_time() {
        let opens = Opens::<u64>::default();
        let (lower, copy) = (file(1, false), file(2, true));
        assert_eq!(open(&opens, false, &lower), "passed");
        assert_eq!(open(&opens, false, &lower), "passed");
        // A writer while the lower file is in use gets another node, and so does who reads what it wrote.
        assert_eq!(open(&opens, true, &lower), "moved");
        assert_eq!(word(&opens.open(7, false, &lower, |_| Ok(1))), "moved");
        let node = opens.node(7);
        assert!(node != 7 && opens.inode(node) == 7 && opens.moved(7) == [node]);
        assert_eq!(open(&opens, true, &lower), "cached");
        assert_eq!(open(&opens, false, &copy), "cached");
        opens.release(node, CACHED);
        opens.release(node, CACHED);
        assert_eq!(open(&opens, true, &copy), "passed");
        opens.release(node, PASSED);
        opens.release(7, PASSED);
        opens.forget(7);
        let inner = opens.inner();
        assert!(inner.files.is_empty() && inner.moved.is_empty() && inner.inodes.is_empty());
    }

    #[test]
    fn a_writer_of_a_lower_file_is_cached_and_so_are_others_then() {
        let opens = Opens::<u64>::default();
        assert_eq!(open(&opens, true, &file(1, false)), "cached");
        assert_eq!(open(&opens, false, &file(2, true)), "cached");
        opens.release(7, CACHED);
        assert_eq!(open(&opens, false, &file(2, true)), "cached");
        opens.release(7, CACHED);
        opens.release(7, CACHED);
        assert_eq!(open(&opens, false, &file(2, true)), "passed");
    }

    #[test]
    fn pages_are_not_trusted_after_writes_past_them() {
        let opens = Opens::<u64>::default();
        assert_eq!(open(&opens, true, &file(2, true)), "passed");
        opens.release(7, PASSED);
        assert_eq!(open(&opens, false, &Looked::Small), "anew");
        assert_eq!(open(&opens, false, &Looked::Small), "cached");
        opens.release(7, CACHED);
        opens.release(7, CACHED);
        opens.forget(7);
        assert!(opens.inner().files.is_empty());
    }

    #[test]
    fn small_files_are_looked_at_once_unless_they_may_have_grown() {
        let opens = Opens::<u64>::default();
        let open_and_close = |write, looked: &Looked| {
            let found = open(&opens, write, looked);
            opens.release(7, if found == "passed" { PASSED } else { CACHED });
        };
        let small = || {
            let small = opens.open_small(7).map(|answer| word(&answer));
            if small.is_some() {
                opens.release(7, CACHED);
            }
            small
        };
        assert_eq!(small(), None);
        open_and_close(false, &Looked::Small);
        assert_eq!(small(), Some("cached"));
        opens.resized(7);
        assert_eq!(small(), None, "its size was set");
        open_and_close(false, &Looked::Unfit);
        assert_eq!(small(), None, "it may be large");
        open_and_close(false, &Looked::Small);
        open_and_close(true, &Looked::Small);
        open_and_close(false, &Looked::Small);
        opens.resized(7);
        open_and_close(false, &Looked::Small);
        assert_eq!(small(), None, "whoever wrote may write on");
        opens.forget(7);
        assert!(opens.inner().files.is_empty());
        open_and_close(false, &file(1, false));
        assert_eq!(small(), None, "large");
        assert!(opens.inner().files.is_empty());
    }

    #[test]
    fn what_the_kernel_refuses_is_cached() {
        let opens = Opens::<u64>::default();
        let answer = opens.open(7, false, &file(1, false), |_| Err(io::ErrorKind::PermissionDenied.into()));
        assert_eq!(word(&answer), "cached");
    }
}
