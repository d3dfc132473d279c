//! The values of one container and of one pod's network.

use super::{Metric, Sink};
use crate::{
    ContainerFacts, Cpu, DiskUsage, FileSystem, Interfaces, Io, Memory, MemoryMarks, Psi, Swap, Tasks,
    file_system, open_files, open_files_limit, process::device_name,
};

/// Shares of a cgroup for which none were set.
const DEFAULT_SHARES: u64 = 1024;
/// Microseconds, of a cgroup for which none was set.
const DEFAULT_PERIOD: u64 = 100_000;

/// All metrics of a container. `None` when its cgroup is gone: then it does not run any more, and zeros would be
/// lies. Where only a controller is missing, what it would tell is 0, since each metric has to have a value.
pub(crate) fn container(
    sink: &mut Sink<'_>,
    facts: &ContainerFacts,
    layer: Option<DiskUsage>,
    now_nanos: i64,
) -> Option<()> {
    let (cpu, memory) = (facts.cgroup.cpu(), facts.cgroup.memory());
    if cpu.is_none() && memory.is_none() {
        return None;
    }
    let swap = memory.as_ref().and_then(|memory| facts.cgroup.swap(memory));
    let io = facts.cgroup.io();
    let tasks = facts.cgroup.tasks().unwrap_or_default();

    let (cpu, memory) = (cpu.unwrap_or_default(), memory.unwrap_or_default());
    self::cpu(sink, &cpu);
    self::memory(sink, &memory, swap, facts.cgroup.memory_marks().unwrap_or_default());
    disk(sink, facts, layer.unwrap_or_default());
    processes(sink, facts, &tasks);
    spec(sink, facts);
    for pages in facts.cgroup.huge_pages() {
        sink.put_with(Metric::HugetlbUsage, &[&pages.size], pages.usage);
        if let Some(most) = pages.max_usage {
            sink.put_with(Metric::HugetlbMaxUsage, &[&pages.size], most);
        }
    }
    pressure(sink, Metric::PressureCpuStalled, Metric::PressureCpuWaiting, cpu.psi);
    pressure(sink, Metric::PressureMemoryStalled, Metric::PressureMemoryWaiting, memory.psi);
    if let Some(io) = io {
        devices(sink, &io);
        pressure(sink, Metric::PressureIoStalled, Metric::PressureIoWaiting, io.psi);
    }
    sink.put(Metric::StartTime, seconds_of(facts.started_at));
    sink.put(Metric::LastSeen, seconds_of(now_nanos));
    Some(())
}

fn cpu(sink: &mut Sink<'_>, cpu: &Cpu) {
    sink.put_with(Metric::CpuUsage, &["total"], seconds(cpu.usage_nanos));
    sink.put(Metric::CpuUser, seconds(cpu.user_nanos));
    sink.put(Metric::CpuSystem, seconds(cpu.system_nanos));
    sink.put(Metric::CfsPeriods, cpu.periods.unwrap_or(0));
    sink.put(Metric::CfsThrottledPeriods, cpu.throttled_periods.unwrap_or(0));
    sink.put(Metric::CfsThrottledSeconds, seconds(cpu.throttled_nanos));
}

fn memory(sink: &mut Sink<'_>, memory: &Memory, swap: Option<Swap>, marks: MemoryMarks) {
    let usage = memory.usage.unwrap_or(0);
    sink.put(Metric::MemoryCache, memory.cache.unwrap_or(0));
    sink.put(Metric::MemoryRss, memory.rss.unwrap_or(0));
    sink.put(Metric::MemoryKernel, memory.kernel.or(marks.kernel).unwrap_or(0));
    sink.put(Metric::MemoryMappedFile, memory.mapped_file.unwrap_or(0));
    sink.put(Metric::MemorySwap, swap.map_or(0, |swap| swap.usage));
    sink.put(Metric::MemoryFailcnt, marks.limit_hits.unwrap_or(0));
    sink.put(Metric::MemoryUsage, usage);
    // It was this much at least; before Linux 5.19 nobody on v2 knows better.
    sink.put(Metric::MemoryMaxUsage, marks.max_usage.unwrap_or(usage));
    sink.put(Metric::MemoryWorkingSet, memory.working_set().unwrap_or(0));
    sink.put(Metric::OomEvents, marks.oom_kills.unwrap_or(0));
    let kinds = [
        ("pgfault", memory.own_page_faults, memory.page_faults),
        ("pgmajfault", memory.own_major_page_faults, memory.major_page_faults),
    ];
    for (kind, own, all) in kinds {
        let all = all.unwrap_or(0);
        sink.put_with(Metric::MemoryFailures, &[kind, "container"], own.unwrap_or(all));
        sink.put_with(Metric::MemoryFailures, &[kind, "hierarchy"], all);
    }
}

fn disk(sink: &mut Sink<'_>, facts: &ContainerFacts, layer: DiskUsage) {
    let below = facts.layer.as_ref().and_then(|layer| file_system(&layer.mountpoint));
    let FileSystem { bytes_total, inodes_total, inodes_free } = below.unwrap_or_default();
    sink.put(Metric::FsInodesFree, inodes_free);
    sink.put(Metric::FsInodesTotal, inodes_total);
    sink.put(Metric::FsLimit, bytes_total);
    sink.put(Metric::FsUsage, layer.bytes);
}

fn devices(sink: &mut Sink<'_>, io: &Io) {
    for device in &io.devices {
        let name = device_name(device.major, device.minor);
        let (major, minor) = (device.major.to_string(), device.minor.to_string());
        sink.put_with(Metric::FsReadBytes, &[&name], device.read_bytes);
        sink.put_with(Metric::FsReads, &[&name], device.reads);
        sink.put_with(Metric::FsWriteBytes, &[&name], device.write_bytes);
        sink.put_with(Metric::FsWrites, &[&name], device.writes);
        sink.put_with(Metric::BlkioUsage, &[&name, &major, &minor, "Read"], device.read_bytes);
        sink.put_with(Metric::BlkioUsage, &[&name, &major, &minor, "Write"], device.write_bytes);
    }
}

fn processes(sink: &mut Sink<'_>, facts: &ContainerFacts, tasks: &Tasks) {
    let processes = u64::try_from(tasks.pids.len()).unwrap_or(u64::MAX);
    let files = open_files(&tasks.pids).unwrap_or_default();
    sink.put(Metric::Processes, processes);
    sink.put(Metric::Threads, tasks.threads.unwrap_or(processes));
    sink.put(Metric::ThreadsMax, tasks.threads_max.unwrap_or(0));
    sink.put(Metric::FileDescriptors, files.descriptors);
    sink.put(Metric::Sockets, files.sockets);
    if let Some(limit) = facts.pid.and_then(open_files_limit) {
        sink.put_with(Metric::UlimitsSoft, &["max_open_files"], limit);
    }
}

fn spec(sink: &mut Sink<'_>, facts: &ContainerFacts) {
    // Zero and less mean "none" in all of these.
    let positive = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
    let resources = facts.resources.as_ref();
    let field = |of: fn(&berth_cri::runtime::v1::LinuxContainerResources) -> i64| {
        resources.map(of).and_then(positive)
    };
    sink.put(Metric::SpecCpuPeriod, field(|set| set.cpu_period).unwrap_or(DEFAULT_PERIOD));
    sink.put(Metric::SpecCpuShares, field(|set| set.cpu_shares).unwrap_or(DEFAULT_SHARES));
    if let Some(quota) = field(|set| set.cpu_quota) {
        sink.put(Metric::SpecCpuQuota, quota);
    }
    sink.put(Metric::SpecMemoryLimit, field(|set| set.memory_limit_in_bytes).unwrap_or(0));
    sink.put(Metric::SpecMemorySwapLimit, field(|set| set.memory_swap_limit_in_bytes).unwrap_or(0));
    // kubelet's MemoryQoS sets memory.min to the request; an OCI spec's reservation becomes memory.low.
    let unified = |file: &str| resources?.unified.get(file)?.trim_ascii().parse().ok();
    let protected: Option<u64> = unified("memory.min").or_else(|| unified("memory.low"));
    sink.put(Metric::SpecMemoryReservation, protected.unwrap_or(0));
}

fn pressure(sink: &mut Sink<'_>, stalled: Metric, waiting: Metric, psi: Option<Psi>) {
    if let Some(psi) = psi {
        sink.put(stalled, seconds(Some(psi.full.total_nanos)));
        sink.put(waiting, seconds(Some(psi.some.total_nanos)));
    }
}

/// The metrics of a pod's interfaces.
pub(crate) fn network(sink: &mut Sink<'_>, interfaces: &Interfaces) {
    for interface in interfaces.all() {
        let values = [
            (Metric::NetworkRxBytes, interface.rx_bytes),
            (Metric::NetworkRxErrors, interface.rx_errors),
            (Metric::NetworkRxPackets, interface.rx_packets),
            (Metric::NetworkRxDropped, interface.rx_dropped),
            (Metric::NetworkTxBytes, interface.tx_bytes),
            (Metric::NetworkTxErrors, interface.tx_errors),
            (Metric::NetworkTxPackets, interface.tx_packets),
            (Metric::NetworkTxDropped, interface.tx_dropped),
        ];
        for (metric, value) in values {
            sink.put_with(metric, &[&interface.name], value);
        }
    }
}

fn seconds(nanos: Option<u64>) -> u64 {
    nanos.unwrap_or(0) / 1_000_000_000
}

fn seconds_of(unix_nanos: i64) -> u64 {
    seconds(u64::try_from(unix_nanos).ok())
}
