//! `brickraft union complete`: what lazy copy-ups left in lower branches is copied. The names are found through the mount, the copying is the serving
//! process's.

use super::control::{Asked, ask};
use crate::cli::print::Printer;
use anyhow::{Context, Result, ensure};
use brickraft_fs::fop::Errno;
use brickraft_fs::union::Union;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Bytes that one question copies; it must be answered in good time.
const STEP_BYTES: u64 = 256 << 20;

/// The serving process's part; whether there is more to copy.
pub(super) fn step(union: &Union, ino: u64) -> Result<bool> {
    match union.complete(ino, STEP_BYTES) {
        Ok(whole) => Ok(!whole),
        // It was let go of meanwhile.
        Err(Errno::ESTALE) => Ok(false),
        Err(e) => Err(e).context("copy up the rest"),
    }
}

pub(super) fn complete(dir: &Path, path: Option<&Path>, print: Printer) -> Result<()> {
    let dir = dir.canonicalize().with_context(|| dir.display().to_string())?;
    let start = path.map_or_else(|| dir.clone(), |path| dir.join(path));
    let device = fs::metadata(&dir)?.dev();
    let mut done = Done { started: false, files: 0, failed: 0 };
    let mut waiting = vec![start];
    while let Some(at) = waiting.pop() {
        visit(&at, (&dir, device), &mut waiting, &mut done).with_context(|| at.display().to_string())?;
    }
    print.show(&serde_json::json!({ "files": done.files, "failed": done.failed }), |_| match done.files {
        1 => "1 file is whole\n".to_owned(),
        files => format!("{files} files are whole\n"),
    });
    ensure!(done.failed == 0, "{} files could not be copied up", done.failed);
    Ok(())
}

struct Done {
    /// The first name was there.
    started: bool,
    files: u64,
    failed: u64,
}

fn visit(at: &Path, (mount, device): (&Path, u64), waiting: &mut Vec<PathBuf>, done: &mut Done) -> Result<()> {
    let found = match fs::symlink_metadata(at) {
        // Removed since it was listed.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && done.started => return Ok(()),
        found => found?,
    };
    done.started = true;
    // Another file system that is mounted within.
    if found.dev() != device {
        return Ok(());
    }
    if found.is_dir() {
        for entry in fs::read_dir(at)? {
            waiting.push(entry?.path());
        }
    }
    if !found.is_file() {
        return Ok(());
    }
    // Open, so that the union knows it for as long.
    let file = match File::open(at) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    let asked = Asked { change: String::new(), complete: Some(file.metadata()?.ino()) };
    loop {
        match ask(mount, &asked) {
            Ok(true) => {}
            Ok(false) => {
                done.files += 1;
                return Ok(());
            }
            Err(e) => {
                eprintln!("{}: {e:#}", at.display());
                done.failed += 1;
                return Ok(());
            }
        }
    }
}
