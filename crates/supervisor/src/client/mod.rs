//! The daemon's side of `berth-pod`: starting one, finding one again, calling it.
//!
//! ```text
//!  SupervisorBinary::install      once, when the daemon starts
//!  Supervisor::spawn / connect ─► Supervisor (calls, from any task)
//!                              └► Events (exits, and the end of the connection; one reader)
//! ```
//!
//! Every call has a deadline. A connection that is lost fails all waiting calls with [`CallError::Gone`] and is the
//! last event.

mod binary;
mod connection;
mod error;
mod spawn;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use berth_cri::berth::v1::supervisor_reply::Result as Answer;
use berth_cri::berth::v1::supervisor_request::Call;
use berth_cri::berth::v1::{
    AttachContainer, CheckpointContainer, CloseStdin, ContainerExited, CreateProcess, Criu, DeleteContainer,
    ExecExited, ExecProcess, GetState, KillExec, MakeUserNamespace, PodSetup, PodState, ProcessCreated,
    ReopenLog, RestoredProcess, ResumeProcess, Shutdown, SignalContainer, StartProcess,
};
use rustix::fs::{MemfdFlags, SealFlags};
use tokio::sync::{mpsc, oneshot};

pub use self::binary::{InstallError, SupervisorBinary};
use self::connection::{Connection, ExecGuard};
pub use self::error::{CallError, ConnectError, SpawnError};
pub use crate::sys::watch;

/// For what `berth-pod` answers at once. It may be waiting for a slow disk under a log, or for a CPU.
const PROMPT: Duration = Duration::from_secs(10);

/// For what a container's child does: mounts, cgroup moves, reading the program from disk.
const LAUNCH: Duration = Duration::from_secs(60);

/// Beyond the time that an external runtime's run may take.
const MARGIN: Duration = Duration::from_secs(10);

/// What happened without being asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A container has ended; its output is in the log and its exit on disk.
    Exited(ContainerExited),
    /// `berth-pod` is dead. The last event.
    Gone,
    /// `berth-pod` has closed this connection but lives: it takes a peer that does not read its events for stuck.
    /// [`Supervisor::connect`] again, and ask for the state. The last event.
    Disconnected,
}

/// The events of one connection.
///
/// They must be read: a thousand may wait, then replies wait with them.
#[derive(Debug)]
pub struct Events(mpsc::Receiver<Event>);

impl Events {
    /// The next event; `None` after [`Event::Gone`] or [`Event::Disconnected`]. Cancel-safe.
    pub async fn recv(&mut self) -> Option<Event> {
        self.0.recv().await
    }
}

/// What the native launcher needs for a container.
#[derive(Debug)]
pub struct NativeFds {
    /// The bytes of `berth_launcher::compile`.
    pub plan: Vec<u8>,
    /// A detached mount, which becomes the container's root.
    pub rootfs: OwnedFd,
}

/// A process that runs in a container besides its first. Dropped before its end, it is killed with everything that it
/// started.
#[derive(Debug)]
pub struct Exec {
    /// In the host's pid namespace.
    pub pid: i32,
    /// How it ends. Closed without a value when the connection is lost: `berth-pod` then kills it.
    pub exit: oneshot::Receiver<ExecExited>,
    _guard: ExecGuard,
}

/// A connection to a pod's `berth-pod`. Clones share it.
#[derive(Clone, Debug)]
pub struct Supervisor(Arc<Connection>);

impl Supervisor {
    /// Starts `berth-pod` for a pod whose directory exists, and is connected to it at once.
    ///
    /// # Errors
    /// [`SpawnError`]; there is then no process and no socket.
    pub async fn spawn(
        binary: &SupervisorBinary,
        pod_dir: &Path,
        sandbox_id: &str,
    ) -> Result<(Self, Events), SpawnError> {
        let spawned = spawn::spawn(binary, pod_dir, sandbox_id).await?;
        Connection::open(spawned.socket, spawned.pid, spawned.pidfd)
            .map(|(connection, events)| (Self(Arc::new(connection)), Events(events)))
            .map_err(|source| SpawnError::Step { step: "watch the new berth-pod", source })
    }

    /// Finds the `berth-pod` of a pod again, with what it has. One that does not answer within `patience` is killed: nobody
    /// else would ever find it. Its thread may be waiting for a slow disk under a log.
    ///
    /// # Errors
    /// [`ConnectError::Gone`] when there is none; [`ConnectError::Call`] for one that was killed, and is gone as soon as the
    /// kernel lets it go.
    pub async fn connect(
        pod_dir: &Path,
        patience: Duration,
    ) -> Result<(Self, Events, PodState), ConnectError> {
        let found = spawn::find(pod_dir)?;
        let (connection, events) = Connection::open(found.socket, found.pid, found.pidfd)
            .map_err(|source| ConnectError::Step { step: "watch the connection", source })?;
        let supervisor = Self(Arc::new(connection));
        // Its pid was known before its pidfd was opened. An answer after that means that it lived then, and the
        // number was its own.
        match supervisor.state_within(patience).await {
            Ok(state) => Ok((supervisor, Events(events), state)),
            Err(CallError::Gone) => Err(ConnectError::Gone),
            Err(error) => {
                tracing::error!(pid = supervisor.pid(), %error, "a pod's supervisor does not answer; killing it");
                // Without an answer only this tells whose number it is.
                if spawn::is_of(supervisor.pid(), pod_dir)
                    && let Err(error) = supervisor.kill().await
                {
                    tracing::error!(pid = supervisor.pid(), %error, "cannot kill it");
                }
                Err(ConnectError::Call(error))
            }
        }
    }

    /// `berth-pod`'s own pid.
    pub fn pid(&self) -> i32 {
        self.0.pid
    }

    /// The network namespace that it is in, which is the pod's.
    ///
    /// # Errors
    /// open(2): it has ended.
    pub fn network_namespace(&self) -> io::Result<OwnedFd> {
        Ok(File::open(format!("/proc/{}/ns/net", self.pid()))?.into())
    }

    /// Makes the pod's user namespace, with a network namespace and others that belong to it, and enters the latter. Once,
    /// before [`setup`](Self::setup).
    ///
    /// # Errors
    /// As [`setup`](Self::setup).
    pub async fn make_user_namespace(&self, request: MakeUserNamespace) -> Result<(), CallError> {
        self.done("make the pod's user namespace", PROMPT, Call::MakeUserNamespace(request), &[]).await
    }

    /// Makes the pod's namespaces. Once, before anything else but a user namespace.
    ///
    /// # Arguments
    /// * `netns`: the pod's network namespace; `None` with host network, or when the user namespace came with one.
    ///
    /// # Errors
    /// [`CallError::Failed`] with the step. The supervisor is of no use then: [`Supervisor::kill`].
    pub async fn setup(&self, setup: PodSetup, netns: Option<OwnedFd>) -> Result<(), CallError> {
        self.done("set the pod up", PROMPT, Call::Setup(setup), netns.as_ref().map(AsFd::as_fd).as_slice())
            .await
    }

    /// Sets a container up, to the point where only its program has to be executed.
    ///
    /// # Arguments
    /// * `fds`: for the native launcher; `None` with `request.external`.
    /// * `hooks`: how long its own hooks may take.
    ///
    /// # Returns
    /// The pid of its first process, and whether that is held before its hooks ([`Supervisor::resume`]).
    ///
    /// # Errors
    /// [`CallError::Failed`] when it could not be made: nothing of it is left then. After a timeout, or when this
    /// future is dropped, it may come into being nevertheless: [`Supervisor::delete`].
    pub async fn create(
        &self,
        request: CreateProcess,
        fds: Option<NativeFds>,
        hooks: Duration,
    ) -> Result<ProcessCreated, CallError> {
        const STEP: &str = "create the container";
        let after = match &request.external {
            // A failed create is followed by a delete.
            Some(external) => Duration::from_secs(u64::from(external.timeout_seconds) * 2) + MARGIN,
            None => LAUNCH + hooks + request.restored.as_ref().map_or(Duration::ZERO, time_of),
        };
        let call = Call::Create(request);
        let answer = match fds {
            Some(NativeFds { plan, rootfs }) => {
                let plan = sealed(&plan).map_err(|source| CallError::Io { step: STEP, source })?;
                self.0.call(STEP, after, call, &[plan.as_fd(), rootfs.as_fd()]).await?
            }
            None => self.0.call(STEP, after, call, &[]).await?,
        };
        match answer.result {
            Answer::Created(created) => Ok(created),
            other => Err(CallError::unexpected(STEP, &other)),
        }
    }

    /// Lets a held process go on to its hooks, which may take so long, and to its exec gate.
    ///
    /// # Errors
    /// As [`Supervisor::create`].
    pub async fn resume(&self, container_id: &str, hooks: Duration) -> Result<(), CallError> {
        const STEP: &str = "create the container";
        let call = Call::Resume(ResumeProcess { container_id: container_id.to_owned() });
        match self.0.call(STEP, LAUNCH + hooks, call, &[]).await?.result {
            Answer::Created(_) => Ok(()),
            other => Err(CallError::unexpected(STEP, &other)),
        }
    }

    /// Lets a created container run its program, after its hooks, which may take so long.
    ///
    /// # Returns
    /// When it began, in nanoseconds since the epoch.
    ///
    /// # Errors
    /// [`CallError::Failed`] of kind `EXEC` when the program could not be executed; the container has exited then.
    pub async fn start(&self, container_id: &str, hooks: Duration) -> Result<i64, CallError> {
        const STEP: &str = "start the container";
        let call = Call::Start(StartProcess { container_id: container_id.to_owned() });
        match self.0.call(STEP, LAUNCH + MARGIN + hooks, call, &[]).await?.result {
            Answer::Started(started) => Ok(started.started_at),
            other => Err(CallError::unexpected(STEP, &other)),
        }
    }

    /// Runs `criu dump` on a running container, in the pod's namespaces.
    ///
    /// # Errors
    /// [`CallError::Failed`] with the errors of CRIU's log.
    pub async fn checkpoint(&self, container_id: &str, criu: Criu) -> Result<(), CallError> {
        let after = Duration::from_secs(criu.timeout_seconds.into()) + MARGIN;
        let request = CheckpointContainer { container_id: container_id.to_owned(), criu: Some(criu) };
        self.done("checkpoint the container", after, Call::Checkpoint(request), &[]).await
    }

    /// Sends a signal to a container's first process, or to `all` of its processes. A process that has just died is
    /// no error.
    ///
    /// # Errors
    /// [`CallError::Failed`] of kind `WRONG_STATE` when the container has ended.
    pub async fn signal(&self, container_id: &str, signal: i32, all: bool) -> Result<(), CallError> {
        let request = SignalContainer { container_id: container_id.to_owned(), signal, all };
        self.done("signal the container", PROMPT, Call::Signal(request), &[]).await
    }

    /// Runs a further process, with these streams as its descriptors 0, 1 and 2.
    ///
    /// When this future is dropped or fails, whatever has come into being is killed.
    ///
    /// # Errors
    /// [`CallError::Failed`] of kind `EXEC` when the program could not be executed.
    pub async fn exec(
        &self,
        request: ExecProcess,
        plan: Vec<u8>,
        stdio: [OwnedFd; 3],
    ) -> Result<Exec, CallError> {
        let [stdin, stdout, stderr] = &stdio;
        let request = ExecProcess { tty: false, ..request };
        self.run_exec(request, &plan, &[stdin.as_fd(), stdout.as_fd(), stderr.as_fd()])
            .await
            .map(|(exec, _)| exec)
    }

    /// Runs a further process on a terminal of its own, and gives the terminal's master.
    ///
    /// # Errors
    /// As [`Supervisor::exec`].
    pub async fn exec_terminal(
        &self,
        request: ExecProcess,
        plan: Vec<u8>,
    ) -> Result<(Exec, OwnedFd), CallError> {
        let (exec, master) = self.run_exec(ExecProcess { tty: true, ..request }, &plan, &[]).await?;
        let missing = || io::Error::new(io::ErrorKind::InvalidData, "the reply carries no terminal");
        Ok((exec, master.ok_or_else(|| CallError::Io { step: "exec in the container", source: missing() })?))
    }

    async fn run_exec(
        &self,
        request: ExecProcess,
        plan: &[u8],
        stdio: &[BorrowedFd<'_>],
    ) -> Result<(Exec, Option<OwnedFd>), CallError> {
        const STEP: &str = "exec in the container";
        let plan = sealed(plan).map_err(|source| CallError::Io { step: STEP, source })?;
        let fds: Vec<BorrowedFd<'_>> = std::iter::once(plan.as_fd()).chain(stdio.iter().copied()).collect();
        let (guard, exit) = self.0.expect_exec(&request.exec_id)?;
        let answer = self.0.call(STEP, LAUNCH, Call::Exec(request), &fds).await?;
        match answer.result {
            Answer::ExecStarted(started) => {
                Ok((Exec { pid: started.pid, exit, _guard: guard }, answer.fds.into_iter().next()))
            }
            other => Err(CallError::unexpected(STEP, &other)),
        }
    }

    /// SIGKILL to an exec'd process and everything that it started. That it has ended already is no error.
    ///
    /// # Errors
    /// [`CallError`] when it could not be sent.
    pub async fn kill_exec(&self, exec_id: &str) -> Result<(), CallError> {
        let call = Call::KillExec(KillExec { exec_id: exec_id.to_owned() });
        match self.done("kill the exec", PROMPT, call, &[]).await {
            Err(error) if error.is_not_found() => Ok(()),
            done => done,
        }
    }

    /// Follows a container's output from now on, into these pipes' writing ends; they are closed when their streams end.
    /// With a terminal there is one output, `stdout`.
    ///
    /// # Returns
    /// What writes to the container: its terminal's master, or its stdin's pipe; it does not block. `None` when the
    /// container reads nothing.
    ///
    /// # Errors
    /// [`CallError::Failed`] of kind `WRONG_STATE` when the container has ended.
    pub async fn attach(
        &self,
        container_id: &str,
        stdout: Option<OwnedFd>,
        stderr: Option<OwnedFd>,
    ) -> Result<Option<OwnedFd>, CallError> {
        const STEP: &str = "attach to the container";
        let request = AttachContainer {
            container_id: container_id.to_owned(),
            stdout: stdout.is_some(),
            stderr: stderr.is_some(),
        };
        let fds: Vec<BorrowedFd<'_>> = stdout.iter().chain(&stderr).map(AsFd::as_fd).collect();
        let answer = self.0.call(STEP, PROMPT, Call::Attach(request), &fds).await?;
        match answer.result {
            Answer::Attached(_) => Ok(answer.fds.into_iter().next()),
            other => Err(CallError::unexpected(STEP, &other)),
        }
    }

    /// Lets a container read the end of its stdin. That it is closed already is no error.
    ///
    /// # Errors
    /// [`CallError`] when it could not be asked for.
    pub async fn close_stdin(&self, container_id: &str) -> Result<(), CallError> {
        let call = Call::CloseStdin(CloseStdin { container_id: container_id.to_owned() });
        match self.done("close the container's stdin", PROMPT, call, &[]).await {
            Err(error) if error.is_not_found() => Ok(()),
            done => done,
        }
    }

    /// Makes a container's log file anew, after a rotation. When this returns, nothing more goes to the old file.
    ///
    /// # Errors
    /// [`CallError::Failed`] of kind `WRONG_STATE` when the container has ended; otherwise the old file is kept.
    pub async fn reopen_log(&self, container_id: &str) -> Result<(), CallError> {
        let call = Call::ReopenLog(ReopenLog { container_id: container_id.to_owned() });
        self.done("reopen the container's log", PROMPT, call, &[]).await
    }

    /// Forgets a container that has ended, its exit record with it; one that was never started is killed first. That
    /// there is none is no error.
    ///
    /// # Errors
    /// [`CallError::Failed`] of kind `WRONG_STATE` when it is running.
    pub async fn delete(&self, container_id: &str) -> Result<(), CallError> {
        let call = Call::Delete(DeleteContainer { container_id: container_id.to_owned() });
        match self.done("delete the container", LAUNCH + MARGIN, call, &[]).await {
            Err(error) if error.is_not_found() => Ok(()),
            done => done,
        }
    }

    /// What the supervisor has.
    ///
    /// # Errors
    /// [`CallError`] when it does not answer.
    pub async fn state(&self) -> Result<PodState, CallError> {
        self.state_within(PROMPT).await
    }

    async fn state_within(&self, after: Duration) -> Result<PodState, CallError> {
        const STEP: &str = "ask for the pod's state";
        match self.0.call(STEP, after, Call::GetState(GetState {}), &[]).await?.result {
            Answer::State(state) => Ok(state),
            other => Err(CallError::unexpected(STEP, &other)),
        }
    }

    /// Ends the supervisor of a pod without containers, and waits until it has ended.
    ///
    /// # Errors
    /// [`CallError::Failed`] of kind `WRONG_STATE` while there are containers. That it is gone already is no error.
    pub async fn shutdown(&self) -> Result<(), CallError> {
        match self.done("shut the supervisor down", PROMPT, Call::Shutdown(Shutdown {}), &[]).await {
            Ok(()) | Err(CallError::Gone) => {
                self.0.wait_for_death("wait for the supervisor's end", PROMPT).await
            }
            failed => failed,
        }
    }

    /// Ends the supervisor, whatever it is doing, and waits until it has ended. Its containers become nobody's: they
    /// have to be found by their cgroups.
    ///
    /// # Errors
    /// [`CallError::Timeout`] when it does not die (it waits in the kernel).
    pub async fn kill(&self) -> Result<(), CallError> {
        const STEP: &str = "kill the supervisor";
        match crate::sys::pidfd_send_signal(self.0.pidfd(), libc::SIGKILL) {
            Err(source) if source.raw_os_error() != Some(libc::ESRCH) => {
                Err(CallError::Io { step: STEP, source })
            }
            _ => self.0.wait_for_death(STEP, PROMPT).await,
        }
    }

    async fn done(
        &self,
        step: &'static str,
        after: Duration,
        call: Call,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), CallError> {
        match self.0.call(step, after, call, fds).await?.result {
            Answer::Done(_) => Ok(()),
            other => Err(CallError::unexpected(step, &other)),
        }
    }
}

/// How long a restore may take.
fn time_of(restored: &RestoredProcess) -> Duration {
    restored.criu.as_ref().map_or(Duration::ZERO, |criu| Duration::from_secs(criu.timeout_seconds.into()))
}

/// A plan as a file in memory that nobody can change any more.
fn sealed(plan: &[u8]) -> io::Result<OwnedFd> {
    use std::io::{Seek, Write};
    let fd = rustix::fs::memfd_create("plan", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(plan)?;
    // An external runtime reads on from here.
    file.rewind()?;
    rustix::fs::fcntl_add_seals(
        &file,
        SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
    )?;
    Ok(file.into())
}
