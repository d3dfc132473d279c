//! Following pods: each state as it comes, from a generation on.

use std::sync::Arc;

use berth_cri::berth::v1::{Pod, PodRef, Synced, WatchPodsResponse, watch_pods_response::What};
use tokio::sync::watch;

use crate::directory::Key;
use crate::node::Node;

/// A watcher's place.
#[derive(Debug)]
pub struct Watch {
    node: Arc<Node>,
    changes: watch::Receiver<u64>,
    seen: u64,
    /// Absent: all pods.
    pod: Option<Key>,
}

impl Watch {
    /// Of one pod or of all, from what was `seen` before.
    pub(crate) fn new(node: Arc<Node>, seen: u64, pod: Option<Key>) -> Self {
        Self { changes: node.directory.watch(), node, seen, pod }
    }

    /// What is to be told next; waits until there is something. Cancel safe.
    pub async fn next(&mut self) -> Vec<WatchPodsResponse> {
        loop {
            self.changes.mark_unchanged();
            let changes = self.node.directory.since(self.seen);
            self.seen = changes.generation;
            let wanted = |pod: &Option<PodRef>| match (&self.pod, pod) {
                (Some((namespace, name)), Some(pod)) => *namespace == pod.namespace && *name == pod.name,
                (None, _) => true,
                (Some(_), None) => false,
            };
            let whats = changes.pods.into_iter().filter(|pod| wanted(&pod.pod));
            let whats = whats.map(|pod| (pod.generation, What::Pod(Pod::clone(&pod))));
            let removed = changes.removed.into_iter().filter(|(_, pod)| wanted(&Some(pod.clone())));
            let removed = removed.map(|(at, pod)| (at, What::Removed(pod)));
            // In order, so that whoever stops in the middle can go on from there.
            let mut whats: Vec<_> = whats.chain(removed).collect();
            whats.sort_by_key(|(generation, _)| *generation);
            let synced = changes.is_everything.then_some(What::Synced(Synced {}));
            let synced = synced.map(|synced| (changes.generation, synced));
            let all = whats.into_iter().chain(synced);
            let all: Vec<_> =
                all.map(|(generation, what)| WatchPodsResponse { generation, what: Some(what) }).collect();
            if !all.is_empty() {
                return all;
            }
            if self.changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}
