//! What a pod is to be, as far as its sequence goes.

use serde::{Deserialize, Serialize};

use super::Time;
use crate::ContainerKind;

/// The containers of a pod and the rules for them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Init containers and sidecars, in their order.
    pub startup: Vec<PlannedContainer>,
    /// Those that start together afterwards.
    pub standard: Vec<PlannedContainer>,
    pub restart_policy: RestartPolicy,
    /// From the first preStop to SIGKILL, for all of the pod together.
    pub grace: Time,
    /// The pod has failed when it is older.
    pub active_deadline: Option<Time>,
}

/// One container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedContainer {
    /// Unique within the pod.
    pub name: String,
    pub kind: ContainerKind,
    pub post_start: bool,
    pub pre_stop: bool,
    pub probes: PlannedProbes,
}

/// What is asked of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedProbes {
    pub startup: Option<PlannedProbe>,
    pub liveness: Option<PlannedProbe>,
    pub readiness: Option<PlannedProbe>,
}

/// How often, and what the answers mean.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedProbe {
    pub initial_delay: Time,
    pub period: Time,
    /// In a row; at least 1.
    pub success_threshold: u32,
    /// In a row; at least 1.
    pub failure_threshold: u32,
    /// In place of the pod's, when this probe ends the container.
    pub grace: Option<Time>,
}

/// Which of a container's probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ProbeKind {
    Startup,
    Liveness,
    Readiness,
}

/// What happens when a standard container ends, or an init container fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}
