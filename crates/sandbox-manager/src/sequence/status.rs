//! What a pod is, in Kubernetes' words.

use serde::{Deserialize, Serialize};

use super::container::{Ended, Life, State, Waiting};
use super::stop::Cause;
use super::{Sandbox, Sequence, Time};
use crate::ContainerKind;

/// Where a pod is in its life (Kubernetes, "Pod Lifecycle").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Not every container has been started.
    Pending,
    /// All were, and it goes on.
    Running,
    /// Over, and every standard container ended well.
    Succeeded,
    /// Over, otherwise.
    Failed,
}

/// A pod, seen from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodStatus {
    pub phase: Phase,
    /// Why it failed or does not get on; empty otherwise.
    pub reason: &'static str,
    pub message: String,
    /// Those that hold.
    pub conditions: Vec<Condition>,
    pub containers: Vec<ContainerStatus>,
}

/// What may hold of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It is on a node: always.
    PodScheduled,
    /// Init containers are done and sidecars were started.
    Initialized,
    /// Every standard container and every sidecar is ready.
    ContainersReady,
    /// It can serve.
    Ready,
}

/// One of its containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerStatus {
    pub name: String,
    pub kind: ContainerKind,
    pub state: ContainerState,
    pub ready: bool,
    pub started: bool,
    pub restarts: u32,
    /// How the attempt before ended.
    pub last: Option<Ended>,
}

/// Where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerState {
    Waiting {
        reason: String,
        message: String,
    },
    /// `ending`: why it is being ended; empty when it is not.
    Running {
        since: Time,
        ending: String,
    },
    Terminated {
        ended: Ended,
        at: Time,
    },
}

/// Where a container's current attempt is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It waits for its turn.
    Turn,
    /// It waits to be tried again.
    Backoff,
    /// Its image is being seen to.
    Pulling,
    /// It is being created and started.
    Creating,
    /// It runs; postStart or the startup probe are not through.
    StartingUp,
    /// It is started, and not ready.
    GettingReady,
    /// It is ready, or an init container at work.
    Up,
    /// It is being ended.
    Ending,
    /// It has ended.
    Ended,
}

/// A container's current attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Current<'a> {
    pub name: &'a str,
    pub kind: ContainerKind,
    pub attempt: u32,
    pub stage: Stage,
}

impl Sequence {
    /// Each container's current attempt: those of the startup sequence, standard ones, ephemeral ones.
    pub fn current(&self) -> impl Iterator<Item = Current<'_>> {
        self.lives.iter().map(|life| Current {
            name: &life.planned.name,
            kind: life.planned.kind,
            attempt: life.attempt,
            stage: life.stage(),
        })
    }

    /// Whether it is on its way to its end, or over.
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    /// How things are.
    pub fn status(&self) -> PodStatus {
        let conditions = [
            (Condition::PodScheduled, true),
            (Condition::Initialized, self.initialized),
            (Condition::ContainersReady, self.containers_ready()),
            // There are no readiness gates without an API server.
            (Condition::Ready, self.containers_ready()),
        ];
        let (reason, message) = self.reason();
        PodStatus {
            phase: self.phase(),
            reason,
            message,
            conditions: conditions.into_iter().filter(|(_, holds)| *holds).map(|(kind, _)| kind).collect(),
            containers: self.lives.iter().map(|life| life.status(self.initialized)).collect(),
        }
    }

    fn containers_ready(&self) -> bool {
        let sidecars = self.startup().iter().filter(|life| life.is_sidecar());
        self.initialized && self.stopping.is_none() && sidecars.chain(self.standard()).all(Life::is_ready)
    }

    fn phase(&self) -> Phase {
        if let Some(stopping) = &self.stopping
            && !self.lives.iter().any(Life::is_alive)
        {
            let well =
                |life: &Life| matches!(&life.state, State::Terminated { ended, .. } if ended.code == 0);
            let succeeded = match stopping.cause {
                Cause::Asked | Cause::Completed => self.standard().iter().all(well),
                Cause::InitFailed | Cause::DeadlineExceeded | Cause::SandboxLost | Cause::Evicted => false,
            };
            return if succeeded { Phase::Succeeded } else { Phase::Failed };
        }
        match self.initialized && self.standard().iter().all(Life::was_started) {
            true => Phase::Running,
            false => Phase::Pending,
        }
    }

    fn reason(&self) -> (&'static str, String) {
        let cause = self.stopping.as_ref().map(|stopping| stopping.cause);
        match (cause, &self.sandbox) {
            (Some(Cause::DeadlineExceeded), _) => {
                let deadline = self.plan.active_deadline.unwrap_or_default();
                ("DeadlineExceeded", format!("it was active for longer than {} s", deadline.as_secs()))
            }
            (Some(Cause::InitFailed), _) => {
                let failed = self.startup().iter().find_map(|life| match &life.state {
                    State::Terminated { ended, .. } if ended.code != 0 => Some((life, ended.code)),
                    _ => None,
                });
                let message = failed.map(|(life, code)| {
                    format!("init container {} ended with {code} and is not tried again", life.planned.name)
                });
                ("InitContainerFailed", message.unwrap_or_default())
            }
            (Some(Cause::Evicted), _) => ("Evicted", self.eviction.clone().unwrap_or_default()),
            (Some(Cause::SandboxLost), _) => ("SandboxLost", "its sandbox went away".to_owned()),
            (_, Sandbox::Wanted { error: Some(error), .. }) => ("FailedCreatePodSandBox", error.clone()),
            _ => ("", String::new()),
        }
    }
}

impl Life {
    fn stage(&self) -> Stage {
        match &self.state {
            State::Waiting(Waiting::Turn) => Stage::Turn,
            State::Waiting(Waiting::Backoff { .. }) => Stage::Backoff,
            State::Pulling => Stage::Pulling,
            State::Pulled | State::Starting => Stage::Creating,
            State::Running(running) if running.ending.is_some() => Stage::Ending,
            State::Running(_) if self.planned.kind == ContainerKind::Init => Stage::Up,
            State::Running(running) if !running.is_started() => Stage::StartingUp,
            State::Running(_) if !self.is_ready() => Stage::GettingReady,
            State::Running(_) => Stage::Up,
            State::Terminated { .. } => Stage::Ended,
        }
    }

    fn was_started(&self) -> bool {
        self.attempt > 0 || matches!(self.state, State::Running(_) | State::Terminated { .. })
    }

    fn status(&self, initialized: bool) -> ContainerStatus {
        let waiting =
            |reason: &str| ContainerState::Waiting { reason: reason.to_owned(), message: String::new() };
        let state = match &self.state {
            State::Waiting(Waiting::Turn) => match initialized {
                true => waiting("ContainerCreating"),
                false => waiting("PodInitializing"),
            },
            State::Waiting(Waiting::Backoff { reason, message, .. }) => {
                ContainerState::Waiting { reason: reason.clone(), message: message.clone() }
            }
            State::Pulling | State::Pulled | State::Starting => waiting("ContainerCreating"),
            State::Running(running) => ContainerState::Running {
                since: running.since,
                ending: running.ending.as_ref().map(|ending| ending.why.clone()).unwrap_or_default(),
            },
            State::Terminated { ended, at, .. } => {
                ContainerState::Terminated { ended: ended.clone(), at: *at }
            }
        };
        ContainerStatus {
            name: self.planned.name.clone(),
            kind: self.planned.kind,
            state,
            ready: self.is_ready(),
            started: self.is_started(),
            restarts: self.restarts(),
            last: self.last.clone(),
        }
    }
}
