//! The one thing that the compiler cannot check for this crate.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Has the runtime watch `fd` for being readable.
///
/// # Errors
/// The kernel cannot watch it, or has no memory to.
pub(crate) fn watch_readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, is always the same descriptor, and is closed only when it is dropped with or taken
    // out of the AsyncFd.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}
