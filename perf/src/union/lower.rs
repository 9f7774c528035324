//! The read-only branch: a copy of a real tree, a large file, and a Python.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Files that the works `stat-*` and `copy-up` take.
pub(crate) const SOME_FILES: usize = 10_000;
/// The largest of them, bytes.
const SMALL_MAX: u64 = 64 << 10;
/// Debian's packages that the Python comes from.
const PYTHON: [&str; 3] = ["python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib"];

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Lower {
    /// The branch.
    pub(crate) dir: PathBuf,
    /// 10,000 names of anything below `share`, relative to the branch, evenly spread.
    pub(crate) names: Vec<PathBuf>,
    /// 10,000 small regular files below `share`, or as many as there are.
    pub(crate) small: Vec<PathBuf>,
    /// What it holds, in words.
    pub(crate) described: String,
}

impl Lower {
    /// Makes the branch in `dir`, or takes the one of an earlier run.
    pub(crate) fn make(dir: &Path, tree: &Path, large: u64, target: &Path) -> Result<Self> {
        let stamp = dir.with_extension("stamp");
        let wanted = format!("{} {large}\n", tree.display());
        if fs::read_to_string(&stamp).unwrap_or_default() != wanted {
            eprintln!("copying {} to {}", tree.display(), dir.display());
            let _ = fs::remove_dir_all(dir);
            fs::create_dir_all(dir)?;
            run(Command::new("cp").arg("-a").arg(tree).arg(dir.join("share")))?;
            large_file(&dir.join("large"), large)?;
            python(dir, &target.join("debs"))?;
            fs::write(&stamp, &wanted)?;
        }
        let (mut all, mut files, mut bytes) = (Vec::new(), Vec::new(), 0);
        walk(&dir.join("share"), dir, &mut all, &mut files, &mut bytes)?;
        let described =
            format!("a copy of {}, {} entries, {} MiB, and a file of {} MiB", tree.display(), all.len(), bytes >> 20, large >> 20);
        Ok(Self { dir: dir.to_owned(), names: spread(&all), small: spread(&files), described })
    }
}

/// At most `SOME_FILES` of them, evenly.
fn spread(all: &[PathBuf]) -> Vec<PathBuf> {
    let n = all.len().min(SOME_FILES);
    (0..n).map(|i| all[i * all.len() / n].clone()).collect()
}

fn walk(dir: &Path, top: &Path, all: &mut Vec<PathBuf>, files: &mut Vec<PathBuf>, bytes: &mut u64) -> Result<()> {
    let mut entries = fs::read_dir(dir)?.collect::<std::io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (path, meta) = (entry.path(), entry.metadata()?);
        let relative = path.strip_prefix(top)?.to_owned();
        *bytes += meta.blocks() * 512;
        if meta.is_file() && meta.len() <= SMALL_MAX {
            files.push(relative.clone());
        }
        all.push(relative);
        if meta.is_dir() {
            walk(&path, top, all, files, bytes)?;
        }
    }
    Ok(())
}

fn large_file(path: &Path, bytes: u64) -> Result<()> {
    let mut file = fs::File::create(path)?;
    let block: Vec<u8> = (0..1_u32 << 18).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    for _ in 0..bytes >> 20 {
        file.write_all(&block)?;
    }
    file.sync_all().context("write the large file")
}

/// A Python of Debian's, unpacked and not installed.
fn python(dir: &Path, debs: &Path) -> Result<()> {
    fs::create_dir_all(debs)?;
    run(Command::new("apt-get").args(["-qq", "download"]).args(PYTHON).current_dir(debs).stderr(Stdio::null()))?;
    for deb in fs::read_dir(debs)? {
        run(Command::new("dpkg-deb").arg("-x").arg(deb?.path()).arg(dir))?;
    }
    Ok(())
}

pub(super) fn run(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("{command:?}"))?;
    ensure!(status.success(), "{command:?} failed ({status})");
    Ok(())
}
