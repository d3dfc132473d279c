//! The directory of pods, and the door through which requests come in.

use std::{
    borrow::Borrow,
    collections::BTreeMap,
    ops::Bound,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use berth_cri::runtime::v1::{ContainerConfig, LinuxContainerResources, PodSandboxConfig};
use berth_image::Images;
use berth_launcher::cgroup::Version;
use berth_network::Network;
use berth_nri::Nri;
use berth_store::Store;
use berth_supervisor::client::Supervisor;
use tracing::{Instrument as _, info_span};

use crate::{
    Attachment, Command, Container, ContainerId, ContainerState, Dialer, Error, ExecOutput, Handler,
    HostError, Listener, ManagerConfig, Owner, PodView, Sandbox, SandboxId, SandboxPhase, Wanted, checkpoint,
    exec,
    host::Host,
    owner::Scope,
    pod::{Pod, PodHandle, Reply, Request, state_name},
    recovery,
    sandbox::{cgroup_parent, check_sysctls},
    session,
    update::Limits,
    user_namespace::{self, PodIds},
};

/// All pods of the node.
#[derive(Clone, Debug)]
pub struct SandboxManager {
    host: Arc<Host>,
    directory: Arc<Directory>,
    scope: Scope,
}

/// The pods by id, also those being made.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    pods: RwLock<BTreeMap<SandboxId, PodHandle>>,
}

impl Directory {
    pub(crate) fn forget(&self, id: &SandboxId) {
        self.write().remove(id);
    }

    /// Registers a pod and runs its task.
    pub(crate) fn adopt(&self, pods: &mut BTreeMap<SandboxId, PodHandle>, pod: Pod, handle: PodHandle) {
        let span = {
            let view = handle.view.borrow();
            let meta = view.sandbox.metadata();
            info_span!(parent: None, "pod", id = %handle.id.short(), namespace = meta.namespace, name = meta.name)
        };
        pods.insert(handle.id.clone(), handle);
        tokio::spawn(pod.run().instrument(span));
    }

    pub(crate) fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<SandboxId, PodHandle>> {
        self.pods.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<SandboxId, PodHandle>> {
        self.pods.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SandboxManager {
    /// Takes up the pods of an earlier daemon, sweeps what it left half-made, and is ready for requests when it
    /// returns. `nri` when plugins are to have a say.
    ///
    /// # Errors
    /// When the node lacks something that no pod can do without.
    pub async fn start(
        config: ManagerConfig,
        images: Images,
        network: Network,
        store: Store,
        nri: Option<Nri>,
    ) -> Result<Self, HostError> {
        let user_namespaces = user_namespace::probe(&images, &config.handlers).await;
        let host = Arc::new(Host::new(config, images, network, store, user_namespaces, nri)?);
        let directory = Arc::new(Directory::default());
        recovery::recover(&host, &directory).await?;
        Ok(Self { host, directory, scope: Scope::All })
    }

    /// The same manager, for which there are only the pods of one owner, and whose new pods are that owner's.
    #[must_use]
    pub fn of(&self, owner: Owner) -> Self {
        Self { scope: Scope::Of(owner), ..self.clone() }
    }

    /// Names of the runtime handlers that pods may ask for; the empty one is the default.
    pub fn handler_names(&self) -> impl Iterator<Item = &str> {
        self.host.config.handlers.keys().map(String::as_str)
    }

    /// Whether this kernel can make a mount read-only with all mounts below it (mount_setattr(2)).
    #[must_use]
    pub fn mounts_read_only_recursively(&self) -> bool {
        self.host.facts.kernel >= (5, 12)
    }

    /// The machine's present boot.
    #[must_use]
    pub fn boot_id(&self) -> &str {
        &self.host.boot_id
    }

    /// Whether the node's cgroups are the unified hierarchy.
    #[must_use]
    pub fn has_cgroup_v2(&self) -> bool {
        self.host.cgroups.version() == Version::V2
    }

    /// Whether pods of a handler can have user and group ids of their own.
    #[must_use]
    pub fn has_user_namespaces(&self, handler: &str) -> bool {
        self.host.check_user_namespaces(handler).is_ok()
    }

    /// Makes a pod sandbox. A repeated call with the same metadata joins the one in flight, or returns its result.
    ///
    /// # Errors
    /// The step that failed; nothing of the sandbox is left then.
    pub async fn run_sandbox(&self, config: PodSandboxConfig, handler: &str) -> Result<SandboxId, Error> {
        let metadata = config
            .metadata
            .clone()
            .ok_or_else(|| Error::Invalid { field: "config.metadata", why: "must be set".to_owned() })?;
        self.host.handler(handler)?;
        if PodIds::of(&config)?.is_some() {
            self.host.check_user_namespaces(handler)?;
        }
        let id = SandboxId::generate();
        let cgroup_parent = cgroup_parent(&config, &id, &self.host.config.cgroup_root)?;
        let sandbox = Sandbox {
            id: id.clone(),
            owner: self.scope.owner(),
            config: Arc::new(config),
            handler: handler.to_owned(),
            created_at: self.host.created_now(),
            phase: SandboxPhase::Creating,
            ips: Vec::new(),
            boot_id: self.host.boot_id.clone(),
            cgroup_parent,
        };
        check_sysctls(&sandbox.config, sandbox.host_network(), sandbox.host_ipc())?;
        let pod = {
            let mut pods = self.directory.write();
            let same = pods
                .values()
                .find(|pod| {
                    let sandbox = &pod.view.borrow().sandbox;
                    sandbox.owner == self.scope.owner() && sandbox.config.metadata.as_ref() == Some(&metadata)
                })
                .cloned();
            match same {
                Some(pod) => pod,
                None => {
                    let (pod, handle) =
                        Pod::new(Arc::clone(&self.host), Arc::clone(&self.directory), sandbox);
                    self.directory.adopt(&mut pods, pod, handle.clone());
                    handle
                }
            }
        };
        let phase = pod.view.borrow().sandbox.phase;
        if phase == SandboxPhase::NotReady {
            return Err(Error::NameTaken {
                what: "pod sandbox",
                name: format!("{}/{} (attempt {})", metadata.namespace, metadata.name, metadata.attempt),
                id: pod.id.short().to_owned(),
                state: phase.name(),
            });
        }
        pod.ask(Request::Up).await
    }

    /// Ends all processes of a pod and its network. Fine for one that is stopped or unknown.
    ///
    /// # Errors
    /// What could not be ended; a repeated call tries again.
    pub async fn stop_sandbox(&self, id: &str) -> Result<(), Error> {
        self.unless_gone(id, Request::StopPod).await
    }

    /// Removes a pod with all its containers; stops it first. Fine for an unknown one.
    ///
    /// # Errors
    /// What could not be removed; a repeated call tries again.
    pub async fn remove_sandbox(&self, id: &str) -> Result<(), Error> {
        self.unless_gone(id, Request::RemovePod).await
    }

    /// Asks a pod to end. One that is unknown, or that somebody else removes in the meantime, is as wanted.
    async fn unless_gone(&self, id: &str, request: impl FnOnce(Reply<()>) -> Request) -> Result<(), Error> {
        match self.pod(id) {
            Err(Error::SandboxNotFound(_)) => Ok(()),
            Ok(pod) => match pod.ask(request).await {
                Err(Error::Gone(_)) if !self.directory.read().contains_key(&pod.id) => Ok(()),
                result => result,
            },
            Err(err) => Err(err),
        }
    }

    /// The pod with this id or unambiguous beginning of one.
    ///
    /// # Errors
    /// [`Error::SandboxNotFound`], [`Error::Ambiguous`].
    pub fn sandbox(&self, id: &str) -> Result<Arc<PodView>, Error> {
        Ok(self.pod(id)?.view.borrow().clone())
    }

    /// All pods that are made, ready or not.
    #[must_use]
    pub fn sandboxes(&self) -> Vec<Arc<PodView>> {
        let pods = self.directory.read();
        let views = pods.values().map(|pod| Arc::clone(&pod.view.borrow()));
        views.filter(|view| self.shows(view)).collect()
    }

    /// Sets a container up to its exec gate. A repeated call with the same name and attempt joins the one in flight,
    /// or returns its result.
    ///
    /// # Errors
    /// The step that failed; nothing of the container is left then.
    pub async fn create_container(
        &self,
        sandbox: &str,
        config: ContainerConfig,
    ) -> Result<ContainerId, Error> {
        let named = config.metadata.as_ref().is_some_and(|meta| !meta.name.is_empty());
        if !named {
            return Err(Error::Invalid { field: "config.metadata.name", why: "must be set".to_owned() });
        }
        let pod = self.pod(sandbox)?;
        pod.ask(|reply| Request::Create(Arc::new(config), reply)).await
    }

    /// Executes a created container's program; returns when it was executed.
    ///
    /// # Errors
    /// [`Error::CannotExecute`] when the program is missing or broken; the container is exited then.
    pub async fn start_container(&self, id: &str) -> Result<(), Error> {
        let (pod, container) = self.find(id)?;
        pod.ask(|reply| Request::Start(container.id.clone(), reply)).await
    }

    /// Ends a container: stop signal, and after `grace` SIGKILL to all of it. Returns when it shows as exited. Fine
    /// for one that has ended or is unknown.
    ///
    /// # Errors
    /// [`Error::Unkillable`] with what survived.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), Error> {
        match self.find(id) {
            Err(Error::ContainerNotFound(_)) => Ok(()),
            Ok((pod, container)) => pod.ask(|reply| Request::Stop(container.id.clone(), grace, reply)).await,
            Err(err) => Err(err),
        }
    }

    /// Removes a container, killing it first when it runs. Its log stays. Fine for an unknown one.
    ///
    /// # Errors
    /// What could not be removed; a repeated call tries again.
    pub async fn remove_container(&self, id: &str) -> Result<(), Error> {
        match self.find(id) {
            Err(Error::ContainerNotFound(_)) => Ok(()),
            Ok((pod, container)) => pod.ask(|reply| Request::Remove(container.id.clone(), reply)).await,
            Err(err) => Err(err),
        }
    }

    /// The container with this id or unambiguous beginning of one, and its pod.
    ///
    /// # Errors
    /// [`Error::ContainerNotFound`], [`Error::Ambiguous`].
    pub fn container(&self, id: &str) -> Result<(Arc<PodView>, Arc<Container>), Error> {
        let (pod, container) = self.find(id)?;
        let view = pod.view.borrow().clone();
        Ok((view, container))
    }

    /// Runs a command in a running container to its end.
    ///
    /// # Errors
    /// [`Error::ExecTimeout`] when `limit` was over: then nothing of the command is left.
    pub async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        limit: Option<Duration>,
    ) -> Result<ExecOutput, Error> {
        if command.is_empty() {
            return Err(Error::Invalid { field: "cmd", why: "must not be empty".to_owned() });
        }
        let (view, container, supervisor) = self.running(id, "run a command in")?;
        exec::exec_sync(&self.host, &view.sandbox, &container, &supervisor, command, limit).await
    }

    /// Starts a command in a running container, with streams.
    ///
    /// # Errors
    /// [`Error::WrongState`] when the container does not run, [`Error::CannotExecute`].
    pub async fn exec(&self, id: &str, command: &[String], wanted: Wanted) -> Result<Command, Error> {
        let (view, container, supervisor) = self.running(id, "run a command in")?;
        session::command(&self.host, &view.sandbox, container, supervisor, command, wanted).await
    }

    /// Attaches to the streams of a running container's first process.
    ///
    /// # Errors
    /// [`Error::WrongState`] when the container does not run.
    pub async fn attach(&self, id: &str, wanted: Wanted) -> Result<Attachment, Error> {
        let (_, container, supervisor) = self.running(id, "attach to")?;
        let view = self.find(id)?.0.view;
        session::attach(container, supervisor, view, wanted).await
    }

    /// Whether a command or an attachment is possible now: asked before a client is sent to the streaming server.
    ///
    /// # Errors
    /// [`Error::ContainerNotFound`], [`Error::WrongState`].
    pub fn check_running(&self, id: &str) -> Result<Arc<Container>, Error> {
        self.running(id, "stream to").map(|(_, container, _)| container)
    }

    /// What connects to ports inside a ready pod.
    ///
    /// # Errors
    /// [`Error::SandboxNotFound`]; [`Error::WrongState`] when it is not ready.
    pub fn dialer(&self, id: &str) -> Result<Dialer, Error> {
        let view = self.sandbox(id)?;
        match (view.sandbox.phase, view.sandbox.host_network(), &view.supervisor) {
            (SandboxPhase::Ready, true, _) => Ok(Dialer { inside: None }),
            (SandboxPhase::Ready, false, Some(supervisor)) => Ok(Dialer { inside: Some(supervisor.clone()) }),
            (phase, ..) => Err(Error::WrongState {
                what: "pod sandbox",
                id: view.sandbox.id.short().to_owned(),
                state: phase.name(),
                ask: "forward ports to",
            }),
        }
    }

    /// Changes the limits of a container that was created and has not ended. Zero and empty fields leave their limits.
    ///
    /// # Errors
    /// [`Error::WrongState`] once it has ended; the kernel's refusal of a limit.
    pub async fn update_container(&self, id: &str, limits: LinuxContainerResources) -> Result<(), Error> {
        self.change_limits(id, Limits::Asked(limits)).await
    }

    pub(crate) async fn change_limits(&self, id: &str, limits: Limits) -> Result<(), Error> {
        let (pod, container) = self.find(id)?;
        pod.ask(|reply| Request::Update(container.id.clone(), limits, reply)).await
    }

    /// Takes note of a pod's limits, whose cgroup is the caller's; plugins have a say. Absent ones stay as they are.
    ///
    /// # Errors
    /// [`Error::Plugin`] when one of them refuses.
    pub async fn update_sandbox(
        &self,
        id: &str,
        overhead: Option<LinuxContainerResources>,
        resources: Option<LinuxContainerResources>,
    ) -> Result<(), Error> {
        self.pod(id)?.ask(|reply| Request::UpdatePod(overhead, resources, reply)).await
    }

    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    /// Makes a container's log file anew and goes on in it.
    ///
    /// # Errors
    /// [`Error::WrongState`] when the container does not run.
    pub async fn reopen_log(&self, id: &str) -> Result<(), Error> {
        let (_, container, supervisor) = self.running(id, "reopen the log of")?;
        let label = container.id.label();
        supervisor.reopen_log(container.id.as_str()).await.map_err(Error::step(label, "reopen its log"))
    }

    /// Writes a running container to an archive at `location`; it runs on. What has begun goes on when nobody waits any
    /// more.
    ///
    /// # Errors
    /// [`Error::NodeLacks`] without CRIU; [`Error::WrongState`] when the container does not run.
    pub async fn checkpoint(
        &self,
        id: &str,
        location: PathBuf,
        limit: Option<Duration>,
    ) -> Result<(), Error> {
        let (view, container, supervisor) = self.running(id, "checkpoint")?;
        let sandbox = Arc::clone(&view.sandbox);
        let gone = Error::Gone(sandbox.id.clone());
        let taken = checkpoint::take(Arc::clone(&self.host), sandbox, container, supervisor, location, limit);
        tokio::spawn(taken).await.unwrap_or(Err(gone))
    }

    /// Folder and controllers of a cgroup in each hierarchy (v1), or its one folder (v2). Empty for a path that is none.
    #[must_use]
    pub fn cgroup_folders(&self, path: &str) -> Vec<(PathBuf, Vec<String>)> {
        let Ok(cgroup) = self.host.cgroups.at(path) else { return Vec::new() };
        cgroup.hierarchies().map(|(folder, names)| (folder.to_owned(), names.to_vec())).collect()
    }

    /// Hears of everything that happens to pods from now on.
    #[must_use]
    pub fn listen(&self) -> Listener {
        self.host.bus.listen(self.scope)
    }

    /// The OCI spec a container was made from, as JSON; `None` once its pod is stopped.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn oci_spec(&self, container: &Container) -> Result<Option<String>, Error> {
        let path = self.host.pod_dir(&container.sandbox_id).spec(&container.id);
        match tokio::fs::read_to_string(&path).await {
            Ok(text) => Ok(Some(text)),
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(err) => Err(Error::step(container.id.label(), "read its OCI spec")(err)),
        }
    }

    fn running(
        &self,
        id: &str,
        ask: &'static str,
    ) -> Result<(Arc<PodView>, Arc<Container>, Supervisor), Error> {
        let (pod, container) = self.find(id)?;
        let view = pod.view.borrow().clone();
        match (&container.state, view.supervisor.clone()) {
            (ContainerState::Running { .. }, Some(supervisor)) => Ok((view, container, supervisor)),
            (state, _) => Err(Error::WrongState {
                what: "container",
                id: container.id.short().to_owned(),
                state: state_name(state),
                ask,
            }),
        }
    }

    fn shows(&self, view: &PodView) -> bool {
        view.sandbox.phase != SandboxPhase::Creating && self.scope.includes(view.sandbox.owner)
    }

    fn pod(&self, id: &str) -> Result<PodHandle, Error> {
        let pods = self.directory.read();
        let fits = starting_with(&pods, id);
        let mut fits = fits.filter(|(_, pod)| self.shows(&pod.view.borrow()));
        let not_found = || Error::SandboxNotFound(id.to_owned());
        let (_, first) = fits.next().filter(|_| !id.is_empty()).ok_or_else(not_found)?;
        match fits.count() {
            0 => Ok(first.clone()),
            more => Err(ambiguous("pod sandbox", id, more + 1)),
        }
    }

    fn find(&self, id: &str) -> Result<(PodHandle, Arc<Container>), Error> {
        if id.is_empty() {
            return Err(Error::ContainerNotFound(id.to_owned()));
        }
        let pods = self.directory.read();
        let mut found = None;
        let mut count = 0;
        for pod in pods.values() {
            let view = pod.view.borrow();
            if !self.scope.includes(view.sandbox.owner) {
                continue;
            }
            for (_, container) in starting_with(&view.containers, id) {
                count += 1;
                found.get_or_insert_with(|| (pod.clone(), Arc::clone(container)));
            }
        }
        match (found, count) {
            (Some(found), 1) => Ok(found),
            (Some(_), count) => Err(ambiguous("container", id, count)),
            (None, _) => Err(Error::ContainerNotFound(id.to_owned())),
        }
    }
}

impl Host {
    /// The runtime handler of this name.
    pub(crate) fn handler(&self, name: &str) -> Result<&Handler, Error> {
        self.config.handlers.get(name).ok_or_else(|| Error::Invalid {
            field: "runtime_handler",
            why: format!("no handler {name:?} is configured"),
        })
    }

    fn check_user_namespaces(&self, handler: &str) -> Result<(), Error> {
        match self.user_namespaces.get(handler) {
            Some(Err(why)) => Err(Error::Unsupported(format!("a user namespace for this pod ({why})"))),
            Some(Ok(())) | None => Ok(()),
        }
    }
}

/// The entries whose id begins with `prefix`.
fn starting_with<'a, K: Ord + Borrow<str>, V>(
    map: &'a BTreeMap<K, V>,
    prefix: &'a str,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    map.range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
        .take_while(move |(id, _)| Borrow::<str>::borrow(*id).starts_with(prefix))
}

fn ambiguous(what: &'static str, prefix: &str, count: usize) -> Error {
    Error::Ambiguous { what, prefix: prefix.to_owned(), count }
}
