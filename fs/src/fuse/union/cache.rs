//! What the kernel remembers of a union, and how it is made to forget.

use super::opens::Opens;
use super::{FOR_EVER, attach};
use crate::fuse::wire::Out;
use crate::union::Udba;
use fuser::{INodeNo, InitFlags, Notifier};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// How late a change made directly in a branch may show with `udba=reval`.
pub(super) const REVAL: Duration = Duration::from_secs(1);
/// The same on kernels that cannot let a name expire, whatever `udba` says.
const OLD_KERNEL: Duration = Duration::from_secs(10);
/// The notification about a name, and its flag "look again" (Linux 6.2). Without the flag the kernel would drop the name for good, and whatever
/// is mounted below it.
const INVAL_ENTRY: u32 = 3;
const EXPIRE_ONLY: u32 = 1;

/// How long the kernel may go without asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caching {
    /// For names, those that do not exist among them.
    pub names: Duration,
    /// For attributes.
    pub attributes: Duration,
    /// Somebody else may change what is below: compare times before cached data is used.
    pub watch_times: bool,
    /// Be told of what others change in local branches. Where that is not possible, both live as with [`Udba::Reval`].
    pub notify: bool,
}

impl From<Udba> for Caching {
    fn from(udba: Udba) -> Self {
        match udba {
            Udba::None => Self { names: FOR_EVER, attributes: FOR_EVER, watch_times: false, notify: false },
            Udba::Reval => Self { names: REVAL, attributes: REVAL, watch_times: true, notify: false },
            Udba::Notify | Udba::Auto => Self { names: FOR_EVER, attributes: FOR_EVER, watch_times: true, notify: true },
        }
    }
}

impl Default for Caching {
    fn default() -> Self {
        Self::from(Udba::default())
    }
}

/// What this kernel can do.
#[derive(Debug, Default)]
pub(super) struct Kernel {
    expires: AtomicBool,
    /// Notifications that it was sent about names and objects.
    sent: AtomicU64,
    /// How often it was made to forget everything.
    everything: AtomicU64,
}

impl Kernel {
    pub(super) fn found(&self, capabilities: InitFlags) {
        self.expires.store(capabilities.contains(InitFlags::FUSE_HAS_EXPIRE_ONLY), Ordering::Relaxed);
    }

    /// Whether it can be told to look a name up again.
    pub(super) fn expires(&self) -> bool {
        self.expires.load(Ordering::Relaxed)
    }

    /// What it was told to forget: notifications, and times that it was everything.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.sent.load(Ordering::Relaxed), self.everything.load(Ordering::Relaxed))
    }

    /// How long names may live in the kernel.
    pub(super) fn names(&self, wanted: Duration) -> Duration {
        if self.expires() { wanted } else { wanted.min(OLD_KERNEL) }
    }
}

/// Makes the kernel forget, or look again.
#[derive(Debug)]
pub struct Invalidator {
    notifier: Notifier,
    device: Arc<OwnedFd>,
    kernel: Arc<Kernel>,
    opens: Arc<Opens>,
    dir: PathBuf,
}

impl Invalidator {
    pub(super) fn new(notifier: Notifier, device: Arc<OwnedFd>, kernel: Arc<Kernel>, opens: Arc<Opens>, dir: PathBuf) -> Self {
        Self { notifier, device, kernel, opens, dir }
    }

    /// Drops all names that nobody uses, with those that do not exist among them, and lets the others expire; drops attributes and data of all
    /// `inodes`. Not from a thread that serves the kernel: the kernel may hold the directory that its request is about.
    pub fn everything(&self, inodes: &[u64], names: &[(u64, Box<[u8]>)]) {
        self.kernel.everything.fetch_add(1, Ordering::Relaxed);
        self.unused();
        if self.kernel.expires() {
            for (parent, name) in names {
                // ENOENT: the kernel has let go of it meanwhile.
                let _ = self.expire(*parent, name);
            }
        }
        for ino in inodes {
            self.inode(*ino, 0);
        }
    }

    /// Lets a name expire, one that does not exist too; waits for lookups and listings of the directory that are under way. Not from a thread that
    /// serves the kernel.
    pub(super) fn name(&self, parent: u64, name: &[u8]) {
        // An older kernel would drop it for good; names live for a second there.
        if self.kernel.expires() {
            self.kernel.sent.fetch_add(1, Ordering::Relaxed);
            // ENOENT: the kernel does not know it.
            let _ = self.expire(parent, name);
        }
    }

    /// Drops an object's attributes, and its data or listing.
    pub(super) fn contents(&self, ino: u64) {
        self.kernel.sent.fetch_add(1, Ordering::Relaxed);
        self.inode(ino, 0);
    }

    /// Under all the numbers that the kernel knows it by.
    fn inode(&self, ino: u64, offset: i64) {
        for node in [ino].into_iter().chain(self.opens.moved(ino)) {
            let _ = self.notifier.inval_inode(INodeNo(node), offset, 0);
        }
    }

    /// Drops an object's attributes.
    pub(super) fn attributes(&self, ino: u64) {
        self.kernel.sent.fetch_add(1, Ordering::Relaxed);
        self.inode(ino, -1);
    }

    /// Drops all names that nobody uses: the kernel does that at a remount, which changes nothing else.
    pub fn unused(&self) {
        if let Err(e) = attach::remount_as_it_is(&self.dir) {
            tracing::warn!(%e, "the kernel keeps the names that it knows");
        }
    }

    /// fuser does not know the flag: a header of length, number and 0, then parent, length of the name, flags, name and NUL.
    fn expire(&self, parent: u64, name: &[u8]) -> io::Result<()> {
        let len = u32::try_from(33 + name.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut message = vec![0; len as usize];
        let mut out = Out::new(&mut message);
        out.u32(len).u32(INVAL_ENTRY).u64(0).u64(parent).u32(len - 33).u32(EXPIRE_ONLY).bytes(name);
        rustix::io::write(&*self.device, &message)?;
        Ok(())
    }
}
