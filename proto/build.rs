//! Compiles the `.proto` files with protox, so that no `protoc` is needed on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = ["proto/criu_rpc.proto", "proto/criu_images.proto", "proto/checkpoint.proto"];
    let descriptors = protox::compile(files, ["proto"])?;
    // CRIU's own names are kept as they are in its RPC, so that its documentation can be searched for them.
    prost_build::Config::new().compile_fds(descriptors)?;
    #[cfg(feature = "agent")]
    agent()?;
    Ok(())
}

/// The agent's API, and its description for reflection.
#[cfg(feature = "agent")]
fn agent() -> Result<(), Box<dyn std::error::Error>> {
    use prost::Message;

    let descriptors = protox::compile(["proto/agent.proto"], ["proto"])?;
    let description = std::path::Path::new(&std::env::var("OUT_DIR")?).join("agent.bin");
    std::fs::write(description, descriptors.encode_to_vec())?;
    // What the agent keeps in its journal, and prints.
    let kept = [
        "Hook",
        "Command",
        "FileRules",
        "CheckpointResult",
        "RestoreResult",
        "HandoverResult",
        "Source",
        "ErrorDetail",
    ];
    // Pages are not copied on their way.
    let code = tonic_prost_build::configure().bytes(".migration.agent.v1.Frame");
    let code = kept.iter().fold(code, |code, name| {
        let path = format!(".migration.agent.v1.{name}");
        code.type_attribute(path, "#[derive(serde::Serialize, serde::Deserialize)]")
    });
    code.compile_fds(descriptors)?;
    Ok(())
}
