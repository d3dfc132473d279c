//! The pod's namespaces and settings, made once, in this process itself: everything it forks is born into them.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use berth_cri::berth::v1::{IdRange, MakeUserNamespace, PodSetup, RootIds};
use berth_launcher::user_namespace::Holder;
use nix::sched::CloneFlags;
use rustix::fs::{Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags};

use super::failure::{Fault, Step};
use super::inside::{UserNamespace, inside};
use super::pid_one::PidOne;

/// Makes the pod's user namespace and those that belong to it, and enters the latter. This process stays the host's root,
/// which it has to be for logs, cgroups and exits.
pub(super) fn make_user_namespace(request: &MakeUserNamespace) -> Result<UserNamespace, Fault> {
    let mut own = CloneFlags::empty();
    own.set(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS, !request.host_network);
    own.set(CloneFlags::CLONE_NEWIPC, !request.host_ipc);
    let ids = request.ids.clone().unwrap_or_default();
    let holder = Holder::start(&ids, own).step("make the pod's user namespace")?;
    let fd = holder.user_namespace().step("open the pod's user namespace")?;
    if !own.is_empty() {
        nix::sched::setns(holder.as_fd(), own).step("enter the namespaces of the pod's user namespace")?;
    }
    // It has a root, or there would be no holder.
    let first = |ranges: &[IdRange]| {
        ranges.iter().find(|range| range.inside == 0).map_or(u32::MAX, |range| range.outside)
    };
    Ok(UserNamespace { fd, root: RootIds { uid: first(&ids.uids), gid: first(&ids.gids) } })
}

/// Enters `netns`, leaves the host's ipc and uts namespaces as asked, sets hostname and sysctls, and starts the
/// shared pid 1 when there is to be one. With a `user` namespace the others were made together with it.
pub(super) fn set_up(
    setup: &PodSetup,
    netns: Option<&OwnedFd>,
    user: Option<&UserNamespace>,
) -> Result<Option<PidOne>, Fault> {
    if let Some(netns) = netns {
        nix::sched::setns(netns, CloneFlags::CLONE_NEWNET).step("enter the pod's network namespace")?;
    }
    if user.is_none() {
        let mut own = CloneFlags::empty();
        own.set(CloneFlags::CLONE_NEWIPC, !setup.host_ipc);
        own.set(CloneFlags::CLONE_NEWUTS, !setup.hostname.is_empty());
        nix::sched::unshare(own).step("make the pod's ipc and uts namespaces")?;
    }
    if !setup.hostname.is_empty() {
        let step = || format!("set hostname {}", setup.hostname);
        rustix::system::sethostname(setup.hostname.as_bytes()).step(step)?;
    }
    match user {
        // Those of an ipc namespace are its owner's alone, however mighty others are.
        Some(user) if !setup.sysctls.is_empty() => {
            inside(user.fd.as_fd(), || write_sysctls(&setup.sysctls))?;
        }
        _ => write_sysctls(&setup.sysctls)?,
    }
    if setup.shared_pid {
        let user = user.map(|user| user.fd.as_fd());
        PidOne::start(user).step("start the pod's shared pid 1").map(Some)
    } else {
        Ok(None)
    }
}

fn write_sysctls(sysctls: &BTreeMap<String, String>) -> Result<(), Fault> {
    if sysctls.is_empty() {
        return Ok(());
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open("/proc/sys", flags, Mode::empty()).step("open /proc/sys")?;
    if rustix::fs::fstatfs(&root).step("look at /proc/sys")?.f_type != PROC_SUPER_MAGIC {
        return Err(Fault::refused("open /proc/sys", "it is not procfs"));
    }
    for (name, value) in sysctls {
        // Names come from a pod's author: nothing but a file below /proc/sys can be meant.
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat2(&root, sysctl_path(name), flags, Mode::empty(), resolve)
            .map_err(io::Error::from)
            .and_then(|file| io::Write::write_all(&mut std::fs::File::from(file), value.as_bytes()))
            .step(|| format!("set sysctl {name}={value}"))?;
    }
    Ok(())
}

/// A sysctl's file below `/proc/sys`. As sysctl(8) has it: whichever of `.` and `/` comes first separates, and the
/// other one stands for it inside a component (`net.ipv4.conf.eth0/1.rp_filter`).
fn sysctl_path(name: &str) -> PathBuf {
    let dotted = name.find(['.', '/']).is_some_and(|at| name.as_bytes()[at] == b'.');
    let swap = |letter| match letter {
        '.' if dotted => '/',
        '/' if dotted => '.',
        other => other,
    };
    name.chars().map(swap).collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_of_a_sysctl_name_are_understood() {
        let path = |name| sysctl_path(name).to_str().unwrap().to_owned();
        assert_eq!(path("net.ipv4.ip_forward"), "net/ipv4/ip_forward");
        assert_eq!(path("net/ipv4/conf/eth0.1/rp_filter"), "net/ipv4/conf/eth0.1/rp_filter");
        assert_eq!(path("net.ipv4.conf.eth0/1.rp_filter"), "net/ipv4/conf/eth0.1/rp_filter");
    }
}
