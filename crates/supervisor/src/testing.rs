//! What the unit tests and those in tests/ share.

use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A file system of a few kilobytes, gone again at the end of the test.
#[derive(Debug)]
pub(crate) struct TinyDisk(PathBuf);

impl TinyDisk {
    pub(crate) fn mount(at: &Path, bytes: u32) -> Self {
        let size = format!("size={bytes}");
        mount(Some("tiny"), at, Some("tmpfs"), MsFlags::empty(), Some(size.as_str())).unwrap();
        Self(at.to_owned())
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
    }
}
