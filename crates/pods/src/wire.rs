//! A pod as the service tells of it.

use std::net::IpAddr;

use berth_cri::berth::v1 as wire;
use berth_manifest::RestartPolicy;
use berth_sandbox_manager::sequence::{
    Condition, ContainerState, ContainerStatus, Ended, Phase, PodStatus, Sequence,
};
use berth_sandbox_manager::{ContainerKind, ContainerState as Live, PodView, REMAINS_PATH};

use crate::directory::{Key, reference};
use crate::record::{History, Plan};
use crate::{clock, node, plan};

/// Those that pods have, in the order they come to hold.
pub(crate) const CONDITIONS: [(Condition, &str); 4] = [
    (Condition::PodScheduled, "PodScheduled"),
    (Condition::Initialized, "Initialized"),
    (Condition::ContainersReady, "ContainersReady"),
    (Condition::Ready, "Ready"),
];

/// All that a state is made from.
pub(crate) struct Parts<'a> {
    pub(crate) key: &'a Key,
    pub(crate) plan: &'a Plan,
    pub(crate) sequence: &'a Sequence,
    pub(crate) status: &'a PodStatus,
    pub(crate) history: &'a History,
    /// The newest sandbox.
    pub(crate) view: Option<&'a PodView>,
    pub(crate) pulls: Vec<wire::ImagePull>,
}

pub(crate) fn pod(parts: Parts<'_>, generation: u64) -> wire::Pod {
    let Parts { key, plan, sequence, status, history, view, pulls } = parts;
    let attempts = sequence.current().map(|current| current.attempt);
    let containers = status.containers.iter().zip(attempts);
    let since = history.conditions.iter().zip(CONDITIONS);
    wire::Pod {
        pod: Some(reference(key)),
        uid: plan.record.uid.clone(),
        generation,
        manifest: manifest(plan),
        source: plan.record.source.clone().unwrap_or_default(),
        phase: phase(status.phase).into(),
        reason: status.reason.to_owned(),
        message: status.message.clone(),
        stopping: sequence.is_stopping() && !sequence.is_over(),
        conditions: since
            .map(|((holds, since), (_, name))| wire::PodCondition {
                r#type: name.to_owned(),
                holds: *holds,
                since: *since,
            })
            .collect(),
        containers: containers.map(|(status, attempt)| container(plan, status, attempt, view)).collect(),
        sandbox_id: view.map(|view| view.sandbox.id.to_string()).unwrap_or_default(),
        ips: view.map(|view| view.sandbox.ips.iter().map(IpAddr::to_string).collect()).unwrap_or_default(),
        created_at: plan.record.created_at,
        finished_at: history.finished_at,
        restart_policy: match plan.pod.restart_policy {
            RestartPolicy::Always => "Always",
            RestartPolicy::OnFailure => "OnFailure",
            RestartPolicy::Never => "Never",
        }
        .to_owned(),
        pulls,
    }
}

/// The document, with the ephemeral containers that were added and the uid it was given.
fn manifest(plan: &Plan) -> String {
    let mut document = plan.pod.document.clone();
    if let Some(metadata) = document.get_mut("metadata").and_then(|metadata| metadata.as_object_mut()) {
        metadata.insert("uid".to_owned(), plan.record.uid.clone().into());
        metadata.insert("namespace".to_owned(), plan.pod.metadata.namespace.clone().into());
    }
    document.to_string()
}

fn container(
    plan: &Plan,
    status: &ContainerStatus,
    attempt: u32,
    view: Option<&PodView>,
) -> wire::PodContainer {
    let live = view.and_then(|view| node::attempt(view, &status.name, Some(attempt)));
    let before = attempt.checked_sub(1);
    let earlier = view.and_then(|view| node::attempt(view, &status.name, Some(before?)));
    let ephemeral = plan.pod.ephemeral.iter().find(|one| one.container.name == status.name);
    let state = match &status.state {
        ContainerState::Waiting { reason, message } => {
            wire::pod_container::State::Waiting(wire::pod_container::Waiting {
                reason: reason.clone(),
                message: message.clone(),
            })
        }
        ContainerState::Running { since, ending } => {
            wire::pod_container::State::Running(wire::pod_container::Running {
                since: live.map_or_else(|| clock::to_unix(*since), |live| live.started_at()),
                ending: ending.clone(),
            })
        }
        ContainerState::Terminated { ended, at } => {
            let ended = terminated(ended, live.map(|live| &**live), clock::to_unix(*at));
            wire::pod_container::State::Terminated(ended)
        }
    };
    wire::PodContainer {
        name: status.name.clone(),
        kind: match status.kind {
            ContainerKind::Init => wire::pod_container::Kind::Init,
            ContainerKind::Sidecar => wire::pod_container::Kind::Sidecar,
            ContainerKind::Standard => wire::pod_container::Kind::Standard,
            ContainerKind::Ephemeral => wire::pod_container::Kind::Ephemeral,
        }
        .into(),
        image: plan::container(&plan.pod, &status.name).map(|one| one.image.clone()).unwrap_or_default(),
        image_id: live.or(earlier).map(|live| live.image.id.clone()).unwrap_or_default(),
        id: live.or(earlier).map(|live| live.id.to_string()).unwrap_or_default(),
        ready: status.ready,
        started: status.started,
        restarts: status.restarts,
        state: Some(state),
        last: status.last.as_ref().map(|ended| terminated(ended, earlier.map(|live| &**live), 0)),
        target: ephemeral.and_then(|one| one.target.clone()).unwrap_or_default(),
        remains_at: live
            .and_then(|live| live.remains_of())
            .map(|_| REMAINS_PATH.to_owned())
            .unwrap_or_default(),
    }
}

fn terminated(
    ended: &Ended,
    container: Option<&berth_sandbox_manager::Container>,
    at: i64,
) -> wire::pod_container::Terminated {
    let exit = container.and_then(|container| match &container.state {
        Live::Exited(exit) => Some(exit),
        Live::Creating | Live::Created { .. } | Live::Running { .. } => None,
    });
    wire::pod_container::Terminated {
        exit_code: ended.code,
        reason: ended.reason.clone(),
        message: ended.message.clone(),
        started_at: exit.map_or(0, |exit| exit.started_at),
        finished_at: exit.map_or(at, |exit| exit.finished_at),
        id: container.map(|container| container.id.to_string()).unwrap_or_default(),
    }
}

fn phase(phase: Phase) -> wire::pod::Phase {
    match phase {
        Phase::Pending => wire::pod::Phase::Pending,
        Phase::Running => wire::pod::Phase::Running,
        Phase::Succeeded => wire::pod::Phase::Succeeded,
        Phase::Failed => wire::pod::Phase::Failed,
    }
}
