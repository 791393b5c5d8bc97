//! An S3 server on loopback that can misbehave on demand.
//!
//! Real signatures (Signature V4, body hashes checked), real HTTP on a real socket, objects as files in a directory, so
//! another process sees them and a restarted server finds them again. Create-if-absent is atomic, which plain `s3s-fs`
//! leaves out. The server runs on threads of its own and stops when [`S3Server`] is dropped.

mod faults;
mod objects;

use std::{
    convert::Infallible,
    io,
    net::{Ipv4Addr, TcpListener},
    path::Path,
    sync::Arc,
    thread::JoinHandle,
};

use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use s3s::{
    HttpRequest,
    auth::SimpleAuth,
    service::{S3Service, S3ServiceBuilder},
};
use tokio::sync::oneshot;

pub use self::faults::{Faults, Requests};
use self::objects::Objects;

/// What a server is started with.
#[derive(Clone, Debug)]
pub struct S3Options {
    /// Where to listen.
    pub address: Ipv4Addr,
    /// Port there; 0 takes a free one.
    pub port: u16,
    /// A bucket to make if it is not there.
    pub bucket: String,
    /// The only access key that is let in.
    pub access_key: String,
    /// The secret that goes with it.
    pub secret_key: String,
}

impl Default for S3Options {
    fn default() -> Self {
        Self {
            address: Ipv4Addr::LOCALHOST,
            port: 0,
            bucket: "checkpoints".to_owned(),
            access_key: "harness".to_owned(),
            secret_key: "harness-secret-key".to_owned(),
        }
    }
}

/// A running server; stops when dropped.
#[derive(Debug)]
pub struct S3Server {
    /// `http://address:port`.
    pub endpoint: String,
    /// The bucket that exists.
    pub bucket: String,
    /// The access key that is let in.
    pub access_key: String,
    /// The secret that goes with it.
    pub secret_key: String,
    /// How to make it misbehave, and what it was asked.
    pub faults: Arc<Faults>,
    stop: Option<oneshot::Sender<Infallible>>,
    thread: Option<JoinHandle<()>>,
}

impl S3Server {
    /// Starts a server whose buckets are the directories in `directory`. Returns when it accepts connections.
    ///
    /// # Errors
    /// When the port is taken or the directory cannot be used.
    pub fn start(directory: &Path, options: S3Options) -> io::Result<Self> {
        std::fs::create_dir_all(directory.join(&options.bucket))?;
        let faults = Arc::new(Faults::default());
        let objects = Objects::new(directory, Arc::clone(&faults))?;
        let mut service = S3ServiceBuilder::new(objects);
        service.set_auth(SimpleAuth::from_single(&*options.access_key, &*options.secret_key));
        let service = service.build();
        let listener = TcpListener::bind((options.address, options.port))?;
        listener.set_nonblocking(true)?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let shared = Arc::clone(&faults);
        let thread = std::thread::Builder::new().name("s3-server".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    () = serve(listener, service, shared) => {}
                }
            });
            // Connections that are still open are cut.
            runtime.shutdown_background();
        })?;
        Ok(Self {
            endpoint,
            bucket: options.bucket,
            access_key: options.access_key,
            secret_key: options.secret_key,
            faults,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// The address of the bucket, or of `prefix` in it, as `--store` takes it; without the keys.
    pub fn url(&self, prefix: &str) -> String {
        format!("s3://{}/{prefix}?endpoint={}&region=us-east-1&path-style=true", self.bucket, self.endpoint)
    }

    /// Serves until the process ends.
    pub fn wait(mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(listener: TcpListener, service: S3Service, faults: Arc<Faults>) {
    // Fails only outside a runtime.
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    loop {
        // Out of descriptors, or a client that went away: others may still come.
        let Ok((socket, _)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            continue;
        };
        // Otherwise every small answer waits 40 ms for the client's acknowledgement.
        let _ = socket.set_nodelay(true);
        let (service, faults) = (service.clone(), Arc::clone(&faults));
        let answer = service_fn(move |request: Request<Incoming>| {
            let (service, faults) = (service.clone(), Arc::clone(&faults));
            async move { faults.around(request.map(Into::into), |request| call(service, request)).await }
        });
        // A connection's end, also by our own cut, is nobody's error.
        tokio::spawn(async move {
            drop(http1::Builder::new().serve_connection(TokioIo::new(socket), answer).await)
        });
    }
}

async fn call(service: S3Service, request: HttpRequest) -> io::Result<s3s::HttpResponse> {
    service.call(request).await.map_err(|error| io::Error::other(format!("{error:?}")))
}
