//! How fast bytes move, over the loopback:
//! `cargo test --release -p berth-streaming --test throughput -- --ignored --nocapture`

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::Instant;

use berth_streaming::{ExecOutcome, RemoteStreams, StreamOptions};
use support::spdy::Wire;
use support::{Client, Node};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const LENGTH: usize = 1 << 30;

fn report(what: &str, begun: Instant) {
    eprintln!("{what}: {:.0} MB/s", LENGTH as f64 / 1e6 / begun.elapsed().as_secs_f64());
}

/// Reads until the server says goodbye, with as little work as a client can.
async fn drain(socket: &mut TcpStream) -> usize {
    let mut buffer = vec![0; 256 * 1024];
    let mut read = 0;
    loop {
        let length = socket.read(&mut buffer).await.unwrap();
        read += length;
        // GOAWAY is the last frame, and 16 bytes.
        if length >= 16 && buffer[length - 16..length - 12] == [0x80, 3, 0, 7] || length == 0 {
            return read;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn spdy() {
    let node = Node::start().await;
    let options = StreamOptions { stdin: true, stdout: true, ..StreamOptions::default() };
    let url = node
        .streaming
        .exec(options, async |mut streams: RemoteStreams| {
            let mut stdout = streams.stdout.take().unwrap();
            let block = vec![7; 64 * 1024];
            for _ in 0..LENGTH / block.len() {
                stdout.write_all(&block).await.unwrap();
            }
            ExecOutcome::Exited(0)
        })
        .unwrap();
    let mut client = Client::connect(&url, "v4.channel.k8s.io").await;
    let begun = Instant::now();
    client.command(&["error", "stdin", "stdout"]).await;
    assert!(drain(&mut client.socket).await > LENGTH - (1 << 20));
    report("output", begun);

    let url = node
        .streaming
        .exec(options, async |mut streams: RemoteStreams| {
            let mut stdin = streams.stdin.take().unwrap();
            let mut buffer = vec![0; 64 * 1024];
            let mut length = 0;
            while let read @ 1.. = stdin.read(&mut buffer).await.unwrap() {
                length += read;
            }
            assert_eq!(length, LENGTH);
            ExecOutcome::Exited(0)
        })
        .unwrap();
    let mut client = Client::connect(&url, "v4.channel.k8s.io").await;
    let stdin = client.command(&["error", "stdin", "stdout"]).await[1];
    let begun = Instant::now();
    // The size of Go's frames.
    let frame = Wire::data(stdin, &[7; 32 * 1024], false);
    for _ in 0..LENGTH / (32 * 1024) {
        client.socket.write_all(&frame).await.unwrap();
    }
    client.send(stdin, &[], true).await;
    client.until(|client| client.goaway.is_some()).await;
    report("input", begun);
}
