//! A pod's sandbox: what is known of it; how it is made (`bring_up`), and the one way it is ended (`tear_down`).

mod bring_up;
mod check;
mod tear_down;

use std::{net::IpAddr, sync::Arc};

use berth_cri::{
    berth::v1::{
        SandboxRecord,
        sandbox_record::{Owner as RecordOwner, Phase},
    },
    runtime::v1::{NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata},
};
use berth_store::{DecodeError, Record};
use prost::Message as _;

pub(crate) use self::{
    bring_up::{Up, bring_up},
    check::{cgroup_parent, check_sysctls},
    tear_down::{remove_cgroup, tear_down},
};
use crate::{Owner, SandboxId, UnixNanos, user_namespace::PodIds};

/// A pod sandbox. Everything here is durable.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// Its id.
    pub id: SandboxId,
    /// Who made it, and alone sees it.
    pub owner: Owner,
    /// As RunPodSandbox sent it; given back unchanged.
    pub config: Arc<PodSandboxConfig>,
    /// Name of the runtime handler; empty is the default one.
    pub handler: String,
    /// Grows with each sandbox of this daemon.
    pub created_at: UnixNanos,
    /// Where it is in its life.
    pub phase: SandboxPhase,
    /// Primary first; empty in the host's network.
    pub ips: Vec<IpAddr>,
    /// The boot it was made in.
    pub boot_id: String,
    /// Its containers' cgroups lie below this path of each hierarchy.
    pub cgroup_parent: String,
}

/// A sandbox's life, in the order it passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SandboxPhase {
    /// An intent on disk: being made, not listed.
    Creating,
    /// Its namespaces and network stand.
    Ready,
    /// Its processes are gone.
    NotReady,
}

impl SandboxPhase {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Creating => "being created",
            Self::Ready => "ready",
            Self::NotReady => "stopped",
        }
    }
}

impl Sandbox {
    /// Name, namespace, uid and attempt; empty ones when the config has none.
    #[must_use]
    pub fn metadata(&self) -> PodSandboxMetadata {
        self.config.metadata.clone().unwrap_or_default()
    }

    /// The namespace options; CRI's defaults when the config has none.
    #[must_use]
    pub fn namespaces(&self) -> NamespaceOption {
        let security = self.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        security.and_then(|security| security.namespace_options.clone()).unwrap_or_default()
    }

    /// Whether it lives in the node's own network.
    #[must_use]
    pub fn host_network(&self) -> bool {
        self.namespaces().network() == NamespaceMode::Node
    }

    pub(crate) fn host_ipc(&self) -> bool {
        self.namespaces().ipc() == NamespaceMode::Node
    }

    /// Its user and group ids, when it does not use the host's. What cannot be meant was refused before it was made.
    pub(crate) fn user_ids(&self) -> Option<PodIds> {
        PodIds::of(&self.config).ok().flatten()
    }

    /// Whether its containers share one pid namespace. Only an explicit namespace option says so: the enum's zero
    /// value is POD, but a pod without options has a pid namespace per container.
    pub(crate) fn shared_pid(&self) -> bool {
        let security = self.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        security
            .and_then(|security| security.namespace_options.as_ref())
            .is_some_and(|options| options.pid() == NamespaceMode::Pod)
    }

    /// Whether berth made the cgroup that its containers lie in, and so has to remove it.
    fn owns_cgroup(&self) -> bool {
        self.cgroup_parent.ends_with(self.id.as_str())
    }

    /// "pod sandbox 0123456789abc (namespace/name)", for messages.
    pub(crate) fn label(&self) -> String {
        let meta = self.metadata();
        format!("pod sandbox {} ({}/{})", self.id.short(), meta.namespace, meta.name)
    }

    #[must_use]
    pub(crate) fn with_phase(&self, phase: SandboxPhase) -> Self {
        Self { phase, ..self.clone() }
    }
}

impl Record for Sandbox {
    const TABLE: &'static str = "sandbox";
    const VERSION: u8 = 1;

    fn encode(&self) -> Vec<u8> {
        let phase = match self.phase {
            SandboxPhase::Creating => Phase::Creating,
            SandboxPhase::Ready => Phase::Ready,
            SandboxPhase::NotReady => Phase::NotReady,
        };
        let owner = match self.owner {
            Owner::Cri => RecordOwner::Cri,
            Owner::Manifest => RecordOwner::Manifest,
        };
        SandboxRecord {
            id: self.id.to_string(),
            config: Some(PodSandboxConfig::clone(&self.config)),
            handler: self.handler.clone(),
            created_at: self.created_at,
            phase: phase.into(),
            ips: self.ips.iter().map(IpAddr::to_string).collect(),
            boot_id: self.boot_id.clone(),
            cgroup_parent: self.cgroup_parent.clone(),
            owner: owner.into(),
        }
        .encode_to_vec()
    }

    fn decode(version: u8, bytes: &[u8]) -> Result<Self, DecodeError> {
        if version != Self::VERSION {
            return Err(DecodeError::UnknownVersion(version));
        }
        let damaged = |err| DecodeError::Damaged(err);
        let record = SandboxRecord::decode(bytes).map_err(|err| damaged(err.into()))?;
        let phase = match record.phase() {
            Phase::Creating => SandboxPhase::Creating,
            Phase::Ready => SandboxPhase::Ready,
            Phase::NotReady => SandboxPhase::NotReady,
        };
        let ips = record.ips.iter().map(|ip| ip.parse()).collect::<Result<_, _>>();
        Ok(Self {
            id: SandboxId::from_record(&record.id),
            owner: match record.owner() {
                RecordOwner::Cri => Owner::Cri,
                RecordOwner::Manifest => Owner::Manifest,
            },
            config: Arc::new(record.config.ok_or_else(|| damaged("no config".into()))?),
            handler: record.handler,
            created_at: record.created_at,
            phase,
            ips: ips.map_err(|err| damaged(Box::new(err)))?,
            boot_id: record.boot_id,
            cgroup_parent: record.cgroup_parent,
        })
    }
}
