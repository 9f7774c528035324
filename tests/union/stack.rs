//! Branches in a directory of their own, and a union over them: ours or another system's.

use crate::support::{BRICKRAFT, Unmount, command, run};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    Ours,
    /// The kernel's, with all that makes it most like POSIX.
    Overlayfs,
    FuseOverlayfs,
    Mergerfs,
}

/// A union of `upper` over `lower`, not mounted at first.
pub struct Stack {
    // Unmounted before the directories go.
    _unmount: Unmount,
    dir: tempfile::TempDir,
    system: System,
}

impl Stack {
    pub fn new(system: System) -> Self {
        Self::within(system, &std::env::temp_dir())
    }

    /// Branches in memory: what is synced at each copy-up costs nothing.
    pub fn in_memory(system: System) -> Self {
        Self::within(system, Path::new("/dev/shm"))
    }

    pub fn within(system: System, parent: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("union-").tempdir_in(parent).expect("temporary directory");
        for sub in ["upper", "lower", "work", "mnt"] {
            fs::create_dir(dir.path().join(sub)).expect("make the branches");
        }
        // A container's root, and users other than root, must get through.
        run(&mut command(["chmod", "755", dir.path().to_str().expect("plain path")]));
        Self { _unmount: Unmount(dir.path().join("mnt")), dir, system }
    }

    pub fn path(&self, sub: &str) -> PathBuf {
        self.dir.path().join(sub)
    }

    pub fn upper(&self) -> PathBuf {
        self.path("upper")
    }

    pub fn lower(&self) -> PathBuf {
        self.path("lower")
    }

    pub fn mnt(&self) -> PathBuf {
        self.path("mnt")
    }

    /// The command that mounts it; `more` are options of ours.
    pub fn command(&self, more: &str) -> Command {
        let (u, l, w) = (self.upper(), self.lower(), self.path("work"));
        let (u, l, w) = (u.display(), l.display(), w.display());
        let mut c = match self.system {
            System::Ours => command([BRICKRAFT, "union", "-o", &format!("br={u}=rw:{l}=ro{more}")]),
            System::Overlayfs => {
                let options = format!("lowerdir={l},upperdir={u},workdir={w},redirect_dir=on,index=on,xino=on");
                command(["mount", "-t", "overlay", "overlay", "-o", &options])
            }
            System::FuseOverlayfs => command(["fuse-overlayfs", "-o", &format!("lowerdir={l},upperdir={u},workdir={w}")]),
            System::Mergerfs => command(["mergerfs", "-o", "category.create=ff,allow_other", &format!("{u}=RW:{l}=NC")]),
        };
        c.arg(self.mnt());
        c
    }

    #[track_caller]
    pub fn mount(&self) {
        self.mount_with("");
    }

    #[track_caller]
    pub fn mount_with(&self, more: &str) {
        run(&mut self.command(more));
    }

    #[track_caller]
    pub fn unmount(&self) {
        run(command(["umount"]).arg(self.mnt()));
    }

    #[track_caller]
    pub fn remount(&self) {
        self.unmount();
        self.mount();
    }

    /// What a mounted union of ours says of itself, as `user.brickraft.NAME` of its root.
    #[track_caller]
    pub fn says(&self, name: &str) -> String {
        run(command(["getfattr", "--only-values", "-n", &format!("user.brickraft.{name}")]).arg(self.mnt()))
    }

    /// A union of ours, mounted.
    #[track_caller]
    pub fn ours() -> Self {
        let stack = Self::new(System::Ours);
        stack.mount();
        stack
    }
}

/// Gives this thread, and what it starts, mounts of its own. Whoever copies the common ones (a container that starts beside us, `ip netns
/// exec`) would hold an overlayfs after it was unmounted here, and its branches would be "busy" for the next.
#[expect(deprecated, reason = "the table of descriptors stays shared, so it is sound; what replaces it is unsafe")]
pub fn own_mounts() {
    use rustix::thread::UnshareFlags;
    rustix::thread::unshare(UnshareFlags::NEWNS | UnshareFlags::FS).expect("unshare");
    run(&mut command(["mount", "--make-rprivate", "/"]));
}

/// Every name below `dir` but `dir` itself, relative, sorted.
pub fn names(dir: &Path) -> Vec<PathBuf> {
    fn walk(top: &Path, dir: &Path, out: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
            let path = entry.expect("an entry").path();
            out.push(path.strip_prefix(top).expect("below").to_owned());
            if path.symlink_metadata().is_ok_and(|m| m.is_dir()) {
                walk(top, &path, out);
            }
        }
    }
    let mut out = Vec::new();
    walk(dir, dir, &mut out);
    out.sort();
    out
}

/// What a branch holds, byte for byte: contents, owners, modes, times, links, extended attributes.
pub fn fingerprint(dir: &Path) -> String {
    let line = "find . -printf '%p %y %m %U %G %s %T@ %l %n\\n' | LC_ALL=C sort; find . -type f -print0 | LC_ALL=C sort -z | xargs -0r sha256sum; \
                getfattr -Rdhm - -e hex . 2>/dev/null";
    run(command(["sh", "-c", line]).current_dir(dir))
}
