//! The system calls that `nix`, `rustix` and the launcher's `sys` do not wrap safely, one to a function.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Sends any signal, the real-time ones as well (`SIGRTMIN+3` is a common stop signal, and `rustix` only takes named
/// ones).
///
/// # Errors
/// `ESRCH` when the process is dead, `EINVAL` for a number that is no signal.
pub(crate) fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: two integers, a null siginfo and no flags: no memory of ours is touched. The borrow keeps the
    // descriptor open during the call.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The first of the children that are dead and not reaped, which it stays. `nix` refuses one that a real-time signal ended.
///
/// # Errors
/// None that waitid(2) knows for these arguments.
pub(crate) fn dead_child() -> io::Result<Option<i32>> {
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: all zeros are a siginfo_t.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one siginfo_t, which `info` is.
    if unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, flags) } == -1 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::ECHILD) { Ok(None) } else { Err(error) };
    }
    // SAFETY: waitid has filled in the fields of SIGCHLD, or left them zero when nobody is dead.
    let pid = unsafe { info.si_pid() };
    Ok((pid != 0).then_some(pid))
}

/// Reaps a dead child.
///
/// # Errors
/// `ECHILD` when it is none.
pub(crate) fn bury(pid: i32) -> io::Result<()> {
    let id = libc::id_t::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: integers, and no siginfo to be filled in.
    let rc = unsafe { libc::waitid(libc::P_PID, id, std::ptr::null_mut(), libc::WEXITED | libc::WNOHANG) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes a descriptor that this process was started with, which nothing else in it knows of.
///
/// # Errors
/// `EBADF` when there is no such descriptor.
pub(crate) fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD takes integers only and changes nothing.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and the callers ask once for each number before anything else opens files: they own it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Registers a descriptor with tokio's reactor.
///
/// # Errors
/// `EPERM` for something that cannot be polled, `ENOMEM`.
#[cfg(feature = "client")]
pub fn watch(fd: OwnedFd, interest: tokio::io::Interest) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd keeps its descriptor open, and its number the same, for as long as it lives; nobody takes it
    // out of the AsyncFd.
    Ok(unsafe { tokio::io::unix::AsyncFd::register_with_interest(fd, interest) }?)
}

/// From now on the kernel reaps this process's children by itself.
///
/// # Errors
/// None that signal(2) knows for SIGCHLD.
pub(crate) fn ignore_children() -> io::Result<()> {
    // SAFETY: SIG_IGN is no function of ours; nothing of the process's memory is involved.
    let previous = unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    if previous == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes the allocator take every block of 32 KiB or more from the kernel by itself and give it back when freed;
/// left alone it raises that limit with use and keeps what one burst of output needed.
pub(crate) fn return_large_blocks() {
    // SAFETY: two integers; called before there is a second thread (there never is one).
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 32 * 1024) };
}
