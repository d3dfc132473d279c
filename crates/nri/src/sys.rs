//! The system calls that `nix` and `rustix` do not wrap safely.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use tokio::process::Command;

/// Lets a command's process have a descriptor under this number.
pub(crate) fn give(command: &mut Command, fd: OwnedFd, number: i32) {
    let place = move || {
        // SAFETY: dup2 takes two integers and touches no memory; `fd` is open, the closure owns it.
        match unsafe { libc::dup2(fd.as_raw_fd(), number) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    // SAFETY: between fork and exec the closure calls only dup2, which is async-signal-safe (signal-safety(7)), and
    // allocates nothing.
    unsafe { command.pre_exec(place) };
}
