//! Answers of the Pods service.

use berth_cri::berth::v1::{ContainerUsage, PodEvent, PodRef, PodUsage};
use berth_cri::runtime::v1::{ContainerStats, PodSandboxStats, UInt64Value};
use berth_pods::Key;
use tonic::Status;

/// Of a follower that lost events.
pub(crate) fn too_slow(lost: u64) -> Status {
    Status::resource_exhausted(format!("{lost} events were not taken in time and are lost"))
}

pub(crate) fn ports(ports: &[u32]) -> Result<Vec<u16>, Status> {
    let ports = ports.iter().map(|port| u16::try_from(*port)).collect::<Result<_, _>>();
    ports.map_err(|_| Status::invalid_argument("a port is from 1 to 65535"))
}

pub(crate) fn is_of(event: &PodEvent, pod: &Option<Key>) -> bool {
    let Some((namespace, name)) = pod else { return true };
    event.pod.as_ref().is_some_and(|of| of.namespace == *namespace && of.name == *name)
}

pub(crate) fn usage(pod: PodRef, stats: PodSandboxStats) -> PodUsage {
    let linux = stats.linux.unwrap_or_default();
    let interface = linux.network.and_then(|network| network.default_interface).unwrap_or_default();
    PodUsage {
        pod: Some(pod),
        containers: linux.containers.into_iter().map(container).collect(),
        received_bytes: number(interface.rx_bytes),
        sent_bytes: number(interface.tx_bytes),
        processes: number(linux.process.and_then(|process| process.process_count)),
    }
}

fn container(stats: ContainerStats) -> ContainerUsage {
    let attributes = stats.attributes.unwrap_or_default();
    let cpu = stats.cpu.unwrap_or_default();
    let memory = stats.memory.unwrap_or_default();
    let working_set = number(memory.working_set_bytes);
    let available = memory.available_bytes.map(|available| available.value);
    ContainerUsage {
        name: attributes.metadata.unwrap_or_default().name,
        cpu_nanos: number(cpu.usage_core_nano_seconds),
        cpu_nano_cores: cpu.usage_nano_cores.map(|cores| cores.value),
        memory_bytes: working_set,
        memory_limit_bytes: available.map_or(0, |available| available + working_set),
        layer_bytes: number(stats.writable_layer.unwrap_or_default().used_bytes),
    }
}

fn number(value: Option<UInt64Value>) -> u64 {
    value.map_or(0, |value| value.value)
}
