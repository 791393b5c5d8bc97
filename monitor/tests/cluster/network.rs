//! A network that can swallow everything: connections stay, new ones are taken, and nothing comes through.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    sync::watch,
    task::JoinHandle,
};

pub struct Network {
    pub address: SocketAddr,
    swallows: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Drop for Network {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Network {
    /// In front of `target`.
    pub async fn to(target: &str) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let (address, target) = (listener.local_addr().unwrap(), target.to_owned());
        let (swallows, swallowed) = watch::channel(false);
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (far, swallowed) = (TcpStream::connect(&target).await, swallowed.clone());
                let Ok(far) = far else { continue };
                let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                tokio::spawn(carry(near_in, far_out, swallowed.clone()));
                tokio::spawn(carry(far_in, near_out, swallowed));
            }
        });
        Self { address, swallows, task }
    }

    /// Swallows everything from now on, or nothing any more. What was swallowed is gone, and with it the connection.
    pub fn swallow(&self, swallow: bool) {
        self.swallows.send_replace(swallow);
    }
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, swallows: watch::Receiver<bool>) {
    let mut buffer = vec![0; 64 << 10];
    let mut broken = false;
    while let Ok(length) = from.read(&mut buffer).await {
        broken |= *swallows.borrow();
        if length == 0 || (!broken && to.write_all(&buffer[..length]).await.is_err()) {
            return;
        }
    }
}
