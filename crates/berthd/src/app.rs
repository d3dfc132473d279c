//! The daemon's life: take the folders and the socket, build the services, serve, drain.

use std::error::Error;
use std::io;
use std::pin::pin;
use std::time::{Duration, Instant};

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::Config;
use crate::error::Chain;
use crate::lock::{FolderLock, LockError};
use crate::metrics::Calls;
use crate::notify::Notifier;
use crate::server;
use crate::services::Services;
use crate::socket::{self, BoundSocket, SocketError};

/// How long calls in flight may take to end after a signal. Below what a service manager waits (90 s with systemd),
/// above what any call but a pull, a stop with a long grace or an exec takes; those are retried by kubelet.
const DRAIN: Duration = Duration::from_secs(10);

/// ROOT: layers hold set-user-id files of foreign images, which nobody else on the node may reach.
const ROOT_MODE: u32 = 0o700;

/// STATE: may be passed through to the socket, which has a mode of its own, and not be looked into.
const STATE_MODE: u32 = 0o711;

/// Why the daemon ended other than by a signal.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error("cannot handle signals")]
    Signals(#[source] io::Error),
    #[error("cannot take the daemon's folders")]
    Folder(#[from] LockError),
    #[error("cannot take the socket")]
    Socket(#[from] SocketError),
    #[error("cannot start")]
    Services(#[source] Box<dyn Error + Send + Sync>),
    #[error("cannot serve")]
    Serve(#[from] tonic::transport::Error),
    #[error("stopped serving without being asked to")]
    Stopped,
}

/// Runs the daemon until `shutdown` resolves. Pods are left running.
///
/// # Errors
/// What kept it from starting, or ended it unasked.
pub async fn run(
    config: Config,
    notifier: Notifier,
    shutdown: impl Future<Output = ()>,
) -> Result<(), AppError> {
    let began = Instant::now();
    // Both: daemons with one of the two in common would sweep each other's pods.
    let _root = FolderLock::take(&config.root, ROOT_MODE)?;
    let _state = FolderLock::take(&config.state, STATE_MODE)?;
    let bound = BoundSocket::bind(&config.socket, socket::MODE).await?;

    let stopping = CancellationToken::new();
    let limits = config.limits.clone();
    let calls = Calls::default();
    let services = Services::build(config.clone(), calls.clone(), stopping.clone());
    let Services { handlers, network, background: _background, plugins } =
        services.await.map_err(AppError::Services)?;

    let (listener, _file) = bound.listen()?;
    let incoming = socket::incoming(listener);
    let mut serving =
        pin!(server::serve(handlers, calls, &limits, incoming, stopping.clone().cancelled_owned()));
    info!(
        version = env!("CARGO_PKG_VERSION"),
        root = %config.root.display(),
        state = %config.state.display(),
        socket = %config.socket.display(),
        after = ?began.elapsed(),
        "serving"
    );
    notifier.ready();

    tokio::select! {
        // Serving ends only through `stopping`, so losing this race loses nothing: it is awaited again below.
        ended = &mut serving => return ended.map_err(AppError::from).and(Err(AppError::Stopped)),
        () = shutdown => {}
    }
    notifier.stopping();
    // Streams without an end of their own must get theirs first, or the drain waits for them in vain.
    stopping.cancel();
    match timeout(DRAIN, serving).await {
        Ok(ended) => ended?,
        Err(_) => warn!(deadline = ?DRAIN, "calls were still in flight; their callers have to repeat them"),
    }
    if let Some(plugins) = plugins {
        plugins.shutdown().await;
    }
    if let Err(error) = network.shutdown().await {
        warn!(error = %Chain(&error), "the built-in network is left on the host");
    }
    info!(pid = std::process::id(), "ended");
    Ok(())
}
