//! The berth daemon: everything between the command line and the sandbox manager.
//!
//! Owns the configuration, the socket, the locks that keep a second daemon away, the layers around every call
//! (log, deadline, admission), the translation between CRI messages and the crates below, start-up and shutdown.
//! It never decides anything about a pod, a container or an image: the handlers translate and delegate.
//!
//! What a call passes, outermost first: `rpc::trace` (a span, one line at the end, a count), `rpc::deadline`,
//! `rpc::admission`, then the handler in `runtime_service`, `image_service` or `pods_service`.

pub mod app;
pub mod args;
mod clock;
mod code;
pub mod config;
pub mod error;
mod image_service;
mod images_service;
pub mod lock;
pub mod metrics;
pub mod notify;
mod plugins;
mod pods_service;
mod reply;
pub mod rpc;
mod runtime_service;
pub mod server;
pub mod services;
pub mod signal;
pub mod socket;
mod streams;
pub mod sys;
pub mod telemetry;
mod usage;
