//! What plugins were told and readers do not see yet.
//!
//! A plugin that connects while a container is being made gets it in Synchronize, although it is in no list; one that
//! connects while a container is being removed does not get it, although it is. Without this the first would be lost to
//! the plugin, and it would keep the second for ever.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{Container, Everything, PodSandbox};

#[derive(Debug, Default)]
pub(crate) struct InFlight(Mutex<State>);

/// What readers' view has to be put right with.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    pods: BTreeMap<String, PodSandbox>,
    containers: BTreeMap<String, Container>,
    leaving: BTreeSet<String>,
}

impl State {
    /// What readers see, put right.
    pub(crate) fn put_right(self, mut seen: Everything) -> Everything {
        seen.pods.retain(|pod| !self.leaving.contains(&pod.id) && !self.pods.contains_key(&pod.id));
        seen.pods.extend(self.pods.into_values());
        seen.containers.retain(|container| {
            !self.leaving.contains(&container.id) && !self.containers.contains_key(&container.id)
        });
        seen.containers.extend(self.containers.into_values());
        seen
    }
}

/// A pod or container that plugins know of. To be kept until readers see it, or it is undone.
#[derive(Debug)]
pub struct Arriving {
    inflight: Arc<InFlight>,
    id: String,
}

/// A pod or container that plugins were told to forget. To be kept until readers see it no more.
#[derive(Debug)]
pub struct Leaving {
    inflight: Arc<InFlight>,
    id: String,
}

impl InFlight {
    pub(crate) fn pod(self: &Arc<Self>, pod: PodSandbox) -> Arriving {
        let id = pod.id.clone();
        self.lock().pods.insert(id.clone(), pod);
        Arriving { inflight: Arc::clone(self), id }
    }

    pub(crate) fn container(self: &Arc<Self>, container: Container) -> Arriving {
        let id = container.id.clone();
        self.lock().containers.insert(id.clone(), container);
        Arriving { inflight: Arc::clone(self), id }
    }

    pub(crate) fn leave(self: &Arc<Self>, id: &str) -> Leaving {
        self.lock().leaving.insert(id.to_owned());
        Leaving { inflight: Arc::clone(self), id: id.to_owned() }
    }

    /// As it is now. To be asked before readers' own view is: what arrives in between is in both.
    pub(crate) fn now(&self) -> State {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        let mut state = self.inflight.lock();
        state.pods.remove(&self.id);
        state.containers.remove(&self.id);
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.inflight.lock().leaving.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(id: &str) -> Container {
        Container { id: id.to_owned(), ..Default::default() }
    }

    fn seen(ids: &[&str]) -> Everything {
        Everything { pods: Vec::new(), containers: ids.iter().map(|id| container(id)).collect() }
    }

    fn ids(everything: Everything) -> Vec<String> {
        everything.containers.into_iter().map(|container| container.id).collect()
    }

    #[test]
    fn what_arrives_is_there_once_and_what_leaves_is_not() {
        let inflight = Arc::new(InFlight::default());
        let arriving = inflight.container(container("new"));
        let leaving = inflight.leave("old");
        let before = inflight.now();
        // It was shown after the first look.
        assert_eq!(ids(before.put_right(seen(&["old", "new"]))), ["new"]);
        assert_eq!(ids(inflight.now().put_right(seen(&["other"]))), ["other", "new"]);
        drop((arriving, leaving));
        assert_eq!(ids(inflight.now().put_right(seen(&["old"]))), ["old"]);
    }
}
