//! One connection: requests out from any task, one reader that hands replies and events to whom they belong.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use berth_cri::berth::v1::supervisor_message::Body;
use berth_cri::berth::v1::supervisor_reply::Result as Answer;
use berth_cri::berth::v1::supervisor_request::Call;
use berth_cri::berth::v1::{ExecExited, KillExec, SupervisorMessage, SupervisorRequest};
use prost::Message;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::Event;
use super::error::CallError;
use crate::sys::watch;
use crate::wire;

/// Exits that may wait for the daemon's attention. A pod has a handful of containers, each of which ends now and then.
const EVENTS: usize = 1024;

/// The kernel closes a dying process's sockets a moment before it reports its death.
const DYING: Duration = Duration::from_secs(5);

/// A reply with its descriptors.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) result: Answer,
    pub(super) fds: Vec<OwnedFd>,
}

/// Who waits for what.
#[derive(Debug)]
enum Waiting {
    Open {
        replies: HashMap<u64, oneshot::Sender<Reply>>,
        execs: HashMap<String, oneshot::Sender<ExecExited>>,
    },
    /// The connection is lost.
    Closed,
}

#[derive(Debug)]
struct Shared {
    socket: AsyncFd<OwnedFd>,
    pidfd: AsyncFd<OwnedFd>,
    waiting: Mutex<Waiting>,
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Nothing is left half-done by a panic in here: each user does one insertion or removal.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) pid: i32,
    shared: Arc<Shared>,
    next: AtomicU64,
    reader: tokio::task::JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Connection {
    pub(super) fn open(
        socket: OwnedFd,
        pid: i32,
        pidfd: OwnedFd,
    ) -> io::Result<(Self, mpsc::Receiver<Event>)> {
        let shared = Arc::new(Shared {
            socket: watch(socket, Interest::READABLE | Interest::WRITABLE)?,
            pidfd: watch(pidfd, Interest::READABLE)?,
            waiting: Mutex::new(Waiting::Open { replies: HashMap::new(), execs: HashMap::new() }),
        });
        let (events, receiver) = mpsc::channel(EVENTS);
        let reader = tokio::spawn(read(Arc::clone(&shared), events));
        Ok((Self { pid, shared, next: AtomicU64::new(1), reader }, receiver))
    }

    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.shared.pidfd.get_ref().as_fd()
    }

    /// Sends a request and waits for its reply, at most for `after`.
    pub(super) async fn call(
        &self,
        step: &'static str,
        after: Duration,
        call: Call,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Reply, CallError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        match &mut *self.shared.waiting() {
            Waiting::Open { replies, .. } => drop(replies.insert(id, sender)),
            Waiting::Closed => return Err(CallError::Gone),
        }
        let _expected = ExpectedReply { connection: self, id };
        let message = SupervisorRequest { id, call: Some(call) }.encode_to_vec();
        if message.len() > wire::MAX_MESSAGE {
            let source =
                io::Error::new(io::ErrorKind::InvalidInput, format!("a request of {} bytes", message.len()));
            return Err(CallError::Io { step, source });
        }
        let answered = async {
            self.send(&message, fds).await.map_err(|source| match source.kind() {
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => CallError::Gone,
                _ => CallError::Io { step, source },
            })?;
            receiver.await.map_err(|_| CallError::Gone)
        };
        match timeout(after, answered).await {
            Ok(answer) => answer,
            Err(_) => Err(CallError::Timeout { step, after }),
        }
    }

    async fn send(&self, message: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        loop {
            let mut ready = self.shared.socket.writable().await?;
            match ready.try_io(|socket| wire::send(socket.get_ref(), message, fds)) {
                Ok(sent) => return sent,
                Err(_would_block) => {}
            }
        }
    }

    /// From now on the end of this exec is kept for its caller, who owns it by way of the guard.
    pub(super) fn expect_exec(
        self: &Arc<Self>,
        exec_id: &str,
    ) -> Result<(ExecGuard, oneshot::Receiver<ExecExited>), CallError> {
        let (sender, receiver) = oneshot::channel();
        match &mut *self.shared.waiting() {
            Waiting::Open { execs, .. } => drop(execs.insert(exec_id.to_owned(), sender)),
            Waiting::Closed => return Err(CallError::Gone),
        }
        Ok((ExecGuard { connection: Arc::downgrade(self), exec_id: exec_id.to_owned() }, receiver))
    }

    /// Waits until the process is dead (and, if it is this process's child, until it may be forgotten).
    pub(super) async fn wait_for_death(&self, step: &'static str, after: Duration) -> Result<(), CallError> {
        match timeout(after, self.shared.pidfd.readable()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(source)) => Err(CallError::Io { step, source }),
            Err(_) => Err(CallError::Timeout { step, after }),
        }
    }
}

/// A reply that is waited for: not any more once this is dropped.
struct ExpectedReply<'a> {
    connection: &'a Connection,
    id: u64,
}

impl Drop for ExpectedReply<'_> {
    fn drop(&mut self) {
        if let Waiting::Open { replies, .. } = &mut *self.connection.shared.waiting() {
            replies.remove(&self.id);
        }
    }
}

/// An exec from its request to its end. Dropped before, it is killed: nobody wants it any more. With the connection
/// `berth-pod` ends it by itself.
#[derive(Debug)]
pub(super) struct ExecGuard {
    connection: Weak<Connection>,
    exec_id: String,
}

impl Drop for ExecGuard {
    fn drop(&mut self) {
        let Some(connection) = self.connection.upgrade() else { return };
        let mut waiting = connection.shared.waiting();
        let Waiting::Open { execs, .. } = &mut *waiting else { return };
        if execs.remove(&self.exec_id).is_none() {
            return;
        }
        // Best effort; a supervisor that cannot take this message now is being given up anyway.
        let call = Call::KillExec(KillExec { exec_id: self.exec_id.clone() });
        let message = SupervisorRequest { id: 0, call: Some(call) }.encode_to_vec();
        if let Err(error) = wire::send(connection.shared.socket.get_ref(), &message, &[]) {
            tracing::warn!(exec.id = %self.exec_id, %error, "an abandoned exec could not be killed");
        }
    }
}

/// Reads until the connection is lost.
async fn read(shared: Arc<Shared>, events: mpsc::Sender<Event>) {
    let mut buffer = vec![0; wire::MAX_MESSAGE];
    loop {
        let mut ready = match shared.socket.readable().await {
            Ok(ready) => ready,
            Err(error) => {
                tracing::warn!(%error, "cannot wait for a pod's supervisor");
                break;
            }
        };
        match ready.try_io(|socket| wire::receive(socket.get_ref(), &mut buffer)) {
            Err(_would_block) => {}
            Ok(Ok(Some(received))) => match SupervisorMessage::decode(&buffer[..received.len]) {
                Ok(message) => dispatch(&shared, &events, message, received.fds).await,
                Err(error) => {
                    tracing::warn!(%error, "a pod's supervisor said what is no message");
                    break;
                }
            },
            Ok(Ok(None)) => break,
            Ok(Err(error)) => {
                if error.kind() != io::ErrorKind::ConnectionReset {
                    tracing::warn!(%error, "cannot read from a pod's supervisor");
                }
                break;
            }
        }
    }
    *shared.waiting() = Waiting::Closed;
    let last = match timeout(DYING, shared.pidfd.readable()).await {
        Ok(_) => Event::Gone,
        Err(_) => Event::Disconnected,
    };
    // Nobody listening is an answer as well.
    let _ = events.send(last).await;
}

async fn dispatch(
    shared: &Shared,
    events: &mpsc::Sender<Event>,
    message: SupervisorMessage,
    fds: Vec<OwnedFd>,
) {
    match message.body {
        Some(Body::Reply(reply)) => {
            let sender = match &mut *shared.waiting() {
                Waiting::Open { replies, .. } => replies.remove(&reply.id),
                Waiting::Closed => None,
            };
            if let (Some(sender), Some(result)) = (sender, reply.result) {
                // The caller may have given up in this very moment.
                let _ = sender.send(Reply { result, fds });
            }
        }
        Some(Body::Exited(exited)) => {
            // Events that nobody reads any more: the manager is being torn down.
            let _ = events.send(Event::Exited(exited)).await;
        }
        Some(Body::ExecExited(exited)) => {
            let sender = match &mut *shared.waiting() {
                Waiting::Open { execs, .. } => execs.remove(&exited.exec_id),
                Waiting::Closed => None,
            };
            if let Some(sender) = sender {
                let _ = sender.send(exited);
            }
        }
        None => tracing::debug!("a pod's supervisor sent a message of a later version"),
    }
}
