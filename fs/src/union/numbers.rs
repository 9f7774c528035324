//! Inode numbers: one space for all branches, stable over copy-up and remount.
//!
//! The number is the object's own with the index of its file system in the upper 8 bits (0 for the first, so a union on one
//! file system shows the plain numbers). What does not fit gets a number of the upper range for the life of the mount. A copied-up object
//! carries the number that it had (see [`XATTR_NUMBER`]).

use super::branch::{At, Branch, ObjectId, Stat};
use super::names::XATTR_NUMBER;
use super::node::lock;
use super::{ROOT_INO, Res};
use crate::fop::Errno;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError, RwLock};

const INDEX_SHIFT: u32 = 56;
/// The index that numbers made up here have.
const MADE_UP: u64 = 0xff;
/// Behind the number of what was copied up without its data, so that only such files are asked for a mark. It goes with whoever copies a file
/// with its attributes.
const LAZILY: &[u8] = b".lazy";

#[derive(Debug, Default)]
pub(super) struct Numbers {
    devices: RwLock<Vec<u64>>,
    made_up: Mutex<HashMap<ObjectId, u64>>,
    /// What copied-up objects would carry, where there are no extended attributes.
    carried: Mutex<HashMap<ObjectId, u64>>,
}

/// What an object says of its number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Carried {
    /// `None`: it was written for another object.
    pub(super) number: Option<u64>,
    /// It was copied up without its data: it may have a mark that says where that is.
    pub(super) lazily: bool,
}

impl Numbers {
    /// Gives a file system its index: at the mount in the order of the branches, so that the same mount line gives the same numbers.
    pub(super) fn index(&self, dev: u64) -> u64 {
        let known = |devices: &[u64]| devices.iter().position(|d| *d == dev);
        if let Some(index) = known(&self.devices.read().unwrap_or_else(PoisonError::into_inner)) {
            return index as u64;
        }
        let mut devices = self.devices.write().unwrap_or_else(PoisonError::into_inner);
        match known(&devices) {
            Some(index) => index as u64,
            None => {
                devices.push(dev);
                devices.len() as u64 - 1
            }
        }
    }

    /// The number of an object that carries none.
    pub(super) fn plain(&self, dev: u64, ino: u64, id: ObjectId) -> u64 {
        let index = self.index(dev);
        if ino > ROOT_INO && ino >> INDEX_SHIFT == 0 && index < MADE_UP { index << INDEX_SHIFT | ino } else { self.made_up(id) }
    }

    pub(super) fn of(&self, stat: &Stat) -> u64 {
        self.plain(stat.dev, stat.ino, stat.id)
    }

    /// A number that nothing else has, good for the life of the mount.
    pub(super) fn made_up(&self, id: ObjectId) -> u64 {
        let mut made_up = lock(&self.made_up);
        let next = MADE_UP << INDEX_SHIFT | (made_up.len() as u64 + 1);
        *made_up.entry(id).or_insert(next)
    }

    /// The number that was made up for an object, if one was.
    pub(super) fn made_up_already(&self, id: ObjectId) -> Option<u64> {
        lock(&self.made_up).get(&id).copied()
    }

    /// The number that an object carries; `None` when it carries none at all.
    pub(super) fn carried(&self, branch: &dyn Branch, at: At<'_>, own: u64, id: ObjectId) -> Res<Option<Carried>> {
        match branch.get_xattr(at, XATTR_NUMBER) {
            Ok(value) => Ok(Some(Carried { number: parse(&value, own), lazily: value.ends_with(LAZILY) })),
            Err(Errno::ENODATA) => Ok(None),
            Err(Errno::EOPNOTSUPP) => Ok(lock(&self.carried).get(&id).map(|number| Carried { number: Some(*number), lazily: false })),
            Err(e) => Err(e),
        }
    }

    /// Lets an object carry a number, and the word that it was copied up without its data.
    pub(super) fn carry(&self, branch: &dyn Branch, at: At<'_>, stat: &Stat, number: u64, lazily: bool) -> Res<()> {
        let mut value = format(number, stat.ino).into_bytes();
        if lazily {
            value.extend(LAZILY);
        }
        match branch.set_xattr(at, XATTR_NUMBER, &value, 0) {
            Err(Errno::EOPNOTSUPP) => {
                lock(&self.carried).insert(stat.id, number);
                Ok(())
            }
            other => other,
        }
    }
}

/// What was copied up without its data has all of it now.
pub(super) fn carry_plainly(branch: &dyn Branch, at: At<'_>, own: u64) -> Res<()> {
    match branch.get_xattr(at, XATTR_NUMBER) {
        Ok(value) => match parse(&value, own) {
            Some(number) if value.ends_with(LAZILY) => branch.set_xattr(at, XATTR_NUMBER, format(number, own).as_bytes(), 0),
            _ => Ok(()),
        },
        Err(Errno::ENODATA | Errno::EOPNOTSUPP) => Ok(()),
        Err(e) => Err(e),
    }
}

pub(super) fn format(number: u64, own: u64) -> String {
    format!("{number:016x}.{own:016x}")
}

/// The number in an attribute's value, if it was written for the object that carries it.
pub(super) fn parse(value: &[u8], own: u64) -> Option<u64> {
    let value = value.strip_suffix(LAZILY).unwrap_or(value);
    let (number, carrier) = std::str::from_utf8(value).ok()?.split_once('.')?;
    let hex = |text: &str| (text.len() == 16).then(|| u64::from_str_radix(text, 16).ok()).flatten();
    (hex(carrier)? == own).then(|| hex(number)).flatten().filter(|n| *n > ROOT_INO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_counts_only_where_it_was_written() {
        assert_eq!(parse(format(77, 5).as_bytes(), 5), Some(77));
        assert_eq!(parse(format(77, 5).as_bytes(), 6), None);
        assert_eq!(parse(&[format(77, 5).as_bytes(), LAZILY].concat(), 5), Some(77));
        assert_eq!(parse(b"77.5", 5), None);
        assert_eq!(parse(b"", 5), None);
    }

    #[test]
    fn file_systems_do_not_collide() {
        let numbers = Numbers::default();
        let n = |dev, ino| numbers.plain(dev, ino, ObjectId(dev, ino));
        assert_eq!(n(8, 12), 12);
        assert_ne!(n(9, 12), 12);
        assert_eq!(n(9, 12), n(9, 12));
        assert!(n(8, 1) > 1, "1 is the root's");
        assert_ne!(n(8, u64::MAX), n(8, 1));
    }
}
