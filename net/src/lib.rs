//! Frames, peer transport, brick RPC and the etcd gRPC services. No files.

pub mod client;
pub mod frame;
pub mod link;
pub mod server;
//! net

pub mod etcd;
