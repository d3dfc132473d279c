//! `berth-pod`, the one small process that every pod has, and the daemon's client for it.
//!
//! Owns: the pod's net, ipc and uts namespaces and its shared pid 1; being the parent (subreaper) of every process
//! of the pod; container logs in CRI's format; exit statuses, written to a file before anyone is told; signals, exec
//! and the clean end of all of these. The daemon's half ([`client`]) owns starting `berth-pod`, finding it again, and
//! matching replies to calls.
//!
//! Never does: read a Kubernetes or OCI object, pull an image, make a network or a mount for a container (the
//! launcher's child does), remove a cgroup, or write outside its own directory and the log files it is given. It
//! has no async runtime and no thread: [`pod`] is one epoll loop, and nothing in it waits for a container, a disk's
//! answer to a program, or a peer.

#[cfg(feature = "client")]
pub mod client;
pub mod crilog;
pub mod exit_file;
pub mod pod;
mod sys;
#[cfg(test)]
mod testing;
mod wire;

/// The control socket's name in a pod's directory.
pub const CONTROL_SOCKET: &str = "control.sock";

/// The name in a pod's directory of a link to its user namespace, where it has one.
pub const USER_NAMESPACE: &str = "userns";
