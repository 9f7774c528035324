//! The systems, and a mount of one over the read-only branch and an empty writable one.

use super::lower::{Lower, run};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Ours with some options.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Own {
    name: &'static str,
    options: &'static str,
}

impl Own {
    const fn new(name: &'static str, options: &'static str) -> Self {
        Self { name, options }
    }
}

/// The ways that ours is measured in. Once the kernel's switch is on, all but those without would use rings.
pub(crate) static OWN: [Own; 6] = [
    // As it comes.
    Own::new("brickraft", "noio_uring"),
    // As the kernel's overlayfs, it looks for no changes made directly in a branch.
    Own::new("brickraft-none", "udba=none,noio_uring"),
    Own::new("brickraft-ring", "io_uring"),
    Own::new("brickraft-through", "io_uring,passthrough"),
    // Nothing is synced, as unionfs-fuse and fuse-overlayfs do it.
    Own::new("brickraft-volatile", "io_uring,volatile"),
    Own::new("brickraft-all", "io_uring,passthrough,volatile"),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum System {
    Overlayfs,
    FuseOverlayfs,
    Mergerfs,
    UnionfsFuse,
    Ours(&'static Own),
}

impl System {
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let peers = [Self::Overlayfs, Self::FuseOverlayfs, Self::Mergerfs, Self::UnionfsFuse];
        peers.into_iter().chain(OWN.iter().map(Self::Ours))
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Overlayfs => "overlayfs",
            Self::FuseOverlayfs => "fuse-overlayfs",
            Self::Mergerfs => "mergerfs",
            Self::UnionfsFuse => "unionfs-fuse",
            Self::Ours(own) => own.name,
        }
    }

    pub(crate) fn is_ours(self) -> bool {
        matches!(self, Self::Ours(_))
    }

    /// mergerfs has no copy-up and no whiteouts.
    pub(crate) fn changes_lower(self) -> bool {
        self != Self::Mergerfs
    }

    fn package(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::FuseOverlayfs => Some(("fuse-overlayfs", "fuse-overlayfs")),
            Self::Mergerfs => Some(("mergerfs", "mergerfs")),
            Self::UnionfsFuse => Some(("unionfs", "unionfs-fuse")),
            _ => None,
        }
    }

    /// Name and version in words.
    pub(crate) fn version(self, brickraft: &Path) -> String {
        let said = |program: &Path, args: &[&str]| {
            let out = Command::new(program).args(args).output().map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
            out.unwrap_or_default().lines().next().unwrap_or_default().to_owned()
        };
        match self.package() {
            Some((_, package)) => {
                format!("{package} {}", said(Path::new("dpkg-query"), &["-W", "-f=${Version}", package]))
            }
            None if self == Self::Overlayfs => "overlayfs of the kernel".into(),
            None => format!("{} ({})", self.name(), said(brickraft, &["--version"])),
        }
    }

    fn mount(self, lower: &Path, upper: &Path, work: &Path, on: &Path, brickraft: &Path, with: Option<&str>) -> Command {
        let (l, u, w) = (lower.display(), upper.display(), work.display());
        let line = |words: &[&str], options: String| {
            let mut c = Command::new(words[0]);
            c.args(&words[1..]).arg("-o").arg(options);
            c
        };
        let overlay = format!("lowerdir={l},upperdir={u},workdir={w}");
        let mut c = match self {
            Self::Overlayfs => line(&["mount", "-t", "overlay", "overlay"], overlay),
            Self::FuseOverlayfs => line(&["fuse-overlayfs"], overlay),
            Self::Mergerfs => {
                let mut c = line(&["mergerfs"], "category.create=ff,cache.files=auto-full,dropcacheonclose=false,allow_other".into());
                c.arg(format!("{u}=RW:{l}=NC"));
                c
            }
            Self::UnionfsFuse => {
                let mut c = line(&["unionfs"], "cow,allow_other".into());
                c.arg(format!("{u}=RW:{l}=RO"));
                c
            }
            Self::Ours(own) => {
                let mut options = format!("br={u}=rw:{l}=ro,{}", own.options);
                options.extend(with.iter().flat_map(|w| [",", w]));
                let mut c = Command::new(brickraft);
                c.args(["union", "-o", &options]);
                c
            }
        };
        c.arg(on);
        c
    }
}

/// Installs what is missing from Debian.
pub(crate) fn install(systems: &[System]) -> Result<()> {
    let missing: Vec<&str> = systems
        .iter()
        .filter_map(|s| s.package())
        .filter(|(program, _)| !Path::new("/usr/bin").join(program).exists())
        .map(|(_, package)| package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    run(Command::new("apt-get")
        .args(["install", "-y", "-qq", "--no-install-recommends"])
        .args(missing)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdout(Stdio::null()))
}

/// A system mounted for one round.
pub(crate) struct Place<'a> {
    pub(crate) system: System,
    pub(crate) lower: &'a Lower,
    /// The mount point.
    pub(crate) dir: PathBuf,
    base: PathBuf,
    brickraft: &'a Path,
    with: Option<&'a str>,
}

impl<'a> Place<'a> {
    pub(crate) fn new(system: System, lower: &'a Lower, data: &Path, brickraft: &'a Path, with: Option<&'a str>) -> Result<Self> {
        let base = data.join("union").join(system.name());
        let _ = fs::remove_dir_all(&base);
        let place = Self { system, lower, dir: base.join("mnt"), base, brickraft, with };
        for dir in ["upper", "work", "mnt"] {
            fs::create_dir_all(place.base.join(dir))?;
        }
        place.mount()?;
        Ok(place)
    }

    fn mount(&self) -> Result<()> {
        let (upper, work) = (self.base.join("upper"), self.base.join("work"));
        let mut c = self.system.mount(&self.lower.dir, &upper, &work, &self.dir, self.brickraft, self.with);
        run(&mut c).context("mount")?;
        ensure!(self.dir.join("share").is_dir(), "{} shows nothing", self.dir.display());
        Ok(())
    }

    fn unmount(&self) -> Result<()> {
        run(Command::new("umount").arg(&self.dir))?;
        // Its process may still be on its way out: the next mount must not share the processor with it.
        std::thread::sleep(std::time::Duration::from_millis(200));
        Ok(())
    }

    /// Mounts anew, so that nothing of the union itself is cached.
    pub(crate) fn remount(&self) -> Result<()> {
        self.unmount()?;
        self.mount()
    }

    /// Mounts anew, with nothing cached at all.
    pub(crate) fn cold(&self) -> Result<()> {
        self.unmount()?;
        rustix::fs::sync();
        fs::write("/proc/sys/vm/drop_caches", "3").context("drop the kernel's caches")?;
        self.mount()
    }

    /// Mounts anew over an empty writable branch.
    pub(crate) fn fresh(&self) -> Result<()> {
        self.unmount()?;
        for dir in ["upper", "work"] {
            fs::remove_dir_all(self.base.join(dir))?;
            fs::create_dir(self.base.join(dir))?;
        }
        rustix::fs::sync();
        self.mount()
    }

    pub(crate) fn end(self) -> Result<()> {
        self.unmount()?;
        fs::remove_dir_all(&self.base).with_context(|| format!("remove {}", self.base.display()))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.dir.exists() {
            let _ = Command::new("umount").arg("-l").arg(&self.dir).stderr(Stdio::null()).status();
        }
    }
}
