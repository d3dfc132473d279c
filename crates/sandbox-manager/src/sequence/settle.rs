//! What is to be done, from how things are.

use super::container::{Ending, EndingStep, Life, PostStart, State, Waiting};
use super::plan::{ProbeKind, RestartPolicy};
use super::probe::Verdict;
use super::stop::Cause;
use super::{Action, Hook, Sandbox, Sequence, Time};
use crate::ContainerKind;

impl Sequence {
    /// Looks at all of the pod, and asks for what is missing.
    pub(super) fn settle(&mut self, now: Time) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.stopping.is_none() {
            self.decide_the_end(now);
        }
        if self.stopping.is_none() {
            self.settle_sandbox(now, &mut actions);
            if matches!(self.sandbox, Sandbox::Up { .. }) {
                self.settle_starts(now, &mut actions);
            }
        }
        self.mark_ends(now);
        let (grace, stopping) = (self.plan.grace, self.stopping.is_some());
        for life in &mut self.lives {
            life.settle(grace, stopping, now, &mut actions);
        }
        self.stop_sandbox(&mut actions);
        actions
    }

    /// Whether the pod is over by itself.
    fn decide_the_end(&mut self, now: Time) {
        let grace = self.plan.grace;
        if self.expires_at().is_some_and(|expires| now >= expires) {
            return self.begin_stop(Cause::DeadlineExceeded, grace, now);
        }
        let never = self.plan.restart_policy == RestartPolicy::Never;
        let failed = |life: &Life| {
            life.planned.kind == ContainerKind::Init
                && matches!(&life.state, State::Terminated { ended, .. } if ended.code != 0)
        };
        if never && self.startup().iter().any(failed) {
            return self.begin_stop(Cause::InitFailed, grace, now);
        }
        let policy = self.plan.restart_policy;
        if self.initialized && self.standard().iter().all(|life| is_done(life, policy)) {
            self.begin_stop(Cause::Completed, grace, now);
        }
    }

    fn settle_sandbox(&mut self, now: Time, actions: &mut Vec<Action>) {
        if let Sandbox::Wanted { attempt, not_before, backoff, .. } = self.sandbox
            && now >= not_before
        {
            self.sandbox = Sandbox::Asked { attempt, backoff };
            actions.push(Action::RunSandbox { attempt });
        }
    }

    fn settle_starts(&mut self, now: Time, actions: &mut Vec<Action>) {
        let policy = self.plan.restart_policy;
        for life in &mut self.lives {
            if should_restart(life, policy) {
                life.restart();
            }
        }
        let ahead = self.startup().iter().position(|life| !life.lets_the_next_one_start());
        if ahead.is_none() {
            self.initialized = true;
        }
        let startup = self.plan.startup.len();
        let standard = self.plan.standard.len();
        for (index, life) in self.lives.iter_mut().enumerate() {
            let its_turn = match index {
                index if index < startup => ahead == Some(index) || (life.is_sidecar() && life.started_here),
                index if index < startup + standard => self.initialized,
                _ => true,
            };
            if its_turn && life.may_start(now) {
                life.state = State::Pulling;
                actions.push(Action::Pull { name: life.planned.name.clone() });
            }
        }
    }
}

/// It will not be started again.
fn is_done(life: &Life, policy: RestartPolicy) -> bool {
    matches!(life.state, State::Terminated { .. }) && !should_restart(life, policy)
}

pub(super) fn should_restart(life: &Life, policy: RestartPolicy) -> bool {
    let State::Terminated { ended, .. } = &life.state else { return false };
    match life.planned.kind {
        ContainerKind::Sidecar => true,
        ContainerKind::Ephemeral => false,
        ContainerKind::Init => ended.code != 0 && policy != RestartPolicy::Never,
        ContainerKind::Standard => match policy {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => ended.code != 0,
            RestartPolicy::Never => false,
        },
    }
}

impl Life {
    fn may_start(&self, now: Time) -> bool {
        match &self.state {
            State::Waiting(Waiting::Turn) => true,
            State::Waiting(Waiting::Backoff { until, .. }) => now >= *until,
            _ => false,
        }
    }

    /// Hooks, probes and the end of one container, whatever becomes of the pod.
    fn settle(&mut self, pod_grace: Time, stopping: bool, now: Time, actions: &mut Vec<Action>) {
        let (name, attempt) = (self.planned.name.clone(), self.attempt);
        if self.state == State::Pulled && !stopping {
            self.state = State::Starting;
            actions.push(Action::Start { name: name.clone(), attempt });
        }
        let pre_stop = self.planned.pre_stop;
        let State::Running(running) = &mut self.state else { return };
        if running.ending.is_none() {
            if running.post_start == PostStart::Wanted {
                running.post_start = PostStart::Asked;
                actions.push(Action::Hook { name: name.clone(), attempt, hook: Hook::PostStart });
            }
            if let Some((why, grace)) = running.unwell() {
                let deadline = now + grace.unwrap_or(pod_grace);
                running.ending = Some(Ending { why, deadline, step: EndingStep::Wanted });
            }
        }
        for kind in running.probes() {
            if running.probe_mut(kind).is_some_and(|probe| probe.take_due(now)) {
                actions.push(Action::Probe { name: name.clone(), attempt, probe: kind });
            }
        }
        let Some(ending) = &mut running.ending else { return };
        if ending.step == EndingStep::Wanted {
            ending.step = EndingStep::Signal;
            // Nobody could tell it anything within no time.
            if pre_stop && now < ending.deadline {
                ending.step = EndingStep::PreStop;
                actions.push(Action::Hook { name: name.clone(), attempt, hook: Hook::PreStop });
            }
        }
        if ending.step == EndingStep::PreStop && now >= ending.deadline {
            ending.step = EndingStep::Signal;
        }
        if ending.step == EndingStep::Signal {
            ending.step = EndingStep::Signalled;
            let grace = ending.deadline.saturating_sub(now);
            actions.push(Action::Stop { name, attempt, grace });
        }
    }
}

impl super::container::Running {
    /// Why it has to be ended and started anew, with the grace that its probe gives it.
    fn unwell(&self) -> Option<(String, Option<Time>)> {
        if let PostStart::Failed(why) = &self.post_start {
            return Some((format!("its postStart hook failed: {why}"), None));
        }
        let failing = [(ProbeKind::Startup, &self.startup), (ProbeKind::Liveness, &self.liveness)];
        let failing = failing.into_iter().find_map(|(kind, probe)| {
            let probe = probe.as_ref().filter(|probe| probe.verdict == Verdict::Failing)?;
            Some((kind, probe.grace()))
        });
        failing.map(|(kind, grace)| {
            let probe = if kind == ProbeKind::Startup { "startup" } else { "liveness" };
            (format!("its {probe} probe failed"), grace)
        })
    }
}
