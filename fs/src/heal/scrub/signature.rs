//! The signature's bytes: the value of the extended attribute `trusted.brickraft.sum`.

use crate::fop::TimeSpec;
use crate::heal::Signature;

/// Version of the encoding, its first byte.
pub const SIGNATURE_VERSION: u8 = 1;
/// Length of the encoding.
pub const SIGNATURE_BYTES: usize = 37;

/// The attribute's value: version, sum (16 bytes, big endian as xxHash's canonical form), size (8), mtime's seconds (8) and
/// nanoseconds (4), these little endian.
#[must_use]
pub fn encode(s: &Signature) -> [u8; SIGNATURE_BYTES] {
    let mut out = [0; SIGNATURE_BYTES];
    out[0] = SIGNATURE_VERSION;
    out[1..17].copy_from_slice(&s.sum.to_be_bytes());
    out[17..25].copy_from_slice(&s.size.to_le_bytes());
    out[25..33].copy_from_slice(&s.mtime.sec.to_le_bytes());
    out[33..37].copy_from_slice(&s.mtime.nsec.to_le_bytes());
    out
}

/// Reads a value; `None` when it is not one of ours: then the object counts as unsigned.
#[must_use]
pub fn decode(value: &[u8]) -> Option<Signature> {
    let value: &[u8; SIGNATURE_BYTES] = value.try_into().ok()?;
    let part = |from: usize, to: usize| &value[from..to];
    let nsec = u32::from_le_bytes(part(33, 37).try_into().ok()?);
    (value[0] == SIGNATURE_VERSION && nsec < 1_000_000_000).then_some(())?;
    Some(Signature {
        sum: u128::from_be_bytes(part(1, 17).try_into().ok()?),
        size: u64::from_le_bytes(part(17, 25).try_into().ok()?),
        mtime: TimeSpec { sec: i64::from_le_bytes(part(25, 33).try_into().ok()?), nsec },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_the_trip_and_refuses_the_rest() {
        let s = Signature { sum: 0x0102, size: 7, mtime: TimeSpec { sec: -3, nsec: 999_999_999 } };
        let bytes = encode(&s);
        assert_eq!(decode(&bytes), Some(s));
        assert_eq!(decode(&bytes[1..]), None);
        let mut other = bytes;
        other[0] = 2;
        assert_eq!(decode(&other), None);
        let mut bad_time = bytes;
        bad_time[33..].fill(0xff);
        assert_eq!(decode(&bad_time), None);
    }
}
