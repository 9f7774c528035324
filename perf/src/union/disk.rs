//! The file system that the branches lie on: ext4 as mkfs makes it, in an image of its own.
//!
//! The machine's own disk would give figures that depend on what was done to it before: an ext4 without a journal passes over the inodes that were
//! removed in the last minutes, one by one, for each file that it makes (`recently_deleted` in the kernel's ialloc.c). Ten thousand files took
//! between 0.4 and 6 s to make on such a disk.

use super::lower::run;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Holds the read-only branch and what all systems write in one round; the image is sparse.
const BYTES: u64 = 16 << 30;

/// A mounted image, unmounted when dropped.
pub(crate) struct Disk {
    pub(crate) dir: PathBuf,
}

impl Disk {
    /// Mounts the image at `below`/union-disk, made new if there is none.
    pub(crate) fn mount(below: &Path) -> Result<Self> {
        let (image, dir) = (below.join("union.ext4"), below.join("union-disk"));
        fs::create_dir_all(&dir)?;
        // Of a run that was killed.
        let _ = Command::new("umount").arg(&dir).stderr(std::process::Stdio::null()).status();
        let used = Command::new("losetup").arg("--associated").arg(&image).output()?;
        ensure!(used.stdout.is_empty(), "{} is mounted still: {}", image.display(), String::from_utf8_lossy(&used.stdout).trim());
        if !image.exists() {
            let new = below.join("union.ext4.new");
            fs::File::create(&new)?.set_len(BYTES)?;
            run(Command::new("mkfs.ext4").args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"]).arg(&new))?;
            fs::rename(&new, &image)?;
        }
        let device = Command::new("losetup").args(["--find", "--show", "--direct-io=on"]).arg(&image).output()?;
        let device = String::from_utf8_lossy(&device.stdout).trim().to_owned();
        ensure!(!device.is_empty(), "losetup gives no device for {}", image.display());
        let mounted = run(Command::new("mount").arg(&device).arg(&dir)).context("mount the image");
        // It goes with the mount.
        let _ = Command::new("losetup").arg("--detach").arg(&device).status();
        mounted?;
        Ok(Self { dir })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.dir).status();
    }
}
