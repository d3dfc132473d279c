//! The pod's user namespace, as the first process of a container meets it.
//!
//! Everything is set up by the host's root, as for any container, only that what is made belongs to the container's
//! root. Then the process enters the user namespace and takes a copy of its mounts along. The kernel locks mounts that
//! come from a more privileged place (mount_namespaces(7)): whatever capabilities the container has inside, no masked or
//! read-only path can be uncovered.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berth_cri::berth::v1::RootIds;
use nix::sched::CloneFlags;
use rustix::fs::{AtFlags, Gid, Uid};

use crate::error::{AtStep, StepError};
use crate::user_namespace;

#[derive(Debug)]
pub(super) struct UserNamespace {
    fd: OwnedFd,
    root: RootIds,
}

impl UserNamespace {
    /// Of a plan that wants one, and the descriptor that came with it.
    pub(super) fn new(root: Option<RootIds>, fd: Option<OwnedFd>) -> Result<Option<Self>, StepError> {
        match (root, fd) {
            (None, _) => Ok(None),
            (Some(root), Some(fd)) => Ok(Some(Self { fd, root })),
            (Some(_), None) => Err(StepError::refused("enter the user namespace", "the pod has none")),
        }
    }

    /// Files, mounts and terminals that this process makes belong to the container's root from here on. The process
    /// keeps all its rights.
    pub(super) fn own_what_is_made(&self) -> Result<(), StepError> {
        let step = "make files as the container's root";
        nix::unistd::setfsgid(nix::unistd::Gid::from_raw(self.root.gid));
        nix::unistd::setfsuid(nix::unistd::Uid::from_raw(self.root.uid));
        // Leaving user 0 has taken the capabilities about files out of the effective set, capabilities(7).
        let mut sets = rustix::thread::capabilities(None).step(step)?;
        sets.effective = sets.permitted;
        rustix::thread::set_capabilities(None, sets).step(step)
    }

    /// Gives a file to the container's root.
    pub(super) fn own(&self, folder: impl AsFd, name: &str) -> rustix::io::Result<()> {
        let (uid, gid) = (Uid::from_raw(self.root.uid), Gid::from_raw(self.root.gid));
        rustix::fs::chownat(folder, name, Some(uid), Some(gid), AtFlags::EMPTY_PATH)
    }

    pub(super) fn is_root(&self, uid: u32, gid: u32) -> bool {
        (uid, gid) == (self.root.uid, self.root.gid)
    }

    /// The descriptor, for mounts whose ids are to be mapped as the pod's are.
    pub(super) fn for_mounts(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Enters it, with a mount namespace that belongs to it.
    pub(super) fn enter(self) -> Result<(), StepError> {
        let step = "enter the user namespace";
        user_namespace::enter(self.fd.as_fd()).step(step)?;
        nix::sched::unshare(CloneFlags::CLONE_NEWNS).step("take the mounts into the user namespace")
    }
}
