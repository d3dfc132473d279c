//! What callers hand in and get back.

use std::{collections::BTreeMap, net::IpAddr, os::fd::OwnedFd, path::PathBuf};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::PortMapping;

/// `[network]` of the configuration, and where state lies.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// berth's STATE: pinned namespaces lie in `STATE/netns`.
    pub state: PathBuf,
    /// The folder of CNI configurations. It need not exist.
    pub cni_conf_dir: PathBuf,
    /// The folders of CNI plugins, in the order of search. They need not exist.
    pub cni_bin_dirs: Vec<PathBuf>,
    /// The built-in bridge's name; the nf_tables table is named after it.
    pub bridge: String,
    /// The built-in bridge's IPv4 network, until [`Network::set_pod_cidr`](crate::Network::set_pod_cidr).
    pub ipv4_subnet: Ipv4Net,
    /// Its IPv6 network; `None` for IPv4 alone.
    pub ipv6_subnet: Option<Ipv6Net>,
    /// The MTU of bridge and pods, in bytes; `None` takes that of the interface with the default route.
    pub mtu: Option<u32>,
}

/// Whose network it is, for CNI plugins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodIdentity {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.uid`.
    pub uid: String,
}

/// A sandbox that wants a network.
#[derive(Debug)]
pub struct AttachRequest {
    /// The sandbox's id: one path component.
    pub sandbox_id: String,
    /// Whose it is.
    pub pod: PodIdentity,
    /// The namespace, without an `eth0`. It is closed when the attach ends; the caller keeps one of its own.
    pub netns: OwnedFd,
    /// CRI's port mappings, as they came.
    pub port_mappings: Vec<PortMapping>,
    /// The pod's annotations, for CNI plugins (bandwidth among them). The built-in network reads none.
    pub annotations: BTreeMap<String, String>,
    /// The pod's cgroup as kubelet named it, for CNI plugins.
    pub cgroup_parent: Option<String>,
}

/// What the sandbox got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// At least one; IPv4 before IPv6, so that the first is the pod's primary address.
    pub ips: Vec<IpAddr>,
}
