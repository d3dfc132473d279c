//! Containers that are added to a pod that runs, to look into it.

use serde_json::Value;

use crate::config::Scope;
use crate::container::Container;
use crate::fields::Fields;
use crate::pod::Metadata;
use crate::volume::Volume;

/// Some of them for one pod: the kind `EphemeralContainers`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EphemeralContainers {
    /// Name and namespace of the pod.
    pub pod: Metadata,
    pub containers: Vec<EphemeralContainer>,
    /// The containers as they were written: items of a Pod's `ephemeralContainers`.
    pub documents: Vec<Value>,
}

/// One of them. It has no ports, probes, resources and hooks, and is never restarted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EphemeralContainer {
    pub container: Container,
    /// The container whose processes it sees; None: its own only, or the pod's where all share them.
    pub target: Option<String>,
}

/// What an ephemeral container cannot have (the API's own list).
const REFUSED: [&str; 8] = [
    "ports",
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
    "resources",
    "resizePolicy",
    "lifecycle",
    "restartPolicy",
];

impl EphemeralContainer {
    /// Reads one item of `ephemeralContainers`.
    pub(crate) fn read(fields: &mut Fields<'_>, scope: &Scope<'_>) -> Option<EphemeralContainer> {
        fields.refuse(&REFUSED, "is not possible for an ephemeral container");
        let target = fields.string("targetContainerName").filter(|name| !name.is_empty());
        if let (Some(target), Some(pod)) = (&target, scope.pod)
            && !pod.names.borrow().contains(target)
        {
            fields.fault("targetContainerName", format!("the pod has no container {target:?}"));
        }
        let container = Container::read(fields, scope)?;
        for mount in &container.mounts {
            if !mount.sub_path.is_empty() || !mount.sub_path_expr.is_empty() {
                fields.fault("volumeMounts", "an ephemeral container cannot mount a part of a volume");
            }
        }
        Some(EphemeralContainer { container, target })
    }
}

impl EphemeralContainers {
    /// Reads a document of the kind. Whether the pod has the volumes and the targets is known only with the pod.
    pub(crate) fn read(fields: &mut Fields<'_>, scope: &Scope<'_>, pod: Metadata) -> EphemeralContainers {
        let containers =
            fields.objects("ephemeralContainers", |fields| EphemeralContainer::read(fields, scope));
        EphemeralContainers {
            pod,
            containers: containers.into_iter().flatten().collect(),
            documents: Vec::new(),
        }
    }
}

impl EphemeralContainer {
    /// What is wrong with it in a pod of these containers and volumes: each a path below the container, and the problem.
    pub fn misfits(&self, names: &[&str], volumes: &[Volume]) -> Vec<(&'static str, String)> {
        let mut misfits = Vec::new();
        if names.contains(&self.container.name.as_str()) {
            misfits.push(("name", format!("the pod has a container {:?}", self.container.name)));
        }
        if let Some(target) = self.target.as_ref().filter(|target| !names.contains(&target.as_str())) {
            misfits.push(("targetContainerName", format!("the pod has no container {target:?}")));
        }
        for mount in &self.container.mounts {
            if !volumes.iter().any(|volume| volume.name == mount.volume) {
                misfits.push(("volumeMounts", format!("the pod has no volume {:?}", mount.volume)));
            }
        }
        misfits
    }
}
