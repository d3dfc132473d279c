//! CRI metrics: what `/metrics/cadvisor` shows of pods and containers when kubelet asks the runtime for it.
//!
//! The names and meanings are cAdvisor's, so that dashboards go on working. [`descriptors`] is the fixed list;
//! every metric in it has a value for each running container, on cgroup v1 and v2, with exactly as many labels as its
//! descriptor has keys. Those marked [`Presence::Optional`] may be missing, since the kernel or the container may have
//! nothing to tell: no block device touched, no pressure accounting, no limit.
//!
//! Values are whole numbers, seconds are cut, as the protocol has it.

mod exposition;
mod names;
mod sink;
mod values;

use berth_cri::runtime::v1 as cri;
pub use exposition::Exposition;
pub use names::{Kind, Metric, Presence};
pub(crate) use sink::Sink;
pub(crate) use values::{container, network};

/// The labels that every metric begins with.
pub const BASE_LABELS: [&str; 5] = ["pod", "namespace", "container", "id", "image"];

/// What stands for the container's name in the metrics of a pod as a whole.
pub const POD_AS_CONTAINER: &str = "POD";

/// The answer to ListMetricDescriptors. Always the same: kubelet asks once.
pub fn descriptors() -> Vec<cri::MetricDescriptor> {
    let of = |metric: &Metric| cri::MetricDescriptor {
        name: metric.name().to_owned(),
        help: metric.help().to_owned(),
        label_keys: BASE_LABELS.iter().chain(metric.own_labels()).map(|key| (*key).to_owned()).collect(),
    };
    Metric::ALL.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// What critest looks for (cri-tools, `pkg/validate/pod.go`), without those that a runtime may leave out.
    const DEMANDED: &str = "\
        container_blkio_device_usage_total container_cpu_cfs_periods_total container_cpu_cfs_throttled_periods_total \
        container_cpu_cfs_throttled_seconds_total container_cpu_system_seconds_total \
        container_cpu_usage_seconds_total container_cpu_user_seconds_total container_file_descriptors \
        container_fs_inodes_free container_fs_inodes_total container_fs_limit_bytes container_fs_reads_bytes_total \
        container_fs_reads_total container_fs_usage_bytes container_fs_writes_bytes_total container_fs_writes_total \
        container_hugetlb_max_usage_bytes container_hugetlb_usage_bytes container_last_seen container_memory_cache \
        container_memory_failcnt container_memory_failures_total container_memory_kernel_usage \
        container_memory_mapped_file container_memory_max_usage_bytes container_memory_rss container_memory_swap \
        container_memory_usage_bytes container_memory_working_set_bytes container_network_receive_bytes_total \
        container_network_receive_errors_total container_network_receive_packets_dropped_total \
        container_network_receive_packets_total container_network_transmit_bytes_total \
        container_network_transmit_errors_total container_network_transmit_packets_dropped_total \
        container_network_transmit_packets_total container_oom_events_total \
        container_pressure_cpu_stalled_seconds_total container_pressure_cpu_waiting_seconds_total \
        container_pressure_io_stalled_seconds_total container_pressure_io_waiting_seconds_total \
        container_pressure_memory_stalled_seconds_total container_pressure_memory_waiting_seconds_total \
        container_processes container_sockets container_spec_cpu_period container_spec_cpu_quota \
        container_spec_cpu_shares container_spec_memory_limit_bytes container_spec_memory_reservation_limit_bytes \
        container_spec_memory_swap_limit_bytes container_start_time_seconds container_threads container_threads_max \
        container_ulimits_soft";

    /// May be absent from an answer: critest's lists of optional values and of what not every runtime has.
    const MAY_BE_ABSENT: &str = "\
        container_blkio_device_usage_total container_fs_reads_bytes_total container_fs_reads_total \
        container_fs_writes_bytes_total container_fs_writes_total container_hugetlb_max_usage_bytes \
        container_hugetlb_usage_bytes container_pressure_cpu_stalled_seconds_total \
        container_pressure_cpu_waiting_seconds_total container_pressure_io_stalled_seconds_total \
        container_pressure_io_waiting_seconds_total container_pressure_memory_stalled_seconds_total \
        container_pressure_memory_waiting_seconds_total container_spec_cpu_quota \
        container_spec_memory_reservation_limit_bytes container_ulimits_soft";

    #[test]
    fn the_list_is_what_critest_demands_and_nothing_else() {
        let listed: HashSet<String> = descriptors().into_iter().map(|descriptor| descriptor.name).collect();
        let demanded: HashSet<String> = DEMANDED.split_whitespace().map(str::to_owned).collect();
        assert_eq!(listed.len(), Metric::ALL.len(), "a name comes once");
        assert_eq!(listed, demanded);
    }

    #[test]
    fn only_what_may_be_absent_is_optional() {
        let optional: HashSet<&str> = Metric::ALL
            .iter()
            .filter(|metric| metric.presence() == Presence::Optional)
            .map(|metric| metric.name())
            .collect();
        let may_be: HashSet<&str> = MAY_BE_ABSENT.split_whitespace().collect();
        assert_eq!(optional.difference(&may_be).collect::<Vec<_>>(), Vec::<&&str>::new());
    }

    #[test]
    fn help_and_keys_are_there_and_no_key_comes_twice() {
        for descriptor in descriptors() {
            assert!(!descriptor.help.is_empty(), "{}", descriptor.name);
            assert_eq!(descriptor.label_keys[..5], BASE_LABELS, "{}", descriptor.name);
            let keys: HashSet<_> = descriptor.label_keys.iter().collect();
            assert_eq!(keys.len(), descriptor.label_keys.len(), "{}", descriptor.name);
        }
    }
}
