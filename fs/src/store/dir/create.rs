//! Making a brick and opening it.

use super::handles::Handles;
use super::own::{self, Bitmap};
use super::{DirStore, data::DataPath, sys};
use crate::fop::{Errno, Gfid};
use crate::store::{BrickMeta, PRIVATE_DIR, StoreError, XATTR_GFID};
use rustix::fs::FlockOperation;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// The directories under `.brickraft`.
const SUBDIRECTORIES: [&str; 6] = ["index", "tmp", "orphans", "limbo", "lost", "swept"];

fn private_name() -> &'static str {
    std::str::from_utf8(PRIVATE_DIR).expect("ASCII")
}

fn io_error(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError::Io { path: path.into(), doing, source }
}

fn errno_error(path: &Path, doing: &'static str) -> impl FnOnce(Errno) -> StoreError {
    move |e| StoreError::Io { path: path.into(), doing, source: io::Error::from_raw_os_error(e.0) }
}

/// The identity of the brick at `path`, if there is one. A damaged one counts: it must not be overwritten.
fn brick_at(path: &Path) -> Option<Result<BrickMeta, StoreError>> {
    let private_path = path.join(private_name());
    let private = File::open(&private_path).ok()?;
    own::read_meta(&private, &private_path).transpose()
}

impl DirStore {
    /// Makes `path` a brick (the directory too, if it is missing; its parent must be there) and leaves it
    /// closed. A creation that was cut off can be repeated.
    ///
    /// # Errors
    /// The directory belongs to a volume already, lies inside a brick, has content, or its file system lacks
    /// what a brick needs (hard links, `trusted.` extended attributes, `renameat2`).
    pub fn create(path: &Path, meta: BrickMeta) -> Result<(), StoreError> {
        match std::fs::create_dir(path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(io_error(path, "make the brick's directory")(e)),
            _ => {}
        }
        let path = path.canonicalize().map_err(io_error(path, "resolve the path"))?;
        check_free(&path)?;
        let private_path = path.join(private_name());
        // What is there has no identity: a creation that did not end.
        if private_path.symlink_metadata().is_ok() {
            std::fs::remove_dir_all(&private_path).map_err(io_error(&private_path, "remove what an interrupted creation left"))?;
        }
        std::fs::create_dir(&private_path).map_err(io_error(&private_path, "make .brickraft"))?;
        let made = Self::fill(&path, &private_path, meta);
        if made.is_err() {
            let _ = std::fs::remove_dir_all(&private_path);
        }
        made
    }

    fn fill(path: &Path, private_path: &Path, meta: BrickMeta) -> Result<(), StoreError> {
        use std::os::unix::fs::PermissionsExt;
        let root = File::open(path).map_err(io_error(path, "open the brick's directory"))?;
        let private = File::open(private_path).map_err(io_error(private_path, "open .brickraft"))?;
        private.set_permissions(PermissionsExt::from_mode(0o700)).map_err(io_error(private_path, "protect .brickraft"))?;
        for name in SUBDIRECTORIES {
            sys::mkdir(&private, name.as_bytes()).map_err(errno_error(private_path, "make a directory of .brickraft"))?;
        }
        try_out(&private).map_err(|(reason, e)| StoreError::Unsuitable { path: path.into(), reason: format!("{reason}: {e}") })?;
        sys::At::Fd(&root).set_xattr(XATTR_GFID.as_bytes(), &Gfid::ROOT.0, 0).map_err(errno_error(path, "set the root's gfid"))?;
        own::create_bitmap(&private).map_err(io_error(private_path, "write the bitmap"))?;
        // The identity last: with it, it is a brick.
        own::write_meta(&private, private_path, &meta)?;
        root.sync_all().map_err(io_error(path, "sync the brick's directory"))?;
        if let Some(Ok(parent)) = path.parent().map(File::open) {
            parent.sync_all().map_err(io_error(path, "sync the directory above the brick"))?;
        }
        Ok(())
    }

    /// Opens a brick: takes its lock, reads its identity and bitmap, and puts away what an interrupted change
    /// left behind. The only way to a `DirStore`.
    ///
    /// # Errors
    /// It is no brick, it is open elsewhere, its identity is damaged, or it cannot be read.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let path = path.canonicalize().map_err(io_error(path, "resolve the path"))?;
        let private_path = path.join(private_name());
        let root = File::open(&path).map_err(io_error(&path, "open the brick's directory"))?;
        let private = match sys::open_dir(&root, PRIVATE_DIR) {
            Ok(f) => f,
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Err(StoreError::NotABrick { path }),
            Err(e) => return Err(errno_error(&private_path, "open .brickraft")(e)),
        };
        // The lock is on the directory: the identity file is replaced with every change.
        rustix::fs::flock(&private, FlockOperation::NonBlockingLockExclusive).map_err(|e| match e {
            rustix::io::Errno::WOULDBLOCK => StoreError::Locked { path: path.clone() },
            e => StoreError::Io { path: private_path.clone(), doing: "lock the brick", source: e.into() },
        })?;
        let meta = own::read_meta(&private, &private_path)?.ok_or_else(|| StoreError::NotABrick { path: path.clone() })?;
        for name in SUBDIRECTORIES {
            match sys::mkdir(&private, name.as_bytes()) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(e) => return Err(errno_error(&private_path, "make a directory of .brickraft")(e)),
            }
        }
        let index = sys::open_dir(&private, b"index").map_err(errno_error(&private_path, "open the index"))?;
        let bitmap = Bitmap::open(&private, &private_path)?;
        let data = DataPath::new().map_err(io_error(&path, "make the ring for data"))?;
        let handles = Handles::new(root, private);
        let mut store = Self { path: path.clone(), index, meta, bitmap, handles, kept: BTreeSet::new(), has_orphans: true, has_swept: true, unswept: BTreeSet::new(), data, listing: None, latched: false };
        store.sweep().map_err(errno_error(&path, "put away what an interrupted change left"))?;
        Ok(store)
    }
}

/// Refuses a directory that is a brick, lies in one, contains one, or has content.
fn check_free(path: &Path) -> Result<(), StoreError> {
    match brick_at(path) {
        Some(Ok(m)) => return Err(StoreError::AlreadyBrick { path: path.into(), volume: m.volume, brick: m.brick }),
        Some(Err(e)) => return Err(e),
        None => {}
    }
    for above in path.ancestors().skip(1) {
        if above.join(private_name()).join(own::META_FILE).symlink_metadata().is_ok() {
            return Err(StoreError::InsideBrick { path: path.into(), other: above.into() });
        }
    }
    let mut content = None;
    for entry in std::fs::read_dir(path).map_err(io_error(path, "list the brick's directory"))? {
        let entry = entry.map_err(io_error(path, "list the brick's directory"))?;
        if entry.file_name() != private_name() && entry.file_name() != "lost+found" {
            content = Some(entry.path());
            if let Some(other) = find_brick(&entry.path(), 0) {
                return Err(StoreError::ContainsBrick { path: path.into(), other });
            }
        }
    }
    match content {
        Some(_) => Err(StoreError::NotEmpty { path: path.into() }),
        None => Ok(()),
    }
}

/// Looks a few levels down for a brick, for a better message than "not empty".
fn find_brick(path: &Path, depth: u32) -> Option<PathBuf> {
    const DEPTH_MAX: u32 = 3;
    if path.join(private_name()).join(own::META_FILE).symlink_metadata().is_ok() {
        return Some(path.into());
    }
    if depth == DEPTH_MAX || !path.symlink_metadata().is_ok_and(|m| m.is_dir()) {
        return None;
    }
    std::fs::read_dir(path).ok()?.flatten().find_map(|e| find_brick(&e.path(), depth + 1))
}

/// Tries on the real file system what a brick cannot do without.
fn try_out(private: &File) -> Result<(), (&'static str, Errno)> {
    let tmp = sys::open_dir(private, b"tmp").map_err(|e| ("open a directory", e))?;
    let file = sys::create_file(&tmp, b"try").map_err(|e| ("create a file", e))?;
    sys::At::Fd(&file).set_xattr(XATTR_GFID.as_bytes(), &[0; 16], 0).map_err(|e| ("extended attributes in the namespace trusted.", e))?;
    sys::At::Path(&tmp, b"try").gfid().ok().flatten().ok_or(("extended attributes by /proc/self/fd", Errno::ENOSYS))?;
    sys::link(&tmp, b"try", &tmp, b"try2").map_err(|e| ("hard links", e))?;
    match sys::rename(&tmp, b"try", &tmp, b"try2", crate::fop::RENAME_NOREPLACE) {
        Err(Errno::EEXIST) => {}
        other => return Err(("renameat2 with RENAME_NOREPLACE", other.err().unwrap_or(Errno::EIO))),
    }
    sys::unlink(&tmp, b"try2").and_then(|()| sys::symlink(b"x", &tmp, b"try2")).map_err(|e| ("symbolic links", e))?;
    sys::rename(&tmp, b"try", &tmp, b"try2", crate::fop::RENAME_EXCHANGE).map_err(|e| ("renameat2 with RENAME_EXCHANGE", e))?;
    sys::unlink(&tmp, b"try").and_then(|()| sys::unlink(&tmp, b"try2")).map_err(|e| ("unlink", e))
}
