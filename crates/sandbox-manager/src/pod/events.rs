//! What the supervisor tells unasked: ends of containers, and its own.

use std::sync::Arc;

use berth_cri::berth::v1::ContainerExited;
use berth_supervisor::client::Event;

use super::{Done, LOST, Phase, Pod};
use crate::{
    Container, ContainerId, ContainerState, Exit,
    admit::InFlight,
    create::end_processes,
    recovery::{self, Connection},
};

impl Pod {
    pub(super) async fn on_event(&mut self, event: Event) {
        match event {
            Event::Exited(exited) => self.on_exit(&exited).await,
            Event::Disconnected => {
                self.events = None;
                self.reconnect();
            }
            Event::Gone => {
                self.events = None;
                self.on_gone();
            }
        }
    }

    pub(super) fn reconnect(&mut self) {
        let (host, sandbox) = (Arc::clone(&self.host), Arc::clone(&self.sandbox));
        self.spawn(async move { Done::Reconnected(recovery::connect(&host, &sandbox).await) });
    }

    pub(super) fn on_gone(&mut self) {
        // In a stop that is how it should end; a stop that fails asks again.
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
    pub(super) async fn on_reconnected(&mut self, connection: Option<Connection>) {
        let Some((supervisor, events, reports)) = connection else { return self.on_gone() };
        self.supervisor = Some(supervisor);
        self.events = Some(events);
        for container in self.in_stop_order() {
            if let Some(container) = recovery::agreed(&self.host, &container, &reports, LOST) {
                self.record_end(container).await;
            }
        }
        self.publish();
        self.clean_up_exited();
    }

    pub(super) async fn on_exit(&mut self, exited: &ContainerExited) {
        let id = ContainerId::from_record(&exited.container_id);
        let Some(slot) = self.slots.get_mut(&id) else { return };
        if matches!(slot.work.in_flight(), InFlight::Create | InFlight::Start) {
            slot.early_exit = Some(exited.clone());
            return;
        }
        let Some(container) = slot.container.clone() else { return };
        if container.pid().is_none() {
            return;
        }
        let exit = Exit::seen(exited);
        tracing::info!(
            container = %id.short(), code = exit.code, reason = exit.reason, "container ended"
        );
        self.record_end(container.with_state(ContainerState::Exited(exit))).await;
        self.clean_up(id);
    }

    /// Lets the supervisor forget an ended container and removes its cgroup, which kubelet waits for.
    pub(super) fn clean_up(&mut self, id: ContainerId) {
        let (host, sandbox, supervisor) =
            (Arc::clone(&self.host), Arc::clone(&self.sandbox), self.supervisor.clone());
        self.spawn(async move {
            let result = end_processes(&host, &sandbox, &id, supervisor.as_ref()).await;
            Done::Cleaned(id, result)
        });
    }

    /// Ends what there is of a container whose supervisor is gone, and writes down that it has ended.
    pub(super) async fn record_lost(&mut self, container: &Container) {
        if let Some(ended) = recovery::agreed(&self.host, container, &[], LOST) {
            self.record_end(ended).await;
            self.clean_up(container.id.clone());
        }
    }

    /// After a restart: the daemon before this one may have died between an exit and its cleaning up.
    pub(super) fn clean_up_exited(&mut self) {
        for container in self.in_stop_order() {
            if container.pid().is_none() {
                self.clean_up(container.id.clone());
            }
        }
    }
}
