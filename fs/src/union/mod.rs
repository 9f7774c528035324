//! Union mounts: directories stacked as branches, AUFS in user space. No FUSE in here.
//!
//! A [`Union`] answers a FUSE-like face by inode number: the front end looks names up, which counts references, and forgets them. There
//! are no open files: reads and writes go by number, so a reader sees what is written after a copy-up, and what was
//! unlinked stays readable and writable until the last reference is forgotten.
//!
//! Who may do what is the front end's to check (the kernel does with `default_permissions`); the union acts as root. The process's umask
//! is set to 0 by [`Union::open`].

//!
//! - `core` puts the branches together and finds objects, `node` is what is held of them, `slot` a branch in its place;
//! - `search` resolves names, `listing` lists them, `numbers` numbers objects;
//! - `create`, `remove`, `rename`, `copyup`, `attrs` and `data` are the operations, `whiteout` their common steps;
//! - `lazy` copies huge files up block by block;
//! - `ahead` fetches what somebody who walks a tree will want next;
//! - `policy` chooses branches, `live` changes them; `watch` hears of what others change in them, and `outside` says what that means here.

mod ahead;
mod attrs;
pub mod branch;
pub mod config;
mod copyup;
mod core;
mod create;
mod data;
mod error;
mod lazy;
mod listing;
mod live;
mod names;
mod node;
mod numbers;
mod outside;
mod policy;
mod remove;
mod rename;
mod search;
mod slot;
#[cfg(test)]
mod tests;
mod watch;
mod whiteout;

pub use self::core::{Standing, Union};
pub use config::{
    Access, BRANCHES_MAX, BadValue, BranchConfig, BranchSource, CopyUpPolicy, CreatePolicy, Layout, LazyConfig, Perm, Udba, UnionConfig,
};
pub use error::UnionError;
pub use outside::Stale;
pub use watch::{Change, Changes, READ_BYTES, Watcher};

use attrs::without_set_id;

use crate::fop::{Attr, Errno, FileKind};

/// What the union's methods return.
pub type Res<T> = Result<T, Errno>;

/// The number of the root directory.
pub const ROOT_INO: u64 = 1;

/// Who asks, where owner and mode of what is made depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// File system user id.
    pub uid: u32,
    /// File system group id.
    pub gid: u32,
    /// Process id, for messages only.
    pub pid: u32,
    /// The process's umask. Give it where the kernel did not apply it (`FUSE_DONT_MASK`), else 0: a directory with a
    /// default ACL takes that instead.
    pub umask: u32,
}

/// An object as the front end knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its inode number: stable over copy-up and remount.
    pub ino: u64,
    /// With `ino`, unique over the life of the mount.
    pub generation: u64,
    /// Its attributes. `gfid` has no meaning here.
    pub attr: Attr,
}

/// One name of a directory.
#[derive(Debug)]
pub struct DirEntry<'a> {
    /// Where to go on after this entry; never 0, stable while the directory changes and over remounts.
    pub cookie: u64,
    /// The name; `.` and `..` come first.
    pub name: &'a [u8],
    /// The number that stat(2) will give.
    pub ino: u64,
    /// Its kind.
    pub kind: FileKind,
    /// With `plus`: the object, one reference counted. `None` for `.` and `..`, and for what is gone since.
    pub entry: Option<Entry>,
}

/// A branch as [`Union::branches`] lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BranchInfo {
    /// The path, or `HOST:VOL/subdir`.
    pub label: String,
    /// What may be done with it.
    pub perm: Perm,
}

/// A change of the branches of a live union (`mount -o remount,...`).
#[derive(Clone, Debug)]
pub enum BranchChange {
    /// `append:`: at the bottom.
    Append(BranchConfig),
    /// `prepend:`: at the top.
    Prepend(BranchConfig),
    /// `add:N:`, `ins:N:`: before the N-th, counted from 0.
    Insert(usize, BranchConfig),
    /// `mod:`: another permission.
    Modify {
        /// The branch's label.
        label: String,
        /// What it becomes.
        perm: Perm,
    },
    /// `del:`.
    Delete {
        /// The branch's label.
        label: String,
    },
    /// `lazy-cpup=SIZE`, `nolazy-cpup`: no branch, but how files are copied up from now on.
    LazyCopyUp(Option<u64>),
}
