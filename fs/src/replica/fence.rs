//! Fencing tokens: who has been overtaken by a later holder of a lock changes nothing any more.
//!
//! A file's fence is a number in an extended attribute, so it is replicated and healed like any other. It only rises. An
//! operation that goes through a handle with a token is refused when the fence is above the token. The primary looks when
//! the operation's turn has come, in the one order that all operations on the file have: a write that was late on its
//! way cannot slip in behind a higher fence. (M. Kleppmann, "How to do distributed locking", 2016, has the reasoning.)

use super::types::ClientRequest;
use super::{Disk, ReplicaCore};
use crate::fop::{Errno, Fop, Gfid, Reply, XATTR_FENCE};
use bytes::Bytes;

/// The text form of a fence. `None`: it is none.
fn parse(value: &[u8]) -> Option<u64> {
    let digits = (1..=20).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
    digits.then(|| std::str::from_utf8(value).ok()?.parse().ok()).flatten()
}

/// The file that an operation through a handle changes.
const fn file_of(fop: &Fop) -> Option<Gfid> {
    match fop {
        Fop::Write { gfid, .. } | Fop::SetAttr { gfid, .. } | Fop::Fallocate { gfid, .. } => Some(*gfid),
        _ => None,
    }
}

impl<S: Disk> ReplicaCore<S> {
    /// Refuses what comes too late, and what would lower a fence.
    pub(super) fn check_fence(&mut self, r: &ClientRequest) -> Result<(), Errno> {
        match &r.fop {
            Fop::SetXattr { gfid, name, value, .. } if name.as_ref() == XATTR_FENCE => {
                let token = parse(value).filter(|&token| token != 0).ok_or(Errno::EINVAL)?;
                if token < self.fence(*gfid)? { Err(Errno::ESTALE) } else { Ok(()) }
            }
            Fop::RemoveXattr { name, .. } if name.as_ref() == XATTR_FENCE => Err(Errno::EPERM),
            fop if r.fence != 0 => match file_of(fop) {
                Some(gfid) if self.fence(gfid)? > r.fence => Err(Errno::ESTALE),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// The file's fence; 0 where it has none, or where there is no such file: the operation itself finds that out.
    fn fence(&mut self, gfid: Gfid) -> Result<u64, Errno> {
        match self.store.query(&Fop::GetXattr { gfid, name: Bytes::from_static(XATTR_FENCE) }) {
            Ok(Reply::Data(value)) => Ok(parse(&value).unwrap_or(0)),
            Ok(_) | Err(Errno::ENODATA | Errno::ENOENT) => Ok(0),
            Err(e) => Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_is_a_plain_number() {
        assert_eq!((parse(b"0"), parse(b"18446744073709551615")), (Some(0), Some(u64::MAX)));
        for wrong in [&b""[..], b"-1", b"+1", b" 1", b"1\n", b"0x1", b"18446744073709551616", b"000000000000000000001"] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }
}
