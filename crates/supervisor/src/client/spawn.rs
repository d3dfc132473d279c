//! Where a connection comes from: a new process, or a socket in a pod's directory.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::signal::SigSet;
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::binary::{FIRST_FREE, SupervisorBinary};
use super::error::{ConnectError, SpawnError};
use crate::CONTROL_SOCKET;

/// What a `berth-pod` is called with first.
const NAME: &CStr = c"berth-pod";

/// What a connection is made of.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) socket: OwnedFd,
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
}

pub(super) async fn spawn(
    binary: &SupervisorBinary,
    pod_dir: &Path,
    sandbox_id: &str,
) -> Result<Found, SpawnError> {
    // The daemon's threads go on meanwhile; this one waits for the exec, as vfork does.
    let program = binary.path();
    let (dir, id) = (pod_dir.to_owned(), sandbox_id.to_owned());
    let spawned = tokio::task::spawn_blocking(move || start(&program, &dir, &id)).await;
    let found =
        spawned.map_err(|error| SpawnError::Step { step: "start berth-pod", source: error.into() })??;
    let watched = found
        .pidfd
        .try_clone()
        .and_then(|pidfd| crate::sys::watch(pidfd, Interest::READABLE))
        .map_err(|source| SpawnError::Step { step: "watch the new berth-pod", source })?;
    tokio::spawn(reap(watched));
    Ok(found)
}

/// Takes the exit status of a `berth-pod` that this process started, whenever it ends.
async fn reap(pidfd: AsyncFd<OwnedFd>) {
    if let Err(error) = pidfd.readable().await {
        return tracing::warn!(%error, "cannot wait for a berth-pod");
    }
    let id = WaitId::PidFd(std::os::fd::AsFd::as_fd(pidfd.get_ref()));
    match rustix::process::waitid(id, WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
        Ok(status) => tracing::debug!(?status, "a berth-pod has ended"),
        Err(error) => tracing::warn!(%error, "cannot wait for a berth-pod"),
    }
}

fn start(program: &Path, pod_dir: &Path, sandbox_id: &str) -> Result<Found, SpawnError> {
    let step = |step| move |source: io::Error| SpawnError::Step { step, source };
    let dir = open_dir(pod_dir).map_err(|source| SpawnError::Open { path: pod_dir.into(), source })?;
    let listener = bind(&dir).map_err(step("bind the supervisor's socket"))?;
    let started = connect_to_new(program, pod_dir, sandbox_id, &dir, &listener);
    if started.is_err()
        && let Err(error) = rustix::fs::unlinkat(&dir, CONTROL_SOCKET, rustix::fs::AtFlags::empty())
    {
        tracing::warn!(%error, "cannot remove a socket that nobody uses");
    }
    started.map_err(step("start berth-pod"))
}

fn connect_to_new(
    program: &Path,
    pod_dir: &Path,
    sandbox_id: &str,
    dir: &OwnedFd,
    listener: &OwnedFd,
) -> io::Result<Found> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let log_flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let log = rustix::fs::openat(dir, "supervisor.log", log_flags, Mode::RUSR | Mode::WUSR | Mode::RGRP)?;
    let mut actions = PosixSpawnFileActions::init()?;
    // Copies above the numbers they are to get, so that no dup2 overwrites the source of a later one.
    let mut sources = Vec::new();
    for (target, source) in (0..).zip([&null, &null, &log, listener, &theirs]) {
        let copy = rustix::io::fcntl_dupfd_cloexec(source, FIRST_FREE)?;
        actions.add_dup2(copy.as_raw_fd(), target)?;
        sources.push(copy);
    }
    let mut attributes = PosixSpawnAttr::init()?;
    attributes.set_flags(PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF | PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK)?;
    attributes.set_sigdefault(&SigSet::all())?;
    attributes.set_sigmask(&SigSet::empty())?;
    let program = CString::new(program.as_os_str().as_bytes())?;
    let args = [NAME.into(), CString::new(sandbox_id)?, CString::new(pod_dir.as_os_str().as_bytes())?];
    let environment: [CString; 0] = [];
    let pid = posix_spawn(program.as_c_str(), &actions, &attributes, &args, &environment)?.as_raw();
    Ok(Found { socket: ours, pid, pidfd: open_pidfd(pid)? })
}

pub(super) fn find(pod_dir: &Path) -> Result<Found, ConnectError> {
    let step = |step| move |source: io::Error| ConnectError::Step { step, source };
    let socket = connect(pod_dir).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ConnectError::Gone,
        _ => ConnectError::Step { step: "connect to the pod's supervisor", source },
    })?;
    let credentials = rustix::net::sockopt::socket_peercred(&socket)
        .map_err(|errno| step("ask who the pod's supervisor is")(errno.into()))?;
    let pid = credentials.pid.as_raw_nonzero().get();
    let pidfd = open_pidfd(pid).map_err(|source| match source.raw_os_error() {
        Some(libc::ESRCH) => ConnectError::Gone,
        _ => ConnectError::Step { step: "watch the pod's supervisor", source },
    })?;
    Ok(Found { socket, pid, pidfd })
}

/// Whether a process was started as the `berth-pod` of this folder.
pub(super) fn is_of(pid: i32, pod_dir: &Path) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut words = line.split(|byte| *byte == 0);
    words.next() == Some(NAME.to_bytes()) && words.nth(1) == Some(pod_dir.as_os_str().as_bytes())
}

fn open_pidfd(pid: i32) -> io::Result<OwnedFd> {
    let number = Pid::from_raw(pid).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
    Ok(rustix::process::pidfd_open(number, PidfdFlags::empty())?)
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// The socket's address by way of the folder's descriptor: `sun_path` has room for 107 bytes only.
fn address(dir: &OwnedFd) -> io::Result<SocketAddrUnix> {
    Ok(SocketAddrUnix::new(format!("/proc/self/fd/{}/{CONTROL_SOCKET}", dir.as_raw_fd()))?)
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

fn bind(dir: &OwnedFd) -> io::Result<OwnedFd> {
    let socket = socket()?;
    // The mode of the socket becomes that of the file, so that it is right from its first moment.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &address(dir)?)?;
    Ok(socket)
}

fn connect(pod_dir: &Path) -> io::Result<OwnedFd> {
    let dir = open_dir(pod_dir)?;
    let socket = socket()?;
    rustix::net::connect(&socket, &address(&dir)?)?;
    Ok(socket)
}
