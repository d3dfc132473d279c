//! When the containers of a pod start and stop, where berth itself decides it (DESIGN, "The four container kinds").
//!
//! A [`Sequence`] is a state machine and nothing else: it is told what happened and what time it is, and says what is to
//! be done. It starts no process, reads no clock and waits for nothing, so whole lives of pods are tested in
//! microseconds.
//!
//! ```text
//!               ┌───────────────── Event, Time ─────────────────┐
//!               ▼                                               │
//!   Sequence: one after another: init, sidecar, init, …      driver: pulls, creates, starts,
//!             then together:     standard                      hooks, probes, signals
//!             then the end:      standard, then sidecars        ▲
//!               │                in reverse                     │
//!               └───────────────── Action, next Time ───────────┘
//! ```
//!
//! After each event all of the pod is looked at anew and what is missing is asked for. Nothing is remembered of a
//! decision but its outcome, so a sequence that was written down in the middle of anything goes on from there.

mod backoff;
mod container;
mod plan;
mod probe;
mod resume;
mod settle;
mod status;
mod stop;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use self::container::Life;
pub use self::{
    container::{Ended, Waiting},
    plan::{Plan, PlannedContainer, PlannedProbe, PlannedProbes, ProbeKind, RestartPolicy},
    resume::Found,
    status::{Condition, ContainerState, ContainerStatus, Current, Phase, PodStatus, Stage},
    stop::Cause,
};

/// A moment: since any fixed one, on a clock that does not jump and that outlives the daemon (CLOCK_BOOTTIME).
pub type Time = std::time::Duration;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The sandbox is up.
    SandboxUp,
    /// It could not be made.
    SandboxFailed { error: String },
    /// It is gone, and with it every container.
    SandboxLost,
    /// It was stopped, as was asked.
    SandboxStopped,
    /// A container's image is there.
    Pulled { name: String },
    /// It is not.
    PullFailed { name: String, reason: String, error: String },
    /// A container runs.
    Started { name: String, attempt: u32 },
    /// A container could not be made.
    CreateFailed { name: String, attempt: u32, error: String },
    /// A container's first process has ended, or its program could not be run.
    Exited { name: String, attempt: u32, ended: Ended },
    /// A hook came back.
    HookEnded { name: String, attempt: u32, hook: Hook, failure: Option<String> },
    /// A probe came back.
    Probed { name: String, attempt: u32, probe: ProbeKind, answer: ProbeAnswer },
    /// The pod is to end.
    StopAsked { grace: Time },
    /// The pod uses more than it may, and is to end as failed.
    Evicted { why: String },
}

/// What a probe says of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeAnswer {
    /// It does what it is to do.
    Success,
    /// It does not.
    Failure,
    /// Nothing: it could not be asked. Counts for nothing, as with kubelet.
    Unknown,
}

/// What is to be done. Each is asked for once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make the sandbox.
    RunSandbox { attempt: u32 },
    /// Have a container's image, as its pull policy says.
    Pull { name: String },
    /// Create and start a container.
    Start { name: String, attempt: u32 },
    /// Run a hook, until it ends or the container does.
    Hook { name: String, attempt: u32, hook: Hook },
    /// Run a probe.
    Probe { name: String, attempt: u32, probe: ProbeKind },
    /// End a container: SIGTERM, and SIGKILL after the grace. May be repeated with less.
    Stop { name: String, attempt: u32, grace: Time },
    /// Stop the sandbox: nothing runs in it any more.
    StopSandbox,
}

/// A lifecycle hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Hook {
    /// Beside the entrypoint, right after the start.
    PostStart,
    /// Before SIGTERM.
    PreStop,
}

/// A pod's life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sequence {
    plan: Plan,
    began: Time,
    /// How old the pod was when it began: more than nothing after a reboot, with which the clock begins anew.
    #[serde(default)]
    age: Time,
    sandbox: Sandbox,
    /// As in the plan: `startup`, `standard`, then the ephemeral ones as they were added.
    lives: Vec<Life>,
    /// All of `startup` was done at one moment: standard containers run from then on, whatever happens to sidecars.
    initialized: bool,
    stopping: Option<stop::Stopping>,
    /// Why, when it was.
    eviction: Option<String>,
}

/// The sandbox, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Sandbox {
    /// To be made, not before a time.
    Wanted { attempt: u32, not_before: Time, backoff: backoff::Backoff, error: Option<String> },
    /// Being made.
    Asked { attempt: u32, backoff: backoff::Backoff },
    /// There.
    Up { attempt: u32 },
    /// Being stopped.
    Stopping,
    /// Gone for good.
    Gone,
}

impl Sequence {
    /// A pod that has nothing yet.
    pub fn new(plan: Plan, now: Time) -> Self {
        let lives = plan.startup.iter().chain(&plan.standard).map(Life::new).collect();
        let sandbox = Sandbox::Wanted {
            attempt: 0,
            not_before: now,
            backoff: backoff::Backoff::default(),
            error: None,
        };
        Self {
            plan,
            began: now,
            age: Time::ZERO,
            sandbox,
            lives,
            initialized: false,
            stopping: None,
            eviction: None,
        }
    }

    /// What the pod was planned to be.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Adds an ephemeral container; it is started as soon as there is a sandbox. False when the name is taken.
    pub fn add_ephemeral(&mut self, container: PlannedContainer) -> bool {
        if self.lives.iter().any(|life| life.planned.name == container.name) {
            return false;
        }
        self.lives.push(Life::new(&container));
        true
    }

    /// Takes what happened, and says what is to be done now.
    pub fn handle(&mut self, event: Event, now: Time) -> Vec<Action> {
        self.apply(event, now);
        self.settle(now)
    }

    /// Says what is to be done now, because of the time alone.
    pub fn tick(&mut self, now: Time) -> Vec<Action> {
        self.settle(now)
    }

    fn apply(&mut self, event: Event, now: Time) {
        match event {
            Event::SandboxUp => {
                if let Sandbox::Asked { attempt, .. } = self.sandbox {
                    self.sandbox = Sandbox::Up { attempt };
                }
            }
            Event::SandboxFailed { error } => {
                if let Sandbox::Asked { attempt, mut backoff } = self.sandbox.clone() {
                    let not_before = now + backoff.after_failure();
                    self.sandbox = Sandbox::Wanted { attempt, not_before, backoff, error: Some(error) };
                }
            }
            Event::SandboxLost => self.sandbox_lost(now),
            Event::SandboxStopped => self.sandbox = Sandbox::Gone,
            Event::Pulled { name } => self.with(&name, Life::pulled),
            Event::PullFailed { name, reason, error } => {
                self.with(&name, |life| life.pull_failed(reason, error, now));
            }
            Event::Started { name, attempt } => self.with_attempt(&name, attempt, |life| life.started(now)),
            Event::CreateFailed { name, attempt, error } => {
                self.with_attempt(&name, attempt, |life| life.create_failed(error, now));
            }
            Event::Exited { name, attempt, ended } => {
                self.with_attempt(&name, attempt, |life| life.exited(ended, now));
            }
            Event::HookEnded { name, attempt, hook, failure } => {
                self.with_attempt(&name, attempt, |life| life.hook_ended(hook, failure));
            }
            Event::Probed { name, attempt, probe, answer } => {
                self.with_attempt(&name, attempt, |life| life.probed(probe, answer));
            }
            Event::StopAsked { grace } => self.begin_stop(Cause::Asked, grace, now),
            Event::Evicted { why } => {
                self.eviction.get_or_insert(why);
                self.begin_stop(Cause::Evicted, self.plan.grace, now);
            }
        }
    }

    fn with(&mut self, name: &str, change: impl FnOnce(&mut Life)) {
        if let Some(life) = self.lives.iter_mut().find(|life| life.planned.name == name) {
            change(life);
        }
    }

    /// What is told of an attempt that is over is of no interest any more.
    fn with_attempt(&mut self, name: &str, attempt: u32, change: impl FnOnce(&mut Life)) {
        self.with(name, |life| {
            if life.attempt == attempt {
                change(life);
            }
        });
    }

    fn sandbox_lost(&mut self, now: Time) {
        let Sandbox::Up { attempt } = self.sandbox else { return };
        let has_run = self.lives.iter().any(Life::has_run);
        for life in &mut self.lives {
            if life.is_alive() {
                life.exited(Ended::lost(), now);
            }
        }
        // Where the pod ends, what is left of its sandbox is stopped: its network, and the ports it holds.
        if self.stopping.is_some() {
            return;
        }
        let policy = self.plan.restart_policy;
        if policy == RestartPolicy::Never && has_run {
            return self.begin_stop(Cause::SandboxLost, Time::ZERO, now);
        }
        // A new sandbox is a new beginning: init containers run again in it.
        self.sandbox = Sandbox::Wanted {
            attempt: attempt + 1,
            not_before: now,
            backoff: backoff::Backoff::default(),
            error: None,
        };
        self.initialized = false;
        for life in &mut self.lives {
            life.begin_again(policy);
        }
    }

    /// When the pod is older than it may get.
    fn expires_at(&self) -> Option<Time> {
        let left = self.plan.active_deadline?.saturating_sub(self.age);
        Some(self.began + left)
    }

    /// When to look again though nothing happens; `None`: never. `now` is when it was looked at last: what was due then
    /// and is not done waits for something else.
    pub fn wake_at(&self, now: Time) -> Option<Time> {
        let sandbox = match &self.sandbox {
            Sandbox::Wanted { not_before, .. } => Some(*not_before),
            _ => None,
        };
        let deadline = match &self.stopping {
            Some(stopping) => (!stopping.killed).then_some(stopping.deadline),
            None => self.expires_at(),
        };
        let times = self.lives.iter().flat_map(Life::wake_times).chain(sandbox).chain(deadline);
        times.filter(|time| *time > now).min()
    }

    /// Whether everything is over: no process, no sandbox, and nothing will come.
    pub fn is_over(&self) -> bool {
        self.stopping.is_some()
            && matches!(self.sandbox, Sandbox::Gone)
            && !self.lives.iter().any(Life::is_alive)
    }

    fn startup(&self) -> &[Life] {
        &self.lives[..self.plan.startup.len()]
    }

    fn standard(&self) -> &[Life] {
        let first = self.plan.startup.len();
        &self.lives[first..first + self.plan.standard.len()]
    }
}
