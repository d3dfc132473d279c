//! Space on disk: a container's writable layer, its logs, the file system below.

mod layers;
mod walk;

use std::{ffi::OsStr, io, os::unix::ffi::OsStrExt, path::Path};

pub use layers::{LayerSettings, LayerUsage, Measured};
use rustix::{
    fd::OwnedFd,
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, openat, statat, statvfs},
};
pub use walk::measure;

/// What something takes up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Blocks that are allocated, so a sparse file counts as what it really takes.
    pub bytes: u64,
    pub inodes: u64,
}

impl DiskUsage {
    fn add(&mut self, stat: &Stat) {
        // stat(2): units of 512 bytes, whatever the file system's block size.
        let bytes = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
        self.bytes = self.bytes.saturating_add(bytes);
        self.inodes += 1;
    }
}

/// A file system as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileSystem {
    /// Size in bytes.
    pub bytes_total: u64,
    pub inodes_total: u64,
    pub inodes_free: u64,
}

/// The file system that `path` is on. `None` when it cannot be asked.
pub fn file_system(path: &Path) -> Option<FileSystem> {
    let stat = statvfs(path).ok()?;
    Some(FileSystem {
        bytes_total: stat.f_blocks.saturating_mul(stat.f_frsize),
        inodes_total: stat.f_files,
        inodes_free: stat.f_ffree,
    })
}

/// What a container's log takes up: the regular files in `folder` whose names begin with `prefix`, so that `0.log`
/// finds the rotated `0.log.20260131-120000` and `0.log.20260131-120000.gz` as well. Links are not followed and
/// folders not entered.
///
/// # Errors
/// That of opening or listing the folder; a file that disappears meanwhile is no fault.
pub fn log_usage(folder: &Path, prefix: &OsStr) -> io::Result<DiskUsage> {
    let folder = open_folder(CWD, folder)?;
    let mut usage = DiskUsage::default();
    for entry in Dir::read_from(&folder)? {
        let entry = entry?;
        if !entry.file_name().to_bytes().starts_with(prefix.as_bytes()) {
            continue;
        }
        let Ok(stat) = statat(&folder, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) else { continue };
        if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
            usage.add(&stat);
        }
    }
    Ok(usage)
}

/// Opens a folder to list it, and nothing that is a link.
fn open_folder(above: impl rustix::fd::AsFd, name: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(above, name, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_log_is_all_files_that_begin_like_it() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["0.log", "0.log.20260131-120000", "0.log.20260130-120000.gz", "1.log"] {
            fs::write(folder.path().join(name), vec![1; 8192]).unwrap();
        }
        std::os::unix::fs::symlink("/etc", folder.path().join("0.log.link")).unwrap();
        fs::create_dir(folder.path().join("0.log.folder")).unwrap();
        let usage = log_usage(folder.path(), OsStr::new("0.log")).unwrap();
        assert_eq!(usage.inodes, 3);
        assert!(log_usage(&folder.path().join("none"), OsStr::new("0")).is_err());
    }

    #[test]
    fn the_file_system_of_a_folder_has_a_size() {
        let found = file_system(Path::new("/")).unwrap();
        assert!(found.bytes_total > 1 << 20, "{found:?}");
        assert_eq!(file_system(Path::new("/nonexistent")), None);
    }
}
