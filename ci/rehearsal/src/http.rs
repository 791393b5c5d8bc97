//! As much of HTTP as it takes to store something under a path and to get it back.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use crate::Failure;

/// How long an answer may take; pages may have to come from the store for it.
const ANSWER: Duration = Duration::from_secs(60);

/// What is there.
pub fn get(address: SocketAddr, path: &str) -> Result<Vec<u8>, Failure> {
    request(address, "GET", path, &[])
}

/// Stores something.
pub fn put(address: SocketAddr, path: &str, body: &[u8]) -> Result<(), Failure> {
    request(address, "PUT", path, body).map(drop)
}

fn request(address: SocketAddr, method: &str, path: &str, body: &[u8]) -> Result<Vec<u8>, Failure> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    let head = format!(
        "{method} {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").ok_or("this is not HTTP")?;
    let status = String::from_utf8_lossy(&answer[..end]).lines().next().unwrap_or_default().to_owned();
    match status.split(' ').nth(1) {
        Some(code) if code.starts_with('2') => Ok(answer.split_off(end + 4)),
        _ => Err(format!("{method} {path}: {status}").into()),
    }
}
