//! The Node Resource Interface: plugins that watch pods and containers and have a say in what they become.
//!
//! Owns the protocol as containerd and CRI-O speak it, so that plugins written for them connect unchanged (`wire`); the
//! set of connected plugins with their registration, configuration and synchronisation (`plugin`, `plugins`); those
//! that lie in a folder and are started with the daemon (`installed`); what several plugins want together, with their
//! conflicts found (`merge`); what happens when one of them hangs or dies ([`NriConfig`]); and what their wishes mean
//! in an OCI runtime spec ([`oci`]).
//!
//! Never does: change a container. [`Nri`] is told what is about to happen and says what to make of it; updates and
//! evictions that plugins ask for go to whoever implements [`Runtime`]. It knows no CRI, and nothing of how pods are kept.
//!
//! # One thing at a time
//!
//! A plugin that shares out a node's CPUs answers the creation of one container with updates to others. Two such answers
//! must not overtake each other, so whatever plugins are asked takes a turn, over all pods, until its updates are applied.
//! A plugin that hangs holds the turn for the request timeout once, and is cut off then.

mod api;
mod config;
mod error;
mod event;
#[doc(hidden)]
pub mod fuzz;
mod inflight;
mod installed;
mod merge;
mod nri;
pub mod oci;
mod plugin;
mod plugins;
mod shared;
mod sync;
mod sys;
mod wire;

pub use api::*;
pub use config::{NriConfig, OnFailure, PluginPolicy};
pub use error::{CallError, Refused};
pub use inflight::{Arriving, Leaving};
pub use merge::overlay;
pub use nri::{Everything, Nri, Runtime, UpdateFailure};
pub use plugin::{check_index, check_name};
pub use plugins::{LostPlugin, PluginInfo};
