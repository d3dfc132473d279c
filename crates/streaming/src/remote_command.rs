//! Exec and attach: a client's streams to a handler, and the handler's end to the client.
//!
//! ```text
//! streams stand ─▶ handler runs ─┬ ends ────────▶ all streams finished ─▶ status ─▶ goodbye ─▶ the client closes
//!                                └ client gone ─▶ handler told ─▶ ends, or is dropped after GONE_GRACE
//! ```

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::peer::Peer;
use crate::pipe::{Gone, Input, Sink};
use crate::session::{ExecOutcome, RemoteCommand, RemoteStreams, Resize, StreamOptions, TerminalSize};
use crate::spdy::{Connection, Stream};
use crate::status::StatusFormat;

/// How long a handler may go on after its client is gone: enough to kill a process and see it dead.
pub const GONE_GRACE: Duration = Duration::from_secs(5);

/// How long a client may take to hear its status when the server stops.
const FAREWELL: Duration = Duration::from_secs(1);

/// One size of a terminal takes some 30 bytes.
const RESIZE_BYTES: usize = 4 * 1024;

/// Versions of the protocol over SPDY. (v5 is v4 there, and no server offers it.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    /// The server's half of stdin is finished from the start.
    V1,
    V2,
    /// Terminals have sizes.
    V3,
    /// The status is an object.
    V4,
}

pub(crate) const SPDY_PROTOCOLS: [(&str, Version); 4] = [
    ("v4.channel.k8s.io", Version::V4),
    ("v3.channel.k8s.io", Version::V3),
    ("v2.channel.k8s.io", Version::V2),
    ("channel.k8s.io", Version::V1),
];

/// A client whose streams stand.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) stdin: Option<Input>,
    pub(crate) stdout: Option<Sink>,
    pub(crate) stderr: Option<Sink>,
    pub(crate) resize: Option<Input>,
    /// The server's halves of the client's own streams, which tell it that nobody listens any more.
    pub(crate) listening: Vec<Sink>,
    pub(crate) error: Sink,
    pub(crate) format: StatusFormat,
}

/// Waits for the streams that `options` need and runs the handler on them.
pub(crate) async fn over_spdy(
    mut connection: Connection,
    version: Version,
    options: StreamOptions,
    creation: Duration,
    handler: Box<dyn RemoteCommand>,
    stop: &CancellationToken,
) {
    let client = tokio::select! {
        client = timeout(creation, collect(&mut connection, version, options)) => client,
        () = stop.cancelled() => return,
    };
    let client = match client {
        Ok(Some(client)) => client,
        Ok(None) => return debug!("the client left before its streams stood"),
        Err(_) => return warn!(after = ?creation, "the client did not open the streams that it asked for"),
    };
    let Connection { streams, peer } = connection;
    // From here on, streams that are opened are refused.
    drop(streams);
    serve(client, peer, handler, stop).await;
}

/// None when the client left.
async fn collect(connection: &mut Connection, version: Version, options: StreamOptions) -> Option<Client> {
    let sizes = options.tty && version >= Version::V3;
    let wanted = [
        ("error", true),
        ("stdin", options.stdin),
        ("stdout", options.stdout),
        ("stderr", options.stderr),
        ("resize", sizes),
    ];
    let mut found: [Option<Stream>; 5] = Default::default();
    while wanted.iter().zip(&found).any(|((_, wanted), stream)| *wanted && stream.is_none()) {
        let stream = connection.streams.recv().await?;
        let kind = stream.headers.get("streamtype").unwrap_or_default();
        let slot = wanted.iter().position(|(name, wanted)| *wanted && *name == kind).map(|at| &mut found[at]);
        match slot {
            Some(slot @ None) => *slot = Some(stream),
            Some(Some(_)) | None => {
                debug!(kind, "a stream that was not asked for");
                stream.sink.reset().await;
            }
        }
    }
    let [error, stdin, stdout, stderr, resize] = found;
    let mut listening = Vec::new();
    let mut input = |stream: Option<Stream>| {
        stream.map(|stream| {
            listening.push(stream.sink);
            stream.input
        })
    };
    let (stdin, resize) = (input(stdin), input(resize));
    if version == Version::V1 {
        for sink in &listening {
            sink.finish().await;
        }
    }
    Some(Client {
        stdin,
        resize,
        // Their inputs are dropped: what a client sends on an output is nobody's.
        stdout: stdout.map(|stream| stream.sink),
        stderr: stderr.map(|stream| stream.sink),
        error: error?.sink,
        listening,
        format: if version == Version::V4 { StatusFormat::Json } else { StatusFormat::Text },
    })
}

/// Runs the handler and tells its end.
pub(crate) async fn serve(
    client: Client,
    mut peer: Peer,
    handler: Box<dyn RemoteCommand>,
    stop: &CancellationToken,
) {
    let Client { stdin, stdout, stderr, resize, listening, error, format } = client;
    let gone = CancellationToken::new();
    let resize = resize.map(|input| {
        let (sizes, size) = watch::channel(None);
        peer.spawn_half(pump_sizes(input, sizes));
        Resize(size)
    });
    let streams = RemoteStreams {
        stdin,
        stdout: stdout.as_ref().map(Sink::output),
        stderr: stderr.as_ref().map(Sink::output),
        resize,
        gone: gone.clone(),
    };
    // A task of its own: it runs beside the connection, and its panic is an outcome.
    let mut running = JoinSet::new();
    running.spawn(handler.run(streams));
    let ended = tokio::select! {
        ended = running.join_next() => ended,
        () = peer.gone.cancelled() => None,
        () = stop.cancelled() => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            gone.cancel();
            match timeout(GONE_GRACE, running.join_next()).await {
                Ok(Some(ended)) if !peer.gone.is_cancelled() => ended,
                Ok(_) => return debug!("the client left before the end"),
                Err(_) => {
                    return warn!(after = ?GONE_GRACE, "a handler went on without its client, and was dropped");
                }
            }
        }
    };
    let outcome = ended.unwrap_or_else(|error| {
        warn!(error = &error as &dyn std::error::Error, "a streaming handler did not end by itself");
        ExecOutcome::Failed("the handler of this request failed".to_owned())
    });
    let left = peer.gone.clone();
    let farewell = async {
        for sink in stdout.iter().chain(&stderr).chain(&listening) {
            sink.finish().await;
        }
        let status = format.encode(&outcome);
        if !status.is_empty() {
            error.send(&status).await?;
        }
        error.finish().await;
        peer.leave().await;
        Ok::<(), Gone>(())
    };
    let stopped = async {
        stop.cancelled().await;
        tokio::time::sleep(FAREWELL).await;
    };
    tokio::select! {
        _ = farewell => {}
        () = left.cancelled() => {}
        () = stopped => {}
    }
}

/// Turns a stream of JSON objects into the latest size. Reads to the end whatever comes, or the connection would stop.
async fn pump_sizes(mut input: Input, sizes: watch::Sender<Option<TerminalSize>>) {
    let mut text = Vec::new();
    while let Ok(Some(chunk)) = input.chunk().await {
        text.extend_from_slice(&chunk);
        match take_sizes(&mut text) {
            Ok(None) => {}
            // The handler may have dropped its end.
            Ok(Some(size)) => _ = sizes.send(Some(size)),
            Err(error) => {
                debug!(
                    error = &error as &dyn std::error::Error,
                    "the client's terminal sizes cannot be read"
                );
                break;
            }
        }
    }
    // Dropping the input has the rest thrown away.
}

/// The last whole object in `text`, which keeps what is behind it.
fn take_sizes(text: &mut Vec<u8>) -> Result<Option<TerminalSize>, serde_json::Error> {
    let mut latest = None;
    let mut objects = serde_json::Deserializer::from_slice(text).into_iter::<TerminalSize>();
    let mut used = 0;
    loop {
        match objects.next() {
            Some(Ok(size)) => {
                latest = Some(size);
                used = objects.byte_offset();
            }
            Some(Err(error)) if error.is_eof() && text.len() - used < RESIZE_BYTES => break,
            Some(Err(error)) => return Err(error),
            None => break,
        }
    }
    text.drain(..used);
    Ok(latest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_however_they_are_cut() {
        let mut text = Vec::new();
        let mut seen = Vec::new();
        for part in [r#"{"Width":80,"He"#, "ight\":24}\n{\"Width\":1", "20,\"Height\":40}\n", "\n"] {
            text.extend(part.bytes());
            seen.extend(take_sizes(&mut text).unwrap());
        }
        let size = |width, height| TerminalSize { width, height };
        assert_eq!(seen, [size(80, 24), size(120, 40)]);
        let mut both = br#"{"Width":1,"Height":2}{"Width":3,"Height":4}"#.to_vec();
        assert_eq!(take_sizes(&mut both).unwrap(), Some(size(3, 4)));
    }

    #[test]
    fn sizes_that_make_no_sense_end_it() {
        assert!(take_sizes(&mut b"80x24".to_vec()).is_err());
        assert!(take_sizes(&mut br#"{"Width":70000,"Height":1}"#.to_vec()).is_err());
        let endless = format!("{{\"Width\":1,\"Height\":1{}", " ".repeat(RESIZE_BYTES));
        assert!(take_sizes(&mut endless.into_bytes()).is_err());
    }
}
