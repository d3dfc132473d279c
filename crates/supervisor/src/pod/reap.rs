//! Orphans: processes that lost their parent and fell to this one, the subreaper.

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use super::Pod;
use super::note::say;
use super::poller::Key;

/// Which of the tables a child is in.
#[derive(Clone, Copy)]
enum Owner {
    Container(Key),
    Exec(Key),
    Run(Key),
    PidOne,
}

impl Pod {
    /// SIGCHLD: takes the dead that nobody here knows.
    ///
    /// Not while an external runtime is at work. What it makes falls to this process before its pid file can be
    /// read, and may be dead by then; until it is reaped, its number and its status stay.
    pub(super) fn reap_orphans(&mut self) {
        while let Ok(Some(_)) = self.children.read_signal() {}
        let mut before = None;
        while self.runs.is_empty() {
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
            let pid = match waitid(Id::All, flags) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Ok(status) => status.pid(),
                Err(errno) => return say!("cannot look for dead children: {errno}"),
            };
            // Still there after its turn: its owner could not take it, and has said why.
            let Some(pid) = pid.filter(|pid| before != Some(*pid)) else { return };
            before = Some(pid);
            match self.owner(pid.as_raw()) {
                // Its own event would come as well; the kernel shows the dead one after another, so it goes first.
                Some(Owner::Container(key)) => self.container_died(key),
                Some(Owner::Exec(key)) => self.exec_died(key),
                Some(Owner::Run(key)) => self.run_ended(key),
                Some(Owner::PidOne) => self.pid_one_died(),
                None => self.bury(pid),
            }
        }
    }

    fn bury(&self, pid: Pid) {
        if let Err(errno) = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG) {
            say!("cannot reap orphan {pid}: {errno}");
        }
    }

    fn owner(&self, pid: i32) -> Option<Owner> {
        let container =
            self.containers.iter().find(|(_, c)| c.process.as_ref().is_some_and(|p| p.pid == pid));
        if let Some((key, _)) = container {
            return Some(Owner::Container(*key));
        }
        if let Some((key, _)) = self.execs.iter().find(|(_, exec)| exec.process.pid == pid) {
            return Some(Owner::Exec(*key));
        }
        if let Some((key, _)) = self.runs.iter().find(|(_, run)| run.process.pid == pid) {
            return Some(Owner::Run(*key));
        }
        match &self.setup {
            super::Setup::Done(Some(pid_one)) if pid_one.process.pid == pid => Some(Owner::PidOne),
            _ => None,
        }
    }
}
