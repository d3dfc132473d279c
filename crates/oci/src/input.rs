//! What the caller finds out and hands in: this crate reads nothing itself.

use crate::{ImageDefaults, ResolvedUser, seccomp};
use berth_cri::runtime::v1::{ContainerConfig, IdMapping, PodSandboxConfig};
use oci_spec::runtime::Capabilities;
use std::path::{Path, PathBuf};

/// Everything a container's spec is made from.
#[derive(Clone, Copy, Debug)]
pub struct ContainerInput<'a> {
    pub sandbox_id: &'a str,
    pub sandbox: &'a PodSandboxConfig,
    pub container: &'a ContainerConfig,
    pub image: &'a ImageDefaults,
    /// From [`crate::resolve_user`].
    pub user: &'a ResolvedUser,
    pub host: &'a HostFacts,
    pub namespaces: &'a PodNamespaces,
    /// As `linux.cgroupsPath` of the OCI spec: `/kubepods/burstable/podX/<id>`.
    pub cgroups_path: &'a str,
    /// Where the root filesystem is mounted, or will be for an external runtime.
    pub rootfs: &'a Path,
    pub files: &'a PodFiles,
    /// The profile that [`seccomp::requested`] named, read.
    pub seccomp: seccomp::Profile<'a>,
    /// `container.devices` looked up on the host and folders expanded; for a privileged container followed by the
    /// host's own device nodes. Of two with the same path the first counts.
    pub devices: &'a [ResolvedDevice],
    /// Host folders for the image's volumes, as far as [`crate::image_volumes`] asks for them.
    pub volumes: &'a [ImageVolume],
}

/// What is true of this host and of the daemon's own rights on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// The daemon's bounding set ([`crate::capabilities_from_mask`] of its CapBnd): containers get no more.
    pub bounding: Capabilities,
    /// Swap can be limited (`memory.memsw.limit_in_bytes`, `memory.swap.max`).
    pub swap: bool,
    /// There is a hugetlb controller.
    pub hugetlb: bool,
    /// The kernel has seccomp filters.
    pub seccomp: bool,
    pub apparmor: AppArmor,
    /// SELinux is enabled (enforcing or not).
    pub selinux: bool,
    /// The host's name: `$HOSTNAME` of pods in its UTS namespace.
    pub hostname: String,
    /// Major and minor number of the kernel's version.
    pub kernel: (u32, u32),
    /// How many files a container's process may have open.
    pub open_files: OpenFiles,
}

/// RLIMIT_NOFILE, getrlimit(2): the daemon raises its own, and containers are not to inherit that. Some programs walk all
/// descriptors up to the soft limit, or reserve memory for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFiles {
    pub soft: u64,
    pub hard: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AppArmor {
    Disabled,
    /// Enabled. `default_profile` is the loaded profile that "RuntimeDefault" means; without one such containers run
    /// as the daemon itself does.
    Enabled {
        default_profile: Option<String>,
    },
}

/// The namespaces of the pod. Each path is a namespace file (`/proc/PID/ns/net`); `None` is the host's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodNamespaces {
    pub network: Option<PathBuf>,
    pub ipc: Option<PathBuf>,
    pub uts: Option<PathBuf>,
    pub pid: PidNamespace,
    pub user: Option<UserNamespace>,
}

/// The pod's user namespace, and its ids as CRI gives them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserNamespace {
    pub path: PathBuf,
    pub uids: Vec<IdMapping>,
    pub gids: Vec<IdMapping>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PidNamespace {
    /// The container's own: its first process is pid 1.
    New,
    Host,
    /// An existing one: the pod's, or another container's.
    Path(PathBuf),
}

/// Files of the pod on the host that every container sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFiles {
    pub resolv_conf: PathBuf,
    pub hostname: PathBuf,
    /// The pod's /dev/shm; the host's with host IPC.
    pub shm: PathBuf,
    /// Used where the request mounts nothing at /etc/hosts, as kubelet always does.
    pub hosts: Option<PathBuf>,
}

/// A device node as the container will have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedDevice {
    /// In the container.
    pub path: PathBuf,
    pub kind: DeviceKind,
    pub major: i64,
    pub minor: i64,
    /// Permission bits of the node.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// What the cgroup lets the container do: some of `r`, `w`, `m`.
    pub permissions: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    Character,
    Block,
}

/// A folder of the host that is mounted where the image declares a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageVolume {
    pub container_path: String,
    pub host_path: PathBuf,
}
