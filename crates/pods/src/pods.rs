//! The door through which requests come in.

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use berth_cri::berth::v1::{Pod, PodEvent, PodRef, PodTimeline};
use berth_image::Images;
use berth_manifest::{self as manifest, Configs, Faults, Manifests, Source, Strictness};
use berth_sandbox_manager::{Container, ContainerState, Listener, PodView, SandboxManager};
use berth_store::{Store, StoreError};
use tokio::sync::{Mutex, Notify, broadcast, mpsc, oneshot};

use crate::directory::{Directory, Entry, Key};
use crate::node::{self, Node};
use crate::record::{IDS, ManifestRecord, Plan, ProgressRecord};
use crate::task::{Beginning, Message, Task};
use crate::watch::Watch;
use crate::{Error, clock, timeline, work};

/// What it is told at start.
#[derive(Debug)]
pub struct PodsConfig {
    /// For records, logs and volumes; survives a reboot.
    pub root: PathBuf,
    /// Manifests in it are run as long as they are there.
    pub manifests: Option<PathBuf>,
    /// Where the seccomp profiles lie that manifests name.
    pub seccomp_profiles: PathBuf,
}

/// Why it cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A folder or file.
    #[error("cannot use {}", path.display())]
    Path {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The records.
    #[error("cannot read the records of pods from manifests")]
    Store(#[from] StoreError),
}

/// Requests that a pod may have waiting.
const MAILBOX: usize = 32;

/// The first of the ids that pods with users of their own get; below are the node's own (and kubelet's default is the
/// same).
const FIRST_ID: u32 = IDS;

/// All pods that come from manifests. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Pods(pub(crate) Arc<Node>);

/// What came of manifests.
#[derive(Debug, Default)]
pub struct Taken {
    /// In the order of the input.
    pub pods: Vec<PodRef>,
    /// Fields that were passed over.
    pub warnings: Vec<String>,
}

impl Pods {
    /// Takes up the pods of an earlier daemon. `manager` shows pods from manifests alone; `manifests` is flushed at each
    /// write, `progress` soon after.
    ///
    /// # Errors
    /// When records or folders cannot be used.
    pub async fn start(
        config: PodsConfig,
        manager: SandboxManager,
        images: Images,
        manifests: Store,
        progress: Store,
    ) -> Result<Self, StartError> {
        let root = config.root;
        let folder = root.clone();
        tokio::fs::create_dir_all(&folder)
            .await
            .map_err(|source| StartError::Path { path: folder, source })?;
        let node = Node {
            boot_id: manager.boot_id().to_owned(),
            manager,
            images,
            manifests,
            progress,
            root,
            seccomp_profiles: config.seccomp_profiles,
            directory: Directory::default(),
            taking: Mutex::default(),
        };
        let pods = Self(Arc::new(node));
        // Before anything is looked at: what ends afterwards is heard.
        let events = pods.0.manager.listen();
        pods.take_up().await?;
        tokio::spawn(pods.clone().ring_bells(events));
        if let Some(folder) = config.manifests {
            tokio::spawn(crate::folder::follow(pods.clone(), folder));
        }
        Ok(pods)
    }

    async fn take_up(&self) -> Result<(), StoreError> {
        for (record, progress) in self.0.recorded().await? {
            let uid = record.uid.clone();
            match Plan::read(record) {
                Ok(plan) => {
                    if let Err(error) = self.begin(plan, progress) {
                        tracing::error!(uid, %error, "a pod is recorded twice; this one is left alone");
                    }
                }
                // It stays as it is for a version that can read it; its containers run on.
                Err(faults) => tracing::error!(uid, %faults, "the manifest of a pod cannot be read any more"),
            }
        }
        Ok(())
    }

    /// Tells tasks when something happens to their sandboxes.
    async fn ring_bells(self, mut events: Listener) {
        while let Some(event) = events.next().await {
            // Of what was missed nobody knows whose it was.
            let uid = event.ok().map(|event| event.pod.sandbox.metadata().uid);
            self.0.directory.ring(uid.as_deref());
        }
    }

    /// Checks manifests, and says what is wrong.
    ///
    /// # Errors
    /// [`Error::Faults`].
    pub fn check(sources: &[Source<'_>], strictness: Strictness) -> Result<Manifests, Error> {
        let manifests = berth_manifest::read(sources, strictness)?;
        if manifests.pods.is_empty() {
            return Err(Error::Nothing("Pod"));
        }
        Ok(manifests)
    }

    /// What would come of manifests that were checked.
    #[must_use]
    pub fn would_take(manifests: &Manifests) -> Taken {
        let pods = manifests
            .pods
            .iter()
            .map(|pod| PodRef { namespace: pod.metadata.namespace.clone(), name: pod.metadata.name.clone() });
        Taken { pods: pods.collect(), warnings: manifests.warnings.iter().map(ToString::to_string).collect() }
    }

    /// Runs the pods of manifests that were checked. `source`: the file, when it is a static one.
    ///
    /// # Errors
    /// [`Error::Exists`]: then no pod of the input was begun.
    pub async fn run(&self, manifests: Manifests, source: Option<&str>) -> Result<Taken, Error> {
        let taken = Self::would_take(&manifests);
        let _alone = self.0.taking.lock().await;
        let mut plans = Vec::new();
        for pod in manifests.pods {
            let key = (pod.metadata.namespace.clone(), pod.metadata.name.clone());
            if let Ok(present) = self.0.directory.get(&key) {
                let same = present.plan.is(&pod, &manifests.configs) && !present.state.stopping;
                // One that was asked for by hand as well stays its file's.
                let of_source = source.is_none() || present.plan.record.source.as_deref() == source;
                match same && of_source {
                    true => continue,
                    false => return Err(exists(&key)),
                }
            }
            let given = &pod.metadata.uid;
            if !given.is_empty() && self.0.directory.entries().iter().any(|entry| entry.state.uid == *given) {
                return Err(Error::Invalid(format!("metadata.uid: another pod has {given}; leave it out")));
            }
            let record = ManifestRecord {
                uid: if given.is_empty() { new_uid().await? } else { given.clone() },
                document: pod.document.clone(),
                ephemeral: Vec::new(),
                configs: manifests.config_documents.clone(),
                source: source.map(str::to_owned),
                created_at: clock::unix(),
                first_id: None,
            };
            plans.push(Plan { record, pod, configs: manifests.configs.clone() });
        }
        for mut plan in plans {
            if !plan.pod.host_users {
                plan.record.first_id = Some(self.free_ids()?);
            }
            self.0.keep(&plan.record).await?;
            let uid = plan.record.uid.clone();
            if let Err(taken) = self.begin(plan, None) {
                // The input has the name twice.
                self.0.forget(&uid).await?;
                return Err(taken);
            }
        }
        Ok(taken)
    }

    /// The first range of ids that no other pod has.
    fn free_ids(&self) -> Result<u32, Error> {
        let entries = self.0.directory.entries();
        let taken: HashSet<_> = entries.iter().filter_map(|entry| entry.plan.record.first_id).collect();
        let mut ranges = (FIRST_ID..u32::MAX - IDS).step_by(IDS as usize);
        let free = ranges.find(|first| !taken.contains(first));
        free.ok_or_else(|| {
            Error::Invalid("there are no user ids left for a pod with hostUsers: false".to_owned())
        })
    }

    /// Begins a pod's task.
    fn begin(&self, plan: Plan, progress: Option<ProgressRecord>) -> Result<(), Error> {
        let key = (plan.pod.metadata.namespace.clone(), plan.pod.metadata.name.clone());
        let plan = Arc::new(plan);
        let (mailbox, received) = mpsc::channel(MAILBOX);
        let bell = Arc::new(Notify::new());
        let state = Pod {
            pod: Some(crate::directory::reference(&key)),
            uid: plan.record.uid.clone(),
            ..Pod::default()
        };
        let entry = Entry {
            plan: Arc::clone(&plan),
            mailbox,
            bell: Arc::clone(&bell),
            state: Arc::new(state),
            history: Arc::default(),
            events: std::collections::VecDeque::new(),
        };
        self.0.directory.add(key.clone(), entry).map_err(|_| exists(&key))?;
        let beginning = Beginning { key, plan, progress, mailbox: received, bell };
        let mut task = Task::new(Arc::clone(&self.0), beginning);
        // Whoever asks now is told all that there is.
        task.announce();
        tokio::spawn(task.run());
        Ok(())
    }

    /// The files that pods come from.
    pub(crate) fn sources(&self) -> BTreeSet<String> {
        self.0.directory.entries().iter().filter_map(|entry| entry.plan.record.source.clone()).collect()
    }

    /// The pods that come from a file.
    pub(crate) fn of_source(&self, source: &str) -> Vec<Key> {
        let entries = self.0.directory.entries();
        let of = entries.iter().filter(|entry| entry.plan.record.source.as_deref() == Some(source));
        of.filter_map(|entry| entry.state.pod.clone()).map(|pod| (pod.namespace, pod.name)).collect()
    }

    /// Whether the pod of a file is there and is another than the file has now.
    pub(crate) fn differs(&self, key: &Key, source: &str, pod: &manifest::Pod, configs: &Configs) -> bool {
        let present = self.0.directory.get(key).ok().map(|entry| entry.plan);
        let of_file = present.filter(|plan| plan.record.source.as_deref() == Some(source));
        of_file.is_some_and(|plan| !plan.is(pod, configs))
    }

    /// Tells of a file that is not followed.
    pub(crate) fn report_source(&self, source: &str, error: &Error) {
        let event = PodEvent {
            at: clock::unix(),
            warning: true,
            reason: "ManifestRejected".to_owned(),
            message: format!("{source}: {}", work::text(error)),
            ..PodEvent::default()
        };
        self.0.directory.note(&Key::default(), event);
    }

    /// A pod as it is.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn get(&self, pod: &Key) -> Result<Arc<Pod>, Error> {
        Ok(self.0.directory.get(pod)?.state)
    }

    /// All pods of a namespace, or of all, and the generation to watch from.
    #[must_use]
    pub fn list(&self, namespace: &str) -> (Vec<Arc<Pod>>, u64) {
        self.0.directory.list(namespace)
    }

    /// What becomes of pods from a generation on.
    #[must_use]
    pub fn watch(&self, since: u64, pod: Option<Key>) -> Watch {
        Watch::new(Arc::clone(&self.0), since, pod)
    }

    /// Ends a pod, and waits for its end.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn stop(&self, pod: &Key, grace: Option<Duration>) -> Result<(), Error> {
        let entry = self.0.directory.get(pod)?;
        ask(&entry, |ended| Message::Stop { grace, ended }).await
    }

    /// Removes a pod with all that is its own; first ends it when `stop`. Fine for one that is not there.
    ///
    /// # Errors
    /// [`Error::WrongState`] when it has not ended.
    pub async fn remove(&self, pod: &Key, stop: bool) -> Result<(), Error> {
        let Ok(entry) = self.0.directory.get(pod) else { return Ok(()) };
        let asked = async {
            if stop {
                ask(&entry, |ended| Message::Stop { grace: None, ended }).await?;
            }
            ask(&entry, |removed| Message::Remove { removed }).await?
        };
        match asked.await {
            // Somebody else has removed it in the meantime.
            Err(Error::Ending(_)) if !self.0.directory.has(pod, &entry.state.uid) => Ok(()),
            removed => removed,
        }
    }

    /// Adds ephemeral containers to a pod: all that the manifests have for it.
    ///
    /// # Errors
    /// [`Error::Faults`] with what does not fit the pod; [`Error::WrongState`] when it has ended.
    pub async fn add_ephemeral(&self, pod: Option<&Key>, source: Source<'_>) -> Result<Arc<Pod>, Error> {
        let manifests = berth_manifest::read(&[source], Strictness::Strict)?;
        let Some(given) = manifests.ephemeral.first() else {
            return Err(Error::Nothing("EphemeralContainers"));
        };
        let named = (given.pod.namespace.clone(), given.pod.name.clone());
        let key = pod.cloned().unwrap_or(named);
        let entry = self.0.directory.get(&key)?;
        fits(&entry, &manifests, source.name)?;
        if entry.state.stopping || entry.state.finished_at != 0 {
            return Err(Error::WrongState {
                what: format!("pod {}", entry.plan.label()),
                state: "has ended, or is ending".to_owned(),
                ask: "add a container to",
            });
        }
        let items = manifests.ephemeral.into_iter().flat_map(|one| one.documents).collect();
        let configs = manifests.config_documents;
        ask(&entry, |kept| Message::AddEphemeral { items, configs, kept }).await??;
        self.get(&key)
    }

    /// The events that are kept, and those to come.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn events(&self, pod: Option<&Key>) -> Result<(Vec<PodEvent>, broadcast::Receiver<PodEvent>), Error> {
        if let Some(pod) = pod {
            self.0.directory.get(pod)?;
        }
        Ok(self.0.directory.events(pod))
    }

    /// Where the time of its start went.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn timeline(&self, pod: &Key) -> Result<PodTimeline, Error> {
        let entry = self.0.directory.get(pod)?;
        let now = if entry.state.finished_at == 0 { clock::unix() } else { entry.state.finished_at };
        Ok(timeline::wire(&entry.history, now))
    }

    /// The images that pods name, which they may need again.
    #[must_use]
    pub fn images(&self) -> BTreeSet<String> {
        let entries = self.0.directory.entries();
        let pods = entries.iter().filter(|entry| entry.state.finished_at == 0).map(|entry| &entry.plan.pod);
        pods.flat_map(crate::plan::images).map(str::to_owned).collect()
    }

    /// The sandboxes that are up, of one pod or of all.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn sandboxes(&self, pod: Option<&Key>) -> Result<Vec<(PodRef, Arc<PodView>)>, Error> {
        let entries = match pod {
            Some(pod) => vec![self.0.directory.get(pod)?],
            None => self.0.directory.entries(),
        };
        let up = entries
            .into_iter()
            .filter_map(|entry| Some((entry.state.pod.clone()?, self.0.sandbox(&entry.plan.record.uid)?)));
        Ok(up.collect())
    }

    /// A container of a pod that runs; the first standard one without a name.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NoContainer`], [`Error::WrongState`] with what it waits for.
    pub fn running(&self, pod: &Key, container: &str, ask: &'static str) -> Result<Arc<Container>, Error> {
        let entry = self.0.directory.get(pod)?;
        let name = named(&entry, container)?;
        let view = self.0.sandbox(&entry.plan.record.uid);
        let live = view.as_deref().and_then(|view| node::attempt(view, &name, None)).cloned();
        match live.filter(|live| matches!(live.state, ContainerState::Running { .. })) {
            Some(live) => Ok(live),
            None => Err(Error::WrongState {
                what: format!("container {name} of pod {}", entry.plan.label()),
                state: format!("does not run{}", why(&entry, &name)),
                ask,
            }),
        }
    }

    /// The id of a pod's sandbox.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::WrongState`] when there is none.
    pub fn sandbox_id(&self, pod: &Key, ask: &'static str) -> Result<String, Error> {
        let entry = self.0.directory.get(pod)?;
        match self.0.sandbox(&entry.plan.record.uid) {
            Some(view) => Ok(view.sandbox.id.to_string()),
            None => Err(Error::WrongState {
                what: format!("pod {}", entry.plan.label()),
                state: "has no sandbox".to_owned(),
                ask,
            }),
        }
    }
}

/// The whole name: of the only, or the first, standard container when none is given.
pub(crate) fn named(entry: &Entry, container: &str) -> Result<String, Error> {
    let pod = &entry.plan.pod;
    if container.is_empty() {
        let first = pod.standard.first().map(|first| first.name.clone());
        return first.ok_or_else(|| Error::Invalid("the pod has no containers".to_owned()));
    }
    match crate::plan::container(pod, container) {
        Some(found) => Ok(found.name.clone()),
        None => Err(Error::NoContainer {
            pod: entry.plan.label(),
            container: container.to_owned(),
            others: entry.state.containers.iter().map(|one| one.name.clone()).collect(),
        }),
    }
}

/// " (CrashLoopBackOff)"
fn why(entry: &Entry, name: &str) -> String {
    use berth_cri::berth::v1::pod_container::State;
    let found = entry.state.containers.iter().find(|one| one.name == name);
    match found.and_then(|one| one.state.as_ref()) {
        Some(State::Waiting(waiting)) if waiting.message.is_empty() => format!(" ({})", waiting.reason),
        Some(State::Waiting(waiting)) => format!(" ({}: {})", waiting.reason, waiting.message),
        Some(State::Terminated(ended)) => format!(" (it ended with {}, {})", ended.exit_code, ended.reason),
        Some(State::Running(_)) | None => String::new(),
    }
}

/// Whether ephemeral containers fit the pod they are for.
fn fits(entry: &Entry, manifests: &Manifests, source: &str) -> Result<(), Error> {
    let pod = &entry.plan.pod;
    let mut names: Vec<&str> = entry.state.containers.iter().map(|one| one.name.as_str()).collect();
    let mut faults = Vec::new();
    for (index, one) in manifests.ephemeral.iter().flat_map(|given| &given.containers).enumerate() {
        faults.extend(one.misfits(&names, &pod.volumes).into_iter().map(|(field, problem)| {
            berth_manifest::Fault {
                source: source.to_owned(),
                document: 1,
                path: format!("ephemeralContainers[{index}].{field}"),
                problem,
            }
        }));
        names.push(&one.container.name);
    }
    if faults.is_empty() { Ok(()) } else { Err(Error::Faults(Faults(faults))) }
}

async fn ask<T>(entry: &Entry, message: impl FnOnce(oneshot::Sender<T>) -> Message) -> Result<T, Error> {
    let gone = || Error::Ending(entry.plan.label());
    let (reply, answer) = oneshot::channel();
    entry.mailbox.send(message(reply)).await.map_err(|_| gone())?;
    answer.await.map_err(|_| gone())
}

fn exists(key: &Key) -> Error {
    Error::Exists(format!("{}/{}", key.0, key.1), key.1.clone())
}

/// A random UUID, as the API server gives pods (random(4)).
async fn new_uid() -> Result<String, Error> {
    let path = "/proc/sys/kernel/random/uuid";
    let uid = tokio::fs::read_to_string(path).await;
    Ok(uid.map_err(|source| Error::NoUid { path, source })?.trim().to_owned())
}
