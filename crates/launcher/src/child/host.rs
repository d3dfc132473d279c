//! What is done through the host's own files, before the container's root is ours.

use std::os::fd::{AsFd, OwnedFd};

use berth_cri::berth::v1::{ProcessPlan, Sysctl};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::CpuSet;

use crate::error::{AtStep, StepError};
use crate::sys;

/// `PROC_SUPER_MAGIC`, statfs(2).
const PROC_MAGIC: i64 = 0x9fa0;

/// Opens a file of the host's procfs, and makes sure that it is one.
fn open_proc(path: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
    if rustix::fs::fstatfs(&fd)?.f_type as i64 == PROC_MAGIC { Ok(fd) } else { Err(Errno::XDEV) }
}

fn write(fd: impl AsFd, value: &[u8]) -> Result<(), Errno> {
    match rustix::io::retry_on_intr(|| rustix::io::write(&fd, value))? {
        count if count == value.len() => Ok(()),
        _ => Err(Errno::IO),
    }
}

/// Sysctls of the namespaces that this process is in.
pub(super) fn write_sysctls(sysctls: &[Sysctl]) -> Result<(), StepError> {
    for Sysctl { path, value } in sysctls {
        open_proc(&format!("/proc/sys/{path}"))
            .and_then(|fd| write(fd, value.as_bytes()))
            .step_with(|| format!("sysctl {path}={value}"))?;
    }
    Ok(())
}

/// Sets oom_score_adj; a score lower than this host lets us have is left out with a warning.
pub(super) fn adjust_oom_score(score: Option<i32>, warnings: &mut Vec<String>) -> Result<(), StepError> {
    let Some(score) = score else { return Ok(()) };
    let step = || format!("oom_score_adj {score}");
    let fd = open_proc("/proc/self/oom_score_adj").step_with(step)?;
    match write(fd, score.to_string().as_bytes()) {
        // proc(5): lowering below what was inherited takes CAP_SYS_RESOURCE.
        Err(Errno::ACCESS) => {
            warnings.push(format!("oom_score_adj {score} left out: this host does not let berth lower it"));
            Ok(())
        }
        answer => answer.step_with(step),
    }
}

/// Lets the process run on every processor of its cpuset: a service manager may have kept the daemon to some, which from
/// Linux 6.2 on would hold for its children in any cpuset.
pub(super) fn use_all_processors() -> Result<(), StepError> {
    let mut all = CpuSet::new();
    (0..CpuSet::MAX_CPU).for_each(|processor| all.set(processor));
    rustix::thread::sched_setaffinity(None, &all).step("use all processors")
}

/// Keys of the daemon's session, and of other containers, are none of this process's.
pub(super) fn leave_session_keyring(warnings: &mut Vec<String>) -> Result<(), StepError> {
    match sys::join_new_session_keyring() {
        Err(error) if error.raw_os_error() == Some(Errno::NOSYS.raw_os_error()) => {
            warnings.push("no session keyring of its own: this kernel has no keys".to_owned());
            Ok(())
        }
        answer => answer.step("new session keyring"),
    }
}

/// The labels that AppArmor and SELinux give the process at its next exec.
pub(super) fn set_security_labels(process: &ProcessPlan) -> Result<(), StepError> {
    if !process.apparmor_profile.is_empty() {
        let profile = &process.apparmor_profile;
        let value = format!("exec {profile}");
        open_proc("/proc/thread-self/attr/apparmor/exec")
            .or_else(|error| match error {
                // Before Linux 5.8 there was one file for whichever module is first.
                Errno::NOENT => open_proc("/proc/thread-self/attr/exec"),
                error => Err(error),
            })
            .and_then(|fd| write(fd, value.as_bytes()))
            .step_with(|| format!("AppArmor profile {profile}"))?;
    }
    if !process.selinux_label.is_empty() {
        let label = &process.selinux_label;
        open_proc("/proc/thread-self/attr/exec")
            .and_then(|fd| write(fd, label.as_bytes()))
            .step_with(|| format!("SELinux label {label}"))?;
    }
    Ok(())
}

/// Enters cgroup v1 cgroups by their `tasks` files.
///
/// "0" in `tasks`, never a number and never `cgroup.procs`: a thread that moves only itself does not need the
/// kernel's lock over all thread groups, whose first taking costs an RCU grace period (5 to 16 ms). This process has
/// one thread, so it comes to the same.
pub(super) fn enter_cgroups(tasks: &[String]) -> Result<(), StepError> {
    for path in tasks {
        rustix::fs::openat(CWD, path.as_str(), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
            .and_then(|fd| write(fd, b"0"))
            .step_with(|| format!("enter cgroup {path}"))?;
    }
    Ok(())
}
