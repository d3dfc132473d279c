//! What the daemon asks for. Most is answered at once; the rest when the process concerned has said or done something.

use std::os::fd::{AsRawFd, OwnedFd};

use berth_cri::berth::v1::failure::Kind;
use berth_cri::berth::v1::supervisor_reply::Result as Answer;
use berth_cri::berth::v1::supervisor_request::Call;
use berth_cri::berth::v1::{
    Done, Failure, MakeUserNamespace, PodSetup, PodState, SignalContainer, SupervisorRequest,
};
use prost::Message;

use super::container::{Asked, Phase};
use super::failure::{Step, malformed, not_found, wrong_state};
use super::note::say;
use super::poller::{Key, Token};
use super::setup::{make_user_namespace, set_up};
use super::{Pod, Setup, exec};
use crate::USER_NAMESPACE;

/// How a request goes on.
pub(super) enum Reply {
    Now(Answer),
    /// The handler has kept the address and answers when it can.
    Later,
}

impl Reply {
    pub(super) fn done() -> Self {
        Self::Now(Answer::Done(Done {}))
    }
}

impl Pod {
    pub(super) fn request(&mut self, peer: Key, bytes: &[u8], fds: Vec<OwnedFd>) {
        let request = match SupervisorRequest::decode(bytes) {
            Ok(request) => request,
            Err(error) => {
                say!("a connection was dropped: it sent what is no request: {error}");
                return self.drop_peer(peer);
            }
        };
        let asked = Asked { peer, request: request.id };
        let reply = match request.call {
            Some(call) => self.call(asked, call, fds),
            // A call of a later version of the protocol.
            None => Err(malformed("no call, or one that this supervisor does not know")),
        };
        match reply {
            Ok(Reply::Now(answer)) => self.answer(asked, Ok(answer), None),
            Ok(Reply::Later) => {}
            Err(failure) => self.answer(asked, Err(failure), None),
        }
    }

    fn call(&mut self, asked: Asked, call: Call, fds: Vec<OwnedFd>) -> Result<Reply, Failure> {
        match call {
            Call::MakeUserNamespace(make) => self.make_user_namespace(&make),
            Call::Setup(setup) => self.set_up(&setup, &fds),
            Call::Create(create) => self.create(asked, create, fds),
            Call::Resume(resume) => self.resume(asked, &resume.container_id),
            Call::Checkpoint(checkpoint) => self.checkpoint(asked, checkpoint),
            Call::Start(start) => self.start(asked, &start.container_id),
            Call::Signal(signal) => self.signal(&signal),
            Call::Exec(exec) => self.exec(asked, exec, fds),
            Call::KillExec(kill) => self.kill_exec(&kill.exec_id),
            Call::ReopenLog(reopen) => self.reopen_log(&reopen.container_id),
            Call::Delete(delete) => self.delete(asked, &delete.container_id),
            Call::GetState(_) => Ok(Reply::Now(Answer::State(self.state()))),
            Call::Shutdown(_) => self.shut_down(),
            Call::Attach(attach) => self.attach(asked, &attach, fds),
            Call::CloseStdin(close) => self.close_stdin(&close.container_id),
        }
    }

    /// The key of a container, by its id. A pod has a handful.
    pub(super) fn find(&self, container_id: &str) -> Result<Key, Failure> {
        let found = self.containers.iter().find(|(_, container)| container.id == container_id);
        found.map(|(key, _)| *key).ok_or_else(|| not_found("container", container_id))
    }

    fn make_user_namespace(&mut self, request: &MakeUserNamespace) -> Result<Reply, Failure> {
        if !matches!(self.setup, Setup::Fresh) || self.user_namespace.is_some() {
            return Err(wrong_state("the pod has namespaces already"));
        }
        self.setup = Setup::Broken;
        let made = make_user_namespace(request).map_err(|fault| fault.into_failure(Kind::Internal))?;
        // OCI runtimes want a path. One in /proc would do, but runc 1.5 takes /proc/PID/fd/N for /proc/PID/ns/user.
        let target = format!("/proc/{}/fd/{}", std::process::id(), made.fd.as_raw_fd());
        rustix::fs::symlinkat(target, &self.dir, USER_NAMESPACE)
            .step("name the pod's user namespace")
            .map_err(|fault| fault.into_failure(Kind::Internal))?;
        self.user_namespace = Some(made);
        self.setup = Setup::Fresh;
        Ok(Reply::done())
    }

    fn set_up(&mut self, setup: &PodSetup, fds: &[OwnedFd]) -> Result<Reply, Failure> {
        if !matches!(self.setup, Setup::Fresh) {
            return Err(wrong_state("the pod has been set up"));
        }
        self.setup = Setup::Broken;
        let pid_one = set_up(setup, fds.first(), self.user_namespace.as_ref())
            .map_err(|fault| fault.into_failure(Kind::Internal))?;
        if let Some(pid_one) = &pid_one {
            let watched =
                self.poller.add(&pid_one.process.pidfd, Token::PidOne).step("watch the shared pid 1");
            watched.map_err(|fault| fault.into_failure(Kind::Internal))?;
        }
        self.setup = Setup::Done(pid_one);
        Ok(Reply::done())
    }

    fn signal(&mut self, request: &SignalContainer) -> Result<Reply, Failure> {
        let container = &self.containers[&self.find(&request.container_id)?];
        let Some(process) = &container.process else {
            return Err(wrong_state(format!("container {} has no process", container.id)));
        };
        let sent = if request.all {
            exec::signal_all(process, &container.cgroup, request.signal)
        } else {
            process.signal(request.signal)
        };
        match sent {
            // Dead already; the exit is about to be told.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(Reply::done()),
            sent => {
                let fault = sent.step(|| format!("signal {} to container {}", request.signal, container.id));
                fault.map(|()| Reply::done()).map_err(|fault| fault.into_failure(Kind::Internal))
            }
        }
    }

    fn reopen_log(&mut self, container_id: &str) -> Result<Reply, Failure> {
        let key = self.find(container_id)?;
        let Some(container) = self.containers.get_mut(&key) else { return Ok(Reply::done()) };
        if let Phase::Exited(_) = container.phase {
            return Err(wrong_state(format!("container {container_id} has ended, and its log with it")));
        }
        let reopened =
            container.output.reopen().step(|| format!("reopen the log of container {container_id}"));
        reopened.map(|()| Reply::done()).map_err(|fault| fault.into_failure(Kind::Internal))
    }

    fn state(&self) -> PodState {
        let (pid1, set_up) = match &self.setup {
            Setup::Done(pid_one) => (pid_one.as_ref().map_or(0, |pid_one| pid_one.process.pid), true),
            Setup::Fresh | Setup::Broken => (0, false),
        };
        PodState {
            containers: self.containers.values().map(|container| container.report()).collect(),
            pid1,
            set_up,
        }
    }

    fn shut_down(&mut self) -> Result<Reply, Failure> {
        if !self.containers.is_empty() {
            let ids: Vec<_> = self.containers.values().map(|container| container.id.as_str()).collect();
            return Err(wrong_state(format!("there are still containers: {}", ids.join(", "))));
        }
        self.shut_down = true;
        Ok(Reply::done())
    }
}
