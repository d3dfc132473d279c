//! The raw system calls that `nix` and `rustix` do not wrap.
#![allow(unsafe_code)]

use std::{
    io, mem,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

use tokio::io::{Interest, unix::AsyncFd};

/// `NETLINK_EXT_ACK` of linux/netlink.h: errors come with the kernel's own words (since Linux 4.12).
pub(crate) const NETLINK_EXT_ACK: libc::c_int = 11;
/// `NETLINK_CAP_ACK`: an acknowledgement does not repeat the request (since Linux 4.3).
pub(crate) const NETLINK_CAP_ACK: libc::c_int = 10;

/// Switches a boolean option of a netlink socket on.
///
/// # Errors
/// `ENOPROTOOPT` when the kernel is older than the option.
pub(crate) fn enable_netlink_option(socket: BorrowedFd<'_>, option: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    let size = libc::socklen_t::try_from(mem::size_of_val(&on)).expect("four fits");
    // SAFETY: setsockopt(2) reads `size` bytes at `&on`, which lives until the call returns; the borrow keeps the
    // descriptor open meanwhile.
    let rc = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_NETLINK, option, (&raw const on).cast(), size)
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets the runtime wait until a descriptor can be read. Must be called in a tokio runtime.
///
/// # Errors
/// When epoll refuses it.
pub(crate) fn await_readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names the same descriptor from here to its drop, and the `AsyncFd` takes it over whole.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)
}
