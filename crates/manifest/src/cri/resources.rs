//! Requests and limits as the kernel takes them.

use std::collections::BTreeMap;

use berth_cri::runtime::v1 as cri;

use super::{Facts, all_containers};
use crate::Quantity;
use crate::container::Container;
use crate::pod::Pod;

/// Microseconds.
const CPU_PERIOD: i64 = 100_000;

/// A pod's quality of service: who is killed first when the node runs out of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quality {
    /// Every container has limits of CPU and memory, and asks for as much.
    Guaranteed,
    Burstable,
    /// No container has either.
    BestEffort,
}

impl Quality {
    fn of(pod: &Pod) -> Self {
        let (mut any, mut all) = (false, true);
        for container in all_containers(pod) {
            let resources = &container.resources;
            for name in ["cpu", "memory"] {
                let given = |map: &BTreeMap<String, Quantity>| {
                    map.get(name).copied().filter(|amount| *amount > Quantity::default())
                };
                let (request, limit) = (given(&resources.requests), given(&resources.limits));
                any |= request.is_some() || limit.is_some();
                all &= limit.is_some() && request == limit;
            }
        }
        match (any, all) {
            (false, _) => Self::BestEffort,
            (true, true) => Self::Guaranteed,
            (true, false) => Self::Burstable,
        }
    }
}

pub(super) fn of_container(
    pod: &Pod,
    container: &Container,
    facts: &Facts<'_>,
) -> cri::LinuxContainerResources {
    let resources = &container.resources;
    let millis = |map: &BTreeMap<String, Quantity>| map.get("cpu").map_or(0, |cpu| cpu.millis());
    let bytes = |map: &BTreeMap<String, Quantity>| map.get("memory").map_or(0, |memory| memory.value());
    let limit = bytes(&resources.limits);
    let (mut unified, mut swap) = (BTreeMap::new(), limit);
    if facts.cgroup2 {
        // One process is not killed without the others: half a container is of no use.
        unified.insert("memory.oom.group".to_owned(), "1".to_owned());
        unified.insert("memory.swap.max".to_owned(), "0".to_owned());
        swap = 0;
    }
    cri::LinuxContainerResources {
        cpu_period: CPU_PERIOD,
        cpu_quota: quota(millis(&resources.limits)),
        cpu_shares: (millis(&resources.requests) * 1024 / 1000).clamp(2, 262_144),
        memory_limit_in_bytes: limit,
        memory_swap_limit_in_bytes: swap,
        oom_score_adj: oom_score_adj(Quality::of(pod), bytes(&resources.requests), facts.memory),
        hugepage_limits: facts
            .huge_page_sizes
            .iter()
            .map(|size| cri::HugepageLimit { page_size: size.clone(), limit: huge_pages(container, size) })
            .collect(),
        unified,
        ..cri::LinuxContainerResources::default()
    }
}

/// Microseconds in each period; 0: no limit.
fn quota(millis: i64) -> i64 {
    match millis {
        0 => 0,
        // The kernel's own minimum.
        _ => (millis.saturating_mul(CPU_PERIOD) / 1000).max(1000),
    }
}

fn oom_score_adj(quality: Quality, request: i64, capacity: i64) -> i64 {
    match quality {
        Quality::Guaranteed => -997,
        Quality::BestEffort => 1000,
        Quality::Burstable => {
            let share = i128::from(request) * 1000 / i128::from(capacity.max(1));
            (1000 - i64::try_from(share).unwrap_or(1000)).clamp(3, 999)
        }
    }
}

/// The limit on pages of a size that is written "2MB": the resource is "hugepages-2Mi".
fn huge_pages(container: &Container, size: &str) -> u64 {
    let size: Option<Quantity> = size.strip_suffix('B').and_then(|size| format!("{size}i").parse().ok());
    let limits = container.resources.limits.iter();
    let found = limits.filter_map(|(name, limit)| {
        let own: Quantity = name.strip_prefix("hugepages-")?.parse().ok()?;
        (Some(own) == size).then(|| u64::try_from(limit.value()).unwrap_or(0))
    });
    found.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_kubelets() {
        assert_eq!([quota(0), quota(1), quota(250), quota(1500)], [0, 1000, 25_000, 150_000]);
        let gib = 1 << 30;
        assert_eq!(oom_score_adj(Quality::Burstable, gib, 4 * gib), 750);
        assert_eq!(oom_score_adj(Quality::Burstable, 4 * gib, 4 * gib), 3);
        assert_eq!(oom_score_adj(Quality::Burstable, 0, 4 * gib), 999);
    }
}
