//! Processes and threads: `cgroup.procs`, `pids.current`, `pids.max`.

use crate::file::Folder;

/// Who runs in a cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tasks {
    /// Processes of this cgroup, as the host numbers them; without those in cgroups that a container made below.
    pub pids: Vec<i32>,
    /// Threads, with all below.
    pub threads: Option<u64>,
    /// How many threads there may be; `None` without a limit.
    pub threads_max: Option<u64>,
}

pub(super) fn read(folder: &Folder) -> Option<Tasks> {
    let tasks = Tasks {
        pids: processes(folder).unwrap_or_default(),
        threads: folder.number("pids.current").or_else(|| {
            // "tasks" on v1, "cgroup.threads" on v2: one line each.
            let list = folder.text("tasks").or_else(|| folder.text("cgroup.threads"))?;
            u64::try_from(list.lines().count()).ok()
        }),
        threads_max: folder.number("pids.max"),
    };
    (!tasks.pids.is_empty() || tasks.threads.is_some()).then_some(tasks)
}

/// Its processes; `None` when the cgroup is gone.
pub(super) fn processes(folder: &Folder) -> Option<Vec<i32>> {
    folder.text("cgroup.procs").map(|text| parse(&text))
}

/// A process in a pid namespace that is not ours shows as 0.
fn parse(text: &str) -> Vec<i32> {
    text.lines().filter_map(|line| line.trim_ascii().parse().ok()).filter(|pid| *pid > 0).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn processes_threads_and_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("cgroup.procs", "12\n0\n4711\n");
        write("pids.current", "9\n");
        write("pids.max", "max\n");
        let open = Folder::open(folder.path()).unwrap();
        assert_eq!(read(&open).unwrap(), Tasks { pids: vec![12, 4711], threads: Some(9), threads_max: None });
        write("pids.max", "100\n");
        assert_eq!(read(&open).unwrap().threads_max, Some(100));
        fs::remove_file(folder.path().join("pids.current")).unwrap();
        write("tasks", "12\n13\n4711\n");
        assert_eq!(read(&open).unwrap().threads, Some(3), "without the controller the threads are listed");
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "(-?[0-9]{0,22}\n){0,8}|\\PC*") {
            prop_assert!(parse(&text).iter().all(|pid| *pid > 0));
        }
    }
}
