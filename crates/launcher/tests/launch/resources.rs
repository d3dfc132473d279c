//! Cgroups: limits that hold, processes that go, folders that are gone.

use std::fs;

use berth_launcher::cgroup::{Cgroup, Cgroups, Resources, Version};
use berth_launcher::compile::compile;
use berth_launcher::container::PidEntry;
use serde_json::json;

use crate::common::*;

pub const TESTS: &[Test] = &[
    ("limits_are_written_and_can_be_changed", limits_are_written_and_can_be_changed),
    ("a_container_with_a_few_megabytes_starts", a_container_with_a_few_megabytes_starts),
    ("kills_for_memory_are_counted", kills_for_memory_are_counted),
    ("devices_are_those_of_the_rules", devices_are_those_of_the_rules),
    ("everything_in_a_cgroup_can_be_killed", everything_in_a_cgroup_can_be_killed),
    ("a_frozen_container_stands_still", a_frozen_container_stands_still),
    ("what_is_frozen_below_can_be_killed", what_is_frozen_below_can_be_killed),
    ("every_processor_is_the_containers", every_processor_is_the_containers),
    ("removing_twice_is_no_fault", removing_twice_is_no_fault),
];

fn file(cgroup: &Cgroup, controller: &str, file: &str) -> String {
    let folder = cgroup
        .hierarchies()
        .find(|(_, controllers)| {
            controllers.is_empty() || controllers.iter().any(|known| known == controller)
        })
        .unwrap()
        .0;
    fs::read_to_string(folder.join(file)).unwrap().trim().to_owned()
}

fn limits_are_written_and_can_be_changed() {
    let own = OwnCgroup::new();
    let mut limits = Resources {
        cpu_shares: Some(512),
        cpu_quota: Some(50_000),
        cpu_period: Some(100_000),
        memory_limit: Some(64 << 20),
        memory_swap: Some(64 << 20),
        pids_limit: Some(33),
        cpuset_cpus: Some("0".to_owned()),
        ..Resources::default()
    };
    limits.unified.insert("memory.oom.group".to_owned(), "1".to_owned());
    let warnings = own.0.apply(&limits).unwrap();
    if own.0.version() == Version::V1 {
        assert!(warnings.iter().any(|warning| warning.0.contains("memory.oom.group")), "{warnings:?}");
        assert_eq!(file(&own.0, "cpu", "cpu.shares"), "512");
        assert_eq!(file(&own.0, "cpu", "cpu.cfs_quota_us"), "50000");
        assert_eq!(file(&own.0, "memory", "memory.limit_in_bytes"), (64 << 20).to_string());
    } else {
        assert_eq!(file(&own.0, "cpu", "cpu.max"), "50000 100000");
        assert_eq!(file(&own.0, "memory", "memory.max"), (64 << 20).to_string());
    }
    assert_eq!(file(&own.0, "pids", "pids.max"), "33");
    assert_eq!(file(&own.0, "cpuset", "cpuset.cpus"), "0");
    // Up and down again, both limits.
    for size in [128_i64 << 20, 32 << 20] {
        let change = Resources { memory_limit: Some(size), memory_swap: Some(size), ..Resources::default() };
        own.0.apply(&change).unwrap();
    }
    assert_eq!(file(&own.0, "pids", "pids.max"), "33");
}

fn a_container_with_a_few_megabytes_starts() {
    let root = busybox_root();
    let cgroup = OwnCgroup::new();
    cgroup.0.apply(&Resources { memory_limit: Some(4 << 20), ..Resources::default() }).unwrap();
    let compiled = compile(&parse(&spec("echo small")), input(&cgroup.0)).unwrap();
    let mut process = launch(&compiled, root.path(), PidEntry::New);
    process.ready().unwrap();
    assert_eq!(process.finish(), ("small\n".to_owned(), 0));
    assert_eq!(cgroup.0.oom_kills().unwrap(), 0);
}

fn kills_for_memory_are_counted() {
    let root = busybox_root();
    let cgroup = OwnCgroup::new();
    let size = Some(15 << 20);
    cgroup.0.apply(&Resources { memory_limit: size, memory_swap: size, ..Resources::default() }).unwrap();
    let script = "dd if=/dev/zero of=/dev/null bs=50M";
    let compiled = compile(&parse(&spec(script)), input(&cgroup.0)).unwrap();
    let mut process = launch(&compiled, root.path(), PidEntry::New);
    process.ready().unwrap();
    assert_eq!(process.finish().1, 137);
    assert_eq!(cgroup.0.oom_kills().unwrap(), 1);
    let by_dirs = Cgroup::from_dirs(cgroup.0.dirs().map(ToOwned::to_owned));
    assert_eq!(by_dirs.oom_kills().unwrap(), 1);
}

fn devices_are_those_of_the_rules() {
    let root = busybox_root();
    let cgroup = OwnCgroup::new();
    let mut spec = spec(
        "for d in null zero full urandom tty_ own other; do dd if=/dev/$d of=/dev/null bs=1 count=1 2>/dev/null \
         && echo $d; done",
    );
    // Both are /dev/zero's number on other kinds of names; the rule below is about one of them alone.
    spec["linux"]["devices"] = json!([
        { "path": "/dev/own", "type": "c", "major": 1, "minor": 11 },
        { "path": "/dev/other", "type": "c", "major": 10, "minor": 183 }
    ]);
    spec["linux"]["resources"]["devices"] = json!([
        { "allow": false, "access": "rwm" },
        { "allow": true, "type": "c", "major": 1, "minor": 11, "access": "r" }
    ]);
    let spec = parse(&spec);
    let resources = spec.linux().as_ref().unwrap().resources().as_ref().unwrap();
    cgroup.0.apply(&Resources::from_spec(resources).unwrap()).unwrap();
    let compiled = compile(&spec, input(&cgroup.0)).unwrap();
    let mut process = launch(&compiled, root.path(), PidEntry::New);
    process.ready().unwrap();
    let output = process.finish().0;
    assert!(output.contains("zero\nfull\nurandom\n"), "{output}");
    assert!(!output.contains("other"), "{output}");
    if cgroup.0.version() == Version::V1 {
        let list = file(&cgroup.0, "devices", "devices.list");
        assert!(list.contains("c 1:11 r") && !list.contains("a *:*"), "{list}");
    }
}

fn everything_in_a_cgroup_can_be_killed() {
    let mut container = Container::started(&spec(
        "(while true; do (sleep 1000 &) ; sleep 0.01; done) & (while true; do (sleep 1000 &); sleep 0.01; done) & \
         echo up; sleep 1000",
    ));
    let mut line = [0; 3];
    std::io::Read::read_exact(&mut container.process.streams.stdout, &mut line).unwrap();
    assert!(container.cgroup.0.pids().unwrap().len() >= 3);
    container.cgroup.0.kill_all().unwrap();
    assert_eq!(container.cgroup.0.pids().unwrap(), [0_i32; 0]);
    assert_eq!(container.process.wait(), 128 + 9);
    container.cgroup.0.remove().unwrap();
    assert!(!container.cgroup.0.exists());
}

fn a_frozen_container_stands_still() {
    let mut container = Container::started(&spec("echo a; read line; echo b"));
    let mut line = [0; 2];
    std::io::Read::read_exact(&mut container.process.streams.stdout, &mut line).unwrap();
    container.cgroup.0.freeze().unwrap();
    rustix::io::write(container.process.streams.stdin.as_ref().unwrap(), b"go\n").unwrap();
    let text = fs::read_to_string(format!("/proc/{}/stat", container.process.launched.pid)).unwrap();
    assert!(!text.contains(") R "), "{text}");
    container.cgroup.0.thaw().unwrap();
    assert_eq!(container.process.result(), ("b\n".to_owned(), 0));
}

fn what_is_frozen_below_can_be_killed() {
    if Cgroups::detect().unwrap().version() == Version::V2 {
        // There SIGKILL reaches what is frozen.
        return;
    }
    let container = Container::started(&spec("sleep 1000"));
    let freezer = container.cgroup.0.freezer().unwrap();
    let below = freezer.join("paused");
    fs::create_dir(&below).unwrap();
    fs::write(below.join("cgroup.procs"), container.process.launched.pid.to_string()).unwrap();
    fs::write(below.join("freezer.state"), "FROZEN").unwrap();
    container.cgroup.0.remove().unwrap();
    assert!(!container.cgroup.0.exists());
}

fn every_processor_is_the_containers() {
    let allowed = || {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        status.lines().find(|line| line.starts_with("Cpus_allowed_list:")).unwrap().to_owned()
    };
    let all = allowed();
    let before = rustix::thread::sched_getaffinity(None).unwrap();
    // As a service manager keeps a daemon to some.
    let mut one = rustix::thread::CpuSet::new();
    one.set((0..).find(|processor| before.is_set(*processor)).unwrap());
    rustix::thread::sched_setaffinity(None, &one).unwrap();
    assert!(before.count() == 1 || allowed() != all);
    let seen = run_container(&spec("grep Cpus_allowed_list: /proc/self/status"));
    rustix::thread::sched_setaffinity(None, &before).unwrap();
    assert_eq!(seen, (all + "\n", 0));
}

fn removing_twice_is_no_fault() {
    let cgroups = Cgroups::detect().unwrap();
    let path = format!("/berth-launcher-test-twice-{}/a/b", std::process::id());
    let parent = path.split('/').nth(1).unwrap().to_owned();
    let cgroup = cgroups.create(&path).unwrap();
    assert!(cgroup.exists());
    assert_eq!(cgroups.create(&path).unwrap(), cgroup);
    cgroups.remove_path(&format!("/{parent}")).unwrap();
    assert!(!cgroup.exists());
    cgroups.remove_path(&path).unwrap();
}
