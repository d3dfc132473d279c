//! Interfaces of the host's that are given to a pod: OCI config-linux, "Network Devices".

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
};

use crate::{
    NetlinkError, ThreadError,
    netlink::{Socket, route},
    thread,
};

/// An interface could not be given to a pod. It is the host's as before.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Neither the host has it nor, from an earlier container, the pod.
    #[error("the host has no interface {0:?}")]
    Missing(String),
    /// The loopback, or one of the built-in network's.
    #[error("{0:?} is not to be given away")]
    Kept(String),
    /// Two interfaces of one name.
    #[error("the pod has another interface {0:?}")]
    Taken(String),
    /// The daemon's own namespace has no descriptor.
    #[error("cannot open the host's network namespace")]
    Host(#[source] io::Error),
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The pod's namespace cannot be entered.
    #[error(transparent)]
    Thread(#[from] ThreadError),
}

/// Moves the host's interface `device` into `netns`, where it is called `name`, and sets it up there. It keeps its
/// permanent addresses of global scope, but no routes. One that an earlier container of the pod has brought is left as
/// it is. When the namespace ends the kernel gives hardware back to the host.
///
/// # Errors
/// [`DeviceError`].
pub async fn move_device(netns: OwnedFd, device: String, name: String) -> Result<(), DeviceError> {
    thread::run("move-device", move || move_from_here(&netns, &device, &name)).await?
}

fn move_from_here(netns: &OwnedFd, device: &str, name: &str) -> Result<(), DeviceError> {
    let host = File::open("/proc/thread-self/ns/net").map_err(DeviceError::Host)?;
    let mut here = Socket::route()?;
    thread::enter(netns)?;
    let mut there = Socket::route()?;

    let present = there.link_named(name)?;
    let Some(link) = here.link_named(device)? else {
        return if present.is_some() { Ok(()) } else { Err(DeviceError::Missing(device.to_owned())) };
    };
    if link.is_ours() || link.is_loopback {
        return Err(DeviceError::Kept(device.to_owned()));
    }
    if present.is_some() {
        return Err(DeviceError::Taken(name.to_owned()));
    }
    let addresses = here.addresses_of(link.index)?;
    here.transact(&[route::move_link(link.index, netns.as_fd(), name)])?;

    let mut settle = || {
        // It may have another number there.
        let link = there.link_named(name)?.ok_or_else(|| DeviceError::Missing(name.to_owned()))?;
        let addresses = addresses.iter().map(|address| route::add_address(link.index, *address, false));
        there.transact(&addresses.chain([route::raise_link(link.index)]).collect::<Vec<_>>())?;
        Ok(())
    };
    settle().inspect_err(|_| {
        // Back where it was, if it can be: the caller hears of what went wrong first.
        if let Ok(Some(link)) = there.link_named(name) {
            let _ = there.transact(&[route::move_link(link.index, host.as_fd(), device)]);
        }
    })
}
