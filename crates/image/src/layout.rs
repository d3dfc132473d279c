//! The folders below the root, and what is half-made in them.
//!
//! ```text
//! ROOT/content/sha256/<hex>     blobs as registries serve them: layers, configs, manifests
//! ROOT/layers/<diff id>/fs      a layer, unpacked; beside it layer.json
//! ROOT/snapshots/<id>/          a container's own layer: upper, work, snapshot.json
//! ROOT/tmp/<n>                  what is being made or removed; emptied at start
//! ```
//! Everything appears in its place by one rename, so all of it lies on one file system.

use std::ffi::CString;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, Mode, OFlags};

use crate::digest::Digest;
use crate::tree;

/// Something went wrong with a file of our own.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} {}", .path.display())]
pub struct DiskError {
    /// What was being done.
    pub step: &'static str,
    /// To which file or folder.
    pub path: PathBuf,
    /// The system's reason.
    pub source: io::Error,
}

impl DiskError {
    pub(crate) fn new(step: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> DiskError {
        let path = path.into();
        move |source| DiskError { step, path, source }
    }
}

/// Where things are.
#[derive(Debug)]
pub(crate) struct Layout {
    root: PathBuf,
    made: AtomicU64,
}

impl Layout {
    /// Makes the folders and removes what a crash left half-made.
    pub(crate) fn open(root: &Path) -> Result<Layout, DiskError> {
        let layout = Layout { root: root.to_owned(), made: AtomicU64::new(0) };
        discard(&layout.tmp())?;
        for dir in [layout.tmp(), layout.content(), layout.layers(), layout.snapshots()] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&dir)
                .map_err(DiskError::new("make", &dir))?;
        }
        Ok(layout)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    pub(crate) fn content(&self) -> PathBuf {
        self.root.join("content/sha256")
    }

    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.content().join(digest.hex())
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    pub(crate) fn layer_fs(&self, name: &str) -> PathBuf {
        self.layers().join(name).join("fs")
    }

    pub(crate) fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    /// A name of our own for something half-made.
    pub(crate) fn temp(&self) -> Temp {
        Temp { path: self.tmp().join(self.made.fetch_add(1, Ordering::Relaxed).to_string()) }
    }

    /// Takes something out of its place at once and removes it at leisure. Absent is fine.
    pub(crate) fn take_out(&self, path: &Path) -> Result<Option<Temp>, DiskError> {
        let temp = self.temp();
        match fs::rename(path, &temp.path) {
            Ok(()) => Ok(Some(temp)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(DiskError::new("take away", path)(error)),
        }
    }
}

/// Something half-made, or to be removed: gone with this value.
#[derive(Debug)]
pub(crate) struct Temp {
    path: PathBuf,
}

impl Temp {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Moves it to its place.
    ///
    /// # Errors
    ///
    /// `AlreadyExists` or `DirectoryNotEmpty` when the place is taken by a folder.
    pub(crate) fn commit(self, place: &Path) -> Result<(), DiskError> {
        fs::rename(&self.path, place).map_err(DiskError::new("move into place", place))
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        if let Err(error) = discard(&self.path) {
            // The next start tries again.
            tracing::warn!(path = %self.path.display(), error = %error.source, "half-made files stay until the next start");
        }
    }
}

/// Removes a file or a whole tree. Absent is fine.
pub(crate) fn discard(path: &Path) -> Result<(), DiskError> {
    let name = CString::new(path.as_os_str().as_bytes())
        .map_err(|error| DiskError::new("remove", path)(error.into()))?;
    tree::remove(CWD, &name).map_err(|errno| DiskError::new("remove", path)(errno.into()))
}

/// Opens a folder for reading.
pub(crate) fn open_dir(path: &Path) -> Result<OwnedFd, DiskError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| DiskError::new("open", path)(errno.into()))
}

/// Makes the names in a folder durable.
pub(crate) fn sync_dir(path: &Path) -> Result<(), DiskError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(DiskError::new("sync", path))
}

/// The names in a folder of ours, those that are not text left out.
pub(crate) fn names(path: &Path) -> Result<Vec<String>, DiskError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(DiskError::new("list", path))? {
        let entry = entry.map_err(DiskError::new("list", path))?;
        names.extend(entry.file_name().into_string());
    }
    Ok(names)
}
