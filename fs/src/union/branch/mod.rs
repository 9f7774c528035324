//! A branch of a union.

/// A directory tree that a union stacks.
pub trait Branch: Send + Sync + std::fmt::Debug {}
