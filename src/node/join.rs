//! How a lone server becomes a member of a cluster that probes it: it is told who the members are, keeps that
//! in `join.json`, drops its own empty cluster and starts anew.

use crate::management::JoinRequest;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The file's content.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JoinFile {
    /// What the probing server said.
    pub request: JoinRequest,
}

fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("join.json")
}

/// Where the member's own data lies.
#[must_use]
pub fn member_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("member")
}

/// Writes the file, durably.
///
/// # Errors
/// The file system's own.
pub fn write(data_dir: &Path, file: &JoinFile) -> Result<()> {
    let temporary = data_dir.join("join.json.tmp");
    let mut f = std::fs::File::create(&temporary).with_context(|| format!("create {}", temporary.display()))?;
    f.write_all(&serde_json::to_vec_pretty(file)?).and_then(|()| f.sync_all()).with_context(|| format!("write {}", temporary.display()))?;
    std::fs::rename(&temporary, path(data_dir)).context("rename join.json into place")?;
    std::fs::File::open(data_dir).and_then(|d| d.sync_all()).with_context(|| format!("sync {}", data_dir.display()))
}

/// Reads the file; `None` where there is none.
///
/// # Errors
/// It is there and cannot be read.
pub fn read(data_dir: &Path) -> Result<Option<JoinFile>> {
    let path = path(data_dir);
    match std::fs::read(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("read {}", path.display())),
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).with_context(|| {
            format!("{} cannot be read; if it is damaged, empty the data directory and probe the server again", path.display())
        }),
    }
}
