//! Compiles `ampoule/v1/*.proto` without `protoc`: protox parses, prost-build and tonic write the code.

use prost::Message as _;
use std::error::Error;
use std::path::PathBuf;

const FILES: &[&str] = &[
    "ampoule/v1/content_service.proto",
    "ampoule/v1/host_service.proto",
    "ampoule/v1/job.proto",
    "ampoule/v1/job_service.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    // Ordered maps: a message has one spelling, whatever the process.
    let mut config = tonic_prost_build::Config::new();
    config.btree_map(["."]);
    tonic_prost_build::configure().compile_fds_with_config(descriptors, config)?;
    Ok(())
}
