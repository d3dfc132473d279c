//! A server with handlers that do something, and clients to it.

#![allow(clippy::unwrap_used, dead_code, unreachable_pub, reason = "tests, which do not all use all of it")]

pub mod spdy;

use std::collections::HashMap;
use std::time::Duration;

use berth_streaming::{Server, Streaming, StreamingConfig};
use spdy::{Received, Wire};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// More than anything here takes.
pub const LONG: Duration = Duration::from_secs(20);

pub struct Node {
    pub streaming: Streaming,
    pub stop: CancellationToken,
    pub running: JoinHandle<()>,
}

impl Node {
    pub async fn start() -> Self {
        Self::with(StreamingConfig::default()).await
    }

    pub async fn with(config: StreamingConfig) -> Self {
        let (streaming, server): (Streaming, Server) = Streaming::start(config).await.unwrap();
        let stop = CancellationToken::new();
        let running = tokio::spawn(server.run(stop.clone()));
        Self { streaming, stop, running }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Sends a request by hand and returns the head of the answer, and the socket behind it.
pub async fn request(url: &str, method: &str, headers: &[(&str, &str)]) -> (String, TcpStream) {
    let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut socket = TcpStream::connect(host).await.unwrap();
    // As Go does.
    socket.set_nodelay(true).unwrap();
    let mut head = format!("{method} /{path} HTTP/1.1\r\nHost: {host}\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let byte = socket.read_u8().await.expect("an answer");
        answer.push(byte);
    }
    (String::from_utf8(answer).unwrap(), socket)
}

/// What came on one stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stream {
    pub bytes: Vec<u8>,
    pub replied: bool,
    pub finished: bool,
    pub reset: Option<u32>,
}

/// A client of SPDY that keeps all it receives.
pub struct Client {
    pub socket: TcpStream,
    pub wire: Wire,
    next: u32,
    input: Vec<u8>,
    pub streams: HashMap<u32, Stream>,
    pub pings: Vec<u32>,
    pub goaway: Option<(u32, u32)>,
    /// In the order they came: which streams finished.
    pub ends: Vec<u32>,
}

impl Client {
    pub async fn connect(url: &str, protocols: &str) -> Self {
        let headers =
            [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1"), ("X-Stream-Protocol-Version", protocols)];
        let (answer, socket) = request(url, "POST", &headers).await;
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        Self {
            socket,
            wire: Wire::new(),
            next: 1,
            input: Vec::new(),
            streams: HashMap::new(),
            pings: Vec::new(),
            goaway: None,
            ends: Vec::new(),
        }
    }

    pub async fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let id = self.next;
        self.next += 2;
        let frame = self.wire.syn_stream(id, headers, false);
        self.socket.write_all(&frame).await.unwrap();
        self.until(|client| client.streams.contains_key(&id)).await;
        id
    }

    /// Opens the streams of a command in the order that Go's client has.
    pub async fn command(&mut self, kinds: &[&str]) -> Vec<u32> {
        let mut ids = Vec::new();
        for kind in kinds {
            ids.push(self.open(&[("streamtype", kind)]).await);
        }
        ids
    }

    pub fn stream(&self, id: u32) -> Stream {
        self.streams.get(&id).cloned().unwrap_or_default()
    }

    pub fn is_finished(&self, id: u32) -> bool {
        self.streams.get(&id).is_some_and(|stream| stream.finished)
    }

    pub fn text(&self, id: u32) -> String {
        String::from_utf8_lossy(&self.stream(id).bytes).into_owned()
    }

    pub async fn send(&mut self, id: u32, payload: &[u8], fin: bool) {
        self.socket.write_all(&Wire::data(id, payload, fin)).await.unwrap();
    }

    /// Reads until `enough`.
    pub async fn until(&mut self, mut enough: impl FnMut(&Self) -> bool) {
        let deadline = tokio::time::Instant::now() + LONG;
        while !enough(self) {
            let read = tokio::time::timeout_at(deadline, self.socket.read_buf(&mut self.input)).await;
            let read = read.unwrap_or_else(|_| panic!("not in time: {:?}, {:?}", self.streams, self.ends));
            assert_ne!(read.unwrap(), 0, "the server closed: {:?}", self.streams);
            self.take();
        }
    }

    /// Reads until the server closes.
    pub async fn until_closed(&mut self) {
        loop {
            let read = tokio::time::timeout(LONG, self.socket.read_buf(&mut self.input)).await;
            if !matches!(read.expect("the server closes"), Ok(1..)) {
                return;
            }
            self.take();
        }
    }

    fn take(&mut self) {
        while let Some(frame) = self.wire.next(&mut self.input) {
            match frame {
                Received::Reply(id) => self.streams.entry(id).or_default().replied = true,
                Received::Data(id, bytes, fin) => {
                    let stream = self.streams.entry(id).or_default();
                    assert!(stream.replied, "data before the reply");
                    assert!(!stream.finished, "data after the end");
                    stream.bytes.extend(bytes);
                    if fin {
                        stream.finished = true;
                        self.ends.push(id);
                    }
                }
                Received::Reset(id, status) => self.streams.entry(id).or_default().reset = Some(status),
                Received::Ping(id) => self.pings.push(id),
                Received::Settings => {}
                Received::GoAway(last, status) => self.goaway = Some((last, status)),
            }
        }
    }
}
