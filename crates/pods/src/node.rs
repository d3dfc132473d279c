//! What all pods share.

use std::collections::HashMap;
use std::path::PathBuf;

use berth_image::Images;
use berth_sandbox_manager::{Container, PodView, SandboxManager, SandboxPhase};
use berth_store::{Batch, Store, StoreError};
use std::sync::Arc;
use tokio::sync::Mutex;

use crate::directory::Directory;
use crate::facts::NodeFacts;
use crate::record::{ManifestRecord, Plan, ProgressRecord};

#[derive(Debug)]
pub(crate) struct Node {
    /// Shows only pods from manifests.
    pub(crate) manager: SandboxManager,
    pub(crate) images: Images,
    /// On the disk when written.
    pub(crate) manifests: Store,
    /// Flushed soon after.
    pub(crate) progress: Store,
    /// A folder for each pod.
    pub(crate) root: PathBuf,
    pub(crate) seccomp_profiles: PathBuf,
    pub(crate) boot_id: String,
    pub(crate) directory: Directory,
    /// Held while pods are taken: two that are taken at once see each other's names and ids.
    pub(crate) taking: Mutex<()>,
}

impl Node {
    pub(crate) fn pod_dir(&self, uid: &str) -> PathBuf {
        self.root.join(uid)
    }

    /// What the node adds to a pod just now.
    pub(crate) async fn facts(&self, plan: &Plan) -> NodeFacts {
        let (cgroup2, host_network) = (self.manager.has_cgroup_v2(), plan.pod.host_network);
        let seccomp_profiles = self.seccomp_profiles.clone();
        blocking(move || NodeFacts::gather(seccomp_profiles, cgroup2, host_network)).await
    }

    pub(crate) fn log_dir(&self, uid: &str) -> PathBuf {
        self.pod_dir(uid).join("logs")
    }

    pub(crate) async fn keep(&self, record: &ManifestRecord) -> Result<(), StoreError> {
        let (store, record) = (self.manifests.clone(), record.clone());
        blocking(move || store.put(&record.uid, &record)).await
    }

    /// `lasting`: it must be true after a power loss as well. That takes a flush, so it is for what must not happen again.
    pub(crate) async fn keep_progress(
        &self,
        uid: &str,
        record: ProgressRecord,
        lasting: bool,
    ) -> Result<(), StoreError> {
        let (manifests, progress, uid) = (self.manifests.clone(), self.progress.clone(), uid.to_owned());
        blocking(move || {
            if lasting {
                manifests.put(&uid, &record)?;
            }
            progress.put(&uid, &record)
        })
        .await
    }

    /// All pods, each with how far it is known to have got.
    pub(crate) async fn recorded(&self) -> Result<Vec<(ManifestRecord, Option<ProgressRecord>)>, StoreError> {
        let (manifests, progress) = (self.manifests.clone(), self.progress.clone());
        blocking(move || {
            let mut newest: HashMap<String, ProgressRecord> = progress.load()?.into_iter().collect();
            for (uid, lasting) in manifests.load::<ProgressRecord>()? {
                if newest.get(&uid).is_none_or(|other| other.step < lasting.step) {
                    newest.insert(uid, lasting);
                }
            }
            let pods = manifests.load::<ManifestRecord>()?.into_iter();
            Ok(pods.map(|(uid, record)| (record, newest.remove(&uid))).collect())
        })
        .await
    }

    pub(crate) async fn forget(&self, uid: &str) -> Result<(), StoreError> {
        let (manifests, progress, uid) = (self.manifests.clone(), self.progress.clone(), uid.to_owned());
        blocking(move || {
            progress.write(Batch::new().delete::<ProgressRecord>(&uid))?;
            manifests.write(Batch::new().delete::<ManifestRecord>(&uid).delete::<ProgressRecord>(&uid))
        })
        .await
    }

    /// All sandboxes that were made for a pod, the newest first.
    pub(crate) fn sandboxes(&self, uid: &str) -> Vec<Arc<PodView>> {
        let mut views = self.manager.sandboxes();
        views.retain(|view| view.sandbox.metadata().uid == uid);
        views.sort_by_key(|view| std::cmp::Reverse(view.sandbox.created_at));
        views
    }

    /// The one that is up.
    pub(crate) fn sandbox(&self, uid: &str) -> Option<Arc<PodView>> {
        self.sandboxes(uid).into_iter().find(|view| view.sandbox.phase == SandboxPhase::Ready)
    }
}

/// A container of a sandbox, by its attempt; the newest one without.
pub(crate) fn attempt<'a>(view: &'a PodView, name: &str, attempt: Option<u32>) -> Option<&'a Arc<Container>> {
    let named = view.containers.values().filter(|container| {
        let (its_name, its_attempt) = container.name_and_attempt();
        its_name == name && attempt.is_none_or(|attempt| attempt == its_attempt)
    });
    named.max_by_key(|container| container.name_and_attempt().1)
}

pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}
