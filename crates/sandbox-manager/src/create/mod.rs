//! CreateContainer: image, snapshot, cgroup, OCI spec, a process at its exec gate (`process`); and the one way to undo all of
//! it (`discard`).

mod discard;
mod process;

use std::{
    fs,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use berth_cri::runtime::v1::{
    ContainerConfig, LinuxContainerSecurityContext, LinuxContainerUser, NamespaceMode, NamespaceOption,
};
use berth_image::{Image, MountOptions, Shown, Snapshot};
use berth_launcher::cgroup::{Cgroup, Resources};
use berth_nri::Arriving;
use berth_oci::{
    ContainerInput, ContainerSpec, ImageDefaults, PidNamespace, PodFiles, PodNamespaces, ResolvedUser,
    SpecError, seccomp,
};
use berth_store::Batch;
use berth_supervisor::client::Supervisor;
use oci_spec::runtime::Spec;

pub(crate) use self::{
    discard::{discard, end_processes},
    process::{PlanError, seccomp_filter},
};
use crate::{
    Container, ContainerId, ContainerState, Error, ImageIdentity, PodView, Timeline, cdi,
    checkpoint::{self, Restored},
    devices,
    error::cause,
    host::{Host, blocking},
    plugins::{self, Plugins, to_cri},
    propagation, remains, update,
    user_namespace::PodUserNamespace,
    volumes,
};

/// Largest /etc/passwd and /etc/group of an image that is read.
const MAX_USER_FILE: usize = 1 << 20;

/// Everything a creation needs to know.
#[derive(Debug)]
pub(crate) struct Creation {
    pub(crate) host: Arc<Host>,
    /// The pod as it was when the request was admitted.
    pub(crate) pod: Arc<PodView>,
    pub(crate) supervisor: Supervisor,
    pub(crate) id: ContainerId,
    pub(crate) config: Arc<ContainerConfig>,
    /// Whether plugins may know of it already.
    pub(crate) told: AtomicBool,
}

/// A container that was made. The second is to be kept until readers see it.
pub(crate) type Made = (Arc<Container>, Option<Arriving>);

impl Creation {
    fn plugins(&self) -> Plugins<'_> {
        Plugins::of(&self.host, &self.pod.sandbox, Some(&self.supervisor))
    }

    fn label(&self) -> String {
        let name = self.config.metadata.as_ref().map_or("", |meta| meta.name.as_str());
        format!("container {} ({name}) in {}", self.id.short(), self.pod.sandbox.label())
    }

    fn step<E>(&self, step: &'static str) -> impl FnOnce(E) -> Error
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        Error::step(self.label(), step)
    }

    /// Makes the container, and undoes everything when a step fails.
    pub(crate) async fn run(mut self) -> Result<Made, Error> {
        let (image, restored) = self.image().await?;
        volumes::resolve(&self.host, Arc::make_mut(&mut self.config))?;
        let intent = self.container(&image, None, ContainerState::Creating)?;
        let batch = Batch::new().put(self.id.as_str(), &intent);
        self.host.persist(batch).await.map_err(self.step("write its record"))?;
        let timeline = &self.pod.timeline;
        let name = self.config.metadata.as_ref().map_or("", |meta| meta.name.as_str());
        let making = self.make(&image, restored, timeline, name);
        match timeline.step(format!("container {name}: create"), making).await {
            Ok((container, arriving)) => Ok((Arc::new(container), arriving)),
            Err(err) => {
                let (host, sandbox) = (&self.host, &self.pod.sandbox);
                if let Err(left) = discard(host, sandbox, &self.id, Some(&self.supervisor)).await {
                    // The record stays as an intent, so the next start of the daemon tries again.
                    tracing::error!(error = cause(&left), "cannot undo a failed container");
                }
                if self.told.load(Ordering::Relaxed) {
                    self.plugins().not_created(&intent).await;
                }
                Err(err)
            }
        }
    }

    /// The image; that of a checkpoint with what was unpacked of it.
    async fn image(&self) -> Result<(Arc<Image>, Option<Arc<Restored>>), Error> {
        let spec = self.config.image.as_ref();
        let name = spec.map_or("", |image| image.image.as_str());
        if let Some(archive) = checkpoint::archive_named(name) {
            let (host, sandbox) = (&self.host, &self.pod.sandbox);
            let opened = Restored::open(host, sandbox, &self.id, archive, self.config.tty).await;
            return opened.map(|(image, restored)| (image, Some(restored)));
        }
        match self.host.images.find(name) {
            Ok(Some(image)) => Ok((image, None)),
            Ok(None) => Err(Error::ImageNotPresent(name.to_owned())),
            Err(err) => Err(Error::Invalid { field: "config.image.image", why: err.to_string() }),
        }
    }

    fn container(
        &self,
        image: &Image,
        user: Option<&ResolvedUser>,
        state: ContainerState,
    ) -> Result<Container, Error> {
        let spec = self.config.image.clone().unwrap_or_default();
        let linux = self.config.linux.clone().unwrap_or_default();
        let defaults = ImageDefaults::from(&image.config);
        let stop_signal = berth_oci::stop_signal(self.config.stop_signal, &defaults.stop_signal)
            .map_err(|err| Error::Invalid { field: "config.stop_signal", why: err.to_string() })?;
        Ok(Container {
            id: self.id.clone(),
            sandbox_id: self.pod.sandbox.id.clone(),
            config: Arc::clone(&self.config),
            image: ImageIdentity {
                id: image.id.to_string(),
                reference: image.repo_digests.first().cloned().unwrap_or_else(|| image.id.to_string()),
                name: [&spec.user_specified_image, &spec.image]
                    .into_iter()
                    .find(|name| !name.is_empty())
                    .cloned()
                    .unwrap_or_default(),
            },
            created_at: self.host.created_now(),
            log_path: log_path(&self.pod.sandbox.config.log_directory, &self.config.log_path)?,
            stop_signal,
            user: user
                .map(|user| LinuxContainerUser {
                    uid: user.uid.into(),
                    gid: user.gid.into(),
                    supplemental_groups: user.additional_gids.iter().copied().map(i64::from).collect(),
                })
                .unwrap_or_default(),
            resources: linux.resources.unwrap_or_default(),
            start_order: 0,
            state,
        })
    }

    async fn make(
        &self,
        image: &Image,
        restored: Option<Arc<Restored>>,
        timeline: &Timeline,
        name: &str,
    ) -> Result<(Container, Option<Arriving>), Error> {
        let (host, sandbox) = (&self.host, &self.pod.sandbox);
        let cgroup_path = self.id.cgroup_path(&sandbox.cgroup_parent);
        let cgroup = timeline.step(format!("container {name}: cgroup"), async {
            let (cgroups, path) = (host.cgroups.clone(), cgroup_path.clone());
            blocking(move || cgroups.create(&path)).await.map_err(self.step("make its cgroup"))
        });
        let user = self.user_namespace();
        let rootfs = self.rootfs(image, restored.clone(), user.as_ref());
        let rootfs = timeline.step(format!("container {name}: root file system"), rootfs);
        let (cgroup, rootfs) = tokio::join!(cgroup, rootfs);
        let (cgroup, (rootfs, resolved)) = (cgroup?, rootfs?);

        let pid = self.pid_mode()?;
        let namespaces = self.namespaces(self.pid_namespace(&pid).await?, user.as_ref());
        let prepared = self.spec(image, &resolved, &cgroup_path, namespaces, user.as_ref()).await?;
        self.warn(prepared.warnings);
        let spec = cdi::inject(host, &self.config, prepared.spec).await?;
        let asked = self.container(image, Some(&resolved), ContainerState::Creating)?;
        let answer = self.plugins().create(&asked, spec).await;
        self.told.store(plugins::may_know(&answer), Ordering::Relaxed);
        let (spec, limits, arriving) = answer?;
        self.limit(&cgroup, &spec).await?;
        self.write_spec(&spec).await?;
        self.make_log_folder().await?;
        let pid = timeline
            .step(format!("container {name}: process"), self.process(&spec, &cgroup, rootfs, pid, restored))
            .await?;

        let resources = update::merged(&asked.resources, &to_cri(&limits));
        let container = Container { resources, ..asked.with_state(ContainerState::Created { pid }) };
        let batch = Batch::new().put(self.id.as_str(), &container);
        host.persist(batch).await.map_err(self.step("write its record"))?;
        self.plugins().created(&container).await;
        Ok((container, arriving))
    }

    /// The pod's user namespace, where it has one.
    fn user_namespace(&self) -> Option<PodUserNamespace> {
        let sandbox = &self.pod.sandbox;
        let path = self.host.pod_dir(&sandbox.id).user_namespace();
        sandbox.user_ids().map(|ids| PodUserNamespace { ids, path })
    }

    /// The detached overlay mount, and the user, which only the image's own files can tell.
    async fn rootfs(
        &self,
        image: &Image,
        restored: Option<Arc<Restored>>,
        user: Option<&PodUserNamespace>,
    ) -> Result<(OwnedFd, ResolvedUser), Error> {
        let snapshot = self
            .host
            .images
            .create_snapshot(self.id.as_str(), image, user.map(|user| user.ids.first()))
            .await
            .map_err(self.step("make its snapshot"))?;
        let security = self.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref()).cloned();
        let image_user = ImageDefaults::from(&image.config).user;
        let label = self.label();
        let user = user.map(PodUserNamespace::open).transpose();
        let user = user.map_err(Error::step(&label, "open its pod's user namespace"))?;
        blocking(move || {
            if let Some(restored) = restored {
                let loaded = restored.load_files(&snapshot.upper());
                loaded.map_err(Error::step(&label, "restore the files that it had written"))?;
            }
            let options =
                MountOptions { shown: Shown::Container, user_namespace: user.as_ref().map(AsFd::as_fd) };
            let mount = snapshot.mount(options).map_err(Error::step(&label, "mount its root file system"))?;
            let read = |path| Snapshot::read_file(mount.as_fd(), path, MAX_USER_FILE);
            let passwd = read("/etc/passwd").map_err(Error::step(&label, "read the image's /etc/passwd"))?;
            let group = read("/etc/group").map_err(Error::step(&label, "read the image's /etc/group"))?;
            let user =
                berth_oci::resolve_user(security.as_ref(), &image_user, passwd.as_deref(), group.as_deref())
                    .map_err(|err| Error::Invalid {
                        field: "config.linux.security_context",
                        why: err.to_string(),
                    })?;
            Ok((mount, user))
        })
        .await
    }

    async fn spec(
        &self,
        image: &Image,
        user: &ResolvedUser,
        cgroup_path: &str,
        namespaces: PodNamespaces,
        user_namespace: Option<&PodUserNamespace>,
    ) -> Result<ContainerSpec, Error> {
        let (host, sandbox) = (&self.host, &self.pod.sandbox);
        let dir = host.pod_dir(&sandbox.id);
        let devices = devices::resolve(&self.config.devices, self.security().privileged)
            .map_err(self.step("find its devices"))?;
        let folder = dir.volumes(&self.id);
        let mut config = volumes::mounted(host, &self.id, &self.config, &folder, user_namespace).await?;
        remains::add(host, &self.pod, &mut config, &folder, user_namespace).await?;
        let mounts = config.mounts.clone();
        blocking(move || propagation::check(&mounts)).await.map_err(self.step("check its mounts"))?;
        let profile = self.seccomp_profile().await?;
        let input = ContainerInput {
            sandbox_id: sandbox.id.as_str(),
            sandbox: &sandbox.config,
            container: &config,
            image: &ImageDefaults::from(&image.config),
            user,
            host: &host.facts,
            namespaces: &namespaces,
            cgroups_path: cgroup_path,
            rootfs: &dir.rootfs(&self.id),
            files: &PodFiles {
                resolv_conf: dir.resolv_conf(),
                hostname: dir.hostname(),
                hosts: Some(dir.hosts()),
                shm: match sandbox.host_ipc() {
                    true => PathBuf::from("/dev/shm"),
                    false => dir.shm(),
                },
            },
            devices: &devices,
            // Where an image declares a volume, its folder stays part of the writable layer.
            volumes: &[],
            seccomp: match &profile {
                SeccompProfile::Unconfined => seccomp::Profile::Unconfined,
                SeccompProfile::RuntimeDefault => seccomp::Profile::RuntimeDefault,
                SeccompProfile::Localhost(json) => seccomp::Profile::Localhost(json),
            },
        };
        berth_oci::container_spec(&input).map_err(|err| match err {
            SpecError::Unsupported { .. } => Error::Unsupported(err.to_string()),
            SpecError::Invalid { .. } => Error::Invalid { field: "config", why: err.to_string() },
            SpecError::Seccomp(err) => {
                Error::Invalid { field: "config.linux.security_context.seccomp", why: err.to_string() }
            }
        })
    }

    fn namespaces(&self, pid: PidNamespace, user: Option<&PodUserNamespace>) -> PodNamespaces {
        let sandbox = &self.pod.sandbox;
        let own = |name: &str| PathBuf::from(format!("/proc/{}/ns/{name}", self.supervisor.pid()));
        PodNamespaces {
            network: (!sandbox.host_network()).then(|| own("net")),
            ipc: (!sandbox.host_ipc()).then(|| own("ipc")),
            uts: (!sandbox.host_network()).then(|| own("uts")),
            pid,
            user: user.map(PodUserNamespace::for_spec),
        }
    }

    fn security(&self) -> LinuxContainerSecurityContext {
        self.config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default()
    }

    async fn seccomp_profile(&self) -> Result<SeccompProfile, Error> {
        let invalid = |why: String| Error::Invalid { field: "config.linux.security_context.seccomp", why };
        let security = self.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        match seccomp::requested(security).map_err(|err| invalid(err.to_string()))? {
            seccomp::Requested::Unconfined => Ok(SeccompProfile::Unconfined),
            seccomp::Requested::RuntimeDefault => Ok(SeccompProfile::RuntimeDefault),
            seccomp::Requested::Localhost(path) => tokio::fs::read(&path)
                .await
                .map(SeccompProfile::Localhost)
                .map_err(|err| invalid(format!("cannot read profile {}: {err}", path.display()))),
        }
    }

    fn pid_mode(&self) -> Result<PidMode, Error> {
        let pod = &self.pod.sandbox;
        // Without options of its own a container does as its pod does.
        let options = self.security().namespace_options.unwrap_or_else(|| NamespaceOption {
            pid: match (pod.shared_pid(), pod.namespaces().pid()) {
                (true, _) => NamespaceMode::Pod,
                (false, NamespaceMode::Node) => NamespaceMode::Node,
                (false, _) => NamespaceMode::Container,
            }
            .into(),
            ..NamespaceOption::default()
        });
        match options.pid() {
            NamespaceMode::Container => Ok(PidMode::Own),
            NamespaceMode::Node => Ok(PidMode::Host),
            // CRI's zero value: a pod made without a shared namespace has none to offer.
            NamespaceMode::Pod if !pod.shared_pid() => Ok(PidMode::Own),
            NamespaceMode::Pod => Ok(PidMode::Pod),
            NamespaceMode::Target => self.target(&options.target_id).map(PidMode::Target),
        }
    }

    /// The running container of this pod whose pid namespace is to be entered.
    fn target(&self, id: &str) -> Result<Arc<Container>, Error> {
        let invalid = |why: String| Error::Invalid {
            field: "config.linux.security_context.namespace_options.target_id",
            why,
        };
        let mut containers = self.pod.containers.values();
        let target = containers
            .find(|container| container.id.as_str() == id)
            .ok_or_else(|| invalid(format!("no container {id:?} in this pod")))?;
        match target.state {
            ContainerState::Running { .. } => Ok(Arc::clone(target)),
            _ => Err(invalid(format!("container {} does not run", target.id.short()))),
        }
    }

    async fn pid_namespace(&self, mode: &PidMode) -> Result<PidNamespace, Error> {
        let of = |pid: i32| PidNamespace::Path(PathBuf::from(format!("/proc/{pid}/ns/pid")));
        match mode {
            PidMode::Own => Ok(PidNamespace::New),
            PidMode::Host => Ok(PidNamespace::Host),
            PidMode::Target(container) => {
                Ok(of(container.pid().ok_or_else(|| Error::ContainerNotFound(container.id.to_string()))?))
            }
            PidMode::Pod => {
                let state = self.supervisor.state().await.map_err(self.step("find its pod's pid 1"))?;
                Ok(of(state.pid1))
            }
        }
    }

    async fn limit(&self, cgroup: &Cgroup, spec: &Spec) -> Result<(), Error> {
        let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
        let Some(resources) = resources else { return Ok(()) };
        let resources = Resources::from_spec(resources).map_err(self.step("read its limits"))?;
        let cgroup = cgroup.clone();
        let warnings =
            blocking(move || cgroup.apply(&resources)).await.map_err(self.step("set its cgroup's limits"))?;
        self.warn(warnings.into_iter().map(|warning| warning.0));
        Ok(())
    }

    /// The spec is kept for exec, for verbose status, and as the bundle of external runtimes.
    async fn write_spec(&self, spec: &Spec) -> Result<(), Error> {
        let dir = self.host.pod_dir(&self.pod.sandbox.id);
        let (folder, file) = (dir.container(&self.id), dir.spec(&self.id));
        let json = serde_json::to_vec(spec).map_err(self.step("write its OCI spec"))?;
        blocking(move || {
            fs::create_dir_all(&folder)?;
            fs::write(file, json)
        })
        .await
        .map_err(self.step("write its OCI spec"))
    }

    /// kubelet makes it before it asks; people with crictl do not.
    async fn make_log_folder(&self) -> Result<(), Error> {
        let path = PathBuf::from(log_path(&self.pod.sandbox.config.log_directory, &self.config.log_path)?);
        match path.parent().map(Path::to_owned) {
            None => Ok(()),
            Some(folder) => blocking(move || fs::create_dir_all(folder))
                .await
                .map_err(self.step("make the folder of its log")),
        }
    }

    /// What this host cannot give is left out, and said.
    fn warn(&self, warnings: impl IntoIterator<Item = String>) {
        for warning in warnings {
            tracing::warn!(container = %self.id.short(), "{warning}");
        }
    }
}

/// A container's pid namespace.
#[derive(Debug)]
enum PidMode {
    Own,
    Host,
    /// The one that all containers of the pod share.
    Pod,
    /// Another container's, for looking into it.
    Target(Arc<Container>),
}

/// A container's seccomp profile, read.
#[derive(Debug)]
enum SeccompProfile {
    Unconfined,
    RuntimeDefault,
    Localhost(Vec<u8>),
}

fn log_path(directory: &str, file: &str) -> Result<String, Error> {
    match (directory, file) {
        (_, "") | ("", _) => Ok(String::new()),
        (directory, _) if !directory.starts_with('/') => Err(Error::Invalid {
            field: "sandbox_config.log_directory",
            why: format!("{directory:?} is not absolute"),
        }),
        (directory, file) => Ok(Path::new(directory).join(file).to_string_lossy().into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_path_is_absolute_or_absent() {
        assert_eq!(log_path("/var/log/pods/x", "web/0.log").unwrap(), "/var/log/pods/x/web/0.log");
        assert_eq!(log_path("", "web/0.log").unwrap(), "");
        assert_eq!(log_path("/var/log", "").unwrap(), "");
        assert!(log_path("logs", "web/0.log").is_err());
    }
}
