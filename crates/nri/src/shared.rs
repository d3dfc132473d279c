//! What all plugins share, and how they are asked: one after the other, in their turn, and with a judgement on those that
//! fail.

use std::{
    fmt,
    sync::{Arc, OnceLock, atomic::AtomicUsize},
    time::Duration,
};

use futures::future::join_all;
use tokio::{net::UnixStream, sync::Mutex, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    CallError, Container, ContainerEviction, ContainerUpdate, CreateContainerRequest, Empty, Event,
    NriConfig, OnFailure, PluginInstance, PodSandbox, Refused, Runtime, StartContainerRequest,
    StateChangeEvent, UpdateContainersRequest, UpdateContainersResponse, UpdateFailure,
    ValidateContainerAdjustmentResponse,
    event::method,
    inflight::InFlight,
    merge::{Creation, Updates},
    plugin::{Plugin, RegisterError},
    plugins::Plugins,
    wire::message::UNIMPLEMENTED,
};

/// How long updates of other containers may take: lowering a memory limit makes the kernel reclaim first.
const UPDATES: Duration = Duration::from_secs(30);

pub(crate) struct Shared {
    pub(crate) runtime_name: String,
    pub(crate) runtime_version: String,
    pub(crate) config: NriConfig,
    pub(crate) plugins: Plugins,
    pub(crate) inflight: Arc<InFlight>,
    /// Whatever plugins are asked, they are asked one thing at a time.
    pub(crate) turn: Mutex<()>,
    /// Plugins that are looking at what there is, and are not among the others yet.
    pub(crate) synchronising: AtomicUsize,
    pub(crate) runtime: OnceLock<Arc<dyn Runtime>>,
    pub(crate) tasks: TaskTracker,
    pub(crate) stopping: CancellationToken,
}

impl fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Nri").field("plugins", &self.plugins).finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::clone(self.runtime.get().expect("no plugin is there before the start"))
    }

    /// A connection from the socket, to its end.
    pub(crate) async fn external(self: Arc<Self>, stream: UnixStream) {
        let plugin = match Plugin::register(&self, stream, None).await {
            Ok(plugin) => Arc::new(plugin),
            Err(error) => {
                return tracing::warn!(error = cause(&error), "a connection does not become an NRI plugin");
            }
        };
        match self.serve(&plugin, || ()).await {
            Ok(why) => tracing::warn!(plugin = plugin.name, why, "an NRI plugin is gone"),
            Err(error) => {
                tracing::warn!(plugin = plugin.name, error = cause(&error), "an NRI plugin is turned away");
                self.plugins.miss(&plugin.name, &error.to_string());
            }
        }
    }

    /// Synchronises a registered plugin, says so, and returns when its connection has ended, with the reason.
    pub(crate) async fn serve(
        &self,
        plugin: &Arc<Plugin>,
        synchronised: impl FnOnce(),
    ) -> Result<String, RegisterError> {
        if let Err(error) = self.synchronize(plugin).await {
            plugin.connection.close();
            return Err(error);
        }
        synchronised();
        tracing::info!(plugin = plugin.name, pid = plugin.pid, events = ?plugin.events.names(), "NRI plugin connected");
        tokio::select! {
            // Both are levels.
            () = plugin.connection.ended() => {}
            () = self.stopping.cancelled() => plugin.connection.close(),
        }
        let why = plugin.connection.why();
        self.plugins.remove(plugin, &why);
        Ok(why)
    }

    pub(crate) fn check_required(&self, namespace: &str) -> Result<(), Refused> {
        match self.config.required(namespace).find(|name| !self.plugins.has(name)) {
            Some(name) => Err(Refused::Missing(name.to_owned())),
            None => Ok(()),
        }
    }

    /// Asks one plugin. `None` when it failed, and its policy is to go on without it.
    pub(crate) async fn ask<A: prost::Message + Default>(
        &self,
        plugin: &Plugin,
        event: Event,
        request: &impl prost::Message,
    ) -> Result<Option<A>, Refused> {
        let call = plugin.connection.call(method(event), request, self.config.request_timeout);
        self.judge(plugin, event, call.await)
    }

    fn judge<A>(
        &self,
        plugin: &Plugin,
        event: Event,
        answer: Result<A, CallError>,
    ) -> Result<Option<A>, Refused> {
        let (name, event) = (plugin.name.clone(), method(event));
        let failure = match answer {
            Ok(answer) => return Ok(Some(answer)),
            Err(CallError::Answered { message, .. }) => {
                return Err(Refused::Answered { plugin: name, event, why: message });
            }
            // Nothing that it did: the request does not fit.
            Err(source @ CallError::TooLong) => {
                return Err(Refused::Failed { plugin: name, event, source });
            }
            Err(failure) => failure,
        };
        let why = format!("{event}: {failure}");
        self.plugins.fail(plugin, &why);
        plugin.connection.close();
        let policy = self.config.on_failure(&plugin.base);
        tracing::error!(plugin = name, event, %failure, ?policy, "an NRI plugin failed and is disconnected");
        match policy {
            OnFailure::Closed => Err(Refused::Failed { plugin: name, event, source: failure }),
            OnFailure::Open => Ok(None),
        }
    }

    /// Tells all plugins of an event without an answer; the first that refuses is the last that is told. The caller has
    /// the turn.
    pub(crate) async fn relay(
        &self,
        event: Event,
        pod: &PodSandbox,
        container: Option<&Container>,
    ) -> Result<(), Refused> {
        for plugin in self.plugins.subscribed(event) {
            self.tell(&plugin, event, pod, container).await?;
        }
        Ok(())
    }

    /// Tells all plugins of something that is so already: who objects is written down.
    pub(crate) async fn notify(&self, event: Event, pod: &PodSandbox, container: Option<&Container>) {
        let _turn = self.turn.lock().await;
        for plugin in self.plugins.subscribed(event) {
            if let Err(error) = self.tell(&plugin, event, pod, container).await {
                tracing::warn!(
                    pod = pod.id,
                    error = cause(&error),
                    "an NRI plugin fails over what is so already"
                );
            }
        }
    }

    async fn tell(
        &self,
        plugin: &Plugin,
        event: Event,
        pod: &PodSandbox,
        container: Option<&Container>,
    ) -> Result<(), Refused> {
        // All these requests have the pod as field 1 and the container, if any, as field 2.
        let (pod, container) = (Some(pod.clone()), container.cloned());
        let request = StartContainerRequest { pod: pod.clone(), container: container.clone() };
        let limit = self.config.request_timeout;
        let mut answer = plugin.connection.call::<Empty>(method(event), &request, limit).await;
        if matches!(answer, Err(CallError::Answered { code: UNIMPLEMENTED, .. })) {
            // Plugins of before version 0.10.
            let request = StateChangeEvent { event: event.into(), pod, container };
            answer = plugin.connection.call("StateChange", &request, limit).await;
        }
        self.judge(plugin, event, answer).map(drop)
    }

    pub(crate) async fn validate(
        &self,
        creation: &Creation,
        pristine: CreateContainerRequest,
        plugins: &[Arc<Plugin>],
        validators: &[Arc<Plugin>],
    ) -> Result<(), Refused> {
        let mut request = creation.validation(pristine);
        request.plugins = plugins
            .iter()
            .map(|plugin| PluginInstance { name: plugin.base.clone(), index: plugin.index.clone() })
            .collect();
        let event = Event::ValidateContainerAdjustment;
        let asked = validators.iter().map(|plugin| {
            let request = &request;
            async move {
                let answer = self.ask::<ValidateContainerAdjustmentResponse>(plugin, event, request).await?;
                match answer.filter(|answer| answer.reject) {
                    Some(answer) => Err(Refused::Rejected {
                        plugin: plugin.name.clone(),
                        why: if answer.reason.is_empty() {
                            "it gives no reason".to_owned()
                        } else {
                            answer.reason
                        },
                    }),
                    None => Ok(()),
                }
            }
        });
        join_all(asked).await.into_iter().collect()
    }

    /// Makes updates of other containers; the first failure that matters is the answer.
    pub(crate) async fn apply(&self, updates: Vec<ContainerUpdate>) -> Result<(), Refused> {
        let mut result = Ok(());
        for UpdateFailure { update, why } in self.update(updates).await {
            match update.ignore_failure {
                true => tracing::warn!(
                    container = update.container_id,
                    why,
                    "an update that NRI plugins want failed"
                ),
                false => {
                    result = result.and(Err(Refused::SideUpdate { container: update.container_id, why }))
                }
            }
        }
        result
    }

    async fn update(&self, updates: Vec<ContainerUpdate>) -> Vec<UpdateFailure> {
        if updates.is_empty() {
            return Vec::new();
        }
        let runtime = self.runtime();
        match timeout(UPDATES, runtime.update(updates.clone())).await {
            Ok(failed) => failed,
            Err(_) => updates
                .into_iter()
                .map(|update| UpdateFailure { update, why: format!("not done after {UPDATES:?}") })
                .collect(),
        }
    }

    /// Not waited for: the end of a container is told to plugins in turn.
    pub(crate) fn evict(&self, evictions: Vec<ContainerEviction>) {
        for eviction in evictions {
            self.tasks.spawn(self.runtime().evict(eviction));
        }
    }

    /// What a plugin wants without being asked. It takes no turn: the plugin may want it in the middle of an answer.
    pub(crate) async fn unsolicited(
        &self,
        plugin: &str,
        request: UpdateContainersRequest,
    ) -> Result<UpdateContainersResponse, String> {
        tracing::info!(
            plugin,
            updates = request.update.len(),
            evictions = request.evict.len(),
            "an NRI plugin wants changes"
        );
        let mut updates = Updates::default();
        updates.add(plugin, request.update, None, None).map_err(|error| error.to_string())?;
        let failed = self.update(updates.into_parts().0).await;
        for UpdateFailure { update, why } in &failed {
            tracing::warn!(
                plugin,
                container = update.container_id,
                why,
                "an update that an NRI plugin wants failed"
            );
        }
        self.evict(request.evict);
        let failed = failed.into_iter().map(|failure| failure.update).filter(|update| !update.ignore_failure);
        Ok(UpdateContainersResponse { failed: failed.collect() })
    }
}

/// For a log line: the error and everything that led to it.
pub(crate) fn cause<E: std::error::Error + 'static>(error: &E) -> &(dyn std::error::Error + 'static) {
    error
}
