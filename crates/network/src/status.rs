//! What stands behind CRI's NetworkReady condition.

use std::error::Error;

/// Who attaches new pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// CNI plugins.
    Cni {
        /// The network's name; empty when no configuration file can be read.
        name: String,
    },
    /// The built-in bridge.
    BuiltIn,
}

/// Whether new pods can be attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkStatus {
    /// The condition's value.
    pub ready: bool,
    /// One CamelCase word when not ready, else empty.
    pub reason: &'static str,
    /// The whole chain of causes when not ready, else empty.
    pub message: String,
    /// By whom.
    pub mode: Mode,
}

impl NetworkStatus {
    pub(crate) fn ready(mode: Mode) -> Self {
        Self { ready: true, reason: "", message: String::new(), mode }
    }

    pub(crate) fn not_ready(mode: Mode, message: String) -> Self {
        let reason = match mode {
            Mode::Cni { .. } => "NetworkPluginNotReady",
            Mode::BuiltIn => "BuiltInNetworkNotReady",
        };
        Self { ready: false, reason, message, mode }
    }
}

/// An error and its causes on one line.
pub(crate) fn chain(err: &(dyn Error + 'static)) -> String {
    let mut text = err.to_string();
    let mut cause = err.source();
    while let Some(err) = cause {
        text.push_str(": ");
        text.push_str(&err.to_string());
        cause = err.source();
    }
    text
}
