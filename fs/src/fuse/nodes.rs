//! Inode numbers: the kernel's names for objects.
//!
//! The number is the last 64 bits of the gfid, so it stays the same over remounts; the root's is 1, as
//! FUSE wants it. Should two live objects share those bits, the later one gets the next free number.

use crate::fop::{Attr, Errno, FileKind, Gfid};
use fuser::INodeNo;
use std::collections::HashMap;
use std::sync::Mutex;

#[derive(Debug, Default)]
pub(super) struct Nodes {
    live: Mutex<HashMap<u64, Node>>,
}

#[derive(Debug)]
struct Node {
    gfid: Gfid,
    lookups: u64,
    /// Of a directory: its mode and group when last seen, which new objects in it inherit from.
    dir: Option<(u32, u32)>,
}

impl Nodes {
    /// The number of `gfid`, without a lookup counted: for listings.
    pub(super) fn number(&self, gfid: Gfid) -> INodeNo {
        let live = self.live.lock().expect("no panic holds it");
        INodeNo(slot(&live, gfid))
    }

    /// Counts one lookup, as each answer with an entry does.
    pub(super) fn looked_up(&self, attr: &Attr) -> INodeNo {
        let mut live = self.live.lock().expect("no panic holds it");
        let number = slot(&live, attr.gfid);
        let node = live.entry(number).or_insert(Node { gfid: attr.gfid, lookups: 0, dir: None });
        node.lookups += 1;
        node.note(attr);
        INodeNo(number)
    }

    /// Remembers what an answer without a lookup told of a live object.
    pub(super) fn seen(&self, attr: &Attr) {
        let mut live = self.live.lock().expect("no panic holds it");
        let number = slot(&live, attr.gfid);
        if attr.gfid == Gfid::ROOT {
            live.entry(number).or_insert(Node { gfid: attr.gfid, lookups: 1, dir: None });
        }
        if let Some(node) = live.get_mut(&number) {
            node.note(attr);
        }
    }

    /// Mode and group of a directory when last seen; the kernel asks for them before it makes anything in it.
    pub(super) fn directory(&self, gfid: Gfid) -> Option<(u32, u32)> {
        let live = self.live.lock().expect("no panic holds it");
        live.get(&slot(&live, gfid)).and_then(|n| n.dir)
    }

    /// The object behind a number.
    ///
    /// # Errors
    /// `ESTALE` when the kernel names what it has forgotten.
    pub(super) fn gfid(&self, ino: INodeNo) -> Result<Gfid, Errno> {
        if ino == INodeNo::ROOT {
            return Ok(Gfid::ROOT);
        }
        let live = self.live.lock().expect("no panic holds it");
        live.get(&ino.0).map(|n| n.gfid).ok_or(Errno::ESTALE)
    }

    /// The kernel drops `lookups` of its references.
    pub(super) fn forget(&self, ino: INodeNo, lookups: u64) {
        let mut live = self.live.lock().expect("no panic holds it");
        if let Some(node) = live.get_mut(&ino.0) {
            node.lookups = node.lookups.saturating_sub(lookups);
            if node.lookups == 0 {
                live.remove(&ino.0);
            }
        }
    }
}

impl Node {
    fn note(&mut self, attr: &Attr) {
        if attr.kind == FileKind::Dir {
            self.dir = Some((attr.mode, attr.gid));
        }
    }
}

/// The number that `gfid` has or would get.
fn slot(live: &HashMap<u64, Node>, gfid: Gfid) -> u64 {
    let mut number = u64::from_be_bytes(gfid.0[8..].try_into().expect("8 of 16 bytes"));
    // 0 is no inode and 1 is the root's.
    while (number <= 1 && gfid != Gfid::ROOT) || live.get(&number).is_some_and(|n| n.gfid != gfid) {
        number = number.wrapping_add(1);
    }
    number
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attr(gfid: Gfid) -> Attr {
        let now = crate::fop::TimeSpec::default();
        Attr {
            gfid,
            kind: FileKind::Dir,
            mode: 0o2755,
            nlink: 2,
            uid: 0,
            gid: 5,
            rdev: 0,
            size: 0,
            blocks: 0,
            atime: now,
            mtime: now,
            ctime: now,
        }
    }

    #[test]
    fn numbers_are_stable_and_distinct() {
        let nodes = Nodes::default();
        assert_eq!(nodes.looked_up(&attr(Gfid::ROOT)), INodeNo::ROOT);
        let mut twin = [7; 16];
        let a = Gfid(twin);
        twin[0] = 8;
        let b = Gfid(twin);
        let (ino_a, ino_b) = (nodes.looked_up(&attr(a)), nodes.looked_up(&attr(b)));
        assert_ne!(ino_a, ino_b);
        assert_eq!(nodes.gfid(ino_a), Ok(a));
        assert_eq!(nodes.gfid(ino_b), Ok(b));
        assert_eq!(nodes.number(a), ino_a);
        assert_eq!(nodes.directory(b), Some((0o2755, 5)));
    }

    #[test]
    fn forgotten_when_all_lookups_are() {
        let nodes = Nodes::default();
        let a = Gfid([9; 16]);
        let ino = nodes.looked_up(&attr(a));
        nodes.looked_up(&attr(a));
        nodes.forget(ino, 1);
        assert_eq!(nodes.gfid(ino), Ok(a));
        nodes.forget(ino, 1);
        assert_eq!(nodes.gfid(ino), Err(Errno::ESTALE));
    }
}
