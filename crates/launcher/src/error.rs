//! Why a launch failed: a step with a name, the kernel's errno, and words for people.

use std::io;

/// A step of a launch that failed in the new process.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{step}: {message}")]
pub struct StepError {
    /// What was being done: "mount /proc", "exec /bin/nope".
    pub step: String,
    /// The kernel's answer, or 0 when it was not the kernel who refused.
    pub errno: i32,
    /// The errno in words, with whatever else helps.
    pub message: String,
    /// The container's own program could not be executed: missing, not executable, a bad format.
    pub exec: bool,
}

impl StepError {
    pub(crate) fn new(step: impl Into<String>, error: impl Into<io::Error>) -> StepError {
        let error = error.into();
        StepError {
            step: step.into(),
            errno: error.raw_os_error().unwrap_or(0),
            message: error.to_string(),
            exec: false,
        }
    }

    pub(crate) fn refused(step: impl Into<String>, message: impl Into<String>) -> StepError {
        StepError { step: step.into(), errno: 0, message: message.into(), exec: false }
    }

    pub(crate) fn in_exec(self) -> StepError {
        StepError { exec: true, ..self }
    }
}

/// Names the step of an operation that may fail.
pub(crate) trait AtStep<T> {
    fn step(self, step: &str) -> Result<T, StepError>;
    fn step_with<S: Into<String>>(self, step: impl FnOnce() -> S) -> Result<T, StepError>;
}

impl<T, E: Into<io::Error>> AtStep<T> for Result<T, E> {
    fn step(self, step: &str) -> Result<T, StepError> {
        self.map_err(|error| StepError::new(step, error))
    }

    fn step_with<S: Into<String>>(self, step: impl FnOnce() -> S) -> Result<T, StepError> {
        self.map_err(|error| StepError::new(step(), error))
    }
}

/// Why there is no new process at all. Once there is one, its gate tells.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("reading the plan's header")]
    Header(#[source] io::Error),
    #[error("making the gate")]
    Gate(#[source] io::Error),
    #[error("opening cgroup {path}")]
    Cgroup { path: String, source: io::Error },
    #[error("entering the pid namespace")]
    PidNamespace(#[source] io::Error),
    #[error("clone3")]
    Clone(#[source] io::Error),
}
