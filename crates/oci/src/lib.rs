//! From what CRI asks and an image says to an OCI runtime spec, and from a seccomp profile to BPF.
//!
//! Owns the rules: whose environment wins, who a container runs as, which capabilities it keeps, where its mounts lie and
//! in what order, what "RuntimeDefault" means. The rules are those kubelet and images are written against; where the CRI
//! text is silent they are containerd's.
//!
//! Never does: input or output. Callers read files, look devices up and probe the host, and hand the results in; what
//! comes out is data, for our launcher and for any OCI runtime alike. A field that cannot be honoured is an error that
//! names it; a capability or controller that this host lacks is a warning.

mod caps;
pub mod cdi;
mod devices;
mod error;
mod ids;
mod image;
mod input;
mod lsm;
mod mounts;
mod path;
mod process;
mod resources;
pub mod seccomp;
mod signal;
mod spec;
mod user;

pub use caps::capabilities_from_mask;
pub use error::SpecError;
pub use image::ImageDefaults;
pub use input::{
    AppArmor, ContainerInput, DeviceKind, HostFacts, ImageVolume, OpenFiles, PidNamespace, PodFiles,
    PodNamespaces, ResolvedDevice, UserNamespace,
};
pub use mounts::image_volumes;
pub use process::exec_process;
pub use resources::limits;
pub use signal::{DEFAULT_STOP_SIGNAL, UnknownSignal, cri_signal, signal_number, stop_signal};
pub use spec::{ContainerSpec, container_spec};
pub use user::{ResolvedUser, UserError, resolve_user};
