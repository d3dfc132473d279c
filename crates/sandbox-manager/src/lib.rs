//! Pods and their containers.
//!
//! Owns what a pod is: its states, who may ask what when, the order of the steps that make and end it, its durable
//! records, and what is found again after a restart of the daemon or of the machine. Uses the supervisor for
//! processes, the image store for root file systems, the network for addresses; tells plugins of what happens and lets
//! them have their say. Knows nothing of gRPC.
//!
//! # How it is built
//!
//! [`SandboxManager`] is a directory of pods. Each pod is one task (`pod`) that alone changes the pod, and never
//! waits for anything slow: slow work runs beside it and reports back, so a stop with a grace period does not delay
//! another container's start. Readers look at a [`PodView`], replaced whole at each change.
//!
//! Everything that makes a pod or a container is undone by one idempotent function each (`sandbox::tear_down`,
//! `create::discard`): a failed creation, a stop, a removal and the sweep after a crash all end the same way.

mod admit;
mod cdi;
mod checkpoint;
mod container;
mod create;
mod devices;
mod error;
mod events;
mod exec;
mod files;
mod folders;
mod hooks;
mod host;
mod id;
mod kind;
mod manager;
mod owner;
mod plugins;
mod pod;
mod propagation;
mod recovery;
mod remains;
mod resolver;
mod sandbox;
pub mod sequence;
mod session;
mod start_stop;
mod stream;
mod timeline;
mod update;
mod user_namespace;
mod view;
mod volumes;

pub use berth_oci::OpenFiles;
pub use container::{Container, ContainerState, Exit, ImageIdentity};
pub use error::Error;
pub use events::{Event, EventKind, Listener, TooSlow};
pub use exec::ExecOutput;
pub use host::{Handler, HostError, ManagerConfig};
pub use id::{ContainerId, SandboxId};
pub use kind::ContainerKind;
pub use manager::SandboxManager;
pub use owner::Owner;
pub use remains::{REMAINS_OF, REMAINS_PATH};
pub use resolver::node_resolver;
pub use sandbox::{Sandbox, SandboxPhase};
pub use session::{Attachment, Command, Dialer, Streams, Wanted};
pub use stream::{FdStream, Terminal};
pub use timeline::{Timeline, TimelineStep};
pub use view::PodView;

/// Nanoseconds since the epoch, as CRI and the records carry it.
pub type UnixNanos = i64;

/// Now, as [`UnixNanos`].
fn now() -> UnixNanos {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
