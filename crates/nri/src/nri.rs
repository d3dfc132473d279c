//! The handle: what is about to happen is told here, and plugins' answers come back as one.

use std::{
    io,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{
    Stream, StreamExt as _,
    future::{BoxFuture, join_all},
};
use tokio::{net::UnixStream, sync::Mutex, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Arriving, Container, ContainerAdjustment, ContainerEviction, ContainerUpdate, CreateContainerRequest,
    Empty, Event, Leaving, LinuxResources, LostPlugin, NriConfig, PluginInfo, PodSandbox, Refused,
    StartContainerRequest, StopContainerResponse, UpdateContainerRequest, UpdateContainerResponse,
    UpdatePodSandboxRequest, installed,
    merge::{Creation, Updates},
    plugins::Plugins,
    shared::{Shared, cause},
};

/// How long plugins may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);
/// How long installed plugins may take to end, their killing included.
const END: Duration = Duration::from_secs(5);

/// Pods and containers, as a new plugin is told of them.
#[derive(Clone, Debug, Default)]
pub struct Everything {
    /// The pods.
    pub pods: Vec<PodSandbox>,
    /// The containers of all of them.
    pub containers: Vec<Container>,
}

/// What plugins may ask of whoever owns the containers.
pub trait Runtime: Send + Sync + 'static {
    /// All pods and containers as they are now, without those being made.
    fn state(&self) -> BoxFuture<'_, Everything>;

    /// Changes limits of containers. The answer is what failed; no plugin is asked about any of it.
    fn update(&self, updates: Vec<ContainerUpdate>) -> BoxFuture<'_, Vec<UpdateFailure>>;

    /// Stops a container.
    fn evict(&self, eviction: ContainerEviction) -> BoxFuture<'static, ()>;
}

/// An update that was not made.
#[derive(Clone, Debug)]
pub struct UpdateFailure {
    /// What was wanted.
    pub update: ContainerUpdate,
    /// Why it is not so.
    pub why: String,
}

/// All plugins of the node.
#[derive(Clone, Debug)]
pub struct Nri {
    shared: Arc<Shared>,
}

impl Nri {
    /// Without plugins until [`start`](Self::start). `name` and `version` are what they are told of the runtime.
    #[must_use]
    pub fn new(name: &str, version: &str, config: NriConfig) -> Self {
        Self {
            shared: Arc::new(Shared {
                runtime_name: name.to_owned(),
                runtime_version: version.to_owned(),
                config,
                plugins: Plugins::default(),
                inflight: Arc::default(),
                turn: Mutex::default(),
                synchronising: AtomicUsize::new(0),
                runtime: OnceLock::new(),
                tasks: TaskTracker::new(),
                stopping: CancellationToken::new(),
            }),
        }
    }

    /// Starts the installed plugins, returns when each of them has registered or failed to, and takes connections of
    /// others from then on.
    pub async fn start(
        &self,
        runtime: Arc<dyn Runtime>,
        incoming: impl Stream<Item = io::Result<UnixStream>> + Send + 'static,
    ) {
        self.shared.runtime.get_or_init(|| runtime);
        installed::start(&self.shared).await;
        let shared = Arc::clone(&self.shared);
        let accepted = incoming.take_until(shared.stopping.clone().cancelled_owned());
        self.shared.tasks.spawn(accepted.for_each(move |stream| {
            if let Ok(stream) = stream {
                let connected = Arc::clone(&shared);
                shared.tasks.spawn(async move { connected.external(stream).await });
            }
            std::future::ready(())
        }));
    }

    /// Says goodbye to all plugins and ends the installed ones. Bounded.
    pub async fn shutdown(&self) {
        let shared = &self.shared;
        let plugins = shared.plugins.all();
        let calls = plugins.iter().map(|plugin| {
            let goodbye = plugin.connection.call::<Empty>("Shutdown", &Empty {}, GOODBYE);
            async move { drop(goodbye.await) }
        });
        join_all(calls).await;
        shared.stopping.cancel();
        for plugin in &plugins {
            plugin.connection.close();
        }
        shared.tasks.close();
        if timeout(END, shared.tasks.wait()).await.is_err() {
            tracing::warn!("not everything about NRI plugins has ended");
        }
    }

    /// Who is connected, and who no longer is.
    #[must_use]
    pub fn plugins(&self) -> (Vec<PluginInfo>, Vec<LostPlugin>) {
        self.shared.plugins.info()
    }

    /// Whether it matters to anybody that an event is told. Asked after what it is about is shown to readers, so that a
    /// plugin that is being synchronised meanwhile either sees it or is counted here.
    #[must_use]
    pub fn listens(&self, event: Event) -> bool {
        self.shared.synchronising.load(Ordering::SeqCst) > 0
            || !self.shared.plugins.subscribed(event).is_empty()
    }

    // --- Pods

    /// A pod stands and is about to be shown.
    ///
    /// # Errors
    /// Then it must not be shown, and is to be [forgotten](Self::remove_pod).
    pub async fn run_pod(&self, pod: &PodSandbox) -> Result<Arriving, Refused> {
        self.shared.check_required(&pod.namespace)?;
        let _turn = self.shared.turn.lock().await;
        let arriving = self.shared.inflight.pod(pod.clone());
        self.shared.relay(Event::RunPodSandbox, pod, None).await?;
        Ok(arriving)
    }

    /// A pod's limits are about to be changed to these.
    ///
    /// # Errors
    /// Then they must not be.
    pub async fn update_pod(
        &self,
        pod: &PodSandbox,
        overhead: LinuxResources,
        resources: LinuxResources,
    ) -> Result<(), Refused> {
        let request = UpdatePodSandboxRequest {
            pod: Some(pod.clone()),
            overhead_linux_resources: Some(overhead),
            linux_resources: Some(resources),
        };
        let _turn = self.shared.turn.lock().await;
        for plugin in self.shared.plugins.subscribed(Event::UpdatePodSandbox) {
            self.shared.ask::<Empty>(&plugin, Event::UpdatePodSandbox, &request).await?;
        }
        Ok(())
    }

    /// They are changed.
    pub async fn updated_pod(&self, pod: &PodSandbox) {
        self.shared.notify(Event::PostUpdatePodSandbox, pod, None).await;
    }

    /// All containers of a pod have ended; the rest of it is about to.
    pub async fn stop_pod(&self, pod: &PodSandbox) {
        self.shared.notify(Event::StopPodSandbox, pod, None).await;
    }

    /// A pod is about to be gone, or was never shown.
    pub async fn remove_pod(&self, pod: &PodSandbox) -> Leaving {
        let leaving = self.shared.inflight.leave(&pod.id);
        self.shared.notify(Event::RemovePodSandbox, pod, None).await;
        leaving
    }

    // --- Containers

    /// A container is about to be made. The answer says what is to be made otherwise; updates of other containers that
    /// belong to it are made already.
    ///
    /// # Errors
    /// Then it must not be made, and plugins are to be told that it [ended](Self::stop_container) and is
    /// [gone](Self::remove_container).
    pub async fn create_container(
        &self,
        pod: &PodSandbox,
        container: Container,
    ) -> Result<(ContainerAdjustment, Arriving), Refused> {
        let shared = &self.shared;
        shared.check_required(&pod.namespace)?;
        let _turn = shared.turn.lock().await;
        let arriving = shared.inflight.container(container.clone());
        let request = CreateContainerRequest { pod: Some(pod.clone()), container: Some(container) };
        let validators = || shared.plugins.subscribed(Event::ValidateContainerAdjustment);
        let pristine = (!validators().is_empty()).then(|| request.clone());
        let mut creation = Creation::new(request);
        let plugins = shared.plugins.subscribed(Event::CreateContainer);
        for plugin in &plugins {
            if let Some(answer) = shared.ask(plugin, Event::CreateContainer, creation.request()).await? {
                creation.add(&plugin.name, answer)?;
            }
        }
        if let Some(pristine) = pristine {
            // Without those that have failed meanwhile.
            shared.validate(&creation, pristine, &plugins, &validators()).await?;
        }
        let (adjustment, updates, evictions) = creation.finish();
        shared.apply(updates).await?;
        shared.evict(evictions);
        Ok((adjustment, arriving))
    }

    /// It waits to be started.
    pub async fn created_container(&self, pod: &PodSandbox, container: &Container) {
        self.shared.notify(Event::PostCreateContainer, pod, Some(container)).await;
    }

    /// Its program is about to be executed.
    ///
    /// # Errors
    /// Then it must not be.
    pub async fn start_container(&self, pod: &PodSandbox, container: &Container) -> Result<(), Refused> {
        let _turn = self.shared.turn.lock().await;
        self.shared.relay(Event::StartContainer, pod, Some(container)).await
    }

    /// It was executed.
    pub async fn started_container(&self, pod: &PodSandbox, container: &Container) {
        self.shared.notify(Event::PostStartContainer, pod, Some(container)).await;
    }

    /// A container's limits are about to be changed. The answer says to what.
    ///
    /// # Errors
    /// Then they must not be.
    pub async fn update_container(
        &self,
        pod: &PodSandbox,
        container: &Container,
        resources: LinuxResources,
    ) -> Result<LinuxResources, Refused> {
        let shared = &self.shared;
        let _turn = shared.turn.lock().await;
        let mut updates = Updates::default();
        let mut request = UpdateContainerRequest {
            pod: Some(pod.clone()),
            container: Some(container.clone()),
            linux_resources: Some(resources),
        };
        for plugin in shared.plugins.subscribed(Event::UpdateContainer) {
            let answer = shared.ask(&plugin, Event::UpdateContainer, &request).await?;
            if let Some(UpdateContainerResponse { update, evict }) = answer {
                let own = request.linux_resources.get_or_insert_default();
                updates.add(&plugin.name, update, Some((&container.id, own)), None)?;
                updates.evict(evict);
            }
        }
        let (others, evictions) = updates.into_parts();
        shared.apply(others).await?;
        shared.evict(evictions);
        Ok(request.linux_resources.unwrap_or_default())
    }

    /// They are changed.
    pub async fn updated_container(&self, pod: &PodSandbox, container: &Container) {
        self.shared.notify(Event::PostUpdateContainer, pod, Some(container)).await;
    }

    /// It has ended, or was never made. Updates of other containers that plugins want for that are made when this returns.
    pub async fn stop_container(&self, pod: &PodSandbox, container: &Container) {
        let shared = &self.shared;
        let _turn = shared.turn.lock().await;
        let request = StartContainerRequest { pod: Some(pod.clone()), container: Some(container.clone()) };
        let mut updates = Updates::default();
        for plugin in shared.plugins.subscribed(Event::StopContainer) {
            let answer = shared.ask(&plugin, Event::StopContainer, &request).await;
            let added = answer.and_then(|answer: Option<StopContainerResponse>| {
                updates.add(&plugin.name, answer.unwrap_or_default().update, None, None)
            });
            if let Err(error) = added {
                tracing::warn!(
                    container = container.id,
                    error = cause(&error),
                    "an NRI plugin fails over an ended container"
                );
            }
        }
        if let Err(error) = shared.apply(updates.into_parts().0).await {
            tracing::warn!(
                container = container.id,
                error = cause(&error),
                "other containers stay as they were"
            );
        }
    }

    /// It is about to be gone.
    pub async fn remove_container(&self, pod: &PodSandbox, container: &Container) -> Leaving {
        let leaving = self.shared.inflight.leave(&container.id);
        self.shared.notify(Event::RemoveContainer, pod, Some(container)).await;
        leaving
    }
}
