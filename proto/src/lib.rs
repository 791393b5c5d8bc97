//! Wire and storage contracts, and nothing else: CRIU's RPC, the CRIU images the project reads or writes, and the
//! checkpoint manifest. The types are generated from `proto/*.proto` at build time.

/// CRIU's RPC over a `swrk` socket and the entries of CRIU's image files.
#[allow(missing_docs, clippy::all)]
pub mod criu {
    /// Requests and responses of `criu swrk`.
    pub mod rpc {
        include!(concat!(env!("OUT_DIR"), "/criu.rpc.rs"));
    }
    /// Entries of image files.
    pub mod images {
        include!(concat!(env!("OUT_DIR"), "/criu.images.rs"));
    }
}

/// The checkpoint manifest, version 1.
#[allow(missing_docs, clippy::all)]
pub mod checkpoint {
    include!(concat!(env!("OUT_DIR"), "/migration.checkpoint.v1.rs"));
}

/// The agent's gRPC API, version 1.
#[cfg(feature = "agent")]
#[allow(missing_docs, clippy::all)]
pub mod agent {
    include!(concat!(env!("OUT_DIR"), "/migration.agent.v1.rs"));

    /// The API's description, as reflection serves it.
    pub const DESCRIPTION: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/agent.bin"));
}
