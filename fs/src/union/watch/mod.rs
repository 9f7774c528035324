//! Watching local branches: the kernel tells, by fanotify(7), what others change in a directory.
//!
//! Each directory that the union holds in a local branch has a mark from before it is first looked at until nobody holds it any more ([`Watched`]). Events
//! carry the process that made the change, so what this process does itself is dropped as it is read. [`Union::watch`] starts it; whoever
//! caches what the union said then calls [`Watcher::wait`] and [`Watcher::read`] in a thread of its own.
//!
//! [`Union::watch`]: super::Union::watch

mod event;
mod handle;

use super::branch::ObjectId;
use super::node::lock;
use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

/// Of the directory and of the entry, each event says the name (`FAN_REPORT_DIR_FID`, `FAN_REPORT_NAME`, Linux 5.9).
const REPORT: u32 = 0x400 | 0x800;
/// Bytes of one read; the longest event has some 450.
pub const READ_BYTES: usize = 1 << 16;
/// File systems on which nobody but this host makes changes, and that tell of each, by the number that statfs(2) has for them: ext2 to ext4, XFS, btrfs,
/// bcachefs, F2FS, tmpfs, and the read-only EROFS and SquashFS. Of network file systems the kernel would only tell what happens here.
const KINDS: [u64; 8] = [0xef53, 0x5846_5342, 0x9123_683e, 0xca45_1a4e, 0xf2f5_2010, 0x0102_1994, 0xe0f5_e1e2, 0x7371_7368];

/// Watches directories of local branches.
#[derive(Debug)]
pub struct Watcher {
    group: Fanotify,
    /// Rung when there is something to do; and when all is over, and then never still again.
    wake: OwnedFd,
    stop: OwnedFd,
    stopped: AtomicBool,
    /// A directory's layers changed behind the union's back.
    reshaped: AtomicBool,
    /// Rises when others have changed something.
    seen: AtomicU64,
    state: Mutex<State>,
    /// Say aloud what cannot be watched: it was asked for.
    loud: bool,
    complained: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    by_id: HashMap<ObjectId, Weak<Watched>>,
    by_key: HashMap<Box<[u8]>, Weak<Watched>>,
    /// By device: the file system's id as events have it, where its directories can be watched.
    systems: HashMap<u64, Option<[u8; 8]>>,
    /// File systems whose events were understood once: their handles are what we think.
    proven: HashSet<[u8; 8]>,
}

/// A directory of a branch that is being watched, for as long as this lives.
#[derive(Debug)]
pub(super) struct Watched {
    watcher: Arc<Watcher>,
    id: ObjectId,
    /// File system and handle, as events have them.
    key: Box<[u8]>,
    /// While it is open its number is nobody else's.
    dir: Arc<OwnedFd>,
    /// The union's directories that it is a layer of; one, but for odd cases.
    owners: Mutex<Vec<u64>>,
}

/// What somebody else changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The union's directories that show it.
    pub dirs: Vec<u64>,
    /// The name in the branch; `.` for the directory itself.
    pub name: Vec<u8>,
    /// Whether names came or went, and not only data or attributes.
    pub names: bool,
    /// Whether data changed, or may have.
    pub data: bool,
}

/// What [`Watcher::read`] got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// In order.
    pub changes: Vec<Change>,
    /// More has changed than is known: forget everything.
    pub everything: bool,
    /// Whether more may be waiting.
    pub more: bool,
}

fn names_mask() -> MaskFlags {
    MaskFlags::FAN_CREATE | MaskFlags::FAN_DELETE | MaskFlags::FAN_MOVED_FROM | MaskFlags::FAN_MOVED_TO
}

fn mask() -> MaskFlags {
    names_mask() | MaskFlags::FAN_ATTRIB | MaskFlags::FAN_MODIFY | MaskFlags::FAN_ONDIR | MaskFlags::FAN_EVENT_ON_CHILD
}

impl Watcher {
    /// # Errors
    /// Where the kernel or the rights of this process do not allow it.
    pub(super) fn new(loud: bool) -> io::Result<Self> {
        let base = InitFlags::FAN_CLASS_NOTIF | InitFlags::FAN_CLOEXEC | InitFlags::FAN_NONBLOCK | InitFlags::from_bits_retain(REPORT);
        let open = |flags| Fanotify::init(flags, EventFFlags::O_RDONLY | EventFFlags::O_CLOEXEC | EventFFlags::O_LARGEFILE);
        // As many directories as there are descriptors; the queue keeps its bound.
        let group = match open(base | InitFlags::FAN_UNLIMITED_MARKS) {
            Err(nix::errno::Errno::EPERM) => open(base),
            other => other,
        }?;
        Ok(Self {
            group,
            wake: bell()?,
            stop: bell()?,
            stopped: AtomicBool::new(false),
            reshaped: AtomicBool::new(false),
            seen: AtomicU64::new(0),
            state: Mutex::default(),
            loud,
            complained: AtomicBool::new(false),
        })
    }

    /// Watches a directory; whether it was not watched before. `None` where that is not possible.
    pub(super) fn add(self: &Arc<Self>, dir: &Arc<OwnedFd>, id: ObjectId) -> Option<(Arc<Watched>, bool)> {
        let mut state = lock(&self.state);
        if let Some(known) = state.by_id.get(&id).and_then(Weak::upgrade) {
            return Some((known, false));
        }
        let added = self.mark(&mut state, dir, id);
        drop(state);
        match added {
            Ok(watched) => Some((watched, true)),
            Err(e) => {
                if e.raw_os_error() != Some(nix::libc::ESTALE) {
                    self.cannot(&e);
                }
                None
            }
        }
    }

    fn mark(self: &Arc<Self>, state: &mut State, dir: &Arc<OwnedFd>, id: ObjectId) -> io::Result<Arc<Watched>> {
        let unsupported = || io::Error::from_raw_os_error(nix::libc::EOPNOTSUPP);
        let stat = rustix::fs::fstat(dir)?;
        #[allow(clippy::cast_sign_loss, clippy::unnecessary_cast, reason = "the types differ between architectures")]
        if id != ObjectId(stat.st_dev as u64, stat.st_ino as u64) {
            // Replaced since it was looked at.
            return Err(io::Error::from_raw_os_error(nix::libc::ESTALE));
        }
        let system = match state.systems.get(&id.0) {
            Some(known) => *known,
            None => *state.systems.entry(id.0).or_insert(system(dir.as_fd())?),
        };
        let system = system.ok_or_else(unsupported)?;
        let marked = handle::of(dir.as_fd()).and_then(|handle| {
            self.group.mark(MarkFlags::FAN_MARK_ADD, mask(), dir.as_fd(), None::<&str>)?;
            Ok([&system[..], &handle].concat().into_boxed_slice())
        });
        let key = marked.inspect_err(|e| {
            // Not for want of memory or marks, but for good.
            if matches!(e.raw_os_error(), Some(nix::libc::EOPNOTSUPP | nix::libc::ENODEV | nix::libc::EXDEV | nix::libc::EINVAL)) {
                state.systems.insert(id.0, None);
            }
        })?;
        let watched = Arc::new(Watched { watcher: Arc::clone(self), id, key: key.clone(), dir: Arc::clone(dir), owners: Mutex::default() });
        state.by_id.insert(id, Arc::downgrade(&watched));
        state.by_key.insert(key, Arc::downgrade(&watched));
        Ok(watched)
    }

    /// Says once that something is not watched.
    pub(super) fn cannot(&self, why: &dyn std::fmt::Display) {
        if self.complained.swap(true, Ordering::Relaxed) {
            return;
        }
        let text = "directories that cannot be watched: what others change there shows after a second";
        if self.loud {
            tracing::warn!(%why, text);
        } else {
            tracing::info!(%why, text);
        }
    }

    /// How many directories are watched.
    #[must_use]
    pub fn watched(&self) -> usize {
        lock(&self.state).by_id.len()
    }

    /// Rises when others have changed something. What was looked at before it rose may be old.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.seen.load(Ordering::SeqCst)
    }

    /// Notes that a directory is not made of the layers that it was made of.
    pub(super) fn note_reshaped(&self) {
        self.seen.fetch_add(1, Ordering::SeqCst);
        self.reshaped.store(true, Ordering::SeqCst);
        ring(&self.wake);
    }

    /// Ends all waiting for good.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        ring(&self.stop);
    }

    /// Whether [`Self::stop`] was called.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Nobody listens any more: nothing that was found lasts.
    pub fn give_up(&self) {
        self.stop();
        self.seen.fetch_add(1, Ordering::SeqCst);
    }

    /// Waits until there is something to read or to do, at most for `time`.
    ///
    /// # Errors
    /// As poll(2).
    pub fn wait(&self, time: Option<Duration>) -> io::Result<()> {
        let in_ = PollFlags::IN;
        let group = PollFd::from_borrowed_fd(self.group.as_fd(), in_);
        wait_for(&mut [PollFd::new(&self.stop, in_), PollFd::new(&self.wake, in_), group], time)?;
        // It is empty, or it was rung.
        let _ = rustix::io::read(&self.wake, &mut [0_u8; 8]);
        Ok(())
    }

    /// Lets what others do wait for `time`.
    ///
    /// # Errors
    /// As poll(2).
    pub fn pause(&self, time: Duration) -> io::Result<()> {
        wait_for(&mut [PollFd::new(&self.stop, PollFlags::IN)], Some(time))
    }

    /// What others have changed, as far as one read tells; does not wait. `buf`: [`READ_BYTES`].
    ///
    /// # Errors
    /// As read(2).
    pub fn read(&self, buf: &mut [u8]) -> io::Result<Changes> {
        let got = match rustix::io::read(self.group.as_fd(), &mut *buf) {
            Ok(n) => n,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => 0,
            Err(e) => return Err(e.into()),
        };
        let mut out = self.sort(&buf[..got], std::process::id().cast_signed());
        out.everything |= self.reshaped.swap(false, Ordering::SeqCst);
        out.more = got > 0;
        Ok(out)
    }

    fn sort(&self, bytes: &[u8], own: i32) -> Changes {
        let mut out = Changes::default();
        let mut foreign: Vec<_> = event::events(bytes).filter(|e| e.is_loss() || e.pid != own).collect();
        if foreign.is_empty() {
            return out;
        }
        // Before anybody is looked for: who registers later sees that it rose.
        self.seen.fetch_add(1, Ordering::SeqCst);
        for event in foreign.drain(..) {
            let Some(dir) = event.dir.filter(|_| !event.is_loss()) else {
                out.everything = true;
                continue;
            };
            let Some(watched) = self.known(dir, &mut out.everything) else { continue };
            let mask = MaskFlags::from_bits_retain(event.mask);
            let names = mask.intersects(names_mask());
            let data = names || mask.contains(MaskFlags::FAN_MODIFY);
            let dirs = lock(&watched.owners).clone();
            out.changes.push(Change { dirs, name: event.name.to_vec(), names, data });
        }
        out
    }

    /// The directory of an event; `lost`: there is none, and that is no wonder only for one that was let go of a moment ago.
    fn known(&self, key: &[u8], lost: &mut bool) -> Option<Arc<Watched>> {
        let mut state = lock(&self.state);
        let system = key.first_chunk().copied().unwrap_or_default();
        let known = state.by_key.get(key).and_then(Weak::upgrade);
        if known.is_some() {
            state.proven.insert(system);
        } else {
            *lost |= !state.proven.contains(&system);
        }
        known
    }
}

fn bell() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

fn ring(bell: &OwnedFd) {
    #[allow(clippy::host_endian_bytes, reason = "the kernel's own memory")]
    let one = 1_u64.to_ne_bytes();
    // Full: it rings already.
    let _ = rustix::io::write(bell, &one);
}

fn wait_for(what: &mut [PollFd<'_>], time: Option<Duration>) -> io::Result<()> {
    let time = time.and_then(|t| Timespec::try_from(t).ok());
    match poll(what, time.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// The id that events have for a file system whose directories can be watched.
fn system(dir: BorrowedFd<'_>) -> io::Result<Option<[u8; 8]>> {
    #[allow(clippy::cast_sign_loss, clippy::unnecessary_cast, reason = "the type differs between architectures")]
    let kind = rustix::fs::fstatfs(dir)?.f_type as u64 & 0xffff_ffff;
    if !KINDS.contains(&kind) {
        return Ok(None);
    }
    let id = rustix::fs::fstatvfs(dir)?.f_fsid;
    // Two words; the first one is the lower half here.
    let mut out = [0; 8];
    #[allow(clippy::host_endian_bytes, clippy::cast_possible_truncation, reason = "the kernel's own memory")]
    {
        out[..4].copy_from_slice(&(id as u32).to_ne_bytes());
        out[4..].copy_from_slice(&((id >> 32) as u32).to_ne_bytes());
    }
    Ok(Some(out))
}

impl Watched {
    /// Its events are `ino`'s from now on.
    pub(super) fn belongs_to(&self, ino: u64) {
        let mut owners = lock(&self.owners);
        if !owners.contains(&ino) {
            owners.push(ino);
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let mut state = lock(&self.watcher.state);
        let mine = |held: Option<&Weak<Self>>| held.is_some_and(|w| std::ptr::eq(w.as_ptr(), self));
        // Else somebody watches it anew, with the same mark.
        if !mine(state.by_id.get(&self.id)) {
            return;
        }
        state.by_id.remove(&self.id);
        if mine(state.by_key.get(&self.key)) {
            state.by_key.remove(&self.key);
        }
        let _ = self.watcher.group.mark(MarkFlags::FAN_MARK_REMOVE, mask(), self.dir.as_fd(), None::<&str>);
    }
}
