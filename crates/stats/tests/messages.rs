//! The CRI messages from recorded files of both versions.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::Path,
    sync::Arc,
    time::Duration,
};

use berth_cri::runtime::v1 as cri;
use berth_stats::*;
use common::*;

fn both() -> [(&'static str, tempfile::TempDir, CgroupFolders); 2] {
    let (v1, v2) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folders = (recorded_v1(v1.path()), recorded_v2(v2.path()));
    [("v1", v1, folders.0), ("v2", v2, folders.1)]
}

fn stats() -> Stats {
    Stats::default()
}

/// A process with an interface besides the loopback: here, this one.
fn own_network() -> Option<PodNetwork> {
    let pid = i32::try_from(std::process::id()).unwrap();
    interfaces(pid, "eth0").map(|_| PodNetwork { pid, default_interface: "eth0".into() })
}

fn full(id: &str, cgroup: CgroupFolders, layer: &Path) -> ContainerFacts {
    let layer = WritableLayer { folder: layer.to_owned(), mountpoint: layer.to_owned() };
    let pid = i32::try_from(std::process::id()).ok();
    ContainerFacts { pid, layer: Some(layer), ..container(id, cgroup) }
}

fn value(wrapped: &Option<cri::UInt64Value>) -> Option<u64> {
    wrapped.as_ref().map(|value| value.value)
}

#[test]
fn a_container_is_told_alike_from_both_versions() {
    for (version, kept, cgroup) in both() {
        let told = stats().container(&full("c1", cgroup, kept.path()));
        let attributes = told.attributes.unwrap();
        assert_eq!((attributes.id.as_str(), attributes.metadata.unwrap().attempt), ("c1", 2), "{version}");
        assert_eq!(attributes.labels["app"], "web");
        let cpu = told.cpu.unwrap();
        assert!(cpu.timestamp > 0);
        assert_eq!(value(&cpu.usage_core_nano_seconds), Some(5_402_871_000));
        assert_eq!(cpu.usage_nano_cores, None, "one sample of a container that has just started");
        let memory = told.memory.unwrap();
        assert!(memory.timestamp > 0);
        assert_eq!(value(&memory.usage_bytes), Some(2_072_576));
        assert_eq!(value(&memory.working_set_bytes), Some(991_232));
        assert_eq!(value(&memory.available_bytes), Some(67_108_864 - 991_232));
        assert_eq!(value(&memory.rss_bytes), Some(421_888));
        assert_eq!((value(&memory.page_faults), value(&memory.major_page_faults)), (Some(2207), Some(12)));
        let swap = told.swap.unwrap();
        assert_eq!((value(&swap.swap_usage_bytes), value(&swap.swap_available_bytes)), (Some(4096), Some(0)));
        let pressures = [cpu.psi, memory.psi, told.io.and_then(|io| io.psi)];
        for psi in pressures {
            assert_eq!(psi.is_some(), version == "v2", "pressure is told on v2 only");
            if let Some(psi) = psi {
                assert_eq!(psi.some.unwrap().total, 2_500_000_000, "nanoseconds");
                assert_eq!(psi.full.unwrap().total, 1_500_000_000);
            }
        }
    }
}

#[test]
fn the_writable_layer_comes_once_it_is_measured() {
    let (_, kept, cgroup) = both().into_iter().next().unwrap();
    let layer = tempfile::tempdir().unwrap();
    fs::write(layer.path().join("file"), vec![1; 100_000]).unwrap();
    let stats = stats();
    let facts = full("c1", cgroup, layer.path());
    stats.started("c1", facts.layer.as_ref().unwrap());
    let usage = eventually("a measured layer", || stats.container(&facts).writable_layer);
    assert!(usage.timestamp > 0);
    assert_eq!(usage.fs_id.unwrap().mountpoint, layer.path().to_str().unwrap());
    assert_eq!(value(&usage.inodes_used), Some(2));
    assert!(value(&usage.used_bytes).unwrap() >= 100_000);
    drop(kept);
}

#[test]
fn a_container_that_is_gone_keeps_its_attributes_and_leaves_the_list() {
    let gone = container("gone", CgroupFolders::v2("/nonexistent"));
    let stats = stats();
    let told = stats.container(&gone);
    assert!(told.attributes.is_some());
    assert_eq!((told.cpu, told.memory, told.swap, told.io), (None, None, None, None));
    assert_eq!(stats.containers([&gone]), []);
    let metrics = stats.pod_metrics(&pod("p"), [&gone]);
    assert_eq!(metrics.container_metrics, []);
}

#[test]
fn a_pod_has_all_that_kubelet_follows_unchecked() {
    for (version, kept, cgroup) in both() {
        let containers = [container("c1", cgroup.clone()), container("c2", cgroup.clone())];
        for own_cgroup in [None, Some(cgroup.clone())] {
            let facts = PodFacts { cgroup: own_cgroup.clone(), network: own_network(), ..pod("p1") };
            let told = stats().pod(&facts, &containers);
            assert_eq!(told.attributes.unwrap().metadata.unwrap().uid, "uid");
            let linux = told.linux.unwrap();
            assert_eq!(linux.containers.len(), 2);
            let times = if own_cgroup.is_some() { 1 } else { 2 };
            assert_eq!(
                value(&linux.cpu.unwrap().usage_core_nano_seconds),
                Some(times * 5_402_871_000),
                "{version}"
            );
            assert_eq!(value(&linux.memory.unwrap().working_set_bytes), Some(times * 991_232), "{version}");
            assert_eq!(value(&linux.process.unwrap().process_count), Some(2));
            assert_eq!(linux.io.is_some(), version == "v2" && own_cgroup.is_some());
            assert_eq!(linux.network.is_some(), facts.network.is_some());
            if let Some(network) = linux.network {
                let default = network.default_interface.unwrap();
                assert!(
                    network.interfaces.iter().all(|other| other.name != default.name && other.name != "lo")
                );
            }
        }
        drop(kept);
    }
    let bare = stats().pod(&PodFacts { network: None, ..pod("bare") }, []);
    let linux = bare.linux.unwrap();
    assert_eq!((linux.cpu, linux.memory, linux.network), (None, None, None));
    // A process that ended takes the whole network message with it, not only the interface in it.
    let network = Some(PodNetwork { pid: i32::MAX, default_interface: "eth0".into() });
    assert_eq!(stats().pod(&PodFacts { network, ..pod("ended") }, []).linux.unwrap().network, None);
}

/// All metrics of an answer, pod level first.
fn all(answer: &cri::PodSandboxMetrics) -> Vec<&cri::Metric> {
    answer.metrics.iter().chain(answer.container_metrics.iter().flat_map(|each| &each.metrics)).collect()
}

/// What critest and kubelet check, and a little more.
fn consistent(version: &str, answer: &cri::PodSandboxMetrics, network: bool) {
    let descriptors: HashMap<String, cri::MetricDescriptor> =
        descriptors().into_iter().map(|descriptor| (descriptor.name.clone(), descriptor)).collect();
    let mut series = HashSet::new();
    for metric in all(answer) {
        let descriptor =
            descriptors.get(&metric.name).unwrap_or_else(|| panic!("{} has no descriptor", metric.name));
        assert_eq!(
            metric.label_values.len(),
            descriptor.label_keys.len(),
            "{version}: labels of {}",
            metric.name
        );
        assert!(metric.value.is_some(), "{version}: {}", metric.name);
        assert!(
            series.insert((&metric.name, &metric.label_values)),
            "{version}: {} comes twice",
            metric.name
        );
    }
    let told: HashSet<&str> = all(answer).iter().map(|metric| metric.name.as_str()).collect();
    for metric in Metric::ALL.iter().filter(|metric| metric.presence() == Presence::Always) {
        let of_network = metric.own_labels() == ["interface"];
        assert!(
            told.contains(metric.name()) || (of_network && !network),
            "{version}: {} is missing",
            metric.name()
        );
    }
}

#[test]
fn every_descriptor_is_answered_on_both_versions() {
    for (version, kept, cgroup) in both() {
        let network = own_network();
        let with_network = network.is_some();
        let containers = [full("c1", cgroup.clone(), kept.path()), full("c2", cgroup, kept.path())];
        let answer = stats().pod_metrics(&PodFacts { network, ..pod("p1") }, &containers);
        assert_eq!((answer.pod_sandbox_id.as_str(), answer.container_metrics.len()), ("p1", 2));
        consistent(version, &answer, with_network);
    }
}

#[test]
fn a_container_of_which_the_kernel_tells_least_still_has_every_metric() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("cpu.stat"), "usage_usec 1\n").unwrap();
    let facts = ContainerFacts { resources: None, ..container("c1", CgroupFolders::v2(folder.path())) };
    let answer = stats().pod_metrics(&pod("p1"), [&facts]);
    consistent("bare v2", &answer, false);
}

#[test]
fn values_are_cadvisors() {
    for (version, kept, cgroup) in both() {
        let answer = stats().pod_metrics(&pod("p1"), [&full("c1", cgroup, kept.path())]);
        let get = |metric: Metric, own: &[&str]| {
            let base = ["pod", "ns", "web", "c1", "registry.example/web:1"];
            let labels: Vec<&str> = base.iter().chain(own).copied().collect();
            let found = all(&answer)
                .into_iter()
                .find(|told| told.name == metric.name() && told.label_values == labels);
            let found = found.unwrap_or_else(|| panic!("{version}: no {} with {labels:?}", metric.name()));
            value(&found.value).unwrap()
        };
        assert_eq!(get(Metric::CpuUsage, &["total"]), 5, "seconds are cut");
        assert_eq!(get(Metric::CpuUser, &[]), 4);
        assert_eq!(get(Metric::CfsPeriods, &[]), 118);
        assert_eq!(get(Metric::CfsThrottledSeconds, &[]), 3);
        assert_eq!(get(Metric::MemoryMaxUsage, &[]), 2_600_960);
        assert_eq!(get(Metric::MemoryFailcnt, &[]), 9);
        assert_eq!(get(Metric::MemoryKernel, &[]), 270_336);
        assert_eq!(get(Metric::MemorySwap, &[]), 4096);
        assert_eq!(get(Metric::OomEvents, &[]), 1);
        assert_eq!(get(Metric::MemoryFailures, &["pgfault", "hierarchy"]), 2207);
        let own = if version == "v1" { 2000 } else { 2207 };
        assert_eq!(get(Metric::MemoryFailures, &["pgfault", "container"]), own);
        assert_eq!(get(Metric::BlkioUsage, &[&device(&answer), "8", "0", "Write"]), 299_008_000);
        assert_eq!(get(Metric::FsReads, &[&device(&answer)]), 8950);
        assert_eq!(get(Metric::Processes, &[]), 1);
        assert_eq!(get(Metric::ThreadsMax, &[]), 0, "max");
        assert!(get(Metric::FileDescriptors, &[]) >= 3);
        assert_eq!(get(Metric::SpecCpuQuota, &[]), 20_000);
        assert_eq!(get(Metric::SpecMemoryLimit, &[]), 64 << 20);
        assert!(get(Metric::FsLimit, &[]) > 0);
        assert!(get(Metric::StartTime, &[]) > 1_700_000_000 && get(Metric::LastSeen, &[]) > 1_700_000_000);
        if version == "v2" {
            assert_eq!((get(Metric::PressureIoWaiting, &[]), get(Metric::PressureIoStalled, &[])), (2, 1));
        }
    }
}

/// What the device 8:0 is called here.
fn device(answer: &cri::PodSandboxMetrics) -> String {
    all(answer).into_iter().find(|metric| metric.name == Metric::FsReads.name()).unwrap().label_values[5]
        .clone()
}

#[test]
fn the_rate_follows_an_injected_clock() {
    #[derive(Debug)]
    struct Hand(std::sync::atomic::AtomicU64);
    impl Clock for Hand {
        fn monotonic(&self) -> Duration {
            Duration::from_secs(self.0.load(std::sync::atomic::Ordering::Relaxed))
        }
        fn unix_nanos(&self) -> i64 {
            i64::try_from(self.monotonic().as_nanos()).unwrap()
        }
    }
    let clock = Arc::new(Hand(1_000_000.into()));
    let stats = Stats::new(LayerSettings::default(), clock.clone());
    let folder = tempfile::tempdir().unwrap();
    let facts = ContainerFacts { started_at: 1, ..container("c1", recorded_v2(folder.path())) };
    let rate = || value(&stats.container(&facts).cpu.unwrap().usage_nano_cores);
    assert_eq!(rate(), None);
    fs::write(folder.path().join("cpu.stat"), "usage_usec 10402871\n").unwrap();
    clock.0.fetch_add(10, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(rate(), Some(500_000_000), "5 s in 10");
    stats.forget("c1");
    assert_eq!(rate(), None);
}
