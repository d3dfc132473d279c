//! One container as its supervisor sees it.
//!
//! ```text
//!   Creating ──ready──► Created ──start──► Starting ──executed──► Running ──┐
//!      ├──held──► Held ──resume──► Creating          (hooks of the daemon's) │
//!      │                   └──────────────────┴─────(killed, failed)────────┴──► Exited
//!      └──failed──► gone                                                            └──delete──► gone
//! ```
//!
//! A process that dies is noticed by its pidfd in every state; what that means depends on the state alone.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berth_cri::berth::v1::container_report::State;
use berth_cri::berth::v1::{ContainerExited, ContainerReport, Failure};
use berth_launcher::cgroup::Cgroup;
use berth_launcher::container::Gate;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::external::Runtime;
use super::note::say;
use super::output::Output;
use super::poller::Key;
use super::process::Process;
use crate::exit_file;

/// Where an answer goes that is given later.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) peer: Key,
    pub(super) request: u64,
}

/// A request that is being worked on. With `failure` set the outcome is known and only the death of the process is
/// waited for, so that the caller finds nothing half-made when it is told.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) asked: Asked,
    pub(super) failure: Option<Failure>,
}

#[derive(Debug)]
pub(super) enum Phase {
    Creating(Pending),
    /// Before its hooks.
    Held,
    Created,
    Starting(Pending),
    /// Since when, in nanoseconds since the epoch.
    Running(i64),
    Exited(ContainerExited),
}

/// Who makes the process.
#[derive(Debug)]
pub(super) enum Maker {
    /// The launcher. The gate is there until the program runs.
    Native {
        gate: Option<Gate>,
    },
    External(Runtime),
    /// CRIU, from a checkpoint.
    Restored,
}

#[derive(Debug)]
pub(super) struct Container {
    pub(super) id: String,
    pub(super) dir: Dir,
    pub(super) phase: Phase,
    pub(super) maker: Maker,
    /// The first process. None before an external runtime has made it and after it has been reaped.
    pub(super) process: Option<Process>,
    pub(super) output: Output,
    /// The other end of an open stdin, for attach. Held so that the container reads nothing rather than an end.
    pub(super) stdin: Option<OwnedFd>,
    pub(super) cgroup: Cgroup,
    /// Processes that the memory cgroup had killed when the container was made.
    pub(super) oom_kills_before: u64,
    /// Who waits for the container to be forgotten.
    pub(super) deletions: Vec<Asked>,
}

impl Container {
    pub(super) fn state(&self) -> State {
        match self.phase {
            Phase::Creating(_) | Phase::Held | Phase::Created | Phase::Starting(_) => State::Created,
            Phase::Running(_) => State::Running,
            Phase::Exited(_) => State::Exited,
        }
    }

    pub(super) fn report(&self) -> ContainerReport {
        let (started_at, exit) = match &self.phase {
            Phase::Running(since) => (*since, None),
            Phase::Exited(exited) => (exited.started_at, Some(exited.clone())),
            Phase::Creating(_) | Phase::Held | Phase::Created | Phase::Starting(_) => (0, None),
        };
        ContainerReport {
            container_id: self.id.clone(),
            state: self.state().into(),
            pid: self.process.as_ref().map_or(0, |process| process.pid),
            started_at,
            exit,
        }
    }

    /// A copy of what writes to the container: its terminal's master, or its stdin's pipe.
    pub(super) fn input(&self) -> io::Result<Option<OwnedFd>> {
        let terminal = self.output.terminal();
        terminal.or(self.stdin.as_ref()).map(OwnedFd::try_clone).transpose()
    }

    /// Processes of this container that the kernel has killed for want of memory.
    pub(super) fn oom_kills(&self) -> u64 {
        oom_kills(&self.cgroup)
    }
}

pub(super) fn oom_kills(cgroup: &Cgroup) -> u64 {
    cgroup.oom_kills().unwrap_or_else(|error| {
        say!("cannot read how many processes were killed for memory: {error}");
        0
    })
}

/// A container's folder in the pod's: the exit record, and what the runs of an external runtime leave behind.
#[derive(Debug)]
pub(super) struct Dir {
    name: String,
    fd: OwnedFd,
}

impl Dir {
    /// Makes the folder, or takes the one that is there, and the space for the exit record.
    pub(super) fn make(pod: impl AsFd, name: &str) -> io::Result<Self> {
        match rustix::fs::mkdirat(pod.as_fd(), name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(pod.as_fd(), name, flags, Mode::empty())?;
        let dir = Self { name: name.to_owned(), fd };
        match exit_file::remove(&dir).and_then(|()| exit_file::reserve(&dir)) {
            Ok(()) => Ok(dir),
            Err(error) => {
                dir.remove(pod);
                Err(error)
            }
        }
    }

    /// Removes the record and the folder; the latter stays when somebody else keeps something in it.
    pub(super) fn remove(&self, pod: impl AsFd) {
        if let Err(error) = exit_file::remove(&self.fd) {
            say!("cannot remove the exit record of {}: {error}", self.name);
        }
        match rustix::fs::unlinkat(pod, self.name.as_str(), AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(errno) => say!("cannot remove the folder of {}: {errno}", self.name),
        }
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// An id becomes a folder's name and an argument of a command line.
pub(super) fn is_valid_id(id: &str) -> bool {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-.".contains(byte);
    id.as_bytes().iter().all(plain)
        && id.starts_with(|first: char| first.is_ascii_alphanumeric())
        && id.len() <= 128
}
