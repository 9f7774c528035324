//! Compiles `proto/*.proto` to Rust without a system `protoc`.

use prost::Message as _;
use std::error::Error;
use std::path::PathBuf;

/// Everything the client-facing port speaks.
const PROTOS: [&str; 4] = ["rpc.proto", "v3lock.proto", "v3election.proto", "health.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=build.rs");
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    // What the JSON gateway maps by.
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    let mut methods = String::new();
    for file in &descriptors.file {
        for service in &file.service {
            for method in &service.method {
                let path = format!("{}.{}", file.package(), service.name());
                let streams = (method.client_streaming(), method.server_streaming());
                methods += &format!("({path:?}, {:?}, {}, {}),\n", method.name(), streams.0, streams.1);
            }
        }
    }
    std::fs::write(out.join("methods.rs"), format!("&[{methods}]"))?;
    tonic_prost_build::configure()
        // Keys and values stay slices of the received frame: no copy between socket and log.
        .bytes(".")
        .build_transport(false)
        .codec_path("crate::etcd::codec::Codec")
        .compile_fds(descriptors)?;
    Ok(())
}
