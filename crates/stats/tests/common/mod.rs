//! Real cgroups with real processes in them, and recorded ones.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use berth_cri::runtime::v1::{LinuxContainerResources, PodSandboxMetadata};
use berth_stats::*;

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for a level.
pub(crate) fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < until, "never: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

const ROOT: &str = "/sys/fs/cgroup";

/// A cgroup of our own, directly below the root of each hierarchy. Dropping kills what runs in it and removes it.
pub(crate) struct TestCgroup {
    /// Controller and folder; on v2 one with an empty name.
    places: Vec<(String, PathBuf)>,
}

impl TestCgroup {
    /// `None`, with a word why, where this is not allowed.
    pub(crate) fn new() -> Option<TestCgroup> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("berth-stats-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let roots: Vec<(String, PathBuf)> = if Path::new(ROOT).join("cgroup.controllers").exists() {
            let _ = fs::write(Path::new(ROOT).join("cgroup.subtree_control"), "+cpu +memory +pids +io");
            vec![(String::new(), PathBuf::from(ROOT))]
        } else {
            ["cpu", "cpuacct", "memory", "blkio", "pids"]
                .map(|controller| (controller.to_owned(), Path::new(ROOT).join(controller)))
                .into_iter()
                .filter(|(_, root)| root.join("cgroup.procs").exists())
                .collect()
        };
        TestCgroup::below(roots, &name)
    }

    /// In the v2 hierarchy that has no controllers, on a host where v1 has them.
    pub(crate) fn beside_v1() -> Option<TestCgroup> {
        let root = Path::new(ROOT).join("unified");
        let roots = if root.join("cgroup.procs").exists() { vec![(String::new(), root)] } else { Vec::new() };
        TestCgroup::below(roots, &format!("berth-stats-{}", std::process::id()))
    }

    fn below(roots: Vec<(String, PathBuf)>, name: &str) -> Option<TestCgroup> {
        let mut cgroup = TestCgroup { places: Vec::new() };
        for (controller, root) in roots {
            let folder = root.join(name);
            if let Err(error) = fs::create_dir(&folder) {
                eprintln!("skipped: cannot make {}: {error}", folder.display());
                return None;
            }
            cgroup.places.push((controller, folder));
        }
        if cgroup.places.is_empty() {
            eprintln!("skipped: no such cgroups here");
            return None;
        }
        Some(cgroup)
    }

    pub(crate) fn is_v2(&self) -> bool {
        self.places[0].0.is_empty()
    }

    /// Whether the kernel accounts pressure: the file may be there and still refuse to be read.
    pub(crate) fn tells_pressure(&self) -> bool {
        fs::read(self.places[0].1.join("cpu.pressure")).is_ok()
    }

    pub(crate) fn folders(&self) -> CgroupFolders {
        match self.is_v2() {
            true => CgroupFolders::v2(&self.places[0].1),
            false => CgroupFolders::v1(
                self.places.iter().map(|(controller, folder)| (folder.clone(), [controller.clone()])),
            ),
        }
    }

    fn folder(&self, controller: &str) -> Option<&Path> {
        let found = self.places.iter().find(|(name, _)| name.is_empty() || name == controller);
        found.map(|(_, folder)| folder.as_path())
    }

    /// Sets a limit, by the names of both versions.
    pub(crate) fn set(&self, controller: &str, v1: &[(&str, &str)], v2: &[(&str, &str)]) {
        let folder = self.folder(controller).expect("the controller");
        for (file, value) in if self.is_v2() { v2 } else { v1 } {
            fs::write(folder.join(file), value).unwrap_or_else(|error| panic!("{file}: {error}"));
        }
    }

    /// Runs a shell script inside.
    pub(crate) fn run(&self, script: &str) -> Running {
        let join: String = self
            .places
            .iter()
            .map(|(_, folder)| format!("echo $$ > {}/cgroup.procs || exit 99; ", folder.display()))
            .collect();
        let child = Command::new("sh")
            .args(["-c", &format!("{join}{script}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Running(child)
    }

    fn pids(&self) -> Vec<String> {
        let list = |(_, folder): &(String, PathBuf)| {
            fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default()
        };
        self.places
            .iter()
            .flat_map(|place| list(place).lines().map(str::to_owned).collect::<Vec<_>>())
            .collect()
    }

    /// Ends what runs and removes the cgroup.
    pub(crate) fn remove(&mut self) {
        eventually("an empty cgroup", || {
            let pids = self.pids();
            if pids.is_empty() {
                return Some(());
            }
            let _ = Command::new("kill").arg("-9").args(&pids).stderr(Stdio::null()).status();
            None
        });
        for (_, folder) in self.places.drain(..) {
            eventually("the cgroup's removal", || fs::remove_dir(&folder).ok());
        }
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        if !self.places.is_empty() {
            self.remove();
        }
    }
}

/// A child that is killed and waited for.
pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// 32 MiB of memory held by one process, and one CPU burnt by another.
pub(crate) const BURN: &str = "{ head -c 33554432 /dev/zero; sleep 1000; } | tail -c 33554432 >/dev/null & \
                        while :; do :; done";

pub(crate) fn unix_nanos() -> i64 {
    SystemClock::new().unix_nanos()
}

pub(crate) fn container(id: &str, cgroup: CgroupFolders) -> ContainerFacts {
    ContainerFacts {
        id: id.to_owned(),
        name: "web".into(),
        attempt: 2,
        pod: PodSandboxMetadata { name: "pod".into(), uid: "uid".into(), namespace: "ns".into(), attempt: 0 },
        labels: BTreeMap::from([("app".into(), "web".into())]),
        annotations: BTreeMap::new(),
        image: "registry.example/web:1".into(),
        cgroup,
        pid: None,
        resources: Some(LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 20_000,
            cpu_shares: 1024,
            memory_limit_in_bytes: 64 << 20,
            memory_swap_limit_in_bytes: 64 << 20,
            ..LinuxContainerResources::default()
        }),
        started_at: unix_nanos(),
        layer: None,
    }
}

pub(crate) fn pod(id: &str) -> PodFacts {
    PodFacts {
        id: id.to_owned(),
        metadata: PodSandboxMetadata {
            name: "pod".into(),
            uid: "uid".into(),
            namespace: "ns".into(),
            attempt: 0,
        },
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        cgroup: None,
        network: None,
        created_at: unix_nanos(),
    }
}

/// The files of a container on v2, as Linux 6.8 writes them, with a running process (this one).
pub(crate) fn recorded_v2(folder: &Path) -> CgroupFolders {
    let own = format!("{}\n", std::process::id());
    let pressure = "some avg10=0.50 avg60=0.10 avg300=0.00 total=2500000\n\
                    full avg10=0.00 avg60=0.00 avg300=0.00 total=1500000\n";
    let files = [
        ("cgroup.procs", own.as_str()),
        (
            "cpu.stat",
            "usage_usec 5402871\nuser_usec 4087135\nsystem_usec 1315736\nnr_periods 118\nnr_throttled 11\nthrottled_usec 3345678\n",
        ),
        ("cpu.pressure", pressure),
        ("memory.current", "2072576\n"),
        ("memory.max", "67108864\n"),
        ("memory.peak", "2600960\n"),
        (
            "memory.stat",
            "anon 421888\nfile 1351680\nkernel 270336\nfile_mapped 811008\ninactive_file 1081344\npgfault 2207\npgmajfault 12\n",
        ),
        ("memory.events", "low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\noom_group_kill 0\n"),
        ("memory.swap.current", "4096\n"),
        ("memory.swap.max", "0\n"),
        ("memory.pressure", pressure),
        ("io.stat", "8:0 rbytes=90430464 wbytes=299008000 rios=8950 wios=1252 dbytes=0 dios=0\n"),
        ("io.pressure", pressure),
        ("pids.current", "1\n"),
        ("pids.max", "max\n"),
    ];
    for (name, text) in files {
        fs::write(folder.join(name), text).unwrap();
    }
    CgroupFolders::v2(folder)
}

/// The files of a container on v1, as Linux 6.18 writes them, all controllers in one folder.
pub(crate) fn recorded_v1(folder: &Path) -> CgroupFolders {
    let own = format!("{}\n", std::process::id());
    let files = [
        ("cgroup.procs", own.as_str()),
        ("cpuacct.usage", "5402871000\n"),
        ("cpuacct.stat", "user 408\nsystem 131\n"),
        ("cpu.stat", "nr_periods 118\nnr_throttled 11\nthrottled_time 3345678000\n"),
        ("memory.usage_in_bytes", "2072576\n"),
        ("memory.limit_in_bytes", "67108864\n"),
        ("memory.max_usage_in_bytes", "2600960\n"),
        ("memory.failcnt", "9\n"),
        ("memory.kmem.usage_in_bytes", "270336\n"),
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"),
        (
            "memory.stat",
            "pgfault 2000\npgmajfault 10\ntotal_cache 1351680\ntotal_rss 421888\ntotal_mapped_file 811008\ntotal_swap 4096\ntotal_inactive_file 1081344\ntotal_pgfault 2207\ntotal_pgmajfault 12\n",
        ),
        ("memory.memsw.limit_in_bytes", "67108864\n"),
        (
            "blkio.throttle.io_service_bytes_recursive",
            "8:0 Read 90430464\n8:0 Write 299008000\n8:0 Total 389438464\nTotal 389438464\n",
        ),
        ("blkio.throttle.io_serviced_recursive", "8:0 Read 8950\n8:0 Write 1252\nTotal 10202\n"),
        ("pids.current", "1\n"),
        ("pids.max", "max\n"),
    ];
    for (name, text) in files {
        fs::write(folder.join(name), text).unwrap();
    }
    CgroupFolders::v1([(folder.to_owned(), ["cpu", "cpuacct", "memory", "blkio", "pids"])])
}
