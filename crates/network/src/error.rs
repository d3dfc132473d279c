//! One error for each operation.

use std::io;

use berth_store::StoreError;

use crate::{BridgeError, CniError, PinError, SubnetError, ThreadError};

/// The network part cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The records.
    #[error("cannot load the network's records")]
    Store(#[source] StoreError),
    /// The configured subnets.
    #[error("the configured pod subnets")]
    Subnets(#[source] SubnetError),
    /// The configured bridge.
    #[error("{0:?} is not an interface name (at most 15 bytes, no slash, colon or space)")]
    BridgeName(String),
    /// inotify.
    #[error("cannot watch the CNI folders")]
    Watch(#[source] io::Error),
    /// A thread.
    #[error("cannot examine the kernel")]
    Thread(#[source] ThreadError),
}

/// A sandbox got no network; everything was undone. Should undoing have failed as well, that is in the log, the record
/// stays, and detach does the rest.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// It has one.
    #[error("sandbox {0} has a network already")]
    AlreadyAttached(String),
    /// See [`Network::status`](crate::Network::status).
    #[error("no network for sandbox {sandbox}: {reason}")]
    NotReady {
        /// The sandbox.
        sandbox: String,
        /// As in the status.
        reason: String,
    },
    /// The built-in network.
    #[error("cannot connect sandbox {sandbox}")]
    BuiltIn {
        /// The sandbox.
        sandbox: String,
        /// What failed.
        #[source]
        source: BridgeError,
    },
    /// CNI.
    #[error("cannot connect sandbox {sandbox}")]
    Cni {
        /// The sandbox.
        sandbox: String,
        /// What failed.
        #[source]
        source: CniError,
    },
    /// The namespace could not be given a path.
    #[error("cannot connect sandbox {sandbox}")]
    Pin {
        /// The sandbox.
        sandbox: String,
        /// What failed.
        #[source]
        source: PinError,
    },
    /// The record.
    #[error("cannot record the network of sandbox {sandbox}")]
    Store {
        /// The sandbox.
        sandbox: String,
        /// What failed.
        #[source]
        source: StoreError,
    },
    /// A thread or task.
    #[error("cannot connect sandbox {sandbox}")]
    Thread {
        /// The sandbox.
        sandbox: String,
        /// What failed.
        #[source]
        source: ThreadError,
    },
}

/// A sandbox's network could not be taken away whole. What is left is still recorded: detach again.
#[derive(Debug, thiserror::Error)]
pub enum DetachError {
    /// The built-in network.
    #[error("cannot disconnect sandbox {sandbox}")]
    BuiltIn {
        /// The sandbox.
        sandbox: String,
        /// What failed.
        #[source]
        source: BridgeError,
    },
    /// CNI.
    #[error("cannot disconnect sandbox {sandbox}")]
    Cni {
        /// The sandbox.
        sandbox: String,
        /// What failed.
        #[source]
        source: CniError,
    },
    /// The pinned namespace.
    #[error("cannot disconnect sandbox {sandbox}")]
    Pin {
        /// The sandbox.
        sandbox: String,
        /// What failed.
        #[source]
        source: PinError,
    },
    /// The record.
    #[error("cannot forget the network of sandbox {sandbox}")]
    Store {
        /// The sandbox.
        sandbox: String,
        /// What failed.
        #[source]
        source: StoreError,
    },
    /// A thread or task.
    #[error("cannot disconnect sandbox {sandbox}")]
    Thread {
        /// The sandbox.
        sandbox: String,
        /// What failed.
        #[source]
        source: ThreadError,
    },
}

/// A sandbox's network is not as it should be.
#[derive(Debug, thiserror::Error)]
#[error("the network of sandbox {sandbox}")]
pub struct CheckError {
    /// The sandbox.
    pub sandbox: String,
    /// What its plugins say.
    #[source]
    pub source: CniError,
}

/// Leftovers could not all be removed. Each is in the log; this is the first.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// Of a sandbox.
    #[error("leftovers of the network")]
    Sandbox(#[source] DetachError),
    /// Of the built-in network.
    #[error("leftovers of the network")]
    BuiltIn(#[source] BridgeError),
    /// Of pinned namespaces.
    #[error("leftovers of the network")]
    Pin(#[source] PinError),
    /// Plugins refused to collect garbage.
    #[error("leftovers of the network")]
    Cni(#[source] CniError),
    /// A thread or task.
    #[error("leftovers of the network")]
    Thread(#[source] ThreadError),
}

/// kubelet's pod CIDR was not taken over.
#[derive(Debug, thiserror::Error)]
pub enum PodCidrError {
    /// It makes no sense.
    #[error("pod CIDR {cidr:?}")]
    Invalid {
        /// As it came.
        cidr: String,
        /// Why not.
        #[source]
        source: SubnetError,
    },
    /// It could not be recorded.
    #[error("cannot record the pod CIDR")]
    Store(#[source] StoreError),
    /// A thread or task.
    #[error("cannot record the pod CIDR")]
    Thread(#[source] ThreadError),
}

/// The unused bridge could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum ShutdownError {
    /// The kernel refused.
    #[error("cannot remove the built-in network")]
    BuiltIn(#[source] BridgeError),
    /// A thread or task.
    #[error("cannot remove the built-in network")]
    Thread(#[source] ThreadError),
}
