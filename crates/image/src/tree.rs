//! Whole directory trees: removing and measuring them, however deep and oddly named, by handle.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags};
use rustix::io::{Errno, Result};

/// Deeper directories are first moved up to the top, so that neither the stack nor the table of open files
/// bounds the depth of what can be removed.
const DEPTH: usize = 64;

/// Directories are opened without following a symlink that stands in their place.
const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Removes `name` in `parent` with all below it. Absent is fine. Nothing mounted is entered: that fails with `EBUSY`.
pub(crate) fn remove(parent: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    let top = rustix::fs::openat(parent, name, DIRECTORY, Mode::empty())?;
    let mut moved = 0u64;
    loop {
        let before = moved;
        empty(&top, &top, 0, &mut moved)?;
        if moved == before {
            break;
        }
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

fn empty(dir: &OwnedFd, top: &OwnedFd, depth: usize, moved: &mut u64) -> Result<()> {
    for (name, file_type) in entries(dir)? {
        if file_type != FileType::Directory {
            rustix::fs::unlinkat(dir, &name, AtFlags::empty())?;
        } else if depth < DEPTH {
            let below = rustix::fs::openat(dir, &name, DIRECTORY, Mode::empty())?;
            empty(&below, top, depth + 1, moved)?;
            rustix::fs::unlinkat(dir, &name, AtFlags::REMOVEDIR)?;
        } else {
            lift(dir, &name, top, moved)?;
        }
    }
    Ok(())
}

/// Moves a deep directory to the top of the tree being removed, under a name not taken there.
fn lift(dir: &OwnedFd, name: &CStr, top: &OwnedFd, moved: &mut u64) -> Result<()> {
    loop {
        *moved += 1;
        let lifted = format!(".lifted-{moved}");
        match rustix::fs::renameat_with(dir, name, top, lifted, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            other => return other,
        }
    }
}

/// The names in a directory, read whole before any is removed.
fn entries(dir: &OwnedFd) -> Result<Vec<(CString, FileType)>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_bytes() == b"." || name.to_bytes() == b".." {
            continue;
        }
        let file_type = match entry.file_type() {
            FileType::Unknown => {
                let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode)
            }
            known => known,
        };
        found.push((name.to_owned(), file_type));
    }
    Ok(found)
}

/// What a tree takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Size {
    /// Bytes of allocated blocks.
    pub(crate) bytes: u64,
    /// Files, directories and everything else, hard links counted once per name.
    pub(crate) inodes: u64,
}

/// Measures a tree that others may change meanwhile: what vanishes on the way counts nothing.
pub(crate) fn measure(dir: &OwnedFd) -> Result<Size> {
    let mut size = Size::default();
    measure_into(dir, 0, &mut size)?;
    Ok(size)
}

fn measure_into(dir: &OwnedFd, depth: usize, size: &mut Size) -> Result<()> {
    for (name, file_type) in entries(dir)? {
        let stat = match rustix::fs::statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(errno),
        };
        size.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        size.inodes += 1;
        // What a container nests deeper than this is not worth a stack of handles at every measurement.
        if file_type == FileType::Directory && depth < 4 * DEPTH {
            match rustix::fs::openat(dir.as_fd(), &name, DIRECTORY, Mode::empty()) {
                Ok(below) => measure_into(&below, depth + 1, size)?,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removes_trees_deeper_than_open_files_and_path_max_allow() {
        let temp = tempfile::tempdir().unwrap();
        let root = rustix::fs::open(temp.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let mut at = rustix::fs::openat(&root, ".", DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..5000 {
            rustix::fs::mkdirat(&at, "dir", Mode::RWXU).unwrap();
            rustix::fs::symlinkat("/", &at, "link").unwrap();
            at = rustix::fs::openat(&at, "dir", DIRECTORY, Mode::empty()).unwrap();
        }
        drop(at);
        remove(root.as_fd(), c"dir").unwrap();
        remove(root.as_fd(), c"dir").unwrap();
        assert!(!temp.path().join("dir").exists());
    }
}
