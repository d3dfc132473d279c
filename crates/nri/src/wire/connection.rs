//! One connection with a peer: calls go out on one stream, calls come in on the other.

use std::{
    collections::HashMap,
    fmt, io,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt as _, future::BoxFuture, stream};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    message::{self, Message, Messages, RESOURCE_EXHAUSTED, Request, Response, Status, UNIMPLEMENTED},
    mux::{self, Frames, PLUGIN_SERVICE, RUNTIME_SERVICE},
};
use crate::CallError;

const PLUGIN: &str = "nri.pkg.api.v1alpha1.Plugin";
const RUNTIME: &str = "nri.pkg.api.v1alpha1.Runtime";

/// Calls of the peer that wait for their turn; more are refused. A plugin has a reason for one at a time.
const WAITING: usize = 32;
/// Calls of the peer that are worked on at the same time.
const AT_ONCE: usize = 4;
/// Messages on their way out: our one call, and an answer for each of the peer's.
const OUTGOING: usize = WAITING + AT_ONCE + 1;

/// Which end of the connection this is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Role {
    Runtime,
    /// In tests of this crate.
    #[cfg_attr(not(test), expect(dead_code, reason = "plugins are other programs"))]
    Plugin,
}

impl Role {
    /// The stream that calls go out on, and the service they are for.
    fn calls(self) -> (u32, &'static str) {
        match self {
            Self::Runtime => (PLUGIN_SERVICE, PLUGIN),
            Self::Plugin => (RUNTIME_SERVICE, RUNTIME),
        }
    }

    fn serves(self) -> (u32, &'static str) {
        match self {
            Self::Runtime => (RUNTIME_SERVICE, RUNTIME),
            Self::Plugin => (PLUGIN_SERVICE, PLUGIN),
        }
    }
}

/// Answers the peer's calls.
pub(crate) trait Service: Send + Sync + 'static {
    fn serve(self: Arc<Self>, method: String, payload: Bytes) -> BoxFuture<'static, Result<Bytes, Status>>;
}

/// A handle on a connection; the future that [`open`] returned beside it does the work.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    shared: Arc<Shared>,
}

struct Shared {
    role: Role,
    outgoing: mpsc::Sender<Bytes>,
    waiting: Mutex<HashMap<u32, oneshot::Sender<Response>>>,
    next_stream: AtomicU32,
    closing: CancellationToken,
    /// Cancelled once nothing is read or written any more.
    ended: CancellationToken,
    why: OnceLock<String>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Connection").field("role", &self.role).field("why", &self.why).finish()
    }
}

/// Takes a connected stream. The future ends with the connection, and ends it when it is dropped.
pub(crate) fn open<S>(
    stream: S,
    role: Role,
    service: Arc<dyn Service>,
) -> (Connection, impl Future<Output = ()> + Send)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (outgoing, to_write) = mpsc::channel(OUTGOING);
    let shared = Arc::new(Shared {
        role,
        outgoing,
        waiting: Mutex::default(),
        next_stream: AtomicU32::new(1),
        closing: CancellationToken::new(),
        ended: CancellationToken::new(),
        why: OnceLock::new(),
    });
    let connection = Connection { shared: Arc::clone(&shared) };
    (connection, run(shared, stream, to_write, service))
}

impl Connection {
    /// Makes a call and waits for its answer.
    pub(crate) async fn call<A: prost::Message + Default>(
        &self,
        method: &'static str,
        request: &impl prost::Message,
        limit: Duration,
    ) -> Result<A, CallError> {
        let shared = &self.shared;
        let (wire, service) = shared.role.calls();
        // Odd ones are the caller's.
        let stream = shared.next_stream.fetch_add(2, Ordering::Relaxed);
        let request = Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload: request.encode_to_vec().into(),
            timeout_nano: i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX),
        };
        let bytes = message::request(stream, &request).ok_or(CallError::TooLong)?;
        let (reply, answer) = oneshot::channel();
        shared.waiting().insert(stream, reply);
        let exchange = async {
            shared.outgoing.send(mux::frames(wire, &bytes)).await.ok()?;
            answer.await.ok()
        };
        let answered = timeout(limit, exchange).await;
        shared.waiting().remove(&stream);
        let response = answered.map_err(|_| CallError::Timeout(limit))?.ok_or_else(|| self.closed())?;
        match response.status {
            Some(Status { code, message }) if code != 0 => Err(CallError::Answered { code, message }),
            _ => A::decode(response.payload).map_err(|_| CallError::Garbled),
        }
    }

    /// Ends it. What is in flight fails.
    pub(crate) fn close(&self) {
        self.shared.closing.cancel();
    }

    /// Waits for its end.
    pub(crate) async fn ended(&self) {
        self.shared.ended.cancelled().await;
    }

    /// Why it ended, once it has.
    pub(crate) fn why(&self) -> String {
        self.shared.why.get().cloned().unwrap_or_else(|| "the connection is closed".to_owned())
    }

    fn closed(&self) -> CallError {
        CallError::Closed(self.why())
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, HashMap<u32, oneshot::Sender<Response>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn received(&self, message: Message, calls: &mpsc::Sender<(u32, Request)>) -> Result<(), String> {
        match message {
            Message::Response(stream, response) => {
                // One that nobody waits for came too late.
                if let Some(reply) = self.waiting().remove(&stream) {
                    drop(reply.send(response));
                }
                Ok(())
            }
            Message::Request(stream, request) => calls.try_send((stream, request)).or_else(|_| {
                let status = Some(Status::new(RESOURCE_EXHAUSTED, "too many calls at once"));
                let answer = message::response(stream, &Response { status, payload: Bytes::new() });
                let sent = self.outgoing.try_send(mux::frames(self.role.serves().0, &answer));
                sent.map_err(|_| "it makes calls without taking the answers".to_owned())
            }),
            Message::Other => Ok(()),
        }
    }
}

async fn run<S: AsyncRead + AsyncWrite + Send>(
    shared: Arc<Shared>,
    stream: S,
    to_write: mpsc::Receiver<Bytes>,
    service: Arc<dyn Service>,
) {
    let ended = shared.ended.clone().drop_guard();
    let (reader, writer) = tokio::io::split(stream);
    let (calls, to_serve) = mpsc::channel(WAITING);
    let why = tokio::select! {
        // Whichever ends first ends the connection: there is nothing that losing could lose.
        why = read(&shared, reader, calls) => why,
        why = write(writer, to_write) => why,
        () = serve(&shared, to_serve, service) => "nothing is read any more".to_owned(),
        () = shared.closing.cancelled() => "it was closed".to_owned(),
    };
    // The reason first: whoever waits asks for it next.
    shared.why.get_or_init(|| why);
    shared.waiting().clear();
    drop(ended);
}

async fn read(
    shared: &Shared,
    mut reader: impl AsyncRead + Unpin,
    calls: mpsc::Sender<(u32, Request)>,
) -> String {
    let (answers_on, asks_on) = (shared.role.calls().0, shared.role.serves().0);
    let mut frames = Frames::default();
    let (mut answers, mut asks) = (Messages::default(), Messages::default());
    loop {
        match reader.read_buf(frames.buffer()).await {
            Ok(0) => return "it closed the connection".to_owned(),
            Ok(_) => {}
            Err(error) => return format!("it cannot be read from: {error}"),
        }
        loop {
            let (stream, bytes) = match frames.next() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(error) => return format!("it sent {error}"),
            };
            let messages = match stream {
                stream if stream == answers_on => &mut answers,
                stream if stream == asks_on => &mut asks,
                // As the Go module does it: for who knows more streams than we.
                _ => continue,
            };
            messages.push(&bytes);
            loop {
                match messages.next() {
                    Ok(Some(message)) => {
                        if let Err(why) = shared.received(message, &calls) {
                            return why;
                        }
                    }
                    Ok(None) => break,
                    Err(error) => return format!("it sent {error}"),
                }
            }
        }
    }
}

async fn write(mut writer: impl AsyncWrite + Unpin, mut to_write: mpsc::Receiver<Bytes>) -> String {
    while let Some(frames) = to_write.recv().await {
        if let Err(error) = writer.write_all(&frames).await {
            return match error.kind() {
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                    "it closed the connection".to_owned()
                }
                _ => format!("it cannot be written to: {error}"),
            };
        }
    }
    "nobody uses it any more".to_owned()
}

async fn serve(shared: &Shared, to_serve: mpsc::Receiver<(u32, Request)>, service: Arc<dyn Service>) {
    let (wire, name) = shared.role.serves();
    let requests = stream::unfold(to_serve, async |mut calls| Some((calls.recv().await?, calls)));
    requests
        .for_each_concurrent(AT_ONCE, |(stream, request)| {
            let service = Arc::clone(&service);
            async move {
                let result = match request.service == name {
                    true => service.serve(request.method, request.payload).await,
                    false => Err(unknown(&request.service)),
                };
                let response = match result {
                    Ok(payload) => Response { status: None, payload },
                    Err(status) => Response { status: Some(status), payload: Bytes::new() },
                };
                let bytes = message::response(stream, &response);
                // When nothing is written any more, the connection ends.
                drop(shared.outgoing.send(mux::frames(wire, &bytes)).await);
            }
        })
        .await;
}

/// For a service or method that is not there.
pub(crate) fn unknown(what: &str) -> Status {
    Status::new(UNIMPLEMENTED, format!("there is no {what}"))
}

#[cfg(test)]
mod tests {
    use tokio::io::DuplexStream;

    use super::*;
    use crate::{ConfigureRequest, ConfigureResponse, Empty, RegisterPluginRequest};

    const PATIENCE: Duration = Duration::from_secs(10);

    /// Gives back what it gets, or hangs, or fails.
    struct Echo;

    impl Service for Echo {
        fn serve(
            self: Arc<Self>,
            method: String,
            payload: Bytes,
        ) -> BoxFuture<'static, Result<Bytes, Status>> {
            Box::pin(async move {
                match method.as_str() {
                    "Shutdown" => std::future::pending().await,
                    "Configure" | "RegisterPlugin" => Ok(payload),
                    method => Err(unknown(method)),
                }
            })
        }
    }

    fn pair() -> (Connection, Connection) {
        let (ours, theirs): (DuplexStream, DuplexStream) = tokio::io::duplex(64);
        let (runtime, running) = open(ours, Role::Runtime, Arc::new(Echo));
        tokio::spawn(running);
        let (plugin, running) = open(theirs, Role::Plugin, Arc::new(Echo));
        tokio::spawn(running);
        (runtime, plugin)
    }

    #[tokio::test]
    async fn both_ends_call_each_other_at_the_same_time() {
        let (runtime, plugin) = pair();
        let configure = ConfigureRequest { config: "x".repeat(1 << 20), ..Default::default() };
        let register = RegisterPluginRequest { plugin_name: "y".repeat(1 << 20), ..Default::default() };
        let (configured, registered) = tokio::join!(
            runtime.call::<ConfigureRequest>("Configure", &configure, PATIENCE),
            plugin.call::<RegisterPluginRequest>("RegisterPlugin", &register, PATIENCE),
        );
        assert_eq!(configured.unwrap(), configure);
        assert_eq!(registered.unwrap(), register);
    }

    #[tokio::test]
    async fn a_refusal_a_hang_and_an_end_are_told_apart() {
        let (runtime, plugin) = pair();
        let refused = runtime.call::<Empty>("Unheard", &Empty {}, PATIENCE).await;
        assert!(matches!(refused, Err(CallError::Answered { code: UNIMPLEMENTED, .. })), "{refused:?}");
        let hung = runtime.call::<Empty>("Shutdown", &Empty {}, Duration::from_millis(10)).await;
        assert!(matches!(hung, Err(CallError::Timeout(_))), "{hung:?}");
        let call = runtime.call::<Empty>("Shutdown", &Empty {}, PATIENCE);
        let (ended, ()) = tokio::join!(call, async { plugin.close() });
        assert!(matches!(ended, Err(CallError::Closed(_))), "{ended:?}");
        assert_eq!(runtime.why(), "it closed the connection");
    }

    #[tokio::test]
    async fn an_answer_that_is_no_such_message_is_an_error_of_its_own() {
        let (runtime, _plugin) = pair();
        let request = ConfigureRequest { config: "text".to_owned(), ..Default::default() };
        // Field 1 of the answer is not there, field 2 is a number.
        let answer = runtime.call::<ConfigureResponse>("Configure", &request, PATIENCE).await;
        assert_eq!(answer.unwrap(), ConfigureResponse { events: 0 });
        let request = ConfigureRequest { runtime_name: "text".to_owned(), ..Default::default() };
        let answer = runtime.call::<ConfigureResponse>("Configure", &request, PATIENCE).await;
        assert!(matches!(answer, Err(CallError::Garbled)), "{answer:?}");
    }
}
