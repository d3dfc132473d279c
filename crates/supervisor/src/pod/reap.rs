//! Orphans: processes that lost their parent and fell to this one, the subreaper.

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
            let pid = match crate::sys::dead_child() {
                Ok(Some(pid)) => pid,
                Ok(None) => return,
                Err(error) => return say!("cannot look for dead children: {error}"),
            };
            // Still there after its turn: its owner could not take it, and has said why.
            if before == Some(pid) {
                return;
            }
            before = Some(pid);
            match self.owner(pid) {
                // Its own event would come as well; the kernel shows the dead one after another, so it goes first.
                Some(Owner::Container(key)) => self.container_died(key),
                Some(Owner::Exec(key)) => self.exec_died(key),
                Some(Owner::Run(key)) => self.run_ended(key),
                Some(Owner::PidOne) => self.pid_one_died(),
                None => self.bury(pid),
            }
        }
    }

    fn bury(&self, pid: i32) {
        if let Err(error) = crate::sys::bury(pid) {
            say!("cannot reap orphan {pid}: {error}");
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
