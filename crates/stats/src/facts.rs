//! What this crate has to be told about a pod or container. berthd fills it from its records.

use std::{collections::BTreeMap, path::PathBuf};

use berth_cri::runtime::v1::{LinuxContainerResources, PodSandboxMetadata};

use crate::CgroupFolders;

/// Labels or annotations.
pub type Strings = BTreeMap<String, String>;

/// A running container.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerFacts {
    pub id: String,
    /// As in its metadata.
    pub name: String,
    /// The restart count.
    pub attempt: u32,
    /// Of the pod it belongs to.
    pub pod: PodSandboxMetadata,
    pub labels: Strings,
    pub annotations: Strings,
    /// The name by which the image was asked for.
    pub image: String,
    pub cgroup: CgroupFolders,
    /// The first process, as the host numbers it.
    pub pid: Option<i32>,
    /// As they were sent, or as the last update left them. On v2 too the shares as sent, never made of the weight.
    pub resources: Option<LinuxContainerResources>,
    /// Nanoseconds since 1970; 0: not started yet.
    pub started_at: i64,
    /// Where the container's own files lie; `None` for a read-only root.
    pub layer: Option<WritableLayer>,
}

/// A container's writable layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WritableLayer {
    /// The overlay's upper folder.
    pub folder: PathBuf,
    /// A path on the same file system that kubelet can ask for its device and free space.
    pub mountpoint: PathBuf,
}

/// A pod that is ready.
#[derive(Clone, Debug, PartialEq)]
pub struct PodFacts {
    pub id: String,
    pub metadata: PodSandboxMetadata,
    pub labels: Strings,
    pub annotations: Strings,
    /// The pod's own cgroup, above its containers'. `None` where the caller gave none, or one that the pod shares:
    /// then the pod is the sum of its containers.
    pub cgroup: Option<CgroupFolders>,
    /// `None` for a pod on the host's network: the host's traffic is not the pod's.
    pub network: Option<PodNetwork>,
    /// Nanoseconds since 1970.
    pub created_at: i64,
}

/// How to see into a pod's network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodNetwork {
    /// A process in the namespace.
    pub pid: i32,
    /// "eth0", or what CNI said.
    pub default_interface: String,
}
