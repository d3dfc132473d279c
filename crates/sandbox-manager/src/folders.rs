//! Folders of ours, and what is mounted in them.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use berth_launcher::mount_table::MountTable;
use rustix::mount::{MoveMountFlags, UnmountFlags, move_mount, unmount};

/// Gives a detached mount a path.
pub(crate) fn place(mount: &OwnedFd, at: &Path) -> io::Result<()> {
    fs::create_dir_all(at)?;
    move_mount(mount.as_fd(), "", rustix::fs::CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

/// Unmounts what lies in a folder of ours and removes it; an absent one is fine.
pub(crate) fn remove_folder(dir: &Path) -> io::Result<()> {
    // Nothing can be mounted below what is not there, and the kernel's list is long where many pods run.
    if !fs::exists(dir)? {
        return Ok(());
    }
    unmount_all_below(dir)?;
    absent_is_fine(fs::remove_dir_all(dir))
}

/// Detaches every mount at or below a folder of ours, the newest first. Mount points come from the kernel's list, so
/// that also what a crashed daemon left is found.
fn unmount_all_below(dir: &Path) -> io::Result<()> {
    for point in MountTable::of_this_process()?.points_below(dir).iter().rev() {
        match unmount(point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // Gone with a mount above it, or by somebody else's hand.
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(err) => return Err(err.into()),
        }
    }
    Ok(())
}

pub(crate) fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
