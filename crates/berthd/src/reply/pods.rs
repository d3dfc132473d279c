//! Sandboxes and containers.

use std::{net::IpAddr, time::Duration};

use berth_cri::runtime::v1::{
    Container, ContainerEventResponse, ContainerEventType, ContainerFilter, ContainerResources,
    ContainerState, ContainerStatus, ContainerUser, ImageSpec, LinuxPodSandboxStatus, Namespace, PodIp,
    PodSandbox, PodSandboxFilter, PodSandboxNetworkStatus, PodSandboxState, PodSandboxStatus,
    PodSandboxStatusResponse,
};
use berth_oci::cri_signal;
use berth_sandbox_manager::{
    Container as PodContainer, ContainerState as State, Event, EventKind, PodView, Sandbox, SandboxPhase,
    TimelineStep,
};
use serde_json::{Value, json};

use super::{Info, selected, topic};

fn sandbox_state(sandbox: &Sandbox) -> PodSandboxState {
    match sandbox.phase {
        SandboxPhase::Ready => PodSandboxState::SandboxReady,
        SandboxPhase::Creating | SandboxPhase::NotReady => PodSandboxState::SandboxNotready,
    }
}

fn container_state(container: &PodContainer) -> ContainerState {
    match container.state {
        State::Creating | State::Created { .. } => ContainerState::ContainerCreated,
        State::Running { .. } => ContainerState::ContainerRunning,
        State::Exited(_) => ContainerState::ContainerExited,
    }
}

/// Whether a list shows this sandbox. Ids may be cut short.
pub(crate) fn sandbox_fits(sandbox: &Sandbox, filter: &PodSandboxFilter) -> bool {
    sandbox.id.as_str().starts_with(&filter.id)
        && filter.state.is_none_or(|wanted| wanted.state() == sandbox_state(sandbox))
        && selected(&sandbox.config.labels, &filter.label_selector)
}

/// Whether a list shows this container. Ids may be cut short.
pub(crate) fn container_fits(container: &PodContainer, filter: &ContainerFilter) -> bool {
    container.id.as_str().starts_with(&filter.id)
        && container.sandbox_id.as_str().starts_with(&filter.pod_sandbox_id)
        && filter.state.is_none_or(|wanted| wanted.state() == container_state(container))
        && selected(&container.config.labels, &filter.label_selector)
}

/// An entry of ListPodSandbox.
pub(crate) fn sandbox(sandbox: &Sandbox) -> PodSandbox {
    PodSandbox {
        id: sandbox.id.to_string(),
        metadata: Some(sandbox.metadata()),
        state: sandbox_state(sandbox).into(),
        created_at: sandbox.created_at,
        labels: sandbox.config.labels.clone(),
        annotations: sandbox.config.annotations.clone(),
        runtime_handler: sandbox.handler.clone(),
    }
}

/// An entry of ListContainers.
pub(crate) fn container(container: &PodContainer) -> Container {
    Container {
        id: container.id.to_string(),
        pod_sandbox_id: container.sandbox_id.to_string(),
        metadata: container.config.metadata.clone(),
        image: Some(image_spec(container)),
        image_ref: container.image.reference.clone(),
        state: container_state(container).into(),
        created_at: container.created_at,
        labels: container.config.labels.clone(),
        annotations: container.config.annotations.clone(),
        image_id: container.image.id.clone(),
    }
}

/// As asked for, but by the name that people know.
fn image_spec(container: &PodContainer) -> ImageSpec {
    let asked = container.config.image.clone().unwrap_or_default();
    ImageSpec { image: container.image.name.clone(), ..asked }
}

/// PodSandboxStatus of a pod with its containers, all from one look at it.
pub(crate) fn sandbox_status(view: &PodView) -> PodSandboxStatusResponse {
    let sandbox = &view.sandbox;
    PodSandboxStatusResponse {
        status: Some(PodSandboxStatus {
            id: sandbox.id.to_string(),
            metadata: Some(sandbox.metadata()),
            state: sandbox_state(sandbox).into(),
            created_at: sandbox.created_at,
            network: Some(network(&sandbox.ips)),
            linux: Some(LinuxPodSandboxStatus {
                namespaces: Some(Namespace { options: Some(sandbox.namespaces()) }),
            }),
            labels: sandbox.config.labels.clone(),
            annotations: sandbox.config.annotations.clone(),
            runtime_handler: sandbox.handler.clone(),
        }),
        info: Info::new(),
        containers_statuses: view.containers.values().map(|container| container_status(container)).collect(),
        // With a time here and EventedPLEG on, kubelet (1.33 to 1.37) takes the statuses above and forgets to note which
        // belong to the current sandbox: it runs init containers again and again. Without one it asks for each.
        timestamp: 0,
    }
}

fn network(ips: &[IpAddr]) -> PodSandboxNetworkStatus {
    let mut ips = ips.iter().map(IpAddr::to_string);
    PodSandboxNetworkStatus {
        ip: ips.next().unwrap_or_default(),
        additional_ips: ips.map(|ip| PodIp { ip }).collect(),
    }
}

/// `timeline`: what the pod's start waited for, `{steps: [{name, began_ms, took_ms}]}`, `took_ms` null while it goes on.
pub(crate) fn sandbox_info(view: &PodView) -> Info {
    let sandbox = &view.sandbox;
    let steps: Vec<Value> = view.timeline.steps().iter().map(step).collect();
    let info = json!({
        "pid": view.supervisor_pid(),
        "cgroupParent": sandbox.cgroup_parent,
        "runtimeHandler": sandbox.handler,
        "hostNetwork": sandbox.host_network(),
    });
    Info::from([topic("info", &info), topic("timeline", &json!({ "steps": steps }))])
}

fn step(step: &TimelineStep) -> Value {
    let millis = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
    json!({ "name": step.name, "began_ms": millis(step.began), "took_ms": step.took.map(millis) })
}

/// ContainerStatus. `mounts` are those of the config and no others.
pub(crate) fn container_status(container: &PodContainer) -> ContainerStatus {
    let exit = match &container.state {
        State::Exited(exit) => Some(exit),
        State::Creating | State::Created { .. } | State::Running { .. } => None,
    };
    ContainerStatus {
        id: container.id.to_string(),
        metadata: container.config.metadata.clone(),
        state: container_state(container).into(),
        created_at: container.created_at,
        started_at: container.started_at(),
        finished_at: exit.map_or(0, |exit| exit.finished_at),
        exit_code: exit.map_or(0, |exit| exit.code),
        image: Some(image_spec(container)),
        image_ref: container.image.reference.clone(),
        reason: exit.map(|exit| exit.reason.clone()).unwrap_or_default(),
        message: exit.map(|exit| exit.message.clone()).unwrap_or_default(),
        labels: container.config.labels.clone(),
        annotations: container.config.annotations.clone(),
        mounts: container.config.mounts.clone(),
        log_path: container.log_path.clone(),
        resources: Some(ContainerResources { linux: Some(container.resources.clone()), windows: None }),
        image_id: container.image.id.clone(),
        user: Some(ContainerUser { linux: Some(container.user.clone()) }),
        stop_signal: cri_signal(container.stop_signal).into(),
    }
}

/// One message of GetContainerEvents.
pub(crate) fn event(event: &Event) -> ContainerEventResponse {
    let kind = match event.kind {
        EventKind::Created => ContainerEventType::ContainerCreatedEvent,
        EventKind::Started => ContainerEventType::ContainerStartedEvent,
        EventKind::Stopped => ContainerEventType::ContainerStoppedEvent,
        EventKind::Deleted => ContainerEventType::ContainerDeletedEvent,
    };
    let pod = sandbox_status(&event.pod);
    ContainerEventResponse {
        container_id: event.id.clone(),
        container_event_type: kind.into(),
        created_at: event.at,
        pod_sandbox_status: pod.status,
        containers_statuses: pod.containers_statuses,
    }
}

/// `spec` is the OCI spec as JSON; absent once the pod is stopped.
pub(crate) fn container_info(container: &PodContainer, spec: Option<&str>) -> Info {
    let spec: Value = spec.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let info = json!({
        "pid": container.pid(),
        "sandboxID": container.sandbox_id.as_str(),
        "kind": format!("{:?}", container.kind()).to_lowercase(),
        "runtimeSpec": spec,
    });
    Info::from([topic("info", &info)])
}
