//! The generated messages, servers and clients of `proto/*.proto`.
#![allow(missing_docs, reason = "generated; the names are etcd's")]
#![allow(clippy::all, reason = "generated")]

pub mod mvccpb {
    tonic::include_proto!("mvccpb");
}
pub mod authpb {
    tonic::include_proto!("authpb");
}
pub mod etcdserverpb {
    tonic::include_proto!("etcdserverpb");
}
pub mod v3lockpb {
    tonic::include_proto!("v3lockpb");
}
pub mod v3electionpb {
    tonic::include_proto!("v3electionpb");
}
pub mod health {
    tonic::include_proto!("grpc.health.v1");
}

/// Every method: its service, its name, and whether client and server stream. (A server that is not asked for JSON never needs
/// [`descriptors`], which take a megabyte.)
pub const METHODS: &[(&str, &str, bool, bool)] = include!(concat!(env!("OUT_DIR"), "/methods.rs"));

/// All of them as descriptors.
pub fn descriptors() -> &'static prost_reflect::DescriptorPool {
    static POOL: std::sync::LazyLock<prost_reflect::DescriptorPool> = std::sync::LazyLock::new(|| {
        prost_reflect::DescriptorPool::decode(include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin")).as_slice())
            .expect("the build wrote them")
    });
    &POOL
}
