//! Limits: which of them a plugin sets, and setting them.

use super::owners::Claim;
use crate::{Field, LinuxCpu, LinuxMemory, LinuxResources};

/// What is set here.
pub(crate) fn claims(resources: &LinuxResources) -> Vec<Claim> {
    let memory = resources.memory.unwrap_or_default();
    let cpu = resources.cpu.clone().unwrap_or_default();
    let simple = [
        (Field::MemLimit, memory.limit.is_some()),
        (Field::MemReservation, memory.reservation.is_some()),
        (Field::MemSwapLimit, memory.swap.is_some()),
        (Field::MemKernelLimit, memory.kernel.is_some()),
        (Field::MemTcpLimit, memory.kernel_tcp.is_some()),
        (Field::MemSwappiness, memory.swappiness.is_some()),
        (Field::MemDisableOomKiller, memory.disable_oom_killer.is_some()),
        (Field::MemUseHierarchy, memory.use_hierarchy.is_some()),
        (Field::CpuShares, cpu.shares.is_some()),
        (Field::CpuQuota, cpu.quota.is_some()),
        (Field::CpuPeriod, cpu.period.is_some()),
        (Field::CpuRealtimeRuntime, cpu.realtime_runtime.is_some()),
        (Field::CpuRealtimePeriod, cpu.realtime_period.is_some()),
        (Field::CpuSetCpUs, !cpu.cpus.is_empty()),
        (Field::CpuSetMems, !cpu.mems.is_empty()),
        (Field::PidsLimit, resources.pids.is_some()),
        (Field::BlockioClass, resources.blockio_class.is_some()),
        (Field::RdtClass, resources.rdt_class.is_some()),
    ];
    let simple = simple.into_iter().filter(|(_, set)| *set).map(|(field, _)| (field, None));
    let pages = resources.hugepage_limits.iter();
    let pages = pages.map(|limit| (Field::HugepageLimits, Some(limit.page_size.clone())));
    let unified = resources.unified.keys().map(|key| (Field::CgroupsUnified, Some(key.clone())));
    simple.chain(pages).chain(unified).collect()
}

/// Sets in `target` what is set in `wanted`, and leaves the rest. Where there is no swap beyond a memory limit, there is
/// none beyond the new one.
pub fn overlay(target: &mut LinuxResources, wanted: &LinuxResources) {
    fn set<T: Clone>(target: &mut Option<T>, wanted: &Option<T>) {
        if wanted.is_some() {
            target.clone_from(wanted);
        }
    }
    fn text(target: &mut String, wanted: &str) {
        if !wanted.is_empty() {
            wanted.clone_into(target);
        }
    }
    if let Some(wanted) = &wanted.memory {
        let memory = target.memory.get_or_insert_with(LinuxMemory::default);
        let no_swap = memory.swap.is_some() && memory.swap == memory.limit;
        set(&mut memory.limit, &wanted.limit);
        if no_swap {
            memory.swap.clone_from(&memory.limit);
        }
        set(&mut memory.reservation, &wanted.reservation);
        set(&mut memory.swap, &wanted.swap);
        set(&mut memory.kernel, &wanted.kernel);
        set(&mut memory.kernel_tcp, &wanted.kernel_tcp);
        set(&mut memory.swappiness, &wanted.swappiness);
        set(&mut memory.disable_oom_killer, &wanted.disable_oom_killer);
        set(&mut memory.use_hierarchy, &wanted.use_hierarchy);
    }
    if let Some(wanted) = &wanted.cpu {
        let cpu = target.cpu.get_or_insert_with(LinuxCpu::default);
        set(&mut cpu.shares, &wanted.shares);
        set(&mut cpu.quota, &wanted.quota);
        set(&mut cpu.period, &wanted.period);
        set(&mut cpu.realtime_runtime, &wanted.realtime_runtime);
        set(&mut cpu.realtime_period, &wanted.realtime_period);
        text(&mut cpu.cpus, &wanted.cpus);
        text(&mut cpu.mems, &wanted.mems);
    }
    for limit in &wanted.hugepage_limits {
        target.hugepage_limits.retain(|known| known.page_size != limit.page_size);
        target.hugepage_limits.push(limit.clone());
    }
    target.unified.extend(wanted.unified.clone());
    target.devices.extend(wanted.devices.iter().cloned());
    set(&mut target.blockio_class, &wanted.blockio_class);
    set(&mut target.rdt_class, &wanted.rdt_class);
    set(&mut target.pids, &wanted.pids);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HugepageLimit, LinuxPids, OptionalInt64, OptionalUInt64};

    #[test]
    fn what_is_claimed_is_what_is_laid_over_and_the_rest_stays() {
        let mut target = LinuxResources {
            cpu: Some(LinuxCpu {
                shares: Some(OptionalUInt64 { value: 512 }),
                cpus: "0-3".to_owned(),
                ..Default::default()
            }),
            hugepage_limits: vec![HugepageLimit { page_size: "2MB".to_owned(), limit: 1 }],
            ..Default::default()
        };
        let wanted = LinuxResources {
            memory: Some(LinuxMemory { limit: Some(OptionalInt64 { value: 0 }), ..Default::default() }),
            cpu: Some(LinuxCpu { cpus: "1".to_owned(), ..Default::default() }),
            hugepage_limits: vec![HugepageLimit { page_size: "2MB".to_owned(), limit: 0 }],
            pids: Some(LinuxPids { limit: -1 }),
            ..Default::default()
        };
        let fields: Vec<_> = claims(&wanted).into_iter().map(|(field, _)| field).collect();
        assert_eq!(fields, [Field::MemLimit, Field::CpuSetCpUs, Field::PidsLimit, Field::HugepageLimits]);
        overlay(&mut target, &wanted);
        let cpu = target.cpu.unwrap();
        assert_eq!((cpu.shares.unwrap().value, cpu.cpus.as_str()), (512, "1"));
        assert_eq!(target.hugepage_limits, wanted.hugepage_limits);
        assert_eq!((target.memory, target.pids), (wanted.memory, wanted.pids));
    }
}
