//! What a brick's store offers to a heal: the primitives under [`HealCall`](super::HealCall).
//!
//! All of them work on the object as the index knows it, by gfid; none follows a symbolic link or a path out of the
//! brick. Each change is idempotent, marks the buckets it touches as dirty, and leaves times alone or not as it likes:
//! the heal restores them at the end by `heal_set_attr`.

use super::calls::{ExactAttr, NameEntry, Place};
use crate::fop::{Attr, Bucket, Errno, FileKind, Gfid};
use bytes::Bytes;

/// The primitives. Errors are `ENOENT` where the object or the parent is not there, `EIO` where the disk fails.
pub trait HealStore {
    /// The bucket's objects in ascending order, after `after`, at most `max`. One that the index names but whose
    /// directory is not there any more (removed behind our back) is listed too.
    fn heal_objects(&mut self, bucket: Bucket, after: Option<Gfid>, max: usize) -> Result<Vec<Gfid>, Errno>;
    /// Attributes (`nlink` without the index link) and, of a directory, its place. `ENOENT` when the index's
    /// directory is not there, or is another one.
    fn heal_stat(&mut self, gfid: Gfid) -> Result<(Attr, Option<Place>), Errno>;
    /// A symbolic link's text.
    fn heal_readlink(&mut self, gfid: Gfid) -> Result<Bytes, Errno>;
    /// Names after `cookie` (0: start), in any stable order, and the cookie to go on with (0: end). A name's gfid is
    /// [`STRANGER`](super::STRANGER) when it has no gfid, or when what lies under the name is not what the index has
    /// under that gfid. `.brickraft` in the root is left out.
    fn heal_entries(&mut self, dir: Gfid, cookie: u64, max: usize) -> Result<(Vec<NameEntry>, u64), Errno>;
    /// One name, as `heal_entries` would list it.
    fn heal_lookup(&mut self, parent: Gfid, name: &[u8]) -> Result<Option<NameEntry>, Errno>;
    /// All extended attributes but `trusted.brickraft.*`, sorted by name.
    fn heal_xattrs(&mut self, gfid: Gfid) -> Result<Vec<(Bytes, Bytes)>, Errno>;
    /// The first extent of data that ends after `offset`, as (start >= `offset`, end); `None` when there is only hole or
    /// end of file (`SEEK_DATA`, `SEEK_HOLE`).
    fn heal_next_data(&mut self, gfid: Gfid, offset: u64) -> Result<Option<(u64, u64)>, Errno>;
    /// Data; shorter only at the end of the file. Never more than [`CALL_BYTES_MAX`](super::CALL_BYTES_MAX) is asked.
    fn heal_read(&mut self, gfid: Gfid, offset: u64, len: usize) -> Result<Bytes, Errno>;
    /// Whether the index knows the object, but it has no name (or, a directory, is not there): then somebody took it away in
    /// the brick's own directory. `named`: also a file that has names left, but not one that is only kept because it is open.
    fn heal_lost(&mut self, gfid: Gfid, named: bool) -> Result<bool, Errno>;
    /// What was put away at start because it had no name: `keep` puts it back into the index, otherwise it goes.
    fn heal_swept(&mut self, keep: bool) -> Result<(), Errno>;
    /// The directories in limbo, ascending.
    fn heal_limbo(&mut self) -> Result<Vec<Gfid>, Errno>;

    /// Makes a nameless object (index link only), not a directory; nothing to do when one of that kind, device and text is
    /// there, `EEXIST` when one of another.
    /// One that is kept without a name goes first: what is made is empty.
    fn heal_make(&mut self, gfid: Gfid, kind: FileKind, rdev: u64, target: Option<&[u8]>) -> Result<(), Errno>;
    /// Makes the directory at `parent`/`name`, or moves it there from its place or from limbo; returns the place before.
    /// `EEXIST` when another object (or a stranger) has the name, `EINVAL` when `parent` lies inside `gfid`.
    fn heal_place_dir(&mut self, gfid: Gfid, parent: Gfid, name: &[u8]) -> Result<Option<Place>, Errno>;
    /// Moves a directory with all below it to `.brickraft/limbo/<gfid>`; returns the place before.
    fn heal_to_limbo(&mut self, gfid: Gfid) -> Result<Option<Place>, Errno>;
    /// Links a name to an object that is not a directory. `EEXIST` when another has the name.
    fn heal_link(&mut self, parent: Gfid, name: &[u8], gfid: Gfid) -> Result<(), Errno>;
    /// Removes a name of a non-directory, or a stranger with all below it; `EISDIR` for a directory of ours; an absent name
    /// is no error. The object stays in the index.
    fn heal_unlink(&mut self, parent: Gfid, name: &[u8]) -> Result<(), Errno>;
    /// Owner, mode and times, exactly (not following a symbolic link).
    fn heal_set_attr(&mut self, gfid: Gfid, attr: &ExactAttr) -> Result<(), Errno>;
    /// Sets, or removes when `None` (an absent one is no error).
    fn heal_set_xattr(&mut self, gfid: Gfid, name: &[u8], value: Option<&[u8]>) -> Result<(), Errno>;
    /// Writes, growing the file when it must.
    fn heal_write(&mut self, gfid: Gfid, offset: u64, data: &Bytes) -> Result<(), Errno>;
    /// Leaves a hole, the size unchanged (`FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE`).
    fn heal_punch(&mut self, gfid: Gfid, offset: u64, len: u64) -> Result<(), Errno>;
    /// Sets the size.
    fn heal_truncate(&mut self, gfid: Gfid, size: u64) -> Result<(), Errno>;
    /// Removes an object from the brick: an empty directory wherever it stands (also only its stale index entry), or a
    /// nameless object. `ENOTEMPTY` when it has entries or names. An absent one is no error.
    fn heal_remove(&mut self, gfid: Gfid) -> Result<(), Errno>;

    /// An object that has no name is one that is open, and is kept for that. Others stay as they are.
    fn heal_orphan(&mut self, gfid: Gfid) -> Result<(), Errno>;

    /// The value of `trusted.brickraft.sum`, `None` when there is none.
    fn heal_signature(&mut self, gfid: Gfid) -> Result<Option<Bytes>, Errno>;
    /// Sets or removes `trusted.brickraft.sum`. The file's data must be durable before its signature is.
    fn heal_set_signature(&mut self, gfid: Gfid, value: Option<&[u8]>) -> Result<(), Errno>;
}
