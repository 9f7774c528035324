//! The multi-version key-value store.

pub mod types;
