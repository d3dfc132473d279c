//! Port-forward over SPDY.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::Duration;

use berth_streaming::StreamingConfig;
use support::spdy::Wire;
use support::{Client, LONG, Node};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const PROTOCOL: &str = "portforward.k8s.io";

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    (listener, port)
}

async fn forward(node: &Node) -> Client {
    let url =
        node.streaming.port_forward(Vec::new(), |port| TcpStream::connect(("127.0.0.1", port))).unwrap();
    Client::connect(&url, PROTOCOL).await
}

/// As kubectl does: the error stream, which is finished at once, then the data stream.
async fn pair(client: &mut Client, port: &str, request: &str) -> (u32, u32) {
    let error = client.open(&[("streamtype", "error"), ("port", port), ("requestid", request)]).await;
    client.send(error, &[], true).await;
    let data = client.open(&[("streamtype", "data"), ("port", port), ("requestid", request)]).await;
    (data, error)
}

async fn accept(listener: &TcpListener) -> TcpStream {
    timeout(LONG, listener.accept()).await.unwrap().unwrap().0
}

async fn rest(socket: &mut TcpStream) -> String {
    let mut text = String::new();
    timeout(LONG, socket.read_to_string(&mut text)).await.unwrap().unwrap();
    text
}

#[tokio::test]
async fn both_halves_end_by_themselves() {
    let node = Node::start().await;
    let (listener, port) = listen().await;
    let mut client = forward(&node).await;

    // The client finishes first, and is still answered.
    let (data, error) = pair(&mut client, &port, "0").await;
    let mut pod = accept(&listener).await;
    client.send(data, b"question", true).await;
    assert_eq!(rest(&mut pod).await, "question");
    tokio::time::sleep(Duration::from_millis(100)).await;
    pod.write_all(b"answer").await.unwrap();
    drop(pod);
    client.until(|client| client.stream(data).finished && client.stream(error).finished).await;
    assert_eq!((client.text(data), client.text(error)), ("answer".to_owned(), String::new()));

    // The pod finishes first, and still hears the rest.
    let (data, error) = pair(&mut client, &port, "1").await;
    let mut pod = accept(&listener).await;
    pod.write_all(b"greeting").await.unwrap();
    pod.shutdown().await.unwrap();
    client.until(|client| client.stream(data).finished).await;
    assert!(!client.stream(error).finished, "the connection is half open");
    client.send(data, b"late", false).await;
    client.send(data, b" words", true).await;
    assert_eq!(rest(&mut pod).await, "late words");
    client.until(|client| client.stream(error).finished).await;
    assert_eq!(client.text(data), "greeting");
}

#[tokio::test]
async fn a_client_that_does_not_finish_its_half_is_not_waited_for() {
    let node = Node::start().await;
    let (listener, port) = listen().await;
    let mut client = forward(&node).await;
    let (data, error) = pair(&mut client, &port, "0").await;
    drop(accept(&listener).await);
    client.until(|client| client.stream(data).finished && client.stream(error).finished).await;
}

#[tokio::test]
async fn a_refused_connection_is_its_own_affair() {
    let node = Node::start().await;
    let (listener, port) = listen().await;
    let (closed, free) = listen().await;
    drop(closed);
    let mut client = forward(&node).await;
    let (good, _) = pair(&mut client, &port, "0").await;
    let mut pod = accept(&listener).await;
    let (bad, error) = pair(&mut client, &free, "1").await;
    client.until(|client| client.stream(error).finished && client.stream(bad).reset.is_some()).await;
    assert!(
        client.text(error).starts_with(&format!("error forwarding port {free}: ")),
        "{}",
        client.text(error)
    );
    // Those before and those after are well.
    client.send(good, b"alive", true).await;
    assert_eq!(rest(&mut pod).await, "alive");
    let (after, _) = pair(&mut client, &port, "2").await;
    accept(&listener).await.write_all(b"too").await.unwrap();
    client.until(|client| client.text(after) == "too").await;
}

#[tokio::test]
async fn streams_pair_up_by_request_or_by_number_in_either_order() {
    let node = Node::start().await;
    let (listener, port) = listen().await;
    let mut client = forward(&node).await;
    let first = client.open(&[("streamtype", "error"), ("port", &port)]).await;
    let second = client.open(&[("streamtype", "data"), ("port", &port)]).await;
    assert_eq!(second, first + 2);
    accept(&listener).await.write_all(b"by number").await.unwrap();
    client.until(|client| client.text(second) == "by number").await;

    let data = client.open(&[("streamtype", "data"), ("port", &port), ("requestid", "x")]).await;
    client.send(data, b"early", true).await;
    client.open(&[("streamtype", "error"), ("port", "1"), ("requestid", "x")]).await;
    assert_eq!(rest(&mut accept(&listener).await).await, "early");

    for headers in [
        &[("streamtype", "data"), ("port", "0"), ("requestid", "y")][..],
        &[("streamtype", "data"), ("port", "web"), ("requestid", "y")],
        &[("streamtype", "data"), ("requestid", "y")],
        &[("streamtype", "stdin"), ("port", &port), ("requestid", "y")],
    ] {
        let id = client.open(headers).await;
        client.until(|client| client.stream(id).reset.is_some()).await;
    }
    let one = client.open(&[("streamtype", "error"), ("port", &port), ("requestid", "z")]).await;
    let two = client.open(&[("streamtype", "error"), ("port", &port), ("requestid", "z")]).await;
    client.until(|client| client.stream(two).reset.is_some()).await;
    assert_eq!(client.stream(one).reset, None);
}

#[tokio::test]
async fn a_stream_without_the_other_is_waited_for_only_so_long() {
    let config =
        StreamingConfig { stream_creation_timeout: Duration::from_millis(200), ..StreamingConfig::default() };
    let node = Node::with(config).await;
    let (listener, port) = listen().await;
    let mut client = forward(&node).await;
    let (data, _) = pair(&mut client, &port, "0").await;
    let mut pod = accept(&listener).await;
    let lonely = client.open(&[("streamtype", "error"), ("port", &port), ("requestid", "1")]).await;
    client.until(|client| client.stream(lonely).finished).await;
    assert!(client.text(lonely).contains("timed out"), "{}", client.text(lonely));
    let lonely = client.open(&[("streamtype", "data"), ("port", &port), ("requestid", "2")]).await;
    client.until(|client| client.stream(lonely).reset.is_some()).await;
    // The pair that stands has no such end.
    pod.write_all(b"here").await.unwrap();
    client.until(|client| client.text(data) == "here").await;
}

#[tokio::test]
async fn what_waits_for_its_other_half_is_bounded_also_when_its_client_took_it_back() {
    const MOST: usize = 2048;
    let node = Node::start().await;
    let mut client = forward(&node).await;
    for request in 0..MOST {
        let request = request.to_string();
        let id = client.open(&[("streamtype", "data"), ("port", "1"), ("requestid", &request)]).await;
        client.socket.write_all(&Wire::reset(id)).await.unwrap();
    }
    let one_more = client.open(&[("streamtype", "data"), ("port", "1"), ("requestid", "more")]).await;
    client.until(|client| client.stream(one_more).reset.is_some()).await;

    let mut client = forward(&node).await;
    let long = "x".repeat(1000);
    let id = client.open(&[("streamtype", "data"), ("port", "1"), ("requestid", &long)]).await;
    client.until(|client| client.stream(id).reset.is_some()).await;
}

#[tokio::test]
async fn a_pod_that_does_not_read_holds_up_nobody_else() {
    let node = Node::start().await;
    let (deaf, deaf_port) = listen().await;
    let (listener, port) = listen().await;
    let mut client = forward(&node).await;
    let (data, _) = pair(&mut client, &deaf_port, "deaf").await;
    let _unread = accept(&deaf).await;
    // Fill what the kernel takes for the pod, by which the server's buffer is not full yet.
    let small = socket_buffers().await;
    for _ in 0..small / 65536 {
        client.send(data, &[0; 65536], false).await;
    }
    client.send(data, &[0; 100_000], false).await;
    let (other, _) = pair(&mut client, &port, "other").await;
    let mut pod = accept(&listener).await;
    client.send(other, b"through", true).await;
    assert_eq!(rest(&mut pod).await, "through");
    pod.write_all(b"and back").await.unwrap();
    client.until(|client| client.text(other) == "and back").await;
}

/// What fits between two sockets of this host when nobody reads, rounded down.
async fn socket_buffers() -> usize {
    let (listener, port) = listen().await;
    let port: u16 = port.parse().unwrap();
    let mut socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let _unread = accept(&listener).await;
    let mut taken = 0;
    while let Ok(written) = timeout(Duration::from_millis(200), socket.write(&[0; 65536])).await {
        taken += written.unwrap();
    }
    taken / 65536 * 65536
}

#[tokio::test]
async fn a_client_that_leaves_closes_its_connections() {
    let node = Node::start().await;
    let (listener, port) = listen().await;
    let mut client = forward(&node).await;
    let (data, _) = pair(&mut client, &port, "0").await;
    let mut reset = accept(&listener).await;
    client.socket.write_all(&Wire::reset(data)).await.unwrap();
    let ended = timeout(LONG, reset.read(&mut [0; 16])).await.unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)));
    pair(&mut client, &port, "1").await;
    let mut left = accept(&listener).await;
    drop(client);
    let ended = timeout(LONG, left.read(&mut [0; 16])).await.unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_connections_go_beside_one_another() {
    const PAIRS: usize = 300;
    let node = Node::start().await;
    let (listener, port) = listen().await;
    tokio::spawn(async move {
        loop {
            let (mut pod, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                pod.read_to_end(&mut bytes).await.unwrap();
                pod.write_all(&bytes).await.unwrap();
            });
        }
    });
    let mut client = forward(&node).await;
    let mut pairs = Vec::new();
    for request in 0..PAIRS {
        pairs.push(pair(&mut client, &port, &request.to_string()).await);
    }
    for (at, (data, _)) in pairs.iter().enumerate() {
        client.send(*data, &vec![at as u8; 10_000], true).await;
    }
    client.until(|client| pairs.iter().all(|(_, error)| client.is_finished(*error))).await;
    for (at, (data, error)) in pairs.iter().enumerate() {
        assert_eq!(client.stream(*data).bytes, vec![at as u8; 10_000]);
        assert!(client.stream(*error).bytes.is_empty());
    }
}
