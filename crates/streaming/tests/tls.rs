//! The server behind TLS, with a certificate for 127.0.0.1 that is good for nothing else.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use berth_streaming::{
    ExecOutcome, RemoteStreams, StartError, StreamOptions, Streaming, StreamingConfig, TlsConfig,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use support::spdy::{Received, Wire};
use support::{LONG, Node};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

const CERTIFICATE: &[u8] = include_bytes!("tls/certificate.pem");
const KEY: &[u8] = include_bytes!("tls/key.pem");

fn config(certificates: &[u8], key: &[u8]) -> StreamingConfig {
    let tls = TlsConfig { certificates: certificates.to_vec(), key: key.to_vec() };
    StreamingConfig { tls: Some(tls), ..StreamingConfig::default() }
}

#[tokio::test]
async fn a_command_goes_over_tls_and_its_clients_end_is_noticed() {
    let node = Node::with(config(CERTIFICATE, KEY)).await;
    let (told, mut gone) = mpsc::channel(1);
    let options = StreamOptions { stdin: true, stdout: true, ..StreamOptions::default() };
    let url = node
        .streaming
        .exec(options, async move |mut streams: RemoteStreams| {
            streams.stdout.as_mut().unwrap().write_all(b"in secret").await.unwrap();
            streams.gone.cancelled().await;
            drop(streams);
            told.send(()).await.unwrap();
            ExecOutcome::Exited(0)
        })
        .unwrap();
    let (host, path) = url.strip_prefix("https://").unwrap().split_once('/').unwrap();

    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(CERTIFICATE).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let socket = TcpStream::connect(host).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut socket = TlsConnector::from(Arc::new(client)).connect(name, socket).await.unwrap();

    let head = format!(
        "POST /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
         X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n"
    );
    // A client that does not wait for the answer.
    let mut wire = Wire::new();
    let mut bytes = head.into_bytes();
    for (id, kind) in [(1, "error"), (3, "stdin"), (5, "stdout")] {
        bytes.extend(wire.syn_stream(id, &[("streamtype", kind)], false));
    }
    socket.write_all(&bytes).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(socket.read_u8().await.unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "));
    let (mut input, mut output) = (Vec::new(), Vec::new());
    while output != b"in secret" {
        assert_ne!(timeout(LONG, socket.read_buf(&mut input)).await.unwrap().unwrap(), 0);
        while let Some(frame) = wire.next(&mut input) {
            if let Received::Data(5, bytes, _) = frame {
                output.extend(bytes);
            }
        }
    }
    // Gone without a word, behind input that nobody reads.
    let frame = Wire::data(3, &[0; 65536], false);
    for _ in 0..1024 {
        if timeout(Duration::from_millis(300), socket.write_all(&frame)).await.is_err() {
            break;
        }
    }
    assert!(gone.try_recv().is_err());
    drop(socket);
    timeout(LONG, gone.recv()).await.unwrap().unwrap();
}

#[tokio::test]
async fn what_is_no_certificate_is_said_at_the_start() {
    let start = async |certificates, key| Streaming::start(config(certificates, key)).await.unwrap_err();
    assert!(matches!(start(KEY, KEY).await, StartError::NoCertificate));
    assert!(matches!(start(CERTIFICATE, CERTIFICATE).await, StartError::Pem { what: "key", .. }));
    let broken = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert!(matches!(start(broken, KEY).await, StartError::Tls(_)));
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let error =
        Streaming::start(StreamingConfig { address, ..StreamingConfig::default() }).await.unwrap_err();
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}
