//! Making a pod's network namespace.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use nix::sched::{CloneFlags, unshare};

use crate::{
    netlink::{NetlinkError, Socket, route},
    sysctl::{self, SysctlError},
    thread::{self, ThreadError},
};

/// The loopback interface is the first of every namespace.
const LOOPBACK: u32 = 1;

/// A network namespace with its loopback up. It lives as long as something holds it: this descriptor, a process in it,
/// or a mount.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
}

impl Netns {
    /// The descriptor, for whoever shall keep the namespace alive.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// No namespace could be made; nothing is left of it.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The thread that makes it.
    #[error("cannot make a network namespace")]
    Thread(#[source] ThreadError),
    /// `unshare(2)`: `EPERM` without CAP_SYS_ADMIN, `ENOSPC` over the limit in user.max_net_namespaces.
    #[error("cannot make a network namespace")]
    Unshare(#[source] io::Error),
    /// The new namespace's file.
    #[error("cannot open the new network namespace")]
    Open(#[source] io::Error),
    /// A setting inside.
    #[error("cannot prepare the new network namespace")]
    Sysctl(#[source] SysctlError),
    /// Its loopback.
    #[error("cannot set up the loopback of the new network namespace")]
    Loopback(#[source] NetlinkError),
}

pub(crate) async fn create() -> Result<Netns, NetnsError> {
    thread::run("netns", make_here).await.map_err(NetnsError::Thread)?
}

/// Prepares a namespace that somebody else has made, as [`create`] does its own.
pub(crate) async fn adopt(fd: OwnedFd) -> Result<Netns, NetnsError> {
    let inside = move || {
        thread::enter(&fd).map_err(NetnsError::Thread)?;
        prepare()?;
        Ok(Netns { fd })
    };
    thread::run("netns", inside).await.map_err(NetnsError::Thread)?
}

/// Leaves the calling thread in the new namespace.
fn make_here() -> Result<Netns, NetnsError> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| NetnsError::Unshare(errno.into()))?;
    let fd = File::open("/proc/thread-self/ns/net").map_err(NetnsError::Open)?.into();
    prepare()?;
    Ok(Netns { fd })
}

/// Makes the calling thread's namespace ready for a pod.
fn prepare() -> Result<(), NetnsError> {
    if sysctl::has_ipv6() {
        // The pod's interface takes these over when it appears. Its addresses are assigned: no second's wait for
        // duplicates, and no neighbour that announces itself as a router is believed.
        for (name, value) in [("accept_dad", "0"), ("accept_ra", "0")] {
            sysctl::ensure(&format!("ipv6/conf/default/{name}"), value).map_err(NetnsError::Sysctl)?;
        }
    }
    Socket::route()
        .and_then(|mut socket| socket.transact(&[route::raise_link(LOOPBACK)]))
        .map_err(NetnsError::Loopback)
}
