//! As much HTTP as asking a service for its state takes.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Longest wait for an answer: a process that is stopped takes connections and never answers.
const PATIENCE: Duration = Duration::from_secs(2);

/// Status and body of a GET; none when nobody answers in time.
pub async fn get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let answer = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head.split_whitespace().nth(1)?.parse().ok()?;
        Some((status, body.to_owned()))
    };
    tokio::time::timeout(PATIENCE, answer).await.ok()?
}
