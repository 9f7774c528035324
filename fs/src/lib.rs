//! File operations, the brick store, replication, heal and the FUSE session. No sockets.

pub mod fop;
pub mod store;
pub mod fuse;
pub mod volume;
pub mod heal;
pub mod replica;
mod roam;
pub mod union;
