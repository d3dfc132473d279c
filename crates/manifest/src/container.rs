//! One container of a pod.

use std::collections::HashSet;

use crate::config::{Scope, Siblings};
use crate::env::{self, Env};
use crate::fields::Fields;
use crate::names;
use crate::probe::{Lifecycle, Probes};
use crate::resources::Resources;
use crate::security::Security;

/// A container, of whatever kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    pub name: String,
    pub image: String,
    pub pull_policy: PullPolicy,
    /// In place of the image's entrypoint; empty: the image's. `$(NAME)` stands for a variable.
    pub command: Vec<String>,
    /// In place of the image's arguments. `$(NAME)` stands for a variable.
    pub args: Vec<String>,
    /// Empty: the image's.
    pub working_dir: String,
    pub env: Vec<Env>,
    pub ports: Vec<Port>,
    pub mounts: Vec<Mount>,
    pub resources: Resources,
    pub security: Security,
    pub probes: Probes,
    pub lifecycle: Lifecycle,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
    pub termination_message: TerminationMessage,
}

/// When an image is pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

impl PullPolicy {
    /// Without one an image is pulled always when its tag is `latest`, or none.
    pub(crate) fn read(fields: &mut Fields<'_>, key: &'static str, image: &str) -> PullPolicy {
        let words = [("Always", Self::Always), ("IfNotPresent", Self::IfNotPresent), ("Never", Self::Never)];
        fields.word(key, &words).unwrap_or_else(|| {
            let last = image.rsplit('/').next().unwrap_or_default();
            match last.split_once(':').map(|(_, tag)| tag) {
                _ if last.contains('@') => Self::IfNotPresent,
                None | Some("latest") => Self::Always,
                Some(_) => Self::IfNotPresent,
            }
        })
    }
}

/// A port that a container listens on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub name: Option<String>,
    pub container_port: u16,
    /// The same port of the node leads there.
    pub host_port: Option<u16>,
    /// Which of the node's addresses; empty: all.
    pub host_ip: String,
    pub protocol: Protocol,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
    Sctp,
}

/// A volume in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// One of the pod's volumes.
    pub volume: String,
    pub path: String,
    pub read_only: bool,
    /// Also for what is mounted below.
    pub recursive_read_only: RecursiveReadOnly,
    /// A path inside the volume; empty: all of it.
    pub sub_path: String,
    /// As `sub_path`, with `$(NAME)` for variables.
    pub sub_path_expr: String,
    pub propagation: MountPropagation,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RecursiveReadOnly {
    #[default]
    Disabled,
    IfPossible,
    Enabled,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MountPropagation {
    #[default]
    None,
    HostToContainer,
    Bidirectional,
}

/// What a container leaves as its last words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TerminationMessage {
    /// The file in the container.
    pub path: String,
    /// The end of its log, when it failed and wrote no file.
    pub fall_back_to_logs: bool,
}

impl Container {
    /// Reads the fields that all kinds have.
    pub(crate) fn read(fields: &mut Fields<'_>, scope: &Scope<'_>) -> Option<Container> {
        let name = fields.required_as("name", names::label);
        let image = fields.required("image");
        let pull_policy = PullPolicy::read(fields, "imagePullPolicy", &image);
        let ports = fields.objects("ports", Port::read).into_iter().flatten().collect::<Vec<_>>();
        let probes = Probes::read(fields, &ports);
        fields.meaningless(&["resizePolicy"], "resources are not changed while the pod runs");
        fields.meaningless(&["volumeDevices"], "there are no block volumes");
        fields.meaningless(&["restartPolicyRules"], "it is not stable in Kubernetes");
        let mounts: Vec<Mount> = fields
            .objects("volumeMounts", |fields| Mount::read(fields, scope))
            .into_iter()
            .flatten()
            .collect();
        let mut places = HashSet::new();
        for mount in &mounts {
            if !places.insert(mount.path.trim_end_matches('/')) {
                fields.fault("volumeMounts", format!("{:?} is mounted twice", mount.path));
            }
        }
        if let Some(siblings) = scope.pod {
            siblings.take(fields, name.as_deref(), &ports);
        }
        Some(Container {
            image,
            pull_policy,
            command: fields.strings("command"),
            args: fields.strings("args"),
            working_dir: fields.string("workingDir").unwrap_or_default(),
            env: env::read(fields, scope),
            mounts,
            resources: Resources::read(fields),
            security: Security::read(fields),
            probes,
            ports,
            lifecycle: Lifecycle::default(),
            stdin: fields.flag("stdin"),
            stdin_once: fields.flag("stdinOnce"),
            tty: fields.flag("tty"),
            termination_message: TerminationMessage::read(fields),
            name: name?,
        })
    }
}

impl TerminationMessage {
    fn read(fields: &mut Fields<'_>) -> TerminationMessage {
        let path = fields.checked("terminationMessagePath", names::absolute_path);
        let policies = [("File", false), ("FallbackToLogsOnError", true)];
        TerminationMessage {
            path: path.unwrap_or_else(|| "/dev/termination-log".to_owned()),
            fall_back_to_logs: fields.word("terminationMessagePolicy", &policies).unwrap_or(false),
        }
    }
}

impl Port {
    fn read(fields: &mut Fields<'_>) -> Option<Port> {
        let number = |fields: &mut Fields<'_>, key| {
            fields.integer(key, 1..=65535).and_then(|port| u16::try_from(port).ok())
        };
        fields.demand("containerPort");
        let container_port = number(fields, "containerPort");
        let host_port = number(fields, "hostPort");
        let host_ip = fields.checked("hostIP", |text| match text.parse::<std::net::IpAddr>() {
            Ok(_) => Ok(text.to_owned()),
            Err(_) => Err(format!("{text:?} is no IP address")),
        });
        let protocols = [("TCP", Protocol::Tcp), ("UDP", Protocol::Udp), ("SCTP", Protocol::Sctp)];
        Some(Port {
            name: fields.checked("name", names::port),
            host_port,
            host_ip: host_ip.unwrap_or_default(),
            protocol: fields.word("protocol", &protocols).unwrap_or_default(),
            container_port: container_port?,
        })
    }
}

impl Siblings<'_> {
    /// Takes a container's name and its ports of the host, and notes which another one has.
    fn take(&self, fields: &Fields<'_>, name: Option<&str>, ports: &[Port]) {
        if let Some(name) = name
            && !self.names.borrow_mut().insert(name.to_owned())
        {
            fields.fault("name", format!("two containers have the name {name:?}"));
        }
        for port in ports {
            let host_port = port.host_port.or(self.host_network.then_some(port.container_port));
            let Some(host_port) = host_port else { continue };
            if self.host_network && host_port != port.container_port {
                fields.fault(
                    "ports",
                    format!("with hostNetwork, hostPort {host_port} must be the containerPort"),
                );
            }
            if !self.host_ports.borrow_mut().insert((port.host_ip.clone(), host_port, port.protocol)) {
                fields.fault("ports", format!("hostPort {host_port} is taken twice"));
            }
        }
    }
}

impl Mount {
    fn read(fields: &mut Fields<'_>, scope: &Scope<'_>) -> Option<Mount> {
        let volume = fields.required("name");
        let is_there = |siblings: &Siblings<'_>| siblings.volumes.iter().any(|found| found.name == volume);
        if !volume.is_empty() && !scope.pod.is_none_or(is_there) {
            fields.fault("name", format!("the pod has no volume {volume:?}"));
        }
        let path = fields.required_as("mountPath", |text| match text.contains(':') {
            false => names::absolute_path(text),
            true => Err(format!("{text:?} must not contain a colon")),
        });
        let read_only = fields.flag("readOnly");
        let recursive = [
            ("Disabled", RecursiveReadOnly::Disabled),
            ("IfPossible", RecursiveReadOnly::IfPossible),
            ("Enabled", RecursiveReadOnly::Enabled),
        ];
        let recursive_read_only = fields.word("recursiveReadOnly", &recursive).unwrap_or_default();
        if recursive_read_only != RecursiveReadOnly::Disabled && !read_only {
            fields.fault("recursiveReadOnly", "needs readOnly: true");
        }
        let below = |text: &str| if text.is_empty() { Ok(String::new()) } else { names::path_below(text) };
        let sub_path = fields.checked("subPath", below).unwrap_or_default();
        let sub_path_expr = fields.checked("subPathExpr", below).unwrap_or_default();
        if !sub_path.is_empty() && !sub_path_expr.is_empty() {
            fields.fault("subPathExpr", "cannot be given together with subPath");
        }
        let propagations = [
            ("None", MountPropagation::None),
            ("HostToContainer", MountPropagation::HostToContainer),
            ("Bidirectional", MountPropagation::Bidirectional),
        ];
        Some(Mount {
            volume,
            path: path?,
            read_only,
            recursive_read_only,
            sub_path,
            sub_path_expr,
            propagation: fields.word("mountPropagation", &propagations).unwrap_or_default(),
        })
    }
}
