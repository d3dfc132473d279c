//! The registry client: who is asked, with what credentials, and blobs that survive broken connections.
//!
//! A [`client::Session`] serves one pull. Tokens live in it and die with it, so that nothing
//! one caller may see is ever shown to another; connections are shared, since a request carries its own
//! authorisation.

pub(crate) mod auth;
pub(crate) mod client;
pub(crate) mod source;

use std::fmt;
use std::time::Duration;

use reqwest::StatusCode;

pub use auth::Credentials;

/// One request to one endpoint that failed.
#[derive(Debug, thiserror::Error)]
#[error("{step} at {endpoint}: {kind}")]
pub struct RegistryError {
    /// Scheme, host and port that was asked.
    pub endpoint: String,
    /// What was wanted of it.
    pub step: String,
    /// How it failed.
    pub kind: RegistryErrorKind,
    /// The connection's own account of it, when there is one.
    #[source]
    pub source: Option<reqwest::Error>,
}

/// How a request failed, by what a caller can do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegistryErrorKind {
    /// The endpoint has no such thing.
    NotFound,
    /// The endpoint wants other credentials, or refuses these.
    Unauthenticated(String),
    /// The endpoint cannot be reached, or answers that it cannot serve now.
    Unavailable(String),
    /// No byte came for this long.
    Timeout(Duration),
    /// An answer outside the protocol, or a request that the endpoint calls wrong.
    Protocol(String),
}

impl fmt::Display for RegistryErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RegistryErrorKind::NotFound => f.write_str("not found"),
            RegistryErrorKind::Unauthenticated(why) => write!(f, "not authorised: {why}"),
            RegistryErrorKind::Unavailable(why) => write!(f, "unavailable: {why}"),
            RegistryErrorKind::Timeout(after) => write!(f, "no answer for {} s", after.as_secs_f32()),
            RegistryErrorKind::Protocol(why) => f.write_str(why),
        }
    }
}

impl RegistryErrorKind {
    /// What a status other than success means. `detail` is the registry's own message.
    fn of_status(status: StatusCode, detail: &str) -> RegistryErrorKind {
        let text = if detail.is_empty() { status.to_string() } else { format!("{status}: {detail}") };
        match status {
            StatusCode::NOT_FOUND => RegistryErrorKind::NotFound,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RegistryErrorKind::Unauthenticated(text),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
                RegistryErrorKind::Unavailable(text)
            }
            status if status.is_server_error() => RegistryErrorKind::Unavailable(text),
            _ => RegistryErrorKind::Protocol(format!("unexpected answer {text}")),
        }
    }

    /// Whether the same request may succeed a moment later.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, RegistryErrorKind::Unavailable(_) | RegistryErrorKind::Timeout(_))
    }
}
