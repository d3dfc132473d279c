//! What the caller gives for a request, and what it gets when the client's streams stand.

use std::io;
use std::pin::Pin;

use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::pipe::{Input, Output};

/// A future of a trait that is used as an object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The streams that an exec or attach request asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamOptions {
    pub stdin: bool,
    pub stdout: bool,
    /// Not with `tty`: a terminal has one output.
    pub stderr: bool,
    pub tty: bool,
}

/// Why a request gets no URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The caller may try again when some of them were used, or have expired.
    #[error("{limit} streaming requests wait for their clients already")]
    TooMany { limit: usize },
    #[error("a terminal has no stderr of its own")]
    TtyWithStderr,
    #[error("none of stdin, stdout and stderr is asked for")]
    NoStreams,
}

impl StreamOptions {
    /// # Errors
    /// The combination means nothing.
    pub(crate) fn check(self) -> Result<(), SessionError> {
        match self {
            Self { tty: true, stderr: true, .. } => Err(SessionError::TtyWithStderr),
            Self { stdin: false, stdout: false, stderr: false, .. } => Err(SessionError::NoStreams),
            _ => Ok(()),
        }
    }
}

/// An exec or an attach, run once when the client's streams stand. Closures that take [`RemoteStreams`] are handlers.
///
/// What is written before it ends reaches the client before the outcome does. When [`RemoteStreams::gone`] is cancelled
/// it should end soon; after [`crate::GONE_GRACE`] it is dropped.
pub trait RemoteCommand: Send + 'static {
    fn run(self: Box<Self>, streams: RemoteStreams) -> BoxFuture<'static, ExecOutcome>;
}

impl<F, T> RemoteCommand for F
where
    F: FnOnce(RemoteStreams) -> T + Send + 'static,
    T: Future<Output = ExecOutcome> + Send + 'static,
{
    fn run(self: Box<Self>, streams: RemoteStreams) -> BoxFuture<'static, ExecOutcome> {
        Box::pin(self(streams))
    }
}

/// How a command or an attachment ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecOutcome {
    /// With this status; 0 also for an attachment that ended as it should. Clients know eight bits of it.
    Exited(i32),
    /// Not by itself; the client is shown the reason.
    Failed(String),
}

/// Where pod ports are connected to. Closures that take a port are such places.
pub trait Connect: Send + Sync + 'static {
    /// A connection to `port`, in whatever network it is. Not waited for beyond 30 s.
    ///
    /// # Errors
    /// Are shown to the client on that connection; others go on.
    fn connect(&self, port: u16) -> BoxFuture<'_, io::Result<TcpStream>>;
}

impl<F, T> Connect for F
where
    F: Fn(u16) -> T + Send + Sync + 'static,
    T: Future<Output = io::Result<TcpStream>> + Send + 'static,
{
    fn connect(&self, port: u16) -> BoxFuture<'_, io::Result<TcpStream>> {
        Box::pin(self(port))
    }
}

/// A client's streams, those of the request's options.
#[derive(Debug)]
pub struct RemoteStreams {
    pub stdin: Option<Input>,
    pub stdout: Option<Output>,
    pub stderr: Option<Output>,
    /// With a terminal, where the client's protocol has sizes.
    pub resize: Option<Resize>,
    /// Cancelled when the client is gone, or the server stops: nobody will read or write any more.
    pub gone: CancellationToken,
}

/// Columns and rows of a terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct TerminalSize {
    #[serde(rename = "Width", alias = "width")]
    pub width: u16,
    #[serde(rename = "Height", alias = "height")]
    pub height: u16,
}

/// The size of the client's terminal, as it changes. Sizes that were overtaken by a later one are left out.
#[derive(Debug)]
pub struct Resize(pub(crate) watch::Receiver<Option<TerminalSize>>);

impl Resize {
    /// The next size, the first one soon after the start; none when the client sends no more. Cancel safe.
    pub async fn next(&mut self) -> Option<TerminalSize> {
        self.0.changed().await.ok()?;
        *self.0.borrow_and_update()
    }
}
