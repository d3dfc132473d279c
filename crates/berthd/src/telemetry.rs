//! The log: text or JSON on stderr, by level and module.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Log, LogFormat};

/// Libraries that tell of every frame and every connection from `debug` on: nothing a node's owner asks for with it.
/// Naming one in `log_level` wins, since the last directive for a module counts.
const QUIET: &str = "h2=info,hyper=info,hyper_util=info,tonic=info,tower=info,reqwest=info,rustls=info";

/// Installs the process's subscriber. Only the configuration counts, no environment variable does.
pub fn init(log: &Log) {
    // The level has been checked; what EnvFilter still might not like falls back to its default, errors only.
    let filter = EnvFilter::builder().parse_lossy(format!("{QUIET},{}", log.level));
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let installed = match log.format {
        LogFormat::Text => registry.with(layer.with_ansi(io::stderr().is_terminal())).try_init(),
        LogFormat::Json => registry.with(layer.json().flatten_event(true).with_span_list(false)).try_init(),
    };
    installed.expect("main installs the only subscriber, once");
}
