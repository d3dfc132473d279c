//! What can go wrong between the daemon and its plugins.

use std::time::Duration;

/// Why a call of a plugin has no answer that can be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// The connection ended first.
    #[error("{0}")]
    Closed(String),
    /// It took too long.
    #[error("it did not answer within {0:?}")]
    Timeout(Duration),
    /// The request does not fit into a message.
    #[error("the request is longer than a message can be")]
    TooLong,
    /// The answer is not the message that belongs to the call.
    #[error("its answer cannot be read")]
    Garbled,
    /// The plugin says no.
    #[error("{message}")]
    Answered {
        /// A gRPC status code.
        code: i32,
        /// The plugin's own words.
        message: String,
    },
}

/// Why plugins keep something from happening. Each names the plugin.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Refused {
    /// `required`, and not there.
    #[error("NRI plugin {0} is required and not connected")]
    Missing(String),
    /// It hung or died, and its policy is to fail closed.
    #[error("NRI plugin {plugin} failed over {event} and was disconnected")]
    Failed {
        /// NN-NAME.
        plugin: String,
        /// What it was asked.
        event: &'static str,
        /// What it did.
        #[source]
        source: CallError,
    },
    /// It answered with an error.
    #[error("NRI plugin {plugin} refuses {event}: {why}")]
    Answered {
        /// NN-NAME.
        plugin: String,
        /// What it was asked.
        event: &'static str,
        /// In its own words.
        why: String,
    },
    /// Two plugins want different things.
    #[error("NRI plugins {one} and {other} both set {what} of container {container}")]
    Conflict {
        /// The later one.
        one: String,
        /// The earlier one.
        other: String,
        /// The field, and the key in it.
        what: String,
        /// The container.
        container: String,
    },
    /// It asks for something that makes no sense.
    #[error("NRI plugin {plugin}: {why}")]
    Invalid {
        /// NN-NAME.
        plugin: String,
        /// What is wrong.
        why: String,
    },
    /// A validating plugin does not like what the others want.
    #[error("NRI plugin {plugin} rejects what plugins want of the container: {why}")]
    Rejected {
        /// NN-NAME.
        plugin: String,
        /// In its own words.
        why: String,
    },
    /// Another container that must change as well could not.
    #[error("an update of container {container} that NRI plugins want failed: {why}")]
    SideUpdate {
        /// The other container.
        container: String,
        /// Why.
        why: String,
    },
}
