//! ExecSync: a command in a running container, its output and exit code.

use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use berth_cri::berth::v1::{ExecExited, ExecProcess};
use berth_launcher::compile;
use berth_supervisor::client::{CallError, Exec, Supervisor};
use tokio::{io::AsyncReadExt as _, net::unix::pipe, time::timeout};

use crate::{
    Container, Error, Sandbox,
    create::{PlanError, seccomp_filter},
    host::{Handler, Host},
};

/// How long to go on reading after the command has ended while something it left behind holds the pipes open: what it
/// wrote itself is in the pipes already.
const DRAIN: Duration = Duration::from_millis(250);

/// How long a killed command may take to be gone.
const AFTER_KILL: Duration = Duration::from_secs(5);

/// A name for a command that no other of this daemon has.
pub(crate) fn next_exec_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("exec-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// What a command wrote and how it ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecOutput {
    /// At most the configured limit; the surplus was read and dropped.
    pub stdout: Vec<u8>,
    /// As stdout.
    pub stderr: Vec<u8>,
    /// 128 + signal for a command that a signal ended.
    pub exit_code: i32,
}

/// Runs a command to its end, or kills it with everything it started when `limit` is over.
pub(crate) async fn exec_sync(
    host: &Host,
    sandbox: &Sandbox,
    container: &Container,
    supervisor: &Supervisor,
    command: &[String],
    limit: Option<Duration>,
) -> Result<ExecOutput, Error> {
    let label = container.id.label();
    let most = host.config.exec_output_limit;
    let pipes = || -> io::Result<_> {
        Ok((Output::new(most)?, Output::new(most)?, OwnedFd::from(File::open("/dev/null")?)))
    };
    let ((mut stdout, their_stdout), (mut stderr, their_stderr), null) =
        pipes().map_err(Error::step(&label, "make the pipes of a command"))?;
    let plan = plan(host, sandbox, container, command, false).await?;
    let exec_id = next_exec_id();
    let request = ExecProcess {
        container_id: container.id.to_string(),
        exec_id: exec_id.clone(),
        tty: false,
        cgroup_dirs: Vec::new(),
    };
    let mut exec = supervisor
        .exec(request, plan, [null, their_stdout, their_stderr])
        .await
        .map_err(refused(container))?;

    let run = run(&mut exec, &mut stdout, &mut stderr);
    let ended = match limit {
        None => run.await,
        Some(limit) => match timeout(limit, run).await {
            Ok(ended) => ended,
            Err(_) => {
                supervisor.kill_exec(&exec_id).await.map_err(refused(container))?;
                // Once the exit is seen, nothing of the command is left.
                drop(timeout(AFTER_KILL, &mut exec.exit).await);
                return Err(Error::ExecTimeout { id: container.id.clone(), after: limit });
            }
        },
    };
    let exit = ended
        .map_err(Error::step(&label, "read the output of a command"))?
        .ok_or_else(|| Error::Gone(sandbox.id.clone()))?;
    Ok(ExecOutput { stdout: stdout.kept, stderr: stderr.kept, exit_code: exit.exit_code })
}

/// Reads until the command has ended and its output is read. `None` when its supervisor is gone.
async fn run(exec: &mut Exec, stdout: &mut Output, stderr: &mut Output) -> io::Result<Option<ExecExited>> {
    tokio::select! {
        // Losing this arm loses nothing: what was read is kept in the outputs.
        read = read_both(stdout, stderr) => {
            read?;
            Ok((&mut exec.exit).await.ok())
        }
        ended = &mut exec.exit => {
            if let Ok(read) = timeout(DRAIN, read_both(stdout, stderr)).await {
                read?;
            }
            Ok(ended.ok())
        }
    }
}

async fn read_both(stdout: &mut Output, stderr: &mut Output) -> io::Result<()> {
    tokio::try_join!(stdout.read_to_end(), stderr.read_to_end())?;
    Ok(())
}

/// One stream of a command: the first bytes are kept, the surplus is read and dropped so that the command goes on.
struct Output {
    pipe: pipe::Receiver,
    kept: Vec<u8>,
    most: usize,
}

impl Output {
    /// The reading side, and the end for the command.
    fn new(most: usize) -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = io::pipe()?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        let pipe = pipe::Receiver::from_owned_fd(ours.into())?;
        Ok((Self { pipe, kept: Vec::new(), most }, theirs.into()))
    }

    /// Cancel-safe: what was read before is in `kept`.
    async fn read_to_end(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let count = self.pipe.read(&mut buffer).await?;
            if count == 0 {
                return Ok(());
            }
            let room = self.most - self.kept.len();
            self.kept.extend_from_slice(&buffer[..count.min(room)]);
        }
    }
}

/// What the supervisor runs: a compiled plan, or for an external runtime the OCI process as JSON.
pub(crate) async fn plan(
    host: &Host,
    sandbox: &Sandbox,
    container: &Container,
    command: &[String],
    tty: bool,
) -> Result<Vec<u8>, Error> {
    let label = container.id.label();
    let spec = host.spec_of(container).await.map_err(Error::step(&label, "read its OCI spec"))?;
    let first = spec
        .process()
        .as_ref()
        .ok_or_else(|| Error::step(&label, "read its OCI spec")(io::Error::other("it has no process")))?;
    let process = berth_oci::exec_process(first, command, tty);
    match host.handler(&sandbox.handler)? {
        Handler::External { .. } => {
            serde_json::to_vec(&process).map_err(Error::step(&label, "describe the command"))
        }
        Handler::Native => {
            let compiled = || -> Result<Vec<u8>, PlanError> {
                let filter = seccomp_filter(host, &spec)?;
                let cgroup = host.cgroups.at(&container.cgroup_path(&sandbox.cgroup_parent))?;
                let input = host.compile_input(&cgroup, filter.as_ref(), None);
                // What is left out was said when the container was created.
                Ok(compile::compile_exec(&process, &spec, input)?.plan)
            };
            compiled().map_err(Error::step(&label, "compile the command"))
        }
    }
}

/// The supervisor's answer to a command, as an error.
pub(crate) fn refused(container: &Container) -> impl FnOnce(CallError) -> Error {
    Error::refused(&container.id, container.id.label(), "run a command in it")
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[tokio::test]
    async fn output_beyond_the_limit_is_read_and_dropped() {
        let (mut output, theirs) = Output::new(3).unwrap();
        let writer = tokio::task::spawn_blocking(move || {
            let mut file = File::from(theirs);
            // More than a pipe holds, so an unread surplus would block the writer for ever.
            file.write_all(&vec![b'x'; 300_000]).unwrap();
        });
        output.read_to_end().await.unwrap();
        writer.await.unwrap();
        assert_eq!(output.kept, b"xxx");
    }
}
