//! A pod as a whole.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use serde_json::Value;

use crate::config::{Scope, Siblings};
use crate::container::{Container, Port};
use crate::ephemeral::EphemeralContainer;
use crate::fields::Fields;
use crate::names;
use crate::probe::Lifecycle;
use crate::security::PodSecurity;
use crate::volume::Volume;

/// A pod, checked, with every default filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub metadata: Metadata,
    /// What is started one after another, before the standard containers: `initContainers` as written, then plain
    /// containers whose `lifecycle.type` is `Sidecar`.
    pub startup: Vec<Startup>,
    /// Started together. At least one.
    pub standard: Vec<Container>,
    pub ephemeral: Vec<EphemeralContainer>,
    pub volumes: Vec<Volume>,
    pub restart_policy: RestartPolicy,
    pub termination_grace_period: Duration,
    /// From the start of the pod; it has failed then.
    pub active_deadline: Option<Duration>,
    pub security: PodSecurity,
    pub dns_policy: DnsPolicy,
    pub dns_config: DnsConfig,
    pub host_aliases: Vec<HostAlias>,
    /// The pod's name, where it says nothing else.
    pub hostname: String,
    pub subdomain: String,
    pub host_network: bool,
    pub host_pid: bool,
    pub host_ipc: bool,
    /// False: a user namespace of its own.
    pub host_users: bool,
    pub share_process_namespace: bool,
    /// Names of Secrets.
    pub image_pull_secrets: Vec<String>,
    /// Empty: the default handler.
    pub runtime_class: String,
    /// As it was written.
    pub document: Value,
}

/// Name and marks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    pub name: String,
    pub namespace: String,
    /// Empty where the document has none.
    pub uid: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}

/// A container that has to get somewhere before the next one is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Startup {
    /// To its end.
    Init(Container),
    /// To be started, its startup probe and postStart passed; it goes on then.
    Sidecar(Container),
}

impl Startup {
    pub fn container(&self) -> &Container {
        match self {
            Self::Init(container) | Self::Sidecar(container) => container,
        }
    }
}

/// What happens when a container ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RestartPolicy {
    #[default]
    Always,
    OnFailure,
    Never,
}

/// Where the resolver's configuration comes from. Without a cluster `ClusterFirst` is `Default`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DnsPolicy {
    /// The node's own.
    #[default]
    Default,
    /// The manifest's alone.
    None,
}

/// Additions to the resolver's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DnsConfig {
    pub nameservers: Vec<String>,
    pub searches: Vec<String>,
    /// `name` or `name:value`.
    pub options: Vec<String>,
}

/// Lines for /etc/hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostAlias {
    pub ip: IpAddr,
    pub hostnames: Vec<String>,
}

const CLUSTER: &str = "there is no cluster";

impl Metadata {
    /// Reads the object `metadata`.
    pub(crate) fn read(fields: &mut Fields<'_>) -> Metadata {
        fields.demand("metadata");
        let read = fields.object("metadata", |fields| {
            fields.skip(&["creationTimestamp", "resourceVersion", "generation", "managedFields", "selfLink"]);
            fields.meaningless(
                &[
                    "generateName",
                    "ownerReferences",
                    "finalizers",
                    "deletionTimestamp",
                    "deletionGracePeriodSeconds",
                ],
                CLUSTER,
            );
            let namespace = fields.checked("namespace", names::label).unwrap_or_else(|| "default".to_owned());
            Metadata {
                name: fields.required_as("name", names::subdomain).unwrap_or_default(),
                namespace,
                // It names a folder.
                uid: fields.checked("uid", names::label).unwrap_or_default(),
                labels: fields.string_map("labels"),
                annotations: fields.string_map("annotations"),
            }
        });
        read.unwrap_or_default()
    }
}

impl Pod {
    /// Reads a document of the kind; None when what it is cannot be said for its faults.
    pub(crate) fn read(fields: &mut Fields<'_>, scope: &Scope<'_>, metadata: Metadata) -> Option<Pod> {
        fields.skip(&["status"]);
        fields.demand("spec");
        fields.object("spec", |fields| spec(fields, scope, metadata))
    }
}

fn spec(fields: &mut Fields<'_>, scope: &Scope<'_>, metadata: Metadata) -> Pod {
    for_the_scheduler(fields);
    let volumes: Vec<Volume> =
        fields.objects("volumes", |fields| Volume::read(fields, scope)).into_iter().flatten().collect();
    let mut names = HashSet::new();
    if let Some(twice) = volumes.iter().find(|volume| !names.insert(volume.name.as_str())) {
        fields.fault("volumes", format!("two have the name {:?}", twice.name));
    }
    let host_network = fields.flag("hostNetwork");
    let siblings = Siblings {
        volumes: &volumes,
        host_network,
        names: RefCell::default(),
        host_ports: RefCell::default(),
    };
    let scope = &Scope { pod: Some(&siblings), ..*scope };
    let mut startup: Vec<Startup> =
        fields.objects("initContainers", |fields| init(fields, scope)).into_iter().flatten().collect();
    let listed = fields.demand("containers");
    let mut standard = Vec::new();
    for (container, is_sidecar) in
        fields.objects("containers", |fields| plain(fields, scope)).into_iter().flatten()
    {
        match is_sidecar {
            true => startup.push(Startup::Sidecar(container)),
            false => standard.push(container),
        }
    }
    if listed && standard.is_empty() {
        fields.fault("containers", "needs one that is no sidecar");
    }
    let ephemeral = fields.objects("ephemeralContainers", |fields| EphemeralContainer::read(fields, scope));
    let host_pid = fields.flag("hostPID");
    let share_process_namespace = fields.flag("shareProcessNamespace");
    if host_pid && share_process_namespace {
        fields.fault("shareProcessNamespace", "cannot be given together with hostPID");
    }
    let host_ipc = fields.flag("hostIPC");
    let host_users = fields.boolean("hostUsers").unwrap_or(true);
    if !host_users && (host_pid || host_ipc) {
        fields.fault("hostUsers", "a pod with users of its own cannot have hostPID or hostIPC");
    }
    let (dns_policy, dns_config) = dns(fields);
    let restart_policies = [
        ("Always", RestartPolicy::Always),
        ("OnFailure", RestartPolicy::OnFailure),
        ("Never", RestartPolicy::Never),
    ];
    Pod {
        restart_policy: fields.word("restartPolicy", &restart_policies).unwrap_or_default(),
        termination_grace_period: fields
            .seconds("terminationGracePeriodSeconds", 0)
            .unwrap_or(Duration::from_secs(30)),
        active_deadline: fields.seconds("activeDeadlineSeconds", 1),
        security: PodSecurity::read(fields),
        dns_policy,
        dns_config,
        host_aliases: fields.objects("hostAliases", host_alias).into_iter().flatten().collect(),
        hostname: fields.checked("hostname", names::label).unwrap_or_else(|| hostname(&metadata.name)),
        subdomain: fields.checked("subdomain", names::label).unwrap_or_default(),
        host_network,
        host_pid,
        host_ipc,
        host_users,
        share_process_namespace,
        image_pull_secrets: fields.objects("imagePullSecrets", |fields| fields.required("name")),
        runtime_class: fields.checked("runtimeClassName", names::subdomain).unwrap_or_default(),
        metadata,
        startup,
        standard,
        ephemeral: ephemeral.into_iter().flatten().collect(),
        volumes,
        document: Value::Null,
    }
}

/// What kubectl and the API server write into every pod, and what only they could act on.
fn for_the_scheduler(fields: &mut Fields<'_>) {
    // Defaults of the API server, and names that change nothing on one node.
    fields.skip(&["schedulerName", "nodeName", "enableServiceLinks", "serviceAccount", "preemptionPolicy"]);
    fields.skip(&["serviceAccountName", "automountServiceAccountToken", "priority", "priorityClassName"]);
    fields.skip(&["tolerations", "os"]);
    fields.meaningless(
        &["nodeSelector", "affinity", "topologySpreadConstraints", "schedulingGates", "overhead"],
        "there is no scheduler",
    );
    fields.meaningless(&["readinessGates", "resourceClaims", "setHostnameAsFQDN", "workloadRef"], CLUSTER);
    fields.meaningless(&["resources", "hostnameOverride"], "it is not stable in Kubernetes");
}

fn init(fields: &mut Fields<'_>, scope: &Scope<'_>) -> Option<Startup> {
    let always = fields.checked("restartPolicy", |text| match text {
        "Always" => Ok(()),
        other => Err(format!("must be Always, which makes it a sidecar, or be left out, not {other:?}")),
    });
    if always.is_some() {
        let ports_known = Container::read(fields, scope);
        let mut container = ports_known?;
        container.lifecycle = lifecycle(fields, &container.ports);
        return Some(Startup::Sidecar(container));
    }
    const WHY: &str = "is possible only with restartPolicy: Always: a plain init container runs to its end";
    fields.refuse(&["livenessProbe", "readinessProbe", "startupProbe", "lifecycle"], WHY);
    Container::read(fields, scope).map(Startup::Init)
}

fn lifecycle(fields: &mut Fields<'_>, ports: &[Port]) -> Lifecycle {
    fields.object("lifecycle", |fields| Lifecycle::read(fields, ports)).unwrap_or_default()
}

/// A plain container, and whether it is marked as a sidecar in the older way.
fn plain(fields: &mut Fields<'_>, scope: &Scope<'_>) -> Option<(Container, bool)> {
    fields
        .refuse(&["restartPolicy"], "is possible for init containers only; the pod's own holds for this one");
    let container = Container::read(fields, scope);
    let ports = container.as_ref().map(|container| container.ports.clone()).unwrap_or_default();
    let read = fields.object("lifecycle", |fields| {
        let sidecar = fields.word("type", &[("Standard", false), ("Sidecar", true)]);
        (Lifecycle::read(fields, &ports), sidecar.unwrap_or(false))
    });
    let (lifecycle, sidecar) = read.unwrap_or_default();
    Some((Container { lifecycle, ..container? }, sidecar))
}

fn dns(fields: &mut Fields<'_>) -> (DnsPolicy, DnsConfig) {
    let policies = [
        ("ClusterFirst", DnsPolicy::Default),
        ("ClusterFirstWithHostNet", DnsPolicy::Default),
        ("Default", DnsPolicy::Default),
        ("None", DnsPolicy::None),
    ];
    let policy = fields.word("dnsPolicy", &policies).unwrap_or_default();
    let config = fields.object("dnsConfig", |fields| {
        let nameservers = fields.strings("nameservers");
        if nameservers.len() > 3 {
            fields.fault("nameservers", "resolvers ask the first three only");
        }
        if let Some(bad) = nameservers.iter().find(|server| server.parse::<IpAddr>().is_err()) {
            fields.fault("nameservers", format!("{bad:?} is no IP address"));
        }
        let searches = fields.strings("searches");
        if searches.len() > 32 || searches.iter().map(String::len).sum::<usize>() > 2048 {
            fields.fault("searches", "at most 32 of together 2048 letters");
        }
        let options = fields.objects("options", |fields| {
            let name = fields.required("name");
            match fields.string("value") {
                Some(value) => format!("{name}:{value}"),
                None => name,
            }
        });
        DnsConfig { nameservers, searches, options }
    });
    let config = config.unwrap_or_default();
    if policy == DnsPolicy::None && config.nameservers.is_empty() {
        fields.fault("dnsConfig.nameservers", "is required with dnsPolicy: None");
    }
    (policy, config)
}

fn host_alias(fields: &mut Fields<'_>) -> Option<HostAlias> {
    let ip = fields.required_as("ip", |text| text.parse().map_err(|_| format!("{text:?} is no IP address")));
    let hostnames = fields.strings("hostnames");
    for name in &hostnames {
        if let Err(problem) = names::subdomain(name) {
            fields.fault("hostnames", problem);
        }
    }
    Some(HostAlias { ip: ip?, hostnames })
}

/// A pod's name may be longer than a host's: cut as kubelet does it.
fn hostname(pod: &str) -> String {
    let cut: String = pod.chars().take(63).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}
