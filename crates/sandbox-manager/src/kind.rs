//! The four kinds of container in a pod.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a container is to its pod (DESIGN, "The four container kinds").
///
/// CRI does not say it, so a container that kubelet or crictl made is [`Standard`](ContainerKind::Standard) unless
/// its annotation `berth.dev/container-kind` says otherwise. The order of the variants is the order in which several
/// containers are stopped together: those nobody depends on first, sidecars last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ContainerKind {
    /// Added to look into a running pod.
    Ephemeral,
    /// Runs to success before the pod's standard containers start.
    Init,
    /// The pod's own work.
    Standard,
    /// Serves the standard containers, so it starts before and stops after them.
    Sidecar,
}

impl ContainerKind {
    /// Annotation of a container, and later of a manifest, that names its kind.
    pub const ANNOTATION: &'static str = "berth.dev/container-kind";

    pub(crate) fn of(annotations: &BTreeMap<String, String>) -> Self {
        match annotations.get(Self::ANNOTATION).map(String::as_str) {
            Some("init") => Self::Init,
            Some("sidecar") => Self::Sidecar,
            Some("ephemeral") => Self::Ephemeral,
            _ => Self::Standard,
        }
    }
}
