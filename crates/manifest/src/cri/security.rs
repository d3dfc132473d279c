//! Security contexts.

use std::path::Path;

use berth_cri::runtime::v1 as cri;
use berth_cri::runtime::v1::security_profile::ProfileType;

use super::{Facts, Ids};
use crate::container::Container;
use crate::pod::Pod;
use crate::security::{AppArmor, SeLinux, Seccomp, Security, SupplementalGroups};

/// What kubelet hides of /proc and /sys.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// What kubelet lets nobody write to.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

pub(super) fn of_sandbox(pod: &Pod, facts: &Facts<'_>) -> cri::LinuxSandboxSecurityContext {
    let security = &pod.security.defaults;
    cri::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod, None, facts.ids)),
        selinux_options: security.se_linux.as_ref().map(selinux),
        run_as_user: security.run_as_user.map(int),
        run_as_group: security.run_as_group.map(int),
        supplemental_groups: groups(pod),
        supplemental_groups_policy: policy(pod).into(),
        // A privileged container needs a sandbox that allows it.
        privileged: super::all_containers(pod).any(|container| container.security.privileged),
        seccomp: security.seccomp.as_ref().map(|profile| seccomp(profile, facts.seccomp_profiles)),
        apparmor: security.app_armor.as_ref().map(app_armor),
        ..cri::LinuxSandboxSecurityContext::default()
    }
}

pub(super) fn of_container(
    pod: &Pod,
    container: &Container,
    target: Option<&str>,
    facts: &Facts<'_>,
) -> cri::LinuxContainerSecurityContext {
    let security = container.security.within(&pod.security);
    let paths = |list: &[&str]| match security.privileged || security.unmasked_proc {
        true => Vec::new(),
        false => list.iter().map(|path| (*path).to_owned()).collect(),
    };
    cri::LinuxContainerSecurityContext {
        capabilities: Some(capabilities(&security)),
        privileged: security.privileged,
        namespace_options: Some(namespaces(pod, target, facts.ids)),
        selinux_options: security.se_linux.as_ref().map(selinux),
        run_as_user: security.run_as_user.map(int),
        run_as_group: security.run_as_group.map(int),
        readonly_rootfs: security.read_only_root_filesystem,
        supplemental_groups: groups(pod),
        supplemental_groups_policy: policy(pod).into(),
        no_new_privs: security.allow_privilege_escalation == Some(false),
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READ_ONLY),
        seccomp: security.seccomp.as_ref().map(|profile| seccomp(profile, facts.seccomp_profiles)),
        apparmor: security.app_armor.as_ref().map(app_armor),
        ..cri::LinuxContainerSecurityContext::default()
    }
}

fn int(value: i64) -> cri::Int64Value {
    cri::Int64Value { value }
}

fn groups(pod: &Pod) -> Vec<i64> {
    pod.security.supplemental_groups.iter().copied().chain(pod.security.fs_group).collect()
}

fn policy(pod: &Pod) -> cri::SupplementalGroupsPolicy {
    match pod.security.supplemental_groups_policy {
        SupplementalGroups::Merge => cri::SupplementalGroupsPolicy::Merge,
        SupplementalGroups::Strict => cri::SupplementalGroupsPolicy::Strict,
    }
}

fn namespaces(pod: &Pod, target: Option<&str>, ids: Option<Ids>) -> cri::NamespaceOption {
    let own = |is_the_nodes: bool| match is_the_nodes {
        true => cri::NamespaceMode::Node,
        false => cri::NamespaceMode::Pod,
    };
    let pid = match (target, pod.host_pid, pod.share_process_namespace) {
        (Some(_), _, _) => cri::NamespaceMode::Target,
        (None, true, _) => cri::NamespaceMode::Node,
        (None, false, true) => cri::NamespaceMode::Pod,
        (None, false, false) => cri::NamespaceMode::Container,
    };
    cri::NamespaceOption {
        network: own(pod.host_network).into(),
        pid: pid.into(),
        ipc: own(pod.host_ipc).into(),
        target_id: target.unwrap_or_default().to_owned(),
        userns_options: match super::id_mappings(pod, ids) {
            map if map.is_empty() => None,
            map => Some(cri::UserNamespace {
                mode: cri::NamespaceMode::Pod.into(),
                uids: map.clone(),
                gids: map,
            }),
        },
    }
}

fn capabilities(security: &Security) -> cri::Capability {
    cri::Capability {
        add_capabilities: security.add_capabilities.clone(),
        drop_capabilities: security.drop_capabilities.clone(),
        ..cri::Capability::default()
    }
}

fn selinux(label: &SeLinux) -> cri::SeLinuxOption {
    let SeLinux { user, role, kind, level } = label.clone();
    cri::SeLinuxOption { user, role, r#type: kind, level }
}

fn seccomp(profile: &Seccomp, folder: &Path) -> cri::SecurityProfile {
    match profile {
        Seccomp::Unconfined => security_profile(ProfileType::Unconfined, ""),
        Seccomp::RuntimeDefault => security_profile(ProfileType::RuntimeDefault, ""),
        // CRI wants the whole path; the manifest has it below the folder.
        Seccomp::Localhost(path) => {
            security_profile(ProfileType::Localhost, &folder.join(path).to_string_lossy())
        }
    }
}

fn app_armor(profile: &AppArmor) -> cri::SecurityProfile {
    match profile {
        AppArmor::Unconfined => security_profile(ProfileType::Unconfined, ""),
        AppArmor::RuntimeDefault => security_profile(ProfileType::RuntimeDefault, ""),
        AppArmor::Localhost(name) => security_profile(ProfileType::Localhost, name),
    }
}

fn security_profile(kind: ProfileType, localhost: &str) -> cri::SecurityProfile {
    cri::SecurityProfile { profile_type: kind.into(), localhost_ref: localhost.to_owned() }
}
