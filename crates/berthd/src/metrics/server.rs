//! Two pages over HTTP.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::Sources;

/// Scrapers at the same time; more wait in the kernel's queue.
const CONNECTIONS: usize = 16;

/// How long a connection is kept, whatever the other side does with it. A scraper makes the next one by itself.
const CONNECTION: Duration = Duration::from_secs(120);

/// How long a client may take to say what it wants.
const HEADERS: Duration = Duration::from_secs(10);

const OPEN_METRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// The metrics' address cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on metrics.address {address}")]
pub(crate) struct BindError {
    address: SocketAddr,
    #[source]
    source: io::Error,
}

/// Listens already.
#[derive(Debug)]
pub(crate) struct Server {
    listener: TcpListener,
    sources: Sources,
}

impl Server {
    pub(crate) async fn bind(address: SocketAddr, sources: Sources) -> Result<Self, BindError> {
        let listen = |source| BindError { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        tracing::info!(address = %listener.local_addr().map_err(listen)?, "metrics");
        Ok(Self { listener, sources })
    }

    /// Serves until `stop`, which cuts answers off.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let Self { listener, sources } = self;
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let accept = async {
                let permit = Arc::clone(&room).acquire_owned().await;
                (listener.accept().await, permit)
            };
            // All arms are safe to lose: a permit is given back, and accept keeps what it did not return.
            tokio::select! {
                () = stop.cancelled() => return,
                Some(_) = connections.join_next() => {}
                (accepted, permit) = accept => match accepted {
                    Ok((socket, from)) => {
                        let sources = sources.clone();
                        connections.spawn(async move {
                            let _permit = permit;
                            // One that is old enough to be closed is no failure.
                            if let Ok(Err(error)) = timeout(CONNECTION, connection(socket, sources)).await {
                                debug!(client = %from, %error, "a scraper's connection failed");
                            }
                        });
                    }
                    Err(error) => {
                        // Out of descriptors, most likely: it would fail again at once.
                        warn!(%error, "cannot accept a scraper's connection");
                        sleep(Duration::from_millis(100)).await;
                    }
                },
            }
        }
    }
}

async fn connection(socket: TcpStream, sources: Sources) -> hyper::Result<()> {
    let service = service_fn(|request| {
        let sources = sources.clone();
        async move { Ok::<_, Infallible>(answer(&request, &sources).await) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADERS);
    builder.serve_connection(TokioIo::new(socket), service).await
}

async fn answer(request: &Request<Incoming>, sources: &Sources) -> Response<String> {
    let page = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => sources.daemon().await,
        (&Method::GET, "/metrics/pods") => sources.pods().await,
        _ => return refuse(StatusCode::NOT_FOUND, "GET /metrics or /metrics/pods\n"),
    };
    match page {
        Ok(text) => {
            let mut response = Response::new(text);
            response.headers_mut().insert(CONTENT_TYPE, OPEN_METRICS);
            response
        }
        Err(error) => {
            warn!(%error, "metrics cannot be written");
            refuse(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the metrics cannot be written; berthd's log has more\n",
            )
        }
    }
}

fn refuse(status: StatusCode, why: &str) -> Response<String> {
    let mut response = Response::new(why.to_owned());
    *response.status_mut() = status;
    response
}
