//! What plugins may ask of the node's pods.

use std::time::Duration;

use berth_nri::{ContainerEviction, ContainerUpdate, Everything, Runtime, UpdateFailure};
use futures::future::{BoxFuture, join_all};

use super::view;
use crate::{SandboxManager, SandboxPhase, error::cause, update::Limits};

/// What an evicted container may take to end by itself: Kubernetes' default, since CRI does not say.
const GRACE: Duration = Duration::from_secs(30);

impl Runtime for SandboxManager {
    /// Those that live: a plugin shares out what they may use, and what has ended uses nothing.
    fn state(&self) -> BoxFuture<'_, Everything> {
        Box::pin(async {
            let views = self.sandboxes();
            let ready = views.iter().filter(|view| view.sandbox.phase == SandboxPhase::Ready);
            let mut everything = Everything::default();
            for pod in ready {
                everything.pods.push(view::pod(&pod.sandbox, pod.supervisor_pid()));
                for container in pod.containers.values().filter(|container| container.pid().is_some()) {
                    let container = view::container(self.host(), container).await;
                    everything.containers.push(container);
                }
            }
            everything
        })
    }

    fn update(&self, updates: Vec<ContainerUpdate>) -> BoxFuture<'_, Vec<UpdateFailure>> {
        let made = updates.into_iter().map(async |update| {
            let limits = update.linux.clone().and_then(|linux| linux.resources).unwrap_or_default();
            let result = self.change_limits(&update.container_id, Limits::OfPlugins(Box::new(limits))).await;
            result.err().map(|error| UpdateFailure { update, why: describe(&error) })
        });
        Box::pin(async { join_all(made).await.into_iter().flatten().collect() })
    }

    fn evict(&self, eviction: ContainerEviction) -> BoxFuture<'static, ()> {
        let manager = self.clone();
        Box::pin(async move {
            let ContainerEviction { container_id: container, reason } = eviction;
            tracing::warn!(container, reason, "an NRI plugin evicts a container");
            if let Err(error) = manager.stop_container(&container, GRACE).await {
                tracing::error!(container, error = cause(&error), "cannot evict it");
            }
        })
    }
}

/// With its causes: the plugin gets a text.
fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
