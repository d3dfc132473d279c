//! Space on disk: a container's writable layer, and the file system below.

mod layers;
mod walk;

use std::path::Path;

pub use layers::{LayerSettings, LayerUsage, Measured};
use rustix::{
    fd::OwnedFd,
    fs::{Mode, OFlags, Stat, openat, statvfs},
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

/// Opens a folder to list it, and nothing that is a link.
fn open_folder(above: impl rustix::fd::AsFd, name: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(above, name, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_system_of_a_folder_has_a_size() {
        let found = file_system(Path::new("/")).unwrap();
        assert!(found.bytes_total > 1 << 20, "{found:?}");
        assert_eq!(file_system(Path::new("/nonexistent")), None);
    }
}
