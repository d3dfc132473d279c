//! Pods without kubelet: what a manifest says is made to be so.
//!
//! Owns the pods that were given to berth as manifests: their records, their volumes, the probes and hooks of their
//! containers, what happens to them. When something is to be done is said by the sandbox manager's sequence; what is
//! done to processes is done by the sandbox manager, as it is for kubelet.
//!
//! Never speaks gRPC, and never sees a pod of kubelet's.
//!
//! # How it is built
//!
//! [`Pods`] is the door. Each pod is one task (`task/`), which holds the pod's sequence, begins each step that the
//! sequence asks for (`work.rs`), and tells it what became of it. Steps run beside the task, so no container waits for
//! another's slow image or hook. What is known of a pod is replaced whole in the `directory` at each change.

mod clock;
mod create;
mod credentials;
mod directory;
mod error;
mod extras;
mod facts;
mod folder;
mod handlers;
mod logs;
mod node;
mod plan;
mod pods;
mod pull;
mod record;
mod sys;
mod task;
mod telling;
mod timeline;
mod volumes;
mod watch;
mod wire;
mod work;

pub use directory::Key;
pub use error::Error;
pub use logs::Lines;
pub use pods::{Pods, PodsConfig, StartError, Taken};
pub use telling::{PERIOD as PULL_PERIOD, image_pull};
pub use watch::Watch;
