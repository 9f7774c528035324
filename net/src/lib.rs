//! Frames, peer transport, brick RPC and the etcd gRPC services. No files.

pub mod client;
pub mod duration;
pub mod etcd;
pub mod frame;
pub mod link;
pub mod peers;
pub mod server;
pub mod stream;
pub mod tls;
pub mod traffic;
