//! Exec and attach over SPDY, from the URL to the goodbye.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::Duration;

use berth_streaming::{
    ExecOutcome, RemoteCommand, RemoteStreams, StreamOptions, StreamingConfig, TerminalSize,
};
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

#[tokio::test]
async fn older_protocols_have_text_for_a_status() {
    let node = Node::start().await;
    for (protocol, exit, expected) in [
        ("v3.channel.k8s.io", 0, ""),
        ("v2.channel.k8s.io", 7, "command terminated with non-zero exit code: exit status 7"),
        ("channel.k8s.io", 7, "command terminated with non-zero exit code: exit status 7"),
    ] {
        let url = node.streaming.exec(OUTPUT, async move |_| ExecOutcome::Exited(exit)).unwrap();
        let mut client = Client::connect(&url, protocol).await;
        let [error, _] = client.command(&["error", "stdout"]).await[..] else { unreachable!() };
        client.until(|client| client.goaway.is_some()).await;
        assert_eq!(client.text(error), expected, "{protocol}");
        assert!(client.stream(error).finished);
    }
}

#[tokio::test]
async fn the_first_protocol_finishes_the_servers_half_of_stdin_at_once() {
    let node = Node::start().await;
    let url = node.streaming.exec(ALL, cat).unwrap();
    let mut client = Client::connect(&url, "channel.k8s.io").await;
    let [_, stdin, stdout, _] = client.command(&["error", "stdin", "stdout", "stderr"]).await[..] else {
        unreachable!()
    };
    client.until(|client| client.stream(stdin).finished).await;
    client.send(stdin, b"still heard", true).await;
    client.until(|client| client.stream(stdout).finished).await;
    assert_eq!(client.text(stdout), "still heard");
}

#[tokio::test]
async fn a_terminal_has_sizes_and_no_stderr() {
    let node = Node::start().await;
    let url = node
        .streaming
        .attach(TERMINAL, async |mut streams: RemoteStreams| {
            assert!(streams.stderr.is_none());
            let mut resize = streams.resize.take().unwrap();
            let mut seen = Vec::new();
            while let Some(size) = resize.next().await {
                seen.push(size);
                // One at a time is seen one by one; the client waits for this.
                let text = format!("{}x{} ", size.width, size.height);
                streams.stdout.as_mut().unwrap().write_all(text.as_bytes()).await.unwrap();
            }
            assert_eq!(seen.len(), 2);
            assert_eq!(seen[0], TerminalSize { width: 80, height: 24 });
            ExecOutcome::Exited(0)
        })
        .unwrap();
    let mut client = Client::connect(&url, GO).await;
    let [error, _, stdout, resize] = client.command(&["error", "stdin", "stdout", "resize"]).await[..] else {
        unreachable!()
    };
    client.send(resize, b"{\"Width\":80,\"Hei", false).await;
    client.send(resize, b"ght\":24}\n", false).await;
    client.until(|client| client.text(stdout) == "80x24 ").await;
    client.send(resize, b"{\"Width\":120,\"Height\":40}\n", true).await;
    client.until(|client| client.stream(error).finished).await;
    assert_eq!(client.text(stdout), "80x24 120x40 ");
    assert_eq!(client.text(error), r#"{"status":"Success"}"#);
}

#[tokio::test]
async fn sizes_that_nobody_asks_for_stop_nothing() {
    let node = Node::start().await;
    let url = node.streaming.exec(TERMINAL, cat).unwrap();
    let mut client = Client::connect(&url, GO).await;
    let [error, stdin, stdout, resize] = client.command(&["error", "stdin", "stdout", "resize"]).await[..]
    else {
        unreachable!()
    };
    for _ in 0..20_000 {
        client.send(resize, b"{\"Width\":120,\"Height\":40}\n", false).await;
    }
    client.send(stdin, b"heard", true).await;
    client.until(|client| client.stream(error).finished).await;
    assert_eq!(client.text(stdout), "heard");
}

#[tokio::test]
async fn a_client_whose_stdin_stays_open_is_told_of_the_end() {
    let node = Node::start().await;
    let url = node.streaming.exec(ALL, async |_| ExecOutcome::Exited(0)).unwrap();
    let mut client = Client::connect(&url, GO).await;
    let [error, stdin, ..] = client.command(&["error", "stdin", "stdout", "stderr"]).await[..] else {
        unreachable!()
    };
    client.until(|client| client.goaway.is_some()).await;
    assert!(client.stream(stdin).finished && client.stream(error).finished);
    // And it may go on writing without losing anything by that.
    client.send(stdin, b"too late", false).await;
    drop(client.socket);
}

#[tokio::test]
async fn what_is_written_before_the_end_arrives_before_the_status() {
    const LENGTH: usize = 5 << 20;
    let node = Node::start().await;
    let url = node
        .streaming
        .exec(ALL, async |mut streams: RemoteStreams| {
            streams.stdout.as_mut().unwrap().write_all(&vec![b'o'; LENGTH]).await.unwrap();
            streams.stderr.as_mut().unwrap().write_all(&vec![b'e'; LENGTH]).await.unwrap();
            ExecOutcome::Failed("killed".to_owned())
        })
        .unwrap();
    let mut client = Client::connect(&url, GO).await;
    let [error, _, stdout, stderr] = client.command(&["error", "stdin", "stdout", "stderr"]).await[..] else {
        unreachable!()
    };
    // The command could end now, were there room for its output.
    tokio::time::sleep(Duration::from_millis(200)).await;
    client
        .until(|client| {
            let done =
                client.stream(stdout).bytes.len() == LENGTH && client.stream(stderr).bytes.len() == LENGTH;
            assert!(done || client.stream(error).bytes.is_empty(), "the status came early");
            client.stream(error).finished
        })
        .await;
    assert!(client.text(error).contains("Internal error occurred: killed"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_megabytes_go_both_ways_unchanged() {
    const LENGTH: usize = 100 << 20;
    let node = Node::start().await;
    let url = node.streaming.exec(ALL, cat).unwrap();
    let mut client = Client::connect(&url, GO).await;
    let [error, stdin, stdout, _] = client.command(&["error", "stdin", "stdout", "stderr"]).await[..] else {
        unreachable!()
    };
    let block: Vec<u8> = (0..32 * 1024_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let (mut reading, mut writing) = client.socket.into_split();
    let begun = std::time::Instant::now();
    let writer = tokio::spawn(async move {
        let mut sum = Sha256::new();
        for at in 0..LENGTH / block.len() {
            // Each block is another.
            let mut block = block.clone();
            block[..8].copy_from_slice(&at.to_be_bytes());
            writing.write_all(&Wire::data(stdin, &block, false)).await.unwrap();
            sum.update(&block);
        }
        writing.write_all(&Wire::data(stdin, &[], true)).await.unwrap();
        (sum.finalize(), writing)
    });
    let (mut sum, mut length) = (Sha256::new(), 0);
    let mut status = Vec::new();
    let mut head = [0; 8];
    let mut payload = Vec::new();
    loop {
        timeout(LONG, reading.read_exact(&mut head)).await.unwrap().unwrap();
        let size = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
        payload.resize(size, 0);
        reading.read_exact(&mut payload).await.unwrap();
        match u32::from_be_bytes(head[..4].try_into().unwrap()) {
            id if id == stdout => {
                sum.update(&payload);
                length += size;
            }
            id if id == error => {
                status.extend_from_slice(&payload);
                if head[4] == 1 {
                    break;
                }
            }
            _ => {}
        }
    }
    let took = begun.elapsed();
    let (sent, _writing) = writer.await.unwrap();
    assert_eq!((length, sum.finalize()), (LENGTH, sent));
    assert_eq!(status, br#"{"status":"Success"}"#);
    eprintln!("100 MB there and back in {took:?}, two checksums included");
}

#[tokio::test]
async fn pings_are_answered_and_strange_frames_ignored() {
    let node = Node::start().await;
    let url = node.streaming.exec(ALL, cat).unwrap();
    let mut client = Client::connect(&url, GO).await;
    let [error, stdin, stdout, _] = client.command(&["error", "stdin", "stdout", "stderr"]).await[..] else {
        unreachable!()
    };
    client.socket.write_all(&Wire::ping(1)).await.unwrap();
    client.socket.write_all(&Wire::ping(2)).await.unwrap(); // the answer to a question that was not asked
    client.socket.write_all(&Wire::ping(3)).await.unwrap();
    // SETTINGS, WINDOW_UPDATE, and a type that there is none of.
    client.socket.write_all(&[0x80, 3, 0, 4, 0, 0, 0, 4, 0, 0, 0, 0]).await.unwrap();
    client.socket.write_all(&[0x80, 3, 0, 9, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 1, 0]).await.unwrap();
    client.socket.write_all(&[0x80, 3, 0, 77, 0, 0, 0, 2, 9, 9]).await.unwrap();
    // Data of a stream that is not there.
    client.send(99, b"for nobody", false).await;
    client.send(stdin, b"on", true).await;
    client.until(|client| client.stream(error).finished).await;
    assert_eq!(client.pings, [1, 3]);
    assert_eq!(client.text(stdout), "on");
}

#[tokio::test]
async fn streams_that_were_not_asked_for_are_reset() {
    let node = Node::start().await;
    let url = node.streaming.exec(OUTPUT, async |_| ExecOutcome::Exited(0)).unwrap();
    let mut client = Client::connect(&url, GO).await;
    let stdin = client.open(&[("streamtype", "stdin")]).await;
    let video = client.open(&[("streamtype", "video")]).await;
    let [error, _] = client.command(&["error", "stdout"]).await[..] else { unreachable!() };
    client.until(|client| client.stream(error).finished).await;
    client.until(|client| client.stream(stdin).reset.is_some() && client.stream(video).reset.is_some()).await;
}

#[tokio::test]
async fn a_streams_number_is_used_once() {
    let node = Node::start().await;
    let url = node.streaming.exec(ALL, cat).unwrap();
    let mut client = Client::connect(&url, GO).await;
    let [error, stdin, stdout, _] = client.command(&["error", "stdin", "stdout", "stderr"]).await[..] else {
        unreachable!()
    };
    for id in [3, 8] {
        let again = client.wire.syn_stream(id, &[("streamtype", "stdin")], false);
        client.socket.write_all(&again).await.unwrap();
        client.until(|client| client.stream(id).reset == Some(1)).await;
    }
    client.send(stdin, b"untouched", true).await;
    client.until(|client| client.stream(error).finished).await;
    assert_eq!(client.text(stdout), "untouched");
}

#[tokio::test]
async fn a_client_that_speaks_nonsense_is_cut_off_and_its_handler_told() {
    let node = Node::start().await;
    let (told, mut gone) = mpsc::channel(1);
    let url = node.streaming.exec(ALL, waiting(told)).unwrap();
    let mut client = Client::connect(&url, GO).await;
    client.command(&["error", "stdin", "stdout", "stderr"]).await;
    client.socket.write_all(b"\x80\x02\0\x01\0\0\0\0").await.unwrap();
    client.until_closed().await;
    timeout(LONG, gone.recv()).await.unwrap().unwrap();
}

/// A handler that only waits for its client to go, with its streams in hand.
fn waiting(told: mpsc::Sender<()>) -> impl RemoteCommand {
    async move |streams: RemoteStreams| {
        streams.gone.cancelled().await;
        drop(streams);
        told.send(()).await.unwrap();
        ExecOutcome::Exited(0)
    }
}

#[tokio::test]
async fn a_client_that_vanishes_is_noticed() {
    let node = Node::start().await;
    let (told, mut gone) = mpsc::channel(1);
    let url = node
        .streaming
        .exec(ALL, async move |mut streams: RemoteStreams| {
            let mut stdin = streams.stdin.take().unwrap();
            let mut all = Vec::new();
            let error = stdin.read_to_end(&mut all).await.unwrap_err();
            assert_eq!((error.kind(), &all[..]), (std::io::ErrorKind::ConnectionReset, &b"half a fi"[..]));
            streams.gone.cancelled().await;
            let mut stdout = streams.stdout.take().unwrap();
            let deadline = tokio::time::Instant::now() + LONG;
            while stdout.write_all(&[0; 4096]).await.is_ok() {
                assert!(tokio::time::Instant::now() < deadline);
                tokio::task::yield_now().await;
            }
            told.send(()).await.unwrap();
            ExecOutcome::Exited(0)
        })
        .unwrap();
    let mut client = Client::connect(&url, GO).await;
    let [_, stdin, ..] = client.command(&["error", "stdin", "stdout", "stderr"]).await[..] else {
        unreachable!()
    };
    client.send(stdin, b"half a fi", false).await;
    drop(client);
    timeout(LONG, gone.recv()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_client_that_vanishes_behind_unread_input_is_noticed() {
    let node = Node::start().await;
    let (told, mut gone) = mpsc::channel(1);
    let url = node.streaming.exec(ALL, waiting(told)).unwrap();
    let mut client = Client::connect(&url, GO).await;
    let [_, stdin, ..] = client.command(&["error", "stdin", "stdout", "stderr"]).await[..] else {
        unreachable!()
    };
    // Until neither the server nor the kernel takes more.
    let frame = Wire::data(stdin, &[0; 65536], false);
    let mut frames = 0;
    while timeout(Duration::from_millis(300), client.socket.write_all(&frame)).await.is_ok() {
        frames += 1;
        assert!(frames < 1024, "64 MiB are held for a process that does not read");
    }
    assert!(gone.try_recv().is_err());
    drop(client);
    timeout(LONG, gone.recv()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_the_output_and_nothing_else() {
    let node = Node::start().await;
    let written = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let (told, mut gone) = mpsc::channel(1);
    let count = std::sync::Arc::clone(&written);
    let url = node
        .streaming
        .exec(OUTPUT, async move |mut streams: RemoteStreams| {
            let mut stdout = streams.stdout.take().unwrap();
            let endless = async {
                while stdout.write_all(&[0; 8192]).await.is_ok() {
                    count.fetch_add(8192, std::sync::atomic::Ordering::Relaxed);
                }
            };
            tokio::select! {
                () = endless => {}
                () = streams.gone.cancelled() => {}
            }
            told.send(()).await.unwrap();
            ExecOutcome::Exited(0)
        })
        .unwrap();
    let mut client = Client::connect(&url, GO).await;
    client.command(&["error", "stdout"]).await;
    let mut before = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = written.load(std::sync::atomic::Ordering::Relaxed);
        if now == before && now > 0 {
            break;
        }
        before = now;
    }
    // The kernel's buffers take some megabytes, the server's queue two.
    assert!(before < 16 << 20, "{before} bytes are held for a client that does not read");
    assert!(gone.try_recv().is_err(), "it is slow, not gone");
    // Others are served meanwhile.
    let url = node.streaming.exec(OUTPUT, async |_| ExecOutcome::Exited(0)).unwrap();
    let mut other = Client::connect(&url, GO).await;
    other.command(&["error", "stdout"]).await;
    other.until(|client| client.goaway.is_some()).await;
    drop(client);
    timeout(LONG, gone.recv()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_handler_that_does_not_care_is_dropped() {
    struct Dropped(mpsc::Sender<()>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.try_send(()).unwrap();
        }
    }
    let node = Node::start().await;
    let (told, mut gone) = mpsc::channel(1);
    let dropped = Dropped(told);
    let url = node
        .streaming
        .exec(OUTPUT, async move |_| {
            let _dropped = dropped;
            std::future::pending().await
        })
        .unwrap();
    let mut client = Client::connect(&url, GO).await;
    client.command(&["error", "stdout"]).await;
    drop(client);
    timeout(LONG, gone.recv()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_handler_that_panics_is_a_failure_that_is_told() {
    let node = Node::start().await;
    let url = node.streaming.exec(OUTPUT, async |_| panic!("a handler's fault")).unwrap();
    let mut client = Client::connect(&url, GO).await;
    let [error, _] = client.command(&["error", "stdout"]).await[..] else { unreachable!() };
    client.until(|client| client.stream(error).finished).await;
    assert!(client.text(error).contains("InternalError"), "{}", client.text(error));
}

#[tokio::test]
async fn streams_that_are_not_opened_are_waited_for_only_so_long() {
    let config =
        StreamingConfig { stream_creation_timeout: Duration::from_millis(200), ..StreamingConfig::default() };
    let node = Node::with(config).await;
    let url = node.streaming.exec(ALL, async |_| unreachable!("its streams do not stand")).unwrap();
    let mut client = Client::connect(&url, GO).await;
    client.command(&["error", "stdin"]).await;
    client.until_closed().await;
}

#[tokio::test]
async fn a_connection_on_which_nothing_moves_is_closed() {
    let config = StreamingConfig { idle_timeout: Duration::from_millis(300), ..StreamingConfig::default() };
    let node = Node::with(config).await;
    let (told, mut gone) = mpsc::channel(1);
    let url = node.streaming.exec(OUTPUT, waiting(told)).unwrap();
    let mut client = Client::connect(&url, GO).await;
    client.command(&["error", "stdout"]).await;
    // A ping is a sign of life.
    for id in [1, 3, 5, 7] {
        tokio::time::sleep(Duration::from_millis(150)).await;
        client.socket.write_all(&Wire::ping(id)).await.unwrap();
    }
    assert!(gone.try_recv().is_err());
    timeout(LONG, gone.recv()).await.unwrap().unwrap();
    client.until_closed().await;
}

#[tokio::test]
async fn a_server_that_stops_tells_handlers_and_clients() {
    let mut node = Node::start().await;
    let waiting_url = node.streaming.exec(OUTPUT, async |_| ExecOutcome::Exited(0)).unwrap();
    let url = node
        .streaming
        .exec(OUTPUT, async |streams: RemoteStreams| {
            streams.gone.cancelled().await;
            ExecOutcome::Exited(137)
        })
        .unwrap();
    let mut client = Client::connect(&url, GO).await;
    let [error, _] = client.command(&["error", "stdout"]).await[..] else { unreachable!() };
    node.stop.cancel();
    client.until(|client| client.stream(error).finished).await;
    assert!(client.text(error).contains(r#""message":"137""#));
    drop(client);
    timeout(LONG, &mut node.running).await.unwrap().unwrap();
    let address = node.streaming.address();
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "{waiting_url} is of no use now");
}

#[tokio::test]
async fn requests_are_refused_as_other_servers_do() {
    let node = Node::start().await;
    let url = || node.streaming.exec(OUTPUT, async |_| ExecOutcome::Exited(0)).unwrap();
    let upgrade = [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1")];
    let with = |protocol| [&upgrade[..], &[("X-Stream-Protocol-Version", protocol)]].concat();

    let used = url();
    let (answer, _) = request(&used, "GET", &with("v4.channel.k8s.io")).await;
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    let lower = answer.to_ascii_lowercase();
    for line in [
        "connection: upgrade\r\n",
        "upgrade: spdy/3.1\r\n",
        "x-stream-protocol-version: v4.channel.k8s.io\r\n",
    ] {
        assert!(lower.contains(line), "{answer}");
    }
    let (answer, _) = request(&used, "POST", &with("v4.channel.k8s.io")).await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "used: {answer}");

    let (answer, _) = request(&url(), "POST", &[]).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "no upgrade: {answer}");
    let (answer, _) = request(&url(), "POST", &upgrade).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "no protocol: {answer}");
    let (answer, _) = request(&url(), "POST", &with("v5.channel.k8s.io,v6.channel.k8s.io")).await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "no common protocol: {answer}");
    for protocol in ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"] {
        assert!(answer.contains(&format!("x-accepted-stream-protocol-versions: {protocol}\r\n")), "{answer}");
    }
    let (answer, _) = request(&url(), "DELETE", &with("v4.channel.k8s.io")).await;
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");

    for path in ["exec/AAAAAAAA", "exec", "", "attach/..", "exec/AAAAAAAA/more", "metrics"] {
        let unknown = format!("http://{}/{path}", node.streaming.address());
        let (answer, _) = request(&unknown, "POST", &with("v4.channel.k8s.io")).await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{path}: {answer}");
    }
    let (answer, _) = request(&url().replace("/exec/", "/attach/"), "POST", &with("v4.channel.k8s.io")).await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "another kind of request: {answer}");
}

#[tokio::test]
async fn options_that_mean_nothing_have_no_url() {
    use berth_streaming::SessionError;
    let node = Node::start().await;
    let ask = |options| node.streaming.exec(options, async |_| ExecOutcome::Exited(0));
    let both = StreamOptions { stderr: true, tty: true, ..OUTPUT };
    assert_eq!(ask(both).unwrap_err(), SessionError::TtyWithStderr);
    assert_eq!(ask(StreamOptions::default()).unwrap_err(), SessionError::NoStreams);
    for _ in 0..1000 {
        ask(OUTPUT).unwrap();
    }
    assert_eq!(ask(OUTPUT).unwrap_err(), SessionError::TooMany { limit: 1000 });
}
