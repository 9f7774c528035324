//! What is done on each union.

use super::lower::run;
use super::systems::Place;
use anyhow::{Context, Result};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// A work; `run` gives seconds, or `None` where the system cannot do it by design.
pub(crate) struct Work {
    pub(crate) name: &'static str,
    pub(crate) text: &'static str,
    /// The most that ours may take, as a multiple of the kernel's overlayfs.
    pub(crate) target: Option<f64>,
    pub(crate) run: fn(&mut Place<'_>) -> Result<Option<f64>>,
}

/// In this order, each on a union that the ones before left in order.
pub(crate) const WORKS: &[Work] = &[
    Work { name: "find", text: "find, warm", target: Some(1.3), run: find },
    Work { name: "stat-first", text: "stat of 10,000 names, first", target: None, run: stat_first },
    Work { name: "stat-again", text: "stat of 10,000 names, again", target: Some(1.3), run: stat_again },
    Work { name: "tar-cold", text: "tar, cold", target: Some(1.3), run: tar_cold },
    Work { name: "tar-warm", text: "tar, warm", target: None, run: tar_warm },
    Work { name: "grep", text: "grep -r, warm", target: Some(1.3), run: grep },
    Work { name: "open-close", text: "open and close a small file, 100,000 times", target: None, run: open_close },
    Work { name: "read-cold", text: "read the large file, cold", target: None, run: read_cold },
    Work { name: "read-warm", text: "read the large file, warm", target: Some(1.3), run: read_warm },
    Work { name: "python", text: "start python3 with imports, warm, 10 times", target: Some(1.2), run: python },
    Work { name: "create", text: "create 10,000 files of 4 KiB", target: Some(4.0), run: create },
    Work { name: "copy-up-small", text: "copy-up of 10,000 small files", target: Some(1.2), run: copy_up_small },
    Work { name: "copy-up-large", text: "copy-up of the large file", target: Some(1.2), run: copy_up_large },
    Work { name: "rm", text: "rm -rf of share/man (whiteouts)", target: Some(4.0), run: rm },
];

fn timed(work: impl FnOnce() -> Result<()>) -> Result<Option<f64>> {
    let started = Instant::now();
    work()?;
    Ok(Some(started.elapsed().as_secs_f64()))
}

fn shell(dir: &Path, line: &str) -> Result<()> {
    run(Command::new("sh").args(["-c", line]).current_dir(dir).env("LC_ALL", "C").stdout(Stdio::null()))
}

const FIND: &str = "find share -type f -size +1000000k";
const TAR: &str = "tar cf - share | cat > /dev/null";
// A pattern that no file has; every file is read to its end.
const GREP: &str = "grep -r -c zqxjkvbzqx share > /dev/null; test $? -le 1";

fn find(at: &mut Place<'_>) -> Result<Option<f64>> {
    shell(&at.dir, FIND)?;
    timed(|| shell(&at.dir, FIND))
}

fn stat_all(at: &Place<'_>) -> Result<()> {
    for name in &at.lower.names {
        let path = at.dir.join(name);
        fs::symlink_metadata(&path).with_context(|| format!("stat {}", path.display()))?;
    }
    Ok(())
}

fn stat_first(at: &mut Place<'_>) -> Result<Option<f64>> {
    at.remount()?;
    timed(|| stat_all(at))
}

fn stat_again(at: &mut Place<'_>) -> Result<Option<f64>> {
    stat_all(at)?;
    timed(|| stat_all(at))
}

fn tar_cold(at: &mut Place<'_>) -> Result<Option<f64>> {
    at.cold()?;
    timed(|| shell(&at.dir, TAR))
}

fn tar_warm(at: &mut Place<'_>) -> Result<Option<f64>> {
    shell(&at.dir, TAR)?;
    timed(|| shell(&at.dir, TAR))
}

fn grep(at: &mut Place<'_>) -> Result<Option<f64>> {
    shell(&at.dir, GREP)?;
    timed(|| shell(&at.dir, GREP))
}

fn open_close(at: &mut Place<'_>) -> Result<Option<f64>> {
    let path = at.dir.join(at.lower.small.first().context("a small file")?);
    let all = || (0..100_000).try_for_each(|_| File::open(&path).map(drop)).with_context(|| format!("open {}", path.display()));
    all()?;
    timed(all)
}

fn read_large(at: &Place<'_>) -> Result<()> {
    let mut file = File::open(at.dir.join("large"))?;
    let mut buffer = vec![0; 1 << 20];
    while file.read(&mut buffer)? > 0 {}
    Ok(())
}

fn read_cold(at: &mut Place<'_>) -> Result<Option<f64>> {
    at.cold()?;
    timed(|| read_large(at))
}

fn read_warm(at: &mut Place<'_>) -> Result<Option<f64>> {
    read_large(at)?;
    timed(|| read_large(at))
}

fn python(at: &mut Place<'_>) -> Result<Option<f64>> {
    let start = || {
        let usr = at.dir.join("usr");
        let imports = "import json, re, argparse, collections, subprocess, logging, tempfile, urllib.request, xml.etree.ElementTree";
        run(Command::new(usr.join("bin/python3.11")).args(["-B", "-c", imports]).env("PYTHONHOME", &usr))
    };
    start()?;
    timed(|| (0..10).try_for_each(|_| start()))
}

fn create(at: &mut Place<'_>) -> Result<Option<f64>> {
    at.fresh()?;
    let dir = at.dir.join("new");
    fs::create_dir(&dir)?;
    let block = [7_u8; 4096];
    timed(|| {
        for i in 0..10_000 {
            File::create(dir.join(format!("file-{i}")))?.write_all(&block)?;
        }
        Ok(())
    })
}

/// Appends a byte: that must copy the file first.
fn touch(path: &Path) -> Result<()> {
    let mut file = OpenOptions::new().append(true).open(path).with_context(|| format!("open {}", path.display()))?;
    file.write_all(b"x").with_context(|| format!("append to {}", path.display()))
}

fn copy_up_small(at: &mut Place<'_>) -> Result<Option<f64>> {
    if !at.system.changes_lower() {
        return Ok(None);
    }
    at.fresh()?;
    // What the branch itself keeps in memory is the same for all.
    at.lower.small.iter().try_for_each(|name| fs::read(at.lower.dir.join(name)).map(drop))?;
    timed(|| at.lower.small.iter().try_for_each(|name| touch(&at.dir.join(name))))
}

fn copy_up_large(at: &mut Place<'_>) -> Result<Option<f64>> {
    if !at.system.changes_lower() {
        return Ok(None);
    }
    at.fresh()?;
    drop(fs::read(at.lower.dir.join("large"))?);
    timed(|| touch(&at.dir.join("large")))
}

fn rm(at: &mut Place<'_>) -> Result<Option<f64>> {
    if !at.system.changes_lower() {
        return Ok(None);
    }
    at.fresh()?;
    let victim = at.dir.join("share/man");
    timed(|| run(Command::new("rm").arg("-rf").arg(&victim)))?
        .map(|seconds| match victim.exists() {
            true => Err(anyhow::anyhow!("{} is still there", victim.display())),
            false => Ok(seconds),
        })
        .transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn works_have_names_of_their_own() {
        let mut names: Vec<_> = WORKS.iter().map(|w| w.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), WORKS.len());
    }
}
