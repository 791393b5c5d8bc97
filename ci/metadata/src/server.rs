//! The listener, and which cloud a request is meant for.

use std::{io, net::SocketAddr, ops::Deref, time::Duration};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{Request, StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpListener,
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep, timeout_at},
};

use crate::{
    control,
    fault::{Fault, GARBAGE},
    gcp::Answer,
    reply::{Reply, not_found, ok, text},
    state::{Cloud, Control},
};

/// Longest request taken, in bytes.
const LONGEST: usize = 64 << 10;

/// How long to wait when the address cannot be had again after it was given up.
const PAUSE: Duration = Duration::from_millis(20);

/// A metadata service. It serves until it is dropped.
#[derive(Debug)]
pub struct MetadataServer {
    control: Control,
    address: SocketAddr,
    serving: JoinHandle<()>,
}

impl MetadataServer {
    /// Serves at an address; with port 0 at a free one.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub async fn start(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let control = Control::new();
        let serving = tokio::spawn(serve(listener, address, control.clone()));
        Ok(Self { control, address, serving })
    }

    /// Where it serves: `http://127.0.0.1:1338`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Deref for MetadataServer {
    type Target = Control;

    fn deref(&self) -> &Control {
        &self.control
    }
}

impl Drop for MetadataServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(listener: TcpListener, address: SocketAddr, control: Control) {
    let mut changes = control.changed();
    let mut listener = Some(listener);
    // Connections end with this.
    let mut connections = JoinSet::new();
    loop {
        changes.mark_unchanged();
        if control.lock().fault == Some(Fault::Down) {
            listener = None;
            connections.shutdown().await;
            // The sender lives in `control`.
            let _ = changes.changed().await;
            continue;
        }
        let Some(open) = &listener else {
            match TcpListener::bind(address).await {
                Ok(again) => listener = Some(again),
                Err(_) => sleep(PAUSE).await,
            }
            continue;
        };
        tokio::select! {
            accepted = open.accept() => match accepted {
                Ok((stream, _)) => {
                    let _ = stream.set_nodelay(true);
                    let control = control.clone();
                    connections.spawn(async move {
                        let service = service_fn(move |request| answer(request, control.clone()));
                        // A client that goes away is its own business.
                        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                    });
                }
                Err(_) => sleep(PAUSE).await,
            },
            _ = changes.changed() => {}
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn answer(request: Request<Incoming>, control: Control) -> io::Result<Reply> {
    let (head, body) = request.into_parts();
    if head.uri.path().starts_with("/control/") {
        return Ok(control::answer(&control, &head.method, &head.uri));
    }
    let body =
        http_body_util::Limited::new(body, LONGEST).collect().await.map_err(io::Error::other)?.to_bytes();
    let name = format!("{} {}", head.method, head.uri.path());
    let fault = control.lock().fault;
    let reply = match fault {
        Some(Fault::Drop) => {
            control.note(&name, 0);
            return Err(io::Error::other("no answer is what was asked for"));
        }
        Some(Fault::Silent) => {
            control.note(&name, 0);
            std::future::pending().await
        }
        Some(Fault::Garbage) => ok(GARBAGE),
        Some(Fault::Status(status)) => text(status, ""),
        Some(Fault::Slow(time)) => {
            sleep(time).await;
            cloud(&head, &body, &control).await
        }
        Some(Fault::Down) | None => cloud(&head, &body, &control).await,
    };
    control.note(&name, reply.status().as_u16());
    Ok(reply)
}

async fn cloud(head: &hyper::http::request::Parts, body: &Bytes, control: &Control) -> Reply {
    let path = head.uri.path();
    let cloud = match path {
        _ if path.starts_with("/latest/") => Cloud::Aws,
        _ if path == "/" || path.starts_with("/computeMetadata/") => Cloud::Gcp,
        _ if path.starts_with("/metadata/") => Cloud::Azure,
        _ => return not_found(),
    };
    if !control.lock().clouds.contains(&cloud) {
        return not_found();
    }
    match cloud {
        Cloud::Aws => control.lock().aws.answer(&head.method, path, &head.headers),
        Cloud::Azure => control.lock().azure.answer(&head.method, &head.uri, &head.headers, body),
        Cloud::Gcp => hanging(head, control).await,
    }
}

/// A request that may wait for a change.
async fn hanging(head: &hyper::http::request::Parts, control: &Control) -> Reply {
    let begun = Instant::now();
    let mut changes = control.changed();
    let mut waited_for: Option<String> = None;
    loop {
        changes.mark_unchanged();
        // A fault that begins meanwhile is met by the next request.
        let answer = control.lock().gcp.answer(&head.uri, &head.headers);
        let (tag, patience, present) = match answer {
            Answer::Now(reply) => return reply,
            Answer::Wait(tag, patience, present) => (tag, patience, present),
        };
        // Without `last_etag` it is the value of the beginning that is waited on.
        if waited_for.get_or_insert_with(|| tag.clone()) != &tag {
            return present;
        }
        let Some(end) = begun.checked_add(patience) else {
            return text(StatusCode::BAD_REQUEST, "timeout_sec is too long\n");
        };
        if timeout_at(end, changes.changed()).await.is_err() {
            return present;
        }
    }
}
