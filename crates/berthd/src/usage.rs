//! What pods and containers use: brings together who there is (the sandbox manager), where their files lie (the image
//! store) and how it is measured (berth-stats). All of it reads the kernel's files, so none of it on an async worker.

use std::path::PathBuf;
use std::sync::Arc;

use berth_cri::runtime::v1::{ContainerStats, PodSandboxMetrics, PodSandboxStats};
use berth_image::Images;
use berth_sandbox_manager::{
    Container, ContainerState, EventKind, Listener, PodView, SandboxManager, SandboxPhase,
};
use berth_stats::{CgroupFolders, ContainerFacts, PodFacts, PodNetwork, Stats, WritableLayer};
use tokio_util::sync::CancellationToken;

/// The interface that the built-in network makes, and that CNI is asked for.
const DEFAULT_INTERFACE: &str = "eth0";

/// Measures. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Usage {
    stats: Arc<Stats>,
    manager: SandboxManager,
    images: Images,
    /// On the file system of the containers' own layers.
    mountpoint: PathBuf,
}

impl Usage {
    pub(crate) fn new(manager: SandboxManager, images: Images, mountpoint: PathBuf) -> Self {
        Self { stats: Arc::default(), manager, images, mountpoint }
    }

    /// The same measurements, of the pods that this manager shows.
    pub(crate) fn of(&self, manager: SandboxManager) -> Self {
        Self { manager, ..self.clone() }
    }

    /// Keeps up with what starts and what is removed, until `stop`. An event that is missed costs a first measurement
    /// that comes later, or the few bytes kept of something that is gone.
    pub(crate) async fn follow(self, mut events: Listener, stop: CancellationToken) {
        while let Some(Some(event)) = stop.run_until_cancelled(events.next()).await {
            let Ok(event) = event else { continue };
            match event.kind {
                EventKind::Started => {
                    if let Some(layer) = self.layer(&event.id) {
                        self.stats.started(&event.id, &layer);
                    }
                }
                EventKind::Deleted => self.stats.forget(&event.id),
                EventKind::Created | EventKind::Stopped => {}
            }
        }
    }

    pub(crate) async fn container(&self, pod: Arc<PodView>, container: Arc<Container>) -> ContainerStats {
        self.measure(move |usage| usage.stats.container(&usage.container_facts(&pod, &container))).await
    }

    /// Of the running containers that `wanted` picks.
    pub(crate) async fn containers(
        &self,
        wanted: impl Fn(&Container) -> bool + Send + 'static,
    ) -> Vec<ContainerStats> {
        self.measure(move |usage| {
            let pods = usage.manager.sandboxes();
            let facts: Vec<_> = pods.iter().flat_map(|pod| usage.running_facts(pod, &wanted)).collect();
            usage.stats.containers(&facts)
        })
        .await
    }

    pub(crate) async fn pod(&self, pod: Arc<PodView>) -> PodSandboxStats {
        self.measure(move |usage| usage.pod_stats(&pod)).await
    }

    /// Of the ready pods that `wanted` picks.
    pub(crate) async fn pods(
        &self,
        wanted: impl Fn(&PodView) -> bool + Send + 'static,
    ) -> Vec<PodSandboxStats> {
        self.measure(move |usage| {
            let pods = usage.ready_pods();
            pods.iter().filter(|pod| wanted(pod)).map(|pod| usage.pod_stats(pod)).collect()
        })
        .await
    }

    /// Of all ready pods.
    pub(crate) async fn metrics(&self) -> Vec<PodSandboxMetrics> {
        self.measure(|usage| {
            let pods = usage.ready_pods();
            let measure = |pod: &Arc<PodView>| {
                usage.stats.pod_metrics(&usage.pod_facts(pod), &usage.running_facts(pod, |_| true))
            };
            pods.iter().map(measure).collect()
        })
        .await
    }

    async fn measure<T: Send + 'static>(&self, work: impl FnOnce(&Self) -> T + Send + 'static) -> T {
        let usage = self.clone();
        match tokio::task::spawn_blocking(move || work(&usage)).await {
            Ok(measured) => measured,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    fn ready_pods(&self) -> Vec<Arc<PodView>> {
        let mut pods = self.manager.sandboxes();
        pods.retain(|pod| pod.sandbox.phase == SandboxPhase::Ready);
        pods
    }

    fn pod_stats(&self, pod: &PodView) -> PodSandboxStats {
        self.stats.pod(&self.pod_facts(pod), &self.running_facts(pod, |_| true))
    }

    fn running_facts(&self, pod: &PodView, wanted: impl Fn(&Container) -> bool) -> Vec<ContainerFacts> {
        let running = pod.containers.values().filter(|container| {
            matches!(container.state, ContainerState::Running { .. }) && wanted(container)
        });
        running.map(|container| self.container_facts(pod, container)).collect()
    }

    fn container_facts(&self, pod: &PodView, container: &Container) -> ContainerFacts {
        let (name, attempt) = container.name_and_attempt();
        ContainerFacts {
            id: container.id.to_string(),
            name: name.to_owned(),
            attempt,
            pod: pod.sandbox.metadata(),
            labels: container.config.labels.clone(),
            annotations: container.config.annotations.clone(),
            image: container.image.name.clone(),
            cgroup: self.cgroup(&container.cgroup_path(&pod.sandbox.cgroup_parent)),
            pid: container.pid(),
            resources: Some(container.resources.clone()),
            started_at: container.started_at(),
            layer: self.layer(container.id.as_str()),
        }
    }

    fn pod_facts(&self, pod: &PodView) -> PodFacts {
        let sandbox = &pod.sandbox;
        // The supervisor lives in the pod's network namespace.
        let inside = pod.supervisor_pid().filter(|_| !sandbox.host_network());
        PodFacts {
            id: sandbox.id.to_string(),
            metadata: sandbox.metadata(),
            labels: sandbox.config.labels.clone(),
            annotations: sandbox.config.annotations.clone(),
            cgroup: Some(self.cgroup(&sandbox.cgroup_parent)),
            network: inside.map(|pid| PodNetwork { pid, default_interface: DEFAULT_INTERFACE.to_owned() }),
            created_at: sandbox.created_at,
        }
    }

    fn cgroup(&self, path: &str) -> CgroupFolders {
        CgroupFolders::from_hierarchies(self.manager.cgroup_folders(path))
    }

    fn layer(&self, container: &str) -> Option<WritableLayer> {
        let snapshot = self.images.snapshot(container)?;
        Some(WritableLayer { folder: snapshot.upper(), mountpoint: self.mountpoint.clone() })
    }
}
