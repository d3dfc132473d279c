//! `berth-pod` itself: one loop that owns a pod's processes.
//!
//! ```text
//!  daemon ◄──control.sock──► peer.rs ──► requests.rs ──► lifecycle.rs   containers: made, started, ended, deleted
//!                                              │    └──► exec.rs        further processes in them
//!                                              │    └──► external.rs    runs of runc and its like
//!                                              └───────► setup.rs, pid_one.rs
//!  container's pipes ──► output.rs ──► crilog
//! ```
//!
//! Everything is an event of one epoll set (`poller.rs`): a peer, a pidfd, a gate, a pipe, SIGCHLD for orphans. No
//! handler waits; what takes time (the launcher's child, an external runtime) reports back as another event.

mod attach;
mod container;
mod criu;
mod exec;
mod external;
mod failure;
mod inside;
mod lifecycle;
mod note;
mod output;
mod peer;
mod pid_one;
mod poller;
mod process;
mod reap;
mod requests;
mod runs;
mod setup;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use berth_cri::berth::v1::supervisor_message::Body;
use berth_cri::berth::v1::supervisor_reply::Result as Answer;
use berth_cri::berth::v1::{Failure, SupervisorMessage, SupervisorReply};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use prost::Message;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::net::SocketFlags;

use container::{Asked, Container};
use exec::Exec;
use external::Run;
use inside::UserNamespace;
use note::say;
use output::Scratch;
use peer::{Delivery, Peer};
use pid_one::PidOne;
use poller::{EventFlags, Key, Poller, Ready, Token};

use crate::crilog::StreamName;
use crate::{CONTROL_SOCKET, USER_NAMESPACE, wire};

/// Connections beyond this are closed at once: a daemon has one.
const MAX_PEERS: usize = 8;

/// What a new `berth-pod` is given.
#[derive(Debug)]
pub struct Inheritance {
    /// The socket at `control.sock`, bound by the daemon.
    pub listener: OwnedFd,
    /// The daemon's first connection.
    pub first: OwnedFd,
}

impl Inheritance {
    /// Descriptors 3 and 4, where the daemon puts them. Once, first thing in the process.
    ///
    /// # Errors
    /// `EBADF` when they are not there.
    pub fn take() -> io::Result<Self> {
        Ok(Self { listener: crate::sys::inherited(3)?, first: crate::sys::inherited(4)? })
    }
}

#[derive(Debug)]
enum Setup {
    Fresh,
    Done(Option<PidOne>),
    /// Half done, and a namespace cannot be left again.
    Broken,
}

/// A pod's supervisor.
#[derive(Debug)]
pub struct Pod {
    dir_path: PathBuf,
    dir: OwnedFd,
    poller: Poller,
    listener: OwnedFd,
    /// SIGCHLD; all signals are blocked.
    children: SignalFd,
    setup: Setup,
    /// Of a pod with user ids of its own.
    user_namespace: Option<UserNamespace>,
    peers: BTreeMap<Key, Peer>,
    containers: BTreeMap<Key, Container>,
    execs: BTreeMap<Key, Exec>,
    runs: BTreeMap<Key, Run>,
    last_key: Key,
    scratch: Scratch,
    shut_down: bool,
}

impl Pod {
    /// Takes over the pod whose directory is `dir`. Changes what concerns the whole process: its signals, session,
    /// name, subreaper and dumpable flags.
    ///
    /// # Errors
    /// Those of the system calls; the process has no use then.
    pub fn new(dir: &Path, inheritance: Inheritance) -> io::Result<Self> {
        crate::sys::return_large_blocks();
        // A service manager that stops the daemon's group means the daemon. Pods go only by request or by SIGKILL.
        SigSet::all().thread_block()?;
        // EPERM: the leader of a group already, started by hand.
        let _ = rustix::process::setsid();
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
        rustix::thread::set_name(c"berth-pod")?;
        rustix::process::chdir("/")?;
        spare_from_memory_pressure();

        let Inheritance { listener, first } = inheritance;
        // Those two, and whatever the daemon may have left open.
        berth_launcher::sys::close_on_exec_from(3)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut only_children = SigSet::empty();
        only_children.add(Signal::SIGCHLD);
        let mut pod = Self {
            dir_path: dir.to_owned(),
            dir: rustix::fs::open(dir, flags, Mode::empty())?,
            poller: Poller::new()?,
            listener,
            children: SignalFd::with_flags(&only_children, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?,
            setup: Setup::Fresh,
            user_namespace: None,
            peers: BTreeMap::new(),
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            runs: BTreeMap::new(),
            last_key: 0,
            scratch: Scratch::new(),
            shut_down: false,
        };
        // Who listens is whose pid a daemon that connects later is told (SO_PEERCRED).
        rustix::net::listen(&pod.listener, MAX_PEERS as i32)?;
        set_nonblocking(&pod.listener)?;
        pod.poller.add(&pod.listener, Token::Listener)?;
        pod.poller.add(&pod.children, Token::Children)?;
        pod.welcome(first);
        Ok(pod)
    }

    /// Works until it is asked to shut down.
    ///
    /// # Errors
    /// Only when waiting for events itself fails.
    pub fn run(mut self) -> io::Result<()> {
        let mut ready = Vec::with_capacity(16);
        while !self.shut_down {
            self.wait(&mut ready)?;
            for event in &ready {
                self.handle(*event);
            }
            self.expire_runs();
        }
        self.leave();
        Ok(())
    }

    fn wait(&mut self, ready: &mut Vec<Ready>) -> io::Result<()> {
        if self.scratch.swollen() {
            self.poller.wait(ready, Some(Instant::now()))?;
            if !ready.is_empty() {
                return Ok(());
            }
            self.scratch.release();
        }
        let next = self.runs.values().filter(|run| !run.expired).map(|run| run.deadline).min();
        self.poller.wait(ready, next)
    }

    fn handle(&mut self, Ready { token, writable }: Ready) {
        match token {
            Token::Listener => self.accept(),
            Token::Children => self.reap_orphans(),
            Token::PidOne => self.pid_one_died(),
            Token::Peer(key) => {
                if writable {
                    self.resume_peer(key);
                }
                self.read_peer(key);
            }
            Token::Death(key) => self.container_died(key),
            Token::Gate(key) => self.gate_spoke(key),
            Token::Stdout(key) => self.pump(key, StreamName::Stdout),
            Token::Stderr(key) => self.pump(key, StreamName::Stderr),
            Token::ExecDeath(key) => self.exec_died(key),
            Token::ExecGate(key) => self.exec_gate_spoke(key),
            Token::Run(key) => self.run_ended(key),
            Token::Follower(key) => self.follower_left(key),
        }
    }

    fn new_key(&mut self) -> Key {
        // Four thousand million peers, containers and execs are not made in the life of a pod.
        self.last_key = self.last_key.checked_add(1).expect("keys are never used up");
        self.last_key
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match rustix::net::accept_with(&self.listener, flags) {
            Ok(socket) if self.peers.len() < MAX_PEERS => self.welcome(socket),
            Ok(_) => say!("a connection was refused: there are {MAX_PEERS} already"),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {}
            Err(errno) => say!("cannot accept a connection: {errno}"),
        }
    }

    fn welcome(&mut self, socket: OwnedFd) {
        let key = self.new_key();
        match self.poller.add(&socket, Token::Peer(key)) {
            Ok(()) => drop(self.peers.insert(key, Peer::new(socket))),
            Err(error) => say!("cannot watch a connection: {error}"),
        }
    }

    fn read_peer(&mut self, key: Key) {
        let mut buffer = vec![0; wire::MAX_MESSAGE];
        loop {
            let Some(peer) = self.peers.get(&key) else { return };
            match wire::receive(&peer.socket, &mut buffer) {
                Ok(Some(received)) => self.request(key, &buffer[..received.len], received.fds),
                Ok(None) => return self.drop_peer(key),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    say!("a connection was dropped: {error}");
                    return self.drop_peer(key);
                }
            }
        }
    }

    fn resume_peer(&mut self, key: Key) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        match peer.resume() {
            Delivery::Done => {
                if let Err(error) = self.poller.change(&peer.socket, Token::Peer(key), EventFlags::IN) {
                    say!("cannot watch a connection: {error}");
                    self.drop_peer(key);
                }
            }
            Delivery::Queued => {}
            Delivery::Hopeless => self.drop_peer(key),
        }
    }

    fn drop_peer(&mut self, key: Key) {
        if let Some(peer) = self.peers.remove(&key) {
            self.poller.remove(&peer.socket);
        }
        self.abandon_execs_of(key);
    }

    fn deliver(&mut self, key: Key, message: Rc<[u8]>, fd: Option<OwnedFd>) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        match peer.send(message, fd) {
            Delivery::Done => {}
            Delivery::Queued => {
                let flags = EventFlags::IN | EventFlags::OUT;
                if let Err(error) = self.poller.change(&peer.socket, Token::Peer(key), flags) {
                    say!("cannot watch a connection: {error}");
                    self.drop_peer(key);
                }
            }
            Delivery::Hopeless => {
                say!("a connection was dropped: its peer does not read, or has gone");
                self.drop_peer(key);
            }
        }
    }

    /// Answers a request, if whoever asked is still there.
    fn answer(&mut self, asked: Asked, answer: Result<Answer, Failure>, fd: Option<OwnedFd>) {
        let result = Some(answer.unwrap_or_else(Answer::Failure));
        let body = Some(Body::Reply(SupervisorReply { id: asked.request, result }));
        let message = SupervisorMessage { body }.encode_to_vec().into();
        self.deliver(asked.peer, message, fd);
    }

    /// Tells every peer.
    fn tell_all(&mut self, body: Body) {
        let message: Rc<[u8]> = SupervisorMessage { body: Some(body) }.encode_to_vec().into();
        let keys: Vec<Key> = self.peers.keys().copied().collect();
        for key in keys {
            self.deliver(key, message.clone(), None);
        }
    }

    fn pid_one_died(&mut self) {
        let Setup::Done(Some(pid_one)) = &self.setup else { return };
        self.poller.remove(&pid_one.process.pidfd);
        match pid_one.process.reap() {
            Ok(ended) => say!("the pod's shared pid 1 has died ({ended:?}), and with it every container"),
            Err(error) => say!("cannot wait for the pod's shared pid 1: {error}"),
        }
        self.setup = Setup::Broken;
        self.end_with_pid_one();
    }

    /// Without its pid namespace the pod can start nothing any more. It ends when everything in it has been told to have
    /// ended, and whoever manages it makes another.
    fn end_with_pid_one(&mut self) {
        let over = |container: &Container| matches!(container.phase, container::Phase::Exited(_));
        if matches!(self.setup, Setup::Broken) && self.containers.values().all(over) {
            self.shut_down = true;
        }
    }

    fn leave(self) {
        if let Setup::Done(Some(pid_one)) = &self.setup
            && let Err(error) = pid_one.process.kill()
        {
            say!("cannot end the pod's shared pid 1: {error}");
        }
        let user_namespace = self.user_namespace.is_some().then_some(USER_NAMESPACE);
        for name in [CONTROL_SOCKET].into_iter().chain(user_namespace) {
            if let Err(errno) = rustix::fs::unlinkat(&self.dir, name, AtFlags::empty()) {
                say!("cannot remove {name}: {errno}");
            }
        }
    }
}

fn set_nonblocking(fd: impl std::os::fd::AsFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    Ok(rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?)
}

/// Asks the kernel to look elsewhere when memory is short. Every plan states the container's own value, so that
/// nothing is inherited. Lowering it needs CAP_SYS_RESOURCE; without, a supervisor is small enough to come last.
fn spare_from_memory_pressure() {
    match std::fs::write("/proc/self/oom_score_adj", "-998") {
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => {
            say!("cannot set oom_score_adj: {error}");
        }
        _ => {}
    }
}
