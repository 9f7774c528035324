//! Decoding without copies: byte strings in a decoded value are slices of what it was decoded from.
//!
//! serde hands a deserializer's borrowed bytes to visitors, which cannot know the buffer that they lie in. So
//! [`decode`] notes it for the time of the call, and the fields that are marked with [`bytes`] look there.

use bytes::Bytes;
use serde::de::{DeserializeOwned, Deserializer, Error, SeqAccess, Visitor};
use std::cell::RefCell;
use std::fmt;

thread_local! {
    static SOURCE: RefCell<Option<Bytes>> = const { RefCell::new(None) };
}

/// Puts the source back that was there before, also when decoding panics.
struct Restore(Option<Bytes>);

impl Drop for Restore {
    fn drop(&mut self) {
        let before = self.0.take();
        SOURCE.with(|source| source.replace(before));
    }
}

/// Decodes postcard. The value keeps `source` alive as long as one of its marked byte strings lives.
///
/// # Errors
/// When the bytes are no such value.
pub(crate) fn decode<T: DeserializeOwned>(source: &Bytes) -> Result<T, postcard::Error> {
    let _restore = Restore(SOURCE.with(|s| s.replace(Some(source.clone()))));
    postcard::from_bytes(source)
}

/// The slice of the noted source that `bytes` is, if it is one.
fn slice_of_source(bytes: &[u8]) -> Option<Bytes> {
    SOURCE.with(|source| {
        let source = source.borrow();
        let source = source.as_ref()?;
        let at = (bytes.as_ptr() as usize).checked_sub(source.as_ptr() as usize)?;
        (at + bytes.len() <= source.len()).then(|| source.slice(at..at + bytes.len()))
    })
}

struct SharedVisitor;

impl<'de> Visitor<'de> for SharedVisitor {
    type Value = Bytes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a byte string")
    }

    fn visit_borrowed_bytes<E: Error>(self, bytes: &'de [u8]) -> Result<Bytes, E> {
        Ok(slice_of_source(bytes).unwrap_or_else(|| Bytes::copy_from_slice(bytes)))
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
        Ok(Bytes::copy_from_slice(bytes))
    }

    fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Bytes, E> {
        Ok(bytes.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Bytes, A::Error> {
        let mut bytes = Vec::new();
        while let Some(byte) = seq.next_element()? {
            bytes.push(byte);
        }
        Ok(bytes.into())
    }
}

/// For `#[serde(deserialize_with = "crate::shared::bytes")]`.
pub(crate) fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
    deserializer.deserialize_bytes(SharedVisitor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::{Deserialize, Serialize};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Two {
        #[serde(deserialize_with = "super::bytes")]
        shared: Bytes,
        copied: Bytes,
    }

    #[test]
    fn marked_fields_lie_in_the_source_and_others_do_not() {
        let value = Two { shared: Bytes::from_static(b"shared"), copied: Bytes::from_static(b"copied") };
        let source = Bytes::from(postcard::to_allocvec(&value).unwrap());
        let inside = |part: &Bytes| source.as_ptr_range().contains(&part.as_ptr());
        let found: Two = decode(&source).unwrap();
        assert_eq!(found, value);
        assert!(inside(&found.shared) && !inside(&found.copied));
        // Without a source it is copied, and a call leaves none behind.
        let found: Two = postcard::from_bytes(&source).unwrap();
        assert!(found == value && !inside(&found.shared));
        assert!(decode::<Two>(&source.slice(1..)).is_err() && slice_of_source(&source).is_none());
    }
}
