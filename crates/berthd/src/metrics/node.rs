//! What there is on the node: pods, containers, images.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use berth_image::FsUsage;
use berth_sandbox_manager::{Container, ContainerState, Owner, PodView, SandboxPhase};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

use super::gauge;

/// The node at one moment.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) pods: Vec<Arc<PodView>>,
    pub(super) images: usize,
    pub(super) disk: Option<FsUsage>,
}

/// Whose, and in which state. What there is none of says so with 0, so that a rule never waits for a series to appear.
type Counts = BTreeMap<(&'static str, &'static str), u64>;

const OWNERS: [Owner; 2] = [Owner::Cri, Owner::Manifest];
const PODS: [&str; 2] = ["ready", "notready"];
const CONTAINERS: [&str; 3] = ["created", "running", "exited"];

impl Collector for Node {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut pods = zeros(&PODS);
        let mut containers = zeros(&CONTAINERS);
        for pod in &self.pods {
            let owner = name(pod.sandbox.owner);
            *pods.entry((owner, pod_state(pod))).or_default() += 1;
            for state in pod.containers.values().filter_map(|container| container_state(container)) {
                *containers.entry((owner, state)).or_default() += 1;
            }
        }
        by_state(&mut encoder, "pods", "Pods, by who runs them", &pods)?;
        by_state(&mut encoder, "containers", "Containers, by who runs their pods", &containers)?;
        gauge(&mut encoder, "images", "Images", self.images as u64)?;
        if let Some(disk) = &self.disk {
            let help = "Bytes of blobs, unpacked layers and containers' own layers";
            gauge(&mut encoder, "image_fs_used_bytes", help, disk.used_bytes)?;
            gauge(&mut encoder, "image_fs_used_inodes", "Inodes of the same", disk.inodes_used)?;
        }
        Ok(())
    }
}

fn zeros(states: &[&'static str]) -> Counts {
    OWNERS.iter().flat_map(|owner| states.iter().map(|state| ((name(*owner), *state), 0))).collect()
}

fn name(owner: Owner) -> &'static str {
    match owner {
        Owner::Cri => "cri",
        Owner::Manifest => "manifest",
    }
}

fn pod_state(pod: &PodView) -> &'static str {
    let [ready, not_ready] = PODS;
    match pod.sandbox.phase {
        SandboxPhase::Ready => ready,
        SandboxPhase::Creating | SandboxPhase::NotReady => not_ready,
    }
}

fn container_state(container: &Container) -> Option<&'static str> {
    let [created, running, exited] = CONTAINERS;
    match container.state {
        ContainerState::Creating => None,
        ContainerState::Created { .. } => Some(created),
        ContainerState::Running { .. } => Some(running),
        ContainerState::Exited(_) => Some(exited),
    }
}

fn by_state(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, counts: &Counts) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for ((owner, state), count) in counts {
        family.encode_family(&[("owner", *owner), ("state", *state)])?.encode_gauge(count)?;
    }
    Ok(())
}
