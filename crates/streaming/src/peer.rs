//! The other end of a connection: whether it is there, and how one takes leave of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::hangup::{Hangup, Watch};
use crate::pipe::Out;

/// When a socket last took or gave a byte.
#[derive(Clone, Debug)]
pub(crate) struct Activity {
    begun: Instant,
    last: Arc<AtomicU64>,
}

impl Activity {
    fn new() -> Self {
        Self { begun: Instant::now(), last: Arc::default() }
    }

    pub(crate) fn touch(&self) {
        // Milliseconds of half a billion years.
        self.last.store(self.begun.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Resolves when nothing has moved for `limit`.
    async fn idle(&self, limit: Duration) {
        loop {
            let due = self.begun + Duration::from_millis(self.last.load(Ordering::Relaxed)) + limit;
            if due <= Instant::now() {
                return;
            }
            sleep_until(due).await;
        }
    }
}

/// Dropped, the connection's tasks end at once.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Cancelled when the client has left, or was idle for too long.
    pub(crate) gone: CancellationToken,
    pub(crate) activity: Activity,
    frames: mpsc::Sender<Out>,
    tasks: JoinSet<()>,
}

impl Peer {
    pub(crate) fn new(frames: mpsc::Sender<Out>, idle: Duration) -> Self {
        let mut peer =
            Self { gone: CancellationToken::new(), activity: Activity::new(), frames, tasks: JoinSet::new() };
        let activity = peer.activity.clone();
        peer.spawn(async move { activity.idle(idle).await });
        peer
    }

    /// For its reader, with the socket where that is known.
    pub(crate) fn watch(&self, hangup: Option<Hangup>) -> Watch {
        Watch { gone: self.gone.clone(), hangup, frames: self.frames.downgrade() }
    }

    /// A task whose end, a panic included, is the connection's.
    pub(crate) fn spawn(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        let gone = self.gone.clone().drop_guard();
        self.tasks.spawn(async move {
            work.await;
            drop(gone);
        });
    }

    /// A task whose end means nothing.
    pub(crate) fn spawn_half(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(work);
    }

    /// Takes leave behind everything that was queued, and waits for the client to close: it knows best when it has all.
    /// A client that never does is cut off when it was idle for too long.
    pub(crate) async fn leave(self) {
        let _ = self.frames.send(Out::Goodbye).await;
        self.gone.cancelled().await;
    }
}
