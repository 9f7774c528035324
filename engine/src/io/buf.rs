//! Buffers whose start is aligned for `O_DIRECT`.

/// Alignment and granularity of log writes. A multiple of every logical block size in use; part of the
/// log's format.
pub const BLOCK_BYTES: usize = 4096;

/// A byte buffer whose first byte lies on a [`BLOCK_BYTES`] boundary.
///
/// Made without `unsafe`: a vector with one block to spare, used from its first aligned byte. The
/// vector is never grown in place, so the alignment holds for as long as it lives.
#[derive(Default)]
pub struct AlignedBuf {
    storage: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuf {
    /// An empty buffer that takes `capacity` bytes without growing.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        let capacity = capacity.next_multiple_of(BLOCK_BYTES);
        let storage = vec![0_u8; capacity + BLOCK_BYTES];
        let start = storage.as_ptr().align_offset(BLOCK_BYTES);
        assert!(start < BLOCK_BYTES, "align_offset of a byte pointer is below the alignment");
        Self { storage, start, len: 0 }
    }

    /// A buffer of `len` zeros.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        let mut buf = Self::with_capacity(len);
        buf.len = len;
        buf
    }

    /// Bytes in use.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether no byte is in use.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that fit without growing.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.storage.len().saturating_sub(BLOCK_BYTES)
    }

    /// Forgets the content, keeps the memory.
    pub const fn clear(&mut self) {
        self.len = 0;
    }

    /// Makes room for `more` bytes, moving to a larger allocation when needed.
    pub fn reserve(&mut self, more: usize) {
        let need = self.len + more;
        if need > self.capacity() {
            let mut bigger = Self::with_capacity(need.max(self.capacity() * 2));
            bigger.storage[bigger.start..bigger.start + self.len].copy_from_slice(self.as_slice());
            bigger.len = self.len;
            *self = bigger;
        }
    }

    /// Appends `bytes`.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len());
        let at = self.start + self.len;
        self.storage[at..at + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Appends zeros up to the next multiple of [`BLOCK_BYTES`].
    pub fn pad_to_block(&mut self) {
        let padded = self.len.next_multiple_of(BLOCK_BYTES);
        self.reserve(padded - self.len);
        let at = self.start + self.len;
        self.storage[at..self.start + padded].fill(0);
        self.len = padded;
    }

    /// The content.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.storage[self.start..self.start + self.len]
    }

    /// The content, to change it in place.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.storage[self.start..self.start + self.len]
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuf({} of {} bytes)", self.len, self.capacity())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_aligned_while_it_grows_and_pads_with_zeros() {
        let mut buf = AlignedBuf::default();
        for i in 0..10_000_usize {
            buf.extend(&[u8::try_from(i % 251).unwrap(); 7]);
        }
        assert_eq!(buf.as_slice().as_ptr().align_offset(BLOCK_BYTES), 0);
        assert_eq!(buf.as_slice()[7 * 9_999], (9_999_usize % 251) as u8);
        buf.clear();
        buf.extend(b"x");
        buf.pad_to_block();
        assert_eq!(buf.len(), BLOCK_BYTES);
        assert!(buf.as_slice()[1..].iter().all(|b| *b == 0), "stale bytes in the padding");
    }
}
