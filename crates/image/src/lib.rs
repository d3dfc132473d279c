//! Images: from a reference to a mounted root file system.
//!
//! Owns references and their normalisation, the registry client with its `hosts.toml` and credentials, the
//! content store, the unpacking of layers, the image records, containers' own layers (snapshots) and their
//! overlay mounts, and the removal of all that nothing needs any more.
//!
//! Never speaks gRPC, never starts or looks at a container's process, and never resolves a path that comes
//! out of an image by string: everything is walked below a directory handle.
//!
//! Start at [`Images`]; `pull.rs` follows one pull from end to end.

mod archive;
mod content;
mod digest;
mod errors;
mod explain;
mod hosts;
mod images;
mod layers;
mod layout;
mod manifest;
mod overlay;
mod parents;
mod pieces;
mod progress;
mod pull;
mod records;
mod reference;
mod registry;
mod snapshots;
mod tree;
mod unpack;

pub use archive::{LoadError, Loaded, SaveError};
pub use digest::{Digest, DigestError};
pub use errors::{Cause, PullError};
pub use explain::{Answer, ExplainedEndpoint, Explanation};
pub use hosts::HostsError;
pub use images::{FsUsage, ImageConfig, Images, OpenError, RemoveError};
pub use layout::DiskError;
pub use manifest::ManifestError;
pub use progress::{LayerProgress, LayerState, Progress};
pub use records::{Image, ImageId};
pub use reference::{Reference, ReferenceError};
pub use registry::auth::MalformedAuth;
pub use registry::{Credentials, RegistryError, RegistryErrorKind};
pub use snapshots::{FirstIds, MountError, MountOptions, Shown, Snapshot, SnapshotError};
pub use unpack::unpack_tar;
