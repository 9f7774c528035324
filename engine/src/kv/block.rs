//! Blocks: many small records under one key of the file.
//!
//! A record of its own costs the tree a descent and its share of a page each; a hundred of them in a block
//! cost little more than one. History and index are written in order and read in order, so they are kept so; living keys
//! lie in smaller blocks (`current.rs`).

use super::codec::{Fields, damaged};
use super::error::StoreError;

/// A block of the index is closed before it grows beyond this; a larger record stands alone.
pub(super) const BLOCK_BYTES_MAX: usize = 16 * 1024;
/// The same, so that tests have many blocks.
const CLOSE_BYTES: usize = if cfg!(test) { 1000 } else { BLOCK_BYTES_MAX };
/// What a record takes besides key and value.
pub(super) const RECORD_HEADER_LEN: usize = 8;

/// Adds a record: lengths, key, value.
pub(super) fn push(block: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    begin(block, key, value.len());
    block.extend_from_slice(value);
}

/// Adds a record but for its value, which the caller adds.
pub(super) fn begin(block: &mut Vec<u8>, key: &[u8], value_len: usize) {
    for len in [key.len(), value_len] {
        block.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
    }
    block.extend_from_slice(key);
}

/// Whether a block has room for a record.
pub(super) fn has_room(block: &[u8], key: &[u8], value: &[u8]) -> bool {
    block.is_empty() || block.len() + RECORD_HEADER_LEN + key.len() + value.len() <= CLOSE_BYTES
}

/// Takes the first record off a block; `None` at its end.
pub(super) fn next<'b>(table: &'static str, block: &mut &'b [u8]) -> Result<Option<(&'b [u8], &'b [u8])>, StoreError> {
    if block.is_empty() {
        return Ok(None);
    }
    let mut parse = || {
        let mut fields = Fields(block);
        let (key_len, value_len) = (usize::try_from(fields.u32()?).ok()?, usize::try_from(fields.u32()?).ok()?);
        let (key, rest) = fields.0.split_at_checked(key_len)?;
        let (value, rest) = rest.split_at_checked(value_len)?;
        *block = rest;
        Some((key, value))
    };
    parse().map(Some).ok_or_else(|| damaged(table, "block", block))
}

/// The key of a block's first record; the block has one.
pub(super) fn first_key<'b>(table: &'static str, mut block: &'b [u8]) -> Result<&'b [u8], StoreError> {
    next(table, &mut block)?.map(|(key, _)| key).ok_or_else(|| damaged(table, "block", block))
}

/// All records of a block.
pub(super) fn records<'b>(table: &'static str, mut block: &'b [u8]) -> impl Iterator<Item = Result<(&'b [u8], &'b [u8]), StoreError>> {
    std::iter::from_fn(move || match next(table, &mut block) {
        Ok(record) => record.map(Ok),
        Err(error) => {
            block = &[];
            Some(Err(error))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_give_back_what_was_put_in_and_refuse_what_is_cut() {
        let mut block = Vec::new();
        let pairs: [(&[u8], &[u8]); 3] = [(b"a", b"1"), (b"", b""), (b"key", &[7; 300])];
        for (key, value) in pairs {
            assert!(has_room(&block, key, value));
            push(&mut block, key, value);
        }
        let found: Vec<_> = records("log", &block).collect::<Result<_, _>>().unwrap();
        assert_eq!(found, pairs);
        for cut in 1..block.len() {
            let whole = [10, 18].contains(&cut);
            assert_eq!(records("log", &block[..cut]).all(|record| record.is_ok()), whole, "{cut}");
        }
        assert!(!has_room(&block, b"", &[0; CLOSE_BYTES]) && has_room(&[], b"", &[0; CLOSE_BYTES]));
    }
}
