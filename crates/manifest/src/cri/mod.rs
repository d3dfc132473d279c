//! From a pod to what a container runtime is asked for: CRI's PodSandboxConfig and ContainerConfig.
//!
//! The rules are kubelet's (its kuberuntime package), so a manifest gives the same container under either. What only the
//! node knows comes in as [`Facts`].

mod expand;
mod resources;
mod security;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use berth_cri::runtime::v1 as cri;

use crate::container::{Container, Mount, MountPropagation, Protocol, RecursiveReadOnly};
use crate::env::{EnvValue, FieldPath, ResourceField, ResourceKind};
use crate::pod::{DnsConfig, DnsPolicy, Pod};
use crate::volume::{Content, Item, VolumeSource};

/// Labels that say which pod and container something is of, as kubelet sets them.
const NAME_LABEL: &str = "io.kubernetes.pod.name";
const NAMESPACE_LABEL: &str = "io.kubernetes.pod.namespace";
const UID_LABEL: &str = "io.kubernetes.pod.uid";
const CONTAINER_LABEL: &str = "io.kubernetes.container.name";

/// What the node adds to a pod.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// The pod's own, where its manifest has none.
    pub uid: &'a str,
    pub node_name: &'a str,
    pub host_ips: &'a [IpAddr],
    /// Empty before the sandbox is up.
    pub pod_ips: &'a [IpAddr],
    /// Of the node, in bytes.
    pub memory: i64,
    /// Of the node: the limit of containers without one, to those who ask.
    pub cpus: u32,
    /// As CRI writes them: "2MB".
    pub huge_page_sizes: &'a [String],
    /// Whether the node has cgroup v2.
    pub cgroup2: bool,
    /// The node's own.
    pub resolver: &'a DnsConfig,
    /// Where the seccomp profiles lie that manifests name.
    pub seccomp_profiles: &'a Path,
    /// Where the pod's logs go.
    pub log_directory: &'a str,
    /// For a pod with users of its own: the node's first user id that is the pod's, and how many there are. The groups
    /// are the same numbers.
    pub ids: Option<Ids>,
}

/// A range of ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    pub first: u32,
    pub count: u32,
}

/// Where a mount's folder or file is on the node: the volume, or the part of it that the mount names.
pub type Places<'a> = &'a dyn Fn(&Mount) -> PathBuf;

/// The sandbox of a pod, for RunPodSandbox.
pub fn sandbox(pod: &Pod, facts: &Facts<'_>, attempt: u32) -> cri::PodSandboxConfig {
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: pod.metadata.name.clone(),
            namespace: pod.metadata.namespace.clone(),
            uid: uid(pod, facts).to_owned(),
            attempt,
        }),
        hostname: if pod.host_network { String::new() } else { pod.hostname.clone() },
        log_directory: facts.log_directory.to_owned(),
        dns_config: Some(dns(pod, facts)),
        port_mappings: port_mappings(pod),
        labels: labels(pod, facts),
        annotations: pod.metadata.annotations.clone(),
        linux: Some(cri::LinuxPodSandboxConfig {
            security_context: Some(security::of_sandbox(pod, facts)),
            sysctls: pod.security.sysctls.iter().cloned().collect(),
            ..cri::LinuxPodSandboxConfig::default()
        }),
        windows: None,
    }
}

/// A container of a pod, for CreateContainer.
///
/// # Arguments
/// * `target`: id of the container whose processes it is to see, for an ephemeral one.
///
/// # Errors
/// A variable, or a path with variables, that cannot be made.
pub fn container(
    pod: &Pod,
    container: &Container,
    attempt: u32,
    target: Option<&str>,
    facts: &Facts<'_>,
    places: Places<'_>,
) -> Result<cri::ContainerConfig, String> {
    let env = environment(pod, container, facts)?;
    let expanded = |words: &[String]| words.iter().map(|word| expand::expand(word, &env)).collect();
    let mut labels = labels(pod, facts);
    labels.insert(CONTAINER_LABEL.to_owned(), container.name.clone());
    let mounts = container.mounts.iter().map(|mount| self::mount(pod, container, mount, facts, places));
    Ok(cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: container.name.clone(), attempt }),
        image: Some(cri::ImageSpec {
            image: container.image.clone(),
            user_specified_image: container.image.clone(),
            ..cri::ImageSpec::default()
        }),
        command: expanded(&container.command),
        args: expanded(&container.args),
        working_dir: container.working_dir.clone(),
        mounts: mounts.collect::<Result<_, _>>()?,
        labels,
        log_path: format!("{}/{attempt}.log", container.name),
        stdin: container.stdin,
        stdin_once: container.stdin_once,
        tty: container.tty,
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(resources::of_container(pod, container, facts)),
            security_context: Some(security::of_container(pod, container, target, facts)),
        }),
        stop_signal: container.lifecycle.stop_signal.as_deref().and_then(signal).unwrap_or_default().into(),
        envs: env.into_iter().map(|(key, value)| cri::KeyValue { key, value: value.into() }).collect(),
        ..cri::ContainerConfig::default()
    })
}

/// The part of a volume that is mounted, with its variables put in; empty: all of it.
///
/// # Errors
/// When it leads out of the volume.
pub fn sub_path(
    pod: &Pod,
    container: &Container,
    mount: &Mount,
    facts: &Facts<'_>,
) -> Result<String, String> {
    if mount.sub_path_expr.is_empty() {
        return Ok(mount.sub_path.clone());
    }
    let path = expand::expand(&mount.sub_path_expr, &environment(pod, container, facts)?);
    let checked = crate::names::path_below(&path);
    checked.map_err(|problem| format!("subPathExpr of {}: {problem}", mount.path))
}

/// What a file of a volume holds.
pub fn file(pod: &Pod, item: &Item, facts: &Facts<'_>) -> Vec<u8> {
    match &item.content {
        Content::Bytes(bytes) => bytes.clone(),
        Content::Field(path) => field(pod, path, facts).into_bytes(),
        Content::Resource(wanted) => {
            let named = all_containers(pod).find(|container| container.name == wanted.container);
            named.map(|container| resource(container, wanted, facts)).unwrap_or_default().into_bytes()
        }
    }
}

fn all_containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.startup.iter().map(|step| step.container()).chain(&pod.standard)
}

fn uid<'a>(pod: &'a Pod, facts: &Facts<'a>) -> &'a str {
    if pod.metadata.uid.is_empty() { facts.uid } else { &pod.metadata.uid }
}

fn labels(pod: &Pod, facts: &Facts<'_>) -> BTreeMap<String, String> {
    let mut labels = pod.metadata.labels.clone();
    let own = [
        (NAME_LABEL, pod.metadata.name.as_str()),
        (NAMESPACE_LABEL, &pod.metadata.namespace),
        (UID_LABEL, uid(pod, facts)),
    ];
    labels.extend(own.map(|(key, value)| (key.to_owned(), value.to_owned())));
    labels
}

fn dns(pod: &Pod, facts: &Facts<'_>) -> cri::DnsConfig {
    let base = match pod.dns_policy {
        DnsPolicy::Default => facts.resolver.clone(),
        DnsPolicy::None => DnsConfig::default(),
    };
    let own = &pod.dns_config;
    // Of an option that both have the pod's holds.
    let name = |option: &str| option.split(':').next().unwrap_or_default().to_owned();
    let overridden: Vec<String> = own.options.iter().map(|option| name(option)).collect();
    let kept = base.options.into_iter().filter(|option| !overridden.contains(&name(option)));
    cri::DnsConfig {
        servers: unique(base.nameservers.into_iter().chain(own.nameservers.iter().cloned())),
        searches: unique(base.searches.into_iter().chain(own.searches.iter().cloned())),
        options: kept.chain(own.options.iter().cloned()).collect(),
    }
}

fn unique(all: impl Iterator<Item = String>) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for one in all {
        if !found.contains(&one) {
            found.push(one);
        }
    }
    found
}

fn port_mappings(pod: &Pod) -> Vec<cri::PortMapping> {
    // With the node's network a port is the node's already.
    let ports = all_containers(pod).flat_map(|container| &container.ports).filter(|_| !pod.host_network);
    let mapped = ports.filter_map(|port| {
        Some(cri::PortMapping {
            protocol: match port.protocol {
                Protocol::Tcp => cri::Protocol::Tcp,
                Protocol::Udp => cri::Protocol::Udp,
                Protocol::Sctp => cri::Protocol::Sctp,
            }
            .into(),
            container_port: port.container_port.into(),
            host_port: port.host_port?.into(),
            host_ip: port.host_ip.clone(),
        })
    });
    mapped.collect()
}

/// For each mount of a pod with users of its own: the owners in it are the pod's, as they are in its images.
pub fn id_mappings(pod: &Pod, ids: Option<Ids>) -> Vec<cri::IdMapping> {
    let ids = ids.filter(|_| !pod.host_users);
    let mapping = |ids: Ids| cri::IdMapping { host_id: ids.first, container_id: 0, length: ids.count };
    ids.map(mapping).into_iter().collect()
}

fn mount(
    pod: &Pod,
    container: &Container,
    mount: &Mount,
    facts: &Facts<'_>,
    places: Places<'_>,
) -> Result<cri::Mount, String> {
    let propagation = match mount.propagation {
        MountPropagation::None => cri::MountPropagation::PropagationPrivate,
        MountPropagation::HostToContainer => cri::MountPropagation::PropagationHostToContainer,
        MountPropagation::Bidirectional => cri::MountPropagation::PropagationBidirectional,
    };
    let source = pod.volumes.iter().find(|volume| volume.name == mount.volume).map(|volume| &volume.source);
    let shared = cri::Mount {
        container_path: mount.path.clone(),
        // What is written anew when it becomes another is not the container's to change.
        readonly: mount.read_only || matches!(source, Some(VolumeSource::Files { .. })),
        recursive_read_only: mount.recursive_read_only != RecursiveReadOnly::Disabled,
        propagation: propagation.into(),
        ..cri::Mount::default()
    };
    Ok(match source {
        Some(VolumeSource::Image { reference, .. }) => cri::Mount {
            image: Some(cri::ImageSpec { image: reference.clone(), ..cri::ImageSpec::default() }),
            image_sub_path: sub_path(pod, container, mount, facts)?,
            readonly: true,
            ..shared
        },
        _ => cri::Mount {
            host_path: places(mount).to_string_lossy().into_owned(),
            uid_mappings: id_mappings(pod, facts.ids),
            gid_mappings: id_mappings(pod, facts.ids),
            ..shared
        },
    })
}

/// A signal by the name that Kubernetes has for it: `SIGTERM`, `SIGRTMIN+1`.
pub(crate) fn signal(name: &str) -> Option<cri::Signal> {
    let name = name.replace('+', "PLUS").replace('-', "MINUS");
    cri::Signal::from_str_name(&format!("SIGNAL_{name}")).filter(|_| name.starts_with("SIG"))
}

/// The variables in their order, each name once: the last one given holds.
fn environment(pod: &Pod, container: &Container, facts: &Facts<'_>) -> Result<Vec<(String, String)>, String> {
    let mut env: Vec<(String, String)> = Vec::new();
    for variable in &container.env {
        let value = match &variable.value {
            EnvValue::Text(text) => expand::expand(text, &env),
            EnvValue::Literal(text) => text.clone(),
            EnvValue::Field(path) => field(pod, path, facts),
            EnvValue::Resource(wanted) => {
                let named = all_containers(pod).find(|other| other.name == wanted.container);
                let of = if wanted.container.is_empty() { Some(container) } else { named };
                let of = of.ok_or_else(|| {
                    format!("variable {}: the pod has no container {:?}", variable.name, wanted.container)
                })?;
                resource(of, wanted, facts)
            }
        };
        env.retain(|(name, _)| *name != variable.name);
        env.push((variable.name.clone(), value));
    }
    Ok(env)
}

/// `metadata.labels` and such; absent ones are empty.
fn field(pod: &Pod, path: &FieldPath, facts: &Facts<'_>) -> String {
    let first = |ips: &[IpAddr]| ips.first().map(IpAddr::to_string).unwrap_or_default();
    let all = |ips: &[IpAddr]| ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
    let lines = |map: &BTreeMap<String, String>| {
        map.iter().map(|(key, value)| format!("{key}={value:?}")).collect::<Vec<_>>().join("\n")
    };
    let pod_ips = if pod.host_network { facts.host_ips } else { facts.pod_ips };
    match path {
        FieldPath::Name => pod.metadata.name.clone(),
        FieldPath::Namespace => pod.metadata.namespace.clone(),
        FieldPath::Uid => uid(pod, facts).to_owned(),
        FieldPath::Label(key) => pod.metadata.labels.get(key).cloned().unwrap_or_default(),
        FieldPath::Annotation(key) => pod.metadata.annotations.get(key).cloned().unwrap_or_default(),
        FieldPath::Labels => lines(&pod.metadata.labels),
        FieldPath::Annotations => lines(&pod.metadata.annotations),
        FieldPath::NodeName => facts.node_name.to_owned(),
        FieldPath::ServiceAccountName => "default".to_owned(),
        FieldPath::HostIp => first(facts.host_ips),
        FieldPath::HostIps => all(facts.host_ips),
        FieldPath::PodIp => first(pod_ips),
        FieldPath::PodIps => all(pod_ips),
    }
}

/// A request or limit; a limit that is not there is what the node has.
fn resource(container: &Container, wanted: &ResourceField, facts: &Facts<'_>) -> String {
    let of = match wanted.kind {
        ResourceKind::Request => &container.resources.requests,
        ResourceKind::Limit => &container.resources.limits,
    };
    let amount =
        of.get(&wanted.resource).copied().or_else(|| match (wanted.kind, wanted.resource.as_str()) {
            (ResourceKind::Limit, "cpu") => Some(crate::Quantity::units(facts.cpus.into())),
            (ResourceKind::Limit, "memory") => Some(crate::Quantity::units(facts.memory)),
            _ => None,
        });
    amount.unwrap_or_default().divided_by(wanted.divisor).to_string()
}
