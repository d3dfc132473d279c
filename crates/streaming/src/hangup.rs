//! Noticing that a client closed its socket while the socket is not read.
//!
//! The end of a stream of bytes is behind the bytes. When a stream's buffer is full, the connection does not read, and
//! would see the end only after the process has taken what it may never take.
//!
//! Where the end has arrived, the kernel knows (EPOLLRDHUP), but the runtime's own registration is ready already for the
//! bytes that wait: so [`Hangup`] is an epoll instance of its own, with that event only, which the runtime watches like
//! any file. Where the kernel's buffers are full as well, the end is still with the client's kernel, behind what that may
//! not send. A byte of ours makes it answer that nobody is there; so while it waits, a connection sends now and then what
//! no client answers. (A PING is no such thing: Go's client answers it under the lock that its blocked writer holds, and
//! would not read our output any more.)

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::pipe::Out;
use crate::sys;

/// Between two signs of life, while a connection is not read.
const HEARTBEAT: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct Hangup(AsyncFd<OwnedFd>);

impl Hangup {
    /// Watches `socket` for as long as it is open; it keeps nothing open itself.
    ///
    /// # Errors
    /// No descriptors left.
    pub(crate) fn watch(socket: impl AsFd) -> io::Result<Self> {
        let watch = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&watch, socket, epoll::EventData::new_u64(0), epoll::EventFlags::RDHUP)?;
        sys::watch_readable(watch).map(Self)
    }

    /// Resolves when the other end will send no more, or the connection broke. Cancel safe.
    pub(crate) async fn wait(&self) {
        // The readiness is never cleared, so it is there for every later wait too. An error is the runtime's end.
        let _ = self.0.readable().await;
    }
}

/// The client is gone.
#[derive(Debug, thiserror::Error)]
#[error("the client hung up")]
pub(crate) struct HungUp;

/// What a connection's reader needs to wait for anything but its socket.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) gone: CancellationToken,
    /// None where the socket is not known.
    pub(crate) hangup: Option<Hangup>,
    /// Weak, so that the writer sees when the last stream is gone.
    pub(crate) frames: mpsc::WeakSender<Out>,
}

impl Watch {
    /// Waits for `work`, during which the socket is not read, unless the client is gone before.
    ///
    /// # Errors
    /// It is.
    pub(crate) async fn unless_gone<T>(&self, work: impl Future<Output = T>) -> Result<T, HungUp> {
        let hung_up = async {
            match &self.hangup {
                Some(hangup) => hangup.wait().await,
                None => std::future::pending().await,
            }
        };
        let heartbeat = async {
            loop {
                sleep(HEARTBEAT).await;
                if let Some(frames) = self.frames.upgrade() {
                    // A full queue is a client that does not read: its kernel answers by itself.
                    let _ = frames.try_send(Out::Heartbeat);
                }
            }
        };
        tokio::select! {
            biased;
            // First: a client that closed after its last byte has that byte delivered where there is room for it.
            done = work => Ok(done),
            () = self.gone.cancelled() => Err(HungUp),
            () = hung_up => Err(HungUp),
            () = heartbeat => Err(HungUp),
        }
    }
}
