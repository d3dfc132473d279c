//! Work for the root of the pod's user namespace. This process is the host's root and has to stay it, so a child does it.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berth_cri::berth::v1::failure::Kind;
use berth_cri::berth::v1::{Failure, RootIds};
use berth_launcher::sys::{SpawnOptions, spawn};
use berth_launcher::user_namespace::enter;
use prost::Message;
use rustix::fs::{FileType, Gid, Uid};
use rustix::pipe::PipeFlags;
use rustix::process::{WaitId, WaitIdOptions};

use super::failure::{Fault, Step};

/// The pod's user namespace.
#[derive(Debug)]
pub(super) struct UserNamespace {
    pub(super) fd: OwnedFd,
    /// The host's ids of the root in it.
    pub(super) root: RootIds,
}

impl UserNamespace {
    /// Gives a pipe to the root inside. A runtime in there can give it on to the container's user, who may open it again as
    /// /dev/stdout; what is the host's it cannot give away.
    pub(super) fn own_pipe(&self, end: BorrowedFd<'_>) -> std::io::Result<()> {
        if FileType::from_raw_mode(rustix::fs::fstat(end)?.st_mode) == FileType::Fifo {
            let (uid, gid) = (Uid::from_raw(self.root.uid), Gid::from_raw(self.root.gid));
            rustix::fs::fchown(end, Some(uid), Some(gid))?;
        }
        Ok(())
    }
}

/// Does `work` in a process that has entered `user`, and waits for it: nothing here may take long.
pub(super) fn inside(user: BorrowedFd<'_>, work: impl FnOnce() -> Result<(), Fault>) -> Result<(), Fault> {
    let step = "do something as the pod's root";
    let (told, tell) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).step(step)?;
    let child = spawn(&SpawnOptions::default(), || {
        let Err(fault) = enter(user).step("enter the pod's user namespace").and_then(|()| work()) else {
            return 0;
        };
        // Short enough for the pipe to take it whole. Should it not, then the status alone tells.
        let _ = rustix::io::write(&tell, &fault.into_failure(Kind::Internal).encode_to_vec());
        1
    })
    .step(step)?;
    drop(tell);
    let mut said = Vec::new();
    File::from(told).read_to_end(&mut said).step(step)?;
    let status =
        rustix::process::waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED).step(step)?;
    match status.and_then(|status| status.exit_status()) {
        Some(0) => Ok(()),
        _ if said.is_empty() => Err(Fault::refused(step, "the process was killed")),
        _ => Err(Failure::decode(&said[..])
            .map_or_else(|error| Fault::refused(step, error.to_string()), Fault::of_child)),
    }
}
