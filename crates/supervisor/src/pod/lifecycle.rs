//! Containers: made, started, watched, ended, forgotten. See `container.rs` for the states.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use berth_cri::berth::v1::failure::Kind;
use berth_cri::berth::v1::supervisor_message::Body;
use berth_cri::berth::v1::supervisor_reply::Result as Answer;
use berth_cri::berth::v1::{ContainerExited, CreateProcess, Failure, ProcessCreated, ProcessStarted};
use berth_launcher::cgroup::Cgroup;
use berth_launcher::container::{self as launch, Console, Launched, PidEntry, Progress, Stdio};
use berth_launcher::plan::{PidMode, read_header};
use berth_launcher::{LaunchError, StepError};
use rustix::fs::OFlags;
use rustix::pipe::PipeFlags;

use super::container::{Asked, Container, Dir, Maker, Pending, Phase, is_valid_id, oom_kills};
use super::external::{Purpose, Runtime, Wiring, null};
use super::failure::{Fault, Step, malformed, wrong_state};
use super::note::say;
use super::output::{Output, Pumped};
use super::poller::{Key, Token};
use super::process::{Ended, Process};
use super::requests::Reply;
use super::{Pod, Setup, exec, set_nonblocking};
use crate::crilog::{LogFile, StreamName, now_nanos};
use crate::exit_file;

/// The exit code of a container whose program never ran, which is what kubelet's users know from other runtimes.
const NEVER_RAN: i32 = 128;

/// Both ends of a container's three streams. A terminal's come later, from whoever makes it.
pub(super) struct Streams {
    pub(super) theirs: Stdio,
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

impl Streams {
    pub(super) fn new(open_stdin: bool) -> Result<Self, Fault> {
        let pipe = || {
            let (ours, theirs) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).step("make a pipe")?;
            set_nonblocking(&ours).step("make a pipe")?;
            Ok((ours, theirs))
        };
        let (stdout, their_stdout) = pipe()?;
        let (stderr, their_stderr) = pipe()?;
        let (stdin, ours) = if open_stdin {
            let (theirs, ours) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).step("make a pipe")?;
            (theirs, Some(ours))
        } else {
            (null().step("open /dev/null")?, None)
        };
        let theirs = Stdio { stdin, stdout: their_stdout, stderr: their_stderr };
        Ok(Self { theirs, stdin: ours, stdout, stderr })
    }
}

impl Pod {
    pub(super) fn create(
        &mut self,
        asked: Asked,
        request: CreateProcess,
        fds: Vec<OwnedFd>,
    ) -> Result<Reply, Failure> {
        if !matches!(self.setup, Setup::Done(_)) {
            return Err(wrong_state("the pod has not been set up"));
        }
        if !is_valid_id(&request.container_id) {
            return Err(malformed(format!("{:?} is no container id", request.container_id)));
        }
        if self.find(&request.container_id).is_ok() {
            return Err(wrong_state(format!("container {} is here already", request.container_id)));
        }
        let log = match request.log_path.as_str() {
            "" => None,
            path => Some(
                LogFile::open(Path::new(path)).step(|| format!("open log {path}")).map_err(launch_failure)?,
            ),
        };
        let dir = Dir::make(&self.dir, &request.container_id).step("make the container's folder");
        let dir = dir.map_err(launch_failure)?;
        let made = match (&request.external, &request.restored) {
            (_, Some(restored)) => self.create_restored(asked, &request, restored, log),
            (None, None) => self.create_native(&request, &fds, log),
            (Some(external), None) => {
                let runtime = Runtime {
                    path: external.path.clone(),
                    root: external.root.clone(),
                    bundle: external.bundle.clone(),
                    timeout: std::time::Duration::from_secs(external.timeout_seconds.max(1).into()),
                    container_id: request.container_id.clone(),
                };
                self.create_external(asked, &request, runtime, log)
            }
        };
        match made {
            Ok(made) => {
                let Made { key, maker, process, output, stdin } = made;
                let cgroup = Cgroup::from_dirs(request.cgroup_dirs.iter().map(Into::into));
                let oom_kills_before = oom_kills(&cgroup);
                let container = Container {
                    id: request.container_id,
                    dir,
                    phase: Phase::Creating(Pending { asked, failure: None }),
                    maker,
                    process,
                    output,
                    stdin,
                    cgroup,
                    oom_kills_before,
                    deletions: Vec::new(),
                };
                self.containers.insert(key, container);
                Ok(Reply::Later)
            }
            Err(failure) => {
                dir.remove(&self.dir);
                Err(failure)
            }
        }
    }

    fn create_native(
        &mut self,
        request: &CreateProcess,
        fds: &[OwnedFd],
        log: Option<LogFile>,
    ) -> Result<Made, Failure> {
        let [plan, rootfs] = fds else {
            return Err(malformed("create takes a plan and a rootfs"));
        };
        let target;
        let header = read_header(plan.as_fd()).step("read the plan").map_err(launch_failure)?;
        let pid = match header.pid_mode() {
            PidMode::New => PidEntry::New,
            PidMode::Host => PidEntry::Host,
            PidMode::Join => {
                target = self.pid_namespace(&request.target_container)?;
                PidEntry::Join(target.as_fd())
            }
        };
        let mut output = Output::new(log);
        let mut stdin = None;
        let console = if request.tty {
            Console::Tty
        } else {
            let streams = Streams::new(request.stdin).map_err(launch_failure)?;
            stdin = streams.stdin;
            output.attach(StreamName::Stdout, streams.stdout);
            output.attach(StreamName::Stderr, streams.stderr);
            Console::Pipes(streams.theirs)
        };
        let user = self.user_namespace.as_ref().map(|user| user.fd.as_fd());
        let Launched { pid, pidfd, gate } = launch::create(plan.as_fd(), rootfs.as_fd(), user, console, pid)
            .map_err(|error| from_launch(&error))?;
        let process = Process { pid, pidfd };
        let key = self.new_key();
        let watched = self
            .watch_first(key, &process)
            .and_then(|()| self.poller.add(&gate, Token::Gate(key)).step("watch the new process"))
            .and_then(|()| self.watch_output(key, &output));
        if let Err(fault) = watched {
            // It waits at a gate that will never be opened; without a table entry it is an orphan, reaped as one.
            if let Err(error) = process.kill() {
                say!("cannot kill the first process of {}: {error}", request.container_id);
            }
            return Err(launch_failure(fault));
        }
        Ok(Made { key, maker: Maker::Native { gate: Some(gate) }, process: Some(process), output, stdin })
    }

    fn create_external(
        &mut self,
        asked: Asked,
        request: &CreateProcess,
        runtime: Runtime,
        log: Option<LogFile>,
    ) -> Result<Made, Failure> {
        let key = self.new_key();
        let mut output = Output::new(log);
        let mut stdin = None;
        let purpose = Purpose::Create { asked };
        if request.tty {
            let null = null().step("open /dev/null").map_err(launch_failure)?;
            let wiring = Wiring { stdio: [null.as_fd(); 3], process_json: None, tty: true };
            self.start_run(&runtime, key, purpose, &wiring).map_err(launch_failure)?;
        } else {
            let streams = Streams::new(request.stdin).map_err(launch_failure)?;
            let theirs = &streams.theirs;
            let stdio = [theirs.stdin.as_fd(), theirs.stdout.as_fd(), theirs.stderr.as_fd()];
            let wiring = Wiring { stdio, process_json: None, tty: false };
            self.start_run(&runtime, key, purpose, &wiring).map_err(launch_failure)?;
            stdin = streams.stdin;
            output.attach(StreamName::Stdout, streams.stdout);
            output.attach(StreamName::Stderr, streams.stderr);
        }
        Ok(Made { key, maker: Maker::External(runtime), process: None, output, stdin })
    }

    /// The pid namespace that a container joins: another container's, or the one that the pod shares.
    fn pid_namespace(&self, target: &str) -> Result<OwnedFd, Failure> {
        if target.is_empty() {
            let Setup::Done(Some(pid_one)) = &self.setup else {
                return Err(wrong_state("the pod has no shared pid namespace"));
            };
            return pid_one.namespace.try_clone().step("share the pid namespace").map_err(launch_failure);
        }
        let container = &self.containers[&self.find(target)?];
        let Some(process) = &container.process else {
            return Err(wrong_state(format!("container {target}, whose pid namespace is wanted, has ended")));
        };
        // Not reaped, so the number is still its own.
        let path = format!("/proc/{}/ns/pid", process.pid);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, rustix::fs::Mode::empty())
            .step(|| format!("open the pid namespace of container {target}"))
            .map_err(launch_failure)
    }

    pub(super) fn watch_first(&self, key: Key, process: &Process) -> Result<(), Fault> {
        self.poller.add(&process.pidfd, Token::Death(key)).step("watch the new process")
    }

    pub(super) fn watch_output(&self, key: Key, output: &Output) -> Result<(), Fault> {
        for (name, token) in
            [(StreamName::Stdout, Token::Stdout(key)), (StreamName::Stderr, Token::Stderr(key))]
        {
            if let Some(source) = output.source(name) {
                self.poller.add(source, token).step("watch the container's output")?;
            }
        }
        Ok(())
    }

    pub(super) fn gate_spoke(&mut self, key: Key) {
        loop {
            let Some(container) = self.containers.get_mut(&key) else { return };
            let Maker::Native { gate: Some(gate) } = &mut container.maker else { return };
            match gate.read() {
                Ok(None) => return,
                Ok(Some(Progress::Ready { console, warnings })) => {
                    for warning in warnings {
                        say!("container {}: {warning}", container.id);
                    }
                    self.created(key, console);
                }
                Ok(Some(Progress::Held)) => self.held(key),
                Ok(Some(Progress::Executed)) => {
                    self.close_gate(key);
                    self.running(key);
                }
                Ok(Some(Progress::Failed(error))) => {
                    self.close_gate(key);
                    self.doom(key, from_step(error));
                }
                Err(error) => {
                    self.close_gate(key);
                    let fault = Fault::refused("read the container's gate", error.to_string());
                    self.doom(key, launch_failure(fault));
                }
            }
        }
    }

    fn close_gate(&mut self, key: Key) {
        if let Some(Container { maker: Maker::Native { gate }, .. }) = self.containers.get_mut(&key)
            && let Some(gate) = gate.take()
        {
            self.poller.remove(&gate);
        }
    }

    /// The process is set up and waits to be started.
    pub(super) fn created(&mut self, key: Key, console: Option<OwnedFd>) {
        if let Some(console) = console
            && let Err(fault) = self.attach_console(key, console)
        {
            return self.doom(key, launch_failure(fault));
        }
        let Some(container) = self.containers.get_mut(&key) else { return };
        let Phase::Creating(Pending { asked, failure: None }) = container.phase else { return };
        container.phase = Phase::Created;
        let pid = container.process.as_ref().map_or(0, |process| process.pid);
        self.answer(asked, Ok(Answer::Created(ProcessCreated { pid, held: false })), None);
    }

    /// The process is set up but for its hooks, and waits until those of the daemon have been run.
    fn held(&mut self, key: Key) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        let Phase::Creating(Pending { asked, failure: None }) = container.phase else { return };
        container.phase = Phase::Held;
        let pid = container.process.as_ref().map_or(0, |process| process.pid);
        self.answer(asked, Ok(Answer::Created(ProcessCreated { pid, held: true })), None);
    }

    /// Lets a held process go on; it is created when it is ready.
    pub(super) fn resume(&mut self, asked: Asked, container_id: &str) -> Result<Reply, Failure> {
        let key = self.find(container_id)?;
        let Some(container) = self.containers.get_mut(&key) else { return Ok(Reply::Later) };
        match (&container.phase, &mut container.maker) {
            (Phase::Held, Maker::Native { gate: Some(gate) }) => {
                gate.open().step("open the container's gate").map_err(launch_failure)?;
            }
            _ => return Err(wrong_state(format!("container {container_id} is not held"))),
        }
        container.phase = Phase::Creating(Pending { asked, failure: None });
        Ok(Reply::Later)
    }

    fn attach_console(&mut self, key: Key, console: OwnedFd) -> Result<(), Fault> {
        set_nonblocking(&console).step("take the container's terminal")?;
        self.poller.add(&console, Token::Stdout(key)).step("watch the container's terminal")?;
        if let Some(container) = self.containers.get_mut(&key) {
            container.output.attach_terminal(console).step("take the container's terminal")?;
        }
        Ok(())
    }

    pub(super) fn start(&mut self, asked: Asked, container_id: &str) -> Result<Reply, Failure> {
        let key = self.find(container_id)?;
        let Some(container) = self.containers.get_mut(&key) else { return Ok(Reply::Later) };
        if !matches!(container.phase, Phase::Created) {
            let state = container.state();
            return Err(wrong_state(format!("container {container_id} cannot be started: it is {state:?}")));
        }
        let mut at_once = false;
        match &mut container.maker {
            Maker::Restored => {
                let Some(process) = &container.process else { return Ok(Reply::Later) };
                let woken = exec::signal_all(process, &container.cgroup, libc::SIGCONT);
                woken.step("let it go on").map_err(launch_failure)?;
                at_once = true;
            }
            Maker::Native { gate: Some(gate) } => {
                gate.open().step("open the container's gate").map_err(launch_failure)?;
            }
            Maker::Native { gate: None } => {
                return Err(wrong_state(format!("container {container_id} is about to end")));
            }
            Maker::External(runtime) => {
                let runtime = runtime.clone();
                let null = null().step("open /dev/null").map_err(launch_failure)?;
                let wiring = Wiring { stdio: [null.as_fd(); 3], process_json: None, tty: false };
                self.start_run(&runtime, key, Purpose::Start, &wiring).map_err(launch_failure)?;
            }
        }
        if let Some(container) = self.containers.get_mut(&key) {
            container.phase = Phase::Starting(Pending { asked, failure: None });
        }
        if at_once {
            self.running(key);
        }
        Ok(Reply::Later)
    }

    /// The container's own program runs.
    pub(super) fn running(&mut self, key: Key) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        let Phase::Starting(Pending { asked, .. }) = container.phase else { return };
        let started_at = now_nanos();
        container.phase = Phase::Running(started_at);
        self.answer(asked, Ok(Answer::Started(ProcessStarted { started_at })), None);
    }

    /// Creating or starting has failed. Whoever asked is told when the process is gone.
    pub(super) fn doom(&mut self, key: Key, why: Failure) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        match &mut container.phase {
            Phase::Creating(Pending { failure, .. }) | Phase::Starting(Pending { failure, .. }) => {
                failure.get_or_insert(why);
            }
            // It died waiting; the exit says so.
            Phase::Held | Phase::Created | Phase::Running(_) | Phase::Exited(_) => {}
        }
        if let Some(process) = &container.process
            && let Err(error) = process.kill()
        {
            say!("cannot kill the first process of {}: {error}", container.id);
        }
    }

    pub(super) fn pump(&mut self, key: Key, name: StreamName) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        if container.output.pump(name, &mut self.scratch) == Pumped::End
            && let Some(source) = container.output.end(name, &mut self.scratch)
        {
            self.poller.remove(&source);
        }
    }

    /// The first process is dead.
    pub(super) fn container_died(&mut self, key: Key) {
        // Whatever it said at its gate before it died comes first.
        self.gate_spoke(key);
        let start_in_flight =
            self.runs.values().any(|run| run.container == key && matches!(run.purpose, Purpose::Start));
        let Some(container) = self.containers.get_mut(&key) else { return };
        let Some(process) = &container.process else { return };
        if start_in_flight {
            // Whether this was a start that worked or one that failed is known when the runtime has ended; the dead
            // process keeps until then.
            self.poller.remove(&process.pidfd);
            return;
        }
        let ended = match process.reap() {
            Ok(Some(ended)) => ended,
            Ok(None) => return,
            Err(error) => {
                say!("cannot wait for the first process of {}: {error}", container.id);
                Ended { code: 255, signal: 0 }
            }
        };
        self.poller.remove(&process.pidfd);
        let pid = process.pid;
        container.process = None;
        // In a pid namespace of its own nothing is left by now. In a shared one, what it started lives on, and
        // nobody would ever end it.
        if let Err(error) = exec::signal_rest(pid, &container.cgroup, libc::SIGKILL) {
            say!("cannot kill what {} has left: {error}", container.id);
        }
        for name in [StreamName::Stdout, StreamName::Stderr] {
            if let Some(source) = container.output.drain(name, &mut self.scratch) {
                self.poller.remove(&source);
            }
        }
        container.output.close_log();
        self.close_gate(key);
        self.conclude(key, ended);
    }

    /// Everything about the end of a container is known, and its output written.
    fn conclude(&mut self, key: Key, ended: Ended) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        let phase = std::mem::replace(&mut container.phase, Phase::Created);
        let mut exited = ContainerExited {
            container_id: container.id.clone(),
            exit_code: ended.code,
            signal: ended.signal,
            finished_at: now_nanos(),
            oom_killed: container.oom_kills() > container.oom_kills_before,
            started_at: 0,
        };
        let mut start_failed = None;
        match phase {
            Phase::Creating(Pending { asked, failure }) => {
                let failure = failure.unwrap_or_else(|| died(ended));
                if let Maker::External(runtime) = &container.maker {
                    let runtime = runtime.clone();
                    container.phase = Phase::Creating(Pending { asked, failure: Some(failure.clone()) });
                    return self.undo(key, &runtime, asked, failure);
                }
                return self.forget_uncreated(key, asked, failure);
            }
            Phase::Starting(Pending { asked, failure }) => {
                exited.exit_code = NEVER_RAN;
                exited.signal = 0;
                start_failed = Some((asked, failure.unwrap_or_else(|| died(ended))));
            }
            Phase::Running(since) => exited.started_at = since,
            Phase::Held | Phase::Created | Phase::Exited(_) => {}
        }
        if let Err(error) = exit_file::write(&container.dir, &exited) {
            say!("cannot record the exit of {}: {error}", container.id);
        }
        container.phase = Phase::Exited(exited.clone());
        let deleted = !container.deletions.is_empty();
        if let Some((asked, failure)) = start_failed {
            self.answer(asked, Err(failure), None);
        }
        self.tell_all(Body::Exited(exited));
        if deleted {
            self.forget_exited(key);
        }
        self.end_with_pid_one();
    }

    /// Creating has failed and been undone.
    pub(super) fn forget_uncreated(&mut self, key: Key, asked: Asked, failure: Failure) {
        if let Some(mut container) = self.containers.remove(&key) {
            for name in [StreamName::Stdout, StreamName::Stderr] {
                if let Some(source) = container.output.detach(name) {
                    self.poller.remove(&source);
                }
            }
            container.dir.remove(&self.dir);
            self.answer(asked, Err(failure), None);
            for asked in container.deletions {
                self.answer(asked, Ok(Answer::Done(Default::default())), None);
            }
        }
    }

    pub(super) fn delete(&mut self, asked: Asked, container_id: &str) -> Result<Reply, Failure> {
        let key = self.find(container_id)?;
        let Some(container) = self.containers.get_mut(&key) else { return Ok(Reply::Later) };
        if let Phase::Running(_) = container.phase {
            return Err(wrong_state(format!("container {container_id} is running")));
        }
        container.deletions.push(asked);
        if let Phase::Exited(_) = container.phase {
            self.forget_exited(key);
        } else {
            // Never started: it goes, and the request is answered when it has gone.
            self.kill_runs_of(key);
            if let Some(process) = self.containers.get(&key).and_then(|container| container.process.as_ref())
            {
                process
                    .kill()
                    .step(|| format!("kill container {container_id}"))
                    .map_err(|fault| fault.into_failure(Kind::Internal))?;
            }
        }
        Ok(Reply::Later)
    }

    /// An exited container that someone wants deleted: at once, or after its external runtime has forgotten it.
    fn forget_exited(&mut self, key: Key) {
        let Some(container) = self.containers.get(&key) else { return };
        if let Maker::External(runtime) = &container.maker {
            if self.runs.values().any(|run| run.container == key && matches!(run.purpose, Purpose::Delete)) {
                return;
            }
            let runtime = runtime.clone();
            match self.run_delete(&runtime, key, Purpose::Delete) {
                Ok(()) => return,
                Err(fault) => {
                    say!("cannot run {} to delete {}: {fault:?}", runtime.path, runtime.container_id)
                }
            }
        }
        self.forget(key);
    }

    pub(super) fn forget(&mut self, key: Key) {
        self.kill_runs_of(key);
        if let Some(container) = self.containers.remove(&key) {
            container.dir.remove(&self.dir);
            for asked in container.deletions {
                self.answer(asked, Ok(Answer::Done(Default::default())), None);
            }
        }
    }
}

/// The parts of a new container that differ between makers.
pub(super) struct Made {
    pub(super) key: Key,
    pub(super) maker: Maker,
    pub(super) process: Option<Process>,
    pub(super) output: Output,
    pub(super) stdin: Option<OwnedFd>,
}

pub(super) fn launch_failure(fault: Fault) -> Failure {
    fault.into_failure(Kind::Launch)
}

/// The launcher could not even fork.
pub(super) fn from_launch(error: &LaunchError) -> Failure {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
    let errno = source.and_then(std::io::Error::raw_os_error).unwrap_or(0);
    let message = source.map_or_else(|| error.to_string(), ToString::to_string);
    Failure { kind: Kind::Launch.into(), step: error.to_string(), errno, message }
}

/// The new process said what went wrong in it.
pub(super) fn from_step(StepError { step, errno, message, exec }: StepError) -> Failure {
    let kind = if exec { Kind::Exec } else { Kind::Launch };
    Failure { kind: kind.into(), step, errno, message }
}

fn died(ended: Ended) -> Failure {
    let message = match ended {
        Ended { signal: 0, code } => format!("the process ended with status {code}"),
        Ended { signal, .. } => format!("the process was killed by signal {signal}"),
    };
    Failure { kind: Kind::Launch.into(), step: "set the container up".into(), errno: 0, message }
}
