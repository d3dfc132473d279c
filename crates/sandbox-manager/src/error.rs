//! What can go wrong with a pod. One enum, because one edge maps it to gRPC codes.

use std::{error, sync::Arc, time::Duration};

use berth_cri::berth::v1::failure::Kind;
use berth_supervisor::client::CallError;

use crate::{ContainerId, SandboxId};

/// A failed request. Cheap to clone: several callers may wait for one piece of work.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// No such sandbox.
    #[error("pod sandbox {0} not found")]
    SandboxNotFound(String),
    /// No such container.
    #[error("container {0} not found")]
    ContainerNotFound(String),
    /// A prefix that fits several ids.
    #[error("{prefix:?} is the beginning of {count} {what} ids; give more digits")]
    Ambiguous {
        /// "pod sandbox" or "container".
        what: &'static str,
        /// What the caller gave.
        prefix: String,
        /// How many it fits.
        count: usize,
    },
    /// The request cannot be carried out by anybody.
    #[error("invalid {field}: {why}")]
    Invalid {
        /// Path of the field in the request.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Asks for something that berth does not do (yet).
    #[error("{0} is not supported by berth")]
    Unsupported(String),
    /// The name is taken by something that cannot be handed out again.
    #[error("{what} {name} exists as {id} and is {state}; remove it or ask for the next attempt")]
    NameTaken {
        /// "pod sandbox" or "container".
        what: &'static str,
        /// Name and attempt.
        name: String,
        /// Its id.
        id: String,
        /// Its state.
        state: &'static str,
    },
    /// Not in the state that the request needs.
    #[error("{what} {id} is {state}: cannot {ask} it")]
    WrongState {
        /// "pod sandbox" or "container".
        what: &'static str,
        /// Its id.
        id: String,
        /// Its state.
        state: &'static str,
        /// What was asked.
        ask: &'static str,
    },
    /// The image must be pulled first.
    #[error("image {0} is not present; pull it first")]
    ImageNotPresent(String),
    /// An image volume cannot be had. kubelet looks for the word at the beginning (cri-api, `pkg/errors`).
    #[error("ImageVolumeMountFailed: {0}")]
    ImageVolume(String),
    /// The request is in order, but this node has not what it takes: a device, a program.
    #[error("{0}")]
    NodeLacks(String),
    /// The pod's mailbox is full: it is stuck, or somebody floods it.
    #[error("pod sandbox {0} has too many requests waiting")]
    Busy(SandboxId),
    /// The container's program cannot be executed.
    #[error("container {id}: {message}")]
    CannotExecute {
        /// The container.
        id: ContainerId,
        /// Step and the kernel's answer, in the words of the OCI runtime.
        message: String,
    },
    /// A command given to exec ran longer than allowed and was killed.
    #[error("command in container {id} timed out after {after:?} and was killed")]
    ExecTimeout {
        /// The container.
        id: ContainerId,
        /// What the caller allowed.
        after: Duration,
    },
    /// Processes that outlive SIGKILL: usually waiting for a device or a network file system.
    #[error("container {id} does not end after SIGKILL: {survivors}")]
    Unkillable {
        /// The container.
        id: ContainerId,
        /// Each process with its state and what it waits on.
        survivors: String,
    },
    /// A step failed. What it had made has been undone.
    #[error("{object}: cannot {step}")]
    Step {
        /// "pod sandbox 0123456789abc (namespace/name)" or the like.
        object: String,
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: Arc<dyn error::Error + Send + Sync>,
    },
    /// A plugin (Node Resource Interface) keeps it from happening.
    #[error("{object}")]
    Plugin {
        /// As in [`Error::Step`].
        object: String,
        /// Which one, and why.
        #[source]
        source: berth_nri::Refused,
    },
    /// The task that owns the pod ended in the middle of the request: the pod was removed, or the daemon stops.
    #[error("pod sandbox {0} is gone")]
    Gone(SandboxId),
}

/// For a log line: `error = cause(&err)` writes the error and everything that led to it.
pub(crate) fn cause<E: error::Error + 'static>(err: &E) -> &(dyn error::Error + 'static) {
    err
}

impl Error {
    /// A supervisor's answer: that the program cannot be executed, or another failure of the step.
    pub(crate) fn refused(
        id: &ContainerId,
        object: impl ToString,
        step: &'static str,
    ) -> impl FnOnce(CallError) -> Self {
        let id = id.clone();
        move |err| match err {
            CallError::Failed(ref failure) if failure.kind() == Kind::Exec => {
                Self::CannotExecute { id, message: err.to_string() }
            }
            err => Self::step(object, step)(err),
        }
    }

    pub(crate) fn step<E>(object: impl ToString, step: &'static str) -> impl FnOnce(E) -> Self
    where
        E: error::Error + Send + Sync + 'static,
    {
        move |source| Self::Step { object: object.to_string(), step, source: Arc::new(source) }
    }
}
