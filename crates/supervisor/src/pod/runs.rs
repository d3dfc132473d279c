//! Runs of external runtimes: begun, watched, ended. What each is for is its [`Purpose`].

use std::os::fd::AsFd;
use std::time::Instant;

use berth_cri::berth::v1::failure::Kind;
use berth_cri::berth::v1::supervisor_reply::Result as Answer;
use berth_cri::berth::v1::{Done, ExecStarted, Failure};

use super::Pod;
use super::container::{Asked, Container, Pending, Phase};
use super::exec::{Exec, ExecPhase, signal_rest};
use super::external::{Files, Purpose, Run, Runtime, Wiring, null};
use super::failure::{Fault, Step};
use super::lifecycle::launch_failure;
use super::note::say;
use super::output::remaining;
use super::poller::{Key, Token};
use super::process::Ended;
use crate::crilog::StreamName;

/// Bytes of a runtime's own stderr in an error.
const COMPLAINT: usize = 2048;

impl Pod {
    pub(super) fn start_run(
        &mut self,
        runtime: &Runtime,
        container: Key,
        purpose: Purpose,
        wiring: &Wiring<'_>,
    ) -> Result<(), Fault> {
        if let Some(user) = &self.user_namespace {
            let owned = wiring.stdio.iter().try_for_each(|end| user.own_pipe(*end));
            owned.step("give the process's streams to the pod's root")?;
        }
        let key = self.new_key();
        let files = Files::new(&self.dir_path, key);
        let run = runtime.run(container, purpose, files, wiring).step(|| format!("run {}", runtime.path))?;
        if let Err(error) = self.poller.add(&run.process.pidfd, Token::Run(key)) {
            let killed = run.process.kill();
            return Err(error).step(|| format!("watch {} (killed: {killed:?})", runtime.path));
        }
        self.runs.insert(key, run);
        Ok(())
    }

    /// `delete --force`, to forget a container or to undo a failed create.
    pub(super) fn run_delete(
        &mut self,
        runtime: &Runtime,
        container: Key,
        purpose: Purpose,
    ) -> Result<(), Fault> {
        let null = null().step("open /dev/null")?;
        let wiring = Wiring { stdio: [null.as_fd(); 3], process_json: None, tty: false };
        self.start_run(runtime, container, purpose, &wiring)
    }

    /// Kills runs that have had their time; their end is an event like any other.
    pub(super) fn expire_runs(&mut self) {
        let now = Instant::now();
        for run in self.runs.values_mut().filter(|run| !run.expired && run.deadline <= now) {
            run.expired = true;
            if let Err(error) = run.process.kill() {
                say!("cannot kill an external runtime that took too long: {error}");
            }
        }
    }

    pub(super) fn run_ended(&mut self, key: Key) {
        let Some(run) = self.runs.get(&key) else { return };
        let ended = match run.process.reap() {
            Ok(Some(ended)) => ended,
            Ok(None) => return,
            Err(error) => {
                say!("cannot wait for an external runtime: {error}");
                Ended { code: 255, signal: 0 }
            }
        };
        let Some(run) = self.runs.remove(&key) else { return };
        self.poller.remove(&run.process.pidfd);
        let worked = ended == Ended { code: 0, signal: 0 };
        match &run.purpose {
            Purpose::Create { asked } => self.create_run_ended(*asked, &run, ended),
            Purpose::Start => {
                if worked {
                    self.running(run.container);
                } else {
                    self.doom(run.container, run.failure(ended, ""));
                }
                // It may have died while the runtime was still at work.
                self.rewatch_first(run.container);
            }
            Purpose::Exec { asked, exec_id, cgroup, killed } => {
                let begun = if worked {
                    self.exec_begun(&run, exec_id, *asked, cgroup.clone())
                } else {
                    Err(run.failure(ended, ""))
                };
                match begun {
                    Err(failure) => self.answer(*asked, Err(failure), None),
                    Ok(key) if *killed => self.kill_exec_tree(key),
                    Ok(_) => {}
                }
            }
            Purpose::Undo { asked, failure } => {
                if !worked {
                    say!("undoing a failed create: {:?}", run.failure(ended, ""));
                }
                self.forget_uncreated(run.container, *asked, failure.clone());
            }
            Purpose::Checkpoint { asked } => {
                let done = if worked { Ok(Answer::Done(Done {})) } else { Err(run.failure(ended, "")) };
                self.answer(*asked, done, None);
            }
            Purpose::Delete => {
                if !worked {
                    say!("deleting a container: {:?}", run.failure(ended, ""));
                }
                self.forget(run.container);
            }
        }
        drop(run);
        self.reap_orphans();
    }

    fn create_run_ended(&mut self, asked: Asked, run: &Run, ended: Ended) {
        let Some(container) = self.containers.get_mut(&run.container) else { return };
        let stderr = container.output.source(StreamName::Stderr);
        let outcome = if ended == (Ended { code: 0, signal: 0 }) {
            run.made().step("find the process that the runtime made").map_err(launch_failure)
        } else {
            let complaint = stderr.map(|stderr| remaining(stderr, COMPLAINT)).unwrap_or_default();
            Err(run.failure(ended, &complaint))
        };
        let process = match outcome {
            Ok(process) => process,
            Err(failure) => {
                return match runtime_of(container) {
                    Some(runtime) => self.undo(run.container, &runtime, asked, failure),
                    None => self.undo_restored(run.container, asked, failure),
                };
            }
        };
        container.process = Some(process);
        let unwanted = !container.deletions.is_empty();
        let ready = self
            .watch_external(run.container)
            .and_then(|()| run.terminal().step("take the container's terminal"));
        match ready {
            Ok(console) if !unwanted => self.created(run.container, console),
            Ok(_) => self.doom(run.container, launch_failure(Fault::refused("create", "deleted meanwhile"))),
            Err(fault) => self.doom(run.container, launch_failure(fault)),
        }
    }

    /// Ends what CRIU has left behind of a container that it could not restore.
    fn undo_restored(&mut self, key: Key, asked: Asked, failure: Failure) {
        if let Some(container) = self.containers.get(&key)
            && let Err(error) = signal_rest(0, &container.cgroup, libc::SIGKILL)
        {
            say!("cannot kill what was left of restoring {}: {error}", container.id);
        }
        self.forget_uncreated(key, asked, failure);
    }

    fn watch_external(&self, key: Key) -> Result<(), Fault> {
        let Some(Container { process: Some(process), output, .. }) = self.containers.get(&key) else {
            return Ok(());
        };
        self.watch_first(key, process)?;
        self.watch_output(key, output)
    }

    /// A death that came during `start` was set aside; looks for it again.
    fn rewatch_first(&mut self, key: Key) {
        let Some(Container { process: Some(process), .. }) = self.containers.get(&key) else { return };
        self.poller.remove(&process.pidfd);
        if let Err(fault) = self.watch_first(key, process) {
            say!("{fault:?}");
        }
    }

    /// Lets an external runtime take back what a failed create has left, then answers.
    pub(super) fn undo(&mut self, key: Key, runtime: &Runtime, asked: Asked, failure: Failure) {
        if let Some(container) = self.containers.get_mut(&key) {
            container.phase = Phase::Creating(Pending { asked, failure: Some(failure.clone()) });
        }
        let purpose = Purpose::Undo { asked, failure: failure.clone() };
        if let Err(fault) = self.run_delete(runtime, key, purpose) {
            say!("cannot undo a failed create: {fault:?}");
            self.forget_uncreated(key, asked, failure);
        }
    }

    fn exec_begun(
        &mut self,
        run: &Run,
        exec_id: &str,
        asked: Asked,
        cgroup: berth_launcher::cgroup::Cgroup,
    ) -> Result<Key, Failure> {
        let internal = |fault: Fault| fault.into_failure(Kind::Internal);
        let console = run.terminal().step("take the exec's terminal").map_err(internal)?;
        let process = run.made().step("find the process that the runtime made").map_err(internal)?;
        let pid = process.pid;
        let exec =
            Exec { id: exec_id.to_owned(), peer: asked.peer, process, phase: ExecPhase::Running, cgroup };
        let key = self.add_exec(exec).step("watch the new process").map_err(internal)?;
        self.answer(asked, Ok(Answer::ExecStarted(ExecStarted { pid })), console);
        Ok(key)
    }

    /// Ends the runs that are at work on a container which is not wanted any more.
    pub(super) fn kill_runs_of(&self, container: Key) {
        let at_work = |run: &&Run| {
            let purpose = &run.purpose;
            let working =
                matches!(purpose, Purpose::Create { .. } | Purpose::Start | Purpose::Checkpoint { .. });
            run.container == container && working
        };
        for run in self.runs.values().filter(at_work) {
            if let Err(error) = run.process.kill() {
                say!("cannot kill a program that works on a container: {error}");
            }
        }
    }

    /// Kills an exec that its runtime is still setting up; false when there is none of this name.
    pub(super) fn kill_exec_run(&mut self, exec_id: &str) -> bool {
        let mut found = false;
        for run in self.runs.values_mut() {
            if let Purpose::Exec { exec_id: id, killed, .. } = &mut run.purpose
                && id == exec_id
            {
                *killed = true;
                found = true;
            }
        }
        found
    }

    pub(super) fn kill_exec_runs_of(&mut self, peer: Key) {
        for run in self.runs.values_mut() {
            if let Purpose::Exec { asked, killed, .. } = &mut run.purpose
                && asked.peer == peer
            {
                *killed = true;
            }
        }
    }
}

fn runtime_of(container: &Container) -> Option<Runtime> {
    match &container.maker {
        super::container::Maker::External(runtime) => Some(runtime.clone()),
        super::container::Maker::Native { .. } | super::container::Maker::Restored => None,
    }
}
