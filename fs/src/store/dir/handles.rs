//! From a gfid to the object: the index, the places of directories, and the descriptors kept open.

use super::lru::Lru;
use super::sys::{self, At, Res};
use crate::fop::{Errno, Gfid};
use rustix::fs::Stat;
use std::fs::File;
use std::sync::Arc;

const OPEN_DIRS_MAX: usize = 1024;
const OPEN_FILES_MAX: usize = 2048;
/// No real tree is that deep; a chain of places that is, runs in a circle.
const DEPTH_MAX: usize = 100_000;
/// The place of a directory in limbo.
const LIMBO_TEXT: &[u8] = b"limbo";

/// Where a directory stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DirPlace {
    /// Under its name.
    At(Gfid, Vec<u8>),
    /// In `.brickraft/limbo`.
    Limbo,
}

/// An object that was found.
pub(super) enum Obj {
    /// By descriptor.
    Dir(Arc<File>),
    /// By its path under `.brickraft`.
    Leaf(Vec<u8>),
}

/// The descriptors of a brick.
pub(super) struct Handles {
    pub(super) root: Arc<File>,
    pub(super) private: Arc<File>,
    dirs: Lru<Gfid, Arc<File>>,
    files: Lru<Gfid, Arc<File>>,
}

/// `index/ab/cd`.
pub(super) fn bucket_path(bucket: crate::fop::Bucket) -> String {
    let [a, b] = bucket.0.to_be_bytes();
    format!("index/{a:02x}/{b:02x}")
}

/// `index/ab/cd/<gfid>`.
pub(super) fn leaf_path(gfid: Gfid) -> Vec<u8> {
    format!("{}/{gfid}", bucket_path(gfid.bucket())).into_bytes()
}

/// `index/ab/cd/<gfid>.dir`.
pub(super) fn place_path(gfid: Gfid) -> Vec<u8> {
    format!("{}/{gfid}.dir", bucket_path(gfid.bucket())).into_bytes()
}

/// `orphans/<gfid>`.
pub(super) fn orphan_path(gfid: Gfid) -> Vec<u8> {
    format!("orphans/{gfid}").into_bytes()
}

/// `swept/<name>`; the name is one of a bucket's directory.
pub(super) fn swept_path(name: &[u8]) -> Vec<u8> {
    [b"swept/", name].concat()
}

/// `limbo/<gfid>`.
pub(super) fn limbo_path(gfid: Gfid) -> Vec<u8> {
    format!("limbo/{gfid}").into_bytes()
}

fn encode_places(places: &[DirPlace]) -> Vec<u8> {
    let texts: Vec<Vec<u8>> = places
        .iter()
        .map(|p| match p {
            DirPlace::Limbo => LIMBO_TEXT.to_vec(),
            DirPlace::At(parent, name) => [parent.to_string().as_bytes(), b"/", name].concat(),
        })
        .collect();
    texts.join(&b"//"[..])
}

/// One place, or two while a directory moves; `None` when the text is not ours.
fn decode_places(text: &[u8]) -> Option<Vec<DirPlace>> {
    let mut places = Vec::new();
    let mut rest = text;
    loop {
        let (one, more) = match rest.windows(2).position(|w| w == b"//") {
            Some(at) => (&rest[..at], Some(&rest[at + 2..])),
            None => (rest, None),
        };
        if one == LIMBO_TEXT {
            places.push(DirPlace::Limbo);
        } else {
            let (parent, name) = (one.get(..32)?, one.get(33..)?);
            let parent = Gfid::parse(std::str::from_utf8(parent).ok()?)?;
            if one[32] != b'/' || crate::store::check::name(parent, name).is_err() {
                return None;
            }
            places.push(DirPlace::At(parent, name.to_vec()));
        }
        match more {
            Some(more) if places.len() < 2 => rest = more,
            Some(_) => return None,
            None => return Some(places),
        }
    }
}

impl Handles {
    pub(super) fn new(root: File, private: File) -> Self {
        Self { root: Arc::new(root), private: Arc::new(private), dirs: Lru::new(OPEN_DIRS_MAX), files: Lru::new(OPEN_FILES_MAX) }
    }

    /// Drops the descriptors of an object that is gone.
    pub(super) fn forget(&mut self, gfid: Gfid) {
        self.dirs.remove(gfid);
        self.files.remove(gfid);
    }

    /// Drops all of them.
    pub(super) fn forget_all(&mut self) {
        self.dirs.clear();
        self.files.clear();
    }

    pub(super) fn remember_dir(&mut self, gfid: Gfid, dir: Arc<File>) {
        self.dirs.put(gfid, dir);
    }

    /// Makes the index directory of a bucket; they appear when they are first needed.
    pub(super) fn make_bucket(&self, gfid: Gfid) -> Res<()> {
        let path = bucket_path(gfid.bucket());
        for path in [&path[..8], &path[..]] {
            match sys::mkdir(&self.private, path.as_bytes()) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Runs `make` again after making the bucket's directory when that was missing.
    pub(super) fn in_bucket<T>(&self, gfid: Gfid, make: impl Fn(&File) -> Res<T>) -> Res<T> {
        match make(&self.private) {
            Err(Errno::ENOENT) => {
                self.make_bucket(gfid)?;
                make(&self.private)
            }
            other => other,
        }
    }

    /// Writes where the directory stands (or, while it moves, both places). Atomic.
    pub(super) fn set_place(&self, gfid: Gfid, places: &[DirPlace]) -> Res<()> {
        let text = encode_places(places);
        let path = place_path(gfid);
        match self.in_bucket(gfid, |private| sys::symlink(&text, private, &path)) {
            Err(Errno::EEXIST) => {}
            other => return other,
        }
        let tmp = format!("tmp/{gfid}.dir").into_bytes();
        match sys::symlink(&text, &self.private, &tmp) {
            Err(Errno::EEXIST) => {
                sys::unlink(&self.private, &tmp)?;
                sys::symlink(&text, &self.private, &tmp)?;
            }
            other => other?,
        }
        sys::rename(&self.private, &tmp, &self.private, &path, 0)
    }

    pub(super) fn remove_place(&self, gfid: Gfid) -> Res<()> {
        match sys::unlink(&self.private, &place_path(gfid)) {
            Err(Errno::ENOENT) => Ok(()),
            other => other,
        }
    }

    /// Where the index says the directory stands. `ENOENT` when it says nothing.
    pub(super) fn places(&self, gfid: Gfid) -> Res<Vec<DirPlace>> {
        let text = match sys::readlink(&self.private, &place_path(gfid)) {
            // What lies there is no symbolic link.
            Err(Errno::EINVAL) => return Err(Errno::EIO),
            other => other?,
        };
        decode_places(&text).ok_or(Errno::EIO)
    }

    /// Opens the directory `gfid` at a place; `ENOENT` when another object (or none) is there.
    fn open_place(&self, gfid: Gfid, parent: Option<&File>, name: &[u8]) -> Res<Arc<File>> {
        let dir = match parent {
            Some(parent) => sys::open_dir(parent, name),
            None => sys::open_dir(&self.private, &limbo_path(gfid)),
        };
        let dir = match dir {
            Err(Errno::ENOTDIR) => return Err(Errno::ENOENT),
            other => other?,
        };
        if At::Fd(&dir).gfid()? != Some(gfid) {
            return Err(Errno::ENOENT);
        }
        Ok(Arc::new(dir))
    }

    /// A directory's descriptor. `ENOENT` when the index has no such directory, or when it is not where the
    /// index says.
    pub(super) fn dir(&mut self, gfid: Gfid) -> Res<Arc<File>> {
        let mut chain: Vec<(Gfid, Vec<u8>)> = Vec::new();
        let mut at = gfid;
        let mut dir = loop {
            if let Some(dir) = self.cached_dir(at) {
                break dir;
            }
            let places = self.places(at)?;
            match places.as_slice() {
                [DirPlace::At(parent, name)] => {
                    chain.push((at, name.clone()));
                    at = *parent;
                }
                [DirPlace::Limbo] => {
                    let dir = self.open_place(at, None, b"")?;
                    self.dirs.put(at, Arc::clone(&dir));
                    break dir;
                }
                _ => break self.settle(at, places)?.1,
            }
            if chain.len() > DEPTH_MAX {
                return Err(Errno::EIO);
            }
        };
        for (child, name) in chain.into_iter().rev() {
            dir = self.open_place(child, Some(&dir), &name)?;
            self.dirs.put(child, Arc::clone(&dir));
        }
        Ok(dir)
    }

    /// The root, or an open directory that still has a name.
    fn cached_dir(&mut self, gfid: Gfid) -> Option<Arc<File>> {
        if gfid == Gfid::ROOT {
            return Some(Arc::clone(&self.root));
        }
        self.dirs.get(gfid)
    }

    /// A move of a directory was cut off: finds out which of both places it is at, and says so in the index.
    /// (Only one directory moves at a time, so this does not go deep.)
    pub(super) fn settle(&mut self, gfid: Gfid, places: Vec<DirPlace>) -> Res<(DirPlace, Arc<File>)> {
        for place in places {
            let found = match &place {
                DirPlace::Limbo => self.open_place(gfid, None, b""),
                DirPlace::At(parent, name) => self.dir(*parent).and_then(|p| self.open_place(gfid, Some(&p), name)),
            };
            match found {
                Ok(dir) => {
                    self.set_place(gfid, std::slice::from_ref(&place))?;
                    self.dirs.put(gfid, Arc::clone(&dir));
                    return Ok((place, dir));
                }
                Err(Errno::ENOENT) => {}
                Err(e) => return Err(e),
            }
        }
        Err(Errno::ENOENT)
    }

    /// The directory's one place (not for the root).
    pub(super) fn place(&mut self, gfid: Gfid) -> Res<DirPlace> {
        let mut places = self.places(gfid)?;
        if places.len() == 1 {
            return Ok(places.remove(0));
        }
        self.settle(gfid, places).map(|(place, _)| place)
    }

    /// A directory's descriptor and attributes; notices that somebody removed it behind our back.
    pub(super) fn live_dir(&mut self, gfid: Gfid) -> Res<(Arc<File>, Stat)> {
        let dir = self.dir(gfid)?;
        let stat = sys::stat_fd(&dir)?;
        if stat.st_nlink == 0 {
            self.dirs.remove(gfid);
            let dir = self.dir(gfid)?;
            let stat = sys::stat_fd(&dir)?;
            return Ok((dir, stat));
        }
        Ok((dir, stat))
    }

    /// A non-directory in the index. `ENOENT` for directories too.
    pub(super) fn leaf(&self, gfid: Gfid, orphans: bool) -> Res<(Vec<u8>, Stat)> {
        let path = leaf_path(gfid);
        match sys::stat_at(&self.private, &path) {
            Err(Errno::ENOENT) if orphans => {
                let path = orphan_path(gfid);
                sys::stat_at(&self.private, &path).map(|s| (path, s))
            }
            other => other.map(|s| (path, s)),
        }
    }

    /// Any object.
    pub(super) fn find(&mut self, gfid: Gfid, orphans: bool) -> Res<(Obj, Stat)> {
        if self.cached_dir(gfid).is_none() {
            match self.leaf(gfid, orphans) {
                Err(Errno::ENOENT) => {}
                other => return other.map(|(path, stat)| (Obj::Leaf(path), stat)),
            }
        }
        self.live_dir(gfid).map(|(dir, stat)| (Obj::Dir(dir), stat))
    }

    /// A regular file, open for reading and writing.
    pub(super) fn file(&mut self, gfid: Gfid, orphans: bool) -> Res<Arc<File>> {
        if let Some(file) = self.files.get(gfid) {
            return Ok(file);
        }
        match self.find(gfid, orphans)? {
            (Obj::Dir(_), _) => Err(Errno::EISDIR),
            // Opening a device or a FIFO would act on it.
            (Obj::Leaf(_), stat) if sys::kind(&stat) != crate::fop::FileKind::File => Err(Errno::EINVAL),
            (Obj::Leaf(path), _) => {
                let file = Arc::new(sys::open_file(&self.private, &path)?);
                self.files.put(gfid, Arc::clone(&file));
                Ok(file)
            }
        }
    }
}

impl Obj {
    /// For system calls.
    pub(super) fn at<'a>(&'a self, private: &'a File) -> At<'a> {
        match self {
            Self::Dir(f) => At::Fd(f),
            Self::Leaf(path) => At::Path(private, path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_come_back_as_written() {
        let at = DirPlace::At(Gfid([7; 16]), b"a name".to_vec());
        for places in [vec![at.clone()], vec![DirPlace::Limbo], vec![DirPlace::Limbo, at.clone()], vec![at.clone(), at.clone()]] {
            assert_eq!(decode_places(&encode_places(&places)), Some(places));
        }
        for bad in [&b""[..], b"limbo/x", b"00/x", b"../..", b"07070707070707070707070707070707", b"07070707070707070707070707070707/..", b"limbo//limbo//limbo"] {
            assert_eq!(decode_places(bad), None, "{bad:?}");
        }
    }
}
