//! Exec and port-forward over WebSocket, with tungstenite for a client.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_streaming::{ExecOutcome, RemoteStreams, StreamOptions, TerminalSize};
use futures::{SinkExt as _, StreamExt as _};
use sha2::{Digest, Sha256};
use support::spdy::{Received, Wire};
use support::{LONG, Node, request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

const ALL: StreamOptions = StreamOptions { stdin: true, stdout: true, stderr: true, tty: false };

type Socket = WebSocketStream<TcpStream>;

async fn connect(url: &str, protocol: Option<&str>) -> Result<Socket, Box<Error>> {
    let mut ask = url.replacen("http", "ws", 1).into_client_request().unwrap();
    if let Some(protocol) = protocol {
        ask.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
    }
    let address = url.split('/').nth(2).unwrap();
    let (socket, response) =
        client_async(ask, TcpStream::connect(address).await.unwrap()).await.map_err(Box::new)?;
    let chosen = response.headers().get("sec-websocket-protocol").map(|value| value.to_str().unwrap());
    assert_eq!(chosen, protocol.map(|offered| offered.split(", ").last().unwrap()));
    Ok(socket)
}

/// All messages to the close, as channel and payload.
async fn all(socket: &mut Socket, base64: bool) -> Vec<(u8, Vec<u8>)> {
    let mut messages = Vec::new();
    loop {
        match timeout(LONG, socket.next()).await.expect("a close") {
            Some(Ok(Message::Binary(bytes))) if !base64 => messages.push((bytes[0], bytes[1..].to_vec())),
            Some(Ok(Message::Text(text))) if base64 => {
                let (digit, payload) = text.split_at(1);
                messages.push((digit.parse().unwrap(), STANDARD.decode(payload).unwrap()));
            }
            Some(Ok(Message::Close(frame))) => assert_eq!(u16::from(frame.unwrap().code), 1000),
            None => return messages,
            other => panic!("{other:?}"),
        }
    }
}

fn joined(messages: &[(u8, Vec<u8>)], channel: u8) -> String {
    let bytes = messages.iter().filter(|(of, _)| *of == channel).flat_map(|(_, bytes)| bytes.clone());
    String::from_utf8(bytes.collect()).unwrap()
}

#[tokio::test]
async fn every_subprotocol_carries_a_command() {
    let node = Node::start().await;
    let json = r#"{"status":"Failure","message":"command terminated with non-zero exit code: exit status 3","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#;
    let text = "command terminated with non-zero exit code: exit status 3";
    for (protocol, base64, status) in [
        (None, false, text),
        (Some("channel.k8s.io"), false, text),
        (Some("base64.channel.k8s.io"), true, text),
        (Some("v4.channel.k8s.io"), false, json),
        (Some("v4.base64.channel.k8s.io"), true, json),
        (Some("v5.channel.k8s.io"), false, json),
        (Some("v6.channel.k8s.io, v5.channel.k8s.io"), false, json),
    ] {
        let url = node
            .streaming
            .exec(ALL, async |mut streams: RemoteStreams| {
                let mut line = [0; 6];
                streams.stdin.as_mut().unwrap().read_exact(&mut line).await.unwrap();
                streams.stdout.as_mut().unwrap().write_all(&line).await.unwrap();
                streams.stderr.as_mut().unwrap().write_all(b"warning").await.unwrap();
                ExecOutcome::Exited(3)
            })
            .unwrap();
        let mut socket = connect(&url, protocol).await.unwrap();
        let first = socket.next().await.unwrap().unwrap();
        // Nothing but the channel's number: the connection stands.
        assert_eq!(first.into_data()[..], if base64 { *b"1" } else { [1] }, "{protocol:?}");
        for part in ["hel", "lo\n"] {
            let message = if base64 {
                Message::text(format!("0{}", STANDARD.encode(part)))
            } else {
                Message::binary([b"\0", part.as_bytes()].concat())
            };
            socket.send(message).await.unwrap();
        }
        let messages = all(&mut socket, base64).await;
        assert_eq!(joined(&messages, 1), "hello\n", "{protocol:?}");
        assert_eq!(joined(&messages, 2), "warning", "{protocol:?}");
        assert_eq!(joined(&messages, 3), status, "{protocol:?}");
        assert_eq!(messages.last().unwrap().0, 3, "{protocol:?}");
    }
}

#[tokio::test]
async fn v5_finishes_stdin_and_terminals_have_sizes() {
    let node = Node::start().await;
    let options = StreamOptions { stdin: true, stdout: true, stderr: false, tty: true };
    let url = node
        .streaming
        .attach(options, async |mut streams: RemoteStreams| {
            let size = streams.resize.as_mut().unwrap().next().await;
            assert_eq!(size, Some(TerminalSize { width: 80, height: 24 }));
            let mut text = String::new();
            streams.stdin.take().unwrap().read_to_string(&mut text).await.unwrap();
            streams.stdout.take().unwrap().write_all(text.to_uppercase().as_bytes()).await.unwrap();
            ExecOutcome::Exited(0)
        })
        .unwrap();
    let mut socket = connect(&url, Some("v5.channel.k8s.io")).await.unwrap();
    socket.send(Message::binary(&b"\x04{\"Width\":80,\"Height\":24}"[..])).await.unwrap();
    socket.send(Message::binary(&b"\x00to the end"[..])).await.unwrap();
    socket.send(Message::binary(&b"\x09for nobody"[..])).await.unwrap();
    socket.send(Message::binary(&b""[..])).await.unwrap();
    socket.send(Message::binary(&b"\xff\x00"[..])).await.unwrap();
    let messages = all(&mut socket, false).await;
    assert_eq!(joined(&messages, 1), "TO THE END");
    assert_eq!(joined(&messages, 3), r#"{"status":"Success"}"#);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_megabytes_go_both_ways_unchanged() {
    const BLOCKS: usize = 20 * 32;
    let node = Node::start().await;
    let url = node
        .streaming
        .exec(ALL, async |mut streams: RemoteStreams| {
            let (mut stdin, mut stdout) = (streams.stdin.take().unwrap(), streams.stdout.take().unwrap());
            let mut buffer = vec![0; 65536];
            while let length @ 1.. = stdin.read(&mut buffer).await.unwrap() {
                stdout.write_all(&buffer[..length]).await.unwrap();
            }
            ExecOutcome::Exited(0)
        })
        .unwrap();
    let socket = connect(&url, Some("v5.channel.k8s.io")).await.unwrap();
    let (mut sink, mut source) = socket.split();
    let sending = tokio::spawn(async move {
        let mut sum = Sha256::new();
        for block in 0..BLOCKS {
            let mut message = vec![block as u8; 32 * 1024 + 1];
            message[0] = 0;
            sum.update(&message[1..]);
            sink.send(Message::binary(message)).await.unwrap();
        }
        sink.send(Message::binary(&b"\xff\x00"[..])).await.unwrap();
        sum.finalize()
    });
    let (mut seen, mut sum, mut status) = (0, Sha256::new(), Vec::new());
    while let Some(message) = timeout(LONG, source.next()).await.unwrap() {
        let Ok(Message::Binary(bytes)) = message else { break };
        if bytes[0] == 1 {
            sum.update(&bytes[1..]);
            seen += bytes.len() - 1;
        } else {
            status.extend_from_slice(&bytes[1..]);
        }
    }
    assert_eq!((seen, sum.finalize()), (BLOCKS * 32 * 1024, sending.await.unwrap()));
    assert_eq!(status, br#"{"status":"Success"}"#);
}

#[tokio::test]
async fn a_client_that_leaves_is_noticed() {
    let node = Node::start().await;
    for close in [true, false] {
        let (told, mut gone) = mpsc::channel(1);
        let url = node
            .streaming
            .exec(ALL, async move |streams: RemoteStreams| {
                streams.gone.cancelled().await;
                drop(streams);
                told.send(()).await.unwrap();
                ExecOutcome::Exited(0)
            })
            .unwrap();
        let mut socket = connect(&url, Some("v4.channel.k8s.io")).await.unwrap();
        socket.next().await.unwrap().unwrap();
        // Also behind input that nobody reads.
        let message = Message::binary(vec![0; 65536]);
        for _ in 0..1024 {
            if timeout(Duration::from_millis(300), socket.send(message.clone())).await.is_err() {
                break;
            }
        }
        assert!(gone.try_recv().is_err());
        if close {
            let _ = timeout(Duration::from_millis(100), socket.close(None)).await;
        }
        drop(socket);
        timeout(LONG, gone.recv()).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn rubbish_in_base64_ends_the_connection() {
    let node = Node::start().await;
    let url = node
        .streaming
        .exec(ALL, async |streams: RemoteStreams| {
            streams.gone.cancelled().await;
            ExecOutcome::Exited(0)
        })
        .unwrap();
    let mut socket = connect(&url, Some("v4.base64.channel.k8s.io")).await.unwrap();
    socket.send(Message::text("0!!!")).await.unwrap();
    while let Some(Ok(_)) = timeout(LONG, socket.next()).await.unwrap() {}
}

#[tokio::test]
async fn handshakes_are_refused_as_other_servers_do() {
    let node = Node::start().await;
    let url = || node.streaming.exec(ALL, async |_| ExecOutcome::Exited(0)).unwrap();
    let upgrade = [("Connection", "Upgrade"), ("Upgrade", "websocket")];
    let complete =
        [&upgrade[..], &[("Sec-WebSocket-Version", "13"), ("Sec-WebSocket-Key", "AQIDBAUGBwgJCgsMDQ4PEA==")]];
    let complete = complete.concat();
    let (answer, _) = request(&url(), "GET", &upgrade).await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("sec-websocket-version: 13"), "{answer}");
    let other = [&complete[..], &[("Sec-WebSocket-Protocol", "graphql-ws")]].concat();
    let (answer, _) = request(&url(), "GET", &other).await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    let (answer, _) = request(&url(), "GET", &complete).await;
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    assert!(answer.contains("sec-websocket-accept: C/0nmHhBztSRGR1CwL6Tf4ZjwpY=\r\n"), "{answer}");
    assert!(!answer.contains("sec-websocket-protocol"), "{answer}");
    let forward =
        node.streaming.port_forward(Vec::new(), |port| TcpStream::connect(("127.0.0.1", port))).unwrap();
    let (answer, _) = request(&forward, "GET", &complete).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "no ports: {answer}");
}

async fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut pod, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut bytes = [0; 4];
                while pod.read_exact(&mut bytes).await.is_ok() {
                    pod.write_all(&bytes).await.unwrap();
                    if &bytes == b"quit" {
                        return;
                    }
                }
            });
        }
    });
    port
}

#[tokio::test]
async fn ports_are_pairs_of_channels() {
    let node = Node::start().await;
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    for (protocol, base64, by_query) in [
        (Some("v4.channel.k8s.io"), false, false),
        (None, false, true),
        (Some("v4.base64.channel.k8s.io"), true, true),
    ] {
        let ports = vec![echo().await, free, echo().await];
        let asked = if by_query { Vec::new() } else { ports.clone() };
        let mut url =
            node.streaming.port_forward(asked, |port| TcpStream::connect(("127.0.0.1", port))).unwrap();
        if by_query {
            url.push_str(&format!("?port={},{}&port={}", ports[0], ports[1], ports[2]));
        }
        let mut socket = connect(&url, protocol).await.unwrap();
        for channel in [0, 4] {
            let message = if base64 {
                Message::text(format!("{channel}{}", STANDARD.encode("ab")))
            } else {
                Message::binary([channel, b'a', b'b'].to_vec())
            };
            socket.send(message).await.unwrap();
            let message = if base64 {
                Message::text(format!("{channel}{}", STANDARD.encode("c\nquit")))
            } else {
                Message::binary([&[channel], &b"c\nquit"[..]].concat())
            };
            socket.send(message).await.unwrap();
        }
        let messages = all(&mut socket, base64).await;
        for (at, port) in ports.iter().enumerate() {
            for channel in [at * 2, at * 2 + 1] {
                let mut of = messages.iter().filter(|(of, _)| usize::from(*of) == channel);
                assert_eq!(of.next().unwrap().1, port.to_le_bytes(), "{protocol:?}");
                let rest: Vec<u8> = of.flat_map(|(_, bytes)| bytes.clone()).collect();
                let rest = String::from_utf8(rest).unwrap();
                match channel {
                    0 | 4 => assert_eq!(rest, "abc\nquit", "{protocol:?}"),
                    3 => assert!(rest.starts_with(&format!("error forwarding port {free}: ")), "{rest}"),
                    _ => assert_eq!(rest, "", "{protocol:?}"),
                }
            }
        }
    }
}

#[tokio::test]
async fn spdy_passes_through_a_tunnel() {
    let node = Node::start().await;
    let port = echo().await.to_string();
    let url =
        node.streaming.port_forward(Vec::new(), |port| TcpStream::connect(("127.0.0.1", port))).unwrap();
    let mut socket = connect(&url, Some("SPDY/3.1+portforward.k8s.io")).await.unwrap();
    let mut wire = Wire::new();
    let mut bytes =
        wire.syn_stream(1, &[("streamtype", "error"), ("port", &port), ("requestid", "0")], false);
    bytes.extend(wire.syn_stream(3, &[("streamtype", "data"), ("port", &port), ("requestid", "0")], false));
    bytes.extend(Wire::data(3, b"pingquit", false));
    // Frames and messages have nothing to do with each other.
    for part in bytes.chunks(7) {
        socket.send(Message::binary(part.to_vec())).await.unwrap();
    }
    let (mut input, mut echoed, mut ended) = (Vec::new(), Vec::new(), Vec::new());
    while !(ended.contains(&3) && echoed.len() == 8) {
        let message = timeout(LONG, socket.next()).await.unwrap().unwrap().unwrap();
        input.extend_from_slice(&message.into_data());
        while let Some(frame) = wire.next(&mut input) {
            if let Received::Data(id, bytes, fin) = frame {
                assert_eq!(id == 1, bytes.is_empty() && id == 1);
                echoed.extend(bytes);
                if fin {
                    ended.push(id);
                }
            }
        }
    }
    assert_eq!(echoed, b"pingquit");
}
