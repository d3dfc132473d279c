//! Noticing that a client closed its socket while the socket is not read.
//!
//! The end of a stream of bytes is behind the bytes. When a stream's buffer is full, the connection does not read, and
//! would see the end only after the process has taken what it may never take. The kernel knows earlier (EPOLLRDHUP), but
//! the runtime's own registration is ready already for the bytes that wait: so this is an epoll instance of its own,
//! with that event only, which the runtime watches like any file.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll;
use tokio::io::unix::AsyncFd;

use crate::sys;

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
