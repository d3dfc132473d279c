//! Following pods: each state as it comes, from a generation on.

use std::sync::Arc;

use berth_cri::berth::v1::{Pod, PodRef, Synced, WatchPodsResponse, watch_pods_response::What};
use tokio::sync::watch;

use crate::directory::{Change, Key, reference};
use crate::node::Node;

/// A watcher's place.
#[derive(Debug)]
pub struct Watch {
    node: Arc<Node>,
    changes: watch::Receiver<u64>,
    seen: u64,
    /// Absent: all pods.
    pod: Option<PodRef>,
}

impl Watch {
    /// Of one pod or of all, from what was `seen` before.
    pub(crate) fn new(node: Arc<Node>, seen: u64, pod: Option<Key>) -> Self {
        Self { changes: node.directory.watch(), node, seen, pod: pod.as_ref().map(reference) }
    }

    /// What is to be told next; waits until there is something. Cancel safe.
    pub async fn next(&mut self) -> Vec<WatchPodsResponse> {
        loop {
            self.changes.mark_unchanged();
            let mut told = Vec::new();
            for (generation, change) in self.node.directory.since(self.seen) {
                self.seen = generation;
                let what = self.what(change);
                told.extend(what.map(|what| WatchPodsResponse { generation, what: Some(what) }));
            }
            if !told.is_empty() {
                return told;
            }
            if self.changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// None for what the watcher did not ask for. States are large: only those that are told are copied.
    fn what(&self, change: Change) -> Option<What> {
        let wants = |pod: Option<&PodRef>| self.pod.is_none() || self.pod.as_ref() == pod;
        match change {
            Change::State(pod) => wants(pod.pod.as_ref()).then(|| What::Pod(Pod::clone(&pod))),
            Change::Removed(key) => Some(reference(&key)).filter(|pod| wants(Some(pod))).map(What::Removed),
            Change::Synced => Some(What::Synced(Synced {})),
        }
    }
}
