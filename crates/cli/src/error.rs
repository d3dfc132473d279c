//! What can go wrong, what to do about it, and the exit code it means.

use std::io;
use std::path::PathBuf;

use tonic::{Code, Status};

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("no daemon answers on {address}: {why}")]
    Daemon { address: String, why: String },
    #[error("{}", status.message())]
    Refused { status: Box<Status> },
    #[error("cannot {action} {}: {source}", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Failed(String),
    #[error("the connection to the container broke: {0}")]
    Stream(String),
    #[error("the terminal: {0}")]
    Terminal(io::Error),
}

impl Error {
    /// A call's answer. `address`: of the daemon that was asked.
    pub(crate) fn of(address: &str, status: Status) -> Self {
        let mut cause = std::error::Error::source(&status);
        let mut last = String::new();
        let mut is_transport = false;
        while let Some(error) = cause {
            is_transport |= error.is::<tonic::transport::Error>();
            last = error.to_string();
            cause = error.source();
        }
        match is_transport {
            true => Self::Daemon { address: address.to_owned(), why: last },
            false => Self::Refused { status: Box::new(status) },
        }
    }

    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }

    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Daemon { why, .. } if why.contains("Permission denied") => {
                Some("the socket is root's: try sudo")
            }
            Self::Daemon { .. } => Some(
                "start it (systemctl start berth, or berthd), or name its socket with --address unix://PATH",
            ),
            Self::Refused { status } if status.code() == Code::Unimplemented => {
                Some("berthd is older than this berth: restart it after an upgrade")
            }
            _ => None,
        }
    }

    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Daemon { .. } => 4,
            Self::Refused { status } if status.code() == Code::NotFound => 3,
            Self::Usage(_) => 2,
            _ => 1,
        }
    }
}
