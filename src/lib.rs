//! The pieces of the `brickraft` binary.

pub mod client;
pub mod management;
pub mod records;
pub mod wire;
