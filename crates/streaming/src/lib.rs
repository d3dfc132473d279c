//! The streaming server: exec, attach and port-forward of a node's containers, over SPDY/3.1 and WebSocket.
//!
//! Owns: the HTTP server that kubelet, crictl and clients behind them are sent to; the single-use tokens in its URLs;
//! both transports; the remote-command and port-forward protocols on top of them. Never: CRI messages, pods, namespaces,
//! processes. What a request is about is in a handler that the caller leaves with the server before it hands out a URL.
//!
//! ```text
//! Streaming::exec / attach / port_forward ─▶ a handler waits under a token (60 s, at most 1000) ─▶ URL
//! client ──GET|POST /exec/TOKEN──▶ server ─┬ Upgrade: SPDY/3.1 ─▶ spdy::Connection       ┐
//!                                          └ Upgrade: websocket ─┬ channels ─▶ websocket ├▶ remote_command ─▶ handler
//!                                                                └ tunnel ─▶ spdy         ┘  port_forward ──▶ handler
//! ```
//!
//! # What holds
//!
//! - **Output before status.** All frames of a connection leave in the order they were queued, by one task. The handler's
//!   end is told to the client behind everything that the handler wrote.
//! - **Bounded memory.** Go's peers neither send nor honour WINDOW_UPDATE, so the socket is the only back-pressure. What
//!   is sent waits in a queue of 32 frames; what arrives waits in a buffer of each stream, and when that
//!   is full the socket is not read until its reader took some.
//! - **A client that is gone is noticed**, though its socket may not be read at that time (`hangup`). Its handler is
//!   told by [`RemoteStreams::gone`], and dropped when it does not end within [`GONE_GRACE`].

mod config;
mod hangup;
mod negotiate;
mod peer;
mod pipe;
mod port_forward;
mod remote_command;
mod server;
mod session;
mod spdy;
mod status;
mod sys;
mod tls;
mod tokens;
mod websocket;

#[doc(hidden)]
pub mod fuzz;

#[cfg(test)]
#[path = "../tests/support/spdy.rs"]
mod client;

pub use config::{StartError, StreamingConfig, TlsConfig};
pub use pipe::{Input, Output};
pub use remote_command::GONE_GRACE;
pub use server::{Server, Streaming};
pub use session::{
    BoxFuture, Connect, ExecOutcome, RemoteCommand, RemoteStreams, Resize, SessionError, StreamOptions,
    TerminalSize,
};
