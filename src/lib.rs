//! The pieces of the `brickraft` binary.

pub mod client;
pub mod management;
pub mod node;
pub mod records;
pub mod wire;
