//! The first process of a pod's shared pid namespace. It does nothing: the kernel reaps what is left to it.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use berth_launcher::sys::{
    MountAttributes, SpawnOptions, close_all_except, mount_setattr, pivot_root_here, spawn,
};
use nix::mount::{MntFlags, umount2};
use nix::sched::CloneFlags;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags};
use rustix::process::{Pid, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::process::Process;

/// A running pid 1 and the namespace it holds.
#[derive(Debug)]
pub(super) struct PidOne {
    pub(super) process: Process,
    pub(super) namespace: OwnedFd,
}

impl PidOne {
    /// The pid namespace belongs to `user`, where the pod has a user namespace.
    pub(super) fn start(user: Option<BorrowedFd<'_>>) -> io::Result<Self> {
        // The child says with its exit whether it could shed everything; a pid 1 that could not must not stay.
        let (ready, report) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let life = || match become_pid_one(report.as_fd()) {
            Err(error) => errno_of(&error),
            Ok(never) => match never {},
        };
        let process = match user {
            Some(user) => born_inside(user, life)?,
            None => {
                let options =
                    SpawnOptions { new_pid_namespace: true, new_mount_namespace: true, ..Default::default() };
                let spawned = spawn(&options, life)?;
                Process { pid: spawned.pid, pidfd: spawned.pidfd }
            }
        };
        drop(report);
        // Bounded by the child's few system calls: it ends or writes, and both end this read.
        let said = rustix::io::retry_on_intr(|| rustix::io::read(&ready, &mut [0; 1]))?;
        if said == 0 {
            return Err(why_it_ended(process.pidfd.as_fd())?);
        }
        let path = format!("/proc/{}/ns/pid", process.pid);
        let namespace = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { process, namespace })
    }
}

/// A pid namespace belongs to the user namespace of whoever makes it, and this process cannot leave one it has entered.
/// So another one enters it, and gives birth to a child of this process.
fn born_inside(user: BorrowedFd<'_>, life: impl FnOnce() -> i32) -> io::Result<Process> {
    let (told, tell) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let between = spawn(&SpawnOptions::default(), || {
        let born = || {
            berth_launcher::user_namespace::enter(user)?;
            nix::sched::unshare(CloneFlags::CLONE_NEWPID)?;
            let options = SpawnOptions { new_mount_namespace: true, sibling: true, ..Default::default() };
            let spawned = spawn(&options, life)?;
            rustix::io::write(&tell, &spawned.pid.to_ne_bytes()).map_err(io::Error::from)
        };
        born().map_or_else(|error| errno_of(&error), |_| 0)
    })?;
    drop(tell);
    let mut pid = [0; size_of::<i32>()];
    let length = rustix::io::retry_on_intr(|| rustix::io::read(&told, &mut pid))?;
    let ended = why_it_ended(between.pidfd.as_fd())?;
    if length == pid.len() { Process::adopt(i32::from_ne_bytes(pid)) } else { Err(ended) }
}

/// Waits for the end of a process that ends with an errno.
fn why_it_ended(pidfd: BorrowedFd<'_>) -> io::Result<io::Error> {
    let id = rustix::process::WaitId::PidFd(pidfd);
    let status = rustix::process::waitid(id, rustix::process::WaitIdOptions::EXITED)?;
    let errno = status.and_then(|status| status.exit_status()).unwrap_or(libc::EIO);
    Ok(io::Error::from_raw_os_error(errno))
}

fn errno_of(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

/// Every container of the pod sees this process as /proc/1, and a privileged one may look into it. So there is
/// nothing to be had: no files, no host mounts, no capabilities, and not dumpable.
fn become_pid_one(report: BorrowedFd<'_>) -> io::Result<Infallible> {
    // It holds the namespace for berth-pod; with that gone, nobody would end it. The kernel ends the rest of the
    // namespace with it, which is what the daemon does with a pod that has lost its supervisor.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    rustix::thread::set_name(c"berth-pause")?;
    rustix::process::setsid()?;
    enter_empty_root()?;
    close_all_except(&mut [report.as_raw_fd()])?;
    crate::sys::ignore_children()?;
    drop_capabilities()?;
    rustix::thread::set_no_new_privs(true)?;
    rustix::io::retry_on_intr(|| rustix::io::write(report, &[1]))?;
    close_all_except(&mut [])?;
    // All signals are blocked, so nothing ends this but SIGKILL from outside the namespace.
    loop {
        rustix::event::pause();
    }
}

/// A mount namespace with nothing in it but an empty, read-only tmpfs.
fn enter_empty_root() -> io::Result<()> {
    rustix::mount::mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, "size", "4k")?;
    rustix::mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    mount_setattr(&root, MountAttributes { set: libc::MOUNT_ATTR_RDONLY, ..Default::default() })?;
    // Any folder will do: it becomes the root in a moment.
    rustix::mount::move_mount(&root, "", CWD, "/proc", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    rustix::process::fchdir(&root)?;
    pivot_root_here()?;
    umount2(".", MntFlags::MNT_DETACH)?;
    rustix::process::chdir("/")?;
    Ok(())
}

fn drop_capabilities() -> io::Result<()> {
    let empty = CapabilitySet::empty();
    rustix::thread::set_capabilities(
        None::<Pid>,
        CapabilitySets { effective: empty, permitted: empty, inheritable: empty },
    )?;
    Ok(())
}
