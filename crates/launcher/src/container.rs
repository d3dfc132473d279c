//! The supervisor's half of a launch: fork, and hold the gate.
//!
//! Nothing here blocks on the container: what may be slow (mounts on a dead server, a cgroup move, a large plan) is
//! done by the new process, which reports on its gate. A process must be waited for by whoever called; a failed one
//! as well.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType};

use crate::gate::{self, Reporter};
pub use crate::gate::{Gate, Progress};
use crate::sys::{self, SpawnOptions, Spawned};
use crate::user_namespace::pid_in_procfs;
use crate::{LaunchError, child, plan};

/// The ends of three streams that the process gets as its descriptors 0, 1 and 2.
#[derive(Debug)]
pub struct Stdio {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// What the process reads from and writes to.
#[derive(Debug)]
pub enum Console {
    Pipes(Stdio),
    /// A pseudoterminal of the container's own devpts; its master comes with [`Progress::Ready`].
    Tty,
}

/// The pid namespace of a first process. [`plan::read_header`] says which kind the plan wants.
#[derive(Clone, Copy, Debug)]
pub enum PidEntry<'a> {
    /// A new one, where the process is pid 1.
    New,
    /// The caller's.
    Host,
    /// The one behind this descriptor (`/proc/PID/ns/pid`).
    Join(BorrowedFd<'a>),
}

/// A new process on its way to its program.
#[derive(Debug)]
pub struct Launched {
    /// In the caller's pid namespace.
    pub pid: i32,
    /// Readable when the process has ended; also for signals and for [`exec`].
    pub pidfd: OwnedFd,
    /// What becomes of the launch.
    pub gate: Gate,
}

/// Makes a container's first process. It sets itself up and then waits at its gate.
///
/// The calling process must have one thread, and sit in the network, IPC and UTS namespaces meant for the container.
///
/// # Arguments
/// * `plan`: a file with the bytes of [`crate::compile`], such as a memfd. Read by the child, at its own offset.
/// * `rootfs`: a detached mount (fsmount(2), open_tree(2)) that becomes the container's root. It belongs to the child
///   from here on: launch once with it.
/// * `user_namespace`: the pod's, for a plan that wants it entered.
///
/// # Errors
/// See [`LaunchError`]; there is then no process.
pub fn create(
    plan: BorrowedFd<'_>,
    rootfs: BorrowedFd<'_>,
    user_namespace: Option<BorrowedFd<'_>>,
    console: Console,
    pid: PidEntry<'_>,
) -> Result<Launched, LaunchError> {
    let header = plan::read_header(plan).map_err(LaunchError::Header)?;
    let cgroup = unified_cgroup(&header.unified_cgroup)?;
    let (gate, reporter) = gate::pair(true).map_err(LaunchError::Gate)?;
    let options = SpawnOptions {
        new_mount_namespace: true,
        new_pid_namespace: matches!(pid, PidEntry::New),
        cgroup: cgroup.as_ref().map(AsFd::as_fd),
        ..SpawnOptions::default()
    };
    let run = move |reporter: Reporter| child::first_process(plan, rootfs, user_namespace, console, reporter);
    let spawned = match pid {
        PidEntry::New | PidEntry::Host => {
            sys::spawn(&options, || run(reporter)).map_err(LaunchError::Clone)?
        }
        PidEntry::Join(namespace) => {
            let enter =
                || rustix::thread::move_into_link_name_space(namespace, Some(LinkNameSpaceType::ProcessID));
            in_pid_namespace(enter, || sys::spawn(&options, || run(reporter)))?
        }
    };
    Ok(Launched { pid: spawned.pid, pidfd: spawned.pidfd, gate })
}

/// Makes a further process in a running container, which does not wait at its gate.
///
/// # Arguments
/// * `plan`: as for [`create`], with an exec plan in it.
/// * `container`: pidfd of the container's first process, whose namespaces are entered.
///
/// # Errors
/// See [`LaunchError`]; there is then no process. `PidNamespace` with `ESRCH` when the container has ended.
pub fn exec(
    plan: BorrowedFd<'_>,
    container: BorrowedFd<'_>,
    console: Console,
) -> Result<Launched, LaunchError> {
    let header = plan::read_header(plan).map_err(LaunchError::Header)?;
    let cgroup = unified_cgroup(&header.unified_cgroup)?;
    let (gate, reporter) = gate::pair(false).map_err(LaunchError::Gate)?;
    let enter = || rustix::thread::move_into_thread_name_spaces(container, ThreadNameSpaceType::PROCESS_ID);
    let options = SpawnOptions { cgroup: cgroup.as_ref().map(AsFd::as_fd), ..SpawnOptions::default() };
    let mut once = Some((console, reporter));
    let spawned = in_pid_namespace(enter, || {
        let mut run = || {
            let (console, reporter) = once.take().expect("only the child that exists takes them");
            child::further_process(plan, container, console, reporter)
        };
        match sys::spawn(&options, &mut run) {
            // cgroup v2 lets no process into a cgroup whose children have controllers, as under a systemd inside
            // the container. Its first process has then found itself a place, which is good enough for this one.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && cgroup.is_some() => {
                let cgroup = cgroup_of(container)?;
                let options = SpawnOptions { cgroup: Some(cgroup.as_fd()), ..SpawnOptions::default() };
                sys::spawn(&options, &mut run)
            }
            answer => answer,
        }
    })?;
    Ok(Launched { pid: spawned.pid, pidfd: spawned.pidfd, gate })
}

/// Runs a program of the host's where a container's processes are to be: for CRIU, which makes them anew.
///
/// # Arguments
/// * `cgroup_tasks`, `unified_path`: the cgroup to enter, as in the plan of a container.
/// * `new_cgroup_namespace`: it and what it makes see that cgroup as the root.
///
/// # Errors
/// See [`LaunchError`]; there is then no process. One that cannot be executed, or cannot enter the cgroup, ends with
/// status 127.
pub fn program(
    arguments: &[CString],
    environment: &[&CStr],
    stdio: Stdio,
    cgroup_tasks: &[String],
    unified_path: &str,
    new_cgroup_namespace: bool,
) -> Result<(i32, OwnedFd), LaunchError> {
    let cgroup = unified_cgroup(unified_path)?;
    let options = SpawnOptions { cgroup: cgroup.as_ref().map(AsFd::as_fd), ..SpawnOptions::default() };
    let run = || child::program_of_host(arguments, environment, stdio, cgroup_tasks, new_cgroup_namespace);
    let spawned = sys::spawn(&options, run).map_err(LaunchError::Clone)?;
    Ok((spawned.pid, spawned.pidfd))
}

/// Runs `spawn` while children are born into the pid namespace that `enter` chooses.
fn in_pid_namespace(
    enter: impl FnOnce() -> rustix::io::Result<()>,
    spawn: impl FnOnce() -> io::Result<Spawned>,
) -> Result<Spawned, LaunchError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let own = rustix::fs::openat(CWD, c"/proc/self/ns/pid", flags, Mode::empty())
        .map_err(|error| LaunchError::PidNamespace(error.into()))?;
    enter().map_err(|error| LaunchError::PidNamespace(error.into()))?;
    let spawned = spawn();
    // This process's own namespace never changes, only that of its children; entering it again cannot be refused to
    // one who was allowed to leave it.
    rustix::thread::move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::ProcessID))
        .map_err(|error| LaunchError::PidNamespace(error.into()))?;
    spawned.map_err(LaunchError::Clone)
}

fn unified_cgroup(path: &str) -> Result<Option<OwnedFd>, LaunchError> {
    if path.is_empty() {
        return Ok(None);
    }
    open_folder(path).map(Some).map_err(|source| LaunchError::Cgroup { path: path.to_owned(), source })
}

/// The cgroup v2 folder in which the process behind `pidfd` is now.
fn cgroup_of(pidfd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let pid = pid_in_procfs(pidfd)?;
    let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let path = cgroups
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the container is in no cgroup v2"))?;
    open_folder(&format!("{}{path}", crate::cgroup::MOUNT_POINT))
}

fn open_folder(path: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
}
