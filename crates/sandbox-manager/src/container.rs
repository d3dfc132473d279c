//! A container: what is known of it, its state, and its durable record.

use std::sync::Arc;

use berth_cri::{
    berth::v1::{
        ContainerCreated, ContainerCreating, ContainerEnded, ContainerRecord, ContainerRunning,
        container_record::State as RecordState,
    },
    runtime::v1::{ContainerConfig, LinuxContainerResources, LinuxContainerUser},
};
use berth_store::{DecodeError, Record};
use prost::Message as _;

use crate::{ContainerId, ContainerKind, SandboxId, UnixNanos};

/// A container. Everything here is durable; what is in flight lives in the pod's task.
#[derive(Clone, Debug)]
pub struct Container {
    /// Its id.
    pub id: ContainerId,
    /// The pod it belongs to.
    pub sandbox_id: SandboxId,
    /// As CreateContainer sent it; given back unchanged.
    pub config: Arc<ContainerConfig>,
    /// The image it was made from.
    pub image: ImageIdentity,
    /// Strictly growing per daemon, so that two attempts of one name never tie.
    pub created_at: UnixNanos,
    /// Absolute path of the CRI log file; empty when the config asked for none.
    pub log_path: String,
    /// What StopContainer sends first: a signal number of this machine.
    pub stop_signal: i32,
    /// User and groups the first process runs as.
    pub user: LinuxContainerUser,
    /// Limits as applied.
    pub resources: LinuxContainerResources,
    /// Place in the order of starts within the pod; 0 when never started.
    pub start_order: u64,
    /// Where it is in its life.
    pub state: ContainerState,
}

/// The names of the image a container was made from. They stay known after the image was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageIdentity {
    /// `sha256:<config digest>`.
    pub id: String,
    /// `repo@digest`, or the id when the image has no digest.
    pub reference: String,
    /// What the user called it.
    pub name: String,
}

/// A container's life, in the order it passes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// An intent on disk: being made, not listed.
    Creating,
    /// Set up to its exec gate.
    Created {
        /// Of the process that waits at the gate.
        pid: i32,
    },
    /// Its program was executed.
    Running {
        /// Of its first process.
        pid: i32,
        /// When the program was executed.
        started_at: UnixNanos,
    },
    /// Ended, or never came to run.
    Exited(Exit),
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// 0 when it never ran.
    pub started_at: UnixNanos,
    /// When it ended.
    pub finished_at: UnixNanos,
    /// 128 + signal for one that a signal ended.
    pub code: i32,
    /// One word for machines: `Completed`, `Error`, `OOMKilled`, `StartError`, `Unknown`.
    pub reason: String,
    /// A sentence for people; empty when the reason says it all.
    pub message: String,
}

impl Exit {
    /// Exit code of a container whose end nobody saw, as other runtimes report it.
    const CODE_UNKNOWN: i32 = 255;
    /// Exit code of a container whose program could not be started, as other runtimes report it.
    const CODE_START_ERROR: i32 = 128;

    /// An end that nobody saw.
    pub(crate) fn unseen(started_at: UnixNanos, message: &str) -> Self {
        Self {
            started_at,
            finished_at: crate::now(),
            code: Self::CODE_UNKNOWN,
            reason: "Unknown".to_owned(),
            message: message.to_owned(),
        }
    }

    /// A start that failed.
    pub(crate) fn not_started(message: String) -> Self {
        Self {
            started_at: 0,
            finished_at: crate::now(),
            code: Self::CODE_START_ERROR,
            reason: "StartError".to_owned(),
            message,
        }
    }

    /// What the supervisor saw.
    pub(crate) fn seen(exit: &berth_cri::berth::v1::ContainerExited) -> Self {
        let reason = match exit.exit_code {
            // Also of one that itself ended well: to kubelet an init container with it has failed.
            _ if exit.oom_killed => "OOMKilled",
            0 => "Completed",
            _ => "Error",
        };
        Self {
            started_at: exit.started_at,
            finished_at: exit.finished_at,
            code: exit.exit_code,
            reason: reason.to_owned(),
            message: String::new(),
        }
    }
}

impl Container {
    /// Name and attempt, by which CRI tells a pod's containers apart.
    #[must_use]
    pub fn name_and_attempt(&self) -> (&str, u32) {
        self.config.metadata.as_ref().map_or(("", 0), |meta| (meta.name.as_str(), meta.attempt))
    }

    /// Its kind, as far as CRI lets it be known.
    #[must_use]
    pub fn kind(&self) -> ContainerKind {
        ContainerKind::of(&self.config.annotations)
    }

    /// The pid of its first process while there is one.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        match self.state {
            ContainerState::Created { pid } | ContainerState::Running { pid, .. } => Some(pid),
            ContainerState::Creating | ContainerState::Exited(_) => None,
        }
    }

    /// Path of its cgroup below each hierarchy's root.
    #[must_use]
    pub fn cgroup_path(&self, cgroup_parent: &str) -> String {
        self.id.cgroup_path(cgroup_parent)
    }

    /// The same container in another state.
    #[must_use]
    pub(crate) fn with_state(&self, state: ContainerState) -> Self {
        Self { state, ..self.clone() }
    }

    /// When its program was executed; 0 before.
    #[must_use]
    pub fn started_at(&self) -> UnixNanos {
        match &self.state {
            ContainerState::Running { started_at, .. } => *started_at,
            ContainerState::Exited(exit) => exit.started_at,
            ContainerState::Creating | ContainerState::Created { .. } => 0,
        }
    }
}

impl Record for Container {
    const TABLE: &'static str = "container";
    const VERSION: u8 = 1;

    fn encode(&self) -> Vec<u8> {
        let state = match self.state.clone() {
            ContainerState::Creating => RecordState::Creating(ContainerCreating {}),
            ContainerState::Created { pid } => RecordState::Created(ContainerCreated { pid }),
            ContainerState::Running { pid, started_at } => {
                RecordState::Running(ContainerRunning { pid, started_at })
            }
            ContainerState::Exited(exit) => RecordState::Ended(ContainerEnded {
                started_at: exit.started_at,
                finished_at: exit.finished_at,
                exit_code: exit.code,
                reason: exit.reason,
                message: exit.message,
            }),
        };
        ContainerRecord {
            id: self.id.to_string(),
            sandbox_id: self.sandbox_id.to_string(),
            config: Some(ContainerConfig::clone(&self.config)),
            image_id: self.image.id.clone(),
            image_ref: self.image.reference.clone(),
            image_name: self.image.name.clone(),
            created_at: self.created_at,
            log_path: self.log_path.clone(),
            stop_signal: self.stop_signal,
            user: Some(self.user.clone()),
            resources: Some(self.resources.clone()),
            start_order: self.start_order,
            state: Some(state),
        }
        .encode_to_vec()
    }

    fn decode(version: u8, bytes: &[u8]) -> Result<Self, DecodeError> {
        if version != Self::VERSION {
            return Err(DecodeError::UnknownVersion(version));
        }
        let record = ContainerRecord::decode(bytes).map_err(|err| DecodeError::Damaged(Box::new(err)))?;
        let missing = |what: &str| DecodeError::Damaged(format!("no {what}").into());
        let state = match record.state.ok_or_else(|| missing("state"))? {
            RecordState::Creating(_) => ContainerState::Creating,
            RecordState::Created(created) => ContainerState::Created { pid: created.pid },
            RecordState::Running(running) => {
                ContainerState::Running { pid: running.pid, started_at: running.started_at }
            }
            RecordState::Ended(ended) => ContainerState::Exited(Exit {
                started_at: ended.started_at,
                finished_at: ended.finished_at,
                code: ended.exit_code,
                reason: ended.reason,
                message: ended.message,
            }),
        };
        Ok(Self {
            id: ContainerId::from_record(&record.id),
            sandbox_id: SandboxId::from_record(&record.sandbox_id),
            config: Arc::new(record.config.ok_or_else(|| missing("config"))?),
            image: ImageIdentity {
                id: record.image_id,
                reference: record.image_ref,
                name: record.image_name,
            },
            created_at: record.created_at,
            log_path: record.log_path,
            stop_signal: record.stop_signal,
            user: record.user.unwrap_or_default(),
            resources: record.resources.unwrap_or_default(),
            start_order: record.start_order,
            state,
        })
    }
}
