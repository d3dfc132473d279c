//! What may be asked of a sandbox.

use berth_cri::runtime::v1::PodSandboxConfig;

use crate::{Error, SandboxId};

/// Refuses sysctls that would change the node: only what a namespace of the pod's own holds may be set.
pub(crate) fn check_sysctls(
    config: &PodSandboxConfig,
    host_network: bool,
    host_ipc: bool,
) -> Result<(), Error> {
    /// ipc_namespaces(7), plus what the kernel keeps beside them.
    const IPC: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    let Some(linux) = &config.linux else { return Ok(()) };
    for name in linux.sysctls.keys() {
        let dotted = match name.find(['.', '/']).map(|at| &name[at..=at]) {
            // sysctl(8): where a slash separates, dots and slashes change their places.
            Some("/") => name
                .chars()
                .map(|c| match c {
                    '/' => '.',
                    '.' => '/',
                    c => c,
                })
                .collect(),
            _ => name.clone(),
        };
        let namespace = match dotted.as_str() {
            ipc if IPC.contains(&ipc) || ipc.starts_with("fs.mqueue.") => Some(("ipc", host_ipc)),
            net if net.starts_with("net.") => Some(("network", host_network)),
            "kernel.domainname" => Some(("uts", host_network)),
            _ => None,
        };
        let why = match namespace {
            Some((_, false)) => continue,
            Some((namespace, true)) => {
                format!("{name} belongs to the {namespace} namespace, which is the node's")
            }
            None => format!("{name} belongs to the node, not to a pod"),
        };
        return Err(Error::Invalid { field: "config.linux.sysctls", why });
    }
    Ok(())
}

/// The cgroup that a pod's containers go below: what the config names, or one of the pod's own.
pub(crate) fn cgroup_parent(
    config: &PodSandboxConfig,
    id: &SandboxId,
    cgroup_root: &str,
) -> Result<String, Error> {
    let named = config.linux.as_ref().map_or("", |linux| linux.cgroup_parent.as_str());
    let invalid =
        |why: &str| Error::Invalid { field: "config.linux.cgroup_parent", why: format!("{named:?} {why}") };
    if named.is_empty() {
        return Ok(format!("{}/{id}", cgroup_root.trim_end_matches('/')));
    }
    if named.ends_with(".slice") {
        return Err(invalid("is a systemd slice, but the cgroup driver is cgroupfs"));
    }
    if named.split('/').any(|part| part == ".." || part == ".") {
        return Err(invalid("must not hold . or .."));
    }
    let parts: Vec<&str> = named.split('/').filter(|part| !part.is_empty()).collect();
    match parts.is_empty() {
        true => Err(invalid("is the root of the hierarchy")),
        false => Ok(format!("/{}", parts.join("/"))),
    }
}

#[cfg(test)]
mod tests {
    use berth_cri::runtime::v1::LinuxPodSandboxConfig;

    use super::*;

    fn parent_of(named: &str) -> Result<String, Error> {
        let linux = LinuxPodSandboxConfig { cgroup_parent: named.into(), ..Default::default() };
        let config = PodSandboxConfig { linux: Some(linux), ..Default::default() };
        cgroup_parent(&config, &SandboxId::from_record("abc"), "/berth")
    }

    #[test]
    fn a_pod_without_a_cgroup_parent_gets_its_own() {
        assert_eq!(parent_of("").unwrap(), "/berth/abc");
    }

    #[test]
    fn a_named_cgroup_parent_is_cleaned_up() {
        assert_eq!(parent_of("kubepods//burstable/pod1/").unwrap(), "/kubepods/burstable/pod1");
    }

    #[test]
    fn cgroup_parents_that_cannot_be_meant_are_refused() {
        for named in ["/kubepods.slice", "/a/../b", "/"] {
            assert!(matches!(parent_of(named), Err(Error::Invalid { .. })), "{named}");
        }
    }

    #[test]
    fn a_pod_sets_only_sysctls_of_namespaces_of_its_own() {
        let check = |name: &str, host_network, host_ipc| {
            let mut linux = LinuxPodSandboxConfig::default();
            linux.sysctls.insert(name.into(), "1".into());
            let config = PodSandboxConfig { linux: Some(linux), ..Default::default() };
            check_sysctls(&config, host_network, host_ipc)
        };
        for name in
            ["kernel.shm_rmid_forced", "fs.mqueue.msg_max", "net.ipv4.ip_forward", "net/ipv4/conf/eth0.1/x"]
        {
            check(name, false, false).unwrap();
        }
        assert!(check("net.ipv4.ip_forward", true, false).is_err());
        assert!(check("kernel.sem", false, true).is_err());
        for name in ["kernel.panic", "vm.overcommit_memory", "kernel.hostname", "kernel/panic"] {
            assert!(check(name, false, false).unwrap_err().to_string().contains(name));
        }
    }
}
