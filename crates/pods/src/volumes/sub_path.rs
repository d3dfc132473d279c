//! subPath: a part of a volume, mounted by itself.
//!
//! The containers that write to the volume may put links into it while it is looked at. So the part is found by handle,
//! beneath the volume, and what was found is mounted through that handle to a place of the pod's own: what the container
//! gets is what was looked at (CVE-2017-1002101, CVE-2021-25741).

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, OpenTreeFlags, mount_change, open_tree};

use super::mounts;

/// A rename somewhere on the way makes the kernel give up (openat2(2), `EAGAIN`).
const TRIES: usize = 128;

/// Mounts `sub_path` of `volume` at `at`, unless it is there. `returns`: what is mounted in it later is to reach the
/// volume.
///
/// # Errors
/// `EXDEV` when it leads out of the volume.
pub(super) fn mount(volume: &Path, sub_path: &str, at: &Path, returns: bool) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(volume, flags, Mode::empty())?;
    let part = find(&root, &below(sub_path)?)?;
    let stat = fstat(&part)?;
    if fs::exists(at)? && mounts::is_mount_point(at)? {
        let there = rustix::fs::stat(at)?;
        if (there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino) {
            return Ok(());
        }
        mounts::detach(at)?;
    }
    target(at, FileType::from_raw_mode(stat.st_mode) == FileType::Directory)?;
    let clone =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    mounts::attach(&open_tree(&part, "", clone)?, at)?;
    if !returns {
        // Nor does its unmounting.
        mount_change(at, MountPropagationFlags::DOWNSTREAM)?;
    }
    Ok(())
}

/// Variables may have put anything in.
fn below(sub_path: &str) -> io::Result<PathBuf> {
    let parts = Path::new(sub_path).components().filter(|part| *part != Component::CurDir);
    let names = parts.map(|part| match part {
        Component::Normal(name) => Ok(name),
        _ => Err(io::Error::from(Errno::XDEV)),
    });
    names.collect()
}

/// Finds what the path leads to, and makes the folders that are missing.
fn find(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    match beneath(root, path) {
        Err(Errno::NOENT) => {}
        found => return Ok(found?),
    }
    // As the volume's own folder: with its group, and what the group may do.
    let mode = Mode::from_raw_mode(fstat(root)?.st_mode & 0o7777);
    let mut at = beneath(root, Path::new("."))?;
    let mut seen = PathBuf::new();
    for name in path.iter() {
        seen.push(name);
        at = match beneath(root, &seen) {
            Err(Errno::NOENT) => make(&at, Path::new(name), mode)?,
            found => found?,
        };
    }
    Ok(at)
}

fn make(parent: &OwnedFd, name: &Path, mode: Mode) -> io::Result<OwnedFd> {
    rustix::fs::mkdirat(parent, name, mode)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    // Whatever the umask is.
    rustix::fs::fchmod(&made, mode)?;
    Ok(made)
}

fn beneath(root: impl AsFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let open = || rustix::fs::openat2(&root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve);
    let mut tries = (0..TRIES).map(|_| open());
    tries.find(|tried| !matches!(tried, Err(Errno::AGAIN))).unwrap_or(Err(Errno::AGAIN))
}

/// Something to mount it on: a folder for a folder, a file for anything else.
fn target(at: &Path, folder: bool) -> io::Result<()> {
    if let Some(parent) = at.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::symlink_metadata(at) {
        Ok(found) if found.is_dir() == folder => return Ok(()),
        Ok(found) if found.is_dir() => fs::remove_dir(at)?,
        Ok(_) => fs::remove_file(at)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    match folder {
        true => fs::create_dir(at),
        false => File::create_new(at).map(drop),
    }
}
