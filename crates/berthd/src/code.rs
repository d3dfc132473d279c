//! Which gRPC code an error becomes: the one place that knows. kubelet acts on few of them (`NotFound`,
//! `DeadlineExceeded`, `Unimplemented`, `Unknown` in front of well-known texts); the rest is for people.

use std::error::Error as StdError;

use berth_image::{DiskError, LoadError, PullError, ReferenceError, RemoveError, SaveError};
use berth_network::PodCidrError;
use berth_pods::Error as ManifestError;
use berth_sandbox_manager::{Error as PodError, TooSlow};
use berth_streaming::SessionError;
use tonic::{Code, Status};

use crate::error::Chain;

/// What kubelet looks for at the beginning of a PullImage error (cri-api, `pkg/errors`). It strips the code from the
/// text only when that is `Unknown`.
const REGISTRY_UNAVAILABLE: &str = "RegistryUnavailable";

/// The longest text of a status. It travels in a header, which a client refuses above a few kilobytes: it would then
/// see a broken connection instead of the error. What callers sent (an image's name) may be quoted in it.
const LONGEST: usize = 2048;

/// The chain of causes, cut at the end when it is too long.
fn text(error: &(dyn StdError + 'static)) -> String {
    let mut text = Chain(error).to_string();
    if text.len() > LONGEST {
        text.truncate(text.floor_char_boundary(LONGEST));
        text.push('…');
    }
    text
}

/// An error that knows its gRPC code.
pub(crate) trait Coded: StdError + Sized + 'static {
    fn code(&self) -> Code;

    /// The status with the whole chain of causes.
    fn into_status(self) -> Status {
        Status::new(self.code(), text(&self))
    }
}

impl Coded for PodError {
    fn code(&self) -> Code {
        match self {
            Self::SandboxNotFound(_) | Self::ContainerNotFound(_) | Self::ImageNotPresent(_) => {
                Code::NotFound
            }
            Self::Ambiguous { .. } | Self::Invalid { .. } => Code::InvalidArgument,
            Self::Unsupported(_) => Code::Unimplemented,
            Self::NameTaken { .. } => Code::AlreadyExists,
            Self::WrongState { .. } | Self::ImageVolume(_) | Self::NodeLacks(_) => Code::FailedPrecondition,
            Self::Busy(_) | Self::Gone(_) => Code::Unavailable,
            // Whose no this is, kubelet cannot know; its users read the text.
            Self::Plugin { .. } => Code::Unknown,
            Self::ExecTimeout { .. } => Code::DeadlineExceeded,
            Self::CannotExecute { .. } | Self::Unkillable { .. } | Self::Step { .. } => Code::Internal,
        }
    }
}

impl Coded for ManifestError {
    fn code(&self) -> Code {
        match self {
            Self::Faults(_) | Self::Nothing(_) | Self::Invalid(_) => Code::InvalidArgument,
            Self::NotFound { .. } | Self::NoContainer { .. } => Code::NotFound,
            Self::Exists(..) => Code::AlreadyExists,
            Self::WrongState { .. } => Code::FailedPrecondition,
            Self::Leftover { .. }
            | Self::Volumes { .. }
            | Self::Log { .. }
            | Self::NoUid { .. }
            | Self::Store(_) => Code::Internal,
            Self::Manager(error) => error.code(),
            Self::Ending(_) => Code::Unavailable,
        }
    }
}

impl Coded for SessionError {
    fn code(&self) -> Code {
        match self {
            Self::TooMany { .. } => Code::ResourceExhausted,
            Self::TtyWithStderr | Self::NoStreams => Code::InvalidArgument,
        }
    }
}

impl Coded for TooSlow {
    fn code(&self) -> Code {
        Code::ResourceExhausted
    }
}

impl Coded for PullError {
    fn code(&self) -> Code {
        match self {
            Self::InvalidReference(_) | Self::Credentials { .. } => Code::InvalidArgument,
            Self::Configuration { .. } | Self::NotAnImage { .. } | Self::LayerRejected { .. } => {
                Code::FailedPrecondition
            }
            Self::NotFound { .. } => Code::NotFound,
            Self::Unauthenticated { .. } => Code::Unauthenticated,
            Self::RegistryUnavailable { .. } | Self::Timeout { .. } => Code::Unknown,
            Self::NoSpace { .. } => Code::ResourceExhausted,
            Self::Damaged { .. } => Code::DataLoss,
            Self::Registry { .. } | Self::Disk { .. } | Self::Record { .. } => Code::Internal,
        }
    }

    fn into_status(self) -> Status {
        let text = text(&self);
        match self.code() {
            Code::Unknown => Status::unknown(format!("{REGISTRY_UNAVAILABLE}: {text}")),
            code => Status::new(code, text),
        }
    }
}

impl Coded for LoadError {
    fn code(&self) -> Code {
        match self {
            Self::NotAnArchive(_) | Self::Faulty(_) | Self::Manifest(..) | Self::Name(_) => {
                Code::InvalidArgument
            }
            Self::Read(_) | Self::Disk(_) => Code::Internal,
            Self::Image(error) => error.code(),
        }
    }
}

impl Coded for SaveError {
    fn code(&self) -> Code {
        match self {
            Self::NotFound(_) => Code::NotFound,
            Self::Name(_) => Code::InvalidArgument,
            Self::Blob { .. } => Code::DataLoss,
            Self::Write(_) => Code::Internal,
        }
    }
}

impl Coded for ReferenceError {
    fn code(&self) -> Code {
        Code::InvalidArgument
    }
}

impl Coded for RemoveError {
    fn code(&self) -> Code {
        match self {
            Self::Reference(_) => Code::InvalidArgument,
            Self::Record { .. } | Self::Disk(_) | Self::Task(_) => Code::Internal,
        }
    }
}

impl Coded for DiskError {
    fn code(&self) -> Code {
        Code::Internal
    }
}

impl Coded for PodCidrError {
    fn code(&self) -> Code {
        match self {
            Self::Invalid { .. } => Code::InvalidArgument,
            Self::Store(_) | Self::Thread(_) => Code::Internal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_caller_sent_does_not_blow_a_status_up() {
        let status = PodError::ContainerNotFound("ü".repeat(1 << 20)).into_status();
        assert_eq!(status.code(), Code::NotFound);
        assert!(status.message().starts_with("container ü") && status.message().len() < 2 * LONGEST);
    }
}
