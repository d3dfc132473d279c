//! The kernel, and what this process may do with it.

use std::path::Path;

use rustix::process::{Resource, geteuid, getrlimit};

use super::{Finding, probe, read};

const AREA: &str = "kernel";

/// openat2(2) with RESOLVE_IN_ROOT, clone3(2), pidfd_open(2), fsopen(2), mount_setattr(2): the last of these came with 5.12.
const LEAST: (u32, u32) = (5, 12);

/// What containers get unless told otherwise: number (capability.h) and name.
const USUAL: [(u32, &str); 14] = [
    (0, "CHOWN"),
    (1, "DAC_OVERRIDE"),
    (3, "FOWNER"),
    (4, "FSETID"),
    (5, "KILL"),
    (6, "SETGID"),
    (7, "SETUID"),
    (8, "SETPCAP"),
    (10, "NET_BIND_SERVICE"),
    (13, "NET_RAW"),
    (18, "SYS_CHROOT"),
    (27, "MKNOD"),
    (29, "AUDIT_WRITE"),
    (31, "SETFCAP"),
];

const NET_ADMIN: u32 = 12;
const SYS_ADMIN: u32 = 21;
const SYS_RESOURCE: u32 = 24;

pub(super) async fn check() -> Vec<Finding> {
    let mut findings = vec![version(&read("/proc/sys/kernel/osrelease")), user()];
    findings.extend(capabilities(&read("/proc/self/status")));
    findings.extend(namespaces().await);
    findings.extend([seccomp(), security_module(), open_files(), inotify()]);
    findings
}

fn version(release: &str) -> Finding {
    let check = "version";
    let mut numbers = release.split(['.', '-', '+']).map_while(|part| part.parse::<u32>().ok());
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    match found {
        found if found < LEAST => Finding::bad(
            AREA,
            check,
            release,
            "berth uses system calls that came with Linux 5.12",
            "boot a newer kernel (Debian 12 has 6.1, RHEL 9 has 5.14 with them)",
        ),
        found if found < (5, 19) => Finding::warn(
            AREA,
            check,
            release,
            "pods with hostUsers: false need idmapped overlay layers, which came with Linux 5.19",
            "boot a newer kernel, or do without them",
        ),
        _ => Finding::good(AREA, check, release),
    }
}

fn user() -> Finding {
    match geteuid().is_root() {
        true => Finding::good(AREA, "user", "root"),
        false => Finding::bad(
            AREA,
            "user",
            format!("uid {}", geteuid().as_raw()),
            "namespaces, mounts and cgroups of pods are root's to make",
            "sudo berth doctor",
        ),
    }
}

fn capabilities(status: &str) -> Vec<Finding> {
    let field = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = field.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
    let has = |number: u32| mask >> number & 1 == 1;
    let needed: Vec<_> = [(NET_ADMIN, "NET_ADMIN"), (SYS_ADMIN, "SYS_ADMIN")]
        .into_iter()
        .filter(|(number, _)| !has(*number))
        .collect();
    let names = |list: &[(u32, &str)]| list.iter().map(|(_, name)| *name).collect::<Vec<_>>().join(", ");
    if !needed.is_empty() {
        let found = format!("without {}", names(&needed));
        return vec![Finding::bad(
            AREA,
            "capabilities",
            found,
            "no namespace, mount or interface of a pod can be made without them",
            "run berthd as root of the machine, with CapabilityBoundingSet= of its unit unset",
        )];
    }
    let mut findings = Vec::new();
    let lost: Vec<_> = USUAL.into_iter().filter(|(number, _)| !has(*number)).collect();
    findings.push(match lost.is_empty() {
        true => Finding::good(AREA, "capabilities", "all that containers usually get"),
        false => Finding::warn(
            AREA,
            "capabilities",
            format!("without {}", names(&lost)),
            "containers run without these, with a warning in the log",
            "take the limit on capabilities from whatever starts berthd",
        ),
    });
    if !has(SYS_RESOURCE) {
        findings.push(Finding::warn(
            AREA,
            "SYS_RESOURCE",
            "missing",
            "oom_score_adj of a container cannot be lowered, nor its rlimits raised above berthd's own",
            "take the limit on capabilities from whatever starts berthd",
        ));
    }
    findings
}

async fn namespaces() -> Vec<Finding> {
    let mut missing = Vec::new();
    for name in ["mount", "network", "uts", "ipc", "pid", "cgroup"] {
        if let Err(why) = probe::attempt(name, Path::new("/")).await {
            missing.push(format!("{name}: {why}"));
        }
    }
    vec![match missing.is_empty() {
        true => Finding::good(AREA, "namespaces", "mount, network, uts, ipc, pid, cgroup"),
        false => Finding::bad(
            AREA,
            "namespaces",
            missing.join("; "),
            "containers live in namespaces of their own",
            "boot a kernel with CONFIG_NAMESPACES; inside of a container, give it --privileged",
        ),
    }]
}

fn seccomp() -> Finding {
    let actions = read("/proc/sys/kernel/seccomp/actions_avail");
    match actions.split_whitespace().any(|action| action == "errno") {
        true => Finding::good(AREA, "seccomp", "filters"),
        false => Finding::warn(
            AREA,
            "seccomp",
            "no filters",
            "containers whose profile is RuntimeDefault or Localhost are refused",
            "boot a kernel with CONFIG_SECCOMP_FILTER",
        ),
    }
}

/// Having none is as good as any.
fn security_module() -> Finding {
    let list = read("/sys/kernel/security/lsm");
    let enforcing = read("/sys/fs/selinux/enforce");
    let found = match (list.contains("apparmor"), list.contains("selinux"), enforcing.as_str()) {
        (true, _, _) => "AppArmor",
        (_, true, "1") => "SELinux, enforcing",
        (_, true, _) => "SELinux, permissive",
        (false, false, _) => "neither AppArmor nor SELinux",
    };
    Finding::good(AREA, "security module", found)
}

fn open_files() -> Finding {
    // A pod takes a handful in berthd.
    const ENOUGH: u64 = 65_536;
    let limit = getrlimit(Resource::Nofile).maximum;
    match limit.is_none_or(|limit| limit >= ENOUGH) {
        true => {
            Finding::good(AREA, "open files", limit.map_or("no limit".to_owned(), |limit| limit.to_string()))
        }
        false => Finding::warn(
            AREA,
            "open files",
            limit.unwrap_or_default().to_string(),
            "berthd keeps a few files open for every pod; this is the limit of this shell, not of its unit",
            "LimitNOFILE=1048576 in the unit (deploy/berth.service has it)",
        ),
    }
}

fn inotify() -> Finding {
    let instances = read("/proc/sys/fs/inotify/max_user_instances");
    match instances.parse::<u32>().unwrap_or(0) {
        0..128 => Finding::warn(
            AREA,
            "inotify",
            format!("{instances} instances for a user"),
            "programs in containers that watch files share these, and fail when they are used up",
            "sysctl -w fs.inotify.max_user_instances=1024",
        ),
        _ => Finding::good(AREA, "inotify", format!("{instances} instances for a user")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_kernel_is_judged_by_its_version() {
        let verdict = |release| version(release).verdict;
        assert!(matches!(verdict("5.10.0-28-amd64"), Verdict::Bad(_)));
        assert!(matches!(verdict("5.14.0-427.el9.x86_64"), Verdict::Warn(_)));
        assert_eq!(verdict("6.1.0-18-amd64"), Verdict::Good);
        assert_eq!(verdict("10.0"), Verdict::Good);
    }

    #[test]
    fn what_is_missing_is_named() {
        let all = capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n");
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].verdict, Verdict::Good);
        let some = capabilities("CapEff:\t000001ff0effffff\n");
        assert!(some.iter().any(|one| one.check == "SYS_RESOURCE"), "{some:?}");
        let none = capabilities("CapEff:\t00000000a80425fb\n");
        assert!(
            matches!(none[0].verdict, Verdict::Bad(_)) && none[0].found.contains("SYS_ADMIN"),
            "{none:?}"
        );
    }
}
