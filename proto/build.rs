//! Compiles the `.proto` files with protox, so that no `protoc` is needed on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = ["proto/criu_rpc.proto", "proto/criu_images.proto", "proto/checkpoint.proto"];
    let descriptors = protox::compile(files, ["proto"])?;
    // CRIU's own names are kept as they are in its RPC, so that its documentation can be searched for them.
    prost_build::Config::new().compile_fds(descriptors)?;
    Ok(())
}
