//! The end of a pod: standard containers together, then sidecars in reverse, all within one grace period.

use serde::{Deserialize, Serialize};

use super::container::{Ending, EndingStep, Life, State};
use super::{Action, Sandbox, Sequence, Time};

/// Why a pod ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// Somebody asked for it.
    Asked,
    /// Its standard containers are done.
    Completed,
    /// An init container failed, and is not to be tried again.
    InitFailed,
    /// It is older than it may get.
    DeadlineExceeded,
    /// Its sandbox went away, and it is not to be started again.
    SandboxLost,
    /// It used more than it may.
    Evicted,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stopping {
    pub(super) cause: Cause,
    pub(super) deadline: Time,
    /// The grace is over and everything was killed.
    pub(super) killed: bool,
}

impl Sequence {
    /// The pod ends from now on. A second cause only makes it end sooner.
    pub(super) fn begin_stop(&mut self, cause: Cause, grace: Time, now: Time) {
        let deadline = now + grace;
        match &mut self.stopping {
            None => self.stopping = Some(Stopping { cause, deadline, killed: false }),
            Some(stopping) if deadline < stopping.deadline => {
                stopping.deadline = deadline;
                for life in &mut self.lives {
                    life.hurry(deadline);
                }
            }
            Some(_) => {}
        }
    }

    /// Says which containers are to end now.
    pub(super) fn mark_ends(&mut self, now: Time) {
        let Some(stopping) = &mut self.stopping else { return };
        let deadline = stopping.deadline;
        if now >= deadline && !stopping.killed {
            stopping.killed = true;
            for life in &mut self.lives {
                life.end("the pod's grace period is over", deadline);
                life.hurry(deadline);
            }
        } else if self.lives.iter().any(|life| life.is_alive() && !life.is_sidecar()) {
            for life in self.lives.iter_mut().filter(|life| !life.is_sidecar()) {
                life.end("the pod ends", deadline);
            }
        } else if let Some(last) = self.lives.iter_mut().rev().find(|life| life.is_alive()) {
            last.end("the pod ends", deadline);
        }
    }

    /// The sandbox goes when nothing runs in it.
    pub(super) fn stop_sandbox(&mut self, actions: &mut Vec<Action>) {
        if self.stopping.is_none() || self.lives.iter().any(Life::is_alive) {
            return;
        }
        match self.sandbox {
            Sandbox::Up { .. } => {
                self.sandbox = Sandbox::Stopping;
                actions.push(Action::StopSandbox);
            }
            Sandbox::Wanted { .. } => self.sandbox = Sandbox::Gone,
            // Of one that is being made the end will come.
            Sandbox::Asked { .. } | Sandbox::Stopping | Sandbox::Gone => {}
        }
    }
}

impl Life {
    /// It is to end, unless it does already.
    fn end(&mut self, why: &str, deadline: Time) {
        if let State::Running(running) = &mut self.state
            && running.ending.is_none()
        {
            running.ending = Some(Ending { why: why.to_owned(), deadline, step: EndingStep::Wanted });
        }
    }

    /// It is to end by then: what was sent with more grace is sent again with less.
    fn hurry(&mut self, deadline: Time) {
        if let State::Running(running) = &mut self.state
            && let Some(ending) = &mut running.ending
            && (deadline < ending.deadline || ending.step == EndingStep::PreStop)
        {
            ending.deadline = ending.deadline.min(deadline);
            if ending.step == EndingStep::Signalled {
                ending.step = EndingStep::Signal;
            }
        }
    }
}
