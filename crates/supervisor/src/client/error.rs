//! How the daemon's side fails.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use berth_cri::berth::v1::Failure;
use berth_cri::berth::v1::failure::Kind;
use berth_cri::berth::v1::supervisor_reply::Result as Answer;

/// Why a call did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The supervisor says so; [`Failure::kind`] says what it means.
    #[error("{}", text(.0))]
    Failed(Failure),
    /// The connection is lost. [`super::Event`] tells whether `berth-pod` is dead as well.
    #[error("the pod's supervisor is gone")]
    Gone,
    #[error("{step}: the pod's supervisor has not answered for {after:?}")]
    Timeout { step: &'static str, after: Duration },
    #[error("{step}")]
    Io {
        step: &'static str,
        #[source]
        source: io::Error,
    },
}

impl CallError {
    /// There is no such container or exec.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Failed(failure) if failure.kind() == Kind::NotFound)
    }

    pub(super) fn unexpected(step: &'static str, answer: &Answer) -> Self {
        match answer {
            Answer::Failure(failure) => Self::Failed(failure.clone()),
            other => {
                let what = format!("a reply of another kind than asked for: {other:?}");
                Self::Io { step, source: io::Error::new(io::ErrorKind::InvalidData, what) }
            }
        }
    }
}

fn text(failure: &Failure) -> String {
    match failure.step.as_str() {
        "" => failure.message.clone(),
        step => format!("{step}: {}", failure.message),
    }
}

/// Why there is no new supervisor.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error("open {}", path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{step}")]
    Step {
        step: &'static str,
        #[source]
        source: io::Error,
    },
}

/// Why a supervisor could not be found again.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens: it is dead.
    #[error("the pod's supervisor is gone")]
    Gone,
    #[error("{step}")]
    Step {
        step: &'static str,
        #[source]
        source: io::Error,
    },
    /// It was there, but did not answer as it should.
    #[error("ask the pod's supervisor for its state")]
    Call(#[source] CallError),
}
