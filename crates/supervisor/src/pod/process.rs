//! A child of this process, by pidfd.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ended {
    /// As CRI wants it: 128 + signal for a signal.
    pub(super) code: i32,
    /// 0: it exited by itself.
    pub(super) signal: i32,
}

/// A child: it cannot be mistaken for another process, since its number stays taken until [`Process::reap`].
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
}

impl Process {
    /// A child of which only the number is known.
    ///
    /// # Errors
    /// `ECHILD` when `pid` is not a child of this process.
    pub(super) fn adopt(pid: i32) -> io::Result<Self> {
        let number = Pid::from_raw(pid).filter(|_| pid > 0);
        let number =
            number.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{pid} is no pid")))?;
        let process = Self { pid, pidfd: rustix::process::pidfd_open(number, PidfdFlags::empty())? };
        let peek = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        rustix::process::waitid(WaitId::PidFd(process.pidfd.as_fd()), peek)?;
        Ok(process)
    }

    /// # Errors
    /// `ESRCH` when it is dead, `EINVAL` for a number that is no signal.
    pub(super) fn signal(&self, signal: i32) -> io::Result<()> {
        crate::sys::pidfd_send_signal(self.pidfd.as_fd(), signal)
    }

    /// SIGKILL; that it is dead already is what was wanted.
    pub(super) fn kill(&self) -> io::Result<()> {
        self.signal_if_alive(libc::SIGKILL)
    }

    /// A signal that means nothing to the dead.
    pub(super) fn signal_if_alive(&self, signal: i32) -> io::Result<()> {
        match self.signal(signal) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            done => done,
        }
    }

    /// Takes the exit status of a dead process; `None` while it lives. Never waits.
    pub(super) fn reap(&self) -> io::Result<Option<Ended>> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let Some(status) = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), options)? else {
            return Ok(None);
        };
        Ok(Some(match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Ended { code, signal: 0 },
            (None, signal) => {
                let signal = signal.unwrap_or(libc::SIGKILL);
                Ended { code: 128 + signal, signal }
            }
        }))
    }
}
