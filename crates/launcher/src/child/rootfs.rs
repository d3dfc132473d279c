//! The container's root: attached, walked and at last moved into.
//!
//! Until the pivot everything below it is reached through its descriptor. An image may hold any symbolic link, and a
//! volume may be changed by another container at this moment, so no path is resolved by the kernel without
//! `RESOLVE_IN_ROOT`, and none twice.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, MoveMountFlags, UnmountFlags};

use crate::error::{AtStep, StepError};
use crate::sys::{self, MountAttributes};

/// As many links as the kernel follows in one path, path_resolution(7).
const LINK_LIMIT: usize = 40;
/// A rename or mount elsewhere in the tree can make openat2 say EAGAIN; this many in a row are no accident.
const RACE_LIMIT: usize = 128;

const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Says for the whole copied tree how it stays connected to the host's; 0 stands for a slave's place.
pub(super) fn set_propagation(propagation: u32) -> Result<(), StepError> {
    let flags = if propagation == 0 {
        MountPropagationFlags::DOWNSTREAM
    } else {
        MountPropagationFlags::from_bits_retain(propagation)
    };
    rustix::mount::mount_change(c"/", flags | MountPropagationFlags::REC).step("set the propagation of /")
}

/// The root of this process, as a descriptor.
pub(super) fn open_root() -> Result<OwnedFd, StepError> {
    rustix::fs::openat(CWD, c"/", FOLDER, Mode::empty()).step("open /")
}

/// Opens `path` below `root`; a link leads where it would lead with `root` as `/`, a magic link nowhere.
pub(super) fn open_below(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..RACE_LIMIT {
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            answer => return answer,
        }
    }
    Err(Errno::AGAIN)
}

#[derive(Clone, Copy)]
enum Leaf {
    Directory,
    File,
}

/// The container's root, mounted over the host's in this mount namespace, but not yet ours.
#[derive(Debug)]
pub(super) struct Root {
    mount: OwnedFd,
}

impl Root {
    /// Mounts `rootfs` on top of `/`, or at the path where hooks will look for it. From here on nothing that happens in
    /// this namespace reaches the host's.
    pub(super) fn attach(rootfs: OwnedFd, at: &str) -> Result<Root, StepError> {
        // A mount on a shared mount appears wherever that is shared with, so the old tree is cut off first.
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change(c"/", private).step("make the old root private")?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(&rootfs, c"", CWD, at, flags).step("mount the root")?;
        let private =
            MountAttributes { propagation: libc::MS_PRIVATE, recursive: true, ..MountAttributes::default() };
        sys::mount_setattr(&rootfs, private).step("make the root private")?;
        Ok(Root { mount: rootfs })
    }

    /// What is at `path`, which may be anything.
    pub(super) fn open(&self, path: &str) -> Result<OwnedFd, Errno> {
        open_below(self.mount.as_fd(), path, OFlags::PATH)
    }

    /// The directory at `path`, made (0755) with its parents where it is missing.
    pub(super) fn ensure_directory(&self, path: &str) -> io::Result<OwnedFd> {
        self.ensure(path, Leaf::Directory)
    }

    /// What is at `path`: something other than a directory, an empty file when there was nothing.
    pub(super) fn ensure_file(&self, path: &str) -> io::Result<OwnedFd> {
        self.ensure(path, Leaf::File)
    }

    fn ensure(&self, path: &str, leaf: Leaf) -> io::Result<OwnedFd> {
        let found = match self.open(path) {
            Err(Errno::NOENT) => self.walk(path, leaf)?,
            answer => answer?,
        };
        let is_directory = FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) == FileType::Directory;
        match leaf {
            Leaf::Directory if !is_directory => Err(io::ErrorKind::NotADirectory.into()),
            Leaf::File if is_directory => Err(io::ErrorKind::IsADirectory.into()),
            _ => Ok(found),
        }
    }

    /// Name by name, following links by hand: a link to something missing is followed to where it would be made.
    fn walk(&self, path: &str, leaf: Leaf) -> io::Result<OwnedFd> {
        let mut above: Vec<OwnedFd> = Vec::new();
        let mut here = rustix::io::fcntl_dupfd_cloexec(&self.mount, 3)?;
        let mut names: VecDeque<OsString> = components(OsStr::new(path));
        let mut links = 0;
        while let Some(name) = names.pop_front() {
            if name == ".." {
                if let Some(parent) = above.pop() {
                    here = parent;
                }
                continue;
            }
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let next = match rustix::fs::openat(&here, name.as_os_str(), flags, Mode::empty()) {
                Err(Errno::NOENT) => {
                    make(here.as_fd(), &name, if names.is_empty() { leaf } else { Leaf::Directory })?;
                    rustix::fs::openat(&here, name.as_os_str(), flags, Mode::empty())?
                }
                answer => answer?,
            };
            if FileType::from_raw_mode(rustix::fs::fstat(&next)?.st_mode) == FileType::Symlink {
                links += 1;
                if links > LINK_LIMIT {
                    return Err(Errno::LOOP.into());
                }
                let target = OsString::from_vec(rustix::fs::readlinkat(&next, c"", Vec::new())?.into_bytes());
                if target.as_bytes().starts_with(b"/") {
                    above.clear();
                    here = rustix::io::fcntl_dupfd_cloexec(&self.mount, 3)?;
                }
                let mut rest = components(&target);
                rest.append(&mut names);
                names = rest;
            } else {
                above.push(std::mem::replace(&mut here, next));
            }
        }
        Ok(here)
    }

    /// The directory that holds `path`, and the last name of it.
    pub(super) fn ensure_parent<'p>(&self, path: &'p str) -> io::Result<(OwnedFd, &'p str)> {
        let (parent, name) = path.trim_end_matches('/').rsplit_once('/').unwrap_or(("", path));
        if name.is_empty() || name == ".." || name == "." {
            return Err(Errno::INVAL.into());
        }
        Ok((self.ensure_directory(if parent.is_empty() { "/" } else { parent })?, name))
    }

    pub(super) fn make_readonly(&self) -> Result<(), StepError> {
        let attributes = MountAttributes { set: libc::MOUNT_ATTR_RDONLY, ..MountAttributes::default() };
        sys::mount_setattr(&self.mount, attributes).step("make the root read-only")
    }

    /// Makes it this process's root, and lets go of the host's tree.
    pub(super) fn pivot(self, propagation: u32) -> Result<(), StepError> {
        let old = open_root()?;
        rustix::process::fchdir(&self.mount).step("enter the root")?;
        sys::pivot_root_here().step("pivot_root")?;
        // The old root now lies over the new one, and `/` still means the old one until it is gone.
        rustix::process::fchdir(&old).step("enter the old root")?;
        rustix::mount::unmount(c".", UnmountFlags::DETACH).step("let go of the old root")?;
        rustix::process::chdir(c"/").step("enter the new root")?;
        if propagation != 0 {
            let flags = MountPropagationFlags::from_bits_retain(propagation);
            rustix::mount::mount_change(c"/", flags).step("set the propagation of the new root")?;
        }
        Ok(())
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.mount.as_fd()
    }
}

fn components(path: &OsStr) -> VecDeque<OsString> {
    path.as_bytes()
        .split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
        .map(|name| OsStr::from_bytes(name).to_owned())
        .collect()
}

/// Makes one name; that somebody else has made it meanwhile is no fault.
fn make(parent: BorrowedFd<'_>, name: &OsStr, leaf: Leaf) -> Result<(), Errno> {
    let made = match leaf {
        Leaf::Directory => rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)),
        Leaf::File => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)
        }
    };
    match made {
        Err(Errno::EXIST) => Ok(()),
        answer => answer,
    }
}

/// Whether two descriptors are the same file.
pub(super) fn file_type(fd: impl AsFd) -> Result<FileType, Errno> {
    Ok(FileType::from_raw_mode(rustix::fs::statat(fd, c"", AtFlags::EMPTY_PATH)?.st_mode))
}
