//! What a signature sums: an object's content, in one number.

use crate::heal::{CHUNK_BYTES, NameEntry};
use std::collections::BTreeMap;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// Sums a file's content, chunk after chunk: xxh3-128 over the number (8 bytes, little endian) and the xxh3-128 (16 bytes,
/// big endian) of each chunk that is not all zeros. So holes cost nothing, and the parts can come from anywhere.
#[derive(Default)]
pub struct ContentSum(Option<Box<Xxh3>>);

impl ContentSum {
    /// The next chunk, in ascending order.
    pub fn chunk(&mut self, number: u64, sum: u128) {
        let hash = self.0.get_or_insert_default();
        hash.update(&number.to_le_bytes());
        hash.update(&sum.to_be_bytes());
    }

    /// The bytes of the next chunks; `offset` is a multiple of the chunk size, and only the last chunk of a file is short.
    pub fn bytes(&mut self, offset: u64, data: &[u8]) {
        for (number, chunk) in (offset / CHUNK_BYTES..).zip(data.chunks(CHUNK_BYTES as usize)) {
            if let Some(sum) = chunk_sum(chunk) {
                self.chunk(number, sum);
            }
        }
    }

    /// The sum; 0 for a file of zeros.
    #[must_use]
    pub fn finish(self) -> u128 {
        self.0.map_or(0, |h| h.digest128())
    }
}

/// A chunk's sum; `None` when it is all zeros.
#[must_use]
pub fn chunk_sum(data: &[u8]) -> Option<u128> {
    data.iter().any(|b| *b != 0).then(|| xxh3_128(data))
}

/// Sums a directory's names: xxh3-128 over each name's length (4 bytes, little endian), name and gfid, in byte order.
#[must_use]
pub fn names_sum(names: &BTreeMap<bytes::Bytes, NameEntry>) -> u128 {
    let mut hash = Xxh3::new();
    for (name, entry) in names {
        hash.update(&u32::try_from(name.len()).unwrap_or(u32::MAX).to_le_bytes());
        hash.update(name);
        hash.update(&entry.gfid.0);
    }
    hash.digest128()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hole_and_zeros_are_the_same_content() {
        let chunk = CHUNK_BYTES as usize;
        let mut data = vec![0; 3 * chunk];
        data[2 * chunk] = 1;
        let (mut whole, mut parts) = (ContentSum::default(), ContentSum::default());
        whole.bytes(0, &data);
        parts.chunk(2, xxh3_128(&data[2 * chunk..]));
        assert_eq!(whole.finish(), parts.finish());
        let mut zeros = ContentSum::default();
        zeros.bytes(0, &vec![0; 5000]);
        assert_eq!(zeros.finish(), ContentSum::default().finish());
    }
}
