//! Work on a thread of its own.
//!
//! A network namespace belongs to a thread. A thread of the runtime's pools must never change it: the next task there
//! would find itself in a pod. So whatever enters a namespace runs on a thread that ends with it.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    thread,
};

use nix::sched::{CloneFlags, setns};
use tokio::sync::oneshot;

/// The thread could not run.
#[derive(Debug, thiserror::Error)]
pub enum ThreadError {
    /// Thread limit or memory.
    #[error("cannot start a thread")]
    Start(#[source] io::Error),
    /// `setns(2)` refused.
    #[error("cannot enter the network namespace")]
    Enter(#[source] io::Error),
    /// It panicked, which is a fault of berth; the panic message is in the daemon's standard error.
    #[error("the thread ended without an answer")]
    Lost,
}

/// Runs `work` on a new thread in the caller's network namespace.
pub(crate) async fn run<T, F>(name: &str, work: F) -> Result<T, ThreadError>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    let (answer, result) = oneshot::channel();
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            // A caller that no longer waits has dropped the receiver; the work is done all the same.
            let _ = answer.send(work());
        })
        .map_err(ThreadError::Start)?;
    result.await.map_err(|_| ThreadError::Lost)
}

/// Moves the calling thread into `netns`. Only for threads made by [`run`].
pub(crate) fn enter(netns: &OwnedFd) -> Result<(), ThreadError> {
    setns(netns.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|errno| ThreadError::Enter(errno.into()))
}
