//! What a pod's task writes down, and what it tells: how far the pod has got, how it is, what happened to it.

use std::sync::Arc;

use berth_cri::berth::v1::PodEvent;
use berth_manifest::RestartPolicy;
use berth_sandbox_manager::sequence::{
    Action, Condition, ContainerState as SequenceState, ContainerStatus, PodStatus,
};

use super::Task;
use crate::directory::reference;
use crate::record::ProgressRecord;
use crate::work::Noted;
use crate::{clock, wire};

impl Task {
    /// Tells of containers that wait to be tried again, and did not before.
    pub(super) fn note_backoffs(&self, before: &PodStatus) {
        let waiting = |status: &PodStatus, name: &str| {
            let found = status.containers.iter().find(|one| one.name == name)?;
            match &found.state {
                SequenceState::Waiting { reason, message } if !message.is_empty() => {
                    Some(format!("{reason}: {message}"))
                }
                _ => None,
            }
        };
        for container in &self.status.containers {
            if let Some(why) = waiting(&self.status, &container.name)
                && waiting(before, &container.name).is_none()
            {
                self.note(Noted::warning(&container.name, "BackOff", why));
            }
        }
    }

    /// What there is a time of.
    pub(super) fn remember(&mut self) {
        let now = clock::unix();
        self.history.conditions.resize(wire::CONDITIONS.len(), (false, self.plan.record.created_at));
        for (known, (condition, _)) in self.history.conditions.iter_mut().zip(wire::CONDITIONS) {
            let holds = self.status.conditions.contains(&condition);
            if known.0 != holds {
                *known = (holds, now);
            }
        }
        if self.history.ready_at == 0 {
            self.timeline.follow(&self.sequence, &mut self.history.spans, now);
            if self.status.conditions.contains(&Condition::Ready) {
                self.history.ready_at = now;
            }
        }
        if self.sequence.is_over() && self.history.finished_at == 0 {
            self.history.finished_at = now;
        }
    }

    /// A pod that may not simply be run again: what it has begun and what it has done must be known after a power loss.
    pub(super) fn is_lasting(&self, before: &PodStatus, actions: &[Action]) -> bool {
        let ended = |status: &PodStatus| {
            let ended = |one: &&ContainerStatus| matches!(one.state, SequenceState::Terminated { .. });
            status.containers.iter().filter(ended).count()
        };
        let begins = || actions.iter().any(|action| matches!(action, Action::Start { .. }));
        self.plan.pod.restart_policy != RestartPolicy::Always
            && (begins() || ended(before) != ended(&self.status))
    }

    pub(super) async fn persist(&mut self, lasting: bool) {
        self.step += 1;
        let record = ProgressRecord {
            step: self.step,
            boot_id: self.node.boot_id.clone(),
            sequence: self.sequence.clone(),
            history: self.history.clone(),
        };
        if let Err(error) = self.node.keep_progress(&self.plan.record.uid, record, lasting).await {
            // The pod goes on; should the daemon be killed now, a step is done twice.
            tracing::error!(pod = self.plan.label(), %error, "cannot write how far a pod has got");
        }
    }

    pub(super) fn publish(&self) {
        let view = self.view();
        let parts = wire::Parts {
            key: &self.key,
            plan: &self.plan,
            sequence: &self.sequence,
            status: &self.status,
            history: &self.history,
            view: view.as_deref(),
            pulls: self.pulls.values().cloned().collect(),
        };
        self.node.directory.publish(&self.key, |entry, generation| {
            entry.state = Arc::new(wire::pod(parts, generation));
            entry.plan = Arc::clone(&self.plan);
            entry.history = Arc::new(self.history.clone());
        });
    }

    pub(super) fn note(&self, noted: Noted) {
        let Noted { container, warning, reason, message } = noted;
        let pod = Some(reference(&self.key));
        let reason = reason.to_owned();
        let event = PodEvent { at: clock::unix(), pod, container, warning, reason, message };
        self.node.directory.note(&self.key, event);
    }

    pub(super) fn killing(&self, name: &str) -> Noted {
        let found = self.status.containers.iter().find(|status| status.name == name);
        let why = match found.map(|status| &status.state) {
            Some(SequenceState::Running { ending, .. }) => ending.as_str(),
            _ => "",
        };
        Noted::fine(name, "Killing", format!("stopping the container: {why}"))
    }
}
