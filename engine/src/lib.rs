//! io_uring, the log, Raft and the key-value store. No sockets, no FUSE.

pub mod io;
pub mod kv;
pub mod member;
pub mod raft;
mod shared;
pub mod types;
pub mod wal;
