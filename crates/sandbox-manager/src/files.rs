//! The small files a pod gives its containers: resolv.conf, hostname, hosts, and the folders they lie in.

use std::{
    fmt::Write as _,
    fs, io,
    net::IpAddr,
    os::unix::fs::chown,
    path::{Path, PathBuf},
};

use berth_cri::runtime::v1::{DnsConfig, PodSandboxConfig};

use berth_image::FirstIds;
use berth_supervisor::USER_NAMESPACE;

use crate::{ContainerId, SandboxId, node_resolver, resolver};

/// Where a pod's things lie below STATE: gone after a reboot, as the pod is.
#[derive(Clone, Debug)]
pub(crate) struct PodDir(PathBuf);

impl PodDir {
    pub(crate) fn new(pods: &Path, id: &SandboxId) -> Self {
        Self(pods.join(id.as_str()))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn resolv_conf(&self) -> PathBuf {
        self.0.join("resolv.conf")
    }

    pub(crate) fn hostname(&self) -> PathBuf {
        self.0.join("hostname")
    }

    pub(crate) fn hosts(&self) -> PathBuf {
        self.0.join("hosts")
    }

    /// Mount point of the pod's own /dev/shm.
    pub(crate) fn shm(&self) -> PathBuf {
        self.0.join("shm")
    }

    /// The pod's user namespace, where it has one: the supervisor puts it there.
    pub(crate) fn user_namespace(&self) -> PathBuf {
        self.0.join(USER_NAMESPACE)
    }

    /// The supervisor keeps a container's exit status here, the manager its OCI spec.
    pub(crate) fn container(&self, id: &ContainerId) -> PathBuf {
        self.0.join(id.as_str())
    }

    pub(crate) fn spec(&self, id: &ContainerId) -> PathBuf {
        self.container(id).join("config.json")
    }

    /// The hooks of a container that has any.
    pub(crate) fn hooks(&self, id: &ContainerId) -> PathBuf {
        self.container(id).join("hooks.json")
    }

    /// Mount point of a container's root file system, for OCI runtimes that want a path.
    pub(crate) fn rootfs(&self, id: &ContainerId) -> PathBuf {
        self.container(id).join("rootfs")
    }

    /// Mount points of a container's image volumes.
    pub(crate) fn volumes(&self, id: &ContainerId) -> PathBuf {
        self.container(id).join("volumes")
    }

    /// Where an external OCI runtime keeps its own state.
    pub(crate) fn runtime_root(&self) -> PathBuf {
        self.0.join("oci")
    }
}

/// The name its processes see: the config's, or the node's own for a pod in the host's network.
pub(crate) fn hostname(config: &PodSandboxConfig, node: &str) -> String {
    match config.hostname.as_str() {
        "" => node.to_owned(),
        name => name.to_owned(),
    }
}

/// Writes resolv.conf, hostname and hosts. `ips` is empty for a pod in the host's network; `owner` is root in the pod.
pub(crate) fn write(
    dir: &PodDir,
    config: &PodSandboxConfig,
    node: &str,
    ips: &[IpAddr],
    owner: Option<FirstIds>,
) -> io::Result<()> {
    let name = hostname(config, node);
    fs::write(dir.resolv_conf(), resolv_conf(config.dns_config.as_ref(), ips.is_empty())?)?;
    fs::write(dir.hosts(), hosts(&name, ips)?)?;
    fs::write(dir.hostname(), name + "\n")?;
    if let Some(FirstIds { uid, gid }) = owner {
        for path in [dir.resolv_conf(), dir.hosts(), dir.hostname()] {
            chown(path, Some(uid), Some(gid))?;
        }
    }
    Ok(())
}

/// From the config, or the node's own when it says nothing (crictl's configs usually do not).
fn resolv_conf(dns: Option<&DnsConfig>, host_network: bool) -> io::Result<String> {
    let said =
        |dns: &&DnsConfig| !(dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty());
    let Some(dns) = dns.filter(said) else {
        return node_resolver(host_network);
    };
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text += &format!("search {}\n", dns.searches.join(" "));
    }
    for server in &dns.servers {
        text += &format!("nameserver {server}\n");
    }
    if !dns.options.is_empty() {
        text += &format!("options {}\n", dns.options.join(" "));
    }
    Ok(text)
}

/// For containers without an /etc/hosts mount of kubelet's: the host's file in the host's network, else loopback and
/// the pod's own name.
fn hosts(name: &str, ips: &[IpAddr]) -> io::Result<String> {
    if ips.is_empty() {
        return resolver::read("/etc/hosts");
    }
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    for ip in ips {
        writeln!(text, "{ip}\t{name}").map_err(io::Error::other)?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_holds_what_the_config_says() {
        let dns = DnsConfig {
            servers: vec!["10.10.10.10".into()],
            searches: vec!["a.b".into(), "c".into()],
            options: vec!["ndots:8".into()],
        };
        assert_eq!(
            resolv_conf(Some(&dns), false).unwrap(),
            "search a.b c\nnameserver 10.10.10.10\noptions ndots:8\n"
        );
    }

    #[test]
    fn an_empty_dns_config_means_the_nodes_own() {
        let host = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        assert_eq!(resolv_conf(Some(&DnsConfig::default()), true).unwrap(), host);
        assert_eq!(resolv_conf(None, true).unwrap(), host);
    }

    #[test]
    fn a_pod_knows_its_own_name() {
        let text = hosts("web", &["10.1.2.3".parse().unwrap()]).unwrap();
        assert!(text.lines().any(|line| line == "10.1.2.3\tweb"), "{text}");
    }
}
