//! Numbers of real cgroups with real processes in them, of whichever version this host has.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::{Duration, Instant};

use berth_stats::*;
use common::*;

const MIB: u64 = 1 << 20;

#[test]
fn a_busy_container_shows_its_cpu_time_memory_and_processes() {
    let Some(mut cgroup) = TestCgroup::new() else { return };
    let begun = Instant::now();
    let child = cgroup.run(BURN);
    let folders = cgroup.folders();

    let memory =
        eventually("32 MiB in use", || folders.memory().filter(|memory| memory.rss >= Some(31 * MIB)));
    assert!(memory.rss < Some(48 * MIB), "{memory:?}");
    assert!(memory.usage >= memory.rss && memory.usage < Some(96 * MIB), "{memory:?}");
    assert!(memory.working_set() <= memory.usage && memory.working_set() >= Some(31 * MIB), "{memory:?}");
    assert!(memory.page_faults >= Some(32 * MIB / 4096 / 512), "huge pages at best: {memory:?}");
    assert_eq!((memory.limit, memory.available()), (None, None), "without a limit nothing is left over");
    let marks = folders.memory_marks().unwrap();
    assert!(marks.max_usage.is_none_or(|most| most >= 31 * MIB), "{marks:?}");

    let cpu =
        eventually("0.3 s of CPU time", || folders.cpu().filter(|cpu| cpu.usage_nanos >= Some(300_000_000)));
    let most = begun.elapsed().as_nanos() * 256;
    assert!(u128::from(cpu.usage_nanos.unwrap()) < most, "{cpu:?}");
    let parts = cpu.user_nanos.unwrap() + cpu.system_nanos.unwrap();
    assert!(parts > 0 && parts < 2 * cpu.usage_nanos.unwrap() + 100_000_000, "{cpu:?}");

    let tasks = folders.tasks().unwrap();
    assert!(tasks.pids.contains(&child.pid()), "{tasks:?}");
    assert!(tasks.pids.len() >= 3, "sh, its subshell, tail: {tasks:?}");
    assert!(tasks.threads >= Some(3), "{tasks:?}");
    let files = open_files(&tasks.pids).unwrap();
    assert!(files.descriptors >= 9 && files.descriptors < 200, "{files:?}");

    drop(child);
    cgroup.remove();
    assert_eq!((folders.cpu(), folders.memory(), folders.tasks()), (None, None, None), "gone is no fault");
}

#[test]
fn stats_of_a_busy_container_have_a_rate_at_the_second_call() {
    let Some(cgroup) = TestCgroup::new() else { return };
    let _child = cgroup.run("while :; do :; done");
    let stats = Stats::default();
    // Long ago, so that the first call has nothing to go by.
    let facts = ContainerFacts { started_at: 1, ..container("busy", cgroup.folders()) };
    assert_eq!(stats.container(&facts).cpu.unwrap().usage_nano_cores, None);
    let rate = eventually("a rate", || stats.container(&facts).cpu.unwrap().usage_nano_cores).value;
    // Other tests and whatever else runs here leave it a share; a single loop cannot take more than one CPU.
    assert!((10_000_000..1_200_000_000).contains(&rate), "{rate}");
}

#[test]
fn limits_and_what_comes_of_them() {
    let Some(cgroup) = TestCgroup::new() else { return };
    let (limit, together) = ((64 * MIB).to_string(), (128 * MIB).to_string());
    cgroup.set(
        "memory",
        &[("memory.limit_in_bytes", &limit), ("memory.memsw.limit_in_bytes", &together)],
        &[("memory.max", &limit), ("memory.swap.max", &limit)],
    );
    cgroup.set("pids", &[("pids.max", "50")], &[("pids.max", "50")]);
    cgroup.set(
        "cpu",
        &[("cpu.cfs_quota_us", "5000"), ("cpu.cfs_period_us", "50000")],
        &[("cpu.max", "5000 50000")],
    );
    let folders = cgroup.folders();
    let _child = cgroup.run("while :; do :; done");
    let cpu = eventually("throttling", || folders.cpu().filter(|cpu| cpu.throttled_periods >= Some(2)));
    assert!(cpu.periods >= cpu.throttled_periods && cpu.throttled_nanos > Some(0), "{cpu:?}");
    let memory = folders.memory().unwrap();
    assert_eq!(memory.limit, Some(64 * MIB));
    assert_eq!(memory.available(), Some(64 * MIB - memory.working_set().unwrap()));
    if let Some(swap) = folders.swap(&memory) {
        assert_eq!(swap.limit, Some(64 * MIB), "{swap:?}");
        assert_eq!(swap.available(), Some(64 * MIB - swap.usage));
    }
    assert_eq!(folders.tasks().unwrap().threads_max, Some(50));

    assert_eq!(folders.memory_marks().unwrap().oom_kills, Some(0));
    cgroup.set("cpu", &[("cpu.cfs_quota_us", "-1")], &[("cpu.max", "max 50000")]);
    let _greedy = cgroup.run("head -c 200000000 /dev/zero | tail -c 200000000 >/dev/null");
    let marks =
        eventually("an OOM kill", || folders.memory_marks().filter(|marks| marks.oom_kills >= Some(1)));
    assert!(marks.limit_hits >= Some(1), "{marks:?}");
    assert!(marks.max_usage.is_none_or(|most| most > 32 * MIB && most <= 64 * MIB), "{marks:?}");
}

/// What is read of a device is counted for the container; whether it reaches a device is the file system's affair.
#[test]
fn writes_reach_a_device_or_none_is_listed() {
    let Some(cgroup) = TestCgroup::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("data");
    let done = folder.path().join("done");
    let script = format!(
        "dd if=/dev/zero of={} bs=1M count=4 oflag=direct conv=fsync 2>/dev/null; touch {}; sleep 1000",
        file.display(),
        done.display()
    );
    let _child = cgroup.run(&script);
    eventually("the end of writing", || done.exists().then_some(()));
    let io = cgroup.folders().io().unwrap();
    for device in &io.devices {
        assert!(device.write_bytes + device.read_bytes < 1 << 30, "{io:?}");
        assert!(device.write_bytes == 0 || device.writes > 0, "{io:?}");
    }
    if !io.devices.is_empty() {
        assert!(io.devices.iter().map(|device| device.write_bytes).sum::<u64>() >= 4 * MIB, "{io:?}");
    }
}

#[test]
fn metrics_of_a_container_that_has_just_started_are_complete() {
    let Some(cgroup) = TestCgroup::new() else { return };
    let child = cgroup.run("sleep 1000");
    let facts = ContainerFacts { pid: Some(child.pid()), ..container("new", cgroup.folders()) };
    let answer = Stats::default().pod_metrics(&pod("p"), [&facts]);
    let told: Vec<&str> =
        answer.container_metrics[0].metrics.iter().map(|metric| metric.name.as_str()).collect();
    let own_cgroup = Metric::ALL.iter().filter(|metric| metric.own_labels() != ["interface"]);
    for metric in own_cgroup.filter(|metric| metric.presence() == Presence::Always) {
        assert!(told.contains(&metric.name()), "{}", metric.name());
    }
    assert!(told.contains(&Metric::UlimitsSoft.name()), "{told:?}");
}

#[test]
fn the_core_of_v2_beside_v1_tells_cpu_time_and_pressure_and_no_memory() {
    // "Hybrid": a v2 mount without controllers. CPU time and pressure are there all the same.
    let Some(mut cgroup) = TestCgroup::beside_v1() else { return };
    // Two loops on one CPU: one of them always waits.
    let _children = [(); 2].map(|()| cgroup.run("exec taskset -c 0 sh -c 'while :; do :; done'"));
    let folders = cgroup.folders();
    eventually("CPU time", || folders.cpu().filter(|cpu| cpu.usage_nanos >= Some(100_000_000)));
    if cgroup.tells_pressure() {
        let psi = eventually("pressure", || {
            folders.cpu().and_then(|cpu| cpu.psi).filter(|psi| psi.some.total_nanos > 10_000_000)
        });
        assert!(
            psi.some.total_nanos < 600_000_000_000 && psi.full.total_nanos <= psi.some.total_nanos,
            "{psi:?}"
        );
        assert!(folders.io_pressure().is_some());
    }
    assert_eq!(folders.memory(), None);
    cgroup.remove();
    assert_eq!(folders.cpu(), None);
}

/// DESIGN: lists come at once. The bound is loose for machines under load; the number is printed.
#[test]
fn a_list_of_250_takes_milliseconds() {
    let Some(cgroup) = TestCgroup::new() else { return };
    let _child = cgroup.run("sleep 1000");
    let facts: Vec<ContainerFacts> =
        (0..250).map(|id| container(&id.to_string(), cgroup.folders())).collect();
    let stats = Stats::default();
    let best = |work: &dyn Fn()| {
        let once = || {
            let begun = Instant::now();
            work();
            begun.elapsed()
        };
        (0..5).map(|_| once()).min().unwrap()
    };
    let list = best(&|| assert_eq!(stats.containers(&facts).len(), 250));
    let metrics = best(&|| assert_eq!(stats.pod_metrics(&pod("p"), &facts).container_metrics.len(), 250));
    println!("250 containers: stats {list:?}, metrics {metrics:?}");
    assert!(list < Duration::from_secs(1) && metrics < Duration::from_secs(3), "{list:?} {metrics:?}");
}
