//! Control groups.

use std::fs;
use std::path::{Path, PathBuf};

use berth_launcher::cgroup::MOUNT_POINT;
use berth_launcher::mount_table::MountTable;

use super::{Finding, read};

const AREA: &str = "cgroups";

/// What limits are made with.
const V1: [&str; 7] = ["cpu", "cpuacct", "cpuset", "memory", "pids", "devices", "freezer"];
const V2: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];

pub(super) fn check() -> Vec<Finding> {
    let hierarchies = Hierarchies::of(&MountTable::of_this_process().unwrap_or_default());
    let mut findings = vec![hierarchies.judge(&read("/sys/fs/cgroup/cgroup.controllers"))];
    if let Some(folder) = hierarchies.any() {
        findings.push(child(folder));
    }
    findings.push(match read("/proc/pressure/memory").is_empty() {
        false => Finding::good(AREA, "pressure", "PSI is measured"),
        true => Finding::warn(
            AREA,
            "pressure",
            "PSI is not measured",
            "statistics of pods have no pressure values",
            "boot with psi=1",
        ),
    });
    findings
}

/// What is mounted where.
#[derive(Debug, Default, PartialEq, Eq)]
struct Hierarchies {
    /// Controllers and folder of each of version 1.
    v1: Vec<(Vec<String>, PathBuf)>,
    v2: Option<PathBuf>,
}

impl Hierarchies {
    fn of(table: &MountTable) -> Self {
        let mut found = Self::default();
        for mount in table.mounts() {
            match mount.kind {
                "cgroup2" => found.v2 = Some(mount.point()),
                "cgroup" => {
                    let options = mount.options.split(',').map(str::to_owned).collect();
                    found.v1.push((options, mount.point()));
                }
                _ => {}
            }
        }
        // Then those of version 1 are strays.
        if found.v2.as_deref() == Some(Path::new(MOUNT_POINT)) {
            found.v1.clear();
        }
        found
    }

    /// `available`: the root's `cgroup.controllers` of version 2.
    fn judge(&self, available: &str) -> Finding {
        let check = "controllers";
        let on_v1 = |name: &&&str| self.v1.iter().any(|(names, _)| names.iter().any(|one| one == **name));
        let (version, missing): (_, Vec<&str>) = match (&self.v2, self.v1.is_empty()) {
            (None, true) => {
                return Finding::bad(
                    AREA,
                    check,
                    "no hierarchy is mounted",
                    "no pod can be limited, or be found again",
                    "mount -t cgroup2 none /sys/fs/cgroup",
                );
            }
            (Some(_), true) => {
                let there: Vec<_> = available.split_whitespace().collect();
                ("version 2", V2.into_iter().filter(|name| !there.contains(name)).collect())
            }
            (_, false) => ("version 1", V1.iter().filter(|name| !on_v1(name)).copied().collect()),
        };
        match missing.is_empty() {
            true => Finding::good(AREA, check, format!("{version}, with all that limits need")),
            false => Finding::warn(
                AREA,
                check,
                format!("{version}, without {}", missing.join(", ")),
                "limits of these are left out, with a warning in the log",
                "boot with cgroup_enable=memory, or a kernel with CONFIG_CGROUP_*",
            ),
        }
    }

    fn any(&self) -> Option<&PathBuf> {
        let with_memory = self.v1.iter().find(|(names, _)| names.iter().any(|name| name == "memory"));
        with_memory.map(|(_, folder)| folder).or(self.v2.as_ref())
    }
}

/// Makes a cgroup, and removes it again.
fn child(folder: &std::path::Path) -> Finding {
    let path = folder.join(format!("berth-doctor-{}", std::process::id()));
    let made = fs::create_dir(&path).and_then(|()| fs::remove_dir(&path));
    match made {
        Ok(()) => Finding::good(AREA, "child cgroup", format!("made and removed below {}", folder.display())),
        Err(error) => Finding::bad(
            AREA,
            "child cgroup",
            format!("{}: {error}", path.display()),
            "every pod gets one",
            "mount the hierarchy writable, or give this container --cgroupns=host and a writable /sys/fs/cgroup",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    const MEMORY: &str = "36 28 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory";
    const UNIFIED: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate";

    #[test]
    fn hosts_of_all_kinds_are_told_apart() {
        let v2 = Hierarchies::of(&UNIFIED.into());
        assert_eq!(v2.judge("cpuset cpu io memory pids").verdict, Verdict::Good);
        let some = v2.judge("cpu io");
        assert!(matches!(some.verdict, Verdict::Warn(_)) && some.found.contains("memory, pids"), "{some:?}");
        // A hybrid host limits by version 1.
        let beside = UNIFIED.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified");
        let hybrid = Hierarchies::of(&format!("{MEMORY}\n{beside}").as_str().into());
        let judged = hybrid.judge("");
        assert!(judged.found.starts_with("version 1, without cpu, cpuacct"), "{judged:?}");
        assert_eq!(hybrid.any(), Some(&PathBuf::from("/sys/fs/cgroup/memory")));
        let stray = Hierarchies::of(&format!("{UNIFIED}\n{MEMORY}").as_str().into());
        assert_eq!(stray.judge("cpuset cpu io memory pids").verdict, Verdict::Good);
        assert!(matches!(Hierarchies::of(&"".into()).judge("").verdict, Verdict::Bad(_)));
    }
}
