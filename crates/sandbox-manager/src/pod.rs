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

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use berth_cri::{
    berth::v1::ContainerExited,
    runtime::v1::{ContainerConfig, LinuxContainerResources},
};
use berth_store::Batch;
use berth_supervisor::client::{Event, Events, Supervisor};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};
use tracing::Instrument as _;

use crate::{
    Container, ContainerId, ContainerState, Error, Event as PodEvent, EventKind, Exit, PodView, Sandbox,
    SandboxId, SandboxPhase, Timeline, UnixNanos,
    admit::{Admit, Ask, InFlight, admit},
    create::{Creation, discard, end_processes},
    error::cause,
    host::Host,
    manager::Directory,
    recovery::{self, Connection},
    sandbox::{Up, bring_up, tear_down},
    start_stop, update,
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
    Update(ContainerId, LinuxContainerResources, Reply<()>),
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
    /// Its end, when the news of its start is still on the way: first things first.
    early_exit: Option<ContainerExited>,
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
    Created(ContainerId, Result<Arc<Container>, Error>),
    Started(ContainerId, Result<UnixNanos, Error>),
    Stopped(ContainerId, Result<(), Error>),
    Removed(ContainerId, Result<(), Error>),
    /// New limits, which are in force now if the result says so.
    Updated(ContainerId, LinuxContainerResources, Result<(), Error>, Reply<()>),
    /// What an ended container left behind is cleaned up.
    Cleaned(ContainerId, Result<(), Error>),
    /// A new connection to the supervisor.
    Reconnected(Option<Connection>),
    /// The processes of a pod whose supervisor died are gone.
    Orphaned(Result<(), Error>),
    PodStopped(Result<(), Error>),
    PodRemoved(Result<(), Error>),
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
                Slot { container: Some(Arc::new(container)), name, work: Work::Idle, early_exit: None },
            )
        });
        let sandbox = Arc::new(sandbox);
        let timeline = Timeline::new();
        let (tx, mailbox) = mpsc::channel(MAILBOX);
        let (view, seen) = watch::channel(Arc::new(PodView {
            sandbox: Arc::clone(&sandbox),
            containers: BTreeMap::new(),
            timeline: timeline.clone(),
            generation: 0,
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

    // === requests ===

    fn on_request(&mut self, request: Request) {
        match request {
            Request::Up(reply) => match &mut self.phase {
                Phase::Creating(waiting) => waiting.push(reply),
                _ => answer([reply], Ok(self.sandbox.id.clone())),
            },
            Request::Create(config, reply) => self.create(config, reply),
            Request::Start(id, reply) => self.start(id, reply),
            Request::Stop(id, grace, reply) => self.stop(id, grace, reply),
            Request::Remove(id, reply) => self.remove(id, reply),
            Request::Update(id, limits, reply) => self.update(id, limits, reply),
            Request::StopPod(reply) => self.stop_pod(reply),
            Request::RemovePod(reply) => self.remove_pod(reply),
        }
    }

    fn create(&mut self, config: Arc<ContainerConfig>, reply: Reply<ContainerId>) {
        let meta = config.metadata.clone().unwrap_or_default();
        let name = (meta.name, meta.attempt);
        if let Some((id, slot)) = self.slots.iter_mut().find(|(_, slot)| slot.name == name) {
            let known = slot.container.as_deref().map(|container| &container.state);
            return match (&mut slot.work, known) {
                (Work::Create(waiting), _) => waiting.push(reply),
                // The answer to an earlier call was lost; what it made may run by now.
                (
                    Work::Idle | Work::Start(_),
                    Some(ContainerState::Created { .. } | ContainerState::Running { .. }),
                ) => answer([reply], Ok(id.clone())),
                (_, known) => answer(
                    [reply],
                    Err(Error::NameTaken {
                        what: "container",
                        name: format!("{} (attempt {})", name.0, name.1),
                        id: id.short().to_owned(),
                        state: known.map_or("being created", state_name),
                    }),
                ),
            };
        }
        let (Phase::Ready, Some(supervisor)) = (&self.phase, &self.supervisor) else {
            return answer([reply], Err(self.not_ready("create a container in")));
        };
        let id = ContainerId::generate();
        let creation = Creation {
            host: Arc::clone(&self.host),
            pod: Arc::clone(&self.view.borrow()),
            supervisor: supervisor.clone(),
            id: id.clone(),
            config,
        };
        self.slots.insert(
            id.clone(),
            Slot { container: None, name, work: Work::Create(vec![reply]), early_exit: None },
        );
        self.spawn(async move { Done::Created(id, creation.run().await.map(Arc::new)) });
    }

    /// The container that a request names, with the answer of [`admit`]; answers by itself when there is none.
    fn admit(
        &mut self,
        ask: Ask,
        id: &ContainerId,
        reply: Reply<()>,
    ) -> Option<(Admit, Arc<Container>, &mut Slot, Reply<()>)> {
        let Some(slot) = self.slots.get_mut(id) else {
            // Removed after the caller's look into the directory: what stop and remove want is so already.
            let result = match ask {
                Ask::Start => Err(Error::ContainerNotFound(id.to_string())),
                Ask::Stop | Ask::Remove => Ok(()),
            };
            answer([reply], result);
            return None;
        };
        let Some(container) = slot.container.clone() else {
            answer([reply], Err(Error::ContainerNotFound(id.to_string())));
            return None;
        };
        Some((admit(ask, &container.state, slot.work.in_flight()), container, slot, reply))
    }

    fn start(&mut self, id: ContainerId, reply: Reply<()>) {
        let supervisor = self.supervisor.clone();
        let ready = matches!(self.phase, Phase::Ready);
        let not_ready = self.not_ready("start a container in");
        let Some((admitted, container, slot, reply)) = self.admit(Ask::Start, &id, reply) else { return };
        match (admitted, supervisor) {
            (Admit::Join, _) => join(&mut slot.work, reply),
            (Admit::Done, _) => answer([reply], Ok(())),
            (Admit::Later, _) => self.later.push(Request::Start(id, reply)),
            (Admit::Refuse(state), _) => answer([reply], Err(wrong_state(&id, state, "start"))),
            (Admit::Run, Some(supervisor)) if ready => {
                slot.work = Work::Start(vec![reply]);
                let timeline = self.timeline.clone();
                self.spawn(async move {
                    let name = format!("container {}: start", container.name_and_attempt().0);
                    let started = timeline.step(name, start_stop::start(&supervisor, &container)).await;
                    Done::Started(id, started)
                });
            }
            (Admit::Run, _) => answer([reply], Err(not_ready)),
        }
    }

    fn stop(&mut self, id: ContainerId, grace: Duration, reply: Reply<()>) {
        let end = Instant::now() + grace;
        let Some((admitted, container, slot, reply)) = self.admit(Ask::Stop, &id, reply) else { return };
        match admitted {
            Admit::Join => {
                if let Work::Stop { deadline, .. } = &slot.work {
                    // A later stop with less patience wins; one with more changes nothing.
                    deadline.send_if_modified(|at| {
                        let nearer = end < *at;
                        *at = end.min(*at);
                        nearer
                    });
                }
                join(&mut slot.work, reply);
            }
            Admit::Done => answer([reply], Ok(())),
            Admit::Later => self.later.push(Request::Stop(id, grace, reply)),
            Admit::Refuse(state) => answer([reply], Err(wrong_state(&id, state, "stop"))),
            Admit::Run => {
                let (deadline, seen) = watch::channel(end);
                slot.work = Work::Stop { waiting: vec![reply], deadline };
                let stop = self.stop_work(container, seen);
                self.spawn(async move { Done::Stopped(id, stop.await) });
            }
        }
    }

    /// Ends a container that runs or waits at its gate.
    fn stop_work(
        &self,
        container: Arc<Container>,
        deadline: watch::Receiver<Instant>,
    ) -> impl Future<Output = Result<(), Error>> + Send + 'static {
        let (host, supervisor) = (Arc::clone(&self.host), self.supervisor.clone());
        let cgroup = container.cgroup_path(&self.sandbox.cgroup_parent);
        let view = self.view.subscribe();
        let gone = Error::Gone(self.sandbox.id.clone());
        async move {
            let supervisor = supervisor.ok_or(gone)?;
            start_stop::stop(&host, &supervisor, &container, &cgroup, view, deadline).await
        }
    }

    fn remove(&mut self, id: ContainerId, reply: Reply<()>) {
        let Some((admitted, container, slot, reply)) = self.admit(Ask::Remove, &id, reply) else { return };
        match admitted {
            Admit::Join => join(&mut slot.work, reply),
            Admit::Done => answer([reply], Ok(())),
            Admit::Later => self.later.push(Request::Remove(id, reply)),
            Admit::Refuse(state) => answer([reply], Err(wrong_state(&id, state, "remove"))),
            Admit::Run => {
                let mut waiting = slot.work.finish();
                waiting.push(reply);
                slot.work = Work::Remove(waiting);
                let (_, now) = watch::channel(Instant::now());
                let alive = container.pid().is_some();
                let stop = self.stop_work(container, now);
                let (host, sandbox) = (Arc::clone(&self.host), Arc::clone(&self.sandbox));
                let supervisor = self.supervisor.clone();
                self.spawn(async move {
                    let result = async {
                        if alive {
                            stop.await?;
                        }
                        discard(&host, &sandbox, &id, supervisor.as_ref()).await
                    };
                    let result = result.await;
                    Done::Removed(id, result)
                });
            }
        }
    }

    fn update(&mut self, id: ContainerId, limits: LinuxContainerResources, reply: Reply<()>) {
        let container = self.slots.get(&id).and_then(|slot| slot.container.clone());
        let Some(container) = container else {
            return answer([reply], Err(Error::ContainerNotFound(id.to_string())));
        };
        if container.pid().is_none() {
            let state = state_name(&container.state);
            return answer([reply], Err(wrong_state(&id, state, "change the limits of")));
        }
        let (host, parent) = (Arc::clone(&self.host), self.sandbox.cgroup_parent.clone());
        self.spawn(async move {
            let result = update::apply(&host, &container, &parent, &limits).await;
            Done::Updated(id, limits, result, reply)
        });
    }

    fn stop_pod(&mut self, reply: Reply<()>) {
        match &mut self.phase {
            Phase::Creating(_) => self.later.push(Request::StopPod(reply)),
            Phase::Stopping { waiting, .. } | Phase::Removing(waiting) => waiting.push(reply),
            Phase::Stopped { clean: true } => answer([reply], Ok(())),
            Phase::Ready | Phase::Stopped { clean: false } => {
                self.phase = Phase::Stopping { begun: false, waiting: vec![reply], then_remove: Vec::new() };
            }
        }
    }

    fn remove_pod(&mut self, reply: Reply<()>) {
        match &mut self.phase {
            Phase::Creating(_) => self.later.push(Request::RemovePod(reply)),
            Phase::Removing(waiting) => waiting.push(reply),
            Phase::Stopping { then_remove, .. } => then_remove.push(reply),
            Phase::Ready | Phase::Stopped { .. } => {
                // Also a clean one is stopped once more: that is cheap, and settles creations in flight.
                self.phase = Phase::Stopping { begun: false, waiting: Vec::new(), then_remove: vec![reply] };
            }
        }
    }

    /// Begins a stop of the whole pod once no creation or start is in flight: those are bounded, and what they make
    /// must be known to be ended.
    fn begin_stop_when_quiet(&mut self) {
        let quiet = !self
            .slots
            .values()
            .any(|slot| matches!(slot.work.in_flight(), InFlight::Create | InFlight::Start));
        let Phase::Stopping { begun: begun @ false, .. } = &mut self.phase else { return };
        if !quiet {
            return;
        }
        *begun = true;
        let containers = self.in_stop_order();
        let alive = containers.iter().filter(|container| container.pid().is_some());
        let stops: Vec<_> = alive
            .map(|container| {
                let (_, now) = watch::channel(Instant::now());
                self.stop_work(Arc::clone(container), now)
            })
            .collect();
        let (host, sandbox, supervisor) =
            (Arc::clone(&self.host), Arc::clone(&self.sandbox), self.supervisor.clone());
        self.spawn(async move {
            for stop in stops {
                if let Err(err) = stop.await {
                    return Done::PodStopped(Err(err));
                }
            }
            Done::PodStopped(tear_down(&host, &sandbox, &containers, supervisor).await)
        });
    }

    /// Those that depend on others first: by kind, then the last started first.
    fn in_stop_order(&self) -> Vec<Arc<Container>> {
        let mut containers: Vec<_> = self.slots.values().filter_map(|slot| slot.container.clone()).collect();
        containers.sort_by_key(|container| (container.kind(), std::cmp::Reverse(container.start_order)));
        containers
    }

    // === results ===

    async fn on_done(&mut self, done: Done) {
        match done {
            Done::Up(result) => self.on_up(result),
            Done::Created(id, result) => self.on_created(&id, result),
            Done::Started(id, result) => self.on_started(&id, result).await,
            Done::Stopped(id, result) => {
                if let Some(slot) = self.slots.get_mut(&id) {
                    // A removal may have taken this stop over; then its waiters are the removal's.
                    if matches!(slot.work, Work::Stop { .. }) {
                        answer(slot.work.finish(), result);
                    }
                }
            }
            Done::Removed(id, result) => {
                let waiting = self.slots.get_mut(&id).map(|slot| slot.work.finish()).unwrap_or_default();
                if result.is_ok() {
                    self.slots.remove(&id);
                    self.publish();
                    self.tell(EventKind::Deleted, id.to_string());
                }
                answer(waiting, result);
            }
            Done::Updated(id, limits, result, reply) => {
                let result = match result {
                    Ok(()) => self.on_updated(&id, &limits).await,
                    failed => failed,
                };
                answer([reply], result);
            }
            Done::Cleaned(id, Err(err)) => {
                tracing::warn!(container = %id.short(), error = cause(&err), "cannot clean up after a container; its removal will try again");
            }
            Done::Cleaned(_, Ok(())) => {}
            Done::Orphaned(result) => self.on_orphaned(result).await,
            Done::Reconnected(connection) => self.on_reconnected(connection).await,
            Done::PodStopped(result) => self.on_pod_stopped(result).await,
            Done::PodRemoved(result) => {
                let Phase::Removing(waiting) = &mut self.phase else { return };
                let waiting = std::mem::take(waiting);
                match &result {
                    Ok(()) => {
                        self.slots.clear();
                        self.publish();
                        self.end();
                        self.tell(EventKind::Deleted, self.sandbox.id.to_string());
                    }
                    Err(_) => self.phase = Phase::Stopped { clean: true },
                }
                answer(waiting, result);
            }
        }
        for request in std::mem::take(&mut self.later) {
            self.on_request(request);
        }
    }

    fn on_up(&mut self, result: Result<Up, Error>) {
        let Phase::Creating(waiting) = &mut self.phase else { return };
        let waiting = std::mem::take(waiting);
        match result {
            Ok(up) => {
                self.sandbox = up.sandbox;
                self.supervisor = Some(up.supervisor);
                self.events = Some(up.events);
                self.phase = Phase::Ready;
                self.publish();
                self.tell(EventKind::Created, self.sandbox.id.to_string());
                self.tell(EventKind::Started, self.sandbox.id.to_string());
                answer(waiting, Ok(self.sandbox.id.clone()));
            }
            Err(err) => {
                self.end();
                answer(waiting, Err(err));
            }
        }
    }

    /// Takes the pod out of the directory, before anybody is told: a retry must not find it any more.
    fn end(&mut self) {
        self.directory.forget(&self.sandbox.id);
        self.ended = true;
    }

    fn on_created(&mut self, id: &ContainerId, result: Result<Arc<Container>, Error>) {
        let Some(slot) = self.slots.get_mut(id) else { return };
        let Work::Create(waiting) = std::mem::replace(&mut slot.work, Work::Idle) else { return };
        match result {
            Ok(container) => {
                slot.container = Some(container);
                self.publish();
                self.tell(EventKind::Created, id.to_string());
                answer(waiting, Ok(id.clone()));
            }
            Err(err) => {
                self.slots.remove(id);
                answer(waiting, Err(err));
            }
        }
    }

    async fn on_started(&mut self, id: &ContainerId, result: Result<UnixNanos, Error>) {
        let Some(slot) = self.slots.get_mut(id) else { return };
        let waiting = slot.work.finish();
        let early_exit = slot.early_exit.take();
        let Some(container) = slot.container.clone() else { return };
        self.starts += 1;
        let started = Container { start_order: self.starts, ..(*container).clone() };
        let state = match (&result, &container.state) {
            (Ok(started_at), ContainerState::Created { pid }) => {
                ContainerState::Running { pid: *pid, started_at: *started_at }
            }
            // Its supervisor was lost meanwhile.
            (Ok(_), state) => state.clone(),
            (Err(err), _) => ContainerState::Exited(Exit::not_started(err.to_string())),
        };
        let kept = self.change(started.with_state(state)).await;
        match (&result, early_exit) {
            (Ok(_), Some(exited)) => self.on_exit(&exited).await,
            (Ok(_), None) => {}
            (Err(_), _) => self.clean_up(id.clone()),
        }
        answer(waiting, result.map(drop).and(kept));
    }

    async fn on_updated(&mut self, id: &ContainerId, limits: &LinuxContainerResources) -> Result<(), Error> {
        let Some(container) = self.slots.get(id).and_then(|slot| slot.container.clone()) else {
            return Ok(());
        };
        let resources = update::merged(&container.resources, limits);
        self.keep(Container { resources, ..(*container).clone() }).await
    }

    async fn on_orphaned(&mut self, result: Result<(), Error>) {
        if let Err(err) = result {
            tracing::error!(error = cause(&err), "cannot end what a killed supervisor left");
        }
        self.supervisor = None;
        for container in self.in_stop_order() {
            if container.pid().is_some() {
                let left = recovery::exit_file(&self.host, &container);
                let state = recovery::agree(&container.state, None, left.as_ref(), LOST);
                self.change_or_log(container.with_state(state)).await;
            }
        }
        if matches!(self.phase, Phase::Ready) {
            self.phase = Phase::Stopped { clean: false };
            self.set_not_ready().await;
        }
    }

    async fn on_pod_stopped(&mut self, result: Result<(), Error>) {
        let Phase::Stopping { waiting, then_remove, .. } = &mut self.phase else { return };
        let (waiting, then_remove) = (std::mem::take(waiting), std::mem::take(then_remove));
        let alive = self.in_stop_order().iter().any(|container| container.pid().is_some());
        if alive && self.supervisor.is_some() {
            // Something outlived SIGKILL: the pod is not stopped, and the caller is told why.
            self.phase = Phase::Ready;
        } else {
            self.supervisor = None;
            self.events = None;
            self.phase = Phase::Stopped { clean: result.is_ok() };
            self.set_not_ready().await;
        }
        answer(waiting, result.clone());
        if then_remove.is_empty() {
            return;
        }
        match result {
            Err(err) => answer(then_remove, Err(err)),
            Ok(()) => {
                self.phase = Phase::Removing(then_remove);
                let (host, sandbox) = (Arc::clone(&self.host), Arc::clone(&self.sandbox));
                let containers: Vec<_> = self.slots.keys().cloned().collect();
                self.spawn(async move { Done::PodRemoved(forget(&host, &sandbox, &containers).await) });
            }
        }
    }

    // === events ===

    async fn on_event(&mut self, event: Event) {
        match event {
            Event::Exited(exited) => self.on_exit(&exited).await,
            Event::Disconnected => {
                self.events = None;
                let (host, sandbox) = (Arc::clone(&self.host), Arc::clone(&self.sandbox));
                self.spawn(async move { Done::Reconnected(recovery::connect(&host, &sandbox).await) });
            }
            Event::Gone => {
                self.events = None;
                self.on_gone();
            }
        }
    }

    fn on_gone(&mut self) {
        // In a stop that is how it should end.
        if !matches!(self.phase, Phase::Ready) {
            return;
        }
        tracing::error!("the pod's supervisor is gone; ending its containers");
        let (host, sandbox) = (Arc::clone(&self.host), Arc::clone(&self.sandbox));
        let containers = self.in_stop_order();
        self.spawn(async move {
            let mut result = Ok(());
            for container in containers {
                result = result.and(end_processes(&host, &sandbox, &container.id, None).await);
            }
            Done::Orphaned(result)
        });
    }

    /// The supervisor had dropped a connection whose events were not read: what it said meanwhile is asked for.
    async fn on_reconnected(&mut self, connection: Option<Connection>) {
        let Some((supervisor, events, reports)) = connection else { return self.on_gone() };
        self.supervisor = Some(supervisor);
        self.events = Some(events);
        for container in self.in_stop_order() {
            let report = reports.iter().find(|report| report.container_id == container.id.as_str());
            let left = recovery::exit_file(&self.host, &container);
            let state = recovery::agree(&container.state, report, left.as_ref(), LOST);
            if state != container.state {
                self.change_or_log(container.with_state(state)).await;
            }
        }
        self.publish();
        self.clean_up_exited();
    }

    async fn on_exit(&mut self, exited: &ContainerExited) {
        let id = ContainerId::from_record(&exited.container_id);
        // One that ends while it is being made is its creation's failure.
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let Some(container) = slot.container.clone() else { return };
        if slot.work.in_flight() == InFlight::Start {
            slot.early_exit = Some(exited.clone());
            return;
        }
        if container.pid().is_none() {
            return;
        }
        let exit = Exit::seen(exited);
        tracing::info!(
            container = %id.short(), code = exit.code, reason = exit.reason, "container ended"
        );
        self.change_or_log(container.with_state(ContainerState::Exited(exit))).await;
        self.clean_up(id);
    }

    /// Lets the supervisor forget an ended container and removes its cgroup, which kubelet waits for.
    fn clean_up(&mut self, id: ContainerId) {
        let (host, sandbox, supervisor) =
            (Arc::clone(&self.host), Arc::clone(&self.sandbox), self.supervisor.clone());
        self.spawn(async move {
            let result = end_processes(&host, &sandbox, &id, supervisor.as_ref()).await;
            Done::Cleaned(id, result)
        });
    }

    /// After a restart: the daemon before this one may have died between an exit and its cleaning up.
    fn clean_up_exited(&mut self) {
        for container in self.in_stop_order() {
            if container.pid().is_none() {
                self.clean_up(container.id.clone());
            }
        }
    }

    // === state ===

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
        kept.map_err(Error::step(format!("container {}", id.short()), "write its record"))
    }

    async fn change_or_log(&mut self, container: Container) {
        if let Err(err) = self.change(container).await {
            tracing::error!(error = cause(&err), "a container's end is not on disk; the supervisor keeps it");
        }
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
            generation: self.view.borrow().generation + 1,
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

/// Removes the containers and the record of a pod that is stopped.
async fn forget(host: &Host, sandbox: &Sandbox, containers: &[ContainerId]) -> Result<(), Error> {
    for id in containers {
        discard(host, sandbox, id, None).await?;
    }
    host.persist(Batch::new().delete::<Sandbox>(sandbox.id.as_str()))
        .await
        .map_err(Error::step(sandbox.label(), "delete its record"))
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
