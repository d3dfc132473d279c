//! What exec, attach and port-forward go over.

use std::fmt;

use clap::ValueEnum;

/// In the names of the specs that stream, and of no others.
const STREAMING: &str = "] Streaming ";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Transport {
    Spdy,
    #[value(name = "websocket")]
    WebSocket,
}

impl Transport {
    /// critest's flags for it.
    pub(crate) fn flags(self) -> Vec<String> {
        match self {
            Transport::Spdy => Vec::new(),
            Transport::WebSocket => {
                ["exec", "attach", "portforward"].map(|kind| format!("--websocket-{kind}")).into()
            }
        }
    }

    /// What the names of the specs that are run over it have in common. All are run over SPDY, so that the others need
    /// not be run again.
    pub(crate) fn specs(self) -> Option<&'static str> {
        match self {
            Transport::Spdy => None,
            Transport::WebSocket => Some(STREAMING),
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::Spdy => "SPDY",
            Transport::WebSocket => "WebSocket",
        })
    }
}
