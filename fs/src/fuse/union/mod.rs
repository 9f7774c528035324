//! A [`Union`] as a FUSE mount.
//!
//! **There are no open files here**: OPEN, OPENDIR and FLUSH are answered with `ENOSYS`, after which the kernel never
//! sends them again, nor any RELEASE, and keeps page and directory caches between one open and the next. What is left
//! of an open is the LOOKUP of its name, and that is cached too. With `passthrough` files are opened (`opens`). See
//! ARCHITECTURE.md, "Union: the edge".

mod attach;
mod cache;
mod edge;
mod handler;
mod lifetime;
mod notify;
mod opens;
mod relief;
mod serve;

use super::ring::{Plan, Ring, Transport};
use crate::union::{BranchChange, Udba, Union, UnionError, Watcher};
use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

pub use attach::MountFlags;
pub use cache::{Caching, Invalidator};

/// How a union is mounted.
#[derive(Clone, Debug)]
pub struct UnionMountOptions {
    /// What /proc/mounts shows as the source.
    pub source: String,
    /// Flags of the mount.
    pub flags: MountFlags,
    /// How long the kernel may go without asking.
    pub caching: Caching,
    /// Threads that serve the kernel; each blocks while its request is under way.
    pub threads: usize,
    /// New files by MKNOD alone. `O_CREAT` without `O_EXCL` then fails with `EEXIST` when somebody else made the file
    /// since its absence was cached, so not for branches that others write to.
    pub create_by_mknod: bool,
    /// The kernel gathers writes. Not where somebody else writes to the branches.
    pub writeback: bool,
    /// Large files of local branches are opened in the kernel (`FUSE_PASSTHROUGH`): read and written without us, at the price of a request at
    /// each open and close of any file. Not with `writeback`.
    pub passthrough: bool,
    /// How requests come.
    pub transport: Transport,
}

impl Default for UnionMountOptions {
    fn default() -> Self {
        Self {
            source: "none".into(),
            flags: MountFlags::default(),
            caching: Caching::default(),
            threads: 8,
            create_by_mknod: true,
            writeback: false,
            passthrough: false,
            transport: Transport::default(),
        }
    }
}

/// A live mount of a union.
#[derive(Debug)]
pub struct UnionMount {
    session: fuser::BackgroundSession,
    ring: Option<Ring>,
    invalidator: Arc<Invalidator>,
    union: Arc<Union>,
    notify: Option<notify::Notify>,
}

impl UnionMount {
    /// The type in /proc/mounts: mount(8) finds `/sbin/mount.fuse.aufs` by it when the mount is changed.
    pub const TYPE: &'static str = "fuse.aufs";

    /// Mounts `union` on `dir`. It is usable when this returns.
    ///
    /// # Errors
    /// What opening /dev/fuse or mount(2) says. The union is closed then.
    pub fn new(union: Arc<Union>, dir: &Path, options: &UnionMountOptions) -> io::Result<Self> {
        Self::mount(Arc::clone(&union), dir, options).inspect_err(|_| union.close())
    }

    fn mount(union: Arc<Union>, dir: &Path, options: &UnionMountOptions) -> io::Result<Self> {
        let by_ring = options.transport.wants_ring()?;
        let mut options = options.clone();
        let watcher = options.caching.notify.then(|| watch(&union)).flatten();
        if options.caching.notify && watcher.is_none() {
            options.caching = Caching::from(Udba::Reval);
        }
        let device = attach::attach(dir, Self::TYPE, &options)?;
        let raw = Arc::new(device.try_clone()?);
        let mut config = fuser::Config::default();
        config.acl = fuser::SessionACL::All;
        // Beside rings the device has only FORGETs to tell.
        config.n_threads = Some(if by_ring { 1 } else { options.threads.max(1) });
        config.clone_fd = true;
        let threads = options.threads.max(1);
        // Files are opened, and nothing waits for a network.
        let gathers = options.passthrough && union.is_local();
        let plan = Plan { payload_bytes: handler::PAYLOAD_MAX as usize, threads, gathers };
        let edge = Arc::new(edge::Edge {
            union: union.clone(),
            kernel: Arc::default(),
            life: lifetime::Lifetimes::new(union.clone(), options.caching),
            options,
            relief: Arc::default(),
            opens: Arc::default(),
            passes: OnceLock::new(),
            ring: by_ring,
            device: Arc::clone(&raw),
        });
        let detached = |_: &io::Error| {
            let _ = attach::detach(dir);
        };
        let fs = handler::UnionFs(Arc::clone(&edge));
        let session = fuser::Session::from_fd(fs, device, fuser::SessionACL::All, config).and_then(fuser::Session::spawn);
        let session = session.inspect_err(detached)?;
        let ring = by_ring.then(|| Ring::start(&raw, plan, &edge)).transpose();
        let ring = ring.inspect_err(detached)?;
        attach::read_ahead(dir);
        let invalidator = Arc::new(Invalidator::new(session.notifier(), raw, edge.kernel.clone(), edge.opens.clone(), dir.to_owned()));
        edge.relief.start(invalidator.clone())?;
        union.start_scout()?;
        let notify = watcher.map(|w| notify::Notify::start(w, union.clone(), invalidator.clone())).transpose()?;
        Ok(Self { session, ring, invalidator, union, notify })
    }

    /// Changes branches, and makes the kernel forget what it knew.
    ///
    /// # Errors
    /// As [`Union::change`].
    pub fn change(&self, change: BranchChange) -> Result<(), UnionError> {
        changer(&self.union, &self.invalidator)(change)
    }

    /// What [`Self::change`] does, for another thread.
    pub fn changer(&self) -> impl Fn(BranchChange) -> Result<(), UnionError> + Send + Sync + 'static {
        changer(&self.union, &self.invalidator)
    }

    /// Waits until somebody unmounts, and closes the union.
    ///
    /// # Errors
    /// What ended the session other than an unmount.
    pub fn wait(self) -> io::Result<()> {
        let ended = self.session.join();
        if let Some(ring) = self.ring {
            ring.join();
        }
        if let Some(notify) = self.notify {
            notify.end();
        }
        // Nobody changes anything any more.
        self.union.close();
        ended
    }
}

/// Watches the branches, where that is possible.
fn watch(union: &Union) -> Option<Arc<Watcher>> {
    let loud = union.config().udba == Udba::Notify;
    let watcher = union.watch(loud);
    let text = "the branches cannot be watched: what others change there shows after a second";
    watcher.inspect_err(|e| if loud { tracing::warn!(%e, text) } else { tracing::info!(%e, text) }).ok()
}

fn changer(union: &Arc<Union>, invalidator: &Arc<Invalidator>) -> impl Fn(BranchChange) -> Result<(), UnionError> + Send + Sync + 'static {
    let (union, invalidator) = (union.clone(), invalidator.clone());
    move |change| {
        union.change(change)?;
        invalidator.everything(&union.live(), &union.live_names());
        Ok(())
    }
}

/// Unmounts `dir`; a busy mount goes as soon as its last user does.
///
/// # Errors
/// What umount2(2) says.
pub fn detach(dir: &Path) -> io::Result<()> {
    attach::detach(dir)
}

/// Gives a live mount other flags.
///
/// # Errors
/// What mount(2) says.
pub fn set_flags(dir: &Path, flags: MountFlags) -> io::Result<()> {
    attach::set_flags(dir, flags)
}

/// Where nothing but the union itself changes the branches.
pub(super) const FOR_EVER: Duration = Duration::from_secs(86_400);
