//! Going on after the daemon was away, or the machine: what was asked for and not answered is asked for again.

use serde::{Deserialize, Serialize};

use super::container::{Ended, EndingStep, Life, PostStart, State, Waiting};
use super::{Action, Sandbox, Sequence, Time};

/// What there is of a container's current attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Found {
    /// No container, or one that was never started.
    Nothing,
    Running,
    Ended(Ended),
}

impl Sequence {
    /// The machine was booted anew: the clock begins again, and nothing is left of what was started. `age`: the pod's.
    /// [`Sequence::resume`] follows.
    pub fn rebooted(&mut self, age: Time, now: Time) {
        (self.age, self.began) = (age, now);
        if let Sandbox::Wanted { not_before, .. } = &mut self.sandbox {
            *not_before = now;
        }
        for life in &mut self.lives {
            if let State::Terminated { at, .. } = &mut life.state {
                // Before the boot: no nearer time is known any more.
                *at = Time::ZERO;
            }
        }
    }

    /// Compares what was written down with what there is, and says what is to be done now. `sandbox`: whether it is
    /// there. `found`: by name and attempt.
    pub fn resume(&mut self, sandbox: bool, found: impl Fn(&str, u32) -> Found, now: Time) -> Vec<Action> {
        match (self.sandbox.clone(), sandbox) {
            // An answer may have been missed; stopping twice does no harm.
            (Sandbox::Asked { attempt, .. }, true) => self.sandbox = Sandbox::Up { attempt },
            (Sandbox::Asked { attempt, backoff }, false) => {
                self.sandbox = Sandbox::Wanted { attempt, not_before: now, backoff, error: None };
            }
            (Sandbox::Up { .. }, false) => self.sandbox_lost(now),
            (Sandbox::Stopping, true) => self.sandbox = Sandbox::Up { attempt: 0 },
            (Sandbox::Stopping, false) => self.sandbox = Sandbox::Gone,
            (Sandbox::Wanted { attempt, .. }, true) => {
                // It was made and the news of it was lost.
                self.sandbox = Sandbox::Up { attempt };
            }
            (Sandbox::Up { .. }, true) | (Sandbox::Wanted { .. }, false) | (Sandbox::Gone, _) => {}
        }
        for life in &mut self.lives {
            let found = found(&life.planned.name, life.attempt);
            life.resume(found, now);
        }
        self.settle(now)
    }
}

impl Life {
    fn resume(&mut self, found: Found, now: Time) {
        match (&mut self.state, found) {
            (State::Pulling | State::Pulled | State::Starting, Found::Nothing) => {
                self.state = State::Waiting(Waiting::Turn);
            }
            (State::Pulling | State::Pulled | State::Starting, Found::Running) => {
                self.state = State::Starting;
                self.started(now);
            }
            (State::Pulling | State::Pulled | State::Starting, Found::Ended(ended)) => {
                self.state = State::Starting;
                self.exited(ended, now);
            }
            (State::Running(_), Found::Nothing) => self.exited(Ended::lost(), now),
            (State::Running(_), Found::Ended(ended)) => self.exited(ended, now),
            (State::Running(running), Found::Running) => {
                // Hooks and probes ran in the daemon: at least once is what can be promised.
                if running.post_start == PostStart::Asked {
                    running.post_start = PostStart::Wanted;
                }
                let probes = [&mut running.startup, &mut running.liveness, &mut running.readiness];
                for probe in probes.into_iter().flatten() {
                    probe.in_flight = false;
                }
                if let Some(ending) = &mut running.ending {
                    ending.step = match ending.step {
                        EndingStep::Wanted | EndingStep::PreStop => EndingStep::Wanted,
                        EndingStep::Signal | EndingStep::Signalled => EndingStep::Signal,
                    };
                }
            }
            (State::Waiting(_) | State::Terminated { .. }, _) => {}
        }
    }
}
