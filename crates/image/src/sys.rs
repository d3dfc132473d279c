//! The one system call that neither `nix` nor `rustix` wraps.
#![allow(unsafe_code)]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};

/// mount_setattr(2) with `MOUNT_ATTR_IDMAP`: from now on the files of the detached mount `mount` have the owners that
/// `user_namespace` maps theirs to. Since Linux 5.12.
///
/// # Errors
/// `EINVAL` when the file system cannot do it, or `user_namespace` is the initial one.
pub(crate) fn id_map_mount(mount: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>) -> io::Result<()> {
    let argument = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: user_namespace.as_raw_fd() as u64,
    };
    // SAFETY: the kernel reads an empty C string and `argument`, whose size is given; the borrows keep both descriptors
    // open meanwhile.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const argument,
            size_of::<libc::mount_attr>(),
        )
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
