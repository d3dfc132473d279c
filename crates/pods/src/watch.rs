//! Following pods: each state as it comes, from a generation on.

use std::sync::Arc;

use berth_cri::berth::v1::{Pod, Synced, WatchPodsResponse, watch_pods_response::What};
use tokio::sync::watch;

use crate::directory::{Change, Key, Since, reference};
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
            let mut told = self.unseen();
            if let Some(last) = told.last() {
                self.seen = last.generation;
            }
            told.retain(|told| self.is_wanted(told));
            if !told.is_empty() {
                return told;
            }
            if self.changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// In order, so that whoever stops in the middle can go on from there.
    fn unseen(&self) -> Vec<WatchPodsResponse> {
        let told = |(generation, what)| WatchPodsResponse { generation, what: Some(what) };
        match self.node.directory.since(self.seen) {
            Since::Changes(changes) => {
                let what = |change| match change {
                    Change::State(pod) => What::Pod(Pod::clone(&pod)),
                    Change::Removed(key) => What::Removed(reference(&key)),
                };
                changes.into_iter().map(|(generation, change)| told((generation, what(change)))).collect()
            }
            Since::Everything { pods, generation } => {
                // Whoever stops before the end does not know yet what is gone, and has to begin anew.
                let pods = pods.iter().map(|pod| told((self.seen, What::Pod(Pod::clone(pod)))));
                pods.chain([told((generation, What::Synced(Synced {})))]).collect()
            }
        }
    }

    fn is_wanted(&self, told: &WatchPodsResponse) -> bool {
        let pod = match &told.what {
            Some(What::Pod(pod)) => pod.pod.as_ref(),
            Some(What::Removed(pod)) => Some(pod),
            Some(What::Synced(_)) | None => return true,
        };
        self.pod.as_ref().is_none_or(|key| pod == Some(&reference(key)))
    }
}
