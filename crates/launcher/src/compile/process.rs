//! The process: arguments, user, limits, confinement.

use berth_cri::berth::v1::{ProcessPlan, Rlimit, Seccomp};
use oci_spec::runtime::{Linux, LinuxSeccomp, LinuxSeccompFilterFlag, PosixRlimitType, Process};

use super::ids::{Ids, host_gid, host_uid};
use super::{CompileError, CompileInput, Warning, capabilities, scheduling};

const DEFAULT_UMASK: u32 = 0o022;

pub(super) fn compile(
    process: &Process,
    linux: &Linux,
    ids: Option<&Ids>,
    input: CompileInput<'_>,
    warnings: &mut Vec<Warning>,
) -> Result<ProcessPlan, CompileError> {
    if process.exec_cpu_affinity().is_some() {
        return Err(CompileError::unsupported("process.execCPUAffinity"));
    }
    let args = process.args().as_deref().filter(|args| !args.is_empty());
    let cwd = process.cwd().to_str().filter(|cwd| cwd.starts_with('/'));
    let user = process.user();
    let console = process.console_size().filter(|_| process.terminal().unwrap_or(false));
    for gid in user.additional_gids().iter().flatten().chain([&user.gid()]) {
        host_gid(ids, "process.user", *gid)?;
    }
    let side = |side: u64| u32::try_from(side).unwrap_or(u32::MAX);
    Ok(ProcessPlan {
        args: bytes(args.ok_or(CompileError::Missing("process.args"))?),
        env: bytes(process.env().as_deref().unwrap_or_default()),
        cwd: cwd
            .ok_or_else(|| {
                CompileError::invalid("process.cwd", process.cwd().to_string_lossy(), "is not absolute")
            })?
            .to_owned(),
        uid: user.uid(),
        gid: user.gid(),
        additional_gids: user.additional_gids().clone().unwrap_or_default(),
        umask: user.umask().unwrap_or(DEFAULT_UMASK),
        capabilities: Some(capabilities::compile(process.capabilities().as_ref(), input.host_caps, warnings)),
        rlimits: process
            .rlimits()
            .iter()
            .flatten()
            .map(|limit| Rlimit { resource: number(limit.typ()), soft: limit.soft(), hard: limit.hard() })
            .collect(),
        oom_score_adj: process.oom_score_adj(),
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        apparmor_profile: process.apparmor_profile().clone().unwrap_or_default(),
        selinux_label: process.selinux_label().clone().unwrap_or_default(),
        seccomp: seccomp(linux.seccomp().as_ref(), input.seccomp_bpf)?,
        terminal: process.terminal().unwrap_or(false),
        stdio_uid: host_uid(ids, "process.user.uid", user.uid())?,
        console_rows: console.map_or(0, |size| side(size.height())),
        console_columns: console.map_or(0, |size| side(size.width())),
        scheduler: process.scheduler().as_ref().map(scheduling::scheduler).transpose()?,
        io_priority: process.io_priority().as_ref().map(scheduling::io_priority).transpose()?,
        memory_policy: linux.memory_policy().as_ref().map(scheduling::memory_policy).transpose()?,
    })
}

/// `process` with everything about confinement that it leaves open taken from the container's first one.
pub(super) fn confine_like(process: &Process, first: &Process) -> Process {
    let mut merged = process.clone();
    if merged.capabilities().is_none() {
        merged.set_capabilities(first.capabilities().clone());
    }
    if merged.rlimits().is_none() {
        merged.set_rlimits(first.rlimits().clone());
    }
    if merged.apparmor_profile().is_none() {
        merged.set_apparmor_profile(first.apparmor_profile().clone());
    }
    if merged.selinux_label().is_none() {
        merged.set_selinux_label(first.selinux_label().clone());
    }
    if merged.oom_score_adj().is_none() {
        merged.set_oom_score_adj(first.oom_score_adj());
    }
    if merged.scheduler().is_none() {
        merged.set_scheduler(first.scheduler().clone());
    }
    if merged.io_priority().is_none() {
        merged.set_io_priority(*first.io_priority());
    }
    // Never less confined than the first, whatever the process says.
    if first.no_new_privileges() == Some(true) || merged.no_new_privileges().is_none() {
        merged.set_no_new_privileges(first.no_new_privileges());
    }
    let mut user = merged.user().clone();
    if user.umask().is_none() {
        user.set_umask(first.user().umask());
        merged.set_user(user);
    }
    merged
}

fn bytes(strings: &[String]) -> Vec<Vec<u8>> {
    strings.iter().map(|string| string.as_bytes().to_vec()).collect()
}

fn seccomp(profile: Option<&LinuxSeccomp>, program: Option<&[u8]>) -> Result<Option<Seccomp>, CompileError> {
    let (profile, program) = match (profile, program) {
        (None, None) => return Ok(None),
        (Some(profile), Some(program)) => (profile, program),
        (Some(_), None) => return Err(CompileError::Missing("the compiled linux.seccomp")),
        (None, Some(_)) => return Err(CompileError::Missing("linux.seccomp")),
    };
    if profile.listener_path().is_some() {
        return Err(CompileError::unsupported("linux.seccomp.listenerPath"));
    }
    let mut flags = 0;
    for flag in profile.flags().iter().flatten() {
        flags |= match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
            // One thread is always in step with itself.
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
            // Only of use with a listener.
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
                return Err(CompileError::unsupported(
                    "linux.seccomp.flags: SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
                ));
            }
        };
    }
    let flags = u32::try_from(flags).expect("the flags are the lowest bits");
    Ok(Some(Seccomp { program: program.to_vec(), flags }))
}

/// asm/resource.h.
fn number(limit: PosixRlimitType) -> u32 {
    match limit {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}
