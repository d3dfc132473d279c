//! What happens to pods, told to whoever listens: the source of GetContainerEvents.
//!
//! An event carries the whole pod as it was right after it, so that a listener needs no second question. Nothing is
//! replayed. A listener that falls behind by [`KEPT`] events is told so and has to look at everything anew; it never
//! makes the others wait, and never makes the daemon keep more.

use std::sync::Arc;

use tokio::sync::broadcast;

use crate::{PodView, UnixNanos, owner::Scope};

/// Events that a listener may be behind. kubelet keeps a channel of 1000 itself.
const KEPT: usize = 1024;

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A sandbox or container was made.
    Created,
    /// A sandbox became ready, or a container's program was executed.
    Started,
    /// A sandbox's or container's processes have ended, or never came to run.
    Stopped,
    /// It was removed.
    Deleted,
}

/// Something that happened to a pod or one of its containers.
#[derive(Clone, Debug)]
pub struct Event {
    /// What.
    pub kind: EventKind,
    /// To whom: the id of the sandbox or of the container.
    pub id: String,
    /// After the state in `pod` was reached; grows within a pod.
    pub at: UnixNanos,
    /// The pod right after.
    pub pod: Arc<PodView>,
}

/// A listener lost events because it was too slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} events were not taken in time and are lost; list everything and listen again")]
pub struct TooSlow(pub u64);

/// Where events come from.
#[derive(Debug)]
pub(crate) struct Bus(broadcast::Sender<Event>);

impl Default for Bus {
    fn default() -> Self {
        Self(broadcast::Sender::new(KEPT))
    }
}

impl Bus {
    pub(crate) fn tell(&self, event: Event) {
        // Nobody listening is the usual case.
        drop(self.0.send(event));
    }

    pub(crate) fn listen(&self, scope: Scope) -> Listener {
        Listener { events: self.0.subscribe(), scope }
    }
}

/// Hears of everything that happens from its making on.
#[derive(Debug)]
pub struct Listener {
    events: broadcast::Receiver<Event>,
    scope: Scope,
}

impl Listener {
    /// The next event; `None` when the manager is gone. Cancel safe.
    ///
    /// # Errors
    /// [`TooSlow`]; listening on gives what came after the loss.
    pub async fn next(&mut self) -> Option<Result<Event, TooSlow>> {
        loop {
            match self.events.recv().await {
                Ok(event) if self.scope.includes(event.pod.sandbox.owner) => return Some(Ok(event)),
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(lost)) => return Some(Err(TooSlow(lost))),
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}
