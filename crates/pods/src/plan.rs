//! From a manifest to what the sequence has to know of it.

use berth_manifest::{Container, Pod, Probe, Startup, VolumeSource};
use berth_sandbox_manager::ContainerKind;
use berth_sandbox_manager::sequence::{Plan, PlannedContainer, PlannedProbe, PlannedProbes, RestartPolicy};

/// The pod's own containers, without the ephemeral ones.
pub(crate) fn plan(pod: &Pod) -> Plan {
    let startup = pod.startup.iter().map(|step| match step {
        Startup::Init(container) => planned(container, ContainerKind::Init),
        Startup::Sidecar(container) => planned(container, ContainerKind::Sidecar),
    });
    Plan {
        startup: startup.collect(),
        standard: pod.standard.iter().map(|one| planned(one, ContainerKind::Standard)).collect(),
        restart_policy: match pod.restart_policy {
            berth_manifest::RestartPolicy::Always => RestartPolicy::Always,
            berth_manifest::RestartPolicy::OnFailure => RestartPolicy::OnFailure,
            berth_manifest::RestartPolicy::Never => RestartPolicy::Never,
        },
        grace: pod.termination_grace_period,
        active_deadline: pod.active_deadline,
    }
}

pub(crate) fn planned(container: &Container, kind: ContainerKind) -> PlannedContainer {
    let probes = &container.probes;
    PlannedContainer {
        name: container.name.clone(),
        kind,
        post_start: container.lifecycle.post_start.is_some(),
        pre_stop: container.lifecycle.pre_stop.is_some(),
        probes: PlannedProbes {
            startup: probes.startup.as_ref().map(probe),
            liveness: probes.liveness.as_ref().map(probe),
            readiness: probes.readiness.as_ref().map(probe),
        },
    }
}

fn probe(probe: &Probe) -> PlannedProbe {
    PlannedProbe {
        initial_delay: probe.initial_delay,
        period: probe.period,
        success_threshold: probe.success_threshold,
        failure_threshold: probe.failure_threshold,
        grace: probe.grace_period,
    }
}

/// The images that a pod is made from.
pub(crate) fn images(pod: &Pod) -> impl Iterator<Item = &str> {
    let startup = pod.startup.iter().map(Startup::container);
    let ephemeral = pod.ephemeral.iter().map(|one| &one.container);
    let containers = startup.chain(&pod.standard).chain(ephemeral).map(|container| container.image.as_str());
    containers.chain(pod.volumes.iter().filter_map(|volume| match &volume.source {
        VolumeSource::Image { reference, .. } => Some(reference.as_str()),
        VolumeSource::EmptyDir(_) | VolumeSource::HostPath { .. } | VolumeSource::Files { .. } => None,
    }))
}

/// The container of this name, whatever its kind.
pub(crate) fn container<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    let startup = pod.startup.iter().map(Startup::container);
    let ephemeral = pod.ephemeral.iter().map(|one| &one.container);
    startup.chain(&pod.standard).chain(ephemeral).find(|container| container.name == name)
}
