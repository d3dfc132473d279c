//! Streams into a pod: commands with live streams, attachments to a container, connections to ports.

use std::{fs::File, io, os::fd::OwnedFd, sync::Arc};

use berth_cri::berth::v1::ExecProcess;
use berth_supervisor::client::{Exec, Supervisor};
use tokio::{io::Interest, net::TcpStream, sync::watch};

use crate::{
    Container, ContainerId, ContainerState, Error, FdStream, PodView, Sandbox, Terminal,
    exec::{next_exec_id, plan, refused},
    host::Host,
};

/// Room in the pipe to someone who follows a container's output: what does not fit is lost to him.
const FOLLOWER_PIPE: usize = 1 << 20;

/// Which streams somebody wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// To write to the process.
    pub stdin: bool,
    /// To read what it writes.
    pub stdout: bool,
    /// As stdout; not with a terminal.
    pub stderr: bool,
    /// A terminal instead of three streams.
    pub tty: bool,
}

/// The daemon's ends of a process's streams.
#[derive(Debug, Default)]
pub struct Streams {
    /// The process reads the end when this is dropped (of a terminal it does not).
    pub stdin: Option<FdStream>,
    /// Everything, with a terminal.
    pub stdout: Option<FdStream>,
    /// Never with a terminal.
    pub stderr: Option<FdStream>,
    /// With a terminal.
    pub terminal: Option<Terminal>,
}

/// A command that runs. Dropped before its end, it is killed with everything it started.
#[derive(Debug)]
pub struct Command {
    /// Each may be taken.
    pub streams: Streams,
    exec: Exec,
    exec_id: String,
    container: Arc<Container>,
    supervisor: Supervisor,
}

impl Command {
    /// Kills it and everything it started, while its streams are open: at the end of its input it might end by itself
    /// first, and leave behind what it started.
    ///
    /// # Errors
    /// The supervisor's.
    pub async fn kill(&self) -> Result<(), Error> {
        self.supervisor.kill_exec(&self.exec_id).await.map_err(refused(&self.container))
    }

    /// Waits for its end; 128 + signal for one that a signal ended. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Gone`] when its pod went away.
    pub async fn exit_code(&mut self) -> Result<i32, Error> {
        match (&mut self.exec.exit).await {
            Ok(exited) => Ok(exited.exit_code),
            Err(_) => Err(Error::Gone(self.container.sandbox_id.clone())),
        }
    }
}

/// Starts a command in a running container.
pub(crate) async fn command(
    host: &Host,
    sandbox: &Sandbox,
    container: Arc<Container>,
    supervisor: Supervisor,
    command: &[String],
    wanted: Wanted,
) -> Result<Command, Error> {
    let label = container.id.label();
    let plan = plan(host, sandbox, &container, command, wanted.tty).await?;
    let exec_id = next_exec_id();
    let request = ExecProcess {
        container_id: container.id.to_string(),
        exec_id: exec_id.clone(),
        tty: wanted.tty,
        cgroup_dirs: Vec::new(),
    };
    if wanted.tty {
        let started = supervisor.exec_terminal(request, plan).await;
        let (exec, master) = started.map_err(refused(&container))?;
        let streams = terminal(master, wanted).map_err(Error::step(label, "take a command's terminal"))?;
        return Ok(Command { streams, exec, exec_id, container, supervisor });
    }
    let pipes = Pipes::new(wanted).map_err(Error::step(label, "make the pipes of a command"))?;
    let started = supervisor.exec(request, plan, pipes.theirs).await;
    let exec = started.map_err(refused(&container))?;
    Ok(Command { streams: pipes.ours, exec, exec_id, container, supervisor })
}

fn terminal(master: OwnedFd, wanted: Wanted) -> io::Result<Streams> {
    let take = |wanted: bool, interest| match wanted {
        true => FdStream::nonblocking(master.try_clone()?, interest).map(Some),
        false => Ok::<_, io::Error>(None),
    };
    Ok(Streams {
        stdin: take(wanted.stdin, Interest::WRITABLE)?,
        // Read also when nobody wants it, or the program would wait for room.
        stdout: take(true, Interest::READABLE)?,
        stderr: None,
        terminal: Some(Terminal::of(&master)?),
    })
}

/// Both ends of three streams; /dev/null where nobody is.
struct Pipes {
    ours: Streams,
    theirs: [OwnedFd; 3],
}

impl Pipes {
    fn new(wanted: Wanted) -> io::Result<Self> {
        let null = || File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from);
        let (stdin, their_stdin) = match wanted.stdin {
            false => (None, null()?),
            true => {
                let (reader, writer) = io::pipe()?;
                (Some(FdStream::nonblocking(writer.into(), Interest::WRITABLE)?), reader.into())
            }
        };
        let output = |wanted: bool| match wanted {
            false => Ok::<_, io::Error>((None, null()?)),
            true => {
                let (reader, writer) = io::pipe()?;
                Ok((Some(FdStream::nonblocking(reader.into(), Interest::READABLE)?), writer.into()))
            }
        };
        let (stdout, their_stdout) = output(wanted.stdout)?;
        let (stderr, their_stderr) = output(wanted.stderr)?;
        let ours = Streams { stdin, stdout, stderr, terminal: None };
        Ok(Self { ours, theirs: [their_stdin, their_stdout, their_stderr] })
    }
}

/// A look at a running container's own streams. Any number of them may be open.
#[derive(Debug)]
pub struct Attachment {
    /// Each may be taken.
    pub streams: Streams,
    container: Arc<Container>,
    supervisor: Supervisor,
    view: watch::Receiver<Arc<PodView>>,
}

impl Attachment {
    /// Waits until the container has ended. Cancel safe.
    pub async fn ended(&self) {
        let mut view = self.view.clone();
        // An error means that the pod is gone, and the container with it.
        drop(view.wait_for(|view| !is_running(view, &self.container.id)).await);
    }

    /// To be called when the client's input has ended and `streams.stdin` was dropped: closes the container's own stdin
    /// for good if it was made to be written to once.
    ///
    /// # Errors
    /// The supervisor's.
    pub async fn input_ended(&self) -> Result<(), Error> {
        let config = &self.container.config;
        if !config.stdin_once || config.tty {
            return Ok(());
        }
        let label = self.container.id.label();
        let closed = self.supervisor.close_stdin(self.container.id.as_str()).await;
        closed.map_err(Error::step(label, "close its stdin"))
    }
}

fn is_running(view: &PodView, id: &ContainerId) -> bool {
    let state = view.containers.get(id).map(|container| &container.state);
    matches!(state, Some(ContainerState::Running { .. }))
}

/// Attaches to a running container. Whether it has a terminal is its own affair, not the caller's.
pub(crate) async fn attach(
    container: Arc<Container>,
    supervisor: Supervisor,
    view: watch::Receiver<Arc<PodView>>,
    wanted: Wanted,
) -> Result<Attachment, Error> {
    let label = container.id.label();
    let tty = container.config.tty;
    let pipes = || -> io::Result<_> {
        let follow = |wanted: bool| match wanted {
            false => Ok::<_, io::Error>((None, None)),
            true => {
                let (reader, writer) = io::pipe()?;
                // As large as this user may have it; the default is a sixteenth.
                let _ = rustix::pipe::fcntl_setpipe_size(&writer, FOLLOWER_PIPE);
                Ok((Some(FdStream::nonblocking(reader.into(), Interest::READABLE)?), Some(writer.into())))
            }
        };
        Ok((follow(wanted.stdout)?, follow(wanted.stderr && !tty)?))
    };
    let ((stdout, their_stdout), (stderr, their_stderr)) =
        pipes().map_err(Error::step(&label, "make the pipes of an attachment"))?;
    let attached = supervisor.attach(container.id.as_str(), their_stdout, their_stderr).await;
    let input = attached.map_err(Error::step(&label, "attach to it"))?;
    let inputs = || -> io::Result<_> {
        let terminal = input.as_ref().filter(|_| tty).map(Terminal::of).transpose()?;
        let stdin = input.filter(|_| wanted.stdin);
        let stdin = stdin.map(|fd| FdStream::nonblocking(fd, Interest::WRITABLE)).transpose()?;
        Ok((stdin, terminal))
    };
    let (stdin, terminal) = inputs().map_err(Error::step(&label, "take its input"))?;
    let streams = Streams { stdin, stdout, stderr, terminal };
    Ok(Attachment { streams, container, supervisor, view })
}

/// Connects to ports inside a pod.
#[derive(Clone, Debug)]
pub struct Dialer {
    /// The process whose network namespace is the pod's; `None` in the node's own network.
    pub(crate) inside: Option<Supervisor>,
}

impl Dialer {
    /// A connection to a port on the pod's loopback.
    ///
    /// # Errors
    /// connect(2)'s, or that the pod is gone.
    pub async fn connect(&self, port: u16) -> io::Result<TcpStream> {
        let netns = match &self.inside {
            None => None,
            Some(supervisor) => Some(supervisor.network_namespace()?),
        };
        berth_network::dial_loopback(netns, port).await
    }
}
