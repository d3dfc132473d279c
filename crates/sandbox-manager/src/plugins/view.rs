//! Pods, containers and limits in the words of the Node Resource Interface.

use std::net::IpAddr;

use berth_cri::runtime::v1::{
    LinuxContainerResources, SecurityProfile, security_profile::ProfileType as CriProfile,
};
use berth_nri::{
    CdiDevice, Container as PluginContainer, ContainerState as PluginState, HugepageLimit, Image,
    LinuxContainer, LinuxCpu, LinuxMemory, LinuxNamespace, LinuxPodSandbox, LinuxResources, OptionalInt64,
    OptionalUInt64, PodSandbox, User, security_profile::ProfileType,
};

use super::spec_of;
use crate::{Container, ContainerState, Sandbox, host::Host};

/// A pod. `supervisor` is the process that holds its namespaces.
pub(super) fn pod(sandbox: &Sandbox, supervisor: Option<i32>) -> PodSandbox {
    let meta = sandbox.metadata();
    let (pod_overhead, pod_resources) = pod_resources(sandbox);
    let own = [
        ("network", "net", !sandbox.host_network()),
        ("ipc", "ipc", !sandbox.host_ipc()),
        ("uts", "uts", !sandbox.host_network()),
    ];
    let namespaces = own.into_iter().filter(|(.., own)| *own).filter_map(|(name, file, _)| {
        let path = format!("/proc/{}/ns/{file}", supervisor?);
        Some(LinuxNamespace { r#type: name.to_owned(), path })
    });
    PodSandbox {
        id: sandbox.id.to_string(),
        name: meta.name,
        uid: meta.uid,
        namespace: meta.namespace,
        labels: sandbox.config.labels.clone(),
        annotations: sandbox.config.annotations.clone(),
        runtime_handler: sandbox.handler.clone(),
        linux: Some(LinuxPodSandbox {
            pod_overhead,
            pod_resources,
            cgroup_parent: sandbox.cgroup_parent.clone(),
            cgroups_path: sandbox.cgroup_parent.clone(),
            namespaces: namespaces.collect(),
            resources: None,
        }),
        pid: supervisor.and_then(|pid| u32::try_from(pid).ok()).unwrap_or_default(),
        ips: sandbox.ips.iter().map(IpAddr::to_string).collect(),
    }
}

/// A pod's overhead, and the sum of its containers' limits, as its caller says.
pub(super) fn pod_resources(sandbox: &Sandbox) -> (Option<LinuxResources>, Option<LinuxResources>) {
    let linux = sandbox.config.linux.as_ref();
    let of = |asked: Option<&LinuxContainerResources>| asked.map(of_cri);
    (
        of(linux.and_then(|linux| linux.overhead.as_ref())),
        of(linux.and_then(|linux| linux.resources.as_ref())),
    )
}

/// A container with what its spec says of it.
pub(super) async fn container(host: &Host, container: &Container) -> PluginContainer {
    let mut seen = known(container);
    if let Some(spec) = spec_of(host, container).await {
        berth_nri::oci::describe(&spec, &mut seen);
        // A spec is from the beginning; limits may have changed since.
        let limits = of_cri(&container.resources);
        let linux = seen.linux.get_or_insert_default();
        berth_nri::overlay(linux.resources.get_or_insert_default(), &limits);
    }
    seen
}

/// A container without its spec.
pub(super) fn known(container: &Container) -> PluginContainer {
    let config = &container.config;
    let (state, exit) = match &container.state {
        ContainerState::Creating => (PluginState::ContainerUnknown, None),
        ContainerState::Created { .. } => (PluginState::ContainerCreated, None),
        ContainerState::Running { .. } => (PluginState::ContainerRunning, None),
        ContainerState::Exited(exit) => (PluginState::ContainerStopped, Some(exit)),
    };
    let security = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let number = |id: i64| u32::try_from(id).unwrap_or_default();
    PluginContainer {
        id: container.id.to_string(),
        pod_sandbox_id: container.sandbox_id.to_string(),
        name: container.name_and_attempt().0.to_owned(),
        state: state.into(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        args: config.command.iter().chain(&config.args).cloned().collect(),
        env: config
            .envs
            .iter()
            .map(|env| format!("{}={}", env.key, String::from_utf8_lossy(&env.value)))
            .collect(),
        linux: Some(LinuxContainer {
            resources: Some(of_cri(&container.resources)),
            seccomp_profile: security.and_then(|security| security.seccomp.as_ref()).map(profile),
            ..LinuxContainer::default()
        }),
        pid: container.pid().and_then(|pid| u32::try_from(pid).ok()).unwrap_or_default(),
        created_at: container.created_at,
        started_at: container.started_at(),
        finished_at: exit.map(|exit| exit.finished_at).unwrap_or_default(),
        exit_code: exit.map(|exit| exit.code).unwrap_or_default(),
        status_reason: exit.map(|exit| exit.reason.clone()).unwrap_or_default(),
        status_message: exit.map(|exit| exit.message.clone()).unwrap_or_default(),
        cdi_devices: config
            .cdi_devices
            .iter()
            .map(|device| CdiDevice { name: device.name.clone() })
            .collect(),
        user: Some(User {
            uid: number(container.user.uid),
            gid: number(container.user.gid),
            additional_gids: container.user.supplemental_groups.iter().map(|id| number(*id)).collect(),
        }),
        image: Some(Image {
            name: container.image.name.clone(),
            digest: container
                .image
                .reference
                .split_once('@')
                .map(|(_, digest)| digest.to_owned())
                .unwrap_or_default(),
            config_digest: container.image.id.clone(),
        }),
        ..PluginContainer::default()
    }
}

fn profile(profile: &SecurityProfile) -> berth_nri::SecurityProfile {
    let kind = match profile.profile_type() {
        CriProfile::RuntimeDefault => ProfileType::RuntimeDefault,
        CriProfile::Unconfined => ProfileType::Unconfined,
        CriProfile::Localhost => ProfileType::Localhost,
    };
    berth_nri::SecurityProfile { profile_type: kind.into(), localhost_ref: profile.localhost_ref.clone() }
}

/// CRI's limits: zero and empty are not set.
pub(super) fn of_cri(limits: &LinuxContainerResources) -> LinuxResources {
    let signed = |value: i64| (value != 0).then_some(OptionalInt64 { value });
    let unsigned = |value: i64| {
        u64::try_from(value).ok().filter(|value| *value != 0).map(|value| OptionalUInt64 { value })
    };
    LinuxResources {
        memory: Some(LinuxMemory {
            limit: signed(limits.memory_limit_in_bytes),
            swap: signed(limits.memory_swap_limit_in_bytes),
            ..LinuxMemory::default()
        })
        .filter(|memory| *memory != LinuxMemory::default()),
        cpu: Some(LinuxCpu {
            shares: unsigned(limits.cpu_shares),
            quota: signed(limits.cpu_quota),
            period: unsigned(limits.cpu_period),
            cpus: limits.cpuset_cpus.clone(),
            mems: limits.cpuset_mems.clone(),
            ..LinuxCpu::default()
        })
        .filter(|cpu| *cpu != LinuxCpu::default()),
        hugepage_limits: limits
            .hugepage_limits
            .iter()
            .map(|limit| HugepageLimit { page_size: limit.page_size.clone(), limit: limit.limit })
            .collect(),
        unified: limits.unified.clone(),
        ..LinuxResources::default()
    }
}

/// What of these limits CRI has words for.
pub(crate) fn to_cri(limits: &LinuxResources) -> LinuxContainerResources {
    let signed = |value: &Option<OptionalInt64>| value.as_ref().map(|value| value.value).unwrap_or_default();
    let unsigned = |value: &Option<OptionalUInt64>| {
        value.as_ref().and_then(|value| i64::try_from(value.value).ok()).unwrap_or_default()
    };
    let memory = limits.memory.unwrap_or_default();
    let cpu = limits.cpu.clone().unwrap_or_default();
    LinuxContainerResources {
        cpu_period: unsigned(&cpu.period),
        cpu_quota: signed(&cpu.quota),
        cpu_shares: unsigned(&cpu.shares),
        memory_limit_in_bytes: signed(&memory.limit),
        memory_swap_limit_in_bytes: signed(&memory.swap),
        cpuset_cpus: cpu.cpus,
        cpuset_mems: cpu.mems,
        hugepage_limits: limits
            .hugepage_limits
            .iter()
            .map(|limit| berth_cri::runtime::v1::HugepageLimit {
                page_size: limit.page_size.clone(),
                limit: limit.limit,
            })
            .collect(),
        unified: limits.unified.clone(),
        ..LinuxContainerResources::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_cri_survive_the_way_there_and_back() {
        let limits = LinuxContainerResources {
            cpu_quota: -1,
            cpu_shares: 7,
            memory_limit_in_bytes: 1 << 20,
            cpuset_mems: "0".to_owned(),
            unified: [("memory.high".to_owned(), "1".to_owned())].into(),
            ..Default::default()
        };
        assert_eq!(to_cri(&of_cri(&limits)), limits);
        assert_eq!(of_cri(&LinuxContainerResources::default()), LinuxResources::default());
    }
}
