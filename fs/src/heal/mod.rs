//! Heal: one mechanism that makes one brick equal to another, for whatever reason they differ.
//!
//! The primary (or whoever holds the right copy) runs a [`Healer`] against its own store and, by messages, against the
//! other brick, which answers each [`HealCall`] with [`execute`]. Nothing here knows sockets, clocks or threads, save
//! the hasher, which is an edge.

mod calls;
mod changes;
mod cx;
mod execute;
mod healer;
mod loss;
mod object;
pub mod scrub;
mod store;
mod task;
#[cfg(test)]
mod tests;
mod tree;
mod wire;
mod work;

pub use calls::{
    CALL_BYTES_MAX, CHUNK_BYTES, ENTRIES_MAX, ExactAttr, HealCall, HealResult, HealReturn, NameEntry, OBJECTS_MAX, ObjectInfo,
    Place, STRANGER, SUM_BYTES_MAX, Signature,
};
pub use changes::{ChangeLimits, ChangeSet};
pub use execute::{BATCH_CALLS_MAX, execute, xattr_sum};
pub use healer::{Direction, HealItem, HealPlan, Healer, Progress, Step, heal_objects};
pub use loss::Loss;
pub use store::HealStore;
pub use wire::{SPREAD_MAX, Side, WINDOW_MAX};
