//! What all pods share: the stores and services, the node's facts, the runtime handlers.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use berth_image::Images;
use berth_launcher::{
    cgroup::{Cgroup, Cgroups, Version},
    compile::{CapSet, CompileInput},
};
use berth_network::Network;
use berth_nri::Nri;
use berth_oci::{AppArmor, HostFacts, OpenFiles, capabilities_from_mask, seccomp};
use berth_store::{Batch, Store, StoreError};
use berth_supervisor::client::SupervisorBinary;

use oci_spec::runtime::{LinuxSeccomp, Spec};
use sha2::{Digest as _, Sha256};

use crate::{Container, SandboxId, events::Bus, files::PodDir, user_namespace::Support};

/// How containers of a handler are launched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handler {
    /// By berth's own launcher.
    Native,
    /// By an OCI runtime binary.
    External {
        /// The binary.
        path: PathBuf,
    },
}

/// What the manager is told at start.
#[derive(Clone, Debug)]
pub struct ManagerConfig {
    /// Survives a reboot.
    pub root: PathBuf,
    /// Does not.
    pub state: PathBuf,
    /// The berth-pod binary to install.
    pub supervisor: PathBuf,
    /// Cgroup, below each hierarchy's root, for pods that name no parent.
    pub cgroup_root: String,
    /// By name; the default one also under the empty name.
    pub handlers: BTreeMap<String, Handler>,
    /// Most bytes that ExecSync keeps of each of stdout and stderr.
    pub exec_output_limit: usize,
    /// Folders with CDI spec files; a later one wins.
    pub cdi_spec_dirs: Vec<PathBuf>,
    /// The criu binary; it need not be there.
    pub criu: PathBuf,
    /// For each run of an external OCI runtime.
    pub external_timeout: Duration,
    /// Limit on open files of containers.
    pub open_files: OpenFiles,
}

/// The node lacks something that the manager cannot do without.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A folder or file below root or state.
    #[error("cannot {action} {}", path.display())]
    Path {
        /// "create", "read".
        action: &'static str,
        /// Of what.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// No usable cgroup hierarchy.
    #[error("cannot use this machine's cgroups")]
    Cgroups(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The daemon's own capabilities cannot be read.
    #[error("cannot read the daemon's own capabilities")]
    Capabilities(#[source] io::Error),
    /// The berth-pod binary.
    #[error("cannot install the supervisor")]
    Supervisor(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The records.
    #[error("cannot read the pods' records")]
    Store(#[from] StoreError),
}

#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) config: ManagerConfig,
    pub(crate) images: Images,
    pub(crate) network: Network,
    /// Absent when plugins are not wanted.
    pub(crate) nri: Option<Nri>,
    pub(crate) cgroups: Cgroups,
    pub(crate) supervisor: SupervisorBinary,
    pub(crate) facts: HostFacts,
    pub(crate) boot_id: String,
    capabilities: CapSet,
    /// By handler.
    pub(crate) user_namespaces: BTreeMap<String, Support>,
    pub(crate) filters: FilterCache,
    pub(crate) bus: Bus,
    /// Held by the one checkpoint that is being taken.
    pub(crate) checkpoints: tokio::sync::Mutex<()>,
    store: Store,
    /// The last created_at handed out: they grow, whatever the wall clock does.
    last_created: Mutex<i64>,
}

impl Host {
    pub(crate) fn new(
        config: ManagerConfig,
        images: Images,
        network: Network,
        store: Store,
        user_namespaces: BTreeMap<String, Support>,
        nri: Option<Nri>,
    ) -> Result<Self, HostError> {
        let pods = config.state.join("pods");
        fs::create_dir_all(&pods).map_err(|source| HostError::Path {
            action: "create",
            path: pods,
            source,
        })?;
        let cgroups = Cgroups::detect().map_err(|err| HostError::Cgroups(Box::new(err)))?;
        let supervisor = SupervisorBinary::install(&config.supervisor, &config.root.join("bin"))
            .map_err(|err| HostError::Supervisor(Box::new(err)))?;
        let facts = facts(&cgroups, config.open_files)?;
        let capabilities = CapSet::of_this_process().map_err(HostError::Capabilities)?;
        Ok(Self {
            boot_id: read_line("/proc/sys/kernel/random/boot_id")?,
            config,
            images,
            network,
            nri,
            cgroups,
            supervisor,
            facts,
            capabilities,
            user_namespaces,
            filters: FilterCache::default(),
            bus: Bus::default(),
            checkpoints: tokio::sync::Mutex::new(()),
            store,
            last_created: Mutex::new(0),
        })
    }

    pub(crate) fn pod_dir(&self, id: &SandboxId) -> PodDir {
        PodDir::new(&self.config.state.join("pods"), id)
    }

    /// The OCI spec that a container was made from.
    ///
    /// # Errors
    /// `NotFound` once its pod is stopped.
    pub(crate) async fn spec_of(&self, container: &Container) -> io::Result<Spec> {
        let path = self.pod_dir(&container.sandbox_id).spec(&container.id);
        Ok(serde_json::from_slice(&tokio::fs::read(path).await?)?)
    }

    /// What every plan is compiled with.
    pub(crate) fn compile_input<'a>(
        &self,
        cgroup: &'a Cgroup,
        filter: Option<&'a Arc<seccomp::Filter>>,
        hook_state: Option<&'a str>,
    ) -> CompileInput<'a> {
        CompileInput {
            cgroup,
            seccomp_bpf: filter.map(|filter| filter.program.as_slice()),
            hook_state,
            host_caps: self.capabilities,
        }
    }

    /// The store for reading at start-up.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Writes records; they survive the daemon's death when this returns.
    pub(crate) async fn persist(&self, batch: Batch) -> Result<(), StoreError> {
        let store = self.store.clone();
        blocking(move || store.write(batch)).await
    }

    /// A creation time later than all before: kubelet sorts attempts by it.
    pub(crate) fn created_now(&self) -> i64 {
        let mut last = self.last_created.lock().unwrap_or_else(PoisonError::into_inner);
        *last = crate::now().max(*last + 1);
        *last
    }

    /// Takes note of a time that an earlier daemon handed out.
    pub(crate) fn created_before(&self, at: i64) {
        let mut last = self.last_created.lock().unwrap_or_else(PoisonError::into_inner);
        *last = at.max(*last);
    }
}

fn facts(cgroups: &Cgroups, open_files: OpenFiles) -> Result<HostFacts, HostError> {
    let status = read("/proc/self/status")?;
    let bounding = status
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    let uname = rustix::system::uname();
    let controllers = Controllers::of(cgroups)?;
    Ok(HostFacts {
        bounding: capabilities_from_mask(bounding),
        swap: match (cgroups.version(), controllers.folder("memory")) {
            (_, None) => false,
            (Version::V1, Some(root)) => root.join("memory.memsw.limit_in_bytes").exists(),
            // The root has no limits; every cgroup below it has, when the kernel counts swap.
            (Version::V2, Some(_)) => Path::new("/proc/swaps").exists(),
        },
        hugetlb: controllers.folder("hugetlb").is_some(),
        seccomp: status.lines().any(|line| line.starts_with("Seccomp_filters:")),
        apparmor: match fs::read_to_string("/sys/module/apparmor/parameters/enabled") {
            Ok(text) if text.trim() == "Y" => AppArmor::Enabled { default_profile: None },
            _ => AppArmor::Disabled,
        },
        selinux: fs::exists("/sys/fs/selinux/enforce").unwrap_or(false),
        hostname: uname.nodename().to_string_lossy().into_owned(),
        kernel: kernel_version(&uname.release().to_string_lossy()),
        open_files,
    })
}

/// The root folder of each controller's hierarchy.
struct Controllers(Vec<(PathBuf, Vec<String>)>);

impl Controllers {
    fn of(cgroups: &Cgroups) -> Result<Self, HostError> {
        let probe = cgroups.at("/probe").map_err(|err| HostError::Cgroups(Box::new(err)))?;
        let mut found = Vec::new();
        for (folder, controllers) in probe.hierarchies() {
            let Some(root) = folder.parent() else { continue };
            let controllers = match cgroups.version() {
                Version::V1 => controllers.to_vec(),
                Version::V2 => {
                    let list = read(&root.join("cgroup.controllers").to_string_lossy())?;
                    list.split_whitespace().map(str::to_owned).collect()
                }
            };
            found.push((root.to_owned(), controllers));
        }
        Ok(Self(found))
    }

    fn folder(&self, controller: &str) -> Option<&Path> {
        let found = self.0.iter().find(|(_, controllers)| controllers.iter().any(|name| name == controller));
        found.map(|(root, _)| root.as_path())
    }
}

/// "6.18.44-x" is (6, 18).
fn kernel_version(release: &str) -> (u32, u32) {
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

fn read(path: &str) -> Result<String, HostError> {
    fs::read_to_string(path).map_err(|source| HostError::Path { action: "read", path: path.into(), source })
}

fn read_line(path: &str) -> Result<String, HostError> {
    Ok(read(path)?.trim_end().to_owned())
}

/// Compiled seccomp filters by the digest of their profile: compiling takes milliseconds, and a node uses a handful.
#[derive(Debug, Default)]
pub(crate) struct FilterCache {
    filters: Mutex<HashMap<[u8; 32], Arc<seccomp::Filter>>>,
}

impl FilterCache {
    /// Localhost profiles come and go with their pods; a cache that holds this many starts over.
    const MOST: usize = 64;

    pub(crate) fn get_or_compile(
        &self,
        profile: &LinuxSeccomp,
    ) -> Result<Arc<seccomp::Filter>, seccomp::SeccompError> {
        let json = serde_json::to_vec(profile).expect("a seccomp profile serialises");
        let digest: [u8; 32] = Sha256::digest(json).into();
        if let Some(filter) = self.lock().get(&digest) {
            return Ok(Arc::clone(filter));
        }
        let filter = Arc::new(seccomp::compile(profile)?);
        for warning in &filter.warnings {
            tracing::warn!("seccomp: {warning}");
        }
        let mut filters = self.lock();
        if filters.len() >= Self::MOST {
            filters.clear();
        }
        filters.insert(digest, Arc::clone(&filter));
        Ok(filter)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<[u8; 32], Arc<seccomp::Filter>>> {
        self.filters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs file system work off the async workers.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions_are_read() {
        assert_eq!(kernel_version("6.18.44-fc"), (6, 18));
        assert_eq!(kernel_version("6.1"), (6, 1));
    }
}
