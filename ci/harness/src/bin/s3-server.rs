//! An S3 server for demonstrations and tests: `s3-server --dir DIR [--address A] [--port N] [--bucket NAME]`.
//!
//! Prints one line of JSON with `endpoint`, `bucket`, `access_key` and `secret_key` once it accepts connections, and
//! serves until it is killed.

use std::{io, io::Write, net::Ipv4Addr, path::PathBuf};

use clap::Parser;
use migration_harness::s3::{S3Options, S3Server};
use serde_json::json;

/// An S3 server whose buckets are directories.
#[derive(Parser)]
struct Arguments {
    /// Where the buckets are.
    #[arg(long)]
    dir: PathBuf,
    /// The port there; a free one if 0.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Where to listen.
    #[arg(long, default_value_t = Ipv4Addr::LOCALHOST)]
    address: Ipv4Addr,
    /// The bucket to make if it is not there.
    #[arg(long)]
    bucket: Option<String>,
}

fn main() -> io::Result<()> {
    let arguments = Arguments::parse();
    let mut options = S3Options { address: arguments.address, port: arguments.port, ..S3Options::default() };
    if let Some(bucket) = arguments.bucket {
        options.bucket = bucket;
    }
    let server = S3Server::start(&arguments.dir, options)?;
    let ready = json!({
        "endpoint": server.endpoint,
        "bucket": server.bucket,
        "access_key": server.access_key,
        "secret_key": server.secret_key,
    });
    writeln!(io::stdout(), "{ready}")?;
    io::stdout().flush()?;
    server.wait();
    Ok(())
}
