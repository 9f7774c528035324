//! The replication core of one brick, and the controller beside the Raft leader. Sans-io.

pub mod controller;
mod types;

pub use types::*;
