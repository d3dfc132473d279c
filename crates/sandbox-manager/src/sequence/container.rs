//! One container's life: its attempts, and where the current one is.

use serde::{Deserialize, Serialize};

use super::backoff::{Backoff, RECOVERED};
use super::plan::{PlannedContainer, ProbeKind, RestartPolicy};
use super::probe::{Probe, Verdict};
use super::settle::should_restart;
use super::{Hook, ProbeAnswer, Time};
use crate::ContainerKind;

/// A container in all its attempts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Life {
    pub(super) planned: PlannedContainer,
    /// The current one, from 0.
    pub(super) attempt: u32,
    pub(super) state: State,
    /// It has run in the present sandbox: a sidecar that has is started again, whoever's turn it is.
    #[serde(default)]
    pub(super) started_here: bool,
    /// How the attempt before this one ended.
    pub(super) last: Option<Ended>,
    pub(super) backoff: Backoff,
    pull_backoff: Backoff,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum State {
    Waiting(Waiting),
    /// Its image is being seen to.
    Pulling,
    /// Its image is there.
    Pulled,
    /// It is being created and started.
    Starting,
    Running(Box<Running>),
    Terminated {
        ended: Ended,
        at: Time,
        ran: Time,
    },
}

/// What it waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Waiting {
    /// Its turn.
    Turn,
    /// The end of a back-off. `reason` as Kubernetes calls it: CrashLoopBackOff, ImagePullBackOff, CreateContainerError.
    Backoff { until: Time, reason: String, message: String },
}

/// The attempt that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Running {
    pub(super) since: Time,
    pub(super) post_start: PostStart,
    pub(super) startup: Option<Probe>,
    pub(super) liveness: Option<Probe>,
    pub(super) readiness: Option<Probe>,
    pub(super) ending: Option<Ending>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum PostStart {
    Wanted,
    Asked,
    Done,
    Failed(String),
}

/// It is on its way to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ending {
    pub(super) why: String,
    /// SIGKILL is due then.
    pub(super) deadline: Time,
    pub(super) step: EndingStep,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum EndingStep {
    /// The preStop hook is to be run.
    Wanted,
    /// It runs.
    PreStop,
    /// It is over, or there is none: SIGTERM is to be sent.
    Signal,
    /// Sent; SIGKILL follows at the deadline.
    Signalled,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// 128 and the signal's number for a signal.
    pub code: i32,
    /// As Kubernetes calls it: Completed, Error, OOMKilled, ContainerCannotRun.
    pub reason: String,
    /// For people; empty when there is nothing to add.
    pub message: String,
}

impl Ended {
    /// Of a container whose sandbox went away.
    pub(super) fn lost() -> Self {
        Self { code: 255, reason: "Error".to_owned(), message: "its sandbox was lost".to_owned() }
    }
}

impl Life {
    pub(super) fn new(planned: &PlannedContainer) -> Self {
        Self {
            planned: planned.clone(),
            attempt: 0,
            state: State::Waiting(Waiting::Turn),
            started_here: false,
            last: None,
            backoff: Backoff::default(),
            pull_backoff: Backoff::default(),
        }
    }

    /// There is, or may be, a process of it.
    pub(super) fn is_alive(&self) -> bool {
        matches!(self.state, State::Starting | State::Running(_))
    }

    /// A process of it may have done something.
    pub(super) fn has_run(&self) -> bool {
        self.is_alive() || self.attempt > 0 || matches!(self.state, State::Terminated { .. })
    }

    pub(super) fn is_sidecar(&self) -> bool {
        self.planned.kind == ContainerKind::Sidecar
    }

    /// It runs, its postStart came back well and its startup probe has passed.
    pub(super) fn is_started(&self) -> bool {
        match &self.state {
            State::Running(running) => running.is_started(),
            _ => false,
        }
    }

    /// How often it was started again: an attempt counts once it has run, or could not.
    pub(super) fn restarts(&self) -> u32 {
        match self.state {
            State::Running(_) | State::Terminated { .. } => self.attempt,
            _ => self.attempt.saturating_sub(1),
        }
    }

    /// Started, not on its way to the end, and its readiness probe passes.
    pub(super) fn is_ready(&self) -> bool {
        match &self.state {
            State::Running(running) => {
                let passes = running.readiness.as_ref().is_none_or(|probe| probe.verdict == Verdict::Passing);
                running.is_started() && running.ending.is_none() && passes
            }
            // An init container has done all there was to do.
            State::Terminated { ended, .. } => self.planned.kind == ContainerKind::Init && ended.code == 0,
            _ => false,
        }
    }

    /// What comes after it in the startup sequence may come.
    pub(super) fn lets_the_next_one_start(&self) -> bool {
        match (self.planned.kind, &self.state) {
            (ContainerKind::Sidecar, _) => self.is_started(),
            (_, State::Terminated { ended, .. }) => ended.code == 0,
            _ => false,
        }
    }

    pub(super) fn pulled(&mut self) {
        if self.state == State::Pulling {
            self.pull_backoff.reset();
            self.state = State::Pulled;
        }
    }

    pub(super) fn pull_failed(&mut self, reason: String, message: String, now: Time) {
        if self.state == State::Pulling {
            let until = now + self.pull_backoff.after_failure();
            self.state = State::Waiting(Waiting::Backoff { until, reason, message });
        }
    }

    pub(super) fn started(&mut self, now: Time) {
        if self.state != State::Starting {
            return;
        }
        let post_start = if self.planned.post_start { PostStart::Wanted } else { PostStart::Done };
        let probes = &self.planned.probes;
        let probe = |planned: &Option<_>| planned.as_ref().map(|planned| Probe::new(planned, now));
        self.state = State::Running(Box::new(Running {
            since: now,
            post_start,
            startup: probe(&probes.startup),
            liveness: probe(&probes.liveness),
            readiness: probe(&probes.readiness),
            ending: None,
        }));
        self.started_here = true;
    }

    /// It was never there: not an end, and tried again whatever the restart policy.
    pub(super) fn create_failed(&mut self, message: String, now: Time) {
        if self.state == State::Starting {
            let until = now + self.backoff.after_failure();
            let reason = "CreateContainerError".to_owned();
            self.state = State::Waiting(Waiting::Backoff { until, reason, message });
        }
    }

    pub(super) fn exited(&mut self, ended: Ended, now: Time) {
        let ran = match &self.state {
            State::Running(running) => now.saturating_sub(running.since),
            State::Starting => Time::ZERO,
            _ => return,
        };
        self.state = State::Terminated { ended, at: now, ran };
    }

    pub(super) fn hook_ended(&mut self, hook: Hook, failure: Option<String>) {
        let State::Running(running) = &mut self.state else { return };
        match (hook, &mut running.ending) {
            (Hook::PostStart, _) if running.post_start == PostStart::Asked => {
                running.post_start = failure.map_or(PostStart::Done, PostStart::Failed);
            }
            // A preStop that failed has had its chance: the container is to end all the same.
            (Hook::PreStop, Some(ending)) if ending.step == EndingStep::PreStop => {
                ending.step = EndingStep::Signal;
            }
            _ => {}
        }
    }

    pub(super) fn probed(&mut self, kind: ProbeKind, answer: ProbeAnswer) {
        if let State::Running(running) = &mut self.state
            && let Some(probe) = running.probe_mut(kind)
        {
            probe.answered(answer);
        }
    }

    /// The next attempt, after an end: at once, or after a back-off.
    pub(super) fn restart(&mut self) {
        let State::Terminated { ended, at, ran } = &self.state else { return };
        if *ran >= RECOVERED {
            self.backoff.reset();
        }
        let until = *at + self.backoff.after_end();
        let message = format!("the last attempt ended with {} ({})", ended.code, ended.reason);
        self.last = Some(ended.clone());
        self.attempt += 1;
        self.state =
            State::Waiting(Waiting::Backoff { until, reason: "CrashLoopBackOff".to_owned(), message });
    }

    /// In a new sandbox. What is done is done, but for init containers: what they prepared may be gone.
    pub(super) fn begin_again(&mut self, policy: RestartPolicy) {
        self.started_here = false;
        match &self.state {
            State::Terminated { ended, .. } => {
                if self.planned.kind != ContainerKind::Init && !should_restart(self, policy) {
                    return;
                }
                self.last = Some(ended.clone());
                self.attempt += 1;
            }
            State::Waiting(_) | State::Pulling | State::Pulled => {}
            State::Starting | State::Running(_) => return,
        }
        self.state = State::Waiting(Waiting::Turn);
    }

    pub(super) fn wake_times(&self) -> Vec<Time> {
        match &self.state {
            State::Waiting(Waiting::Backoff { until, .. }) => vec![*until],
            State::Running(running) => running.wake_times(),
            _ => Vec::new(),
        }
    }
}

impl Running {
    pub(super) fn is_started(&self) -> bool {
        let passed = self.startup.as_ref().is_none_or(|probe| probe.verdict == Verdict::Passing);
        self.post_start == PostStart::Done && passed
    }

    fn probe(&self, kind: ProbeKind) -> Option<&Probe> {
        match kind {
            ProbeKind::Startup => self.startup.as_ref(),
            ProbeKind::Liveness => self.liveness.as_ref(),
            ProbeKind::Readiness => self.readiness.as_ref(),
        }
    }

    pub(super) fn probe_mut(&mut self, kind: ProbeKind) -> Option<&mut Probe> {
        match kind {
            ProbeKind::Startup => self.startup.as_mut(),
            ProbeKind::Liveness => self.liveness.as_mut(),
            ProbeKind::Readiness => self.readiness.as_mut(),
        }
    }

    /// The probes that are to be run at this point: none beside a postStart, the startup probe until it has passed, then
    /// the two others.
    pub(super) fn probes(&self) -> Vec<ProbeKind> {
        if self.post_start != PostStart::Done || self.ending.is_some() {
            return Vec::new();
        }
        if self.is_started() {
            let has = [(ProbeKind::Liveness, &self.liveness), (ProbeKind::Readiness, &self.readiness)];
            return has.into_iter().filter(|(_, probe)| probe.is_some()).map(|(kind, _)| kind).collect();
        }
        vec![ProbeKind::Startup]
    }

    fn wake_times(&self) -> Vec<Time> {
        if let Some(ending) = &self.ending {
            return vec![ending.deadline];
        }
        let waiting = self.probes().into_iter().filter_map(|kind| self.probe(kind));
        waiting.filter(|probe| !probe.in_flight).map(|probe| probe.due).collect()
    }
}
