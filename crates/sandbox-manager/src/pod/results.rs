//! What comes of the work: states, records and answers.

use std::sync::Arc;

use berth_cri::runtime::v1::LinuxContainerResources;
use berth_store::Batch;

use super::{Done, Phase, Pod, Work, answer, forget};
use crate::{
    Container, ContainerId, ContainerState, Error, EventKind, Exit, Sandbox, UnixNanos, create::Made,
    error::cause, plugins::Plugins, sandbox::Up, update,
};

impl Pod {
    pub(super) async fn on_done(&mut self, done: Done) {
        match done {
            Done::Up(result) => self.on_up(result),
            Done::Created(id, result) => self.on_created(&id, result).await,
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
                answer(waiting, result.map(drop));
            }
            Done::Updated(id, result, reply) => {
                let result = match result {
                    Ok(limits) => self.on_updated(&id, &limits).await,
                    Err(err) => Err(err),
                };
                answer([reply], result);
            }
            Done::PodUpdated(result, reply) => {
                let result = match result {
                    Ok(sandbox) => self.on_pod_updated(sandbox).await,
                    Err(err) => Err(err),
                };
                answer([reply], result);
            }
            Done::Told => {}
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
                    Ok(_) => {
                        self.slots.clear();
                        self.publish();
                        self.end();
                        self.tell(EventKind::Deleted, self.sandbox.id.to_string());
                    }
                    Err(_) => self.phase = Phase::Stopped { clean: true },
                }
                answer(waiting, result.map(drop));
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
                drop(up.arriving);
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

    async fn on_created(&mut self, id: &ContainerId, result: Result<Made, Error>) {
        let Some(slot) = self.slots.get_mut(id) else { return };
        let Work::Create(waiting) = std::mem::replace(&mut slot.work, Work::Idle) else { return };
        match result {
            Ok((container, arriving)) => {
                let early_exit = slot.early_exit.take();
                slot.container = Some(Arc::clone(&container));
                self.publish();
                drop(arriving);
                self.tell(EventKind::Created, id.to_string());
                // It may have ended before it was shown, and so may have its pod.
                match early_exit {
                    Some(exited) => self.on_exit(&exited).await,
                    None if self.supervisor.is_none() => self.record_lost(&container).await,
                    None => {}
                }
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
        let started = started.with_state(state);
        let telling = result.is_err().then(|| self.telling(id)).flatten();
        let kept = self.change(started.clone()).await;
        match (&result, early_exit) {
            (Ok(_), Some(exited)) => self.on_exit(&exited).await,
            (Ok(_), None) => {}
            (Err(_), _) => {
                self.tell_plugins(started, telling);
                self.clean_up(id.clone());
            }
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

    async fn on_pod_updated(&mut self, updated: Sandbox) -> Result<(), Error> {
        // Everything else may have changed meanwhile.
        let config = updated.config;
        self.sandbox = Arc::new(Sandbox { config, ..(*self.sandbox).clone() });
        let batch = Batch::new().put(self.sandbox.id.as_str(), &*self.sandbox);
        let kept = self.host.persist(batch).await;
        self.publish();
        let (host, sandbox, supervisor) =
            (Arc::clone(&self.host), Arc::clone(&self.sandbox), self.supervisor.clone());
        self.spawn(async move {
            Plugins::of(&host, &sandbox, supervisor.as_ref()).updated_pod().await;
            Done::Told
        });
        kept.map_err(Error::step(self.sandbox.label(), "write its record"))
    }

    async fn on_orphaned(&mut self, result: Result<(), Error>) {
        if let Err(err) = result {
            tracing::error!(error = cause(&err), "cannot end what a killed supervisor left");
        }
        self.supervisor = None;
        // Before its containers: whoever sees one of them ended finds the reason.
        if matches!(self.phase, Phase::Ready) {
            self.phase = Phase::Stopped { clean: false };
            self.set_not_ready().await;
        }
        for container in self.in_stop_order() {
            self.record_lost(&container).await;
        }
    }

    async fn on_pod_stopped(&mut self, result: Result<(), Error>) {
        let Phase::Stopping { waiting, then_remove, .. } = &mut self.phase else { return };
        let (waiting, then_remove) = (std::mem::take(waiting), std::mem::take(then_remove));
        let alive = self.in_stop_order().iter().any(|container| container.pid().is_some());
        if alive && self.supervisor.is_some() {
            // Something outlived SIGKILL: the pod is not stopped, and the caller is told why.
            self.phase = Phase::Ready;
            if self.events.is_none() {
                // Its supervisor was lost meanwhile, which nobody cared for in a stop.
                self.reconnect();
            }
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
                let containers = self.in_stop_order();
                self.spawn(async move { Done::PodRemoved(forget(&host, &sandbox, &containers).await) });
            }
        }
    }
}
