//! Folders that containers filled: removed and measured by handle, however deep, and never across a mount.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;

/// What containers nest deeper than this is not worth a stack of handles at every measurement.
const DEPTH: usize = 256;

/// Opens a folder of the given one: itself, no link to it, and nothing that is mounted on it.
pub(super) fn open_in(parent: impl AsFd, name: &CStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(parent, name, flags, Mode::empty(), resolve)
}

/// Removes `name` in `parent` with all below it. Absent is fine. A mount below fails it: `EXDEV`, `EBUSY`.
pub(super) fn remove(parent: impl AsFd, name: &CStr) -> io::Result<()> {
    if unlinked(&parent, name)? {
        return Ok(());
    }
    let top = open_in(&parent, name)?;
    let mut lifted = 0;
    // Folders within folders are moved up to the top, so no depth is too deep.
    loop {
        let names = names(&top)?;
        if names.is_empty() {
            break;
        }
        for name in names {
            if unlinked(&top, &name)? {
                continue;
            }
            let folder = open_in(&top, &name)?;
            for inner in self::names(&folder)? {
                if !unlinked(&folder, &inner)? {
                    lift(&folder, &inner, &top, &mut lifted)?;
                }
            }
            rustix::fs::unlinkat(&top, &name, AtFlags::REMOVEDIR)?;
        }
    }
    Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

/// Removes what is no folder, or an empty one; false for a full one.
fn unlinked(parent: impl AsFd, name: &CStr) -> rustix::io::Result<bool> {
    match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    match rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Moves a folder to the top, under a name that is not taken there.
fn lift(from: &OwnedFd, name: &CStr, top: &OwnedFd, lifted: &mut u64) -> rustix::io::Result<()> {
    loop {
        *lifted += 1;
        match rustix::fs::renameat_with(from, name, top, format!(".lifted-{lifted}"), RenameFlags::NOREPLACE)
        {
            Err(Errno::EXIST) => {}
            moved => return moved,
        }
    }
}

/// Read whole before any is removed.
pub(super) fn names(folder: impl AsFd) -> rustix::io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

/// Bytes on the disk below a folder that others may change meanwhile; what vanishes on the way counts nothing.
pub(super) fn measure(folder: &Path) -> io::Result<u64> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::openat(CWD, folder, flags, Mode::empty()) {
        Ok(folder) => {
            let mut measured = Measured::default();
            measured.add(&folder, 0)?;
            Ok(measured.bytes)
        }
        Err(Errno::NOENT) => Ok(0),
        Err(errno) => Err(errno.into()),
    }
}

#[derive(Default)]
struct Measured {
    bytes: u64,
    /// Inodes of files with several names that were counted.
    linked: HashSet<u64>,
}

impl Measured {
    fn add(&mut self, folder: &OwnedFd, depth: usize) -> rustix::io::Result<()> {
        for name in names(folder)? {
            let stat = match rustix::fs::statat(folder, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                stat => stat?,
            };
            let is_folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if !is_folder && stat.st_nlink > 1 && !self.linked.insert(stat.st_ino) {
                continue;
            }
            self.bytes += u64::try_from(stat.st_blocks).unwrap_or_default() * 512;
            if !is_folder || depth == DEPTH {
                continue;
            }
            match open_in(folder, &name) {
                Ok(below) => self.add(&below, depth + 1)?,
                // Gone, or another thing by now, or a mount.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }
}
