//! How a live union is asked to change, or to copy files up: a socket in /run/brickraft that only root can use, named by the number of the mounted
//! file system, so that whoever sees the mount point finds it, under whatever name.
//!
//! It is no extended attribute of the mount, as others have it: root inside a container that lives in the union could then
//! change the branches from within.

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{major, minor};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the sockets are.
const DIR: &str = "/run/brickraft";
/// The longest question or answer, bytes.
const MESSAGE_MAX: u64 = 1 << 20;
/// A branch on a volume may take this long to be opened.
const ANSWER: Duration = Duration::from_secs(120);

/// The question.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Asked {
    /// An option string with `remount` and changes.
    #[serde(default)]
    pub(super) change: String,
    /// Or a file, by its inode number, to copy up some more of.
    #[serde(default)]
    pub(super) complete: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    error: Option<String>,
    /// Of the file there is more to copy.
    #[serde(default)]
    more: bool,
}

/// Makes the directory, in which nobody else may write: the mask of the process that serves a union is 0.
fn make_dir() -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(DIR)?;
    let mode = std::fs::metadata(DIR)?.permissions().mode();
    // An earlier release left it open to everybody.
    if mode & 0o022 != 0 {
        std::fs::set_permissions(DIR, std::fs::Permissions::from_mode(mode & 0o755))?;
    }
    Ok(())
}

fn socket(mount: &Path) -> Result<PathBuf> {
    let device = rustix::fs::stat(mount).with_context(|| format!("stat {}", mount.display()))?.st_dev;
    Ok(Path::new(DIR).join(format!("union-{}-{}.sock", major(device), minor(device))))
}

/// The listening end; goes with its socket file.
#[derive(Debug)]
pub(super) struct Control {
    path: PathBuf,
}

impl Control {
    /// Listens for what is asked of the union on `mount`; `act` does it, and says whether it is to be asked again.
    pub(super) fn listen(mount: &Path, act: impl Fn(&Asked) -> Result<bool> + Send + 'static) -> Result<Self> {
        make_dir().with_context(|| format!("create {DIR}"))?;
        let path = socket(mount)?;
        // One of the same number belonged to a union that is gone.
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).with_context(|| format!("listen on {}", path.display()))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        std::thread::Builder::new().name("union-control".into()).spawn(move || {
            for stream in listener.incoming().flatten() {
                if let Err(e) = answer(stream, &act) {
                    tracing::warn!("a question about the union: {e:#}");
                }
            }
        })?;
        Ok(Self { path })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn answer(mut stream: UnixStream, act: &impl Fn(&Asked) -> Result<bool>) -> Result<()> {
    let peer = rustix::net::sockopt::socket_peercred(&stream).context("who asks")?;
    ensure!(peer.uid.is_root(), "user {} asked", peer.uid.as_raw());
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut line = String::new();
    BufReader::new((&stream).take(MESSAGE_MAX)).read_line(&mut line)?;
    let asked: Asked = serde_json::from_str(&line)?;
    let answer = match act(&asked) {
        Ok(more) => Answer { error: None, more },
        Err(e) => Answer { error: Some(format!("{e:#}")), more: false },
    };
    serde_json::to_writer(&stream, &answer)?;
    Ok(stream.write_all(b"\n")?)
}

/// Asks the process that serves `mount`; whether to ask again.
pub(super) fn ask(mount: &Path, asked: &Asked) -> Result<bool> {
    let path = socket(mount)?;
    let mut stream =
        UnixStream::connect(&path).with_context(|| format!("ask the process that serves {} by {}", mount.display(), path.display()))?;
    stream.set_read_timeout(Some(ANSWER))?;
    let mut text = serde_json::to_string(asked)?;
    text.push('\n');
    stream.write_all(text.as_bytes())?;
    let mut line = String::new();
    BufReader::new((&stream).take(MESSAGE_MAX)).read_line(&mut line).context("the answer")?;
    let answer: Answer = serde_json::from_str(&line).context("the answer")?;
    match answer.error {
        None => Ok(answer.more),
        Some(error) => bail!("{error}"),
    }
}
