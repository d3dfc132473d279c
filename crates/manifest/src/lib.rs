//! Kubernetes manifests, read and checked: Pods, lists of ephemeral containers, and the ConfigMaps and Secrets that they
//! refer to.
//!
//! Owns what a manifest may say: which fields there are, what values they take, what has to fit together. What comes out
//! has every default filled in and cannot be wrong in itself: a probe has one handler, a mount has its volume, a
//! reference to a ConfigMap is its content. All that is wrong is told at once, each with its path in the document.
//!
//! Never does: input or output, anything to a pod. What depends on the node or on the running pod (addresses, a runtime
//! handler, a folder on the host) is looked at by those who run it.
//!
//! The fields are those of the Pod API, v1, as of Kubernetes 1.37, less what only a scheduler or an API server could give
//! meaning to.

mod config;
mod container;
pub mod cri;
mod document;
mod env;
mod ephemeral;
mod fault;
mod fields;
mod names;
mod pod;
mod probe;
mod quantity;
mod resources;
mod security;
mod volume;

pub use config::{Config, Configs};
pub use container::{
    Container, Mount, MountPropagation, Port, Protocol, PullPolicy, RecursiveReadOnly, TerminationMessage,
};
pub use document::{Manifests, Source, Strictness, read};
pub use env::{Env, EnvValue, FieldPath, ResourceField, ResourceKind};
pub use ephemeral::{EphemeralContainer, EphemeralContainers};
pub use fault::{Fault, Faults};
pub use pod::{DnsConfig, DnsPolicy, HostAlias, Metadata, Pod, RestartPolicy, Startup};
pub use probe::{Hook, HttpGet, Lifecycle, PortRef, Probe, ProbeAction, Probes};
pub use quantity::{Quantity, QuantityError};
pub use resources::Resources;
pub use security::{AppArmor, FsGroupChange, PodSecurity, SeLinux, Seccomp, Security, SupplementalGroups};
pub use volume::{Content, EmptyDir, HostPathType, Item, Medium, Volume, VolumeSource};
