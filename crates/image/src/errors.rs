//! Why a pull failed, sorted by what its caller can do about it.

use std::error::Error;
use std::io;
use std::sync::Arc;

use crate::hosts::HostsError;
use crate::layers::LayerError;
use crate::layout::DiskError;
use crate::manifest::ManifestError;
use crate::reference::ReferenceError;
use crate::registry::auth::MalformedAuth;
use crate::registry::client::{SessionError, WRONG_DIGEST};
use crate::registry::{RegistryError, RegistryErrorKind};
use crate::unpack::UnpackError;

/// The failed step of a pull. Shared by all pulls that waited for it.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Cause(Inner);

#[derive(Debug, thiserror::Error)]
enum Inner {
    #[error(transparent)]
    Registry(RegistryError),
    #[error("layer {layer}")]
    Layer { layer: String, source: LayerError },
    #[error(transparent)]
    Disk(DiskError),
    #[error("{what} is not what its digest says: {why}")]
    Content { what: String, why: String },
    #[error("the task for {0} ended unexpectedly")]
    Task(String, #[source] tokio::task::JoinError),
}

impl From<RegistryError> for Cause {
    fn from(error: RegistryError) -> Cause {
        Cause(Inner::Registry(error))
    }
}

impl From<DiskError> for Cause {
    fn from(error: DiskError) -> Cause {
        Cause(Inner::Disk(error))
    }
}

impl Cause {
    pub(crate) fn layer(layer: &crate::Digest, source: LayerError) -> Cause {
        Cause(Inner::Layer { layer: layer.to_string(), source })
    }

    pub(crate) fn content(what: String, why: String) -> Cause {
        Cause(Inner::Content { what, why })
    }

    pub(crate) fn task(what: &str, error: tokio::task::JoinError) -> Cause {
        Cause(Inner::Task(what.to_owned(), error))
    }
}

/// Why an image was not pulled. Nothing of the attempt is left.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The reference names no image.
    #[error(transparent)]
    InvalidReference(#[from] ReferenceError),
    /// The configuration for the image's host cannot be used.
    #[error("cannot pull {reference}: the registry configuration is faulty")]
    Configuration {
        /// What was asked for.
        reference: String,
        /// Which file, and what is wrong with it.
        source: HostsError,
    },
    /// The credentials given are malformed.
    #[error("cannot pull {reference}")]
    Credentials {
        /// What was asked for.
        reference: String,
        /// What is wrong with them.
        source: MalformedAuth,
    },
    /// The registry has no such image, or lost a part of it.
    #[error("image {reference} not found")]
    NotFound {
        /// What was asked for.
        reference: String,
        /// Who said so, to which request.
        source: Arc<Cause>,
    },
    /// The registry refuses the credentials, or wants some.
    #[error("not authorised to pull {reference}")]
    Unauthenticated {
        /// What was asked for.
        reference: String,
        /// Who said so, to which request.
        source: Arc<Cause>,
    },
    /// No endpoint could be reached, or none can serve now. Trying later may help.
    #[error("cannot pull {reference}: the registry is unavailable")]
    RegistryUnavailable {
        /// What was asked for.
        reference: String,
        /// The last attempt.
        source: Arc<Cause>,
    },
    /// No progress for the configured time.
    #[error("cannot pull {reference}: no progress")]
    Timeout {
        /// What was asked for.
        reference: String,
        /// What was being waited for.
        source: Arc<Cause>,
    },
    /// The registry's answer is outside the protocol.
    #[error("cannot pull {reference}: the registry's answer makes no sense")]
    Registry {
        /// What was asked for.
        reference: String,
        /// Which answer to which request.
        source: Arc<Cause>,
    },
    /// The reference leads to something that is no image for this machine.
    #[error("cannot pull {reference}: {digest} cannot be used")]
    NotAnImage {
        /// What was asked for.
        reference: String,
        /// The document at fault.
        digest: String,
        /// What it is instead.
        source: ManifestError,
    },
    /// Content that is not what its digest, its size or its form promise.
    #[error("cannot pull {reference}: damaged content")]
    Damaged {
        /// What was asked for.
        reference: String,
        /// Which content.
        source: Arc<Cause>,
    },
    /// A layer asks for what no layer may have, such as a file outside the image.
    #[error("cannot pull {reference}: entry {entry:?} of layer {layer} is not allowed")]
    LayerRejected {
        /// What was asked for.
        reference: String,
        /// The layer's diff id.
        layer: String,
        /// The entry's name in the layer's archive.
        entry: String,
        /// Why it is not allowed.
        source: Arc<Cause>,
    },
    /// The disk is full.
    #[error("cannot pull {reference}: no space left for images")]
    NoSpace {
        /// What was asked for.
        reference: String,
        /// What was being written.
        source: Arc<Cause>,
    },
    /// Some other failure of this machine's disk or kernel.
    #[error("cannot pull {reference}")]
    Disk {
        /// What was asked for.
        reference: String,
        /// What was being done.
        source: Arc<Cause>,
    },
    /// The record was not written.
    #[error("cannot record image {reference}")]
    Record {
        /// What was asked for.
        reference: String,
        /// The store's reason.
        source: berth_store::StoreError,
    },
}

impl PullError {
    pub(crate) fn of_session(reference: &str, error: SessionError) -> PullError {
        match error {
            SessionError::Auth(source) => PullError::Credentials { reference: reference.to_owned(), source },
            SessionError::Registry(error) => PullError::of(reference, Arc::new(error.into())),
        }
    }

    /// Sorts a failed step.
    pub(crate) fn of(reference: &str, source: Arc<Cause>) -> PullError {
        let reference = reference.to_owned();
        if is_no_space(&*source) {
            return PullError::NoSpace { reference, source };
        }
        match &source.0 {
            Inner::Registry(RegistryError { kind, .. }) => match kind {
                RegistryErrorKind::NotFound => PullError::NotFound { reference, source },
                RegistryErrorKind::Unauthenticated(_) => PullError::Unauthenticated { reference, source },
                RegistryErrorKind::Unavailable(_) => PullError::RegistryUnavailable { reference, source },
                RegistryErrorKind::Timeout(_) => PullError::Timeout { reference, source },
                RegistryErrorKind::Protocol(why) if why.starts_with(WRONG_DIGEST) => {
                    PullError::Damaged { reference, source }
                }
                RegistryErrorKind::Protocol(_) => PullError::Registry { reference, source },
            },
            Inner::Layer { layer, source: LayerError::Unpack(error) } => match error {
                UnpackError::Rejected { entry, .. } => PullError::LayerRejected {
                    reference,
                    layer: layer.clone(),
                    entry: entry.clone(),
                    source: Arc::clone(&source),
                },
                UnpackError::Archive(_)
                | UnpackError::Inflate(_)
                | UnpackError::Damaged { .. }
                | UnpackError::Cut => PullError::Damaged { reference, source },
                UnpackError::Entry { .. } | UnpackError::Blob { .. } | UnpackError::Thread(_) => {
                    PullError::Disk { reference, source }
                }
            },
            Inner::Content { .. } => PullError::Damaged { reference, source },
            Inner::Layer { source: LayerError::Disk(_), .. } | Inner::Disk(_) | Inner::Task(..) => {
                PullError::Disk { reference, source }
            }
        }
    }
}

/// Whether a full disk or quota is at the bottom of it.
fn is_no_space(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error: &&(dyn Error + 'static)| (*error).source())
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .any(|error| matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
}
