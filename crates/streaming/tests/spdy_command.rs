//! Exec and attach over SPDY, from the URL to the goodbye.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::Duration;

use berth_streaming::{ExecOutcome, RemoteStreams, StreamOptions, StreamingConfig, TerminalSize};
use sha2::{Digest, Sha256};
use support::spdy::Wire;
use support::{Client, LONG, Node, request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;

const ALL: StreamOptions = StreamOptions { stdin: true, stdout: true, stderr: true, tty: false };
const OUTPUT: StreamOptions = StreamOptions { stdin: false, stdout: true, stderr: false, tty: false };
const TERMINAL: StreamOptions = StreamOptions { stdin: true, stdout: true, stderr: false, tty: true };
const GO: &str = "v5.channel.k8s.io, v4.channel.k8s.io, v3.channel.k8s.io, v2.channel.k8s.io, channel.k8s.io";

async fn cat(mut streams: RemoteStreams) -> ExecOutcome {
    let mut stdout = streams.stdout.take().unwrap();
    let mut stdin = streams.stdin.take().unwrap();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match stdin.read(&mut buffer).await {
            Ok(0) => return ExecOutcome::Exited(0),
            Ok(length) => stdout.write_all(&buffer[..length]).await.unwrap(),
            Err(error) => return ExecOutcome::Failed(error.to_string()),
        }
    }
}

#[tokio::test]
async fn exec_moves_all_streams_and_tells_the_status_last() {
    let node = Node::start().await;
    let url = node
        .streaming
        .exec(ALL, async |mut streams: RemoteStreams| {
            let mut text = String::new();
            streams.stdin.take().unwrap().read_to_string(&mut text).await.unwrap();
            streams.stderr.take().unwrap().write_all(b"warning\n").await.unwrap();
            streams.stdout.take().unwrap().write_all(text.to_uppercase().as_bytes()).await.unwrap();
            assert!(streams.resize.is_none());
            ExecOutcome::Exited(3)
        })
        .unwrap();
    let mut client = Client::connect(&url, GO).await;
    let ids = client.command(&["error", "stdin", "stdout", "stderr"]).await;
    let [error, stdin, stdout, stderr] = ids[..] else { unreachable!() };
    client.send(stdin, b"hel", false).await;
    client.send(stdin, b"lo", true).await;
    client.until(|client| client.goaway.is_some()).await;
    assert_eq!(client.text(stdout), "HELLO");
    assert_eq!(client.text(stderr), "warning\n");
    assert!(
        client.text(error).contains(r#""causes":[{"reason":"ExitCode","message":"3"}]"#),
        "{}",
        client.text(error)
    );
    assert_eq!(client.ends.last(), Some(&error), "the status ends it: {:?}", client.ends);
    assert!([stdin, stdout, stderr].iter().all(|id| client.ends.contains(id)), "{:?}", client.ends);
    assert_eq!(client.goaway, Some((7, 0)));
}
