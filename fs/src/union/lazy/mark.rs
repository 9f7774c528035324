//! What a lazy copy says of itself: the value of [`super::super::names::XATTR_LAZY`]. FORMAT.md, "A union's branches", has it too.

use crate::fop::TimeSpec;
use crate::union::branch::Stat;

/// The form that is written.
const VERSION: u64 = 1;
/// Numbers before the names.
const NUMBERS: usize = 10;

/// The mark of a lazy copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    /// The inode number of the copy in its branch: a mark of another file's counts for nothing.
    pub(super) own: u64,
    /// The bitmap's name.
    pub(super) id: u64,
    /// Bytes that one bit stands for.
    pub(super) block: u64,
    /// Bytes of the lower file that still count. Falls, and never rises.
    pub(super) limit: u64,
    /// The lower file, as it was when the copy was made.
    pub(super) ino: u64,
    pub(super) size: u64,
    pub(super) mtime: TimeSpec,
    /// Units of 512 bytes.
    pub(super) blocks: u64,
    /// The branch that it lies in, as listings show it.
    pub(super) branch: Vec<u8>,
    /// Its path there, without a slash at the start.
    pub(super) path: Vec<u8>,
}

impl Mark {
    /// As it is written: of one length whatever the numbers are, so that a smaller limit always finds room.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let (sec, nsec) = (self.mtime.sec.cast_unsigned(), u64::from(self.mtime.nsec));
        let numbers = [VERSION, self.own, self.id, self.block, self.limit, self.ino, self.size, sec, nsec, self.blocks];
        let numbers: Vec<String> = numbers.iter().map(|n| format!("{n:016x}")).collect();
        [numbers.join(".").as_bytes(), &self.branch, &self.path].join(&0)
    }

    /// Reads it; `None` for what is none, or not of this version.
    pub(super) fn parse(value: &[u8]) -> Option<Self> {
        let mut parts = value.splitn(3, |b| *b == 0);
        let numbers = std::str::from_utf8(parts.next()?).ok()?;
        let hex = |text: &str| (text.len() == 16).then(|| u64::from_str_radix(text, 16).ok()).flatten();
        let numbers: [u64; NUMBERS] = numbers.split('.').map(hex).collect::<Option<Vec<_>>>()?.try_into().ok()?;
        let [VERSION, own, id, block, limit, ino, size, sec, nsec, blocks] = numbers else { return None };
        let mtime = TimeSpec { sec: sec.cast_signed(), nsec: u32::try_from(nsec).ok()? };
        let (branch, path) = (parts.next()?.to_vec(), parts.next()?.to_vec());
        (block > 0 && limit <= size).then_some(Self { own, id, block, limit, ino, size, mtime, blocks, branch, path })
    }

    /// Whether this is the lower file, as it was.
    pub(super) fn is_of(&self, lower: &Stat) -> bool {
        lower.kind == crate::fop::FileKind::File && (lower.ino, lower.size, lower.mtime) == (self.ino, self.size, self.mtime)
    }

    /// The name of the bitmap.
    pub(super) fn bitmap(&self) -> Vec<u8> {
        format!("{:016x}", self.id).into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark() -> Mark {
        Mark {
            own: 12,
            id: u64::MAX,
            block: 128 << 10,
            limit: 5,
            ino: 77,
            size: 100 << 30,
            mtime: TimeSpec { sec: -1, nsec: 999_999_999 },
            blocks: 8,
            branch: b"/lower".to_vec(),
            path: b"d/a file\nof two lines".to_vec(),
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        assert_eq!(Mark::parse(&mark().to_bytes()), Some(mark()));
        let smaller = Mark { limit: 0, ..mark() };
        assert_eq!(smaller.to_bytes().len(), mark().to_bytes().len());
        for wrong in [&b""[..], b"1", &mark().to_bytes()[..100], &[b"x", &mark().to_bytes()[1..]].concat()] {
            assert_eq!(Mark::parse(wrong), None, "{wrong:?}");
        }
        assert_eq!(Mark::parse(&Mark { limit: 101 << 30, ..mark() }.to_bytes()), None, "the limit is beyond the size");
        assert_eq!(Mark::parse(&Mark { block: 0, ..mark() }.to_bytes()), None);
    }

    #[test]
    fn the_page_has_the_form() {
        let page = include_str!("../../../../FORMAT.md");
        let text = String::from_utf8(Mark { mtime: TimeSpec { sec: 1, nsec: 2 }, path: b"d/f".to_vec(), ..mark() }.to_bytes()).unwrap();
        let shown = text.replace('\0', "\\0");
        assert!(page.contains(&shown), "FORMAT.md lacks the example {shown}");
    }
}
