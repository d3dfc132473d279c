//! The task that owns a pod.
//!
//! It alone changes the pod's state, its records and its view. It never waits for work: each piece of work (making the
//! sandbox, creating a container, stopping one, …) runs beside it in `work` and comes back as a [`Done`]. So requests
//! for different containers of one pod overlap, and two requests for the same thing meet here.
//!
//! ```text
//!  RunPodSandbox ─▶ Creating ─▶ Ready ──StopPodSandbox──▶ Stopping ─▶ Stopped ──RemovePodSandbox──▶ Removing ─▶ (end)
//!                       │         └──── supervisor died ──────────────▶ ▲
//!                       └─ failed: undone, (end)
//! ```
//!
//! `requests` is what comes in, `results` what comes of the work, `events` what the supervisor says; here are the pod's
//! parts, its loop, and how its state is written and shown.

mod events;
mod requests;
mod results;

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use berth_cri::{
    berth::v1::ContainerExited,
    runtime::v1::{ContainerConfig, LinuxContainerResources},
};
use berth_nri::Leaving;
use berth_store::Batch;
use berth_supervisor::client::{Event, Events, Supervisor};
use tokio::{
    sync::{Mutex, OwnedMutexGuard, mpsc, oneshot, watch},
    task::JoinSet,
};
use tracing::Instrument as _;

use crate::{
    Container, ContainerId, ContainerState, Error, Event as PodEvent, EventKind, PodView, Sandbox, SandboxId,
    SandboxPhase, Timeline, UnixNanos,
    admit::InFlight,
    create::{Made, discard},
    error::cause,
    host::Host,
    manager::Directory,
    plugins::Plugins,
    recovery::Connection,
    sandbox::{Up, bring_up},
    update::Limits,
};

/// A pod of 16 containers may have about four calls waiting per container. Fuller than that, the pod is stuck.
const MAILBOX: usize = 64;

const LOST: &str = "the pod's supervisor (berth-pod) was killed, and its containers with it";

pub(crate) type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What others want of a pod.
#[derive(Debug)]
pub(crate) enum Request {
    /// Wait until the sandbox stands.
    Up(Reply<SandboxId>),
    Create(Arc<ContainerConfig>, Reply<ContainerId>),
    Start(ContainerId, Reply<()>),
    Stop(ContainerId, Duration, Reply<()>),
    Remove(ContainerId, Reply<()>),
    Update(ContainerId, Limits, Reply<()>),
    /// Overhead and limits of the pod itself.
    UpdatePod(Option<LinuxContainerResources>, Option<LinuxContainerResources>, Reply<()>),
    StopPod(Reply<()>),
    RemovePod(Reply<()>),
}

/// How others reach a pod.
#[derive(Clone, Debug)]
pub(crate) struct PodHandle {
    pub(crate) id: SandboxId,
    mailbox: mpsc::Sender<Request>,
    pub(crate) view: watch::Receiver<Arc<PodView>>,
}

impl PodHandle {
    /// Asks and waits for the answer. A caller that gives up changes nothing: the work goes on.
    pub(crate) async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.mailbox.try_send(request(reply)).map_err(|err| match err {
            mpsc::error::TrySendError::Full(_) => Error::Busy(self.id.clone()),
            mpsc::error::TrySendError::Closed(_) => Error::Gone(self.id.clone()),
        })?;
        answer.await.unwrap_or_else(|_| Err(Error::Gone(self.id.clone())))
    }
}

/// A container of the pod, and what is being done to it.
#[derive(Debug)]
struct Slot {
    /// `None` until its creation has ended.
    container: Option<Arc<Container>>,
    /// Name and attempt, known from the beginning.
    name: (String, u32),
    work: Work,
    /// Its end, when the news of its creation or start is still on the way: first things first.
    early_exit: Option<ContainerExited>,
    /// Held while plugins are told of its end: who removes it waits for that.
    telling: Arc<Mutex<()>>,
}

/// [`InFlight`] with those who wait for it.
#[derive(Debug)]
enum Work {
    Idle,
    Create(Vec<Reply<ContainerId>>),
    Start(Vec<Reply<()>>),
    Stop { waiting: Vec<Reply<()>>, deadline: watch::Sender<Instant> },
    Remove(Vec<Reply<()>>),
}

impl Work {
    fn in_flight(&self) -> InFlight {
        match self {
            Self::Idle => InFlight::Idle,
            Self::Create(_) => InFlight::Create,
            Self::Start(_) => InFlight::Start,
            Self::Stop { .. } => InFlight::Stop,
            Self::Remove(_) => InFlight::Remove,
        }
    }

    /// Those who wait for a start, a stop or a removal; the work is over.
    fn finish(&mut self) -> Vec<Reply<()>> {
        match std::mem::replace(self, Self::Idle) {
            Self::Start(waiting) | Self::Stop { waiting, .. } | Self::Remove(waiting) => waiting,
            Self::Idle | Self::Create(_) => Vec::new(),
        }
    }
}

/// The sandbox's life with those who wait for the next step.
#[derive(Debug)]
enum Phase {
    Creating(Vec<Reply<SandboxId>>),
    Ready,
    /// `begun` once no creation or start is in flight any more. `then_remove` holds who wants it removed as well.
    Stopping {
        begun: bool,
        waiting: Vec<Reply<()>>,
        then_remove: Vec<Reply<()>>,
    },
    /// `clean` when nothing of it is left on the host.
    Stopped {
        clean: bool,
    },
    Removing(Vec<Reply<()>>),
}

/// A piece of work has ended.
#[derive(Debug)]
enum Done {
    Up(Result<Up, Error>),
    Created(ContainerId, Result<Made, Error>),
    Started(ContainerId, Result<UnixNanos, Error>),
    Stopped(ContainerId, Result<(), Error>),
    Removed(ContainerId, Result<Option<Leaving>, Error>),
    /// The new limits that are in force now.
    Updated(ContainerId, Result<LinuxContainerResources, Error>, Reply<()>),
    /// The pod with its new limits, unless plugins refuse them.
    PodUpdated(Result<Sandbox, Error>, Reply<()>),
    /// Plugins know of an end.
    Told,
    /// What an ended container left behind is cleaned up.
    Cleaned(ContainerId, Result<(), Error>),
    /// A new connection to the supervisor.
    Reconnected(Option<Connection>),
    /// The processes of a pod whose supervisor died are gone.
    Orphaned(Result<(), Error>),
    PodStopped(Result<(), Error>),
    PodRemoved(Result<Vec<Leaving>, Error>),
}

#[derive(Debug)]
pub(crate) struct Pod {
    host: Arc<Host>,
    directory: Arc<Directory>,
    sandbox: Arc<Sandbox>,
    phase: Phase,
    slots: BTreeMap<ContainerId, Slot>,
    supervisor: Option<Supervisor>,
    events: Option<Events>,
    /// Requests that wait for something in flight.
    later: Vec<Request>,
    work: JoinSet<Done>,
    mailbox: mpsc::Receiver<Request>,
    view: watch::Sender<Arc<PodView>>,
    timeline: Timeline,
    starts: u64,
    /// Whether plugins know that the pod was stopped.
    told_stopped: Arc<AtomicBool>,
    /// When the last event was told.
    told_at: UnixNanos,
    ended: bool,
}

impl Pod {
    /// A pod that is to be made; [`run`](Pod::run) makes it.
    pub(crate) fn new(host: Arc<Host>, directory: Arc<Directory>, sandbox: Sandbox) -> (Self, PodHandle) {
        Self::with(host, directory, sandbox, Phase::Creating(Vec::new()), Vec::new())
    }

    /// A pod of an earlier daemon. `connection` when its supervisor still runs.
    pub(crate) fn recovered(
        host: Arc<Host>,
        directory: Arc<Directory>,
        sandbox: Sandbox,
        containers: Vec<Container>,
        connection: Option<(Supervisor, Events)>,
    ) -> (Self, PodHandle) {
        let phase = match sandbox.phase {
            SandboxPhase::Ready => Phase::Ready,
            SandboxPhase::Creating | SandboxPhase::NotReady => Phase::Stopped { clean: false },
        };
        let (mut pod, handle) = Self::with(host, directory, sandbox, phase, containers);
        if let Some((supervisor, events)) = connection {
            pod.supervisor = Some(supervisor);
            pod.events = Some(events);
        }
        pod.publish();
        (pod, handle)
    }

    fn with(
        host: Arc<Host>,
        directory: Arc<Directory>,
        sandbox: Sandbox,
        phase: Phase,
        containers: Vec<Container>,
    ) -> (Self, PodHandle) {
        let starts = containers.iter().map(|container| container.start_order).max().unwrap_or(0);
        let slots = containers.into_iter().map(|container| {
            let (name, attempt) = container.name_and_attempt();
            let name = (name.to_owned(), attempt);
            (
                container.id.clone(),
                Slot {
                    container: Some(Arc::new(container)),
                    name,
                    work: Work::Idle,
                    early_exit: None,
                    telling: Arc::default(),
                },
            )
        });
        let told_stopped = sandbox.phase == SandboxPhase::NotReady;
        let sandbox = Arc::new(sandbox);
        let timeline = Timeline::new();
        let (tx, mailbox) = mpsc::channel(MAILBOX);
        let (view, seen) = watch::channel(Arc::new(PodView {
            sandbox: Arc::clone(&sandbox),
            containers: BTreeMap::new(),
            timeline: timeline.clone(),
            supervisor: None,
        }));
        let handle = PodHandle { id: sandbox.id.clone(), mailbox: tx, view: seen };
        let pod = Self {
            host,
            directory,
            sandbox,
            phase,
            slots: slots.collect(),
            supervisor: None,
            events: None,
            later: Vec::new(),
            work: JoinSet::new(),
            mailbox,
            view,
            timeline,
            starts,
            told_stopped: Arc::new(AtomicBool::new(told_stopped)),
            told_at: 0,
            ended: false,
        };
        (pod, handle)
    }

    /// Runs until the pod is removed, or could not be made.
    pub(crate) async fn run(mut self) {
        match self.phase {
            Phase::Creating(_) => {
                let (host, sandbox) = (Arc::clone(&self.host), Arc::clone(&self.sandbox));
                let timeline = self.timeline.clone();
                self.spawn(async move { Done::Up(bring_up(&host, &sandbox, &timeline).await) });
            }
            Phase::Ready => self.clean_up_exited(),
            Phase::Stopping { .. } | Phase::Stopped { .. } | Phase::Removing(_) => {}
        }
        while !self.ended {
            tokio::select! {
                // Exits first: an answer given after one should know of it. All three arms may lose without loss:
                // they are receivers that keep what was not taken.
                biased;
                event = next_event(&mut self.events) => self.on_event(event).await,
                Some(done) = self.work.join_next() => match done {
                    Ok(done) => self.on_done(done).await,
                    Err(err) => std::panic::resume_unwind(err.into_panic()),
                },
                Some(request) = self.mailbox.recv() => self.on_request(request),
            }
            self.begin_stop_when_quiet();
        }
    }

    fn spawn(&mut self, work: impl Future<Output = Done> + Send + 'static) {
        self.work.spawn(work.in_current_span());
    }

    /// Writes a container's new state, then shows and tells it.
    async fn change(&mut self, container: Container) -> Result<(), Error> {
        let id = container.id.to_string();
        let kind = match &container.state {
            ContainerState::Running { .. } => EventKind::Started,
            ContainerState::Exited(_) => EventKind::Stopped,
            ContainerState::Creating | ContainerState::Created { .. } => EventKind::Created,
        };
        let kept = self.keep(container).await;
        self.tell(kind, id);
        kept
    }

    /// Writes what is known of a container, then shows it.
    async fn keep(&mut self, container: Container) -> Result<(), Error> {
        let id = container.id.clone();
        let batch = Batch::new().put(id.as_str(), &container);
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.container = Some(Arc::new(container));
        }
        let kept = self.host.persist(batch).await;
        // Shown even when it could not be written: it is what is true now, and a restart learns it again.
        self.publish();
        kept.map_err(Error::step(id.label(), "write its record"))
    }

    /// Writes down that a container has ended, and tells plugins.
    async fn record_end(&mut self, container: Container) {
        // Before it is shown: who sees it and removes the container waits until plugins know.
        let telling = self.telling(&container.id);
        if let Err(err) = self.change(container.clone()).await {
            tracing::error!(error = cause(&err), "a container's end is not on disk; the supervisor keeps it");
        }
        self.tell_plugins(container, telling);
    }

    /// To be taken before a container's end is shown. Nobody else holds it: a container ends once.
    fn telling(&self, id: &ContainerId) -> Option<OwnedMutexGuard<()>> {
        let slot = self.slots.get(id).filter(|_| self.host.nri.is_some())?;
        Arc::clone(&slot.telling).try_lock_owned().ok()
    }

    fn tell_plugins(&mut self, container: Container, telling: Option<OwnedMutexGuard<()>>) {
        let Some(telling) = telling else { return };
        let (host, sandbox, supervisor) =
            (Arc::clone(&self.host), Arc::clone(&self.sandbox), self.supervisor.clone());
        self.spawn(async move {
            Plugins::of(&host, &sandbox, supervisor.as_ref()).ended(&container).await;
            drop(telling);
            Done::Told
        });
    }

    async fn set_not_ready(&mut self) {
        if self.sandbox.phase == SandboxPhase::NotReady {
            return self.publish();
        }
        self.sandbox = Arc::new(self.sandbox.with_phase(SandboxPhase::NotReady));
        let batch = Batch::new().put(self.sandbox.id.as_str(), &*self.sandbox);
        if let Err(err) = self.host.persist(batch).await {
            tracing::error!(error = cause(&err), "a pod's end is not on disk; a restart finds it again");
        }
        self.publish();
        self.tell(EventKind::Stopped, self.sandbox.id.to_string());
    }

    /// Tells what has led to the view that was published last.
    fn tell(&mut self, kind: EventKind, id: String) {
        self.told_at = crate::now().max(self.told_at + 1);
        let pod = Arc::clone(&self.view.borrow());
        self.host.bus.tell(PodEvent { kind, id, at: self.told_at, pod });
    }

    fn publish(&mut self) {
        let containers = self.slots.iter().filter_map(|(id, slot)| {
            slot.container.as_ref().map(|container| (id.clone(), Arc::clone(container)))
        });
        let next = PodView {
            sandbox: Arc::clone(&self.sandbox),
            containers: containers.collect(),
            timeline: self.timeline.clone(),
            supervisor: self.supervisor.clone(),
        };
        self.view.send_replace(Arc::new(next));
    }

    fn not_ready(&self, ask: &'static str) -> Error {
        let state = match self.phase {
            Phase::Creating(_) => "being created",
            Phase::Ready => "without its supervisor",
            Phase::Stopping { .. } => "being stopped",
            Phase::Stopped { .. } => "stopped",
            Phase::Removing(_) => "being removed",
        };
        Error::WrongState { what: "pod sandbox", id: self.sandbox.id.short().to_owned(), state, ask }
    }
}

/// Removes the containers and the record of a pod that is stopped. The answer is to be kept until readers see no more of
/// it.
async fn forget(
    host: &Host,
    sandbox: &Sandbox,
    containers: &[Arc<Container>],
) -> Result<Vec<Leaving>, Error> {
    let plugins = Plugins::of(host, sandbox, None);
    let mut leaving = Vec::new();
    for container in containers {
        let remembered = plugins.remember(container).await;
        discard(host, sandbox, &container.id, None).await?;
        leaving.extend(plugins.removed(remembered).await);
    }
    leaving.extend(plugins.remove_pod().await);
    host.persist(Batch::new().delete::<Sandbox>(sandbox.id.as_str()))
        .await
        .map_err(Error::step(sandbox.label(), "delete its record"))?;
    Ok(leaving)
}

async fn next_event(events: &mut Option<Events>) -> Event {
    match events {
        // After its last event a connection says no more; the owner has dropped it by then.
        Some(events) => events.recv().await.unwrap_or(Event::Gone),
        None => std::future::pending().await,
    }
}

fn join(work: &mut Work, reply: Reply<()>) {
    match work {
        Work::Start(waiting) | Work::Stop { waiting, .. } | Work::Remove(waiting) => waiting.push(reply),
        Work::Idle | Work::Create(_) => {}
    }
}

/// Somebody who gave up waiting is no fault.
fn answer<T: Clone>(waiting: impl IntoIterator<Item = Reply<T>>, result: Result<T, Error>) {
    for reply in waiting {
        drop(reply.send(result.clone()));
    }
}

fn wrong_state(id: &ContainerId, state: &'static str, ask: &'static str) -> Error {
    Error::WrongState { what: "container", id: id.short().to_owned(), state, ask }
}

pub(crate) fn state_name(state: &ContainerState) -> &'static str {
    match state {
        ContainerState::Creating => "being created",
        ContainerState::Created { .. } => "created",
        ContainerState::Running { .. } => "running",
        ContainerState::Exited(_) => "exited",
    }
}
