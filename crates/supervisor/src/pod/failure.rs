//! How a request fails.

use std::borrow::Cow;
use std::io;

use berth_cri::berth::v1::Failure;
use berth_cri::berth::v1::failure::Kind;

/// An error that knows what was being done. Becomes a [`Failure`] once it is clear what the step meant to the
/// caller.
#[derive(Debug)]
pub(super) struct Fault {
    step: Cow<'static, str>,
    errno: i32,
    message: String,
}

impl Fault {
    /// It was not the kernel who refused.
    pub(super) fn refused(step: &'static str, message: impl Into<String>) -> Self {
        Self { step: step.into(), errno: 0, message: message.into() }
    }

    /// What a child of this process could not do.
    pub(super) fn of_child(failure: Failure) -> Self {
        Self { step: failure.step.into(), errno: failure.errno, message: failure.message }
    }

    pub(super) fn into_failure(self, kind: Kind) -> Failure {
        let Self { step, errno, message } = self;
        Failure { kind: kind.into(), step: step.into_owned(), errno, message }
    }
}

/// A step's name: known beforehand, or put together when needed.
pub(super) trait StepName {
    fn name(self) -> Cow<'static, str>;
}

impl StepName for &'static str {
    fn name(self) -> Cow<'static, str> {
        self.into()
    }
}

impl<F: FnOnce() -> String> StepName for F {
    fn name(self) -> Cow<'static, str> {
        self().into()
    }
}

/// Names the step that a result came from.
pub(super) trait Step<T> {
    fn step(self, step: impl StepName) -> Result<T, Fault>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: impl StepName) -> Result<T, Fault> {
        self.map_err(|error| {
            let error = error.into();
            Fault { step: step.name(), errno: error.raw_os_error().unwrap_or(0), message: error.to_string() }
        })
    }
}

pub(super) fn not_found(what: &str, id: &str) -> Failure {
    failure(Kind::NotFound, format!("{what} {id} is not here"))
}

pub(super) fn wrong_state(message: impl Into<String>) -> Failure {
    failure(Kind::WrongState, message)
}

/// The request itself makes no sense; the daemon should not have sent it.
pub(super) fn malformed(message: impl Into<String>) -> Failure {
    failure(Kind::Internal, message)
}

fn failure(kind: Kind, message: impl Into<String>) -> Failure {
    Failure { kind: kind.into(), step: String::new(), errno: 0, message: message.into() }
}
