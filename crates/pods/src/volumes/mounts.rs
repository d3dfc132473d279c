//! Mounts below a pod's folder.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use berth_launcher::mount_table::MountTable;
use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount,
    unmount,
};

/// A new file system of a kind, not in any folder yet.
pub(super) fn new(kind: &str, options: &[(&str, Option<u64>)]) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", kind)?;
    for (key, value) in options {
        if let Some(value) = value {
            fsconfig_set_string(context.as_fd(), *key, value.to_string())?;
        }
    }
    if kind == "tmpfs" {
        // Secrets do not go to the disk with it; kernels before 6.4 do not have it.
        fsconfig_set_flag(context.as_fd(), "noswap").ok();
    }
    fsconfig_create(context.as_fd())?;
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags)?)
}

/// Puts a mount into its place.
pub(super) fn attach(mount: &OwnedFd, at: &Path) -> io::Result<()> {
    Ok(move_mount(mount, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Whether something is mounted at a path.
pub(super) fn is_mount_point(path: &Path) -> io::Result<bool> {
    let stat = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty())?;
    Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Unmounts what lies at a path, and nothing anywhere else.
pub(super) fn detach(path: &Path) -> io::Result<()> {
    match alone(path).and_then(|()| unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)) {
        // Gone with a mount above it.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Unmounts everything at or below a folder; gives the first that is there still.
pub(super) fn detach_below(folder: &Path) -> io::Result<Option<PathBuf>> {
    // Nothing can be mounted below what is not there, and the kernel's list is long where many pods run.
    if !fs::exists(folder)? {
        return Ok(None);
    }
    let points = below(folder)?;
    // All of them first: an unmount reaches the peers of the mount that it takes place in, and those are the host's.
    for point in &points {
        match alone(point) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    for point in points.iter().rev() {
        detach(point)?;
    }
    Ok(below(folder)?.into_iter().next())
}

/// What happens to this mount happens to no other from now on (mount_namespaces(7)).
fn alone(path: &Path) -> rustix::io::Result<()> {
    mount_change(path, MountPropagationFlags::PRIVATE)
}

/// From the kernel's list, so that also what a killed daemon left is found.
fn below(folder: &Path) -> io::Result<Vec<PathBuf>> {
    Ok(MountTable::of_this_process()?.points_below(folder))
}
