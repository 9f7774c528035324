//! The FUSE edge: kernel requests become [`Fop`](crate::fop::Fop)s, answers become kernel replies.
//!
//! A thin layer: it knows inode numbers, open directories and time-outs of the kernel's caches, and
//! nothing of bricks. Nothing outside this module knows FUSE.

mod convert;
mod dirs;
mod fences;
mod handler;
mod nodes;
mod ring;
mod union;
mod wire;

use crate::volume::Volume;
use fuser::{Config, MountOption, SessionACL};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub use fences::FENCE_IOCTL;
pub use handler::VolumeFs;
pub use ring::Transport;
pub use union::{Caching, Invalidator, MountFlags, UnionMount, UnionMountOptions, detach, set_flags};

/// How a volume is mounted.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// What /proc/mounts shows as the source.
    pub source: String,
    /// Refuse changes.
    pub read_only: bool,
    /// How long the kernel may use attributes without asking (another client's changes show after this).
    pub attribute_timeout: Duration,
    /// How long the kernel may use a name without asking.
    pub entry_timeout: Duration,
    /// Threads that serve the kernel; each blocks while its request is under way.
    pub threads: usize,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            source: "brickraft".into(),
            read_only: false,
            attribute_timeout: Duration::from_secs(1),
            entry_timeout: Duration::from_secs(1),
            threads: 8,
        }
    }
}

/// A live mount; dropping it without [`Mount::unmount`] unmounts too, but hides errors.
#[derive(Debug)]
pub struct Mount {
    session: fuser::BackgroundSession,
}

impl Mount {
    /// Mounts `volume` on `dir`. It is usable when this returns.
    ///
    /// # Errors
    /// What mount(2) or the opening of /dev/fuse says.
    pub fn new(volume: Arc<dyn Volume>, dir: &Path, options: &MountOptions) -> io::Result<Self> {
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName(options.source.clone()),
            MountOption::Subtype("brickraft".into()),
            MountOption::DefaultPermissions,
            MountOption::Dev,
            MountOption::Suid,
            if options.read_only { MountOption::RO } else { MountOption::RW },
        ];
        config.acl = SessionACL::All;
        config.n_threads = Some(options.threads.max(1));
        config.clone_fd = true;
        let session = fuser::Session::new(VolumeFs::new(volume, options.clone()), dir, &config)?.spawn()?;
        Ok(Self { session })
    }

    /// Unmounts and waits until the last request is answered.
    ///
    /// # Errors
    /// `EBUSY` while the mount is in use.
    pub fn unmount(self) -> io::Result<()> {
        self.session.umount_and_join()
    }

    /// Waits until somebody unmounts.
    ///
    /// # Errors
    /// What ended the session other than an unmount.
    pub fn wait(self) -> io::Result<()> {
        self.session.join()
    }
}
