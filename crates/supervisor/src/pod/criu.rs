//! Runs of CRIU: a container's processes written down, or made again from what was written down.
//!
//! CRIU runs as a child of this process, so that it has the pod's network, IPC and UTS namespaces, takes them for the
//! host's and leaves them out of its images; and so that what it restores becomes our child when it ends.

use std::ffi::CString;
use std::os::fd::AsFd;
use std::time::Duration;

use berth_cri::berth::v1::{CheckpointContainer, CreateProcess, Criu, Failure, RestoredProcess};
use berth_launcher::container;

use super::Pod;
use super::container::{Asked, Maker, Phase};
use super::external::{ENVIRONMENT, Files, Purpose, Run, Wiring, null, spawn};
use super::failure::{Fault, Step, malformed, wrong_state};
use super::lifecycle::{Made, Streams, from_launch, launch_failure};
use super::output::Output;
use super::poller::{Key, Token};
use super::process::Process;
use super::requests::Reply;
use crate::crilog::{LogFile, StreamName};

/// Lines of its log in an error.
const LINES: usize = 4;

impl Pod {
    /// Writes the processes of a running container down.
    pub(super) fn checkpoint(
        &mut self,
        asked: Asked,
        request: CheckpointContainer,
    ) -> Result<Reply, Failure> {
        let container = self.find(&request.container_id)?;
        if !matches!(self.containers[&container].phase, Phase::Running(_)) {
            return Err(wrong_state(format!("container {} is not running", request.container_id)));
        }
        let criu = request.criu.ok_or_else(|| malformed("a checkpoint without criu"))?;
        let null = null().step("open /dev/null").map_err(launch_failure)?;
        let wiring = Wiring { stdio: [null.as_fd(); 3], process_json: None, tty: false };
        let arguments = arguments(&criu, &[]).map_err(launch_failure)?;
        let process =
            spawn(&arguments, &wiring).step(|| format!("run {}", criu.path)).map_err(launch_failure)?;
        let key = self.new_key();
        let files = Files::with_log(&self.dir_path, key, &criu.log);
        self.add_criu(key, container, Purpose::Checkpoint { asked }, process, files, &criu)
            .map_err(launch_failure)?;
        Ok(Reply::Later)
    }

    /// Makes a container's processes from a checkpoint, up to where they stand still.
    pub(super) fn create_restored(
        &mut self,
        asked: Asked,
        request: &CreateProcess,
        restored: &RestoredProcess,
        log: Option<LogFile>,
    ) -> Result<Made, Failure> {
        let criu = restored.criu.as_ref().ok_or_else(|| malformed("a restore without criu"))?;
        let (key, run) = (self.new_key(), self.new_key());
        let files = Files::with_log(&self.dir_path, run, &criu.log);
        let streams = Streams::new(request.stdin).map_err(launch_failure)?;
        let arguments = arguments(criu, &[b"--pidfile", files.pid_path()]).map_err(launch_failure)?;
        let (pid, pidfd) = container::program(
            &arguments,
            &ENVIRONMENT,
            streams.theirs,
            &restored.cgroup_tasks,
            &restored.unified_cgroup,
            restored.new_cgroup_namespace,
        )
        .map_err(|error| from_launch(&error))?;
        let process = Process { pid, pidfd };
        self.add_criu(run, key, Purpose::Create { asked }, process, files, criu).map_err(launch_failure)?;
        let mut output = Output::new(log);
        output.attach(StreamName::Stdout, streams.stdout);
        output.attach(StreamName::Stderr, streams.stderr);
        Ok(Made { key, maker: Maker::Restored, process: None, output, stdin: streams.stdin })
    }

    fn add_criu(
        &mut self,
        key: Key,
        container: Key,
        purpose: Purpose,
        process: Process,
        files: Files,
        criu: &Criu,
    ) -> Result<(), Fault> {
        if let Err(error) = self.poller.add(&process.pidfd, Token::Run(key)) {
            let killed = process.kill();
            return Err(error).step(|| format!("watch {} (killed: {killed:?})", criu.path));
        }
        let timeout = Duration::from_secs(criu.timeout_seconds.max(1).into());
        self.runs.insert(key, Run::of_criu(container, purpose, process, timeout, files, criu));
        Ok(())
    }
}

fn arguments(criu: &Criu, more: &[&[u8]]) -> Result<Vec<CString>, Fault> {
    let given = criu.args.iter().map(|argument| argument.as_bytes());
    let all = std::iter::once(criu.path.as_bytes()).chain(given).chain(more.iter().copied());
    all.map(CString::new).collect::<Result<Vec<_>, _>>().step("read criu's arguments")
}

/// The first errors in CRIU's log, where the causes are; the last lines when it names none.
pub(super) fn errors(log: &str) -> String {
    let lines: Vec<&str> = log.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    // What it says on every host where it may not raise its limit on open files.
    let is_error = |line: &&str| line.contains("Error (") && !line.contains("RLIMIT_NOFILE");
    let errors: Vec<&str> = lines.iter().copied().filter(is_error).take(LINES).collect();
    match errors.is_empty() {
        true => lines[lines.len().saturating_sub(LINES)..].join("; "),
        false => errors.join("; "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_errors_of_a_log_are_told() {
        let log = "(00.01) Error (criu/util.c:1533): rlimit: Can't setup RLIMIT_NOFILE for self\n\
                   (00.02) Warn  (criu/x.c:1): odd\n(00.03) Error (criu/files.c:1): no file\n(00.04) Error (criu/cr.c:2): failed\n";
        assert_eq!(
            errors(log),
            "(00.03) Error (criu/files.c:1): no file; (00.04) Error (criu/cr.c:2): failed"
        );
        assert_eq!(errors("one\n\ntwo\n"), "one; two");
        assert_eq!(errors(""), "");
    }
}
