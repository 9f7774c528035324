//! mount(8)'s helpers in /sbin, as the README has them installed, for as long as a test needs them.

use crate::support::{BRICKRAFT, unique};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

const NAMES: [&str; 3] = ["mount.aufs", "mount.fuse.aufs", "mount.brickraft.union"];

/// How many tests use them, and what was there before.
static USERS: Mutex<(usize, Vec<Option<PathBuf>>)> = Mutex::new((0, Vec::new()));

/// The links are there while one of these lives.
pub struct Links;

fn place(name: &str, target: &Path) {
    let link = Path::new("/sbin").join(name);
    let new = link.with_file_name(unique(name));
    symlink(target, &new).and_then(|()| fs::rename(&new, &link)).unwrap_or_else(|e| panic!("{}: {e}", link.display()));
}

impl Links {
    pub fn install() -> Self {
        let mut users = USERS.lock().expect("no test panicked in here");
        if users.0 == 0 {
            users.1 = NAMES.iter().map(|name| fs::read_link(Path::new("/sbin").join(name)).ok()).collect();
            NAMES.iter().for_each(|name| place(name, Path::new(BRICKRAFT)));
        }
        users.0 += 1;
        Self
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        let Ok(mut users) = USERS.lock() else { return };
        users.0 -= 1;
        if users.0 == 0 {
            for (name, before) in NAMES.iter().zip(std::mem::take(&mut users.1)) {
                match before {
                    // One that an interrupted run left behind is not the user's.
                    Some(target) if target != Path::new(BRICKRAFT) => place(name, &target),
                    _ => drop(fs::remove_file(Path::new("/sbin").join(name))),
                }
            }
        }
    }
}
