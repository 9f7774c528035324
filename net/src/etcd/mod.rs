//! etcd.
pub mod pb;
