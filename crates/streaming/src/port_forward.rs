//! Port-forward: many connections to a pod's ports beside one another, each with a stream for its error.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::peer::Peer;
use crate::pipe::{Input, Sink};
use crate::session::Connect;
use crate::spdy::{Connection, Headers, STREAMS, Stream};

pub(crate) const SPDY_PROTOCOLS: [(&str, ()); 1] = [("portforward.k8s.io", ())];

/// How long a connection to a pod may take.
const CONNECT: Duration = Duration::from_secs(30);

/// How long a client may be silent on a connection that the pod has finished. Older clients of Kubernetes close their
/// half only when the server has closed both; one that goes on sending is not cut off.
const HALF_CLOSED: Duration = Duration::from_secs(5);

/// The same where a client cannot close its half, nor hear of the pod's end but by the connection's.
const HALF_CLOSED_CHANNEL: Duration = Duration::from_secs(1);

/// Bytes of a request's name; clients count them.
const REQUEST_ID: usize = 64;

/// One connection's streams, by whatever transport.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) port: u16,
    pub(crate) input: Input,
    pub(crate) data: Sink,
    pub(crate) error: Sink,
}

enum Half {
    Data { stream: Stream, port: u16 },
    Error { stream: Stream },
}

/// Pairs up the streams that a client opens, and forwards each pair, until the client leaves.
pub(crate) async fn over_spdy(
    mut connection: Connection,
    creation: Duration,
    connect: Arc<dyn Connect>,
    stop: &CancellationToken,
) {
    let mut pairs = JoinSet::new();
    let mut halves: HashMap<String, Half> = HashMap::new();
    // In the order of their ends. Those that found their other half stay until then.
    let mut ends: VecDeque<(Instant, String, u32)> = VecDeque::new();
    loop {
        let next = ends.front().map(|(end, ..)| *end);
        let expired = async {
            match next {
                Some(end) => sleep_until(end).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            stream = connection.streams.recv() => {
                let Some(stream) = stream else { break };
                let id = stream.id;
                // One that its client has reset no longer counts for the connection, and waits here all the same.
                if halves.len() >= STREAMS {
                    debug!(stream = id, "too many streams that wait for their other half");
                    stream.sink.reset().await;
                    continue;
                }
                match pair_up(&mut halves, stream) {
                    Ok(Matched::Pair(pair)) => {
                        pairs.spawn(forward(pair, Arc::clone(&connect)));
                    }
                    Ok(Matched::Waits(request)) => ends.push_back((Instant::now() + creation, request, id)),
                    Err((stream, reason)) => {
                        debug!(stream = id, reason, "a stream that cannot be forwarded");
                        stream.sink.reset().await;
                    }
                }
            }
            Some(_) = pairs.join_next() => {}
            () = expired => {
                if let Some((_, request, id)) = ends.pop_front() {
                    expire(&mut halves, &request, id).await;
                }
            }
            () = stop.cancelled() => break,
        }
    }
}

enum Matched {
    Pair(Pair),
    Waits(String),
}

fn pair_up(
    halves: &mut HashMap<String, Half>,
    mut stream: Stream,
) -> Result<Matched, (Stream, &'static str)> {
    let kind = stream.headers.get("streamtype").unwrap_or_default();
    let data = match kind {
        "data" => true,
        "error" => false,
        _ => return Err((stream, "its type is neither data nor error")),
    };
    let port = stream.headers.get("port").and_then(|port| port.parse().ok()).filter(|port| *port != 0);
    let Some(port) = port else { return Err((stream, "it has no port")) };
    let request = match stream.headers.get("requestid") {
        Some(request) => request.to_owned(),
        // The first clients had none, and opened the data stream right behind the error stream.
        None if data => stream.id.saturating_sub(2).to_string(),
        None => stream.id.to_string(),
    };
    if request.len() > REQUEST_ID {
        return Err((stream, "its request has a name that nobody would give it"));
    }
    // Nobody asks them any more, and they are as long as the client likes.
    stream.headers = Headers::default();
    match (halves.remove(&request), data) {
        (None, _) => {
            let half = if data { Half::Data { stream, port } } else { Half::Error { stream } };
            halves.insert(request.clone(), half);
            Ok(Matched::Waits(request))
        }
        (Some(Half::Error { stream: error }), true) => Ok(Matched::Pair(new_pair(port, stream, error))),
        // The port is the data stream's, as it is with other servers.
        (Some(Half::Data { stream: data, port }), false) => Ok(Matched::Pair(new_pair(port, data, stream))),
        (Some(half), _) => {
            halves.insert(request, half);
            Err((stream, "its request has one of this type"))
        }
    }
}

fn new_pair(port: u16, data: Stream, error: Stream) -> Pair {
    Pair { port, input: data.input, data: data.sink, error: error.sink }
}

/// Ends a half that has waited for long enough, if it waits.
async fn expire(halves: &mut HashMap<String, Half>, request: &str, id: u32) {
    let waits = halves.get(request).is_some_and(|half| match half {
        Half::Data { stream, .. } | Half::Error { stream } => stream.id == id,
    });
    if !waits {
        return;
    }
    match halves.remove(request) {
        Some(Half::Error { stream }) => {
            let _ = stream.sink.send(b"timed out waiting for the data stream").await;
            stream.sink.finish().await;
        }
        Some(Half::Data { stream, .. }) => stream.sink.reset().await,
        None => {}
    }
}

/// Forwards a pair for each port beside one another, until all have ended or the client left.
pub(crate) async fn over_channels(
    pairs: Vec<Pair>,
    peer: Peer,
    connect: Arc<dyn Connect>,
    stop: &CancellationToken,
) {
    let gone = peer.gone.clone();
    let all = async {
        let mut running = JoinSet::new();
        for pair in pairs {
            // Which channel is which port, in the way the protocol has it.
            let port = pair.port.to_le_bytes();
            if pair.data.send(&port).await.is_err() || pair.error.send(&port).await.is_err() {
                return;
            }
            running.spawn(forward(pair, Arc::clone(&connect)));
        }
        while running.join_next().await.is_some() {}
        peer.leave().await;
    };
    tokio::select! {
        () = all => {}
        () = gone.cancelled() => {}
        () = stop.cancelled() => {}
    }
}

async fn forward(pair: Pair, connect: Arc<dyn Connect>) {
    let Pair { port, input, data, error } = pair;
    let connected = match timeout(CONNECT, connect.connect(port)).await {
        Ok(connected) => connected,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {CONNECT:?}"))),
    };
    match connected {
        Ok(socket) => copy(socket, input, &data).await,
        Err(reason) => {
            debug!(port, error = &reason as &dyn std::error::Error, "cannot forward");
            let _ = error.send(format!("error forwarding port {port}: {reason}").as_bytes()).await;
            data.reset().await;
        }
    }
    error.finish().await;
}

/// Copies both ways, and passes on the end of each.
async fn copy(socket: TcpStream, input: Input, data: &Sink) {
    let _ = socket.set_nodelay(true);
    let (from_pod, to_pod) = socket.into_split();
    let sent = AtomicU64::new(0);
    let mut up = pin!(upload(input, to_pod, &sent));
    let mut down = pin!(download(from_pod, data));
    let up_ended = tokio::select! {
        ended = &mut up => Some(ended),
        ended = &mut down => {
            match ended {
                Ok(()) => data.finish().await,
                Err(()) => return data.reset().await,
            }
            None
        }
    };
    match up_ended {
        // The client wants no more of the connection.
        Some(Upload::Lost) => data.reset().await,
        Some(Upload::Finished | Upload::Refused) => match down.await {
            Ok(()) => data.finish().await,
            Err(()) => data.reset().await,
        },
        None => {
            let silence = if data.has_end() { HALF_CLOSED } else { HALF_CLOSED_CHANNEL };
            loop {
                let before = sent.load(Ordering::Relaxed);
                if timeout(silence, &mut up).await.is_ok() {
                    break;
                }
                if sent.load(Ordering::Relaxed) == before {
                    data.reset().await;
                    break;
                }
            }
        }
    }
}

enum Upload {
    /// The client finished, and the pod was told.
    Finished,
    /// The pod takes no more; it may still send.
    Refused,
    /// The client is gone, or reset the connection.
    Lost,
}

async fn upload(mut input: Input, mut socket: OwnedWriteHalf, sent: &AtomicU64) -> Upload {
    loop {
        match input.chunk().await {
            Ok(Some(chunk)) => {
                if socket.write_all(&chunk).await.is_err() {
                    return Upload::Refused;
                }
                sent.fetch_add(1, Ordering::Relaxed);
            }
            Ok(None) => {
                return match socket.shutdown().await {
                    Ok(()) => Upload::Finished,
                    Err(_) => Upload::Refused,
                };
            }
            Err(_) => return Upload::Lost,
        }
    }
}

/// Ok at the pod's end; an error when either side broke.
async fn download(socket: OwnedReadHalf, data: &Sink) -> Result<(), ()> {
    loop {
        // No buffer is held while there is nothing to read: connections are many, and mostly idle.
        socket.readable().await.map_err(drop)?;
        match data.send_from(|frame| socket.try_read_buf(frame)).await {
            Ok(Some(0)) => return Ok(()),
            Ok(_) => {}
            Err(_) => return Err(()),
        }
    }
}
