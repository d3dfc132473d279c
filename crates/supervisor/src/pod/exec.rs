//! Further processes in running containers, and killing them whole.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use berth_cri::berth::v1::failure::Kind;
use berth_cri::berth::v1::supervisor_message::Body;
use berth_cri::berth::v1::supervisor_reply::Result as Answer;
use berth_cri::berth::v1::{ExecExited, ExecProcess, ExecStarted, Failure};
use berth_launcher::cgroup::Cgroup;
use berth_launcher::container::{self, Console, Gate, Progress, Stdio};
use rustix::process::{Pid, PidfdFlags};

use super::Pod;
use super::container::{Asked, Maker, Phase};
use super::external::{Purpose, Wiring, null};
use super::failure::{Step, malformed, not_found, wrong_state};
use super::lifecycle::{from_launch, from_step};
use super::note::say;
use super::poller::{Key, Token};
use super::process::Process;
use super::requests::Reply;

/// A tree that keeps forking is followed this many generations; each costs one look at the container's processes.
const KILL_ROUNDS: usize = 32;

#[derive(Debug)]
pub(super) enum ExecPhase {
    /// Being set up; `console` is the terminal's master, for the reply.
    Starting {
        asked: Asked,
        gate: Gate,
        console: Option<OwnedFd>,
        failure: Option<Failure>,
    },
    Running,
}

#[derive(Debug)]
pub(super) struct Exec {
    pub(super) id: String,
    /// The connection that asked. With it goes the only one who would ever end this process or learn of its end.
    pub(super) peer: Key,
    pub(super) process: Process,
    pub(super) phase: ExecPhase,
    /// The container's, or one of its own.
    pub(super) cgroup: Cgroup,
}

impl Pod {
    pub(super) fn exec(
        &mut self,
        asked: Asked,
        request: ExecProcess,
        fds: Vec<OwnedFd>,
    ) -> Result<Reply, Failure> {
        let key = self.find(&request.container_id)?;
        if self.find_exec(&request.exec_id).is_some() {
            return Err(wrong_state(format!("there is an exec {} already", request.exec_id)));
        }
        let container = &self.containers[&key];
        let (Phase::Running(_), Some(process)) = (&container.phase, &container.process) else {
            return Err(wrong_state(format!("container {} is not running", container.id)));
        };
        let mut fds = fds.into_iter();
        let (plan, stdio) = match (fds.next(), request.tty, fds.next(), fds.next(), fds.next()) {
            (Some(plan), false, Some(stdin), Some(stdout), Some(stderr)) => {
                (plan, Some(Stdio { stdin, stdout, stderr }))
            }
            (Some(plan), true, None, None, None) => (plan, None),
            _ => return Err(malformed("exec takes a plan, and three streams unless it has a terminal")),
        };
        let cgroup = match request.cgroup_dirs.as_slice() {
            [] => container.cgroup.clone(),
            dirs => Cgroup::from_dirs(dirs.iter().map(Into::into)),
        };
        match &container.maker {
            Maker::Native { .. } | Maker::Restored => {
                let console = stdio.map_or(Console::Tty, Console::Pipes);
                let launched = container::exec(plan.as_fd(), process.pidfd.as_fd(), console)
                    .map_err(|error| from_launch(&error))?;
                let process = Process { pid: launched.pid, pidfd: launched.pidfd };
                let phase = ExecPhase::Starting { asked, gate: launched.gate, console: None, failure: None };
                self.add_exec(Exec { id: request.exec_id, peer: asked.peer, process, phase, cgroup })
                    .step("watch the new process")
                    .map_err(|fault| fault.into_failure(Kind::Internal))?;
            }
            Maker::External(runtime) => {
                let runtime = runtime.clone();
                let null =
                    null().step("open /dev/null").map_err(|fault| fault.into_failure(Kind::Internal))?;
                let stdio = match &stdio {
                    Some(stdio) => [stdio.stdin.as_fd(), stdio.stdout.as_fd(), stdio.stderr.as_fd()],
                    None => [null.as_fd(); 3],
                };
                let wiring = Wiring { stdio, process_json: Some(plan.as_fd()), tty: request.tty };
                let purpose = Purpose::Exec { asked, exec_id: request.exec_id, cgroup, killed: false };
                self.start_run(&runtime, key, purpose, &wiring)
                    .map_err(|fault| fault.into_failure(Kind::Launch))?;
            }
        }
        Ok(Reply::Later)
    }

    fn find_exec(&self, exec_id: &str) -> Option<Key> {
        self.execs.iter().find(|(_, exec)| exec.id == exec_id).map(|(key, _)| *key)
    }

    /// Takes a new process into the table and watches it.
    pub(super) fn add_exec(&mut self, exec: Exec) -> io::Result<Key> {
        let key = self.new_key();
        self.poller.add(&exec.process.pidfd, Token::ExecDeath(key))?;
        if let ExecPhase::Starting { gate, .. } = &exec.phase {
            self.poller.add(gate, Token::ExecGate(key))?;
        }
        self.execs.insert(key, exec);
        Ok(key)
    }

    pub(super) fn exec_gate_spoke(&mut self, key: Key) {
        loop {
            let Some(exec) = self.execs.get_mut(&key) else { return };
            let ExecPhase::Starting { asked, gate, console, failure } = &mut exec.phase else { return };
            match gate.read() {
                Ok(None) => return,
                Ok(Some(Progress::Ready { console: master, warnings })) => {
                    *console = master;
                    for warning in warnings {
                        say!("exec {}: {warning}", exec.id);
                    }
                }
                // Only first processes have hooks.
                Ok(Some(Progress::Held)) => {}
                Ok(Some(Progress::Executed)) => {
                    self.poller.remove(&*gate);
                    let (asked, console) = (*asked, console.take());
                    exec.phase = ExecPhase::Running;
                    let started = ExecStarted { pid: exec.process.pid };
                    return self.answer(asked, Ok(Answer::ExecStarted(started)), console);
                }
                Ok(Some(Progress::Failed(error))) => {
                    // Answered when the process is gone.
                    self.poller.remove(&*gate);
                    *failure = Some(from_step(error));
                    return;
                }
                Err(error) => {
                    self.poller.remove(&*gate);
                    let fault = Err::<(), _>(error).step("read an exec's gate");
                    *failure = fault.err().map(|fault| fault.into_failure(Kind::Internal));
                    if let Err(error) = exec.process.kill() {
                        say!("cannot kill exec {}: {error}", exec.id);
                    }
                    return;
                }
            }
        }
    }

    pub(super) fn exec_died(&mut self, key: Key) {
        // Whatever it said before it died comes first.
        self.exec_gate_spoke(key);
        let Some(exec) = self.execs.get(&key) else { return };
        let ended = match exec.process.reap() {
            Ok(Some(ended)) => ended,
            Ok(None) => return,
            Err(error) => {
                say!("cannot wait for exec {}: {error}", exec.id);
                super::process::Ended { code: 255, signal: 0 }
            }
        };
        let Some(exec) = self.execs.remove(&key) else { return };
        self.poller.remove(&exec.process.pidfd);
        match exec.phase {
            ExecPhase::Running => {
                let exited = ExecExited { exec_id: exec.id, exit_code: ended.code, signal: ended.signal };
                self.tell_all(Body::ExecExited(exited));
            }
            ExecPhase::Starting { asked, gate, failure, .. } => {
                self.poller.remove(&gate);
                let died = || Failure {
                    kind: Kind::Launch.into(),
                    step: "set the exec up".into(),
                    errno: 0,
                    message: format!("the process ended before its program ran ({ended:?})"),
                };
                self.answer(asked, Err(failure.unwrap_or_else(died)), None);
            }
        }
    }

    pub(super) fn kill_exec(&mut self, exec_id: &str) -> Result<Reply, Failure> {
        if let Some(key) = self.find_exec(exec_id) {
            self.kill_exec_tree(key);
            return Ok(Reply::done());
        }
        if self.kill_exec_run(exec_id) {
            return Ok(Reply::done());
        }
        Err(not_found("exec", exec_id))
    }

    /// Ends the execs of a connection that is gone.
    pub(super) fn abandon_execs_of(&mut self, peer: Key) {
        let orphaned: Vec<Key> =
            self.execs.iter().filter(|(_, exec)| exec.peer == peer).map(|(key, _)| *key).collect();
        for key in orphaned {
            self.kill_exec_tree(key);
        }
        self.kill_exec_runs_of(peer);
    }

    pub(super) fn kill_exec_tree(&self, key: Key) {
        let Some(exec) = self.execs.get(&key) else { return };
        if let Err(error) = kill_tree(&exec.process, &exec.cgroup) {
            say!("cannot kill exec {}: {error}", exec.id);
        }
    }
}

/// SIGKILL to `leader`, its session, and every process that descends from it.
///
/// Looked for among the processes of its cgroup: one that has left the session *and* lost its parents before this is
/// called cannot be told from the container's own daemons, and stays theirs.
fn kill_tree(leader: &Process, cgroup: &Cgroup) -> io::Result<()> {
    // A shell that waits for its children would see them end, and end with a code of its own before its turn comes.
    leader.signal_if_alive(libc::SIGSTOP)?;
    let mut killed = BTreeSet::new();
    for round in 0..KILL_ROUNDS {
        let table: BTreeMap<i32, Kin> =
            pids(cgroup).into_iter().filter_map(|pid| Kin::of(pid).map(|kin| (pid, kin))).collect();
        let mut family = BTreeSet::from([leader.pid]);
        loop {
            let known = family.len();
            let belongs = |kin: &Kin| kin.session == leader.pid || family.contains(&kin.parent);
            let found: Vec<i32> = table.iter().filter(|(_, kin)| belongs(kin)).map(|(pid, _)| *pid).collect();
            family.extend(found);
            if family.len() == known {
                break;
            }
        }
        let fresh: Vec<i32> =
            family.into_iter().filter(|pid| *pid != leader.pid && !killed.contains(pid)).collect();
        for pid in &fresh {
            // The number may have passed to another process since: kin is looked at again once the pidfd is held.
            let Some(pidfd) = open(*pid) else { continue };
            if Kin::of(*pid).as_ref() == table.get(pid) {
                send(&pidfd, libc::SIGKILL)?;
            }
        }
        // The leader after its children, which lose their parent with it.
        leader.kill()?;
        // The leader may have forked between the look and its own SIGKILL: only a look after that shows all.
        if round > 0 && fresh.is_empty() {
            return Ok(());
        }
        killed.extend(fresh);
    }
    Ok(())
}

/// A signal to every process of a container.
pub(super) fn signal_all(first: &Process, cgroup: &Cgroup, signal: i32) -> io::Result<()> {
    first.signal(signal)?;
    signal_rest(first.pid, cgroup, signal)
}

/// A signal to every process of a cgroup but `first`. A forking process cannot outrun SIGKILL: one that has it
/// pending does not fork any more, so the rounds end when a look finds nobody new.
pub(super) fn signal_rest(first: i32, cgroup: &Cgroup, signal: i32) -> io::Result<()> {
    let mut signalled = BTreeSet::from([first]);
    let rounds = if signal == libc::SIGKILL { KILL_ROUNDS } else { 1 };
    for _ in 0..rounds {
        let found: Vec<(i32, OwnedFd)> = pids(cgroup)
            .into_iter()
            .filter(|pid| signalled.insert(*pid))
            .filter_map(|pid| Some((pid, open(pid)?)))
            .collect();
        if found.is_empty() {
            return Ok(());
        }
        // Only those that are in the cgroup still, now that their pidfds are held: a number may have passed on.
        let still: BTreeSet<i32> = pids(cgroup).into_iter().collect();
        for (_, pidfd) in found.iter().filter(|(pid, _)| still.contains(pid)) {
            send(pidfd, signal)?;
        }
    }
    Ok(())
}

fn pids(cgroup: &Cgroup) -> Vec<i32> {
    cgroup.pids().unwrap_or_else(|error| {
        say!("cannot list the processes of a cgroup: {error}");
        Vec::new()
    })
}

fn open(pid: i32) -> Option<OwnedFd> {
    rustix::process::pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}

fn send(pidfd: &OwnedFd, signal: i32) -> io::Result<()> {
    match crate::sys::pidfd_send_signal(pidfd.as_fd(), signal) {
        Err(error) if error.raw_os_error() != Some(libc::ESRCH) => Err(error),
        _ => Ok(()),
    }
}

/// What /proc/PID/stat says about where a process belongs.
#[derive(Debug, PartialEq, Eq)]
struct Kin {
    parent: i32,
    session: i32,
    started: u64,
}

impl Kin {
    fn of(pid: i32) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(stat: &str) -> Option<Self> {
        // The name is in parentheses and may hold any of them, and spaces.
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
        let parent = fields.nth(1)?.parse().ok()?;
        let session = fields.nth(1)?.parse().ok()?;
        let started = fields.nth(15)?.parse().ok()?;
        Some(Self { parent, session, started })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kin_is_read_past_any_name() {
        let stat = "42 (a) b (c) S 7 42 40 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2";
        assert_eq!(Kin::parse(stat), Some(Kin { parent: 7, session: 40, started: 987_654 }));
        assert!(Kin::of(std::process::id() as i32).is_some_and(|kin| kin.started > 0));
    }
}
