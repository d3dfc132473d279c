//! The table of metrics: one row holds all that is fixed about one.

/// Whether a value only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
}

/// Whether every answer holds the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    Always,
    Optional,
}

macro_rules! metrics {
    ($($variant:ident = $name:literal, $kind:ident, $presence:ident, [$($label:literal),*], $help:literal;)*) => {
        /// A metric of the list.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Metric {
            $(#[doc = $help] $variant,)*
        }

        impl Metric {
            /// In the order of the list.
            pub const ALL: &'static [Metric] = &[$(Metric::$variant,)*];

            pub fn name(self) -> &'static str {
                match self { $(Metric::$variant => $name,)* }
            }

            pub fn help(self) -> &'static str {
                match self { $(Metric::$variant => $help,)* }
            }

            pub fn kind(self) -> Kind {
                match self { $(Metric::$variant => Kind::$kind,)* }
            }

            pub fn presence(self) -> Presence {
                match self { $(Metric::$variant => Presence::$presence,)* }
            }

            /// Keys after the [base labels](super::BASE_LABELS).
            pub fn own_labels(self) -> &'static [&'static str] {
                match self { $(Metric::$variant => &[$($label),*],)* }
            }
        }
    };
}

metrics! {
    // The "cpu" label is always "total", as kubelet has cAdvisor leave the single cores out: queries ask for it.
    CpuUsage = "container_cpu_usage_seconds_total", Counter, Always, ["cpu"],
        "CPU time used, all cores together, in seconds.";
    CpuUser = "container_cpu_user_seconds_total", Counter, Always, [],
        "CPU time used in user mode, in seconds.";
    CpuSystem = "container_cpu_system_seconds_total", Counter, Always, [],
        "CPU time used in kernel mode, in seconds.";
    CfsPeriods = "container_cpu_cfs_periods_total", Counter, Always, [],
        "Periods of CPU quota enforcement that have passed.";
    CfsThrottledPeriods = "container_cpu_cfs_throttled_periods_total", Counter, Always, [],
        "Periods in which the container used up its CPU quota.";
    CfsThrottledSeconds = "container_cpu_cfs_throttled_seconds_total", Counter, Always, [],
        "Time that the container was kept waiting by its CPU quota, in seconds.";

    MemoryCache = "container_memory_cache", Gauge, Always, [],
        "Page cache, in bytes.";
    MemoryRss = "container_memory_rss", Gauge, Always, [],
        "Anonymous memory, in bytes.";
    MemoryKernel = "container_memory_kernel_usage", Gauge, Always, [],
        "Memory of the kernel that is charged to the container, in bytes.";
    MemoryMappedFile = "container_memory_mapped_file", Gauge, Always, [],
        "Files mapped into memory, in bytes.";
    MemorySwap = "container_memory_swap", Gauge, Always, [],
        "Memory that is swapped out, in bytes.";
    MemoryFailcnt = "container_memory_failcnt", Counter, Always, [],
        "How often memory usage ran into the limit.";
    MemoryUsage = "container_memory_usage_bytes", Gauge, Always, [],
        "Memory in use, page cache included, in bytes.";
    MemoryMaxUsage = "container_memory_max_usage_bytes", Gauge, Always, [],
        "The most memory that was ever in use, in bytes.";
    MemoryWorkingSet = "container_memory_working_set_bytes", Gauge, Always, [],
        "Memory in use without file pages not used lately, in bytes.";
    MemoryFailures = "container_memory_failures_total", Counter, Always, ["failure_type", "scope"],
        "Page faults: pgfault and pgmajfault, of the container's cgroup and of its hierarchy.";
    OomEvents = "container_oom_events_total", Counter, Always, [],
        "Processes of the container that the kernel killed for want of memory.";

    FsInodesFree = "container_fs_inodes_free", Gauge, Always, [],
        "Free inodes of the file system that holds the container's writable layer.";
    FsInodesTotal = "container_fs_inodes_total", Gauge, Always, [],
        "Inodes of the file system that holds the container's writable layer.";
    FsLimit = "container_fs_limit_bytes", Gauge, Always, [],
        "Size of the file system that holds the container's writable layer, in bytes.";
    FsUsage = "container_fs_usage_bytes", Gauge, Always, [],
        "What the container's writable layer takes up, in bytes; measured from time to time.";
    FsReadBytes = "container_fs_reads_bytes_total", Counter, Optional, ["device"],
        "Bytes read from the device.";
    FsReads = "container_fs_reads_total", Counter, Optional, ["device"],
        "Reads from the device.";
    FsWriteBytes = "container_fs_writes_bytes_total", Counter, Optional, ["device"],
        "Bytes written to the device.";
    FsWrites = "container_fs_writes_total", Counter, Optional, ["device"],
        "Writes to the device.";
    BlkioUsage = "container_blkio_device_usage_total", Counter, Optional, ["device", "major", "minor", "operation"],
        "Bytes read from and written to the device.";

    NetworkRxBytes = "container_network_receive_bytes_total", Counter, Always, ["interface"],
        "Bytes received.";
    NetworkRxErrors = "container_network_receive_errors_total", Counter, Always, ["interface"],
        "Errors while receiving.";
    NetworkRxPackets = "container_network_receive_packets_total", Counter, Always, ["interface"],
        "Packets received.";
    NetworkRxDropped = "container_network_receive_packets_dropped_total", Counter, Always, ["interface"],
        "Packets dropped while receiving.";
    NetworkTxBytes = "container_network_transmit_bytes_total", Counter, Always, ["interface"],
        "Bytes sent.";
    NetworkTxErrors = "container_network_transmit_errors_total", Counter, Always, ["interface"],
        "Errors while sending.";
    NetworkTxPackets = "container_network_transmit_packets_total", Counter, Always, ["interface"],
        "Packets sent.";
    NetworkTxDropped = "container_network_transmit_packets_dropped_total", Counter, Always, ["interface"],
        "Packets dropped while sending.";

    Processes = "container_processes", Gauge, Always, [],
        "Processes in the container.";
    Threads = "container_threads", Gauge, Always, [],
        "Threads in the container.";
    ThreadsMax = "container_threads_max", Gauge, Always, [],
        "Threads that the container may have; 0: no limit.";
    FileDescriptors = "container_file_descriptors", Gauge, Always, [],
        "Open files of the container's processes.";
    Sockets = "container_sockets", Gauge, Always, [],
        "Open sockets of the container's processes.";
    UlimitsSoft = "container_ulimits_soft", Gauge, Optional, ["ulimit"],
        "Soft limits of the container's first process; none if unlimited.";

    SpecCpuPeriod = "container_spec_cpu_period", Gauge, Always, [],
        "CPU period, in microseconds.";
    SpecCpuShares = "container_spec_cpu_shares", Gauge, Always, [],
        "CPU shares.";
    SpecCpuQuota = "container_spec_cpu_quota", Gauge, Optional, [],
        "CPU time in each period, in microseconds; none if unlimited.";
    SpecMemoryLimit = "container_spec_memory_limit_bytes", Gauge, Always, [],
        "Memory limit, in bytes; 0: no limit.";
    SpecMemorySwapLimit = "container_spec_memory_swap_limit_bytes", Gauge, Always, [],
        "Limit of memory and swap together, in bytes; 0: none was set.";
    SpecMemoryReservation = "container_spec_memory_reservation_limit_bytes", Gauge, Always, [],
        "Memory that is protected from reclaim, in bytes; 0: none is.";
    StartTime = "container_start_time_seconds", Gauge, Always, [],
        "When the container started, in seconds since 1970.";
    LastSeen = "container_last_seen", Gauge, Always, [],
        "When the container was last seen, in seconds since 1970.";

    HugetlbUsage = "container_hugetlb_usage_bytes", Gauge, Optional, ["pagesize"],
        "Huge pages in use, in bytes.";
    HugetlbMaxUsage = "container_hugetlb_max_usage_bytes", Gauge, Optional, ["pagesize"],
        "The most huge pages that were ever in use, in bytes.";

    PressureCpuStalled = "container_pressure_cpu_stalled_seconds_total", Counter, Optional, [],
        "Time in which all tasks waited for a CPU, in seconds.";
    PressureCpuWaiting = "container_pressure_cpu_waiting_seconds_total", Counter, Optional, [],
        "Time in which at least one task waited for a CPU, in seconds.";
    PressureMemoryStalled = "container_pressure_memory_stalled_seconds_total", Counter, Optional, [],
        "Time in which all tasks waited for memory, in seconds.";
    PressureMemoryWaiting = "container_pressure_memory_waiting_seconds_total", Counter, Optional, [],
        "Time in which at least one task waited for memory, in seconds.";
    PressureIoStalled = "container_pressure_io_stalled_seconds_total", Counter, Optional, [],
        "Time in which all tasks waited for block devices, in seconds.";
    PressureIoWaiting = "container_pressure_io_waiting_seconds_total", Counter, Optional, [],
        "Time in which at least one task waited for block devices, in seconds.";
}
