//! The HTTP server: a token in, an upgraded connection out.
//!
//! One task a connection: it speaks HTTP until the upgrade, and then is the session. Connections that did not come with a
//! token yet are few at a time and have seconds.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug, info_span, warn};

use crate::config::{StartError, StreamingConfig};
use crate::hangup::Hangup;
use crate::negotiate::{self, ACCEPTED_PROTOCOLS, Refused, SPDY, STREAM_PROTOCOL, Upgrade};
use crate::peer::Peer;
use crate::pipe::{self, Room, SEND_QUEUE, Sink};
use crate::port_forward::{self, Pair};
use crate::remote_command::{self, Client, GONE_GRACE};
use crate::session::{BoxFuture, Connect, RemoteCommand, SessionError, StreamOptions};
use crate::spdy::Connection;
use crate::status::StatusFormat;
use crate::tls;
use crate::tokens::Tokens;
use crate::websocket::{self, Codec, CommandProtocol, ForwardProtocol, Tunnel};

/// What a stranger may take to say what it wants.
const HEADERS: Duration = Duration::from_secs(10);

/// What it may take in all, however many requests it makes.
const REQUESTS: Duration = Duration::from_secs(60);

/// Connections that have not said it yet. Those beyond wait in the kernel's queue.
const STRANGERS: usize = 256;

/// How long sessions may take to end when the server stops: what a handler has, and a little for its client.
const STOP: Duration = Duration::from_secs(GONE_GRACE.as_secs() + 2);

/// What a token stands for.
enum Session {
    Exec(Command),
    Attach(Command),
    PortForward { ports: Vec<u16>, connect: Arc<dyn Connect> },
}

struct Command {
    options: StreamOptions,
    handler: Box<dyn RemoteCommand>,
}

impl Session {
    fn path(&self) -> &'static str {
        match self {
            Self::Exec(_) => "exec",
            Self::Attach(_) => "attach",
            Self::PortForward { .. } => "portforward",
        }
    }
}

struct Shared {
    tokens: Tokens<Session>,
    address: SocketAddr,
    /// With TLS.
    certificate: Option<CertificateDer<'static>>,
}

/// Hands out URLs. Clones are the same.
#[derive(Clone)]
pub struct Streaming(Arc<Shared>);

impl std::fmt::Debug for Streaming {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Streaming").field("address", &self.0.address).finish_non_exhaustive()
    }
}

impl Streaming {
    /// Listens. URLs can be handed out at once; the returned [`Server`] has to run for them to work.
    ///
    /// # Errors
    /// The address cannot be had, or the certificate not be used.
    pub async fn start(config: StreamingConfig) -> Result<(Self, Server), StartError> {
        let (tls, certificate) = config.tls.as_ref().map(tls::acceptor).transpose()?.unzip();
        let listen = |source| StartError::Listen { address: config.address, source };
        let listener = TcpListener::bind(config.address).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let streaming = Self(Arc::new(Shared { tokens: Tokens::default(), address, certificate }));
        let server = Server { listener, tls, streaming: streaming.clone(), config };
        Ok((streaming, server))
    }

    /// Where clients connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// The certificate that clients see, DER; absent without TLS. Who has it from here need not trust anybody else.
    #[must_use]
    pub fn certificate(&self) -> Option<&[u8]> {
        self.0.certificate.as_deref()
    }

    /// The URL of an exec that `handler` will do. Good once, for a minute; then the handler is dropped.
    ///
    /// # Errors
    /// The options mean nothing, or too many wait already.
    pub fn exec(&self, options: StreamOptions, handler: impl RemoteCommand) -> Result<String, SessionError> {
        options.check()?;
        self.url(Session::Exec(Command { options, handler: Box::new(handler) }))
    }

    /// The URL of an attachment that `handler` will do, as with [`Streaming::exec`].
    ///
    /// # Errors
    /// As with [`Streaming::exec`].
    pub fn attach(
        &self,
        options: StreamOptions,
        handler: impl RemoteCommand,
    ) -> Result<String, SessionError> {
        options.check()?;
        self.url(Session::Attach(Command { options, handler: Box::new(handler) }))
    }

    /// The URL of a port-forward. Clients name a port with each connection, but for those of WebSocket's older protocol:
    /// they get `ports`, or where that is empty those of the query.
    ///
    /// # Errors
    /// Too many wait already.
    pub fn port_forward(&self, ports: Vec<u16>, connect: impl Connect) -> Result<String, SessionError> {
        self.url(Session::PortForward { ports, connect: Arc::new(connect) })
    }

    fn url(&self, session: Session) -> Result<String, SessionError> {
        let Shared { tokens, address, certificate } = &*self.0;
        let scheme = if certificate.is_some() { "https" } else { "http" };
        let path = session.path();
        let token = tokens.put(session)?;
        Ok(format!("{scheme}://{address}/{path}/{token}"))
    }
}

/// The server's life.
pub struct Server {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    streaming: Streaming,
    config: StreamingConfig,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Server").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Server {
    /// Serves until `stop`; then tells handlers that their clients are gone, and ends within seconds.
    pub async fn run(self, stop: CancellationToken) {
        let Self { listener, tls, streaming, config } = self;
        let strangers = Arc::new(Semaphore::new(STRANGERS));
        let mut connections = JoinSet::new();
        {
            let mut expire = pin!(streaming.0.tokens.expire());
            loop {
                let accept = async {
                    let permit = Arc::clone(&strangers).acquire_owned().await;
                    (listener.accept().await, permit)
                };
                // All arms are safe to lose: a permit is given back, and accept keeps what it did not return.
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = &mut expire => {}
                    Some(ended) = connections.join_next() => report(ended),
                    (accepted, permit) = accept => match accepted {
                        Ok((socket, from)) => {
                            let context = Context {
                                streaming: streaming.clone(),
                                idle: config.idle_timeout,
                                creation: config.stream_creation_timeout,
                                stop: stop.clone(),
                            };
                            let tls = tls.clone();
                            connections.spawn(
                                async move {
                                    if let Err(error) = connection(socket, tls, context, permit.ok()).await {
                                        debug!(error = &*error, "a streaming connection failed");
                                    }
                                }
                                .instrument(info_span!("streaming", client = %from)),
                            );
                        }
                        Err(error) => {
                            // Out of descriptors, most likely: it would fail again at once.
                            warn!(error = &error as &dyn std::error::Error, "cannot accept a streaming connection");
                            sleep(Duration::from_millis(100)).await;
                        }
                    },
                }
            }
        }
        drop(listener);
        streaming.0.tokens.clear();
        let drained = timeout(STOP, async {
            while let Some(ended) = connections.join_next().await {
                report(ended);
            }
        });
        if drained.await.is_err() {
            warn!(left = connections.len(), deadline = ?STOP, "streaming sessions were cut off");
        }
        connections.shutdown().await;
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        warn!(error = &error as &dyn std::error::Error, "a streaming connection ended in a panic");
    }
}

/// What every connection needs.
#[derive(Clone)]
struct Context {
    streaming: Streaming,
    idle: Duration,
    creation: Duration,
    stop: CancellationToken,
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn connection(
    socket: TcpStream,
    tls: Option<TlsAcceptor>,
    context: Context,
    permit: Option<tokio::sync::OwnedSemaphorePermit>,
) -> Result<(), Failure> {
    let _ = socket.set_nodelay(true);
    // A client on another host may vanish without a word.
    let _ = rustix::net::sockopt::set_socket_keepalive(&socket, true);
    let hangup = Hangup::watch(socket.as_fd())?;
    match tls {
        None => http(TokioIo::new(socket), context, hangup, permit).await,
        Some(acceptor) => {
            let socket = timeout(HEADERS, acceptor.accept(socket)).await??;
            http(TokioIo::new(socket), context, hangup, permit).await
        }
    }
}

/// Speaks HTTP until the client has what it came for, and then that.
async fn http<IO>(
    io: TokioIo<IO>,
    context: Context,
    hangup: Hangup,
    permit: Option<tokio::sync::OwnedSemaphorePermit>,
) -> Result<(), Failure>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let stop = context.stop.clone();
    let hangup = Mutex::new(Some(hangup));
    let upgraded: Mutex<Option<BoxFuture<'static, ()>>> = Mutex::new(None);
    let service = service_fn(|request: Request<Incoming>| {
        let response = match answer(request, &context) {
            Ok(Answer { response, upgrade, session }) => {
                let hangup = hangup.lock().unwrap_or_else(PoisonError::into_inner).take();
                let context = context.clone();
                let work: BoxFuture<'static, ()> = Box::pin(async move {
                    match upgrade.await {
                        Ok(socket) => session.run(socket, hangup, &context).await,
                        Err(error) => debug!(error = &error as &dyn std::error::Error, "the upgrade failed"),
                    }
                });
                *upgraded.lock().unwrap_or_else(PoisonError::into_inner) = Some(work);
                response
            }
            Err(response) => *response,
        };
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADERS).max_buf_size(64 * 1024);
    let serving = builder.serve_connection(io, service).with_upgrades();
    tokio::select! {
        served = serving => served?,
        () = stop.cancelled() => return Ok(()),
        () = sleep(REQUESTS) => return Ok(()),
    }
    drop(permit);
    let work = upgraded.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(work) = work {
        work.await;
    }
    Ok(())
}

struct Answer {
    response: Response<Full<Bytes>>,
    upgrade: OnUpgrade,
    session: Ready,
}

/// A session with the protocol that was agreed on.
enum Ready {
    CommandSpdy(Command, remote_command::Version),
    CommandChannels(Command, CommandProtocol),
    ForwardSpdy(Arc<dyn Connect>),
    ForwardTunnel(Arc<dyn Connect>),
    ForwardChannels(Arc<dyn Connect>, Vec<u16>, Codec),
}

fn text(status: StatusCode, body: impl Into<String>) -> Response<Full<Bytes>> {
    let mut body: String = body.into();
    body.push('\n');
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn answer(mut request: Request<Incoming>, context: &Context) -> Result<Answer, Box<Response<Full<Bytes>>>> {
    let missing = || Box::new(text(StatusCode::NOT_FOUND, "404 page not found"));
    let mut segments = request.uri().path().strip_prefix('/').unwrap_or_default().split('/');
    let (Some(path @ ("exec" | "attach" | "portforward")), Some(token), None) =
        (segments.next(), segments.next(), segments.next())
    else {
        return Err(missing());
    };
    if !matches!(*request.method(), Method::GET | Method::POST) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "405 method not allowed");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, POST"));
        return Err(Box::new(response));
    }
    // Used with whatever comes: a token that was seen once is not good again.
    let session = context.streaming.0.tokens.take(token).filter(|session| session.path() == path);
    let session = session.ok_or_else(missing)?;
    let agreed = agree(session, &request).map_err(|refused| Box::new(refusal(&refused)))?;
    let upgrade = hyper::upgrade::on(&mut request);
    let Agreed { upgrade: to, protocol, session } = agreed;
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    match to {
        Upgrade::Spdy => {
            headers.insert(UPGRADE, HeaderValue::from_static(SPDY));
            headers.insert(STREAM_PROTOCOL, HeaderValue::from_static(protocol.unwrap_or_default()));
        }
        Upgrade::WebSocket { key } => {
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
            let accept = derive_accept_key(key.as_bytes());
            headers.insert(SEC_WEBSOCKET_ACCEPT, HeaderValue::try_from(accept).expect("base64 is ASCII"));
            if let Some(protocol) = protocol {
                headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
            }
        }
    }
    Ok(Answer { response, upgrade, session })
}

/// Why not, with the protocols that would have been known.
fn refusal(refused: &Refused) -> Response<Full<Bytes>> {
    let status = match refused {
        Refused::NoUpgrade
        | Refused::NoProtocol
        | Refused::NoKey
        | Refused::Version
        | Refused::NoPorts(_) => StatusCode::BAD_REQUEST,
        Refused::Protocol { .. } => StatusCode::FORBIDDEN,
    };
    let mut response = text(status, refused.to_string());
    let headers = response.headers_mut();
    match refused {
        Refused::Protocol { ours, .. } => {
            for protocol in ours {
                headers.append(ACCEPTED_PROTOCOLS, HeaderValue::from_static(protocol));
            }
        }
        Refused::Version => {
            headers.insert(http::header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        }
        Refused::NoUpgrade | Refused::NoProtocol | Refused::NoKey | Refused::NoPorts(_) => {}
    }
    response
}

struct Agreed {
    upgrade: Upgrade,
    protocol: Option<&'static str>,
    session: Ready,
}

fn agree(session: Session, request: &Request<Incoming>) -> Result<Agreed, Refused> {
    let headers = request.headers();
    let upgrade = negotiate::upgrade(headers)?;
    let spdy = matches!(upgrade, Upgrade::Spdy);
    let (protocol, session) = match session {
        Session::Exec(command) | Session::Attach(command) if spdy => {
            let ours = &remote_command::SPDY_PROTOCOLS;
            let (name, version) = negotiate::spdy_protocol(headers, ours)?;
            (Some(name), Ready::CommandSpdy(command, version))
        }
        Session::Exec(command) | Session::Attach(command) => {
            let ours = &websocket::COMMAND_PROTOCOLS;
            let chosen = negotiate::subprotocol(headers, ours)?;
            let protocol = chosen.map_or(websocket::BARE_COMMAND, |(_, protocol)| protocol);
            (chosen.map(|(name, _)| name), Ready::CommandChannels(command, protocol))
        }
        Session::PortForward { connect, .. } if spdy => {
            let ours = &port_forward::SPDY_PROTOCOLS;
            let (name, ()) = negotiate::spdy_protocol(headers, ours)?;
            (Some(name), Ready::ForwardSpdy(connect))
        }
        Session::PortForward { ports, connect } => {
            let ours = &websocket::FORWARD_PROTOCOLS;
            let chosen = negotiate::subprotocol(headers, ours)?;
            let ready =
                match chosen.map_or(ForwardProtocol::Channels(Codec::Binary), |(_, protocol)| protocol) {
                    ForwardProtocol::Tunnel => Ready::ForwardTunnel(connect),
                    ForwardProtocol::Channels(codec) => {
                        let ports = if ports.is_empty() {
                            negotiate::ports(request.uri().query().unwrap_or_default())?
                        } else {
                            ports
                        };
                        if ports.len() > codec.channels() / 2 {
                            return Err(Refused::NoPorts("there are more ports than channels"));
                        }
                        Ready::ForwardChannels(connect, ports, codec)
                    }
                };
            (chosen.map(|(name, _)| name), ready)
        }
    };
    Ok(Agreed { upgrade, protocol, session })
}

impl Ready {
    async fn run(self, socket: Upgraded, hangup: Option<Hangup>, context: &Context) {
        let Context { idle, creation, stop, .. } = context;
        let (idle, creation) = (*idle, *creation);
        match self {
            Self::CommandSpdy(Command { options, handler }, version) => {
                let connection = spdy(socket, hangup, idle);
                remote_command::over_spdy(connection, version, options, creation, handler, stop).await;
            }
            Self::ForwardSpdy(connect) => {
                port_forward::over_spdy(spdy(socket, hangup, idle), creation, connect, stop).await;
            }
            Self::ForwardTunnel(connect) => {
                let tunnel = Tunnel::new(websocket::accept(TokioIo::new(socket)).await);
                let (reader, writer) = tokio::io::split(tunnel);
                let connection = Connection::start(reader, writer, Bytes::new(), hangup, idle);
                port_forward::over_spdy(connection, creation, connect, stop).await;
            }
            Self::CommandChannels(Command { options, handler }, protocol) => {
                command_channels(socket, hangup, idle, protocol, options, handler, stop).await;
            }
            Self::ForwardChannels(connect, ports, codec) => {
                forward_channels(socket, hangup, idle, codec, ports, connect, stop).await;
            }
        }
    }
}

/// SPDY on the bare socket where there is one: two halves then need no lock between them.
fn spdy(socket: Upgraded, hangup: Option<Hangup>, idle: Duration) -> Connection {
    match socket.downcast::<TokioIo<TcpStream>>() {
        Ok(parts) => {
            let (reader, writer) = parts.io.into_inner().into_split();
            Connection::start(reader, writer, parts.read_buf, hangup, idle)
        }
        Err(socket) => {
            let (reader, writer) = tokio::io::split(TokioIo::new(socket));
            Connection::start(reader, writer, Bytes::new(), hangup, idle)
        }
    }
}

async fn command_channels(
    socket: Upgraded,
    hangup: Option<Hangup>,
    idle: Duration,
    protocol: CommandProtocol,
    options: StreamOptions,
    handler: Box<dyn RemoteCommand>,
    stop: &CancellationToken,
) {
    let CommandProtocol { codec, json, half_close } = protocol;
    let (frames, queued) = mpsc::channel(SEND_QUEUE);
    let mut peer = Peer::new(frames.clone(), idle);
    let room = Arc::new(Room::default());
    // By number: stdin, stdout, stderr, error, resize.
    let (stdin_feed, stdin) = options.stdin.then(|| pipe::input(&room)).unzip();
    let (resize_feed, resize) = options.tty.then(|| pipe::input(&room)).unzip();
    let sink = |channel| Sink::new(frames.clone(), codec.framing(channel));
    let client = Client {
        stdin,
        stdout: options.stdout.then(|| sink(1)),
        stderr: options.stderr.then(|| sink(2)),
        error: sink(3),
        resize,
        listening: Vec::new(),
        format: if json { StatusFormat::Json } else { StatusFormat::Text },
    };
    let feeds = vec![stdin_feed, None, None, None, resize_feed];
    let socket = websocket::accept(TokioIo::new(socket)).await;
    let watch = peer.watch(hangup);
    websocket::start(socket, codec, half_close, feeds, queued, watch, &mut peer);
    // Tells the client that the connection stands.
    let first = client.stdout.as_ref().or(client.stderr.as_ref()).unwrap_or(&client.error);
    if first.send(&[]).await.is_ok() {
        remote_command::serve(client, peer, handler, stop).await;
    }
}

async fn forward_channels(
    socket: Upgraded,
    hangup: Option<Hangup>,
    idle: Duration,
    codec: Codec,
    ports: Vec<u16>,
    connect: Arc<dyn Connect>,
    stop: &CancellationToken,
) {
    let (frames, queued) = mpsc::channel(SEND_QUEUE);
    let mut peer = Peer::new(frames.clone(), idle);
    let room = Arc::new(Room::default());
    let mut feeds = Vec::new();
    let mut pairs = Vec::new();
    for (port, channel) in ports.into_iter().zip((0u8..).step_by(2)) {
        let (feed, input) = pipe::input(&room);
        feeds.extend([Some(feed), None]);
        let sink = |channel| Sink::new(frames.clone(), codec.framing(channel));
        pairs.push(Pair { port, input, data: sink(channel), error: sink(channel + 1) });
    }
    let socket = websocket::accept(TokioIo::new(socket)).await;
    let watch = peer.watch(hangup);
    websocket::start(socket, codec, false, feeds, queued, watch, &mut peer);
    port_forward::over_channels(pairs, peer, connect, stop).await;
}
