//! What readers see of a pod.

use std::{collections::BTreeMap, sync::Arc};

use berth_supervisor::client::Supervisor;

use crate::{Container, ContainerId, Sandbox, Timeline};

/// A pod at one moment: replaced whole at each change, so a reader never sees half of one.
#[derive(Clone, Debug)]
pub struct PodView {
    /// The sandbox.
    pub sandbox: Arc<Sandbox>,
    /// Its containers, without those being made.
    pub containers: BTreeMap<ContainerId, Arc<Container>>,
    /// What its start-up waited for; empty for a pod that an earlier daemon made.
    pub timeline: Timeline,
    /// Reaches its processes; `None` once they are gone.
    pub(crate) supervisor: Option<Supervisor>,
}

impl PodView {
    /// Pid of the pod's supervisor, which holds its namespaces.
    #[must_use]
    pub fn supervisor_pid(&self) -> Option<i32> {
        self.supervisor.as_ref().map(Supervisor::pid)
    }
}
