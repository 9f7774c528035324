//! The file system that the branches lie on: ext4 as mkfs makes it, in an image of its own.
//!
//! The machine's own disk would give figures that depend on what was done to it before: an ext4 without a journal passes over the inodes that were
//! removed in the last minutes, one by one, for each file that it makes (`recently_deleted` in the kernel's ialloc.c). Ten thousand files took
//! between 0.4 and 6 s to make on such a disk.

use super::lower::run;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Holds the read-only branch and what one system writes in a round.
const MIB: usize = 8 << 10;

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
        let _ = Command::new("umount").arg(&dir).stderr(Stdio::null()).status();
        let used = Command::new("losetup").arg("--associated").arg(&image).output()?;
        ensure!(used.stdout.is_empty(), "{} is mounted still: {}", image.display(), String::from_utf8_lossy(&used.stdout).trim());
        if !image.exists() {
            let new = below.join("union.ext4.new");
            eprintln!("making {} ({} GiB)", image.display(), MIB >> 10);
            // All of it is written once: else the first to write a block would pay for its place in the image.
            let mut file = fs::File::create(&new)?;
            let zeros = vec![0; 1 << 20];
            (0..MIB).try_for_each(|_| file.write_all(&zeros)).and_then(|()| file.sync_all()).context("fill the image")?;
            run(Command::new("mkfs.ext4").args(["-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"]).arg(&new))?;
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
        // The process of the last union may still be on its way out.
        for _ in 0..50 {
            if Command::new("umount").arg(&self.dir).stderr(Stdio::null()).status().is_ok_and(|s| s.success()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        eprintln!("{} stays mounted: something in it is in use", self.dir.display());
    }
}
