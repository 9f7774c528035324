//! The pieces of the `brickraft` binary.

pub mod cli;
pub mod client;
pub mod dev;
pub mod management;
pub mod node;
pub mod records;
pub mod signals;
pub mod wire;
