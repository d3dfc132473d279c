//! Images in files: archives that tools of the field write, taken in, and the same written.
//!
//! An archive comes from anywhere, so nothing in it is believed: its entries are found by name in a list and never become
//! paths here, documents have a largest size, and every blob is held against its digest before it gets its place.

mod load;
mod save;
mod tarball;

use std::io;

use crate::layout::DiskError;
use crate::manifest::ManifestError;
use crate::reference::ReferenceError;
use crate::{Cause, ImageId, PullError};

/// An image that was taken in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Which.
    pub id: ImageId,
    /// Its names in the archive, normalised.
    pub names: Vec<String>,
}

/// Why an archive was not taken in. Nothing of it is left, but whole images that came before the fault.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Neither an OCI layout nor what `docker save` writes.
    #[error("this is no image archive: {0}")]
    NotAnArchive(String),
    /// It is damaged, or wants something that no archive may.
    #[error("the image archive is faulty: {0}")]
    Faulty(String),
    /// It cannot be read.
    #[error("cannot read the image archive")]
    Read(#[source] io::Error),
    /// A document in it.
    #[error("{0} in the image archive")]
    Manifest(String, #[source] ManifestError),
    /// A name in it.
    #[error(transparent)]
    Name(#[from] ReferenceError),
    /// The disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A layer, or the record.
    #[error(transparent)]
    Image(#[from] PullError),
}

/// Why an archive was not written.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// There is no such image.
    #[error("there is no image {0}")]
    NotFound(String),
    /// The text can name no image.
    #[error(transparent)]
    Name(#[from] ReferenceError),
    /// A blob is gone.
    #[error("image {image} is not whole: {source}")]
    Blob {
        /// Which.
        image: String,
        /// What is wrong.
        source: DiskError,
    },
    /// Whoever reads the archive went away.
    #[error("the archive cannot be written")]
    Write(#[source] io::Error),
}

/// A failed step, as a pull's.
fn step(name: &str, cause: impl Into<Cause>) -> LoadError {
    LoadError::Image(PullError::of(name, std::sync::Arc::new(cause.into())))
}
