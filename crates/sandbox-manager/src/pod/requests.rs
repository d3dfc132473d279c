//! What others want of the pod: answered at once, joined to work in flight, begun, or kept for later.

use std::{
    cmp::Reverse,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use berth_cri::runtime::v1::{ContainerConfig, LinuxContainerResources};
use tokio::sync::watch;

use super::{Done, Phase, Pod, Reply, Request, Slot, Work, answer, join, state_name, wrong_state};
use crate::{
    Container, ContainerId, ContainerState, Error, Sandbox,
    admit::{Admit, Ask, InFlight, admit},
    create::{Creation, discard},
    plugins::Plugins,
    sandbox::tear_down,
    start_stop,
    update::{self, Limits},
};

impl Pod {
    pub(super) fn on_request(&mut self, request: Request) {
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
            Request::UpdatePod(overhead, resources, reply) => self.update_pod(overhead, resources, reply),
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
            told: AtomicBool::new(false),
        };
        let work = Work::Create(vec![reply]);
        let slot = Slot { container: None, name, work, early_exit: None, telling: Arc::default() };
        self.slots.insert(id.clone(), slot);
        self.spawn(async move { Done::Created(id, creation.run().await) });
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
        let (host, sandbox) = (Arc::clone(&self.host), Arc::clone(&self.sandbox));
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
                    let plugins = Plugins::of(&host, &sandbox, Some(&supervisor));
                    let started = async {
                        plugins.start(&container).await?;
                        let started_at = start_stop::start(&host, &supervisor, &container).await?;
                        plugins.started(&container, started_at).await;
                        Ok(started_at)
                    };
                    Done::Started(id, timeline.step(name, started).await)
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
        let telling = self.slots.get(&container.id).map(|slot| Arc::clone(&slot.telling)).unwrap_or_default();
        async move {
            let supervisor = supervisor.ok_or(gone)?;
            start_stop::stop(&host, &supervisor, &container, &cgroup, view, deadline).await?;
            // Plugins know as well now.
            drop(telling.lock().await);
            Ok(())
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
                let telling = Arc::clone(&slot.telling);
                let stop = self.stop_work(Arc::clone(&container), now);
                let (host, sandbox) = (Arc::clone(&self.host), Arc::clone(&self.sandbox));
                let supervisor = self.supervisor.clone();
                self.spawn(async move {
                    let result = async {
                        if alive {
                            stop.await?;
                        }
                        drop(telling.lock().await);
                        let plugins = Plugins::of(&host, &sandbox, supervisor.as_ref());
                        let remembered = plugins.remember(&container).await;
                        discard(&host, &sandbox, &id, supervisor.as_ref()).await?;
                        Ok(plugins.removed(remembered).await)
                    };
                    let result = result.await;
                    Done::Removed(id, result)
                });
            }
        }
    }

    fn update(&mut self, id: ContainerId, limits: Limits, reply: Reply<()>) {
        let container = self.slots.get(&id).and_then(|slot| slot.container.clone());
        let Some(container) = container else {
            return answer([reply], Err(Error::ContainerNotFound(id.to_string())));
        };
        if container.pid().is_none() {
            let state = state_name(&container.state);
            return answer([reply], Err(wrong_state(&id, state, "change the limits of")));
        }
        let (host, sandbox, supervisor) =
            (Arc::clone(&self.host), Arc::clone(&self.sandbox), self.supervisor.clone());
        self.spawn(async move {
            let plugins = Plugins::of(&host, &sandbox, supervisor.as_ref());
            let result = update::run(&host, &sandbox, plugins, &container, limits).await;
            Done::Updated(id, result, reply)
        });
    }

    fn update_pod(
        &mut self,
        overhead: Option<LinuxContainerResources>,
        resources: Option<LinuxContainerResources>,
        reply: Reply<()>,
    ) {
        let mut config = (*self.sandbox.config).clone();
        let linux = config.linux.get_or_insert_default();
        linux.overhead = overhead.or(linux.overhead.take());
        linux.resources = resources.or(linux.resources.take());
        let updated = Sandbox { config: Arc::new(config), ..(*self.sandbox).clone() };
        let (host, supervisor) = (Arc::clone(&self.host), self.supervisor.clone());
        self.spawn(async move {
            let result = Plugins::of(&host, &updated, supervisor.as_ref()).update_pod().await;
            Done::PodUpdated(result.map(|()| updated), reply)
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
    pub(super) fn begin_stop_when_quiet(&mut self) {
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
        let telling: Vec<_> = self.slots.values().map(|slot| Arc::clone(&slot.telling)).collect();
        let told_stopped = Arc::clone(&self.told_stopped);
        self.spawn(async move {
            for stop in stops {
                if let Err(err) = stop.await {
                    return Done::PodStopped(Err(err));
                }
            }
            for telling in telling {
                drop(telling.lock().await);
            }
            if !told_stopped.swap(true, Ordering::Relaxed) {
                Plugins::of(&host, &sandbox, supervisor.as_ref()).stop_pod().await;
            }
            Done::PodStopped(tear_down(&host, &sandbox, &containers, supervisor).await)
        });
    }

    /// Those that depend on others first: by kind, then the last started first.
    pub(super) fn in_stop_order(&self) -> Vec<Arc<Container>> {
        let mut containers: Vec<_> = self.slots.values().filter_map(|slot| slot.container.clone()).collect();
        containers.sort_by_key(|container| (container.kind(), Reverse(container.start_order)));
        containers
    }
}
